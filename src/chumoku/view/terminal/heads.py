"""Drawing the roles of heads: a map of layers and heads, and the best example of each role."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chumoku.view.scene import HeadsScene
from chumoku.view.terminal.ink import (
    WIDEST,
    Ink,
    Line,
    Page,
    Span,
    cells,
    fit,
    length,
    paragraph,
    title,
)
from chumoku.words import say

if TYPE_CHECKING:
    from chumoku.heads import HeadMap, HeadRole

# Below this many tokens, the drawing says that much of it may be chance.
FEW = 100
# Below this width the last columns of the legend are left out.
NARROW = 76
_INKS: dict[str, Ink] = {"sure": "loud", "likely": "plain", "undecided": "quiet"}
_LETTERS = {
    "previous": "p",
    "next": "n",
    "self": "o",
    "same": "=",
    "special": "S",
    "meaning": "m",
    "near": "i",
    "far": "f",
    "broad": "b",
    "mixed": ".",
}


def heads(scene: HeadsScene, page: Page) -> list[Line]:
    """The whole drawing: both views, the legend, how sure."""
    about = say(
        "heads.about",
        page.lang,
        model=scene.model.name,
        layers=scene.raw.layers,
        heads=scene.raw.heads,
        tokens=scene.words.tokens,
        texts=scene.raw.texts,
    )
    lines = title(page, say("heads.title", page.lang), about)
    if scene.unread:
        read = len(scene.texts)
        unread = say("heads.unread", page.lang, read=read, unread=scene.unread)
        lines += [*paragraph(page, unread, "loud"), ()]
    if scene.left_out:
        cut = say("heads.cut", page.lang, left=scene.left_out, positions=scene.model.positions)
        lines += [*paragraph(page, cut, "loud"), ()]
    left = _map(scene.words, say("heads.words", page.lang), page)
    right = _map(scene.raw, say("heads.raw", page.lang), page)
    room = max(length(line) for line in left)
    if room + 3 + max(length(line) for line in right) <= min(page.width, WIDEST):
        for own, other in zip(left, right, strict=True):
            lines.append((*own, Span(" " * (room + 3 - length(own))), *other))
    else:
        lines += [*left, (), *right]
    lines += [(), *paragraph(page, say("heads.certainty", page.lang), "quiet")]
    lines += _legend(scene, page)
    if scene.words.tokens < FEW:
        few = say("heads.few", page.lang, tokens=scene.words.tokens)
        lines += [(), *paragraph(page, few)]
    return [*lines, ()]


def mark(role: str, page: Page) -> str:
    """The sign of a role on the map."""
    sign = say(f"mark.{role}", page.lang)
    return _LETTERS[role] if "\\" in page.visible(sign) or not page.blocks else sign


def _map(heads: HeadMap, name: str, page: Page) -> list[Line]:
    size = max(cells(mark(role, page)) for role in _LETTERS) + 2
    lines: list[Line] = [(Span(" " * 8), Span(name, "strong"))]
    head = [Span(" " * 8)]
    for number in range(heads.heads):
        head.append(Span(fit(str(number), size, page), "quiet"))
    lines.append(tuple(head))
    for layer in range(heads.layers):
        line = [Span(fit(f"   L{layer}", 8, page), "quiet")]
        for number in range(heads.heads):
            found = heads.at(layer, number)
            sign = mark(found.role, page)
            ink = "quiet" if found.role == "mixed" else _INKS[found.certainty]
            doubt = "?" if found.certainty == "undecided" and found.role != "mixed" else ""
            line.append(Span(fit(sign + doubt, size, page), ink))
        lines.append(tuple(line))
    return lines


def _legend(scene: HeadsScene, page: Page) -> list[Line]:
    """Each role with its number of heads and its best example."""
    lines = title(page, say("heads.legend", page.lang), say("heads.legend_note", page.lang))
    roles = [role for role in _LETTERS if role != "mixed"]
    names = {role: say(f"role.{role}", page.lang) for role in roles}
    room = max(cells(name) for name in names.values())
    signs = max(cells(mark(role, page)) for role in roles)
    columns = ["heads.count", "heads.best", "heads.value", "heads.chance", "heads.rows"]
    columns = columns[: 5 if page.width >= NARROW else 3]
    titles = [say(key, page.lang) for key in columns]
    sizes = [max(cells(t), least) for t, least in zip(titles, (3, 6, 19, 6, 3), strict=False)]
    head = [Span(" " * (3 + signs + 2 + room))]
    head += [
        Span("  " + fit(text, size, page, right=i == 0), "quiet")
        for i, (text, size) in enumerate(zip(titles, sizes, strict=True))
    ]
    lines.append(tuple(head))
    for role in roles:
        view = scene.raw if role == "special" else scene.words
        line = [Span("   "), Span(fit(mark(role, page), signs + 2, page), "accent")]
        line += [Span(fit(names[role], room, page), "strong")]
        line.append(Span("  " + fit(str(view.counts()[role]), sizes[0], page, right=True)))
        best = _best(view, role)
        measure = None if best is None else best.measure
        if best is not None and measure is not None:
            interval = f"{measure.value:.2f}  ({measure.low:.2f} - {measure.high:.2f})"
            ink = _INKS[best.certainty]
            facts = [f"L{best.layer}H{best.head}", interval, f"{measure.chance:.2f}"]
            inks: tuple[Ink, ...] = (ink, ink, "quiet", "quiet")
            for fact, size, shade in zip(
                [*facts, str(measure.rows)], sizes[1:], inks, strict=False
            ):
                line.append(Span("  " + fit(fact, size, page), shade))
        lines.append(tuple(line))
    mixed = scene.words.counts()["mixed"]
    return [*lines, (), *paragraph(page, say("heads.mixed_note", page.lang, count=mixed), "quiet")]


def _best(heads: HeadMap, role: str) -> HeadRole | None:
    """The head of this role that is the furthest beyond its bar for certain."""
    found = [entry for entry in heads.entries if entry.role == role and entry.measure is not None]
    order = ("sure", "likely", "undecided")
    return min(
        found,
        key=lambda entry: (
            order.index(entry.certainty),
            -(entry.measure.low if entry.measure else 0.0),
        ),
        default=None,
    )

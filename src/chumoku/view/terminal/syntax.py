"""Drawing heads measured with gold syntax: the best head of each relation, the offset beside it."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from chumoku.view.syntax import SyntaxScene
from chumoku.view.terminal.ink import Ink, Line, Page, Span, cells, fit, paragraph, title
from chumoku.words import CATALOGUE, say

if TYPE_CHECKING:
    from chumoku.heads import Relation

# Below the first width, columns that say more of the same are left out; from the second on, the
# relations are explained.
NARROW = 76
WIDE = 100
# Cells of a relation's name; those of Universal Dependencies have 10 at most.
NAME = 12
_NUMBERS = ("words", "right", "offset", "sentences")
_VERDICTS: dict[str, tuple[Ink, Ink]] = {
    "head": ("loud", "quiet"),
    "offset": ("quiet", "loud"),
    "even": ("plain", "plain"),
}


def syntax(scene: SyntaxScene, page: Page) -> list[Line]:
    """The whole drawing: what was read, both directions, what the table says."""
    found = scene.syntax
    about = say(
        "syntax.about",
        page.lang,
        model=scene.model.name,
        file=PurePath(scene.treebank).name,
        sentences=found.sentences,
        words=found.words,
    )
    lines = title(page, say("syntax.title", page.lang), about)
    lines += paragraph(page, say("syntax.how", page.lang), "quiet")
    for text, ink in _left_out(scene, page):
        lines += [(), *paragraph(page, text, ink)]
    for looks_at in ("governor", "dependent"):
        entries = [
            entry
            for entry in found.entries
            if entry.looks_at == looks_at and entry.verdict in _VERDICTS
        ]
        if entries:
            note = say(f"syntax.{looks_at}_note", page.lang)
            lines += title(page, say(f"syntax.{looks_at}", page.lang), note)
            lines += _table(entries, page)
    counts = found.counts()
    few = counts.pop("few") + len(found.unmeasured)
    if found.compared:
        summary = say("syntax.summary", page.lang, compared=found.compared, **counts)
        lines += [(), *paragraph(page, summary)]
        lines += [(), *paragraph(page, say("syntax.verdicts", page.lang), "quiet")]
    if few:
        lines += [(), *paragraph(page, say("syntax.few", page.lang, few=few), "quiet")]
    return [*lines, ()]


def _left_out(scene: SyntaxScene, page: Page) -> list[tuple[str, Ink]]:
    """What was not scored, and why."""
    found = scene.syntax
    told: list[tuple[str, Ink]] = []
    if found.cut:
        cut = say("syntax.cut", page.lang, cut=found.cut, positions=scene.model.positions)
        told.append((cut, "loud"))
    if found.strange:
        told.append((say("syntax.strange", page.lang, strange=found.strange), "loud"))
    if found.unknown:
        told.append((say("syntax.unknown", page.lang, unknown=found.unknown), "plain"))
    if found.alone:
        told.append((say("syntax.alone", page.lang, alone=found.alone), "quiet"))
    if found.unseen:
        told.append((say("syntax.unseen", page.lang), "plain"))
    if found.joined:
        joined = say("syntax.joined", page.lang, joined=found.joined, inside=found.inside)
        told.append((joined, "quiet"))
    return told


def _table(entries: list[Relation], page: Page) -> list[Line]:
    """One row for each relation."""
    keys = ["relation", "gloss", "words", "head", "right", "offset", "right", "sentences", "better"]
    hidden = {"gloss"} if page.width < WIDE else set()
    hidden |= {"sentences"} if page.width < NARROW else set()
    rows = [_row(entry, page) for entry in entries]
    titles = [say(f"syntax.{key}", page.lang) if key != "gloss" else "" for key in keys]
    rows.insert(0, [(text, "quiet") for text in titles])
    shown = [place for place, key in enumerate(keys) if key not in hidden]
    sizes = [max(cells(row[place][0]) for row in rows) for place in shown]
    roomy = 3 + sum(sizes) + 2 * (len(sizes) - 1) <= page.width
    gap = "  " if roomy else " "
    lines: list[Line] = []
    for row in rows:
        line = [Span("   ")]
        for place, size in zip(shown, sizes, strict=True):
            text, ink = row[place]
            line.append(Span(fit(text, size, page, right=keys[place] in _NUMBERS) + gap, ink))
        lines.append(tuple(line))
    return lines


def _row(entry: Relation, page: Page) -> list[tuple[str, Ink]]:
    head, offset = _VERDICTS[entry.verdict]
    name = page.visible(entry.name)
    known = f"relation.{entry.name}" in CATALOGUE[page.lang]
    right = f"{entry.by_head.accuracy * 100:.1f} %"
    if page.width >= NARROW:
        right += f" ({entry.by_head.low * 100:.0f} - {entry.by_head.high * 100:.0f})"
    return [
        (name if cells(name) <= NAME else fit(name, NAME, page), "strong"),
        (say(f"relation.{entry.name}", page.lang) if known else "", "quiet"),
        (str(entry.words), "quiet"),
        (f"L{entry.layer}H{entry.head}", head),
        (right, head),
        (f"{entry.offset:+d}", offset),
        (f"{entry.by_offset.accuracy * 100:.1f} %", offset),
        (f"{entry.ahead}:{entry.behind}", "quiet"),
        (say(f"syntax.is_{entry.verdict}", page.lang), head if entry.verdict == "head" else offset),
    ]

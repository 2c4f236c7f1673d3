"""Drawing two things beside one another: target and source, words and time, an image's patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from chumoku.view.crossed import CrossScene, ImageScene
from chumoku.view.terminal.ink import (
    WIDEST,
    Line,
    Page,
    Span,
    bar,
    cells,
    fit,
    level,
    paragraph,
    percent,
    title,
)
from chumoku.view.terminal.names import Names
from chumoku.words import say

if TYPE_CHECKING:
    from chumoku.huggingface.senses import Heard

# Rows of a target that are shown unless all are asked for.
ROWS = 24
# Cells of a patch on the map of an image.
PATCH = 2


def cross(scene: CrossScene, page: Page, *, every: bool = False) -> list[Line]:
    """Where each token of a target looks in its source."""
    source, target = Names(scene.source_tokens, page), Names(scene.target_tokens, page)
    lines: list[Line] = [(), source.sentence(page), target.sentence(page)]
    lines += _about(scene.model, _shown(scene, page), page)
    if scene.left_out:
        cut = say("cross.cut", page.lang, left=scene.left_out)
        lines += paragraph(page, cut, "loud", indent=2)
    lines += title(page, say("cross.where", page.lang), say("cross.note", page.lang))
    rows = [row for row in scene.rows if every or not target.special[row.query]]
    hidden = 0 if every else max(0, len(rows) - ROWS)
    rows = rows[: len(rows) - hidden]
    lead = target.room([row.query for row in rows], 16)
    room = source.room([look.key for row in rows for look in row.words], 14)
    width = min(page.width, WIDEST)
    size = max(4, (width - 3 - lead - 3 - room - 7 - 4) // 2)
    for row in rows:
        line = [
            Span("   "),
            Span(fit(target[row.query], lead, page), target.ink(row.query, "strong")),
            Span(page.sign(" → ", " > "), "quiet"),
        ]
        for place, look in enumerate(row.words):
            name = source[look.key]
            if place == 0:
                line += [
                    Span(fit(name, room, page), "strong"),
                    Span(f" {percent(look.weight)} ", "strong"),
                    bar(look.weight, size, page),
                    Span("  "),
                ]
                continue
            piece = f"{name} {percent(look.weight).strip()}   "
            if sum(cells(span.text) for span in line) + cells(piece) < width:
                line.append(Span(piece, "quiet"))
        lines.append(tuple(line))
    if hidden:
        lines += [(), *paragraph(page, say("look.more", page.lang, count=hidden), "quiet")]
    return [*lines, ()]


def speech(scene: Heard, page: Page) -> list[Line]:
    """Words and when they are said."""
    about = say("speech.about", page.lang, model=scene.model, seconds=f"{scene.seconds:.1f}")
    lines: list[Line] = [(), (Span("  "), Span(page.visible(scene.file), "strong"))]
    lines += paragraph(page, about, "quiet", indent=2)
    if scene.left_out:
        cut = say("speech.cut", page.lang, seconds=f"{scene.left_out:.1f}")
        lines += paragraph(page, cut, "loud", indent=2)
    lines += [(), *paragraph(page, page.visible(scene.text), "strong", indent=2)]
    lines += title(page, say("speech.where", page.lang), say("speech.note", page.lang))
    heard = max(scene.seconds - scene.left_out, 1e-9)
    shown = [page.visible(word.text) for word in scene.words]
    lead = min(max((cells(text) for text in shown), default=1), 24)
    size = max(10, min(page.width, WIDEST) - 3 - lead - 19)
    for text, word in zip(shown, scene.words, strict=True):
        times = f" {word.start:6.2f} {page.sign('–', '-')} {word.end:6.2f}  "
        lines.append(
            (
                Span("   "),
                Span(fit(text, lead, page), "strong"),
                Span(times, "quiet"),
                *_during(word.start / heard, word.end / heard, size, page),
            )
        )
    return [*lines, ()]


def _during(start: float, end: float, size: int, page: Page) -> tuple[Span, ...]:
    """A stretch of a line that stands for the whole sound."""
    first = min(round(start * size), size - 1)
    last = min(max(round(end * size), first + 1), size)
    return Span(" " * first), bar(1.0, last - first, page), Span(" " * (size - last))


def image(scene: ImageScene, page: Page) -> list[Line]:
    """The map of an image's patches."""
    rows, columns = scene.weights.shape
    head = say("image.mean", page.lang, heads=scene.heads)
    if scene.head is not None:
        head = say("image.head", page.lang, head=scene.head)
    shown = say("image.shown", page.lang, layer=scene.layer, last=scene.layers - 1, head=head)
    lines: list[Line] = [(), (Span("  "), Span(page.visible(scene.file), "strong"))]
    lines += _about(scene.model, shown, page)
    note = say("image.note", page.lang, rows=rows, columns=columns)
    lines += title(page, say("image.where", page.lang), note)
    tallest = float(scene.weights.max()) or 1.0
    both = 2 * PATCH * columns + 8 <= min(page.width, WIDEST)
    for row in range(rows):
        line = [Span("   ")]
        line += [level(float(w) / tallest, PATCH, page) for w in scene.weights[row]]
        if both:
            grey = scene.pixels[row].mean(axis=-1) / 255
            line += [Span("   "), *(_shade(float(g), page) for g in grey)]
        lines.append(tuple(line))
    caption = say("look.tallest", page.lang, share=f"{100 * tallest:.1f} %")
    lines += [(), *paragraph(page, caption, "quiet")]
    if both:
        lines += paragraph(page, say("image.beside", page.lang), "quiet")
    lines += title(page, say("image.top", page.lang))
    for patch in scene.top:
        place = say("image.place", page.lang, row=patch.row, column=patch.column)
        lines.append(
            (
                Span("   "),
                Span(fit(place, 24, page), "strong"),
                Span(f" {100 * patch.weight:5.1f} % "),
                bar(patch.weight / tallest, 24, page),
            )
        )
    share = float(np.mean(scene.each)) if scene.head is None else scene.each[scene.head]
    rest = say("image.rest", page.lang, share=percent(share).strip())
    return [*lines, (), *paragraph(page, rest), ()]


_SHADES = " ░▒▓█"
_PLAIN_SHADES = " .:*#"


def _shade(brightness: float, page: Page) -> Span:
    """A patch of the image itself."""
    glyphs = _SHADES if page.blocks else _PLAIN_SHADES
    return Span(glyphs[min(4, int(brightness * 5))] * PATCH, "quiet")


def _shown(scene: CrossScene, page: Page) -> str:
    if scene.layer is None:
        return say("look.mean_all", page.lang, heads=scene.layers * scene.heads)
    if scene.head is None:
        return say("look.mean_layer", page.lang, layer=scene.layer, heads=scene.heads)
    return say("look.one_head", page.lang, layer=scene.layer, head=scene.head)


def _about(model: str, shown: str, page: Page) -> list[Line]:
    about = say("look.about", page.lang, model=model, shown=shown)
    return paragraph(page, about, "quiet", indent=2)

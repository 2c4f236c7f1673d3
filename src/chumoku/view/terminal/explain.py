"""Drawing an explanation: attention as a visit to a library, with the model's own numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt

import numpy as np

from chumoku.view.explanation import Explanation
from chumoku.view.scene import Floats
from chumoku.view.terminal.ink import (
    Line,
    Page,
    Span,
    bar,
    fit,
    paragraph,
    percent,
    title,
)
from chumoku.view.terminal.names import Names
from chumoku.words import say

# Books that are shown one by one unless all are asked for; the others are summed up in one row.
BOOKS = 8
# Numbers of a vector that are shown.
NUMBERS = 4


def explain(told: Explanation, page: Page, *, every: bool = False) -> list[Line]:
    """The whole drawing of an explanation."""
    names = Names(told.tokens, page)
    order = np.argsort(-told.weights, kind="stable")
    if not every:
        order = order[:BOOKS]
    shown = [int(k) for k in np.sort(order)]
    lines: list[Line] = [(), *_opening(told, names, page)]
    lines += _score(told, shown, names, page)
    lines += _scale(told, shown, names, page)
    lines += _softmax(told, shown, names, page)
    lines += _mix(told, shown, names, page)
    top = int(told.weights.argmax())
    end = say(
        "explain.end",
        page.lang,
        top=names[top],
        share=percent(float(told.weights[top])).strip(),
        width=told.memo.size,
        token=names[told.query],
    )
    return [*lines, (), *paragraph(page, end), ()]


def _opening(told: Explanation, names: Names, page: Page) -> list[Line]:
    width, token = told.memo.size, names[told.query]
    about = say(
        "explain.about",
        page.lang,
        model=told.model.name,
        layer=told.layer,
        head=told.head,
        token=token,
    )
    if not told.chosen:
        about = say("explain.chosen", page.lang, about=about)
    lines: list[Line] = [names.sentence(page, told.query)]
    lines += paragraph(page, about, "quiet", indent=2)
    lines += title(page, say("explain.title", page.lang))
    lines += paragraph(page, say("explain.memo", page.lang, token=token, width=width))
    lines.append((Span("   "), Span(_vector(told.memo, page, 6), "accent")))
    books = say("explain.books", page.lang, token=token, count=len(told.tokens))
    return [*lines, *paragraph(page, books)]


def _score(told: Explanation, shown: Sequence[int], names: Names, page: Page) -> list[Line]:
    width = told.memo.size
    note = say("explain.score_note", page.lang, width=width)
    lines = title(page, say("explain.score", page.lang), note)
    below = max(0.0, -float(told.scores.min()))
    above = max(0.0, float(told.scores.max()))
    room = _bar_room(page)
    left = round(room * below / ((below + above) or 1.0))

    def number(k: int) -> list[Span]:
        score = float(told.scores[k])
        line = [Span(f"{score:8.2f}  ")]
        if left:
            line.append(bar(-score / (below or 1.0), left, page, "quiet", leftwards=True))
        if left < room:
            line.append(bar(score / (above or 1.0), room - left, page))
        return line

    return [*lines, *_table(told, shown, names, page, number)]


def _scale(told: Explanation, shown: Sequence[int], names: Names, page: Page) -> list[Line]:
    width = told.memo.size
    root = f"{sqrt(width):.2f}"
    lines = title(
        page,
        say("explain.scale", page.lang, width=width, root=root),
        say("explain.scale_note", page.lang, width=width),
    )
    sign = page.sign("÷", "/")

    def number(k: int) -> list[Span]:
        score, scaled = float(told.scores[k]), float(told.scaled[k])
        return [Span(f"{score:8.2f} {sign} {root} = ", "quiet"), Span(f"{scaled:6.2f}", "strong")]

    return [*lines, *_table(told, shown, names, page, number)]


def _softmax(told: Explanation, shown: Sequence[int], names: Names, page: Page) -> list[Line]:
    lines = title(page, say("explain.softmax", page.lang), say("explain.softmax_note", page.lang))
    room = _bar_room(page)

    def number(k: int) -> list[Span]:
        share = float(told.weights[k])
        return [Span(f"{share * 100:6.1f} %  ", "strong"), bar(share, room, page)]

    lines += _table(told, shown, names, page, number)
    lead = 3 + _lead(names, shown) + 3
    rest = [k for k in range(len(told.tokens)) if k not in shown]
    if rest:
        lines.pop()
        share = float(told.weights[rest].sum())
        label = fit(say("explain.rest", page.lang, count=len(rest)), lead, page)
        lines.append((Span(label, "quiet"), Span(f"{share * 100:6.1f} %  ", "quiet")))
    total = fit("   " + say("explain.total", page.lang), lead, page)
    whole = float(told.weights.sum()) * 100
    lines.append((Span(total, "quiet"), Span(f"{whole:6.1f} %  ", "strong")))
    top = int(told.unscaled.argmax())
    bare = say(
        "explain.unscaled",
        page.lang,
        token=names[top],
        share=f"{float(told.unscaled[top]) * 100:.1f} %",
        now=f"{float(told.weights[top]) * 100:.1f} %",
    )
    return [*lines, (), *paragraph(page, bare, "quiet")]


def _mix(told: Explanation, shown: Sequence[int], names: Names, page: Page) -> list[Line]:
    note = say("explain.mix_note", page.lang, width=told.memo.size)
    lines = title(page, say("explain.mix", page.lang), note)
    sign = page.sign("×", "x")
    count = NUMBERS if page.width >= 76 else 3

    def number(k: int) -> list[Span]:
        share = float(told.weights[k])
        return [
            Span(f"{share * 100:6.1f} %", "strong"),
            Span(f" {sign} ", "quiet"),
            Span(_vector(told.contents[k], page, count), "quiet"),
        ]

    lines += _table(told, shown, names, page, number)
    lead = 3 + _lead(names, shown) + 3
    rest = [k for k in range(len(told.tokens)) if k not in shown]
    if rest:
        lines.pop()
        share = float(told.weights[rest].sum())
        label = fit(say("explain.rest", page.lang, count=len(rest)), lead, page)
        lines.append((Span(label, "quiet"), Span(f"{share * 100:6.1f} %", "quiet")))
    label = fit("   " + say("explain.sum", page.lang), lead, page)
    mixed = _vector(told.mixed, page, count)
    lines.append((Span(label, "quiet"), Span(" " * 11), Span(mixed, "loud")))
    return lines


def _table(
    told: Explanation,
    shown: Sequence[int],
    names: Names,
    page: Page,
    number: Callable[[int], list[Span]],
) -> list[Line]:
    """One row for each book, and a mark where some are not shown."""
    room = _lead(names, shown)
    lines: list[Line] = []
    for k in shown:
        label = fit(names[k], room, page)
        ink = names.ink(k, "loud" if k == told.query else "plain")
        lines.append((Span("   "), Span(label, ink), Span("   "), *number(k)))
    hidden = len(told.tokens) - len(shown)
    if hidden:
        rest = say("explain.rest", page.lang, count=hidden)
        lines.append((Span("   "), Span(rest, "quiet")))
    return lines


def _lead(names: Names, shown: Sequence[int]) -> int:
    return max(names.room(shown, 12), 14 if len(shown) < len(names.texts) else 4)


def _bar_room(page: Page) -> int:
    return max(8, min(36, page.width - 36))


def _vector(numbers: Floats, page: Page, count: int) -> str:
    """The first numbers of a vector."""
    shown = " ".join(f"{float(x):+.2f}" for x in numbers[:count])
    return f"[{shown} {page.sign('…', '...')}]" if numbers.size > count else f"[{shown}]"

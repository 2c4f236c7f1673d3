"""Drawing a scene: where each token looks, the map, the heads side by side, what silencing did."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chumoku.view.scene import Change, Floats, Gaze, Look, Query, Row, Scene, among_words
from chumoku.view.terminal.ink import (
    WIDEST,
    Ink,
    Line,
    Page,
    Span,
    bar,
    cells,
    fit,
    length,
    level,
    paragraph,
    percent,
    title,
    wrap,
)
from chumoku.view.terminal.names import Names
from chumoku.words import say

# Rows that are shown unless all are asked for, and rows up to which each gets air around it.
ROWS = 12
AIRY = 8
# Cells between the two panels.
GAP = 2
# Hints that end a drawing.
HINTS = 3
# Cells of a block on a map: the same for all, so that their areas compare.
BLOCK = 3


def look(scene: Scene, page: Page, *, every: bool = False) -> list[Line]:
    """The whole drawing of a scene."""
    names = Names(scene.tokens, page)
    lines = [*header(scene, names, page)]
    if scene.change is not None:
        lines += _changed(scene, scene.change, names, page, every)
    if scene.query is None:
        lines += _written(scene, names, page) if scene.written else []
        lines += [] if scene.written and not every else _rows(scene, names, page, every)
        lines += _sink(scene, names, page)
        if scene.change is None:
            lines += _maps(scene.gaze.weights, names, page)
            lines += _heads(scene, names, page) if scene.heads else _standouts(scene, names, page)
    else:
        lines += _query(scene.query, names, page)
    return [*lines, *_next(scene, names, page), ()]


def header(scene: Scene, names: Names, page: Page) -> list[Line]:
    """The sentence as tokens, the model, and what is shown of it."""
    marked = None if scene.query is None else scene.query.token
    lines: list[Line] = [(), names.sentence(page, marked)]
    gaze, model = scene.gaze, scene.model
    if gaze.layer is None:
        shown = say("look.mean_all", page.lang, heads=model.layers * model.heads)
    elif gaze.head is None:
        shown = say("look.mean_layer", page.lang, layer=gaze.layer, heads=model.heads)
    else:
        shown = say("look.one_head", page.lang, layer=gaze.layer, head=gaze.head)
    if scene.query is not None:
        shown = say(
            "look.heads_of", page.lang, layer=scene.query.layer, token=names[scene.query.token]
        )
    about = say("look.about", page.lang, model=model.name, shown=shown)
    lines += paragraph(page, about, "quiet", indent=2)
    if scene.left_out:
        cut = say(
            "look.cut",
            page.lang,
            positions=model.positions,
            read=len(scene.tokens),
            left=scene.left_out,
        )
        lines += paragraph(page, cut, "loud", indent=2)
    if model.causal:
        first = say("look.first", page.lang, token=names[0])
        lines += paragraph(page, first, "quiet", indent=2)
    return lines


def _rows(scene: Scene, names: Names, page: Page, every: bool) -> list[Line]:
    rows = [row for row in scene.gaze.rows if every or row.words]
    hidden = 0
    if not every and len(rows) > ROWS:
        rows, hidden = rows[:ROWS], len(rows) - ROWS
    rows = rows or list(scene.gaze.rows)
    lines = title(page, say("look.where", page.lang))
    grid = _Grid(rows, names, page)
    lines.append(grid.heading())
    for row in rows:
        if len(rows) <= AIRY and lines[-1]:
            lines.append(())
        lines += grid.row(row)
    if hidden:
        more = say("look.more", page.lang, count=hidden)
        lines += [(), *paragraph(page, more, "quiet")]
    return lines


def _written(scene: Scene, names: Names, page: Page) -> list[Line]:
    """Where the model looked when it wrote."""
    lines = title(page, say("look.written", page.lang), say("look.written_note", page.lang))
    grid = _Grid(scene.written, names, page)
    lines.append(grid.heading())
    for row in scene.written:
        if len(scene.written) <= AIRY and lines[-1]:
            lines.append(())
        lines += grid.row(row)
    return lines


class _Grid:
    """Two panels beside each token: among the words, and raw."""

    def __init__(self, rows: Sequence[Row], names: Names, page: Page) -> None:
        self.names, self.page = names, page
        width = min(page.width, WIDEST)
        most = 6 + max(0, width - 60) // 5
        self.index = len(str(rows[-1].query))
        self.token = names.room([row.query for row in rows], most)
        self.words = names.room([look.key for row in rows for look in row.words], most)
        self.raw = names.room([look.key for row in rows for look in row.raw], most)
        fixed = 2 + self.index + 1 + self.token + 3 + self.words + self.raw + 2 * 7 + GAP
        self.bar = max(4, (width - 1 - fixed) // 2)

    def heading(self) -> Line:
        lead = 2 + self.index + 1 + self.token + 3
        panel = self.words + 7 + self.bar
        left = fit(say("look.words", self.page.lang), panel, self.page)
        raw = fit(say("look.raw", self.page.lang), self.raw + 7 + self.bar, self.page)
        return (Span(" " * lead), Span(left, "quiet"), Span(" " * GAP), Span(raw, "quiet"))

    def row(self, row: Row) -> list[Line]:
        lines: list[Line] = []
        for place in range(max(len(row.words), len(row.raw))):
            first = place == 0
            lead = [Span("  " + " " * (self.index + 1 + self.token + 3))]
            if first:
                token = fit(self.names[row.query], self.token, self.page)
                lead = [
                    Span(f"  {row.query:>{self.index}} ", "quiet"),
                    Span(token, self.names.ink(row.query, "strong")),
                    Span(self.page.sign(" → ", " > "), "quiet"),
                ]
            words = self._panel(row.words, place, self.words, "accent")
            raw = self._panel(row.raw, place, self.raw, "quiet")
            lines.append((*lead, *words, Span(" " * GAP), *raw))
        return lines

    def _panel(self, looks: Sequence[Look], place: int, room: int, ink: Ink) -> list[Span]:
        if place >= len(looks):
            return [Span(" " * (room + 7 + self.bar))]
        found, first = looks[place], place == 0
        bold: Ink = "strong" if first and ink == "accent" else "plain"
        return [
            Span(fit(self.names[found.key], room, self.page), self.names.ink(found.key, bold)),
            Span(f" {percent(found.weight)} ", bold),
            bar(found.weight, self.bar, self.page, ink if first or ink == "quiet" else "pale"),
        ]


def _sink(scene: Scene, names: Names, page: Page) -> list[Line]:
    token = names[scene.sink.key]
    share = percent(scene.sink.share).strip()
    key = "look.sink" if scene.sink.rests else "look.no_sink"
    return [(), *paragraph(page, say(key, page.lang, share=share, token=token))]


def _maps(weights: Floats, names: Names, page: Page) -> list[Line]:
    """The matrix of weights as blocks: among the words, and raw beside it where there is room."""
    words = [int(k) for k in np.flatnonzero(~names.special)]
    shared = among_words(weights, names.special)
    if len(words) < 2:
        return []
    left: list[Line] | None = _map(shared, words, words, names, page)
    if left is None:
        return []
    lines = title(page, say("look.map", page.lang), say("look.map_note", page.lang))
    everything = list(range(len(names.texts)))
    right = _map(weights, everything, everything, names, page)
    left = [*_caption("look.words", shared[np.ix_(words, words)], page), *left]
    if right is not None:
        right = [*_caption("look.raw", weights, page), *right]
        room = max(length(line) for line in left)
        if room + 3 + max(length(line) for line in right) <= min(page.width, WIDEST):
            left += [()] * (len(right) - len(left))
            left = [
                (*own, Span(" " * (room - length(own) + 3)), *other)
                for own, other in zip(left, right, strict=True)
            ]
    return [*lines, *left]


def _caption(key: str, weights: Floats, page: Page) -> list[Line]:
    """Name of a map and what its tallest block stands for."""
    tallest = say("look.tallest", page.lang, share=percent(float(weights.max())).strip())
    return [
        (Span("   "), Span(say(key, page.lang), "strong")),
        (Span("   "), Span(tallest, "quiet")),
        (),
    ]


def _map(
    weights: Floats, rows: Sequence[int], keys: Sequence[int], names: Names, page: Page
) -> list[Line] | None:
    """One map, or None when it does not fit into the page."""
    lead = names.room(rows, 12)
    room = min(page.width, WIDEST) - 3 - lead - 2
    columns = [max(BLOCK, min(cells(names[k]), 10)) for k in keys]
    if sum(columns) + len(keys) > room:
        columns = [BLOCK] * len(keys)
    if sum(columns) + len(keys) > room:
        return None
    tallest = float(weights[np.ix_(rows, keys)].max()) or 1.0
    head = [Span(" " * (3 + lead + 2))]
    for key, width in zip(keys, columns, strict=True):
        text = names[key] if cells(names[key]) <= width else f"{key}"
        left = (width - cells(text)) // 2
        head += [Span(fit(" " * left + text, width, page), names.ink(key)), Span(" ")]
    lines: list[Line] = [tuple(head)]
    for row in rows:
        line = [Span("   "), Span(fit(names[row], lead, page), names.ink(row)), Span("  ")]
        for key, width in zip(keys, columns, strict=True):
            left = (width - BLOCK) // 2
            block = level(float(weights[row, key]) / tallest, BLOCK, page)
            line += [Span(" " * left), block, Span(" " * (width - BLOCK - left + 1))]
        lines.append(tuple(line))
    return lines


def _standouts(scene: Scene, names: Names, page: Page) -> list[Line]:
    """The heads with the most decided patterns: a small map each, and their strongest looks."""
    words = [int(k) for k in np.flatnonzero(~names.special)]
    if not scene.standouts:
        return []
    lines = title(page, say("look.standouts", page.lang), say("look.standouts_note", page.lang))
    if _small_maps_fit(words, page):
        lines += _small_maps(scene.standouts, words, names, page)
    lines.append(_head_heading(page))
    return [*lines, *(_head_line(gaze, words, names, page) for gaze in scene.standouts)]


def _small_maps_fit(words: Sequence[int], page: Page) -> bool:
    return 2 * len(words) + 4 <= (page.width - 13) // 3


def _heads(scene: Scene, names: Names, page: Page) -> list[Line]:
    """Every head of the layer: a small map each, and the looks that stand out."""
    layer = scene.gaze.layer
    lines = title(
        page, say("look.each_head", page.lang, layer=layer), say("look.each_head_note", page.lang)
    )
    words = [int(k) for k in np.flatnonzero(~names.special)]
    if len(words) < 2:
        return lines
    if _small_maps_fit(words, page):
        lines += _small_maps(scene.heads, words, names, page)
    lines.append(_head_heading(page))
    for gaze in scene.heads:
        lines.append(_head_line(gaze, words, names, page))
    return lines


def _small_maps(
    heads: Sequence[Gaze], words: Sequence[int], names: Names, page: Page
) -> list[Line]:
    size = max(2 * len(words), 6)
    lead = names.room(words, 8)
    across = max(1, (min(page.width, WIDEST) - 3 - lead - 2 + 4) // (size + 4))
    lines: list[Line] = []
    for start in range(0, len(heads), across):
        group = heads[start : start + across]
        head: list[Span] = [Span(" " * (3 + lead + 2))]
        for gaze in group:
            name = fit(f"L{gaze.layer}H{gaze.head}", size, page)
            head += [Span(name, "strong"), Span("    ")]
        lines.append(tuple(head))
        shared = [among_words(gaze.weights, names.special) for gaze in group]
        for row in words:
            line = [Span("   "), Span(fit(names[row], lead, page), "quiet"), Span("  ")]
            for weights in shared:
                line += [level(float(weights[row, key]), 2, page) for key in words]
                line.append(Span(" " * (size - 2 * len(words) + 4)))
            lines.append(tuple(line))
        lines.append(())
    return lines


def _head_heading(page: Page) -> Line:
    among = fit(say("look.among", page.lang), 18, page)
    strongest = say("look.strongest", page.lang)
    return (Span(" " * 10), Span(among, "quiet"), Span("   "), Span(strongest, "quiet"))


def _head_line(gaze: Gaze, words: Sequence[int], names: Names, page: Page) -> Line:
    """The share that one head leaves among the words, and its strongest looks there."""
    among = float(gaze.weights[np.ix_(words, words)].sum(axis=-1).mean())
    line = [Span(fit(f"   L{gaze.layer}H{gaze.head}", 10, page), "strong")]
    line += [Span(f"{percent(among)} "), bar(among, 12, page, "pale"), Span("   ")]
    looks = [(float(gaze.weights[i, k]), i, k) for i in words for k in words if i != k]
    arrow = page.sign("→", ">")
    for weight, i, k in sorted(looks, key=lambda item: (-item[0], item[1:]))[:3]:
        piece = f"{names[i]}{arrow}{names[k]} "
        share = f"{percent(weight).strip()}   "
        if length(line) + cells(piece) + cells(share) > min(page.width, WIDEST):
            break
        line += [Span(piece), Span(share, "quiet")]
    return tuple(line)


def _query(query: Query, names: Names, page: Page) -> list[Line]:
    """The heads of a layer side by side for one token."""
    width = min(page.width, WIDEST)
    token = names[query.token]
    known = query.joined is not None
    note = ("query.asked" if query.chosen else "query.chosen") if known else "query.two"
    lines = title(
        page,
        say("query.title", page.lang, token=token, layer=query.layer),
        say(note, page.lang, layer=query.layer),
    )
    largest = max((part.norm or 0.0 for part in query.heads), default=0.0) or 1.0
    most = 12 if width >= 76 else 8
    words = names.room([look.key for part in query.heads for look in part.row.words[:1]], most)
    raw = names.room([look.key for part in query.heads for look in part.row.raw[:1]], most)
    size = max(4, (width - 35 - words - raw) // 2)
    columns = (words + 7 + size, raw + 7, size + 6)
    keys = ("look.words", "look.raw_short", "query.gives")[: 3 if known else 2]
    heading = [Span(" " * 8)]
    for key, room in zip(keys, columns, strict=False):
        heading += [Span(fit(say(key, page.lang), room, page), "quiet"), Span("   ")]
    lines += [tuple(heading), ()]
    for part in query.heads:
        line = [Span(fit(f"   H{part.head}", 8, page), "strong")]
        if part.row.words:
            first = part.row.words[0]
            line.append(Span(fit(names[first.key], words, page), "strong"))
            line.append(Span(f" {percent(first.weight)} ", "strong"))
            line += [bar(first.weight, size, page), Span("   ")]
        else:
            line.append(Span(" " * (columns[0] + 3)))
        first = part.row.raw[0]
        line += [Span(fit(names[first.key], raw, page), names.ink(first.key)), Span("  ", "quiet")]
        line += [Span(f"{percent(first.weight)}   ", "quiet")]
        if part.norm is not None:
            line += [Span(f"{part.norm:5.2f} "), bar(part.norm / largest, size, page, "quiet")]
        lines.append(tuple(line))
    if query.joined is not None:
        joined = say("query.joined", page.lang, norm=f"{query.joined:.2f}")
        lines += [(), *paragraph(page, joined)]
    return lines


def _changed(scene: Scene, change: Change, names: Names, page: Page, every: bool) -> list[Line]:
    """Before and after silencing: where each token looks, and how far its state moved."""
    which = ", ".join(f"L{layer}H{head}" for layer, head in change.silenced)
    lines = title(
        page, say("without.title", page.lang, heads=which), say("without.note", page.lang)
    )
    rows = [i for i, row in enumerate(scene.gaze.rows) if every or row.words]
    shown = rows if every else rows[:ROWS]
    if not shown:
        return lines
    token = names.room(shown, 12)
    size = max(4, min(16, min(page.width, WIDEST) // 8))
    pair = [(change.before.rows[i], scene.gaze.rows[i]) for i in shown]
    room = names.room([r.words[0].key for both in pair for r in both if r.words], 10)
    titles = ("without.before", "without.after", "without.moved", "without.state")
    columns = (room + 6, room + 6, 7, size + 6)
    head = [Span(" " * (3 + token + 3))]
    for key, width in zip(titles, columns, strict=True):
        head += [Span(fit(say(key, page.lang), width, page), "quiet"), Span("   ")]
    lines += [tuple(head), ()]
    for i, (before, after) in zip(shown, pair, strict=True):
        line = [Span("   "), Span(fit(names[i], token, page), names.ink(i, "strong")), Span("   ")]
        for row in (before, after):
            if row.words:
                first = row.words[0]
                line += [Span(fit(names[first.key], room, page)), Span(" ")]
                line += [Span(f"{percent(first.weight)}   ", "quiet")]
            else:
                line.append(Span(" " * (room + 9)))
        line += [Span(f"{percent(change.moved[i]):>7}   "), Span(f"{percent(change.state[i])} ")]
        line.append(bar(change.state[i], size, page))
        lines.append(tuple(line))
    if len(rows) > len(shown):
        more = say("look.more", page.lang, count=len(rows) - len(shown))
        lines += [(), *paragraph(page, more, "quiet")]
    mean = float(np.mean(change.state))
    total = say("without.total", page.lang, share=percent(mean).strip(), heads=which)
    return [*lines, (), *paragraph(page, total)]


def _next(scene: Scene, names: Names, page: Page) -> list[Line]:
    """What to try after this: options to add to the same command."""
    best = scene.standouts[0] if scene.standouts else scene.gaze
    layer, head = best.layer or 0, best.head or 0
    word = next((i for i, row in enumerate(scene.gaze.rows) if row.words), 0)
    token = f"'#{word}'" if "#" in names[word] else names.plain[word]
    fields = {"layer": layer, "head": head, "token": token}
    open_hints = {
        "head": scene.gaze.layer is None and scene.query is None,
        "query": scene.query is None and scene.gaze.head is None,
        "without": scene.change is None,
        "explain": scene.model.inside,
        "heads": True,
    }
    hints = [
        (say(f"next.{key}", page.lang, **fields), say(f"next.{key}_why", page.lang))
        for key in [key for key, useful in open_hints.items() if useful][:HINTS]
    ]
    room = max(cells(option) for option, _ in hints)
    lines: list[Line] = [(), *paragraph(page, say("next.title", page.lang), "quiet")]
    for option, why in hints:
        for place, part in enumerate(wrap(why, max(20, page.width - room - 8))):
            lead = fit(option, room, page) if place == 0 else " " * room
            lines.append((Span("   "), Span(lead, "accent"), Span("   "), Span(part, "quiet")))
    return lines

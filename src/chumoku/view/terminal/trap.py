"""Drawing the softmax trap: three rows, the width study, and the heads of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chumoku.view.scene import TrapScene
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
from chumoku.words import say

if TYPE_CHECKING:
    from chumoku.trap import TrapMap, TrapPoint

_WHICH = ("as_is", "unscaled", "multiplied")
# Saturated heads that are named; more are counted only.
NAMED = 12
# Below this width, columns that say the same in another way are left out.
NARROW = 76


def trap(scene: TrapScene, page: Page) -> list[Line]:
    """The whole drawing of the trap."""
    lines: list[Line] = [(), (Span("  "), Span(say("trap.title", page.lang), "loud"))]
    lines += _rows(scene, page)
    lines += _study(scene, page)
    if scene.heads is not None:
        lines += _heads(scene, scene.heads, page)
    return [*lines, ()]


def _rows(scene: TrapScene, page: Page) -> list[Line]:
    lines = title(page, say("trap.rows", page.lang), say("trap.rows_note", page.lang))
    gap = "   " if page.width >= NARROW else " "
    for row in scene.rows:
        logits = "[" + ", ".join(f"{x:g}" for x in row.logits) + "]"
        line = [Span("   "), Span(f"{logits:<20}", "strong")]
        for weight in row.weights:
            line += [level(weight, 3, page), Span(f"{weight * 100:6.1f} %{gap}")]
        flow = say("trap.flow", page.lang, flow=f"{row.facts.flow:.3f}")
        verdict = say(f"trap.{row.facts.verdict}", page.lang)
        if page.width >= NARROW:
            line.append(Span(flow, "quiet"))
        else:
            verdict = f"{verdict} ({flow})"
        lines += [tuple(line), *paragraph(page, verdict, "quiet", indent=5), ()]
    return lines[:-1]


def _study(scene: TrapScene, page: Page) -> list[Line]:
    note = say("trap.study_note", page.lang, keys=scene.keys)
    lines = title(page, say("trap.study", page.lang), note)
    for scaled, name in ((False, "trap.without_scale"), (True, "trap.with_scale")):
        lines.append((Span("   "), Span(say(name, page.lang), "strong")))
        lines += _points([p for p in scene.study if p.scaled is scaled], page)
        lines.append(())
    widest = max(point.width for point in scene.study)
    bare, right = (p for p in scene.study if p.width == widest)
    share = bare.median_logits / right.median_logits if right.median_logits else 0.0
    lesson = say(
        "trap.lesson",
        page.lang,
        width=widest,
        deviation=f"{bare.facts.deviation:.1f}",
        saturation=f"{bare.facts.saturation:.2f}",
        share=percent(share).strip(),
    )
    return [*lines, *paragraph(page, lesson)]


def _points(points: list[TrapPoint], page: Page) -> list[Line]:
    """One row for each width."""
    wide = page.width >= NARROW
    keys = ["width", "deviation", "entropy", "gradient"]
    least = [5, 6, 6, 8]
    if wide:
        keys, least = [*keys, "flow_column"], [5, 13, 6, 8, 6]
    names = [say(f"trap.{key}", page.lang) for key in keys]
    sizes = [max(cells(name), size) for name, size in zip(names, least, strict=True)]
    head = [Span("   ")]
    for name, size in zip(names, sizes, strict=True):
        head.append(Span(fit(name, size, page, right=True) + "  ", "quiet"))
    lines: list[Line] = [(*head, Span(say("trap.saturation", page.lang), "quiet"))]
    room = min(30, max(6, min(page.width, WIDEST) - 9 - sum(sizes) - 2 * len(sizes)))
    for point in points:
        facts = point.facts
        theory = f" ({point.theory:.2f})" if wide else ""
        numbers = [
            str(point.width),
            f"{facts.deviation:.2f}{theory}",
            percent(facts.share),
            f"{point.median_logits:.4f}",
            f"{facts.flow:.3f}",
        ]
        line = [Span("   ")]
        for number, size in zip(numbers, sizes, strict=False):
            line.append(Span(fit(number, size, page, right=True) + "  "))
        line += [Span(f"{facts.saturation:.2f} "), bar(facts.saturation, room, page)]
        lines.append(tuple(line))
    return lines


def _heads(scene: TrapScene, heads: TrapMap, page: Page) -> list[Line]:
    """Three maps of layers and heads: as it is, without the scale, with larger logits."""
    model = "" if scene.model is None else scene.model.name
    lines = title(page, say("trap.text", page.lang), say("trap.text_note", page.lang, model=model))
    factor = f"{heads.factor:g}"
    names = [say(f"trap.{which}", page.lang, factor=factor) for which in _WHICH]
    size = 2 if 3 * (2 * heads.heads + 3) + 16 <= min(page.width, WIDEST) else 1
    room = [max(size * heads.heads, cells(name), 9) for name in names]
    facts = _facts(heads, page)
    lead = 3 + max(cells(name) for name, *_ in facts) + 3
    head = [Span(" " * lead)]
    for name, width in zip(names, room, strict=True):
        head.append(Span(fit(name, width + 3, page), "strong"))
    lines.append(tuple(head))
    for layer in range(heads.layers):
        line = [Span(fit(f"   L{layer}", lead, page), "quiet")]
        for which, width in zip(_WHICH, room, strict=True):
            for number in range(heads.heads):
                seen = getattr(heads.at(layer, number), which)
                line.append(level(seen.saturated, size, page))
            line.append(Span(" " * (width + 3 - size * heads.heads)))
        lines.append(tuple(line))
    for name, *values in facts:
        line = [Span(fit(f"   {name}", lead, page), "quiet")]
        for value, width in zip(values, room, strict=True):
            line.append(Span(fit(value, width + 3, page), "strong"))
        lines.append(tuple(line))
    lines.append(())
    lines += paragraph(page, say("trap.count_note", page.lang), "quiet")
    saturated = heads.having("large")
    if not saturated:
        return [*lines, *paragraph(page, say("trap.no_heads", page.lang))]
    named = ", ".join(f"L{layer}H{head}" for layer, head in saturated[:NAMED])
    if len(saturated) > NAMED:
        named += f" {page.sign('…', '...')} +{len(saturated) - NAMED}"
    return [*lines, *paragraph(page, say("trap.heads", page.lang, heads=named))]


def _facts(heads: TrapMap, page: Page) -> list[tuple[str, str, str, str]]:
    """Of all heads, for each of the three runs: how many are saturated, mean entropy and flow."""
    count, entropy, flow = [], [], []
    for which in _WHICH:
        seen = [getattr(entry, which) for entry in heads.entries]
        count.append(f"{len(heads.having('large', which))} / {len(seen)}")
        entropy.append(percent(sum(one.share for one in seen) / len(seen)).strip())
        flow.append(f"{sum(one.flow for one in seen) / len(seen):.3f}")
    return [
        (say("trap.saturated", page.lang), count[0], count[1], count[2]),
        (say("trap.entropy", page.lang), entropy[0], entropy[1], entropy[2]),
        (say("trap.flow_column", page.lang), flow[0], flow[1], flow[2]),
    ]

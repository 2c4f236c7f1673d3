"""A drawing as an SVG picture: text stays text, bars are shapes, nothing is loaded from anywhere.

Rich can export SVG too; its pictures squeeze wide characters and load a font from a network.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from chumoku.view.terminal.ink import ACCENT, Ink, Line, Page, Span, cells, length

# A cell and a line in pixels, and the font sizes at which a narrow and a wide character fill one
# and two cells in the usual fonts.
CELL, LINE, FONT, WIDE = 8.4, 20, 14, 16
MARGIN = 18

_STYLE = f"""
    text {{ font: {FONT}px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono",
      "Noto Sans Mono", "Noto Sans Mono CJK JP", monospace; white-space: pre; fill: #24292f }}
    .wide {{ font-size: {WIDE}px }}
    .page {{ fill: #ffffff; stroke: #d0d7de }}
    .strong, .loud {{ font-weight: 700 }}
    .quiet {{ fill: #6e7781 }}
    .accent, .pale, .loud {{ fill: {ACCENT} }}
    .pale {{ opacity: 0.55 }}
    .faint {{ fill: #6e7781; opacity: 0.16 }}
    @media (prefers-color-scheme: dark) {{
      text {{ fill: #e6edf3 }}
      .page {{ fill: #0d1117; stroke: #30363d }}
      .quiet {{ fill: #8b949e }}
      .accent, .pale, .loud {{ fill: #f0833a }}
    }}"""


def picture(lines: Iterable[Line], page: Page, *, command: str = "") -> str:
    """The drawing as one SVG document, light or dark as the reader's system is.

    Parameters
    ----------
    lines, page
        As drawn for a terminal.
    command : str
        Shown above the drawing, as it was typed.
    """
    drawn = list(lines)
    while drawn and not length(drawn[0]):
        drawn.pop(0)
    while drawn and not length(drawn[-1]):
        drawn.pop()
    if command:
        prompt: Line = (Span("$ ", "quiet"), Span(command, "strong"))
        drawn = [prompt, (), *drawn]
    columns = max((length(line) for line in drawn), default=0)
    width = columns * CELL + 2 * MARGIN
    height = len(drawn) * LINE + 2 * MARGIN
    shapes = [shape for row, line in enumerate(drawn) for shape in _line(line, row, page)]
    body = "\n  ".join(shapes)
    title = f"\n  <title>{escape(page.visible(command))}</title>" if command else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img">{title}\n'
        f"  <style>{_STYLE}\n  </style>\n"
        f'  <rect class="page" x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" '
        f'rx="10"/>\n  {body}\n</svg>\n'
    )


def _line(line: Line, row: int, page: Page) -> list[str]:
    shapes: list[str] = []
    column, top = 0, MARGIN + row * LINE
    for span in line:
        left, width = MARGIN + column * CELL, cells(span.text)
        if span.bar is not None:
            shapes += _bar(span, left, top)
        elif span.level is not None:
            high = max(1.5, span.level * (LINE - 4))
            box = (left + 0.5, top + LINE - 2 - high, width * CELL - 1, high)
            shapes.append(_rect(span.ink, *box))
        elif span.text == "▎":
            shapes.append(_rect(span.ink, left, top + 3, 3, LINE - 6))
        else:
            shapes += _text(page.visible(span.text), span.ink, left, top + LINE - 6)
        column += width
    return shapes


def _bar(span: Span, left: float, top: float) -> list[str]:
    filled, room = span.bar or (0.0, 0)
    shapes = [_rect("faint", left, top + 5, room * CELL, LINE - 10)]
    if filled:
        start = left + (room - filled) * CELL if span.leftwards else left
        shapes.append(_rect(span.ink, start, top + 5, filled * CELL, LINE - 10))
    return shapes


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" rx="1.5"/>'
    )


def _text(text: str, ink: Ink, left: float, base: float) -> list[str]:
    """One text element for each run of characters of the same width, at its own cell."""
    runs: list[tuple[str, int]] = []
    for character in text:
        size = cells(character)
        if runs and (size == 0 or runs[-1][1] == size):
            runs[-1] = (runs[-1][0] + character, runs[-1][1])
        else:
            runs.append((character, size))
    shapes, x = [], left
    for run, size in runs:
        width = cells(run) * CELL
        classes = [ink] * (ink != "plain") + ["wide"] * (size == 2)
        kind = f' class="{" ".join(classes)}"' if classes else ""
        if run.strip():
            start = x + (len(run) - len(run.lstrip())) * CELL
            shown = run.strip()
            shapes.append(
                f'<text{kind} x="{start:.1f}" y="{base:.1f}" '
                f'textLength="{cells(shown) * CELL:.1f}">{escape(shown)}</text>'
            )
        x += width
    return shapes

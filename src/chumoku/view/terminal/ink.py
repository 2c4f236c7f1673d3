"""Ink: pieces of text with a meaning, measured in terminal cells, and written out as ANSI text.

Drawings are lists of lines, a line is a tuple of spans. Only `write` knows colours, and only
`visible` decides which characters may reach a terminal.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from types import ModuleType
from typing import Literal, TypeAlias

from chumoku.errors import UnavailableError

Ink: TypeAlias = Literal["plain", "strong", "quiet", "accent", "pale", "loud"]

# 朱色, the vermilion with which a teacher marks what deserves attention. Contrast 3.4 on white and
# 6.1 on black; one hue, so that nothing depends on telling two colours apart.
ACCENT = "#e0600f"
_STYLES: dict[Ink, str] = {
    "plain": "",
    "strong": "bold",
    "quiet": "dim",
    "accent": ACCENT,
    "pale": f"dim {ACCENT}",
    "loud": f"bold {ACCENT}",
}

# The widest a drawing gets: longer bars say nothing more.
WIDEST = 104

_EIGHTHS = " ▏▎▍▌▋▊▉█"
# Seven eighths at most, so that blocks in neighbouring rows never touch.
_HEIGHTS = "·▁▂▃▄▅▆▇"
_PLAIN_HEIGHTS = ".:-=+*#@"
# What our own sentences use, for encodings that lack it.
_PLAIN = {"·": "-", "×": "x", "÷": "/", "√": "sqrt ", "…": "...", "→": "->"}
# May not begin a line of Japanese.
_CLOSERS = "、。，．・：；？！）」』】〉》ー々%％,.!?:;)ぁぃぅぇぉっゃゅょ"
_OPENERS = "（「『【〈《("


@dataclass(frozen=True)
class Span:
    """Text of one meaning, and what a picture draws in place of block characters.

    Attributes
    ----------
    text : str
    ink : str
    bar : (filled, whole) in cells, of a bar that grows from the left or `leftwards`
    level : height of a block on a map, from 0 to 1
    """

    text: str
    ink: Ink = "plain"
    bar: tuple[float, int] | None = None
    level: float | None = None
    leftwards: bool = False


Line: TypeAlias = tuple[Span, ...]


@dataclass(frozen=True)
class Page:
    """What is drawn on.

    Attributes
    ----------
    width : int
        Cells in a line.
    lang : "en" or "ja"
    encoding : str
        Of the output; what it cannot say is written with backslashes.
    """

    width: int = 80
    lang: str = "en"
    encoding: str = "utf-8"

    @property
    def blocks(self) -> bool:
        """Whether block characters may be used."""
        return _speaks(self.encoding, _EIGHTHS + _HEIGHTS + "▐→×÷√…")

    def visible(self, text: str) -> str:
        """`text` as it may be shown here."""
        return visible(text, self.encoding)

    def sign(self, rich: str, plain: str) -> str:
        """The character itself, or its stand-in where the encoding lacks it."""
        return rich if self.blocks else plain


@lru_cache(maxsize=1024)
def _speaks(encoding: str, text: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def visible(text: str, encoding: str = "utf-8") -> str:
    """`text` with everything that could steer a terminal written out instead.

    Control characters become their pictures (ESC is shown as ␛), invisible and direction-changing
    characters their escapes, and a combining mark without a base gets one.
    """
    shown = []
    for place, character in enumerate(text):
        code, kind = ord(character), unicodedata.category(character)
        if code < 0x20:
            shown.append(chr(0x2400 + code))
        elif code == 0x7F:
            shown.append("\u2421")
        elif character == "\u200d" and 0 < place < len(text) - 1:
            shown.append(character)
        elif kind in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            shown.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
        elif place == 0 and kind.startswith("M"):
            shown.append("\u25cc" + character)
        else:
            shown.append(character)
    text = "".join(shown)
    if not _speaks(encoding, text):
        text = "".join(c if _speaks(encoding, c) else _PLAIN.get(c, c) for c in text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def cells(text: str) -> int:
    """Terminal cells that a text takes: 2 for a wide character, 0 for a combining mark."""
    if text.isascii():
        return len(text)
    return max(0, int(_wcwidth().wcswidth(text)))


def length(line: Iterable[Span]) -> int:
    """Cells of a line."""
    return sum(cells(span.text) for span in line)


def fit(text: str, width: int, page: Page, *, right: bool = False) -> str:
    """`text` in exactly `width` cells: padded, or cut with an ellipsis."""
    if cells(text) > width:
        text = _cut(text, width, page)
    padding = " " * (width - cells(text))
    return padding + text if right else text + padding


def _cut(text: str, width: int, page: Page) -> str:
    mark = page.sign("…", "~")
    kept, used = "", 0
    for grapheme in _wcwidth().iter_graphemes(text):
        size = cells(grapheme)
        if used + size > width - 1:
            break
        kept, used = kept + grapheme, used + size
    return kept + mark if width > 0 else ""


def bar(
    share: float, width: int, page: Page, ink: Ink = "accent", *, leftwards: bool = False
) -> Span:
    """A bar of `width` cells, filled to `share` of it: in eighths, or in halves from the right."""
    share = min(max(share, 0.0), 1.0)
    if not page.blocks:
        text = "#" * round(share * width)
        return Span(text.rjust(width) if leftwards else text.ljust(width), ink)
    steps = 2 if leftwards else 8
    filled = round(share * width * steps)
    if share > 0.005:
        filled = max(filled, 1)
    full, rest = divmod(filled, steps)
    if leftwards:
        text = ("▐" * rest + "█" * full).rjust(width)
    else:
        text = ("█" * full + _EIGHTHS[rest].strip()).ljust(width)
    return Span(text, ink, bar=(filled / steps, width), leftwards=leftwards)


def level(share: float, width: int, page: Page) -> Span:
    """A cell of a map: a block as high as `share`, the same ink at every height."""
    step = min(7, int(max(share, 0.0) * 7 + 0.5))
    glyph = (_HEIGHTS if page.blocks else _PLAIN_HEIGHTS)[step]
    if step == 0:
        return Span(glyph.center(width), "quiet")
    return Span(glyph * width, "accent", level=step / 7)


def percent(share: float) -> str:
    """A share as people say it, in 5 cells."""
    if 0 < share < 0.005:
        return " <1 %"
    return f"{share * 100:3.0f} %"


def wrap(text: str, width: int, measure: Callable[[str], int] = cells) -> list[str]:
    """Lines of at most `width` cells: broken at spaces, and between wide characters."""
    lines = _broken(text, width, measure)
    for narrower in range(width - 2, max(width - 16, 8), -2):
        if len(lines) < 2 or measure(lines[-1]) > 8:
            break
        # A last line of one or two characters looks lost: share the space more evenly.
        other = _broken(text, narrower, measure)
        lines = other if len(other) == len(lines) else lines
    return lines


def _broken(text: str, width: int, measure: Callable[[str], int]) -> list[str]:
    lines = [""]
    for piece in _pieces(text, width, measure):
        if measure(lines[-1]) + measure(piece.rstrip()) > width and lines[-1].strip():
            lines.append("")
            piece = piece.lstrip()
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _pieces(text: str, width: int, measure: Callable[[str], int]) -> list[str]:
    """What stays together: words, katakana words, and punctuation with what it belongs to."""
    pieces: list[str] = []
    for character in text:
        last = pieces[-1][-1] if pieces else " "
        glued = bool(pieces) and (
            character in _CLOSERS
            or last in _OPENERS
            or (measure(character) < 2 and measure(last) < 2 and last != " ")
            or (_katakana(character) and _katakana(last))
        )
        if glued and measure(pieces[-1]) + measure(character) <= width:
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


def _katakana(character: str) -> bool:
    return "\u30a1" <= character <= "\u30fc"


def title(page: Page, text: str, note: str = "") -> list[Line]:
    """A heading, and a quiet note that goes below it."""
    mark = Span(page.sign("▎", "|"), "accent")
    lines: list[Line] = [(), (Span("  "), mark, Span(text, "strong"))]
    if note:
        lines += paragraph(page, note, "quiet")
    return [*lines, ()]


def paragraph(page: Page, text: str, ink: Ink = "plain", indent: int = 3) -> list[Line]:
    """A sentence, broken to the width of the page."""
    room = min(page.width, 88) - indent - 1
    return [(Span(" " * indent), Span(part, ink)) for part in wrap(text, room)]


def write(lines: Iterable[Line], page: Page, *, colour: bool) -> str:
    """The drawing as one text; without colour it holds no escape codes at all.

    Raises
    ------
    UnavailableError
        When rich is not installed.
    """
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError as error:
        raise missing("rich") from error
    out = StringIO()
    console = Console(
        file=out,
        width=page.width,
        force_terminal=colour,
        color_system="auto" if colour else None,
        no_color=not colour,
        markup=False,
        highlight=False,
        emoji=False,
        legacy_windows=False,
    )
    for line in lines:
        text = Text()
        for span in line:
            text.append(page.visible(span.text), style=_STYLES[span.ink])
        text.rstrip()
        console.print(text, soft_wrap=True)
    return out.getvalue()


def missing(package: str) -> UnavailableError:
    """The error for a package that the views need."""
    return UnavailableError(
        package,
        got="a Python without it",
        expected="one with the packages that the commands draw with",
        cure='Install them with: pip install "chumoku[look]"',
    )


@lru_cache(maxsize=1)
def _wcwidth() -> ModuleType:
    try:
        import wcwidth
    except ImportError as error:
        raise missing("wcwidth") from error
    return wcwidth

"""Names: tokens as they are written in a drawing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from chumoku.view.terminal.ink import WIDEST, Ink, Line, Page, Span, cells

if TYPE_CHECKING:
    from chumoku.tokens import Token


class Names:
    """Tokens as they are written in a drawing; a text that occurs twice carries its index.

    Attributes
    ----------
    plain, texts : list of str
        Without and with that index.
    special : (tokens,) bool
    """

    def __init__(self, tokens: Sequence[Token], page: Page) -> None:
        self.special = np.array([token.special for token in tokens], dtype=bool)
        seen = [page.visible(token.text) for token in tokens]
        self.plain = [text if text.strip() else page.sign("␣", "_") for text in seen]
        self.texts = [
            f"{text}#{i}" if self.plain.count(text) > 1 else text
            for i, text in enumerate(self.plain)
        ]

    def __getitem__(self, index: int) -> str:
        return self.texts[index]

    def room(self, keys: Sequence[int], most: int) -> int:
        """Cells for the widest of these tokens, within bounds."""
        return min(max((cells(self.texts[k]) for k in keys), default=1), most)

    def ink(self, index: int, ink: Ink = "plain") -> Ink:
        """Special tokens stay in the background."""
        return "quiet" if self.special[index] else ink

    def sentence(self, page: Page, marked: int | None = None) -> Line:
        """The text as tokens on one line, one of them marked; cut where the page ends."""
        room = min(page.width, WIDEST) - 6
        whole = sum(cells(text) + 1 for text in self.plain)
        first = max(0, (marked or 0) - 3) if whole > room else 0
        line: list[Span] = [Span("  ")]
        if first:
            line.append(Span(page.sign("… ", "... "), "quiet"))
        used = 0
        for index in range(first, len(self.plain)):
            text = self.plain[index]
            if used and used + cells(text) + 1 > room:
                line.append(Span(page.sign("…", "..."), "quiet"))
                break
            ink: Ink = "loud" if index == marked else self.ink(index, "strong")
            line += [Span(text, ink), Span(" ")]
            used += cells(text) + 1
        return tuple(line)

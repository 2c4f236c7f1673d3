"""Terminal: a scene as text, aligned for wide characters, on any background and any width."""

from chumoku.view.terminal.crossed import cross, image, speech
from chumoku.view.terminal.explain import explain
from chumoku.view.terminal.heads import heads
from chumoku.view.terminal.info import info
from chumoku.view.terminal.ink import Line, Page, Span, cells, visible, write
from chumoku.view.terminal.look import look
from chumoku.view.terminal.svg import picture
from chumoku.view.terminal.syntax import syntax
from chumoku.view.terminal.trap import trap

__all__ = [
    "Line",
    "Page",
    "Span",
    "cells",
    "cross",
    "explain",
    "heads",
    "image",
    "info",
    "look",
    "picture",
    "speech",
    "syntax",
    "trap",
    "visible",
    "write",
]

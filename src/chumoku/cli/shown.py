"""What the user sees: JSON, or a drawing on the terminal and in an SVG file."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import unicodedata
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from chumoku.cli.parser import Problem
from chumoku.view.scene import to_json
from chumoku.view.terminal import Line, Page, picture, write
from chumoku.words import say

Draw = Callable[[Page], Sequence[Line]]

NARROWEST = 40
# Characters of a message of progress.
PROGRESS = 36
# Version of what --json prints; it moves when a field changes its meaning or goes.
SCHEMA = 1
_BARE = re.compile(r"[\w@%+=:,./。、！？-]+")


def show(
    command: str, data: Any, draw: Draw, options: Namespace, arguments: Sequence[str], lang: str
) -> None:
    """Print the data as JSON when that was asked for, and the drawing otherwise."""
    svg = getattr(options, "svg", None)
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    width = max(NARROWEST, shutil.get_terminal_size((80, 24)).columns)
    if svg is not None:
        page = Page(width=width, lang=lang)
        _save(svg, picture(draw(page), page, command=_typed(command, arguments)), lang)
    if options.json:
        sys.stdout.write(_json(command, data, encoding) + "\n")
        return
    page = Page(width=width, lang=lang, encoding=encoding)
    sys.stdout.write(write(draw(page), page, colour=_colour(options)))


def progress(message: str) -> None:
    """Tell a person who waits how far the work is; an empty message wipes it away."""
    if sys.stderr.isatty():
        sys.stderr.write("\r" + message.ljust(PROGRESS)[:PROGRESS] + "\r")
        sys.stderr.flush()


def _colour(options: Namespace) -> bool:
    """Whether escape codes may be written."""
    if options.no_color or os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("dumb", "")


def _json(command: str, data: Any, encoding: str) -> str:
    """One JSON object; characters that could steer a terminal are escaped."""
    utf8 = encoding.lower().replace("-", "") == "utf8"
    text = json.dumps(
        {"command": command, "schema": SCHEMA, **to_json(data)},
        ensure_ascii=not utf8,
        allow_nan=False,
    )
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escape(c) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in text
    )


def _escape(character: str) -> str:
    pairs = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{pairs[i : i + 4]}" for i in range(0, len(pairs), 4))


def _typed(command: str, arguments: Sequence[str]) -> str:
    """The command as it was typed, without --svg."""
    words, skip = [], False
    for argument in arguments:
        if skip or argument.startswith("--svg="):
            skip = False
            continue
        if argument == "--svg":
            skip = True
            continue
        bare = _BARE.fullmatch(argument)
        words.append(argument if bare else "'" + argument.replace("'", "'\\''") + "'")
    return " ".join(["chumoku", command, *words])


def _save(path: str, content: str, lang: str) -> None:
    try:
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(content)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Problem(say("error.unwritable", lang, path=path, reason=reason)) from None

"""What the user gave: the text, the model, a token, a head; wrong ones become Problems."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from chumoku.cli.parser import Problem, Usage
from chumoku.words import say

if TYPE_CHECKING:
    from chumoku.tokens import Token
    from chumoku.view.scene import Model

# One word that ends like a text file or starts like a path is a file name, there or not.
_FILE_NAME = re.compile(
    r"(?:\.{0,2}/|~/|[A-Za-z]:\\)\S*|\S+\.(?:txt|text|md|rst|csv|tsv|log|html?)"
)
# Tokens that a message lists.
LISTED = 24


def text(arguments: Sequence[str], command: str, lang: str) -> str:
    """The text of a command: the words given, a file's content, or standard input."""
    if len(arguments) > 1:
        return _checked(" ".join(arguments), say("source.argument", lang), lang)
    return one(arguments[0] if arguments else None, command, lang)[0]


def texts(arguments: Sequence[str], command: str, lang: str) -> list[str]:
    """Several texts; each line of a file or of standard input is one."""
    found: list[str] = []
    several: Sequence[str | None] = arguments or [None]
    for argument in several:
        content, lines = one(argument, command, lang)
        found += [line for line in content.splitlines() if line.strip()] if lines else [content]
    return found


def one(argument: str | None, command: str, lang: str) -> tuple[str, bool]:
    """One text, and whether it was read from a file or a pipe."""
    if argument is None and (sys.stdin is None or sys.stdin.isatty()):
        hint = say("usage.try", lang, command=command)
        raise Usage(f"{say('error.no_text', lang, command=command)} {hint}")
    if argument is None or argument == "-":
        source = say("source.stdin", lang)
        return _checked(_decoded(_standard_input(), source, lang), source, lang), True
    if os.path.isdir(argument):
        raise Problem(say("error.folder", lang, path=argument, command=command))
    if os.path.exists(argument):
        return _file(argument, lang), True
    if _FILE_NAME.fullmatch(argument):
        raise Problem(say("error.no_file", lang, path=argument, command=command))
    return _checked(argument, say("source.argument", lang), lang), False


def treebank(path: str, lang: str) -> str:
    """The content of a treebank's file."""
    if os.path.isdir(path):
        raise Problem(say("error.treebank_folder", lang, path=path))
    if not os.path.exists(path):
        raise Problem(say("error.no_treebank", lang, path=path))
    return _file(path, lang)


def medium(arguments: Sequence[str], missing: str, model: str, lang: str) -> str:
    """The one file that a model of sounds or images is given; `missing` says there is none."""
    if len(arguments) != 1:
        raise Usage(say("usage.one_file", lang))
    path = arguments[0]
    if not os.path.isfile(path):
        raise Problem(say(missing, lang, path=path, model=model))
    return path


def check_head(model: Model, layer: int | None, head: int | None, lang: str) -> None:
    """Raise a Problem for a layer or head that the model does not have."""
    for key, value, count in (
        ("error.layer", layer, model.layers),
        ("error.head", head, model.heads),
    ):
        if value is not None and not 0 <= value < count:
            raise Problem(say(key, lang, value=value, model=model.name, last=count - 1))


def check_pair(layer: int | None, head: int | None, lang: str) -> None:
    """Raise Usage for a head without its layer."""
    if head is not None and layer is None:
        raise Usage(say("usage.head_needs_layer", lang))


def token(tokens: Sequence[Token], wanted: str, lang: str) -> int:
    """Index of the token meant: by its text, or as #3 or 3.

    A token that reads like the number goes before the index; #3 is always the index.
    """
    if re.fullmatch(r"#\d+", wanted):
        return _index(tokens, int(wanted[1:]), lang)
    same = [i for i, each in enumerate(tokens) if each.text == wanted]
    same = same or [i for i, each in enumerate(tokens) if each.text.lower() == wanted.lower()]
    if len(same) == 1:
        return same[0]
    if same:
        listed = _listed(tokens, same)
        raise Problem(
            say("error.token_ambiguous", lang, value=wanted, count=len(same), tokens=listed)
        )
    if wanted.isdecimal():
        return _index(tokens, int(wanted), lang)
    listed = _listed(tokens, range(len(tokens)))
    raise Problem(say("error.token_unknown", lang, value=wanted, tokens=listed))


def _index(tokens: Sequence[Token], index: int, lang: str) -> int:
    if index >= len(tokens):
        listed = _listed(tokens, range(len(tokens)))
        raise Problem(say("error.token_index", lang, value=index, tokens=listed))
    return index


def _listed(tokens: Sequence[Token], which: Sequence[int]) -> str:
    """Tokens with their indices; where one occurs twice, its neighbours tell which it is."""
    shown = []
    for i in which[:LISTED]:
        name = f"#{i} {tokens[i].text}"
        if len(which) < len(tokens):
            around = [each.text for each in tokens[max(0, i - 1) : i + 2]]
            name += f" ({' '.join(around)})"
        shown.append(name)
    return ", ".join(shown) + (", …" if len(which) > LISTED else "")


def _file(path: str, lang: str) -> str:
    source = say("source.file", lang, path=path)
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        reason = error.strerror or str(error)
        raise Problem(say("error.unreadable", lang, path=path, reason=reason)) from None
    return _checked(_decoded(content, source, lang), source, lang)


def _standard_input() -> bytes:
    if sys.stdin is None:
        return b""
    raw = getattr(sys.stdin, "buffer", None)
    content = sys.stdin.read() if raw is None else raw.read()
    return content if isinstance(content, bytes) else content.encode()


def _decoded(content: bytes, source: str, lang: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = error.start + 1
        raise Problem(say("error.not_utf8", lang, source=source, place=place)) from None


def _checked(content: str, source: str, lang: str) -> str:
    if not content.strip():
        raise Problem(say("error.empty", lang, source=source))
    try:
        content.encode()
    except UnicodeEncodeError as error:
        # The bytes of an argument that are not UTF-8 arrive as lone surrogates.
        place = len(content[: error.start].encode()) + 1
        raise Problem(say("error.not_utf8", lang, source=source, place=place)) from None
    return content

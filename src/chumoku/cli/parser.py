"""The parser of a command's options: argparse, in the user's language."""

from __future__ import annotations

import argparse
import unicodedata
from argparse import Action, ArgumentError, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, NoReturn

from chumoku.view.terminal.ink import visible, wrap
from chumoku.words import LANGUAGES, say

TOP = 3


class Usage(Exception):
    """A command was not written as it must be."""


class Problem(Exception):
    """Something that the user can mend, said in their language."""


class Parser(argparse.ArgumentParser):
    """argparse with every sentence from the catalogue, and errors raised instead of printed."""

    def __init__(self, command: str, lang: str, *, examples: Sequence[str]) -> None:
        self.command, self.lang, self.texts = command, lang, False
        shown = "\n".join(f"  {example}" for example in examples)
        super().__init__(
            prog=f"chumoku {command}",
            description=say(f"help.{command}", lang),
            epilog=f"{say('help.examples', lang)}\n{shown}",
            formatter_class=lambda prog: _Formatter(prog, lang),
            add_help=False,
            allow_abbrev=False,
            exit_on_error=False,
        )
        self.given = self.add_argument_group(say("help.arguments", lang))
        self.options = self.add_argument_group(say("help.options", lang))

    def option(
        self, *names: str, key: str, fields: Mapping[str, object] | None = None, **settings: Any
    ) -> None:
        """An option whose help is `help.<key>`."""
        fields = {"default": settings.get("default"), **(fields or {})}
        self.options.add_argument(*names, help=say(f"help.{key}", self.lang, **fields), **settings)

    def text(self, key: str = "text") -> None:
        """The text that most commands take."""
        self.texts = True
        self.given.add_argument(
            "text", nargs="*", metavar="TEXT", help=say(f"help.{key}", self.lang)
        )

    def common(self, *, model: bool = True, drawn: bool = True) -> None:
        """The options that most commands share; they come last in the help."""
        if model:
            self.option("--model", metavar="PATH", key="model")
        self.option("--json", action="store_true", key="json")
        if drawn:
            self.option("--svg", metavar="FILE", key="svg")
        self.option("--no-color", action="store_true", key="no_color")
        self.option("--lang", type=_lang(self.lang), metavar="en|ja", key="lang")
        self.option("-h", "--help", action="help", key="help")

    def read(self, arguments: Sequence[str]) -> Namespace:
        """The options, or Usage."""
        hint = say("usage.try", self.lang, command=self.command)
        try:
            options, rest = self.parse_known_args(list(arguments))
        except ArgumentError as error:
            message = error.message
            if message == "expected one argument":
                message = say("usage.one_argument", self.lang)
            bad = say("usage.bad", self.lang, option=error.argument_name, message=message)
            raise Usage(f"{bad} {hint}") from None
        # Words of the text that stand behind an option: argparse takes one run of them only.
        words = [word for word in rest if not word.startswith("-")]
        strange = [word for word in rest if word.startswith("-")] or words[: not self.texts]
        if strange:
            unknown = say("usage.unknown_option", self.lang, option=strange[0])
            raise Usage(f"{unknown} {hint}")
        if words:
            options.text += words
        return options

    def error(self, message: str) -> NoReturn:
        """Raised, so that main prints it."""
        raise Usage(message)


class _Formatter(argparse.HelpFormatter):
    """Help in a language whose characters may be wide."""

    def __init__(self, prog: str, lang: str) -> None:
        super().__init__(prog, max_help_position=26)
        self._lang = lang

    def add_usage(
        self,
        usage: str | None,
        actions: Any,
        groups: Any,
        prefix: str | None = None,
    ) -> None:
        super().add_usage(usage, actions, groups, say("help.usage", self._lang))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(text, width, _cells)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = [part for line in text.splitlines() for part in _kept(line, width)]
        return "\n".join(indent + line for line in lines)

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        return "N"


def _kept(line: str, width: int) -> list[str]:
    """Examples stay on one line, so that they can be copied."""
    return [line] if line.startswith("  ") else wrap(line, width, _cells)


def _cells(text: str) -> int:
    """Cells of help text, without the packages that drawing needs."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def overview(commands: Sequence[str], lang: str) -> str:
    """What `chumoku --help` says."""
    lines = [f"{say('help.usage', lang)}chumoku [--version] [--lang en|ja] COMMAND ...", ""]
    lines += [say("help.program", lang), "", f"{say('help.commands', lang)}:"]
    for command in commands:
        for place, part in enumerate(wrap(say(f"help.{command}", lang), 66, _cells)):
            lines.append(f"  {command if place == 0 else '':<9} {part}")
    lines += ["", f"{say('help.options', lang)}:"]
    lines.append(f"  {'--version':<11} {say('help.version', lang)}")
    lines.append(f"  {'-h, --help':<11} {say('help.help', lang)}")
    lines += ["", say("help.examples", lang), "  chumoku look 'その猫は可愛い'", ""]
    return "\n".join([*lines, say("help.epilog", lang), ""])


def plain(message: str) -> str:
    """A message as one paragraph that cannot steer a terminal."""
    return visible(" ".join(message.split()))


def whole(lang: str, key: str = "number", least: int | None = None) -> Callable[[str], int]:
    """A whole number."""

    def read(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = None
        if number is None or (least is not None and number < least):
            raise ArgumentTypeError(say(f"usage.{key}", lang, value=value))
        return number

    return read


def factor(lang: str) -> Callable[[str], float]:
    """A number above 0."""

    def read(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not (isfinite(number) and number > 0):
            raise ArgumentTypeError(say("usage.factor", lang, value=value))
        return number

    return read


def pair(lang: str) -> Callable[[str], tuple[int, int]]:
    """A head as LAYER:HEAD."""

    def read(value: str) -> tuple[int, int]:
        layer, colon, head = value.partition(":")
        if not (colon and layer.isdecimal() and head.isdecimal()):
            raise ArgumentTypeError(say("usage.pair", lang, value=value))
        return int(layer), int(head)

    return read


def _lang(lang: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in LANGUAGES:
            raise ArgumentTypeError(say("usage.lang", lang, value=value))
        return value

    return read

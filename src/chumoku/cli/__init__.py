"""The command line: chumoku look | explain | trap | heads | info."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import cast

from chumoku.cli.parser import Problem, Usage, overview, plain
from chumoku.errors import ChumokuError
from chumoku.words import LANGUAGES, language, say

COMMANDS = ("look", "explain", "trap", "heads", "info")

INTERRUPTED = 130
# What a shell reports of a program that wrote into a closed pipe.
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        What follows the program's name; the process's own when not given.

    Returns
    -------
    int
        0, 1 (an error of the library), 2 (wrong usage), 130 (interrupted) or 141 (closed pipe).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    lang = _language(arguments)
    try:
        code = _run(arguments, lang)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Usage as error:
        _complain(str(error), lang)
        return 2
    except (Problem, ChumokuError) as error:
        _complain(str(error), lang)
        return 1


def _run(arguments: list[str], lang: str) -> int:
    rest = list(arguments)
    while rest and (rest[0] == "--lang" or rest[0].startswith("--lang=")):
        rest = rest[2:] if rest[0] == "--lang" else rest[1:]
    if not rest:
        sys.stderr.write(overview(COMMANDS, lang))
        return 2
    if rest[0] in ("-h", "--help"):
        sys.stdout.write(overview(COMMANDS, lang))
        return 0
    if rest[0] == "--version":
        from chumoku import __version__

        sys.stdout.write(f"chumoku {__version__}\n")
        return 0
    if rest[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise Usage(say("usage.unknown_command", lang, command=rest[0], commands=known))
    command = import_module(f"chumoku.cli.{rest[0]}")
    run = cast(Callable[[list[str], str], int], command.run)
    before = arguments[: len(arguments) - len(rest)]
    return run([*rest[1:], *before], lang)


def _language(arguments: Sequence[str]) -> str:
    """The language asked for, or that of the locale when the output can say it."""
    for place, argument in enumerate(arguments):
        if argument == "--":
            break
        asked = argument.removeprefix("--lang=") if argument.startswith("--lang=") else None
        if argument == "--lang" and place + 1 < len(arguments):
            asked = arguments[place + 1]
        if asked in LANGUAGES:
            return asked
    lang = language(os.environ)
    try:
        "注目度".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "en"
    return lang


def _complain(message: str, lang: str) -> None:
    sys.stderr.write(plain(say("error.label", lang, message=message)) + "\n")

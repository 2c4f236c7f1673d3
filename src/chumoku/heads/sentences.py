"""Sentences with gold syntax, from treebanks in CoNLL-U (Universal Dependencies)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from itertools import pairwise
from os import PathLike
from typing import Any

from chumoku.checks import is_whole, list_of, path_of, shown
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError

COLUMNS = 10
_STANDARD = "ID FORM LEMMA UPOS XPOS FEATS HEAD DEPREL DEPS MISC"
_EXPECTED = "CoNLL-U: 10 columns with tabs between them, comments that begin with #, empty lines"
_SPACES = re.compile(" {2,}")


@dataclass(frozen=True)
class Sentence:
    """A sentence, its words, and which word each depends on.

    Attributes
    ----------
    text : str
        As a model reads it.
    words : tuple of str
        Syntactic words: "don't" is two, "do" and "n't".
    governors : tuple of int
        Of each word the place in `words` of the word it depends on (its HEAD); -1 of the root.
        "Governor", for "head" is an attention head everywhere in this library.
    relations : tuple of str
        Of each word the relation to its governor, without a subtype: "nsubj" for "nsubj:pass".
    spans : tuple of (start, end), or None
        The characters text[start:end] of each word; words that were written as one, in a way that
        does not show where one ends, have the same. None: the text does not spell the words.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        Lengths that differ, a governor that is not there, words that depend on one another in a
        circle, characters that the text does not have.
    """

    text: str = field(repr=False)
    words: tuple[str, ...]
    governors: tuple[int, ...] = field(repr=False)
    relations: tuple[str, ...] = field(repr=False)
    spans: tuple[tuple[int, int], ...] | None = field(repr=False, default=None)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise InvalidTypeError("text", shown(self.text), "a str")
        words = _strings("words", self.words)
        relations = _strings("relations", self.relations)
        governors = list_of("governors", self.governors, "places of words")
        for governor in governors:
            if not is_whole(governor):
                raise InvalidTypeError("governors", shown(governor), "whole numbers")
        for name, given in (("governors", governors), ("relations", relations)):
            if len(given) != len(words):
                expected = f"one for each of the {len(words)} words"
                raise InvalidArgumentError(name, str(len(given)), expected)
        fault = _fault(governors)
        if fault:
            raise InvalidArgumentError("governors", fault, "a tree of words")
        object.__setattr__(self, "words", tuple(words))
        object.__setattr__(self, "relations", tuple(relations))
        object.__setattr__(self, "governors", tuple(map(int, governors)))
        if self.spans is not None:
            object.__setattr__(self, "spans", self._checked(len(words)))

    def _checked(self, count: int) -> tuple[tuple[int, int], ...]:
        """The spans, when they are characters of the text, in order."""
        spans = list_of("spans", self.spans, "pairs of characters' places")
        expected = f"{count} pairs of places, in order, from 0 to {len(self.text)}"
        before = 0
        for span in spans:
            pair = isinstance(span, tuple) and len(span) == 2 and all(map(is_whole, span))
            if not pair or not before <= span[0] < span[1] <= len(self.text):
                raise InvalidArgumentError("spans", shown(span), expected)
            before = span[0]
        if len(spans) != count:
            raise InvalidArgumentError("spans", str(len(spans)), expected)
        return tuple((int(start), int(end)) for start, end in spans)


def _strings(name: str, value: object) -> list[str]:
    found = list_of(name, value, "several str")
    for one in found:
        if not isinstance(one, str):
            raise InvalidTypeError(name, shown(one), "a str for each word")
    return found


def read_treebank(path: str | PathLike[str]) -> tuple[Sentence, ...]:
    """All sentences of a treebank in CoNLL-U, in the order of the file.

    The text is that of the comment `# text = `, or made of the words and their SpaceAfter=No
    where there is none. Ranges (1-2) are how words are written; empty nodes (8.1) are no words.

    Parameters
    ----------
    path : str or path

    Raises
    ------
    UnavailableError
        The package conllu is not installed.
    InvalidArgumentError
        No such file, not UTF-8, not CoNLL-U or cut off; a HEAD that points nowhere or around in
        a circle.
    InvalidTypeError
        path is no path.
    """
    file = path_of("path", path)
    try:
        content = file.read_bytes()
    except OSError as error:
        got = f"{str(file)!r} ({error.strerror or error})"
        raise InvalidArgumentError("path", got, "a CoNLL-U file that can be read") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"{str(file)!r}, which is not UTF-8 from byte {error.start + 1} on"
        cure = "CoNLL-U is always UTF-8; was it compressed or converted?"
        raise InvalidArgumentError("path", got, "a CoNLL-U file", cure) from None
    return parse_treebank(text)


def parse_treebank(text: str) -> tuple[Sentence, ...]:
    """All sentences of a text in CoNLL-U; see `read_treebank`."""
    if not isinstance(text, str):
        raise InvalidTypeError("text", shown(text), "a str in CoNLL-U")
    try:
        import conllu
    except ImportError as error:
        raise UnavailableError(
            "treebank",
            got="no package conllu, which reads it",
            expected="the package",
            cure='pip install "chumoku[treebank]"',
        ) from error
    lines = text.replace("\r\n", "\n").split("\n")
    starts = _check(lines)
    whole = "\n".join(line if line[:1] == "#" else _SPACES.sub(" ", line) for line in lines)
    parsed: Iterator[Any] = iter(conllu.parse_incr(StringIO(whole)))
    found = []
    for start in starts:
        try:
            tokens = next(parsed)
        except conllu.exceptions.ParseException as error:
            got = f"in the sentence at line {start}: {error}"
            raise InvalidArgumentError("treebank", got, _EXPECTED) from None
        if tokens:
            found.append(_sentence(tokens, tokens.metadata.get("text"), start))
    if not found:
        raise InvalidArgumentError("treebank", "no sentence", _EXPECTED, "Is the file complete?")
    return tuple(found)


def _check(lines: Sequence[str]) -> list[int]:
    """Refuse what is not CoNLL-U, which conllu would read as something; where sentences begin."""
    starts, before = [], ""
    last = max((n for n, line in enumerate(lines, 1) if line.strip()), default=0)
    for number, line in enumerate(lines, 1):
        if line.strip() and not before.strip():
            starts.append(number)
        before = line
        if line.startswith("#"):
            named = line[1:].partition("=")
            if named[0].strip() == "global.columns" and named[2].split() != _STANDARD.split():
                got = f"line {number}: the columns {named[2].strip()}"
                raise InvalidArgumentError("treebank", got, f"the columns {_STANDARD}")
        elif line.strip() and line.count("\t") != COLUMNS - 1:
            columns = line.count("\t") + 1
            got = f"line {number} with {columns} column{'s' * (columns > 1)}: {shown(line)}"
            cure = "Is it CoNLL-U? There are treebanks at https://universaldependencies.org."
            if number == last and len(starts) > 1:
                cure = "The file seems to be cut off: fetch it again."
            raise InvalidArgumentError("treebank", got, _EXPECTED, cure)
    return starts


def _sentence(tokens: Sequence[Any], text: str | None, start: int) -> Sentence:
    """A sentence of what conllu read from line `start` on."""
    written, words = _written(tokens, start)
    # Of the words that are written as one the last ends it, whatever they say themselves.
    if text is None:
        text = "".join(form + " " * spaced for form, spaced, _ in written).rstrip()
    governors = tuple(_governor(word, len(words), start) for word in words)
    fault = _fault(governors)
    if fault:
        got = f"in the sentence at line {start}: {fault}"
        raise InvalidArgumentError("treebank", got, "a tree of words", "Is the file damaged?")
    relations = tuple((word.get("deprel") or "_").partition(":")[0] for word in words)
    forms = tuple(word["form"] for word in words)
    return Sentence(text, forms, governors, relations, _spans(text, written))


_Written = list[tuple[str, bool, tuple[str, ...]]]


def _written(tokens: Sequence[Any], start: int) -> tuple[_Written, list[Any]]:
    """How the words are written, (form, space after it, its words), and the words themselves."""
    written: _Written = []
    words: list[Any] = []
    end = 0  # of the range that is open
    for token in tokens:
        place = token["id"]
        if isinstance(place, tuple) and place[1] == ".":
            continue
        first = place[0] if isinstance(place, tuple) else place
        if first != len(words) + 1 or (isinstance(place, tuple) and first <= end):
            got = f"in the sentence at line {start}: ID {_id(place)} after {len(words)} words"
            raise InvalidArgumentError("treebank", got, "words numbered 1, 2, 3 and so on")
        spaced = (token.get("misc") or {}).get("SpaceAfter") != "No"
        if isinstance(place, tuple):
            end = place[2]
            written.append((token["form"], spaced, ()))
            continue
        words.append(token)
        if first <= end:
            form, after, inside = written[-1]
            written[-1] = (form, after, (*inside, token["form"]))
        else:
            written.append((token["form"], spaced, (token["form"],)))
    if end > len(words):
        got = f"in the sentence at line {start}: a range to {end} over {len(words)} words"
        raise InvalidArgumentError("treebank", got, "ranges of words", "Is the file complete?")
    return written, words


def _id(place: Any) -> str:
    return (
        "_" if place is None else "".join(map(str, place if isinstance(place, tuple) else [place]))
    )


def _governor(word: Any, count: int, start: int) -> int:
    head = word.get("head")
    if head is None or not 0 <= head <= count:
        got = f"in the sentence at line {start}: HEAD {'_' if head is None else head} of word"
        cure = "Is the file complete, and annotated?"
        expected = f"0 to {count}, for it has {count} words"
        raise InvalidArgumentError("treebank", f"{got} {word['id']}", expected, cure)
    return int(head) - 1


def _fault(governors: Sequence[int]) -> str:
    """What is wrong with a tree; "" when nothing is."""
    count = len(governors)
    for word, governor in enumerate(governors):
        if not -1 <= governor < count:
            return f"word {word + 1} of {count} depends on word {governor + 1}"
    known = [False] * count
    for word in range(count):
        path: dict[int, int] = {}
        at = word
        while at != -1 and not known[at]:
            if at in path:
                return f"word {at + 1} depends on itself, over {len(path) - path[at]} steps"
            path[at] = len(path)
            at = governors[at]
        for place in path:
            known[place] = True
    return ""


def _spans(text: str, written: _Written) -> tuple[tuple[int, int], ...] | None:
    """Characters of each word; None where the text spells something else."""
    spans: list[tuple[int, int]] = []
    at = 0
    for form, _, inside in written:
        found = _find(text, at, form)
        if found is None:
            return None
        start, at = found
        edges = [start]
        if all(inside) and "".join(inside) == text[start:at]:
            for word in inside:
                edges.append(edges[-1] + len(word))
            spans += pairwise(edges)
        else:
            spans += [(start, at)] * len(inside)
    return None if text[at:].strip() else tuple(spans)


def _find(text: str, at: int, form: str) -> tuple[int, int] | None:
    """Where a form stands in the text, behind nothing but spaces; its own spaces may be others."""
    start = None
    for part in form.split():
        while at < len(text) and text[at].isspace():
            at += 1
        if not text.startswith(part, at):
            return None
        start = at if start is None else start
        at += len(part)
    return None if start is None else (start, at)

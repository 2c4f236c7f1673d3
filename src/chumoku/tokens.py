"""Text to tokens with offsets into the text as it was given, and back to what a person reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Protocol
from unicodedata import category, combining, normalize

import numpy as np
from numpy.typing import ArrayLike

from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError

_SPACE = "\u2581"  # how SentencePiece writes a space inside a piece
_UNKNOWN_PENALTY = 10.0  # SentencePiece, unigram_model.cc, kUnkPenalty
_JOINERS = "\u200c\u200d"  # format characters that letters and emoji need
# Marks that are composed together: text may hold any number, and ordering them is quadratic.
_LONGEST_CLUSTER = 32


@dataclass(frozen=True, slots=True)
class Token:
    """One token.

    Attributes
    ----------
    text : str
        What a person reads: the characters as they were typed, or the piece's own where tokens
        share characters ("㍿" becomes 株式 and 会社). A space that is a token is "␣"; a mark
        without its letter stands on "◌"; control characters are left out.
    id : int
        Its place in the vocabulary.
    start, end : int
        The characters text[start:end] of the input; the space before a word is not counted. A
        space that the tokenizer put there has start == end; special tokens have -1, -1.
    special : bool
        Whether the tokenizer added it (<s>, [CLS], ...).
    piece : str
        As the vocabulary writes it: "▁cat", "##ing", "[UNK]".
    unknown : bool
        Whether the vocabulary has nothing for these characters: the model does not see them.
    """

    text: str
    id: int
    start: int
    end: int
    special: bool = False
    piece: str = ""
    unknown: bool = False


class Tokenizer(Protocol):
    """What a model needs of a tokenizer."""

    def encode(self, text: str, limit: int | None = None) -> tuple[tuple[Token, ...], int]:
        """The tokens of a text, special ones included, and how many were cut.

        Parameters
        ----------
        text : str
        limit : int, optional
            At most so many tokens, special ones included; what is beyond is cut off at the end
            of the text.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            Not a text, or one without anything to see.
        """


class Unigram:
    """The Unigram tokenizer of SentencePiece in plain Python, with offsets.

    Each character goes through the normaliser and is composed with the marks that follow it, runs
    of spaces become one and those at the ends go, U+2581 is put before the text and in place of
    each space; then the path of pieces with the largest sum of scores is taken (Kudo 2018,
    "Subword regularization", section 3.2, by Viterbi). Characters without a piece become the
    unknown token, neighbours together.

    Parameters
    ----------
    pieces : sequence of str
        The vocabulary; a token's id is its place.
    scores : sequence of float
        Log probability of each piece. Those of 0 and more are no pieces but control tokens: the
        text never matches them, whatever it spells.
    normaliser : mapping of character to str, optional
        What stands in place of a character; it may be empty.
    begin, end : int, optional
        Tokens put before and after the text.
    unknown : int
    """

    def __init__(
        self,
        pieces: Sequence[str],
        scores: ArrayLike,
        *,
        unknown: int,
        begin: int | None = None,
        end: int | None = None,
        normaliser: Mapping[str, str] | None = None,
    ) -> None:
        values = np.asarray(scores, np.float64)
        if values.shape != (len(pieces),):
            got = f"{values.size} scores"
            raise InvalidArgumentError("scores", got, f"one for each of the {len(pieces)} pieces")
        for name, place in (("unknown", unknown), ("begin", begin), ("end", end)):
            if place is not None and not 0 <= place < len(pieces):
                raise InvalidArgumentError(name, str(place), f"0 to {len(pieces) - 1}")
        self.pieces = tuple(pieces)
        self._normaliser = dict(normaliser or {})
        self._begin, self._end, self._unknown = begin, end, unknown
        self._scores = values.tolist()
        self._ids = dict(zip(self.pieces, range(len(self.pieces)), strict=True))
        for control in (*np.flatnonzero(values >= 0).tolist(), unknown, begin, end):
            if control is not None:
                self._ids.pop(self.pieces[control], None)
        self._longest = max(map(len, self._ids), default=0)
        known = values[values < 0]
        self._unknown_score = float(known.min(initial=0.0)) - _UNKNOWN_PENALTY

    def __len__(self) -> int:
        """How many pieces the vocabulary has."""
        return len(self.pieces)

    def encode(self, text: str, limit: int | None = None) -> tuple[tuple[Token, ...], int]:
        """See `Tokenizer.encode`."""
        _check_text(text)
        around = [place for place in (self._begin, self._end) if place is not None]
        room = _room(limit, len(around))
        chars, starts, ends = self._normalise(text)
        if not chars:
            raise _nothing(text)
        path = self._path(chars)
        marks = []
        for id, a, b in path[:room]:
            piece = chars[a:b] if id == self._unknown else self.pieces[id]
            marks.append(_Mark(id, piece, *_span(chars, starts, ends, a, b)))
        tokens = _readable(text, marks, self._unknown, self.pieces[self._unknown])
        if self._begin is not None:
            tokens.insert(0, _special(self._begin, self.pieces[self._begin]))
        if self._end is not None:
            tokens.append(_special(self._end, self.pieces[self._end]))
        return tuple(tokens), len(path) - len(marks)

    def _normalise(self, text: str) -> tuple[str, list[int], list[int]]:
        """The characters that pieces are looked up in, and which of the text each came from."""
        chars: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        place = 0
        while place < len(text):
            stop = place + 1
            limit = min(len(text), place + _LONGEST_CLUSTER)
            while stop < limit and _joins(text[stop]):
                stop += 1
            for new, start, end in self._cluster(text, place, stop):
                for char in new:
                    if char != " ":
                        chars.append(char)
                        starts.append(start)
                        ends.append(end)
                    elif chars and chars[-1] != _SPACE:
                        chars.append(_SPACE)
                        starts.append(start)
                        ends.append(end)
                    elif chars:
                        ends[-1] = end
            place = stop
        if chars and chars[-1] == _SPACE:
            chars.pop()
        if not chars:
            return "", [], []
        return _SPACE + "".join(chars), [starts[0], *starts], [starts[0], *ends]

    def _cluster(self, text: str, start: int, stop: int) -> list[tuple[str, int, int]]:
        """A character and the marks on it, normalised: (new characters, start, end) in order."""
        get = self._normaliser.get
        parts = [(get(text[i], text[i]), i, i + 1) for i in range(start, stop)]
        if len(parts) == 1:
            return parts
        apart = "".join(new for new, _, _ in parts)
        together = normalize("NFC", apart)
        return parts if together == apart else [(together, start, stop)]

    def _path(self, chars: str) -> list[tuple[int, int, int]]:
        """The best path as (id, start, stop), neighbouring unknown characters as one."""
        count = len(chars)
        best = [-float("inf")] * (count + 1)
        best[0] = 0.0
        origin = [0] * (count + 1)
        taken = [self._unknown] * (count + 1)
        find, scores, longest = self._ids.get, self._scores, self._longest
        for start in range(count):
            base = best[start]
            if base + self._unknown_score > best[start + 1]:
                best[start + 1] = base + self._unknown_score
                origin[start + 1] = start
                taken[start + 1] = self._unknown
            for stop in range(start + 1, min(start + longest, count) + 1):
                found = find(chars[start:stop])
                if found is not None and base + scores[found] > best[stop]:
                    best[stop] = base + scores[found]
                    origin[stop] = start
                    taken[stop] = found
        path: list[tuple[int, int, int]] = []
        stop = count
        while stop > 0:
            start, found = origin[stop], taken[stop]
            if path and found == self._unknown == path[-1][0]:
                path[-1] = (found, start, path[-1][2])
            else:
                path.append((found, start, stop))
            stop = start
        return path[::-1]


class JsonTokenizer:
    """Any tokenizer.json, through the package `tokenizers`, which is imported here and not before.

    Parameters
    ----------
    path : str or path
        The file. Its own settings of padding and truncation are put aside.

    Raises
    ------
    UnavailableError
        The package is not installed.
    InvalidArgumentError
        No such file, or not one that the package reads.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        file = Path(path)
        if not file.is_file():
            raise InvalidArgumentError(
                "tokenizer.json", f"no file {str(file)!r}", "one that is there"
            )
        try:
            import tokenizers
        except ImportError as error:
            raise UnavailableError(
                "tokenizer.json",
                got="no package tokenizers, which reads it",
                expected="the package",
                cure='pip install "chumoku[bert]"',
            ) from error
        try:
            self._inner: Any = tokenizers.Tokenizer.from_str(file.read_text("utf-8"))
        except Exception as error:  # the package raises plain Exception
            raise InvalidArgumentError(
                "tokenizer.json", f"{str(file)!r} ({error})", "a file of the package tokenizers"
            ) from error
        self._settle()

    @classmethod
    def of(cls, inner: Any) -> JsonTokenizer:
        """A copy of a tokenizer of the package `tokenizers` that is there already."""
        made = cls.__new__(cls)
        made._inner = type(inner).from_str(inner.to_str())
        made._settle()
        return made

    def _settle(self) -> None:
        self._inner.no_truncation()
        self._inner.no_padding()
        named = getattr(self._inner.model, "unk_token", None)
        self._unknown: int | None = named and self._inner.token_to_id(named)
        self._unknown_piece = named or ""

    def __len__(self) -> int:
        """How many pieces the vocabulary has."""
        return int(self._inner.get_vocab_size())

    def encode(self, text: str, limit: int | None = None) -> tuple[tuple[Token, ...], int]:
        """See `Tokenizer.encode`."""
        _check_text(text)
        room = _room(limit, self._inner.num_special_tokens_to_add(False))
        inner = self._inner.encode(text, add_special_tokens=False)
        count = len(inner)
        if not count:
            raise _nothing(text)
        if room is not None:
            inner.truncate(room)
        cut = count - len(inner)
        whole = self._inner.post_process(inner)
        rows = list(
            zip(whole.ids, whole.tokens, whole.offsets, whole.special_tokens_mask, strict=True)
        )
        marks = []
        for id, piece, (start, end), special in rows:
            if not special:
                shown = text[start:end] if id == self._unknown else piece
                marks.append(_Mark(id, shown, *_trim(text, start, end)))
        read = iter(_readable(text, marks, self._unknown, self._unknown_piece))
        tokens = [_special(id, piece) if special else next(read) for id, piece, _, special in rows]
        return tuple(tokens), cut


def joined(text: str, tokens: Sequence[Token]) -> tuple[tuple[Token, ...], list[list[int]]]:
    """Tokens that share characters as one: the bytes of a character that has no token of its own.

    Returns
    -------
    tokens : tuple of Token
        With the id and piece of the first of those that were joined.
    groups : list of list of int
        Which of the tokens given each of them is made of.
    """
    found: list[Token] = []
    groups: list[list[int]] = []
    for place, token in enumerate(tokens):
        before = found[-1] if found else None
        if before and not (token.special or before.special) and token.start < before.end:
            end = max(before.end, token.end)
            shown = readable(text[before.start : end])
            found[-1] = replace(before, text=shown, end=end)
            groups[-1].append(place)
        else:
            found.append(token)
            groups.append([place])
    return tuple(found), groups


@dataclass(frozen=True, slots=True)
class _Mark:
    """A token before it can be read: id, piece, characters."""

    id: int
    piece: str
    start: int
    end: int


def _special(id: int, piece: str) -> Token:
    return Token(piece, id, -1, -1, special=True, piece=piece)


def _joins(char: str) -> bool:
    """Whether a character is a mark on the one before it, so that both are composed."""
    if char < "\u0300":
        return False
    # Conjoining vowels and finals of Hangul; half-width sound marks of katakana.
    return combining(char) != 0 or "\u1160" <= char <= "\u11ff" or char in "\uff9e\uff9f"


def _span(
    chars: str, starts: Sequence[int], ends: Sequence[int], start: int, stop: int
) -> tuple[int, int]:
    """Characters of the input that chars[start:stop] came from, without the spaces around."""
    while start < stop - 1 and chars[start] == _SPACE:
        start += 1
    while start < stop - 1 and chars[stop - 1] == _SPACE:
        stop -= 1
    return starts[start], ends[stop - 1]


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the spaces around it; as it is when there is nothing else."""
    inside = text[start:end].strip()
    if not inside:
        return start, end
    first = text.index(inside, start)
    return first, first + len(inside)


def _readable(
    text: str, marks: Sequence[_Mark], unknown: int | None, unknown_piece: str
) -> list[Token]:
    """Tokens with the text that a person reads."""
    tokens = []
    for place, mark in enumerate(marks):
        before = marks[place - 1].end if place else 0
        after = marks[place + 1].start if place + 1 < len(marks) else len(text)
        shared = mark.start < before or after < mark.end
        plain = mark.piece.replace(_SPACE, " ").removeprefix("##").strip()
        typed = text[mark.start : mark.end].strip()
        shown = readable(plain if shared else typed)
        missing = mark.id == unknown
        piece = unknown_piece if missing else mark.piece
        tokens.append(Token(shown, mark.id, mark.start, mark.end, False, piece, missing))
    return tokens


def readable(text: str) -> str:
    """A text that can be shown alone: nothing that moves the cursor, something to be seen."""
    kept = "".join(
        c for c in text if c in _JOINERS or category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
    )
    if not kept.strip(_JOINERS):
        return " ".join(f"U+{ord(c):04X}" for c in text) or "␣"
    return f"◌{kept}" if category(kept[0]).startswith("M") else kept


def _room(limit: int | None, around: int) -> int | None:
    """How many tokens of the text fit beside the special ones."""
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, (int, np.integer)):
        raise InvalidTypeError("limit", repr(limit), "a whole number of tokens")
    if limit <= around:
        expected = f"more than the {around} special tokens"
        raise InvalidArgumentError("limit", str(limit), expected)
    return int(limit) - around


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise InvalidTypeError("text", type(text).__name__, "a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            "text",
            got=f"U+{ord(text[error.start]):04X} at character {error.start}, half of a character",
            expected="Unicode text",
            cure="Was it read with the right encoding?",
        ) from None


def _nothing(text: str) -> InvalidArgumentError:
    if not text:
        got = "an empty text"
    elif text.isspace():
        got = "only spaces"
    else:
        got = "a text in which nothing can be seen"
    return InvalidArgumentError("text", got, "a text with at least one visible character")

"""Heads measured with gold syntax: which one looks where each relation of a treebank points.

After Clark et al. 2019 (What Does BERT Look At?), section 4.2: of each word the other word that a
head looks at most, against a fixed offset such as "the next word".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field, replace
from math import comb
from os import PathLike
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from chumoku.checks import has, shown, whole
from chumoku.errors import InvalidArgumentError, InvalidTypeError
from chumoku.heads.sentences import Sentence, read_treebank
from chumoku.heads.text import Floats, Index
from chumoku.heads.viewpoints import ENOUGH, interval

# What a word may look at: the word it depends on, or one that depends on it.
DIRECTIONS = ("governor", "dependent")
OFFSETS = 10
# Of all that is compared at once, how often "head" or "offset" may be said of mere chance.
LEVEL = 0.05

Bools: TypeAlias = NDArray[np.bool_]


class Piece(Protocol):
    """What is needed of a token; chumoku.tokens.Token has it."""

    @property
    def start(self) -> int: ...

    @property
    def end(self) -> int: ...

    @property
    def special(self) -> bool: ...

    @property
    def unknown(self) -> bool: ...


class Seen(Protocol):
    """What is needed of an encoded text; chumoku.models.Encoding has it.

    A decoder's is `causal`; its first token may count as special though it has characters.
    """

    @property
    def tokens(self) -> Sequence[Piece]: ...

    @property
    def truncated(self) -> int: ...

    @property
    def recording(self) -> Sized: ...

    def weights(self, layer: int) -> NDArray[Any]: ...


class Reader(Protocol):
    """What is needed of a model; chumoku.models.Encoder has it."""

    def encode(self, text: str) -> Seen: ...


@dataclass(frozen=True)
class Score:
    """How often a head, or an offset, finds the word, on the half that is scored.

    Attributes
    ----------
    right : int
    accuracy : float
        right / words.
    low, high : float
        95 % interval: that of `Measure`, over the words or over the sentences.
    """

    right: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Relation:
    """One relation in one direction: the best head, and the best offset beside it.

    Attributes
    ----------
    name : str
        "nsubj", ...
    looks_at : str
        "governor": from the dependent to the word it depends on. "dependent": from that word to
        one, any, that depends on it with this relation.
    chosen_on, words : int
        Words that look, in the half on which head and offset are chosen, and in the other.
    layer, head, offset : int
        The best of the half on which they are chosen. Offset 1 is the next word, -1 the previous.
    by_head, by_offset : Score
    hindsight : int
        The offset that would have been the best of the half that is scored.
    by_hindsight : Score
    chance : float
        What looking anywhere would give.
    ahead, behind : int
        Sentences in which the head is right more often than the offset, and less often.
    p : float
        Of an exact sign test of the two (McNemar's test with the sentence as its unit, for words
        of one sentence are not independent).
    p_hindsight : float
        The same of the head and the offset of hindsight.
    verdict : str
        "head": better than either offset, each p times the number of relations that are compared
        being below LEVEL; so no offset that was badly chosen makes a head look good. "offset":
        the one that was chosen is better. "even": neither. "few": less than ENOUGH words in one
        of the halves.
    accuracies : (layers, heads)
        Of all heads on the half that is scored. Choosing the largest of these would flatter it.
    """

    name: str
    looks_at: str
    chosen_on: int
    words: int
    layer: int
    head: int
    offset: int
    by_head: Score
    by_offset: Score
    hindsight: int
    by_hindsight: Score
    chance: float
    ahead: int
    behind: int
    p: float
    p_hindsight: float
    verdict: str
    accuracies: Floats = field(repr=False)


@dataclass(frozen=True)
class SyntaxMap:
    """The heads of a model over a treebank.

    Attributes
    ----------
    layers, heads : int
    offsets : tuple of int
        Those that were tried, the nearest first.
    sentences : int
        All of the treebank. Of them
    scored : int
        were scored: they have two places or more, and the model saw them whole,
    alone : int
        have one place to look at only,
    cut : int
        are longer than the model, and were left out,
    strange : int
        have words without a piece, or a text that does not spell the words, and were left out.
    words : int
        Of the sentences that were scored.
    joined : int
        Words that share a piece with another one: the model cannot tell them apart, so they are
        one place.
    inside : int
        Relations within such a place, which nobody can look along; not scored.
    unseen : int
        Directions of relations that a decoder cannot look in, to later words or to its first
        token, and that were not scored: there, heads and offsets choose among earlier words.
    unknown : int
        Words with a piece that the vocabulary lacks.
    compared : int
        Relations with a verdict, each direction for itself.
    entries : tuple of Relation
        Governors first, then dependents; the most frequent first.
    unmeasured : tuple of (name, looks_at)
        Relations that occur in one of the halves only.
    """

    layers: int
    heads: int
    offsets: tuple[int, ...]
    sentences: int
    scored: int
    alone: int
    cut: int
    strange: int
    words: int
    joined: int
    inside: int
    unseen: int
    unknown: int
    compared: int
    entries: tuple[Relation, ...]
    unmeasured: tuple[tuple[str, str], ...]

    def at(self, name: str, looks_at: str = "governor") -> Relation:
        """The entry of one relation in one direction."""
        for entry in self.entries:
            if (entry.name, entry.looks_at) == (name, looks_at):
                return entry
        known = ", ".join(entry.name for entry in self.entries if entry.looks_at == looks_at)
        expected = f"one of {known}" if known else f"looks_at one of {', '.join(DIRECTIONS)}"
        raise InvalidArgumentError("name", shown((name, looks_at)), expected)

    def counts(self) -> dict[str, int]:
        """How many relations have each verdict, each direction for itself."""
        found = [entry.verdict for entry in self.entries]
        return {verdict: found.count(verdict) for verdict in ("head", "offset", "even", "few")}


def treebank(
    encoder: Reader,
    sentences: str | PathLike[str] | Iterable[Sentence],
    *,
    offsets: int = OFFSETS,
) -> SyntaxMap:
    """How well each head looks along the relations of a treebank.

    Sentences are counted from 0. On those with even numbers the best head and the best offset of
    each relation are chosen, on the others they are scored.

    Weights are summed over the pieces of a word that is looked at and averaged over the pieces of
    a word that looks. Special tokens, pieces of no word and the word itself are then left out: of
    the other words the one with the largest weight is taken (of equal ones the first). An offset
    never takes the word itself either, nor a place beyond the ends: it always names another word.
    Of a decoder both choose among the words before, and only what stands there is scored.

    Words that share a piece are one place for heads and offsets alike: they look alike, either
    is found when the place is, and a relation between them is not scored.

    Parameters
    ----------
    encoder : Encoder
        `default_model()`, `load_model(folder)`, or anything with such an `encode`.
    sentences : path, or iterable of Sentence
        A file for `read_treebank`, or sentences, which are read one by one: only what was right
        is kept of each.
    offsets : int
        The offsets that are tried reach so far in both directions.

    Returns
    -------
    SyntaxMap

    Raises
    ------
    UnavailableError
        A file is given, and the package conllu is not installed.
    InvalidArgumentError, InvalidTypeError
        What `read_treebank` raises; no relation that could be scored; something that is no
        encoder or no sentence.
    """
    if isinstance(encoder, str) or not has(encoder, "encode"):  # a str has its own encode
        expected = "an encoder, as chumoku.models.default_model() gives one"
        raise InvalidTypeError("encoder", shown(encoder), expected)
    reach = whole("offsets", offsets, 1, 1000)
    tried = tuple(place for step in range(1, reach + 1) for place in (-step, step))
    tally = _Tally(tried)
    for number, sentence in enumerate(_sentences(sentences)):
        tally.add(encoder, sentence, number)
    return tally.result()


def _sentences(given: Any) -> Iterator[Sentence]:
    if isinstance(given, (str, PathLike)):
        yield from read_treebank(given)
        return
    expected = "the path of a CoNLL-U file, or sentences, as read_treebank(path) gives them"
    try:
        each = iter(given)
    except Exception as error:  # __iter__ may raise anything
        raise InvalidTypeError("sentences", shown(given), expected) from error
    for sentence in each:
        if not isinstance(sentence, Sentence):
            raise InvalidTypeError("sentences", shown(sentence), expected)
        yield sentence


# One sentence


def _encoded(encoder: Reader, text: str) -> Seen | None:
    """What the model saw; None when it found nothing to see in the text."""
    try:
        seen = encoder.encode(text)
    except InvalidArgumentError as error:
        if error.argument != "text":
            raise
        return None
    if not has(seen, "tokens", "truncated", "recording", "weights") or not len(seen.recording):
        expected = "one whose encode(text) gives tokens, truncated, recording and weights"
        raise InvalidTypeError("encoder", f"one that gives {shown(seen)}", expected)
    return seen


@dataclass(frozen=True)
class _Places:
    """What can be looked at: words, those together that share a piece.

    of (words,): the place of each word. member (tokens, places): 1.0 where a token is a piece of
    a place. unknown: words with an unknown piece. first, last (words,): each word may look at the
    words from first to before last, but not at those of its own place.
    """

    of: Index
    member: NDArray[np.float32]
    unknown: int
    first: Index
    last: Index

    def visible(self, looks: Index, at: Index) -> Bools:
        """Whether these words may look at those."""
        within = (self.first[looks] <= at) & (at < self.last[looks])
        return np.asarray(within & (self.of[looks] != self.of[at]))


def _places(
    spans: Sequence[tuple[int, int]], tokens: Sequence[Piece], causal: bool = False
) -> _Places | None:
    """The places of a sentence; None when a word has no piece."""
    begin, end = np.array(spans, np.int64).T
    first = np.array([token.start for token in tokens])
    last = np.array([token.end for token in tokens])
    overlap = (first[:, None] < end) & (begin < last[:, None])
    if not overlap.any(axis=0).all():
        return None
    together = (overlap[:, 1:] & overlap[:, :-1]).any(axis=0)
    of = np.concatenate([[0], np.cumsum(~together)])
    member = np.zeros((len(tokens), of[-1] + 1), np.float32)
    token, word = np.nonzero(overlap)
    member[token, of[word]] = 1.0
    missing = np.array([token.unknown for token in tokens], bool)
    low, high = np.zeros_like(of), np.full_like(of, len(of))
    if causal:
        # A decoder's first token is its sink, and counts as special though it is of a word.
        sinks = of[overlap[[token.special for token in tokens]].any(axis=0)]
        low[:] = np.searchsorted(of, sinks.max(initial=-1), side="right")
        high = np.searchsorted(of, of)
    return _Places(of, member, int(overlap[missing].any(axis=0).sum()), low, high)


def _by_heads(seen: Seen, places: _Places) -> Index:
    """The place that each word looks at most, by each head: (layers * heads, words)."""
    member = places.member
    average = (member / member.sum(axis=0)).T
    _, word = np.unique(places.of, return_index=True)
    hidden = ~places.visible(word[:, None], word)
    picks = []
    for layer in range(len(seen.recording)):
        weights = average @ np.asarray(seen.weights(layer), np.float32) @ member
        weights[:, hidden] = -1.0
        picks.append(weights.argmax(axis=-1))
    if len({len(layer) for layer in picks}) > 1:
        raise InvalidArgumentError("encoder", "layers of different heads", "as many in each")
    return np.concatenate(picks)[:, places.of]


def _by_offsets(places: _Places, offsets: tuple[int, ...]) -> Index:
    """The place that each offset names for each word: (offsets, words).

    In words, as whoever knows no model would count. Beyond the words that may be looked at the
    last of them is named; in place of one of the word's own place the next one that is not.
    """
    of, count = places.of, len(places.of)
    step = np.array(offsets)[:, None]
    word = np.clip(np.arange(count) + step, places.first, places.last - 1)
    before = np.searchsorted(of, of) - 1
    behind = np.searchsorted(of, of, side="right")
    onward = np.where(step > 0, behind, before)
    back = np.where(step > 0, before, behind)
    onward = np.where((onward >= 0) & (onward < count), onward, back)
    return np.asarray(of[np.where(of[word] == of, onward, word)])


@dataclass(frozen=True)
class _Rows:
    """Words of one sentence that look along a relation.

    keys: (relation, direction) of each. right (rows, rules). chance (rows,). inside: relations
    left out, for they are within a place; unseen: directions that the model cannot look in.
    """

    keys: list[tuple[str, str]]
    right: Bools
    chance: Floats
    inside: int
    unseen: int


def _rows(sentence: Sentence, places: _Places, picks: Index) -> _Rows:
    of, governors = places.of, np.array(sentence.governors)
    below = np.flatnonzero(governors >= 0)
    apart = of[below] != of[governors[below]]
    inside, below = int((~apart).sum()), below[apart]
    word = np.arange(len(of))
    pairs = places.visible(word[:, None], word)
    choice = [len(set(of[row].tolist())) for row in pairs]
    unseen = 0
    keys: list[tuple[str, str]] = []
    chance: list[float] = []
    columns: list[Bools] = []
    # From a governor any of its dependents with the relation will do.
    group: dict[tuple[int, str], list[int]] = {}
    for dependent in below.tolist():
        governor, relation = sentence.governors[dependent], sentence.relations[dependent]
        unseen += int(not pairs[dependent, governor]) + int(not pairs[governor, dependent])
        if pairs[dependent, governor]:
            keys.append((relation, "governor"))
            chance.append(1.0 / choice[dependent])
            columns.append(picks[:, dependent] == of[governor])
        if pairs[governor, dependent]:
            group.setdefault((governor, relation), []).append(int(of[dependent]))
    for (governor, relation), wanted in group.items():
        keys.append((relation, "dependent"))
        chance.append(len(set(wanted)) / choice[governor])
        columns.append(np.isin(picks[:, governor], wanted))
    right = np.array(columns, bool).reshape(len(columns), len(picks))
    return _Rows(keys, right, np.array(chance), inside, unseen)


# All sentences


class _Tally:
    """What is kept of the sentences: which rule was right for which word."""

    def __init__(self, offsets: tuple[int, ...]) -> None:
        self.offsets = offsets
        self.shape: tuple[int, int] | None = None  # layers, heads
        self.count = dict.fromkeys(
            ("scored", "alone", "cut", "strange", "words", "joined", "inside", "unseen", "unknown"),
            0,
        )
        self.sentences = 0
        self.keys: dict[tuple[str, str], int] = {}
        self.key: list[int] = []
        self.sentence: list[int] = []
        self.right: list[Bools] = []
        self.chance: list[Floats] = []

    def add(self, encoder: Reader, sentence: Sentence, number: int) -> None:
        """Read one sentence."""
        self.sentences += 1
        if sentence.spans is None:
            self.count["strange"] += 1
            return
        if len(sentence.words) < 2:
            self.count["alone"] += 1
            return
        seen = _encoded(encoder, sentence.text)
        if seen is None:
            self.count["strange"] += 1
            return
        if seen.truncated:
            self.count["cut"] += 1
            return
        causal = bool(getattr(seen, "causal", False))
        places = _places(sentence.spans, seen.tokens, causal)
        if places is None:
            self.count["strange"] += 1
            return
        if places.of[-1] == 0:
            self.count["alone"] += 1
            return
        ours = _by_heads(seen, places)
        shape = len(seen.recording), len(ours) // len(seen.recording)
        if self.shape not in (None, shape):
            raise InvalidArgumentError("encoder", "layers and heads that change", "one model")
        self.shape = shape
        theirs = _by_offsets(places, self.offsets)
        rows = _rows(sentence, places, np.concatenate([ours, theirs]))
        _, sizes = np.unique(places.of, return_counts=True)
        self.count["scored"] += 1
        self.count["words"] += len(sentence.words)
        self.count["joined"] += int(sizes[sizes > 1].sum())
        self.count["inside"] += rows.inside
        self.count["unseen"] += rows.unseen
        self.count["unknown"] += places.unknown
        self.key += [self.keys.setdefault(key, len(self.keys)) for key in rows.keys]
        self.sentence += [number] * len(rows.keys)
        self.right.append(rows.right)
        self.chance.append(rows.chance)

    def result(self) -> SyntaxMap:
        """Head and offset of each relation, chosen on one half and scored on the other."""
        if not self.key or self.shape is None:
            told = ", ".join(f"{self.count[name]} {name}" for name in ("alone", "cut", "strange"))
            got = f"{self.sentences} sentences, none of which can be scored ({told})"
            expected = "sentences of two words or more that the model takes whole"
            raise InvalidArgumentError("sentences", got, expected)
        right, chance = np.concatenate(self.right), np.concatenate(self.chance)
        key, sentence = np.array(self.key), np.array(self.sentence)
        found: list[Relation] = []
        unmeasured = []
        for name, number in self.keys.items():
            rows = key == number
            chosen, scored = rows & (sentence % 2 == 0), rows & (sentence % 2 == 1)
            if not (chosen.any() and scored.any()):
                unmeasured.append(name)
                continue
            found.append(
                self._relation(name, right[chosen], right[scored], sentence[scored], chance[scored])
            )
        if not found:
            got = f"{self.sentences} sentences, in which no relation occurs in both halves"
            raise InvalidArgumentError("sentences", got, "a treebank of more sentences")
        compared = sum(entry.verdict != "few" for entry in found)
        found.sort(key=lambda entry: (DIRECTIONS.index(entry.looks_at), -entry.words, entry.name))
        return SyntaxMap(
            *self.shape,
            offsets=self.offsets,
            sentences=self.sentences,
            **self.count,
            compared=compared,
            entries=tuple(_judged(entry, compared) for entry in found),
            unmeasured=tuple(sorted(unmeasured)),
        )

    def _relation(
        self, key: tuple[str, str], chosen: Bools, right: Bools, sentence: Index, chance: Floats
    ) -> Relation:
        """One relation, its verdict "few" or still open."""
        assert self.shape is not None
        layers, heads = self.shape
        rules = layers * heads
        on = chosen.sum(axis=0)
        best, offset = int(on[:rules].argmax()), int(on[rules:].argmax())
        late = int(right[:, rules:].sum(axis=0).argmax())
        ours, theirs, latest = (right[:, n] for n in (best, rules + offset, rules + late))
        ahead, behind = _sentences_won(ours, theirs, sentence)
        enough = min(len(chosen), len(right)) >= ENOUGH
        return Relation(
            name=key[0],
            looks_at=key[1],
            chosen_on=len(chosen),
            words=len(right),
            layer=best // heads,
            head=best % heads,
            offset=self.offsets[offset],
            by_head=_score(ours, sentence),
            by_offset=_score(theirs, sentence),
            hindsight=self.offsets[late],
            by_hindsight=_score(latest, sentence),
            chance=float(chance.mean()),
            ahead=ahead,
            behind=behind,
            p=_sign_test(ahead, behind),
            p_hindsight=_sign_test(*_sentences_won(ours, latest, sentence)),
            verdict="" if enough else "few",
            accuracies=right[:, :rules].mean(axis=0).reshape(layers, heads),
        )


def _score(right: Bools, sentence: Index) -> Score:
    low, high = interval(right.astype(np.float64), sentence, (0.0, 1.0))
    return Score(int(right.sum()), float(right.mean()), low, high)


def _sentences_won(ours: Bools, theirs: Bools, sentence: Index) -> tuple[int, int]:
    """In how many sentences the one is right more often, and less often."""
    _, of = np.unique(sentence, return_inverse=True)
    difference = np.bincount(of, ours.astype(np.float64) - theirs)
    return int((difference > 0).sum()), int((difference < 0).sum())


def _sign_test(ahead: int, behind: int) -> float:
    """Two-sided p of so many and so few out of throws of a fair coin."""
    throws = ahead + behind
    tail = sum(comb(throws, fewer) for fewer in range(min(ahead, behind) + 1))
    return float(min(1.0, 2 * tail / 2**throws))


def _judged(entry: Relation, compared: int) -> Relation:
    """The entry with its verdict: Bonferroni's correction for all that are compared."""
    if entry.verdict == "few":
        return entry
    head, offset, late = entry.by_head.right, entry.by_offset.right, entry.by_hindsight.right
    verdict = "even"
    if max(entry.p, entry.p_hindsight) * compared < LEVEL and head > late:
        verdict = "head"
    elif entry.p * compared < LEVEL and offset > head:
        verdict = "offset"
    return replace(entry, verdict=verdict)

"""Viewpoints: what each head of an encoder looks at, how sure that is, over how many tokens.

A role is claimed when its measure passes a bar, not when it is the largest of several. Every
measure comes with an interval, with what a head would give that looks at all tokens alike, and
with the number of rows it rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from math import isnan, log, nan, sqrt
from statistics import NormalDist
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from chumoku.errors import InvalidArgumentError

Floats = NDArray[np.float64]
Index = NDArray[np.int64]

# Clark et al. 2019 (What Does BERT Look At?), sections 3.1 to 3.3, from the authors' notebook.
OFFSET = 0.5  # previous, next; also used for self, same token, near and far
SPECIAL = 0.6
BROAD = 3.8  # nats, seen on segments of 128 tokens

# Of ln(tokens), the share that BROAD is on those segments: short texts cannot reach 3.8 nats.
BROAD_SHARE = BROAD / log(128)

# A head follows meaning when the rank correlation is this much above what its weights have with
# the similarities of other tokens. 144 random heads on a text of 24 tokens stay below 0.14, and
# so do the default model's heads on 18 when the words' embeddings are exchanged.
MEANING = 0.2

# Fewest keys that a row's rank correlation is taken over: with fewer, one swap decides it.
CANDIDATES = 6

NEAR = 2  # tokens: near is up to this distance
FAR = 5  # far is beyond this one

# With so many rows the 95 % interval of the worst case (half zeros, half ones) is +-0.2.
ENOUGH = 20

MIXED = "mixed"

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Measure:
    """One measure of one head: a mean over rows, and how well it is known.

    Attributes
    ----------
    value : float
        Mean over the rows; nan when no row has the measure.
    error : float
        Standard error of the mean.
    low, high : float
        95 % interval. That of Agresti and Coull (1998), written for values between two bounds:
        z^2 / 2 rows at each bound are added, so that few rows that agree do not look certain.
        Rows of one text are not independent; with several texts the error is the larger of that
        over rows and that over texts.
    chance : float
        What a head that looks at all tokens alike gives on the same rows. For meaning: what the
        same weights give with the similarities of other tokens. For broad and entropy: 0.
    bar : float
        What `value` must pass for the role to be claimed; nan for a measure that is no role.
    rows : int
        Tokens that the mean rests on.
    beyond_chance : bool
        Whether chance stays below the interval. For meaning, which is large by chance in some
        of many heads, the interval is first widened for all heads at once (Bonferroni).
    """

    value: float
    error: float
    low: float
    high: float
    chance: float
    bar: float
    rows: int
    beyond_chance: bool

    @property
    def score(self) -> float:
        """How far from chance (0) to the bar (1); nan where the two are one (a text of a word)."""
        span = self.bar - self.chance
        return (self.value - self.chance) / span if span else nan

    @property
    def reached(self) -> bool:
        """The role may be claimed."""
        return self.value > self.bar and self.beyond_chance

    @property
    def clear(self) -> bool:
        """The whole interval is above the bar."""
        return self.low > self.bar


@dataclass(frozen=True)
class HeadRole:
    """What one head looks at.

    Attributes
    ----------
    layer, head : int
    role : str
        A name of ROLES, or "mixed" when no bar is passed.
    certainty : str
        "sure": the interval does not hold the bar (for "mixed": no interval reaches its bar).
        "likely": it does. "undecided": it does, and fewer than ENOUGH rows were seen; "mixed"
        is never more than undecided on so few.
    measures : dict of Measure
        Of every role, claimed or not, and of "distance" (mean distance in tokens) and "entropy"
        (nats).
    runner_up : str
        The role that comes next, by score; "" when nothing could be measured.
    margin : float
        The role's score less the runner-up's; for "mixed" what the runner-up lacks to its bar.
        Negative when a more particular role goes before a broader one with a larger score.
    left_out : float
        Mean weight of the rows on special tokens that this view leaves out; 0 in the raw view.
    """

    layer: int
    head: int
    role: str
    certainty: str
    measures: dict[str, Measure]
    runner_up: str
    margin: float
    left_out: float

    @property
    def measure(self) -> Measure | None:
        """The measure of the role; None for "mixed"."""
        return self.measures.get(self.role)


@dataclass(frozen=True)
class HeadMap:
    """Every head of an encoder.

    Attributes
    ----------
    special : bool
        True: the raw view. False: special tokens left out, rows renormalised.
    layers, heads, texts : int
    tokens : int
        Rows that were seen: the words of all texts.
    entries : tuple of HeadRole
        Layer by layer, head by head.
    """

    special: bool
    layers: int
    heads: int
    texts: int
    tokens: int
    entries: tuple[HeadRole, ...]

    def at(self, layer: int, head: int) -> HeadRole:
        """The entry of one head, both numbers from 0."""
        if not (0 <= layer < self.layers and 0 <= head < self.heads):
            raise InvalidArgumentError(
                "layer, head",
                got=f"{layer}, {head}",
                expected=f"layers 0 to {self.layers - 1}, heads 0 to {self.heads - 1}",
            )
        return self.entries[layer * self.heads + head]

    def counts(self) -> dict[str, int]:
        """How many heads have each role, in the order of ROLES, "mixed" last."""
        found = [entry.role for entry in self.entries]
        return {name: found.count(name) for name in (*(role.name for role in ROLES), MIXED)}


class Word(Protocol):
    """What is needed of a token; chumoku.tokens.Token has it."""

    @property
    def text(self) -> str: ...

    @property
    def id(self) -> int: ...

    @property
    def special(self) -> bool: ...


class Encoded(Protocol):
    """What is needed of an encoded text; chumoku.models.Encoding has it."""

    @property
    def tokens(self) -> Sequence[Word]: ...

    @property
    def embeddings(self) -> NDArray[Any]:
        """(tokens, width): the tokens' input embeddings, without positions."""

    @property
    def recording(self) -> Sized:
        """One entry for each layer."""

    def weights(self, layer: int) -> NDArray[Any]:
        """(heads, tokens, tokens) of one layer, exact."""


def viewpoints(encodings: Encoded | Iterable[Encoded], *, special: bool = True) -> HeadMap:
    """The role of each head over one or several encoded texts.

    Parameters
    ----------
    encodings : Encoding or sequence of Encoding
        Of one encoder. One layer's weights are held at a time.
    special : bool
        Rows are those of the words in both views. True: over all keys, as the model has them.
        False: without the special tokens' keys, the rest of each row made to sum to 1.

    Returns
    -------
    HeadMap

    Raises
    ------
    InvalidArgumentError
        No text, a text without a token in this view, texts of different encoders.
    """
    one = hasattr(encodings, "recording")
    texts = [cast(Encoded, encodings)] if one else list(cast(Iterable[Encoded], encodings))
    if not texts:
        raise InvalidArgumentError("encodings", "no text", "one encoded text or more")
    layers = len(texts[0].recording)
    if any(len(text.recording) != layers for text in texts):
        raise InvalidArgumentError("encodings", "texts of several encoders", "of one encoder")
    prepared = [_prepare(text, special) for text in texts]
    entries: list[HeadRole] = []
    for layer in range(layers):
        pairs = zip(prepared, texts, strict=True)
        views = [text.view(encoding.weights(layer)) for text, encoding in pairs]
        if len({len(view.weights) for view in views}) > 1:
            raise InvalidArgumentError("encodings", "texts of several encoders", "of one encoder")
        entries += _layer(layer, views, layers)
    tokens = sum(len(text.rows) for text in prepared)
    heads = len(entries) // max(layers, 1)
    return HeadMap(special, layers, heads, len(texts), tokens, tuple(entries))


# One text, and one layer of it


@dataclass(frozen=True)
class Similarity:
    """Which keys each row's meaning is judged by, and their similarity.

    rows (r,): which of the view's rows have enough candidates. words (w,): which of its keys are
    words. candidate (r, w): neither the token itself, nor a neighbour, nor a copy. ranks
    (r, w): ranks of the cosine similarity, centred, of norm 1, and 0 outside the candidates.
    """

    rows: Index
    words: Index
    candidate: NDArray[np.bool_]
    ranks: Floats


@dataclass(frozen=True)
class Text:
    """What is the same for all layers of one text.

    rows (r,), keys (n,): places in the text of the view's rows, the words, and of its keys.
    special (n,): which keys are special tokens. same (r, n): which keys are copies of the row's
    word. distance (r, n), in tokens.
    """

    rows: Index
    keys: Index
    special: NDArray[np.bool_]
    same: NDArray[np.bool_]
    distance: Index
    similarity: Similarity

    def view(self, weights: NDArray[Any]) -> View:
        """One layer's weights as this view shows them."""
        seen = np.asarray(weights[:, self.rows], dtype=np.float64)
        if len(self.keys) == seen.shape[-1]:
            return View(self, seen, np.zeros(seen.shape[:2]))
        kept = seen[..., self.keys]
        mass = kept.sum(axis=-1, keepdims=True)
        with np.errstate(invalid="ignore"):  # nan where nothing is left of a row
            return View(self, kept / mass, seen.sum(axis=-1) - mass[..., 0])


@dataclass(frozen=True)
class View:
    """One layer of one text: weights (heads, r, n), left_out (heads, r)."""

    text: Text
    weights: Floats
    left_out: Floats


def _prepare(encoding: Encoded, special: bool) -> Text:
    tokens = encoding.tokens
    is_special = np.array([token.special for token in tokens], dtype=bool)
    rows = np.flatnonzero(~is_special)
    if not rows.size:
        raise InvalidArgumentError(
            "encodings", "a text without a word", "one word or more", "Encode a longer text."
        )
    keys = np.arange(len(tokens)) if special else rows
    # The text beside the number: different unknown words share a number.
    names = {name: n for n, name in enumerate({(token.id, token.text) for token in tokens})}
    name = np.array([names[token.id, token.text] for token in tokens])
    alike = name[rows, None] == name[keys]
    distance = np.asarray(np.abs(rows[:, None] - keys))
    words = np.flatnonzero(~is_special[keys])
    candidate = ((distance > 1) & ~alike)[:, words]
    similarity = _similarity(np.asarray(encoding.embeddings)[rows], words, candidate)
    return Text(rows, keys, is_special[keys], alike & (distance > 0), distance, similarity)


def _similarity(embeddings: NDArray[Any], words: Index, candidate: NDArray[np.bool_]) -> Similarity:
    enough = np.flatnonzero(candidate.sum(axis=-1) >= CANDIDATES)
    vectors = embeddings.astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)
    candidate = candidate[enough]
    return Similarity(enough, words, candidate, _ranks(vectors[enough] @ vectors.T, candidate))


def _ranks(values: NDArray[Any], candidate: NDArray[np.bool_]) -> Floats:
    """Ranks within each row's candidates, ties averaged, centred, of norm 1.

    A row whose values are all equal has no order: 0.
    """
    width = values.shape[-1]
    if not values.size:
        return np.zeros(values.shape)
    values = np.where(candidate, values, np.inf)
    order = np.argsort(values, axis=-1)
    ordered = np.take_along_axis(values, order, axis=-1)
    step = ordered[:, 1:] != ordered[:, :-1]
    edge = np.ones((len(values), 1), dtype=bool)
    place = np.arange(width)
    first = np.maximum.accumulate(np.where(np.hstack([edge, step]), place, 0), axis=-1)
    ends = np.where(np.hstack([step, edge]), place, width)
    last = np.minimum.accumulate(ends[:, ::-1], axis=-1)[:, ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2.0, axis=-1)
    mean = np.where(candidate, ranks, 0.0).sum(axis=-1) / np.maximum(candidate.sum(axis=-1), 1)
    ranks = np.where(candidate, ranks - mean[:, None], 0.0)
    norm = np.linalg.norm(ranks, axis=-1, keepdims=True)
    return np.asarray(np.divide(ranks, norm, out=np.zeros_like(ranks), where=norm > 0))


# The measures: a value for each row


@dataclass(frozen=True)
class Rows:
    """One measure on one view: values, chance and bar, each (heads, rows); bounds of a value."""

    values: Floats
    chance: Floats
    bar: Floats
    bounds: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(cls, values: Floats, chance: Any, bar: Any, high: float = 1.0) -> Rows:
        """Rows whose chance and bar are given for each row, or once for all."""
        chance = np.broadcast_to(chance, values.shape)
        return cls(values, chance, np.broadcast_to(bar, values.shape), (0.0, high))

    @classmethod
    def mass(cls, values: Floats, chance: Any, threshold: float) -> Rows:
        """A share of the weight.

        On short texts the threshold may be near chance: the bar is then half of the way from
        chance to everything.
        """
        return cls.of(values, chance, np.maximum(threshold, (1.0 + np.asarray(chance)) / 2.0))


def _at(view: View, offset: int) -> Rows:
    """The weight on the key at one offset, over the rows that have it."""
    rows, keys = np.nonzero(view.text.rows[:, None] + offset == view.text.keys)
    return Rows.mass(view.weights[:, rows, keys], 1.0 / len(view.text.keys), OFFSET)


def _previous(view: View) -> Rows:
    return _at(view, -1)


def _next(view: View) -> Rows:
    return _at(view, 1)


def _self(view: View) -> Rows:
    return _at(view, 0)


def _over(view: View, keys: NDArray[np.bool_], threshold: float = OFFSET) -> Rows:
    """The mass on a set of keys (n, n), over the rows for which it is neither none nor all."""
    chance = keys.mean(axis=-1)
    rows = np.flatnonzero((chance > 0) & (chance < 1))
    mass = np.einsum("hrk,rk->hr", view.weights[:, rows], keys[rows].astype(np.float64))
    return Rows.mass(mass, chance[rows], threshold)


def _same(view: View) -> Rows:
    """The mass on the other copies of a word."""
    return _over(view, view.text.same)


def _special(view: View) -> Rows:
    """The mass that words give to special tokens: the sink."""
    special = np.broadcast_to(view.text.special, view.text.distance.shape)
    return _over(view, special, SPECIAL)


def _near(view: View) -> Rows:
    return _over(view, view.text.distance <= NEAR)


def _far(view: View) -> Rows:
    return _over(view, view.text.distance > FAR)


def _meaning(view: View) -> Rows:
    """Spearman's correlation of a row's weights with the similarity of the tokens' embeddings.

    Some keys are like many others, and some keys are looked at by many rows: that alone makes a
    correlation. So the same weights are correlated with the other rows' similarities too; that
    is the chance, and each row's value is taken against its own.
    """
    known = view.text.similarity
    block = view.weights[:, known.rows[:, None], known.words]
    others = (known.ranks.sum(axis=0) - known.ranks) / max(len(known.rows) - 1, 1)
    values, chance = np.empty(block.shape[:2]), np.empty(block.shape[:2])
    for head, given in enumerate(block):
        ranks = _ranks(given, known.candidate)
        values[head] = (ranks * known.ranks).sum(axis=-1)
        chance[head] = (ranks * others).sum(axis=-1)
    values[np.isnan(block).any(axis=-1)] = nan
    mean = chance.mean(axis=-1, keepdims=True) if block.size else chance
    return Rows(values - chance + mean, chance, chance + MEANING, (-1.0, 1.0))


def _entropies(view: View) -> Floats:
    given = view.weights
    return -np.asarray((given * np.log(np.where(given > 0, given, 1.0))).sum(axis=-1))


def _broad(view: View) -> Rows:
    """The entropy as a share of its largest value, ln(tokens)."""
    most = log(len(view.text.keys))
    if most == 0.0:
        return Rows.of(np.empty((len(view.weights), 0)), 0.0, 0.0)
    return Rows.of(_entropies(view) / most, 0.0, min(BROAD / most, BROAD_SHARE))


def _entropy(view: View) -> Rows:
    return Rows.of(_entropies(view), 0.0, nan, log(len(view.text.keys)))


def _distance(view: View) -> Rows:
    far = view.text.distance.astype(np.float64)
    values = np.einsum("hrk,rk->hr", view.weights, far)
    return Rows.of(values, far.mean(axis=-1), nan, float(far.max()))


@dataclass(frozen=True)
class Role:
    """A name, and the measure behind it.

    holds: the more particular roles that this one includes. noisy: the measure is large by chance
    in some of many heads.
    """

    name: str
    measure: Callable[[View], Rows]
    holds: tuple[str, ...] = ()
    noisy: bool = False


# From the most particular to the most general: of two that are claimed, the first is said.
ROLES: tuple[Role, ...] = (
    Role("previous", _previous),
    Role("next", _next),
    Role("self", _self),
    Role("same", _same),
    Role("special", _special),
    Role("meaning", _meaning, noisy=True),
    Role("near", _near, holds=("previous", "next", "self")),
    Role("far", _far),
    Role("broad", _broad),
)

_FACTS = (Role("distance", _distance), Role("entropy", _entropy))


# From rows to roles


def _layer(layer: int, views: Sequence[View], layers: int) -> list[HeadRole]:
    """The roles of one layer's heads."""
    heads = len(views[0].weights)
    z_all = NormalDist().inv_cdf(1.0 - 0.025 / (heads * layers))
    measures = {
        role.name: _measures([role.measure(view) for view in views], z_all if role.noisy else _Z)
        for role in (*ROLES, *_FACTS)
    }
    left_out = np.concatenate([view.left_out for view in views], axis=-1).mean(axis=-1)
    return [
        _decide(
            layer, head, {name: of[head] for name, of in measures.items()}, float(left_out[head])
        )
        for head in range(heads)
    ]


def _measures(parts: Sequence[Rows], z: float) -> list[Measure]:
    """One measure for each head, over the rows of all texts."""
    values = np.concatenate([part.values for part in parts], axis=-1)
    chance = np.concatenate([part.chance for part in parts], axis=-1)
    bar = np.concatenate([part.bar for part in parts], axis=-1)
    text = np.repeat(np.arange(len(parts)), [part.values.shape[-1] for part in parts])
    bounds = min(part.bounds[0] for part in parts), max(part.bounds[1] for part in parts)
    result = []
    for head in range(len(values)):
        seen = ~np.isnan(values[head])
        if not seen.any():
            result.append(Measure(nan, nan, nan, nan, nan, nan, 0, False))
            continue
        of, even = values[head][seen], float(chance[head][seen].mean())
        middle, error = _estimate(of, text[seen], bounds)
        result.append(
            Measure(
                value=float(of.mean()),
                error=error,
                low=max(bounds[0], middle - _Z * error),
                high=min(bounds[1], middle + _Z * error),
                chance=even,
                bar=float(bar[head][seen].mean()),
                rows=int(seen.sum()),
                beyond_chance=middle - z * error > even,
            )
        )
    return result


def _estimate(values: Floats, text: Index, bounds: tuple[float, float]) -> tuple[float, float]:
    """Middle of the interval and its standard error: see Measure."""
    added = _Z**2 / 2.0
    rows = len(values) + 2.0 * added
    middle = (values.sum() + added * sum(bounds)) / rows
    squares = ((values - middle) ** 2).sum()
    squares += added * ((bounds[0] - middle) ** 2 + (bounds[1] - middle) ** 2)
    variance = squares / rows**2
    texts = len(np.unique(text))
    if texts > 1:
        sums = np.bincount(text, values - values.mean())
        variance = max(variance, texts / (texts - 1) * (sums**2).sum() / len(values) ** 2)
    return float(middle), sqrt(variance)


def _decide(layer: int, head: int, measures: dict[str, Measure], left_out: float) -> HeadRole:
    """The first clear role; failing that the first claimed; failing that mixed."""
    claimed = [role for role in ROLES if measures[role.name].reached]
    claimed.sort(key=lambda role: not measures[role.name].clear)
    known = {role.name: measures[role.name].score for role in ROLES}
    known = {name: score for name, score in known.items() if not isnan(score)}
    if claimed:
        name = claimed[0].name
        certainty = _certainty(measures[name].clear, measures[name].rows)
        own = known.pop(name)
        for role in ROLES:
            if name in role.holds:
                known.pop(role.name, None)
    else:
        name, own = MIXED, 1.0
        below = all(measures[other].high <= measures[other].bar for other in known)
        rows = measures["entropy"].rows
        certainty = _certainty(below and rows >= ENOUGH, rows)
    runner_up = max(known, key=lambda other: known[other], default="")
    margin = own - known[runner_up] if runner_up else nan
    return HeadRole(layer, head, name, certainty, measures, runner_up, margin, left_out)


def _certainty(clear: bool, rows: int) -> str:
    if clear:
        return "sure"
    return "likely" if rows >= ENOUGH else "undecided"

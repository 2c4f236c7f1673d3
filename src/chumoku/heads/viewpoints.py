"""Viewpoints: what each head of an encoder looks at, how sure that is, over how many tokens.

A role is claimed when its measure passes a bar, not when it is the largest of several. Every
measure comes with an interval, with what a head would give that looks at all tokens alike, and
with the number of rows it rests on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt
from statistics import NormalDist
from typing import cast

import numpy as np

from chumoku.checks import flag, has, list_of, shown, whole
from chumoku.errors import InvalidArgumentError, InvalidTypeError
from chumoku.heads.roles import FACTS, ROLES, Rows
from chumoku.heads.text import Encoded, Floats, Index, View, prepare

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
        layer = whole("layer", layer, 0, self.layers - 1)
        head = whole("head", head, 0, self.heads - 1)
        return self.entries[layer * self.heads + head]

    def counts(self) -> dict[str, int]:
        """How many heads have each role, in the order of ROLES, "mixed" last."""
        found = [entry.role for entry in self.entries]
        return {name: found.count(name) for name in (*(role.name for role in ROLES), MIXED)}


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
    InvalidArgumentError, InvalidTypeError
        No text, a text without a token in this view, texts of different encoders; something that
        is no encoded text.
    """
    special, texts = flag("special", special), _texts(encodings)
    if not texts:
        raise InvalidArgumentError("encodings", "no text", "one encoded text or more")
    layers = len(texts[0].recording)
    if any(len(text.recording) != layers for text in texts):
        raise InvalidArgumentError("encodings", "texts of several encoders", "of one encoder")
    prepared = [prepare(text, special) for text in texts]
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


def _texts(encodings: Encoded | Iterable[Encoded]) -> list[Encoded]:
    """One encoded text or several, each with what is needed of it."""
    expected = "encoded texts, as encoder.encode(text) gives them"
    one = has(encodings, "recording")
    texts: list[Encoded] = (
        [cast(Encoded, encodings)] if one else list_of("encodings", encodings, expected)
    )
    for text in texts:
        if not has(text, "tokens", "embeddings", "recording", "weights"):
            raise InvalidTypeError("encodings", shown(text), expected)
    return texts


# From rows to roles


def _layer(layer: int, views: Sequence[View], layers: int) -> list[HeadRole]:
    """The roles of one layer's heads."""
    heads = len(views[0].weights)
    z_all = NormalDist().inv_cdf(1.0 - 0.025 / (heads * layers))
    measures = {
        role.name: _measures([role.measure(view) for view in views], z_all if role.noisy else _Z)
        for role in (*ROLES, *FACTS)
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


def interval(values: Floats, text: Index, bounds: tuple[float, float]) -> tuple[float, float]:
    """The 95 % interval of `Measure`, of values that come from these texts."""
    middle, error = _estimate(values, text, bounds)
    return max(bounds[0], middle - _Z * error), min(bounds[1], middle + _Z * error)


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

"""Roles of heads, and the measure behind each: a value for each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chumoku.heads.text import Floats, View, ranks_of

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

NEAR = 2  # tokens: near is up to this distance
FAR = 5  # far is beyond this one


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
    """The weight on the key at one offset, over the rows that may look there or elsewhere."""
    there = view.text.rows[:, None] + offset == view.text.keys
    rows, keys = np.nonzero(there & view.text.visible & _free(view)[:, None])
    return Rows.mass(view.weights[:, rows, keys], 1.0 / view.text.choice[rows], OFFSET)


def _free(view: View) -> NDArray[np.bool_]:
    """The rows that have a choice; all but the first of a decoder, if there are two keys."""
    return (view.text.choice > 1) | (len(view.text.keys) == 1)


def _previous(view: View) -> Rows:
    return _at(view, -1)


def _next(view: View) -> Rows:
    return _at(view, 1)


def _self(view: View) -> Rows:
    return _at(view, 0)


def _over(view: View, keys: NDArray[np.bool_], threshold: float = OFFSET) -> Rows:
    """The mass on a set of keys (n, n), over the rows for which it is neither none nor all."""
    chance = (keys & view.text.visible).sum(axis=-1) / view.text.choice
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
        ranks = ranks_of(given, known.candidate)
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
    rows = np.flatnonzero(view.text.choice > 1)
    most = np.log(view.text.choice[rows])
    return Rows.of(_entropies(view)[:, rows] / most, 0.0, np.minimum(BROAD / most, BROAD_SHARE))


def _entropy(view: View) -> Rows:
    return Rows.of(_entropies(view), 0.0, nan, log(len(view.text.keys)))


def _distance(view: View) -> Rows:
    far = view.text.distance.astype(np.float64)
    values = np.einsum("hrk,rk->hr", view.weights, far)
    chance = (far * view.text.visible).sum(axis=-1) / view.text.choice
    return Rows.of(values, chance, nan, float(far.max()))


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

FACTS = (Role("distance", _distance), Role("entropy", _entropy))

"""Dropout that depends on absolute indices alone, so that any tile can make its own part again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from chumoku.checks import real, shown, whole
from chumoku.errors import InvalidArgumentError

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Dropout:
    """Weights set to zero at random, the rest divided by 1 - rate; the same for any tiling.

    The random numbers are Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy
    as 1, 2, 3") at counter (key // 4, query, head, batch entry) and key (seed), so that each
    weight's fate depends on its absolute indices alone.

    Parameters
    ----------
    rate : float
        Share of the weights that is dropped, 0 <= rate < 1.
    seed : int
        0 <= seed < 2**64.
    """

    rate: float
    seed: int

    def __post_init__(self) -> None:
        rate = real("rate", self.rate)
        if not 0.0 <= rate < 1.0:
            expected = "a number from 0 up to 1, 1 not included"
            raise InvalidArgumentError("rate", shown(rate), expected)
        object.__setattr__(self, "rate", rate)
        object.__setattr__(self, "seed", whole("seed", self.seed, 0, 2**64 - 1))

    def kept(self, batch: tuple[int, ...], heads: int, rows: Ints, keys: Ints) -> Bools:
        """Which weights stay, shape (*batch, heads, len(rows), len(keys))."""
        entries = np.arange(prod(batch)).reshape(*batch, 1, 1, 1)
        counter = np.broadcast_arrays(
            keys // 4, rows[:, None], np.arange(heads).reshape(-1, 1, 1), entries
        )
        words = _philox([c.astype(np.uint64) for c in counter], self.seed)
        lane = np.broadcast_to(keys % 4, words[0].shape)
        return np.asarray(np.choose(lane, words) >= np.uint64(round(self.rate * 2**32)))


def _philox(counter: Sequence[NDArray[np.uint64]], seed: int) -> list[NDArray[np.uint64]]:
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (c & low for c in counter)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]

"""The sizes of a call, as masks want them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chumoku.errors import InvalidArgumentError

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# No position lies beyond; sums of positions, offsets and window sides stay inside int64.
FARTHEST = 2**60


@dataclass(frozen=True)
class Shape:
    """What a mask must know of a call: the sizes, and where the valid lengths end.

    `key_end` and `query_end` have the batch's shape and are refined by `Lengths` joined with `&`.
    """

    batch: tuple[int, ...]
    heads: int
    queries: int
    keys: int
    key_end: Ints = field(default_factory=lambda: np.zeros(0, np.int64), compare=False)
    query_end: Ints = field(default_factory=lambda: np.zeros(0, np.int64), compare=False)

    def __post_init__(self) -> None:
        for name, length in (("key_end", self.keys), ("query_end", self.queries)):
            if getattr(self, name).size == 0:
                object.__setattr__(self, name, np.full(self.batch, length, np.int64))

    def offset(self, given: Any) -> Ints:
        """Key position of query 0, shape `batch`: by default the last query meets the last key."""
        if given is None:
            return self.key_end - self.query_end
        return broadcast(given, self.batch, "offset")

    def positions(self, rows: Ints, given: Any) -> Ints:
        """Where each of `rows` stands among the keys: (*batch, 1, rows, 1)."""
        return np.asarray(rows[:, None] + self.offset(given)[..., None, None, None])


def broadcast(
    values: Any,
    shape: tuple[int, ...],
    argument: str,
    cure: str = "Give one value for all, or one for each batch entry.",
) -> NDArray[Any]:
    """Broadcast an array to `shape` or say which argument does not fit."""
    try:
        return np.broadcast_to(values, shape)
    except ValueError:
        expected = f"a shape that broadcasts to {shape}"
        raise InvalidArgumentError(argument, f"shape {values.shape}", expected, cure) from None

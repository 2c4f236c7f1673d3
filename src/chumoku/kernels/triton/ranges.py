"""Which keys blocks of rows see at all, and which all of their rows see, from a lowered mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chumoku.mask import Band, Joined, Lowered, Runs, Shape

Ints = NDArray[np.int64]


def ranges(lowered: Lowered | None, shape: Shape, edges: Ints) -> Ints:
    """First key, first and end of what all see, end: (entries or 1, blocks of rows, 4).

    Blocks of rows lie between the edges.
    """
    hull, solid = _limits(lowered, shape, edges[:-1], edges[1:])
    first_key, last_key = _sorted(hull)
    inner, outer = _sorted(solid)
    return np.stack(np.broadcast_arrays(first_key, inner, outer, last_key), axis=-1)


def _sorted(limits: Ints) -> tuple[Ints, Ints]:
    """First and end, both 0 where nothing is between them."""
    there = limits[..., 0] < limits[..., 1]
    return np.where(there, limits[..., 0], 0), np.where(there, limits[..., 1], 0)


def _limits(lowered: Lowered | None, shape: Shape, first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """The smallest range of keys that rows [first, last) see, and one that each sees whole."""
    everything = np.broadcast_to([0, shape.keys], (1, first.size, 2))
    nothing = np.zeros_like(everything)
    match lowered:
        case None:
            return everything, everything
        case Band():
            return _of_band(lowered, shape, first, last)
        case Runs(start, stop):
            if not start.shape[-1] or not first.size:
                return nothing, nothing
            there = start < stop
            low = np.where(there, start, shape.keys).min(axis=-1)
            high = np.where(there, stop, 0).max(axis=-1)
            hull = _pair(
                np.minimum.reduceat(low, first, axis=1), np.maximum.reduceat(high, first, axis=1)
            )
            if start.shape[-1] > 1:
                return hull, np.zeros_like(hull)
            inner = np.maximum.reduceat(start[..., 0], first, axis=1)
            return hull, _pair(inner, np.minimum.reduceat(stop[..., 0], first, axis=1))
        case Joined(parts, every):
            found = [_limits(part, shape, first, last) for part in parts]
            hulls, solids = ([both[which] for both in found] for which in (0, 1))
            if every:
                return _within(hulls), _within(solids)
            return _around(hulls, shape), _largest(solids)
        case _:
            return everything, nothing


def _of_band(band: Band, shape: Shape, first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """The ranges of a band: its rows see one run of keys each, and the runs move with the rows."""
    fields = (field[:, None] for field in vars(band).values())
    row_start, row_stop, key_start, key_stop, low, high = fields
    begin, end = np.maximum(first, row_start), np.minimum(last, row_stop)
    there, whole = begin < end, (begin == first) & (end == last)
    pairs = []
    for start, stop, valid in (
        (begin + low, end + high, there),
        (end - 1 + low, begin + high + 1, whole),
    ):
        start = np.clip(np.maximum(start, key_start), 0, shape.keys)
        stop = np.clip(np.minimum(stop, key_stop), 0, shape.keys)
        pairs.append(_pair(start, np.where(valid, stop, 0)))
    return pairs[0], pairs[1]


def _pair(low: Ints, high: Ints) -> Ints:
    """Ranges of two arrays that may lack one another's entries."""
    return np.stack(np.broadcast_arrays(low, high), axis=-1)


def _within(parts: Sequence[Ints]) -> Ints:
    """What lies in all of the ranges."""
    both = np.broadcast_arrays(*parts)
    low = np.maximum.reduce([part[..., 0] for part in both])
    return _pair(low, np.minimum.reduce([part[..., 1] for part in both]))


def _around(parts: Sequence[Ints], shape: Shape) -> Ints:
    """What reaches over all of the ranges."""
    both = np.stack(np.broadcast_arrays(*parts))
    there = both[..., 0] < both[..., 1]
    low = np.where(there, both[..., 0], shape.keys).min(axis=0)
    return _pair(low, np.where(there, both[..., 1], 0).max(axis=0))


def _largest(parts: Sequence[Ints]) -> Ints:
    """The longest of the ranges."""
    both = np.stack(np.broadcast_arrays(*parts))
    which = (both[..., 1] - both[..., 0]).argmax(axis=0)
    longest: Ints = np.take_along_axis(both, which[None, ..., None], axis=0)[0]
    return longest

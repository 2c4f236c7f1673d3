"""Lowered masks: the forms that kernels walk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chumoku.mask.shape import Bools, Ints, Shape, broadcast

if TYPE_CHECKING:
    from chumoku.mask.base import Mask

# Rows whose visible keys fall into more runs than this are compared key by key instead
# (Equal): the lists of runs would grow with queries x keys.
MAX_RUNS = 8


@dataclass(frozen=True)
class Band:
    """Rows in [row_start, row_stop) see keys j in [key_start, key_stop) with low <= j - i <= high.

    Every field has shape (1,) or (entries,), one entry for each flattened batch index.
    """

    row_start: Ints
    row_stop: Ints
    key_start: Ints
    key_stop: Ints
    low: Ints
    high: Ints

    def __and__(self, other: Band) -> Band:
        # Starts and stops take turns.
        closer = (np.maximum, np.minimum) * 3
        limits = zip(closer, vars(self).values(), vars(other).values(), strict=True)
        return Band(*(pick(mine, theirs) for pick, mine, theirs in limits))


@dataclass(frozen=True)
class Runs:
    """Row i sees keys in [start, stop) of each of its runs: int64 (entries or 1, queries, runs)."""

    start: Ints
    stop: Ints


@dataclass(frozen=True)
class Equal:
    """Row i sees key j when their ids agree: int64 (entries or 1, queries) and (.., keys)."""

    query_ids: Ints
    key_ids: Ints


@dataclass(frozen=True)
class Boolean:
    """A boolean view of shape (*batch, heads, queries, keys); axes may have stride 0."""

    cells: Bools


@dataclass(frozen=True)
class Asked:
    """A mask whose `allowed` is to be asked block by block."""

    mask: Mask


@dataclass(frozen=True)
class Joined:
    """`all` of the parts must allow a key, or any of them."""

    parts: tuple[Lowered, ...]
    all: bool


Lowered = Band | Runs | Equal | Boolean | Asked | Joined


def flat(values: Ints, shape: Shape) -> Ints:
    """One number for each flattened batch entry, or a single one when all are equal."""
    entries = np.ascontiguousarray(broadcast(values, shape.batch, "mask")).reshape(-1)
    if entries.size > 1 and (entries == entries[0]).all():
        return entries[:1]
    return entries


def band(shape: Shape, **limits: Ints) -> Band:
    """The band with these limits, each of shape `batch`; the others leave everything in."""
    far = shape.queries + shape.keys + 1
    fields: dict[str, Ints] = {
        "row_start": np.zeros(1, np.int64),
        "row_stop": np.full(1, shape.queries, np.int64),
        "key_start": np.zeros(1, np.int64),
        "key_stop": np.full(1, shape.keys, np.int64),
        "low": np.full(1, -far, np.int64),
        "high": np.full(1, far, np.int64),
    }
    # Clipped, so that an offset near the ends of int64 cannot overflow when rows are added.
    fields.update({name: np.clip(flat(v, shape), -far, far) for name, v in limits.items()})
    return Band(**fields)


def documents(query_ids: Ints, key_ids: Ints) -> Runs | Equal:
    """The keys of a query's own id, for ids (entries, queries) and (entries, keys).

    All entries at once: the one loop is over the runs that a row may have.
    """
    starts = np.ones(key_ids.shape, np.bool_)
    starts[:, 1:] = key_ids[:, 1:] != key_ids[:, :-1]
    entry, start = np.nonzero(starts)
    if not start.size:
        none = np.zeros((*query_ids.shape, 0), np.int64)
        return Runs(none, none)
    # A run ends where the next one of its entry starts.
    last = np.append(entry[1:] != entry[:-1], True)
    stop = np.where(last, key_ids.shape[1], np.append(start[1:], 0))
    # An entry and an id make one number, by which the runs are sorted and the queries look.
    ids, place = np.unique(key_ids[entry, start], return_inverse=True)
    names = entry * ids.size + place
    order = np.argsort(names, kind="stable")
    names, start, stop = names[order], start[order], stop[order]
    place = np.minimum(np.searchsorted(ids, query_ids), ids.size - 1)
    wanted = np.arange(len(query_ids))[:, None] * ids.size + place
    first = np.searchsorted(names, wanted, "left")
    count = np.searchsorted(names, wanted, "right") - first
    count[ids[place] != query_ids] = 0
    most = int(count.max(initial=0))
    if most > MAX_RUNS:
        return Equal(query_ids, key_ids)
    ends = np.zeros((2, *query_ids.shape, most), np.int64)
    for run in range(most):
        has = count > run
        found = first[has] + run
        ends[0, has, run], ends[1, has, run] = start[found], stop[found]
    return Runs(*ends)

"""The masks that are told by positions, lengths, ids, or a function of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from chumoku.arrays import array_of
from chumoku.checks import shown, whole
from chumoku.errors import InvalidArgumentError, InvalidTypeError
from chumoku.mask.base import All, Any_, Cells, Mask
from chumoku.mask.lowered import Asked, Lowered, Runs, band, documents, flat
from chumoku.mask.shape import FARTHEST, Bools, Ints, Shape, broadcast


def _integers(argument: str, values: Any, least: int = -(2**63), most: int = 2**63 - 1) -> Ints:
    """A read-only int64 copy of whole numbers within bounds."""
    expected = "whole numbers"
    array = array_of(argument, values, expected)
    # Of numbers beyond 64 bits NumPy makes objects; the bounds then say what is wrong.
    made = array.dtype == object and not isinstance(values, np.ndarray)
    beyond = made and all(type(number) is int for number in array.flat)
    listed = isinstance(values, (list, tuple))
    if array.dtype.kind not in "iu" and not beyond and not (listed and not array.size):
        got = shown(values) if array.dtype == object else f"{array.dtype} values"
        raise InvalidTypeError(argument, got, expected)
    copy = np.array(array)
    if copy.size and not (int(copy.min()) >= least and int(copy.max()) <= most):
        got = f"numbers from {shown(int(copy.min()))} to {shown(int(copy.max()))}"
        raise InvalidArgumentError(argument, got, f"numbers from {least} to {most}")
    result = copy.astype(np.int64, copy=False)
    result.setflags(write=False)
    return result


def _optional(
    argument: str, values: Any, least: int = -(2**63), most: int = 2**63 - 1
) -> Ints | None:
    return None if values is None else _integers(argument, values, least, most)


def _fit(argument: str, axes: tuple[int, ...], others: tuple[int, ...], of: str) -> None:
    """Whether two arrays can be spread over one batch."""
    try:
        np.broadcast_shapes(axes, others)
    except (ValueError, RuntimeError):  # more than 32 axes
        raise InvalidArgumentError(
            argument, f"axes {axes}", f"axes that fit {others}, {of}"
        ) from None


def _keys(name: str, value: object, least: int) -> int:
    return min(whole(name, value, least, of="keys"), 2 * FARTHEST)


@dataclass(frozen=True, eq=False, repr=False)
class Causal(Mask):
    """Key j is visible to query i when j <= i + offset.

    Parameters
    ----------
    offset : int or array of int, optional
        One value, or one for each batch entry. None means (end of the valid keys - end of the
        valid queries), so that the last query sees every valid key: what decoding with a cache
        needs, and the usual triangle when the lengths agree. 0 is the top-left triangle.
    """

    offset: ArrayLike | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "offset", _optional("offset", self.offset, -FARTHEST, FARTHEST))

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        return np.asarray(keys <= shape.positions(rows, self.offset))

    def lower(self, shape: Shape) -> Lowered:
        return band(shape, high=shape.offset(self.offset))


@dataclass(frozen=True, eq=False, repr=False)
class Window(Mask):
    """Key j is visible to query i when i + offset - left <= j <= i + offset + right.

    Parameters
    ----------
    left, right : int
        Keys before and after the query's own position, both ends included. A window of W keys
        as Hugging Face counts them is left = W - 1, right = 0.
    offset : int or array of int, optional
        As in `Causal`.
    """

    left: int
    right: int
    offset: ArrayLike | None = None

    def __post_init__(self) -> None:
        for name in ("left", "right"):
            object.__setattr__(self, name, _keys(name, getattr(self, name), 0))
        object.__setattr__(self, "offset", _optional("offset", self.offset, -FARTHEST, FARTHEST))

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        here = shape.positions(rows, self.offset)
        return np.asarray((keys >= here - self.left) & (keys <= here + self.right))

    def lower(self, shape: Shape) -> Lowered:
        offset = shape.offset(self.offset)
        return band(shape, low=offset - self.left, high=offset + self.right)


@dataclass(frozen=True, eq=False, repr=False)
class Lengths(Mask):
    """Padding: of each batch entry only so many keys (and queries) are real.

    Parameters
    ----------
    keys : int or array of int
        Valid keys of each batch entry.
    queries : int or array of int, optional
        Valid queries; the others see nothing and give 0. None: all are valid.
    side : {"right", "left"}
        Where the padding is.
    """

    keys: ArrayLike
    queries: ArrayLike | None = None
    side: Literal["right", "left"] = "right"

    def __post_init__(self) -> None:
        if not isinstance(self.side, str) or self.side not in ("right", "left"):
            raise InvalidArgumentError("side", shown(self.side), '"right" or "left"')
        keys = _integers("keys", self.keys, least=0)
        queries = _optional("queries", self.queries, least=0)
        if queries is not None:
            _fit("queries", queries.shape, keys.shape, "the keys' lengths have")
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "queries", queries)

    def _limits(self, shape: Shape) -> tuple[Ints, Ints, Ints, Ints]:
        """First and end of the valid queries, first and end of the valid keys."""
        valid_keys = self._valid("keys", shape.keys, shape)
        valid_queries = self._valid("queries", shape.queries, shape)
        zero = np.zeros_like(valid_keys)
        if self.side == "right":
            return zero, valid_queries, zero, valid_keys
        end_q, end_k = zero + shape.queries, zero + shape.keys
        return end_q - valid_queries, end_q, end_k - valid_keys, end_k

    def _valid(self, name: Literal["keys", "queries"], total: int, shape: Shape) -> Ints:
        given = getattr(self, name)
        if given is None:
            return np.full(shape.batch, total, np.int64)
        valid = broadcast(given, shape.batch, name)
        if valid.size and valid.max() > total:
            got = f"lengths up to {valid.max()}"
            raise InvalidArgumentError(name, got, f"0 to {total}, the number of {name}")
        return valid

    def refine(self, shape: Shape) -> Shape:
        _, query_end, _, key_end = self._limits(shape)
        key_end = np.minimum(shape.key_end, key_end)
        return replace(shape, key_end=key_end, query_end=np.minimum(shape.query_end, query_end))

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        q0, q1, k0, k1 = (x[..., None, None, None] for x in self._limits(shape))
        i = rows[:, None]
        return np.asarray((q0 <= i) & (i < q1) & (k0 <= keys) & (keys < k1))

    def lower(self, shape: Shape) -> Lowered:
        q0, q1, k0, k1 = self._limits(shape)
        return band(shape, row_start=q0, row_stop=q1, key_start=k0, key_stop=k1)


@dataclass(frozen=True, eq=False, repr=False)
class Documents(Mask):
    """Packed documents: a query sees the keys that carry its own id.

    Parameters
    ----------
    query_ids : array of int, shape (..., queries)
    key_ids : array of int, shape (..., keys), optional
        None: the queries' ids.
    """

    query_ids: ArrayLike
    key_ids: ArrayLike | None = None

    def __post_init__(self) -> None:
        query_ids = _integers("query_ids", self.query_ids)
        key_ids = query_ids if self.key_ids is None else _integers("key_ids", self.key_ids)
        for name, ids in (("query_ids", query_ids), ("key_ids", key_ids)):
            if ids.ndim == 0:
                raise InvalidArgumentError(name, f"one id, {ids}", "an id for each position")
        _fit("key_ids", key_ids.shape[:-1], query_ids.shape[:-1], "the leading axes of query_ids")
        object.__setattr__(self, "query_ids", query_ids)
        object.__setattr__(self, "key_ids", key_ids)

    def _ids(self, shape: Shape) -> tuple[Ints, Ints]:
        """Ids of the queries and of the keys for every batch entry: (*batch, length)."""
        queries = _ids_of("query_ids", self.query_ids, (*shape.batch, shape.queries))
        return queries, _ids_of("key_ids", self.key_ids, (*shape.batch, shape.keys))

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        query_ids, key_ids = self._ids(shape)
        return np.asarray(query_ids[..., None, rows, None] == key_ids[..., None, None, keys])

    def lower(self, shape: Shape) -> Lowered:
        both = self._ids(shape)
        given = np.asarray(self.query_ids), np.asarray(self.key_ids)
        if all(ids.size == ids.shape[-1] for ids in given):
            # The same ids for every entry need one list of runs.
            both, entries = given, 1
        else:
            entries = prod(shape.batch)
        if not entries:
            return band(shape)
        query_ids, key_ids = (ids.reshape(entries, ids.shape[-1]) for ids in both)
        return documents(query_ids, key_ids)


def _ids_of(argument: str, ids: Any, axes: tuple[int, ...]) -> Ints:
    if ids.shape[-1] != axes[-1]:
        expected = f"one id for each of the {axes[-1]} positions on its last axis"
        cure = "Without key_ids the keys have the queries' ids." if argument == "key_ids" else ""
        raise InvalidArgumentError(argument, f"shape {ids.shape}", expected, cure)
    return broadcast(ids, axes, argument)


@dataclass(frozen=True, eq=False, repr=False)
class Prefix(Mask):
    """The first n keys are visible to every query (join it with `Causal` by `|`).

    Parameters
    ----------
    n : int or array of int
        One value, or one for each batch entry.
    """

    n: ArrayLike

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _integers("n", self.n))

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        n = broadcast(self.n, shape.batch, "n")[..., None, None, None]
        return np.asarray(keys < n) & np.ones((rows.size, 1), np.bool_)

    def lower(self, shape: Shape) -> Lowered:
        n = broadcast(self.n, shape.batch, "n")
        return band(shape, key_stop=np.clip(n, 0, shape.keys))


@dataclass(frozen=True, eq=False, repr=False)
class Chunks(Mask):
    """A query sees the keys of its own chunk: (i + offset) // size == j // size.

    Parameters
    ----------
    size : int
        Keys in a chunk.
    offset : int or array of int, optional
        As in `Causal`.
    """

    size: int
    offset: ArrayLike | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _keys("size", self.size, 1))
        object.__setattr__(self, "offset", _optional("offset", self.offset, -FARTHEST, FARTHEST))

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        here = shape.positions(rows, self.offset)
        return np.asarray(here // self.size == keys // self.size)

    def lower(self, shape: Shape) -> Lowered:
        offset = flat(shape.offset(self.offset), shape)
        chunk = (np.arange(shape.queries) + offset[:, None]) // self.size
        chunks = shape.keys // self.size + 1
        start, stop = (np.clip(c, 0, chunks) * self.size for c in (chunk, chunk + 1))
        return Runs(*(np.minimum(end, shape.keys)[..., None] for end in (start, stop)))


@dataclass(frozen=True, eq=False, repr=False)
class Custom(Mask):
    """A function of index arrays (b, h, i, j) that returns booleans; asked block by block.

    Parameters
    ----------
    function : callable
        Called with int64 arrays that broadcast against one another: batch entry (flattened),
        head, query, key. Never called for single elements. What it raises comes out as it is.
    """

    function: Callable[[Ints, Ints, Ints, Ints], Any]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InvalidTypeError("function", shown(self.function), "a function of (b, h, i, j)")

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        b = np.arange(prod(shape.batch)).reshape(*shape.batch, 1, 1, 1)
        h = np.arange(shape.heads).reshape(-1, 1, 1)
        # Copies: a function that writes into its arguments must not reach what others read.
        given = self.function(b, h, rows[:, None].copy(), keys.copy())
        answer = array_of("function", given, "booleans from the mask function")
        if answer.dtype != np.bool_:
            raise InvalidTypeError("function", f"{answer.dtype} from the mask function", "booleans")
        return broadcast(answer, (*shape.batch, shape.heads, rows.size, keys.size), "function")

    def asks(self) -> bool:
        return True

    def lower(self, shape: Shape) -> Lowered:
        return Asked(self)


def position_offset(mask: Mask | None, shape: Shape) -> Ints:
    """Where query 0 stands among the keys, shape `batch`: distances are measured from there.

    It is the offset, given or implied, of the mask's first `Causal`, `Window` or `Chunks`; without
    any of them the implied one: the last valid query meets the last valid key.
    """
    if mask is None:
        return shape.offset(None)
    found = _first_offset(mask, shape)
    return mask.refine(shape).offset(None) if found is None else found


def _first_offset(mask: Mask, shape: Shape) -> Ints | None:
    if isinstance(mask, (Causal, Window, Chunks)):
        return shape.offset(mask.offset)
    shape = mask.refine(shape)
    parts = mask.parts if isinstance(mask, (All, Any_)) else ()
    found = (_first_offset(part, shape) for part in parts)
    return next((offset for offset in found if offset is not None), None)


def mask_of_entry(mask: Mask, entry: int) -> Mask | None:
    """The mask of one entry of a batch of one axis; None where a function alone knows it."""

    def own(values: Any) -> Any:
        return values if values is None or np.ndim(values) == 0 else values[entry % len(values)]

    match mask:
        case Causal():
            return Causal(own(mask.offset))
        case Window():
            return Window(mask.left, mask.right, own(mask.offset))
        case Chunks():
            return Chunks(mask.size, own(mask.offset))
        case Prefix():
            return Prefix(own(mask.n))
        case Lengths():
            return Lengths(own(mask.keys), own(mask.queries), mask.side)
        case Documents():
            ids = (np.asarray(x) for x in (mask.query_ids, mask.key_ids))
            return Documents(*(x if x.ndim == 1 else x[entry % len(x)] for x in ids))
        case Cells():
            array = mask.array
            return mask if array.ndim < 4 else Cells(array[entry % len(array)][None])
        case All() | Any_():
            parts = [mask_of_entry(part, entry) for part in mask.parts]
            return None if None in parts else type(mask)(tuple(p for p in parts if p is not None))
        case _:
            return None

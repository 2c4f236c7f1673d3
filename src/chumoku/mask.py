"""Masks: immutable values that say which keys a query may look at.

Each mask can be read in two ways that share no code. `Mask.allowed` is the definition, index
arithmetic on whole blocks; `Mask.lower` gives the compact forms that kernels walk. True always
means "may look".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from math import prod
from operator import and_, or_
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chumoku.errors import InvalidArgumentError, InvalidTypeError

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Rows whose visible keys fall into more runs than this are compared key by key instead
# (Equal): the lists of runs would grow with queries x keys.
MAX_RUNS = 8

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


def _flat(values: Ints, shape: Shape) -> Ints:
    """One number for each flattened batch entry, or a single one when all are equal."""
    flat = np.ascontiguousarray(broadcast(values, shape.batch, "mask")).reshape(-1)
    if flat.size > 1 and (flat == flat[0]).all():
        return flat[:1]
    return flat


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
    """A mask whose function of index arrays is to be asked block by block."""

    mask: Custom


@dataclass(frozen=True)
class Joined:
    """`all` of the parts must allow a key, or any of them."""

    parts: tuple[Lowered, ...]
    all: bool


Lowered = Band | Runs | Equal | Boolean | Asked | Joined


def _band(shape: Shape, **limits: Ints) -> Band:
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
    fields.update({name: np.clip(_flat(v, shape), -far, far) for name, v in limits.items()})
    return Band(**fields)


class Mask:
    """Base of all masks. Masks are joined with `&` (both must allow) and `|` (either may)."""

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        """Which of `keys` each of `rows` may look at: the definition.

        `rows` and `keys` are 1-D indices. The answer broadcasts to (*batch, heads, rows, keys).
        """
        raise NotImplementedError

    def lower(self, shape: Shape) -> Lowered:
        """The form that kernels walk."""
        raise NotImplementedError

    def refine(self, shape: Shape) -> Shape:
        """What this mask tells its neighbours in an `&` about the valid lengths."""
        return shape

    def __and__(self, other: Mask) -> Mask:
        return All(_parts(self, All) + _parts(as_mask(other), All))

    def __or__(self, other: Mask) -> Mask:
        return Any_(_parts(self, Any_) + _parts(as_mask(other), Any_))

    # NumPy must not spread `array & mask` over the array's elements.
    __array_ufunc__ = None

    def __rand__(self, other: Mask) -> Mask:
        return as_mask(other) & self

    def __ror__(self, other: Mask) -> Mask:
        return as_mask(other) | self


def _parts(mask: Mask, kind: type[All] | type[Any_]) -> tuple[Mask, ...]:
    return mask.parts if isinstance(mask, kind) else (mask,)


def as_mask(value: object) -> Mask:
    """A mask value as it is; a boolean array as `Cells`; anything else is refused."""
    return value if isinstance(value, Mask) else Cells(_booleans(value))


def _booleans(value: Any) -> Bools:
    """A boolean array of any kind as one of NumPy's, its memory shared."""
    torch_like = hasattr(value, "detach") and hasattr(value, "numpy")
    array = value.detach().numpy() if torch_like else value
    if isinstance(array, np.ndarray) and array.dtype == np.bool_:
        return array
    got = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else type(value).__name__
    raise InvalidTypeError(
        "mask",
        got=got,
        expected="a mask value or a boolean array in which True means may look",
        cure="Numbers that are added to the scores are given as bias=.",
    )


def _integers(values: ArrayLike | None, argument: str) -> Ints | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.dtype.kind not in "iu" and array.size:
        raise InvalidTypeError(argument, f"{array.dtype} values", "whole numbers")
    far = FARTHEST if argument == "offset" else 2**63 - 1
    if array.size and not (int(array.min()) >= -far and int(array.max()) <= far):
        got = f"numbers from {array.min()} to {array.max()}"
        raise InvalidArgumentError(argument, got, f"numbers from {-far} to {far}")
    result = array.astype(np.int64)
    result.setflags(write=False)
    return result


def _count(name: str, value: object, least: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise InvalidTypeError(name, repr(value), "a whole number of keys")
    if value < least:
        raise InvalidArgumentError(name, str(value), f"{least} or more keys")
    return min(int(value), 2 * FARTHEST)


@dataclass(frozen=True, eq=False)
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
        object.__setattr__(self, "offset", _integers(self.offset, "offset"))

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        return np.asarray(keys <= shape.positions(rows, self.offset))

    def lower(self, shape: Shape) -> Lowered:
        return _band(shape, high=shape.offset(self.offset))


@dataclass(frozen=True, eq=False)
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
            object.__setattr__(self, name, _count(name, getattr(self, name), 0))
        object.__setattr__(self, "offset", _integers(self.offset, "offset"))

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        here = shape.positions(rows, self.offset)
        return np.asarray((keys >= here - self.left) & (keys <= here + self.right))

    def lower(self, shape: Shape) -> Lowered:
        offset = shape.offset(self.offset)
        return _band(shape, low=offset - self.left, high=offset + self.right)


@dataclass(frozen=True, eq=False)
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
        if self.side not in ("right", "left"):
            raise InvalidArgumentError("side", repr(self.side), '"right" or "left"')
        for name in ("keys", "queries"):
            object.__setattr__(self, name, _integers(getattr(self, name), name))

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
        if valid.size and (valid.min() < 0 or valid.max() > total):
            got = f"lengths from {valid.min()} to {valid.max()}"
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
        return _band(shape, row_start=q0, row_stop=q1, key_start=k0, key_stop=k1)


@dataclass(frozen=True, eq=False)
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
        query_ids = _integers(self.query_ids, "query_ids")
        key_ids = query_ids if self.key_ids is None else _integers(self.key_ids, "key_ids")
        object.__setattr__(self, "query_ids", query_ids)
        object.__setattr__(self, "key_ids", key_ids)

    def _ids(self, shape: Shape, batch: tuple[int, ...]) -> tuple[Ints, Ints]:
        """Ids of the queries and of the keys for every batch entry: (*batch, length)."""
        queries = _ids_of("query_ids", self.query_ids, (*batch, shape.queries))
        return queries, _ids_of("key_ids", self.key_ids, (*batch, shape.keys))

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        query_ids, key_ids = self._ids(shape, shape.batch)
        return np.asarray(query_ids[..., None, rows, None] == key_ids[..., None, None, keys])

    def lower(self, shape: Shape) -> Lowered:
        # The same ids for every entry need one list of runs.
        alike = np.ndim(self.query_ids) == 1 and np.ndim(self.key_ids) == 1  # type: ignore[arg-type]
        batch = () if alike else shape.batch
        both = self._ids(shape, batch)
        query_ids, key_ids = (ids.reshape(prod(batch), ids.shape[-1]) for ids in both)
        found = [_runs_of_ids(q, k) for q, k in zip(query_ids, key_ids, strict=True)]
        if not found:
            return _band(shape)
        most = max(start.shape[1] for start, _ in found)
        if most > MAX_RUNS:
            return Equal(query_ids, key_ids)
        pad = [
            [np.pad(ends, ((0, 0), (0, most - ends.shape[1]))) for ends in runs] for runs in found
        ]
        return Runs(np.stack([start for start, _ in pad]), np.stack([stop for _, stop in pad]))


def _ids_of(argument: str, ids: Any, whole: tuple[int, ...]) -> Ints:
    if ids.ndim == 0 or ids.shape[-1] != whole[-1]:
        expected = f"one id for each of the {whole[-1]} positions on its last axis"
        cure = "Without key_ids the keys have the queries' ids." if argument == "key_ids" else ""
        raise InvalidArgumentError(argument, f"shape {ids.shape}", expected, cure)
    return broadcast(ids, whole, argument)


def _runs_of_ids(query_ids: Ints, key_ids: Ints) -> tuple[Ints, Ints]:
    """Runs of equal key ids that each query sees: start, stop of shape (queries, most runs).

    Stops early, with MAX_RUNS + 1 columns, when an id falls into more runs than kernels walk.
    """
    edges = np.flatnonzero(np.diff(key_ids)) + 1
    starts = np.concatenate([np.zeros(min(1, key_ids.size), np.int64), edges])
    stops = np.append(edges, key_ids.size)[: starts.size]
    order = np.argsort(key_ids[starts], kind="stable")
    ids = key_ids[starts][order]
    first = np.searchsorted(ids, query_ids, "left")
    count = np.searchsorted(ids, query_ids, "right") - first
    width = min(int(count.max(initial=0)), MAX_RUNS + 1)
    start = np.zeros((query_ids.size, width), np.int64)
    stop = np.zeros((query_ids.size, width), np.int64)
    for r in range(width):
        has = np.flatnonzero(count > r)
        run = order[first[has] + r]
        start[has, r], stop[has, r] = starts[run], stops[run]
    return start, stop


@dataclass(frozen=True, eq=False)
class Prefix(Mask):
    """The first n keys are visible to every query (join it with `Causal` by `|`).

    Parameters
    ----------
    n : int or array of int
        One value, or one for each batch entry.
    """

    n: ArrayLike

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _integers(self.n, "n"))

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        n = broadcast(self.n, shape.batch, "n")[..., None, None, None]
        return np.asarray(keys < n) & np.ones((rows.size, 1), np.bool_)

    def lower(self, shape: Shape) -> Lowered:
        n = broadcast(self.n, shape.batch, "n")
        return _band(shape, key_stop=np.clip(n, 0, shape.keys))


@dataclass(frozen=True, eq=False)
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
        object.__setattr__(self, "size", _count("size", self.size, 1))
        object.__setattr__(self, "offset", _integers(self.offset, "offset"))

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        here = shape.positions(rows, self.offset)
        return np.asarray(here // self.size == keys // self.size)

    def lower(self, shape: Shape) -> Lowered:
        offset = _flat(shape.offset(self.offset), shape)
        chunk = (np.arange(shape.queries) + offset[:, None]) // self.size
        chunks = shape.keys // self.size + 1
        start, stop = (np.clip(c, 0, chunks) * self.size for c in (chunk, chunk + 1))
        return Runs(*(np.minimum(end, shape.keys)[..., None] for end in (start, stop)))


@dataclass(frozen=True, eq=False)
class Cells(Mask):
    """A boolean array that broadcasts to (..., heads, queries, keys); True means may look.

    `attention(mask=array)` is short for `attention(mask=Cells(array))`. The array is not copied.
    """

    array: Bools

    def __post_init__(self) -> None:
        object.__setattr__(self, "array", _booleans(self.array))

    def _view(self, shape: Shape) -> Bools:
        whole = (*shape.batch, shape.heads, shape.queries, shape.keys)
        return broadcast(self.array, whole, "mask", "Its axes are (..., heads, queries, keys).")

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        return np.asarray(self._view(shape)[..., rows[:, None], keys])

    def lower(self, shape: Shape) -> Lowered:
        return Boolean(self._view(shape))


@dataclass(frozen=True, eq=False)
class Custom(Mask):
    """A function of index arrays (b, h, i, j) that returns booleans; asked block by block.

    Parameters
    ----------
    function : callable
        Called with int64 arrays that broadcast against one another: batch entry (flattened),
        head, query, key. Never called for single elements.
    """

    function: Callable[[Ints, Ints, Ints, Ints], Any]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InvalidTypeError("function", type(self.function).__name__, "a function")

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        b = np.arange(prod(shape.batch)).reshape(*shape.batch, 1, 1, 1)
        h = np.arange(shape.heads).reshape(-1, 1, 1)
        answer = np.asarray(self.function(b, h, rows[:, None], keys))
        if answer.dtype != np.bool_:
            raise InvalidTypeError("function", f"{answer.dtype} from the mask function", "booleans")
        return broadcast(answer, (*shape.batch, shape.heads, rows.size, keys.size), "function")

    def lower(self, shape: Shape) -> Lowered:
        return Asked(self)


@dataclass(frozen=True, eq=False)
class All(Mask):
    """Masks joined with `&`: every part must allow a key."""

    parts: tuple[Mask, ...]

    def refine(self, shape: Shape) -> Shape:
        for part in self.parts:
            shape = part.refine(shape)
        return shape

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        shape = self.refine(shape)
        return reduce(and_, (part.allowed(shape, rows, keys) for part in self.parts))

    def lower(self, shape: Shape) -> Lowered:
        shape = self.refine(shape)
        lowered = [part.lower(shape) for part in self.parts]
        bands = [part for part in lowered if isinstance(part, Band)]
        forms: list[Lowered] = [reduce(and_, bands)] if bands else []
        forms += [part for part in lowered if not isinstance(part, Band)]
        return forms[0] if len(forms) == 1 else Joined(tuple(forms), all=True)


@dataclass(frozen=True, eq=False)
class Any_(Mask):
    """Masks joined with `|`: one part that allows a key is enough."""

    parts: tuple[Mask, ...]

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        return reduce(or_, (part.allowed(shape, rows, keys) for part in self.parts))

    def lower(self, shape: Shape) -> Lowered:
        return Joined(tuple(part.lower(shape) for part in self.parts), all=False)


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

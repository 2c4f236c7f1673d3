"""What transformers' mask functions mean, found without asking them for every query and key.

A mask function takes indices of batch entry, head, query and key and returns booleans. It is
called once, with arrays of all queries (1, 1, Q, 1) and of all keys (1, 1, 1, K) in place of
numbers. What it computes of either alone is computed; where a number of queries meets one of
keys, the comparison is noted instead: positions compared are a band, ids compared are documents.
A function that does anything else is a `Custom` mask, asked block by block.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chumoku.mask import (
    FARTHEST,
    Causal,
    Cells,
    Custom,
    Documents,
    Lengths,
    Mask,
    Shape,
    Window,
    position_offset,
)

MaskFunction = Callable[[Any, Any, Any, Any], Any]
Ints = NDArray[np.int64]

_NO_LIMIT = 2 * FARTHEST


class Unread(Exception):
    """The function does what cannot be noted."""


@dataclass(frozen=True)
class Setting:
    """The sizes and positions that a mask function is asked for."""

    batch: int
    queries: int
    keys: int
    query_offset: int = 0
    key_offset: int = 0

    @property
    def offset(self) -> int:
        """Where query 0 stands among the keys."""
        return self.query_offset - self.key_offset

    @property
    def shape(self) -> Shape:
        """The same as masks want it."""
        return Shape((self.batch,), 1, self.queries, self.keys)

    def indices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Batch entry, head, query, key, each on its own axis. There is one mask for all heads."""
        return (
            torch.arange(self.batch).view(-1, 1, 1, 1),
            torch.zeros((1, 1, 1, 1), dtype=torch.int64),
            torch.arange(self.queries).view(1, 1, -1, 1) + self.query_offset,
            torch.arange(self.keys).view(1, 1, 1, -1) + self.key_offset,
        )


def read(function: MaskFunction, setting: Setting, vmap: bool = False) -> Mask | None:
    """The mask that a function means; None when every query sees every key.

    Parameters
    ----------
    function : callable
        Of batch entry, head, query and key.
    setting : Setting
    vmap : bool
        Whether the function is written for single numbers, as those of users may be.
    """
    try:
        noted = function(*map(_Known, setting.indices()))
        form = _form_of(noted)
    except Exception:  # whatever a function does with what it does not know
        mask: Mask | None = Custom(_asked(function, setting, vmap))
    else:
        mask = _lowered(form, setting)
    if mask is None or (position_offset(mask, setting.shape) == setting.offset).all():
        return mask
    # Distances are measured from a mask's first offset: a window without bounds tells it.
    return Window(_NO_LIMIT, _NO_LIMIT, setting.offset) & mask


# What is noted


class _Noted:
    """A value inside a mask function. Whatever PyTorch would do with it arrives here."""

    device = torch.device("cpu")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _applied(func, args, kwargs or {})

    def to(self, *_: Any, **__: Any) -> _Noted:
        """There is one device."""
        return self

    def __bool__(self) -> bool:
        raise Unread


@dataclass(eq=False)
class _Known(_Noted):
    """Numbers of each query or of each key (or of neither), never of both: a tensor of 4 axes."""

    values: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def new_ones(self, shape: Any, **settings: Any) -> _Known:
        return _Known(self.values.new_ones((1, 1, 1, 1), **settings))

    def new_zeros(self, shape: Any, **settings: Any) -> _Known:
        return _Known(self.values.new_zeros((1, 1, 1, 1), **settings))

    @property
    def of_queries(self) -> bool:
        return self.values.shape[2] > 1

    @property
    def of_keys(self) -> bool:
        return self.values.shape[3] > 1


@dataclass(eq=False)
class _Between(_Noted):
    """low <= j - i <= high for query i and key j, one number or one for each batch entry."""

    low: Ints
    high: Ints


@dataclass(eq=False)
class _Same(_Noted):
    """The ids of query and key agree: (batch or 1, queries) and (batch or 1, keys)."""

    query_ids: Ints
    key_ids: Ints


@dataclass(eq=False)
class _Ordered(_Noted):
    """A comparison of numbers that are no positions in a row: of keys with those of queries."""

    compare: Callable[[Any, Any], Any]
    of_keys: Ints
    of_queries: Ints


@dataclass(eq=False)
class _Difference(_Noted):
    """first - second, of which one belongs to queries and the other to keys."""

    first: _Known
    second: _Known
    absolute: bool = False


@dataclass(eq=False)
class _Joined(_Noted):
    """All of the parts, or any."""

    parts: list[Any] = field(default_factory=list)
    all: bool = True


def _named(name: str) -> Any:
    func = getattr(operator, name)

    def method(self: Any, other: Any) -> Any:
        return _applied(func, (self, other), {})

    def reversed_method(self: Any, other: Any) -> Any:
        return _applied(func, (other, self), {})

    def alone(self: Any) -> Any:
        return _applied(func, (self,), {})

    return method, reversed_method, alone


for _name in ("add", "sub", "mul", "floordiv", "mod", "and_", "or_", "xor"):
    _method, _reversed, _ = _named(_name)
    setattr(_Noted, f"__{_name.strip('_')}__", _method)
    setattr(_Noted, f"__r{_name.strip('_')}__", _reversed)
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(_Noted, f"__{_name}__", _named(_name)[0])
for _name in ("abs", "neg", "invert"):
    setattr(_Noted, f"__{_name}__", _named(_name)[2])

# PyTorch's names of the same operations.
_MEANT: dict[Any, Any] = {
    getattr(holder, name): getattr(operator, meant)
    for meant, names in {
        "lt": ("lt", "less", "__lt__"),
        "le": ("le", "less_equal", "__le__"),
        "gt": ("gt", "greater", "__gt__"),
        "ge": ("ge", "greater_equal", "__ge__"),
        "eq": ("eq", "__eq__"),
        "and_": ("logical_and", "bitwise_and", "__and__", "__rand__"),
        "or_": ("logical_or", "bitwise_or", "__or__", "__ror__"),
        "sub": ("sub", "subtract", "__sub__"),
        "abs": ("abs", "absolute", "__abs__"),
    }.items()
    for name in names
    for holder in (torch, Tensor)
    if hasattr(holder, name)
}
_MIRRORED = {
    operator.lt: operator.gt,
    operator.le: operator.ge,
    operator.gt: operator.lt,
    operator.ge: operator.le,
    operator.eq: operator.eq,
}


def _applied(func: Any, args: Any, kwargs: Any) -> Any:
    """One operation: computed where it is of queries or keys alone, else noted."""
    known: list[_Known] = []

    def bare(one: Any) -> Any:
        if isinstance(one, _Known):
            known.append(one)
            return one.values
        if isinstance(one, _Noted):
            raise Unread
        if isinstance(one, (tuple, list)):
            return type(one)(map(bare, one))
        return one

    meant = _MEANT.get(func, func)
    if meant in (operator.and_, operator.or_) and len(args) == 2:
        return _join(meant is operator.and_, *map(_form_of, args))
    if any(isinstance(one, _Difference) for one in args):
        return _of_difference(meant, args)
    plain = bare(args)
    options = {name: bare(one) for name, one in kwargs.items()}
    mixed = any(k.of_queries for k in known) and any(k.of_keys for k in known)
    if not mixed:
        return _check(func(*plain, **options), known)
    if len(args) != 2 or options:
        raise Unread
    first, second = map(_known_of, args)
    if meant is operator.sub:
        return _Difference(first, second)
    return _compared(meant, first, second)


def _check(result: Any, known: list[_Known]) -> _Known:
    """A result whose axes are still batch entry, head, query and key."""
    if not isinstance(result, Tensor) or result.dim() != 4:
        raise Unread
    for axis in (2, 3):
        if result.shape[axis] not in {1, *(k.values.shape[axis] for k in known)}:
            raise Unread
    return _Known(result)


def _known_of(one: Any) -> _Known:
    if isinstance(one, _Known):
        return one
    tensor = torch.as_tensor(one)
    if tensor.dim() == 0:
        return _Known(tensor.view(1, 1, 1, 1))
    raise Unread


def _form_of(one: Any) -> Any:
    """A truth value as it is noted."""
    if isinstance(one, _Difference):
        raise Unread
    if isinstance(one, _Noted):
        return one
    tensor = torch.as_tensor(one)
    if tensor.dtype != torch.bool or tensor.dim() not in (0, 4):
        raise Unread
    return _Known(tensor if tensor.dim() else tensor.view(1, 1, 1, 1))


def _join(every: bool, first: Any, second: Any) -> Any:
    both = [first, second]
    if all(isinstance(part, _Known) for part in both):
        if any(part.values.dtype != torch.bool for part in both):
            raise Unread
        one_axis = not (
            any(part.of_queries for part in both) and any(part.of_keys for part in both)
        )
        if one_axis:
            a, b = (part.values for part in both)
            return _Known(a & b if every else a | b)
    parts: list[Any] = []
    for part in both:
        if isinstance(part, _Known) and part.values.numel() == 1:
            if bool(part.values) != every:
                return part
            continue
        parts += part.parts if isinstance(part, _Joined) and part.all == every else [part]
    return parts[0] if len(parts) == 1 else _Joined(parts, every)


def _of_difference(meant: Any, args: Any) -> Any:
    """abs(a - b), and a - b or abs(a - b) compared with a number."""
    if meant is operator.abs:
        return _Difference(args[0].first, args[0].second, absolute=True)
    if meant not in _MIRRORED or len(args) != 2:
        raise Unread
    if not isinstance(args[0], _Difference):
        meant, args = _MIRRORED[meant], (args[1], args[0])
    difference, bound = args[0], args[1]
    if isinstance(bound, _Difference):
        raise Unread
    limit = _known_of(bound)
    if limit.of_queries or limit.of_keys:
        raise Unread
    first, second = difference.first, difference.second
    upper = _compared(meant, first, _Known(second.values + limit.values))
    if not difference.absolute:
        return upper
    if meant not in (operator.lt, operator.le):
        raise Unread
    lower = _compared(_MIRRORED[meant], first, _Known(second.values - limit.values))
    return _join(True, upper, lower)


def _compared(meant: Any, first: _Known, second: _Known) -> Any:
    """A number of each query beside one of each key."""
    if meant not in _MIRRORED:
        raise Unread
    if first.of_queries:
        first, second, meant = second, first, _MIRRORED[meant]
    of_keys, of_queries = (_whole(known.values) for known in (first, second))
    if meant is operator.eq:
        return _Same(of_queries, of_keys)
    if not (_in_a_row(of_keys) and _in_a_row(of_queries)):
        return _Ordered(meant, of_keys, of_queries)
    # Key j has the number k + j, query i has q + i: k + j <= q + i when j - i <= q - k.
    return _limited(meant, of_queries[:, 0] - of_keys[:, 0])


def _whole(values: Tensor) -> Ints:
    """Numbers of queries or of keys as (batch or 1, length) of int64."""
    if values.shape[1] != 1 or values.is_floating_point() or values.is_complex():
        raise Unread
    flat = values.reshape(values.shape[0], -1)
    return flat.to(torch.int64).numpy()


def _in_a_row(numbers: Ints) -> bool:
    return bool((np.diff(numbers, axis=-1) == 1).all())


# From what is noted to masks


def _lowered(form: Any, setting: Setting) -> Mask | None:
    """The library's mask; None allows everything."""
    if not isinstance(form, _Joined):
        return _all_of([form], setting)
    if form.all:
        return _all_of(form.parts, setting)
    parts = [_lowered(part, setting) for part in form.parts]
    return None if None in parts else reduce(operator.or_, parts)


def _all_of(parts: list[Any], setting: Setting) -> Mask | None:
    parts = _rebased(parts)
    bands = [part for part in parts if isinstance(part, _Between)]
    same = [part for part in parts if isinstance(part, _Same)]
    of_queries, of_keys = _pure(parts, setting)
    if same and of_queries is not None:
        same[0] = _without(same[0], of_queries)
        of_queries = None
    masks = [_band(bands, setting)] if bands else []
    masks += [Documents(_one(part.query_ids), _one(part.key_ids)) for part in same]
    if of_keys is not None:
        masks.append(_of_keys(of_keys))
    if of_queries is not None:
        masks.append(Cells(of_queries[:, None, :, None]))
    for part in parts:
        if isinstance(part, _Ordered):
            masks.append(_by_values(part))
        elif isinstance(part, _Joined) and (mask := _lowered(part, setting)) is not None:
            masks.append(mask)
    return reduce(operator.and_, masks) if masks else None


def _pure(
    parts: list[Any], setting: Setting
) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
    """What the queries alone and the keys alone allow: (batch or 1, length), or None.

    What depends on neither, but on the batch entry, is said of the keys.
    """
    found: list[NDArray[np.bool_] | None] = [None, None]
    for part in parts:
        if not isinstance(part, _Known):
            continue
        axis = 0 if part.of_queries else 1
        allowed = part.values.reshape(part.values.shape[0], -1).numpy()
        length = setting.queries if part.of_queries else setting.keys
        allowed = np.broadcast_to(allowed, (len(allowed), length))
        if not allowed.all():
            before = found[axis]
            found[axis] = allowed if before is None else before & allowed
    return found[0], found[1]


def _without(same: _Same, allowed: NDArray[np.bool_]) -> _Same:
    """The same ids, where some queries have one that no key has."""
    nobody = min(int(same.query_ids.min()), int(same.key_ids.min())) - 1
    return _Same(np.where(allowed, same.query_ids, nobody), same.key_ids)


def _one(ids: Ints) -> Ints:
    return ids[0] if len(ids) == 1 else ids


def _of_keys(allowed: NDArray[np.bool_]) -> Mask:
    """Some keys may not be seen at all: padding, most of the time."""
    keys = allowed.shape[1]
    count = allowed.sum(1)
    start = np.where(count > 0, allowed.argmax(1), 0)
    stop = start + count
    places = np.arange(keys)
    if not (allowed == ((places >= start[:, None]) & (places < stop[:, None]))).all():
        return Cells(allowed[:, None, None, :])
    if not start.any():
        return Lengths(stop)
    at_left = Lengths(keys - start, side="left")
    return at_left if (stop == keys).all() else at_left & Lengths(stop)


def _band(bands: list[_Between], setting: Setting) -> Mask:
    """Bands that must all hold, as a triangle or a window."""
    offset = setting.offset
    low, high = np.full(1, -_NO_LIMIT), np.full(1, _NO_LIMIT)
    for band in bands:
        low, high = np.maximum(low, band.low), np.minimum(high, band.high)
    low, high = (x[:1] if (x == x[0]).all() else x for x in (low, high))
    if (low == -_NO_LIMIT).all():
        return Causal(_of_all(high))
    if len(low) == len(high) == 1:
        left, right = offset - int(low[0]), int(high[0]) - offset
        if left >= 0 and right >= 0:
            return Window(left, min(right, _NO_LIMIT), offset)
    # j - i >= low: a window that begins there.
    return Causal(_of_all(high)) & Window(0, _NO_LIMIT, _of_all(low))


def _of_all(limits: Ints) -> Any:
    limits = np.clip(limits, -FARTHEST, FARTHEST)
    return int(limits[0]) if len(limits) == 1 else limits


def _by_values(part: _Ordered) -> Mask:
    """Numbers compared block by block."""

    def function(b: Ints, h: Ints, i: Ints, j: Ints) -> Any:
        del h
        keys = part.of_keys[b % len(part.of_keys), j]
        return part.compare(keys, part.of_queries[b % len(part.of_queries), i])

    return Custom(function)


def _rebased(parts: list[Any]) -> list[Any]:
    """Positions inside documents, compared beside the documents' ids, as places in a row.

    Packed sequences are told by ids and by positions that begin anew in each. Where position and
    place differ by the same number for all queries (or keys) of one id, the places say the same.
    """
    same = [part for part in parts if isinstance(part, _Same)]
    found = []
    for part in parts:
        if isinstance(part, _Ordered):
            there = [band for ids in same if (band := _by_place(part, ids)) is not None]
            found.append(there[0] if there else part)
        else:
            found.append(part)
    return found


def _by_place(part: _Ordered, same: _Same) -> _Between | None:
    entries = max(map(len, (part.of_keys, part.of_queries, same.query_ids, same.key_ids)))
    bounds = np.zeros(entries, np.int64)
    for entry in range(entries):
        sides = []
        for numbers, ids in ((part.of_queries, same.query_ids), (part.of_keys, same.key_ids)):
            row, names = numbers[entry % len(numbers)], ids[entry % len(ids)]
            pairs = np.unique(np.stack([names, row - np.arange(row.size)]), axis=1)
            if np.unique(pairs[0]).size < pairs.shape[1]:
                return None
            sides.append(pairs)
        (names, shifts), (others, other_shifts) = sides
        _, mine, theirs = np.intersect1d(names, others, return_indices=True)
        # Key j has the number j + its shift, query i has i + its own.
        between = np.unique(shifts[mine] - other_shifts[theirs])
        if between.size > 1:
            return None
        bounds[entry] = between[0] if between.size else 0
    return _limited(part.compare, bounds)


def _limited(compare: Any, bound: Ints) -> _Between:
    """The distance j - i compared with a bound."""
    none = np.full(1, _NO_LIMIT)
    if compare in (operator.le, operator.lt):
        return _Between(-none, bound - (compare is operator.lt))
    return _Between(bound + (compare is operator.gt), none)


# Functions that are asked


def _asked(function: MaskFunction, setting: Setting, vmap: bool) -> Callable[..., Any]:
    """The function for index arrays of NumPy, as `Custom` asks."""

    def asked(b: Ints, h: Ints, i: Ints, j: Ints) -> Any:
        del h
        queries = torch.from_numpy(i) + setting.query_offset
        keys = torch.from_numpy(j) + setting.key_offset
        given = (torch.from_numpy(b), torch.zeros((1, 1, 1), dtype=torch.int64), queries, keys)
        return evaluated(function, given, vmap).numpy()

    return asked


def evaluated(function: MaskFunction, indices: Sequence[Tensor], vmap: bool) -> Tensor:
    """What the function gives for all indices: (batch, heads, queries, keys)."""
    flat = [index.reshape(-1) for index in indices]
    shape = [index.numel() for index in flat]
    if not vmap:
        spread = [
            index.view([-1 if axis == own else 1 for axis in range(4)])
            for own, index in enumerate(flat)
        ]
        allowed: Tensor = function(*spread)
        return allowed.expand(shape)
    for axis in (3, 2, 1, 0):
        function = torch.vmap(function, tuple(0 if axis == own else None for own in range(4)))
    # Inside vmap a tensor is indexed with numbers that have no value yet.
    with torch._dynamo._trace_wrapped_higher_order_op.TransformGetItemToIndex():
        allowed = function(*flat)
        return allowed.expand(shape)

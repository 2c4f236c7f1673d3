"""A call's arguments checked, its kernel chosen, and the way back to the caller's arrays."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from math import prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chumoku.arrays import BOOLEANS, POSITIONS, Guest, any_array, dtype_name
from chumoku.checks import real, shown
from chumoku.dropout import Dropout
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.kernels import KERNELS, Call, Kernel
from chumoku.mask import All, Any_, Cells, Mask, as_mask
from chumoku.statistics import Array, Statistics, Watch

# The reference holds the whole matrix in float64; beyond this it is taken only by name.
REFERENCE_SCORES = 2**22

NOTHING = Watch()


@dataclass(frozen=True)
class Relative:
    """A bias that depends on the distance of key and query alone, never spread out.

    values (..., heads or 1, queries + keys - 1) are those of key - query from 1 - queries on.
    """

    values: Array


# Sizes whose product is larger could not be counted in 64 bits, in bytes.
MOST = 2**60


def choose(call: Call, name: str | None) -> Kernel:
    """The kernel asked for, or the first that can; a refusal is raised, never worked around."""
    if name is not None:
        if not isinstance(name, str):
            raise InvalidTypeError("kernel", shown(name), _names())
        for kernel in KERNELS:
            if kernel.name == name:
                reason = kernel.refuses(call)
                if reason is None:
                    return kernel
                raise UnavailableError(
                    "kernel",
                    got=f"{kernel.name!r}, which cannot serve this call: {reason}",
                    expected="a call that it can serve",
                    cure="Leave kernel= out to let chumoku choose.",
                )
        raise InvalidArgumentError("kernel", shown(name), _names())
    reasons = []
    for kernel in KERNELS:
        reason = kernel.refuses(call)
        if kernel.name == "reference" and reason is None and call.scores > REFERENCE_SCORES:
            reason = (
                f"it would hold {call.scores:,} scores in float64; "
                f"it is chosen by itself up to {REFERENCE_SCORES:,}"
            )
        if reason is None:
            return kernel
        reasons.append(f"{kernel.name}: {reason}")
    raise UnavailableError(
        "kernel",
        got=f"a call that no kernel takes ({'; '.join(reasons)})",
        expected="a call that one of them can serve",
        cure='kernel="reference" computes it all the same, if the memory allows.'
        if isinstance(call.query, np.ndarray)
        else "Copy the tensors with .cpu(): in main memory every call can be served.",
    )


def _names() -> str:
    """The kernels that there are."""
    *names, last = (repr(kernel.name) for kernel in KERNELS)
    return f"{', '.join(names)} or {last}" if names else last


# Checking


def arrays_of(guest: Guest, **given: Array) -> dict[str, Array]:
    """Views of query, key and value: floats of one dtype, with two axes or more."""
    arrays: dict[str, Array] = {}
    for name, value in given.items():
        array = arrays[name] = guest.array(name, value)
        if array.ndim < 2:
            got = f"shape {tuple(array.shape)}"
            raise InvalidArgumentError(name, got, "(..., heads, length, width)")
        same_dtype(name, array, arrays["query"].dtype)
    return arrays


def same_dtype(name: str, array: Array, dtype: Any) -> None:
    """Refuse an array of another dtype than the query's."""
    if array.dtype != dtype:
        raise InvalidTypeError(
            name,
            got=dtype_name(array.dtype),
            expected=f"{dtype_name(dtype)}, as the query has",
            cure="Convert one of them; chumoku never narrows or widens silently.",
        )


def check(
    guest: Guest,
    arrays: dict[str, Array],
    mask: Mask | Array | None,
    bias: Array | None,
    scale: float | None,
    softcap: float | None,
    sinks: Array | None,
    dropout: Dropout | None,
    watch: Watch,
    lead: tuple[int, ...] = (),
) -> Call:
    """The call in its normal form; `lead` are leading axes that an lse brings."""
    q, k, v = _fit(guest, arrays, lead)
    *batch, heads, queries, width = q.shape
    whole = (*batch, heads, queries, k.shape[-2])
    if mask is not None:
        mask = as_mask(mask)
        _reachable(guest, mask)
    _countable_facts(watch, whole)
    return Call(
        query=q,
        key=k,
        value=v,
        mask=mask,
        bias=None if bias is None else _bias(guest, bias, q.dtype, whole),
        scale=1.0 / sqrt(width) if scale is None else real("scale", scale),
        softcap=None if softcap is None else real("softcap", softcap, above=0),
        sinks=None if sinks is None else _sinks(guest, sinks, q.dtype, heads),
        dropout=instance("dropout", dropout, Dropout, "Dropout(rate, seed)"),
        watch=watch,
    )


def _reachable(guest: Guest, mask: Mask) -> None:
    """Refuse booleans on another device than the query's; those in main memory can be sent."""
    if isinstance(mask, (All, Any_)):
        for part in mask.parts:
            _reachable(guest, part)
    elif not isinstance(mask, Cells) or isinstance(mask.array, np.ndarray):
        return
    elif guest.on_gpu:
        guest.array("mask", mask.array, BOOLEANS)
    else:
        got = f"a tensor on {mask.array.device}"
        raise UnavailableError(
            "mask", got, "one in main memory, as the query", "Move it with .cpu()."
        )


def _fit(guest: Guest, arrays: dict[str, Array], lead: tuple[int, ...]) -> list[Array]:
    """Query, key and value with a heads axis and the same leading axes."""
    q, k, v = (a if a.ndim > 2 else a[None] for a in arrays.values())
    heads, width = q.shape[-3], q.shape[-1]
    kv_heads, keys = k.shape[-3], k.shape[-2]
    if not 1 <= width <= 1024:
        raise InvalidArgumentError("query", f"width {width}", "a width from 1 to 1024")
    if k.shape[-1] != width:
        raise InvalidArgumentError(
            "key",
            got=f"width {k.shape[-1]} (shape {tuple(k.shape)})",
            expected=f"width {width}, as the query has (shape {tuple(q.shape)})",
            cure="The last axis of query and key is the width, the one before it the length.",
        )
    if v.shape[-2] != keys:
        raise InvalidArgumentError(
            "value",
            got=f"{v.shape[-2]} positions (shape {tuple(v.shape)})",
            expected=f"{keys}, one for each key (key's shape {tuple(k.shape)})",
        )
    if v.shape[-3] != kv_heads:
        raise InvalidArgumentError(
            "value",
            got=f"{v.shape[-3]} heads (shape {tuple(v.shape)})",
            expected=f"{kv_heads}, as the key has (shape {tuple(k.shape)})",
        )
    if v.shape[-1] > 1024:
        raise InvalidArgumentError("value", f"width {v.shape[-1]}", "a width from 0 to 1024")
    if (heads % kv_heads if kv_heads else heads) != 0:
        raise InvalidArgumentError(
            "key",
            got=f"{kv_heads} heads (shape {tuple(k.shape)})",
            expected=f"a divisor of the query's {heads} heads (shape {tuple(q.shape)})",
            cure="The axes are (..., heads, length, width): is a transpose missing?",
        )
    batch = tuple(q.shape[:-3])
    if lead or not batch == k.shape[:-3] == v.shape[:-3]:
        for name, axes in (("key", k.shape[:-3]), ("value", v.shape[:-3]), ("lse", lead)):
            batch = _joined(name, batch, axes)
    _countable(batch, q.shape, k.shape, v.shape)
    return [
        a if a.shape[:-3] == batch else guest.expanded(a, (*batch, *a.shape[-3:]))
        for a in (q, k, v)
    ]


def _joined(name: str, batch: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The leading axes so far and those of one more array, broadcast."""
    axes = tuple(axes)
    sizes = []
    for one, other in zip_longest(batch[::-1], axes[::-1], fillvalue=1):
        if one != other and one != 1 and other != 1:
            raise InvalidArgumentError(
                name,
                got=f"leading axes {axes}",
                expected=f"axes that broadcast with {batch}, as those before it have",
            )
        sizes.append(other if one == 1 else one)
    return tuple(sizes[::-1])


def _countable(batch: tuple[int, ...], *shapes: tuple[int, ...]) -> None:
    """Refuse sizes that no array can have: strides of 0 can promise any."""
    heads, queries, keys = max(shapes[0][-3], shapes[1][-3]), shapes[0][-2], shapes[1][-2]
    width = max(shape[-1] for shape in shapes)
    sizes = (*batch, heads, max(queries, keys), max(min(queries, keys), width))
    if _count(sizes) >= MOST:
        whole = (*batch, heads, queries, keys)
        raise InvalidArgumentError(
            "query",
            got=f"sizes of (..., heads, queries, keys) = {whole} in all",
            expected="fewer than 2**60 scores",
            cure="Leading axes broadcast against one another: is one in the wrong place?",
        )


def _countable_facts(watch: Watch, whole: tuple[int, ...]) -> None:
    """The facts that have sizes of their own, against the call's."""
    if watch is NOTHING:
        return
    sizes: dict[str, tuple[int, ...]] = {"top": (*whole[:-1], watch.top)}
    if watch.groups is not None:
        if watch.groups.shape != whole[-1:]:
            got = f"{watch.groups.size} groups"
            raise InvalidArgumentError("groups", got, f"one for each of the {whole[-1]} keys")
        sizes["groups"] = (*whole[:-1], int(watch.groups.max(initial=-1)) + 1)
    if watch.picture is not None:
        sizes["picture"] = (*whole[:-2], *watch.picture)
    for name, shape in sizes.items():
        if _count(shape) >= MOST:
            sizes_shown = ", ".join(shown(size) for size in shape)
            raise InvalidArgumentError(
                name, f"numbers of shape ({sizes_shown})", "fewer than 2**60"
            )


def _count(sizes: tuple[int, ...]) -> int:
    """How many numbers a shape holds; NumPy multiplies the sizes beside an empty axis too."""
    return prod(sizes) or prod(max(1, size) for size in sizes)


def _bias(guest: Guest, bias: Array, dtype: Any, whole: tuple[int, ...]) -> Array:
    array = guest.array("bias", bias.values if isinstance(bias, Relative) else bias)
    same_dtype("bias", array, dtype)
    if isinstance(bias, Relative):
        array = guest.turned(array, *whole[-2:])
    try:
        return guest.expanded(array, whole)
    except ValueError:
        raise InvalidArgumentError(
            "bias",
            got=f"shape {tuple(array.shape)}",
            expected=f"one that broadcasts to (..., heads, queries, keys) = {whole}",
        ) from None


def _sinks(guest: Guest, sinks: Array, dtype: Any, heads: int) -> Array:
    array = guest.array("sinks", sinks)
    same_dtype("sinks", array, dtype)
    if array.shape != (heads,):
        got = f"shape {tuple(array.shape)}"
        raise InvalidArgumentError("sinks", got, f"({heads},), one per head")
    return array


def lse_of(
    call: Call, known: Array, rank: int, name: str = "lse", unrounded: bool = False
) -> Array:
    """A row statistic that the caller brings, or its gradient, with all axes of the call."""
    shape = call.shape
    whole = (*shape.batch, shape.heads, shape.queries)
    expected = whole[len(whole) - rank + 1 :]
    like = f"as seen.{name.removesuffix('_gradient')} of the same call has"
    if known.shape != expected:
        raise InvalidArgumentError(name, f"shape {tuple(known.shape)}", f"{expected}, {like}")
    real = "float64" if dtype_name(call.query.dtype) == "float64" else "float32"
    dtype = dtype_name(known.dtype)
    if dtype != real and not (unrounded and dtype == "float64"):
        raise InvalidTypeError(name, dtype, f"{real}, {like}")
    return known.reshape(whole)


def instance(name: str, value: Any, kind: type, expected: str) -> Any:
    """The value, which must be None or of this kind."""
    if value is not None and not isinstance(value, kind):
        raise InvalidTypeError(name, got=shown(value), expected=expected)
    return value


def index_of(name: str, which: slice | int | Array, length: int) -> NDArray[np.int64]:
    """The positions meant by a slice, a number or several numbers."""
    if isinstance(which, slice):
        return _sliced(name, which, length)
    if isinstance(which, (int, np.integer)) and not isinstance(which, bool):
        which = (which,)
    if isinstance(which, range):
        # It may be too long to be walked; its ends say whether it is.
        ends = [which[0], which[-1]] if which else []
    elif isinstance(which, (list, tuple)):
        for position in which:
            if not isinstance(position, (int, np.integer)) or isinstance(position, bool):
                got = f"a {type(which).__name__} that holds {shown(position)}"
                raise InvalidTypeError(name, got, POSITIONS.expected, POSITIONS.cure)
        ends = [int(min(which)), int(max(which))] if which else []
    else:
        which = np.atleast_1d(any_array(name, which, POSITIONS))
        if which.ndim != 1:
            raise InvalidTypeError(name, f"an array of shape {which.shape}", POSITIONS.expected)
        ends = [int(which.min()), int(which.max())] if which.size else []
    if ends and (min(ends) < -length or max(ends) >= length):
        raise InvalidArgumentError(
            name,
            got=f"positions {shown(min(ends))} to {shown(max(ends))}",
            expected=f"positions from 0 to {length - 1}" if length else "none, for there are none",
        )
    index = np.array(which, np.int64)
    return np.where(index < 0, index + length, index)


def _sliced(name: str, which: slice, length: int) -> NDArray[np.int64]:
    for part in (which.start, which.stop, which.step):
        if part is not None and not isinstance(part, (int, np.integer)):
            raise InvalidTypeError(name, f"a slice with {shown(part)}", "a slice of whole numbers")
    if which.step == 0:
        raise InvalidArgumentError(name, "a slice of step 0", "any other step")
    return np.ascontiguousarray(np.arange(length, dtype=np.int64)[which])


# The way back


def statistics_back(guest: Guest, statistics: Statistics, rank: int) -> Statistics:
    """Statistics with the caller's number of axes and kind of arrays."""

    def back(array: Array, tail: int) -> Array:
        return guest.back(squeeze(array, rank, tail))

    facts: dict[str, Any] = {}
    for name, fact in statistics.facts().items():
        tail = 2 if name in ("top_keys", "top_weights", "group_mass", "picture") else 1
        pair = name == "picture"
        facts[name] = tuple(back(f, tail) for f in fact) if pair else back(fact, tail)
    return Statistics(**facts)


def squeeze(array: Array, rank: int, tail: int) -> Array:
    """Without the heads axis that a 2-D caller did not give; `tail` axes follow it."""
    return array.reshape(array.shape[-tail:]) if rank == 2 else array

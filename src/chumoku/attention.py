"""attention(): check, choose a kernel, run. The only dispatcher."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from math import inf, isfinite, sqrt
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from chumoku.dropout import Dropout
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.kernels import KERNELS, Call, Kernel
from chumoku.mask import Mask, as_mask
from chumoku.record import open_recordings
from chumoku.statistics import Array, Statistics, Watch

# The reference holds the whole matrix in float64; beyond this it is taken only by name.
REFERENCE_SCORES = 2**22

_FLOATS = ("float64", "float32", "float16", "bfloat16")


@overload
def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Mask | Array | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout: Dropout | None = None,
    watch: None = None,
    kernel: str | None = None,
) -> Array: ...


@overload
def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Mask | Array | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout: Dropout | None = None,
    watch: Watch,
    kernel: str | None = None,
) -> tuple[Array, Statistics]: ...


def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Mask | Array | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout: Dropout | None = None,
    watch: Watch | None = None,
    kernel: str | None = None,
) -> Array | tuple[Array, Statistics]:
    """Exact scaled dot-product attention, and on request what it looked at, in the same pass.

    softmax(scale * query @ key.T) @ value (Vaswani et al. 2017, equation 1), with the steps in
    the order: dot product, scale, softcap, bias, mask, softmax, dropout, mix.

    Parameters
    ----------
    query : array, (..., heads, queries, width)
        NumPy array or PyTorch CPU tensor of float64, float32, float16 or bfloat16. 2-D is one
        head, 3-D is (heads, queries, width). Any strides; never written.
    key : array, (..., kv_heads, keys, width)
        heads must be a multiple of kv_heads: query head h looks at key head
        h // (heads // kv_heads). Leading axes broadcast.
    value : array, (..., kv_heads, keys, value_width)
    mask : Mask or boolean array, optional
        Causal(), Window(...), Lengths(...), ..., joined with & and |, or a boolean array that
        broadcasts to (..., heads, queries, keys). True means may look.
    bias : array, optional
        Added to the scaled scores; broadcasts to them. -inf hides like a mask.
    scale : float, optional
        1 / sqrt(width) when not given.
    softcap : float, optional
        The scores become softcap * tanh(scores / softcap).
    sinks : array, (heads,), optional
        One more logit for each head, without a value.
    dropout : Dropout, optional
    watch : Watch, optional
        What to report. Watching changes no bit of the output.
    kernel : str, optional
        A kernel by name; it serves the call or raises. Automatic choice takes the first kernel
        that does not refuse, and never the float64 reference for more than 2**22 scores.

    Returns
    -------
    output : array, (..., heads, queries, value_width)
        Of the query's kind and dtype. A query that sees no key gives 0.
    seen : Statistics
        Only when watch is given.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        A shape, number or dtype does not fit; the message names the argument and the cure.
    UnavailableError
        No kernel can serve the call here.
    """
    guest = _Guest.of(query=query, key=key, value=value)
    recordings = open_recordings()
    asked = _instance("watch", watch, Watch, "Watch(top=8, entropy=True, ...)") or Watch()
    for open_one in recordings:
        asked = asked | open_one.watch
    call, rank = _check(guest, query, key, value, mask, bias, scale, softcap, sinks, dropout, asked)
    output, statistics = _choose(call, kernel).run(call)
    for open_one in recordings:
        block = partial(
            weights,
            guest.spread(query, call.query.shape),
            key,
            mask=mask,
            bias=bias,
            scale=scale,
            softcap=softcap,
            sinks=sinks,
            kernel=kernel,
        )
        seen = _restrict(statistics, open_one.watch)
        open_one.add(call.shape, guest.statistics(seen, rank), block)
    result = guest.back(_squeeze(output, rank, 2))
    if watch is None:
        return result
    return result, guest.statistics(_restrict(statistics, watch), rank)


def weights(
    query: Array,
    key: Array,
    *,
    rows: slice | int | Array = slice(None),
    keys: slice | int | Array = slice(None),
    lse: Array | None = None,
    mask: Mask | Array | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    kernel: str | None = None,
) -> Array:
    """Any block of the weight matrix, exactly, in the memory of that block.

    Parameters
    ----------
    query, key, mask, bias, scale, softcap, sinks, kernel
        As given to `attention`.
    rows, keys : slice, int or 1-D array of int
        Which queries and which keys; an int keeps its axis, of length 1.
    lse : array, (..., heads, queries), optional
        `seen.lse` of the same call; spares the pass over all keys.

    Returns
    -------
    array, (..., heads, rows, keys)
        exp(score - lse), of the query's kind; float32, or float64 for float64 inputs. 0 where a
        query may not look.
    """
    guest = _Guest.of(query=query, key=key)
    nothing = guest.empty_value(key)
    call, rank = _check(
        guest, query, key, nothing, mask, bias, scale, softcap, sinks, None, Watch()
    )
    shape = call.shape
    row_index = _index("rows", rows, shape.queries)
    key_index = _index("keys", keys, shape.keys)
    known = None
    if lse is not None:
        known = guest.array("lse", lse)
        whole = (*shape.batch, shape.heads, shape.queries)
        if known.shape != whole[len(whole) - rank + 1 :]:
            raise InvalidArgumentError(
                "lse",
                got=f"shape {known.shape}",
                expected=f"{whole[len(whole) - rank + 1 :]}, as seen.lse of the same call has",
            )
        known = known.reshape(whole)[..., row_index]
    block = _choose(call, kernel).weights(call, row_index, key_index, known)
    return guest.back(_squeeze(block, rank, 2))


def _choose(call: Call, name: str | None) -> Kernel:
    """The kernel asked for, or the first that can; a refusal is raised, never worked around."""
    if name is not None:
        for kernel in KERNELS:
            if kernel.name == name:
                reason = kernel.refuses(call)
                if reason is None:
                    return kernel
                raise UnavailableError(
                    "kernel",
                    got=f"{name!r}, which cannot serve this call: {reason}",
                    expected="a call that it can serve",
                    cure="Leave kernel= out to let chumoku choose.",
                )
        raise InvalidArgumentError(
            "kernel", got=repr(name), expected=" or ".join(repr(k.name) for k in KERNELS)
        )
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
        cure='kernel="reference" computes it all the same, if the memory allows.',
    )


# Checking


def _check(
    guest: _Guest,
    query: Array,
    key: Array,
    value: Array,
    mask: Mask | Array | None,
    bias: Array | None,
    scale: float | None,
    softcap: float | None,
    sinks: Array | None,
    dropout: Dropout | None,
    watch: Watch,
) -> tuple[Call, int]:
    """The call in its normal form, and the number of axes that the caller used."""
    arrays = {"query": query, "key": key, "value": value}
    q, k, v = (guest.array(name, array) for name, array in arrays.items())
    for name, array in (("key", k), ("value", v)):
        if array.dtype != q.dtype:
            raise InvalidTypeError(
                name,
                got=str(array.dtype),
                expected=f"{q.dtype}, as the query has",
                cure="Convert one of them; chumoku never narrows or widens silently.",
            )
    rank = max(q.ndim, k.ndim, v.ndim)
    q, k, v = _fit(q, k, v)
    *batch, heads, queries, width = q.shape
    whole = (*batch, heads, queries, k.shape[-2])
    call = Call(
        query=q,
        key=k,
        value=v,
        mask=None if mask is None else as_mask(mask),
        bias=None if bias is None else _bias(guest, bias, q.dtype, whole),
        scale=1.0 / sqrt(width) if scale is None else _number("scale", scale),
        softcap=None if softcap is None else _number("softcap", softcap, positive=True),
        sinks=None if sinks is None else _sinks(guest, sinks, q.dtype, heads),
        dropout=_instance("dropout", dropout, Dropout, "Dropout(rate, seed)"),
        watch=watch,
    )
    if watch.groups is not None and watch.groups.shape != (whole[-1],):
        raise InvalidArgumentError(
            "groups", f"{watch.groups.size} groups", f"one for each of the {whole[-1]} keys"
        )
    return call, rank


def _fit(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The three arrays with a heads axis and the same leading axes."""
    q, k, v = (a[(None,) * max(0, 3 - a.ndim)] for a in (q, k, v))
    heads, width = q.shape[-3], q.shape[-1]
    kv_heads, keys = k.shape[-3], k.shape[-2]
    if not 1 <= width <= 1024:
        raise InvalidArgumentError("query", f"width {width}", "a width from 1 to 1024")
    if k.shape[-1] != width:
        raise InvalidArgumentError(
            "key",
            got=f"width {k.shape[-1]} (shape {k.shape})",
            expected=f"width {width}, as the query has (shape {q.shape})",
            cure="The last axis of query and key is the width, the one before it the length.",
        )
    if v.shape[-2] != keys:
        raise InvalidArgumentError(
            "value",
            got=f"{v.shape[-2]} positions (shape {v.shape})",
            expected=f"{keys}, one for each key (key's shape {k.shape})",
        )
    if v.shape[-3] != kv_heads:
        raise InvalidArgumentError(
            "value",
            got=f"{v.shape[-3]} heads (shape {v.shape})",
            expected=f"{kv_heads}, as the key has (shape {k.shape})",
        )
    if v.shape[-1] > 1024:
        raise InvalidArgumentError("value", f"width {v.shape[-1]}", "a width from 0 to 1024")
    if (heads % kv_heads if kv_heads else heads) != 0:
        raise InvalidArgumentError(
            "key",
            got=f"{kv_heads} heads (shape {k.shape})",
            expected=f"a divisor of the query's {heads} heads (shape {q.shape})",
            cure="The axes are (..., heads, length, width): is a transpose missing?",
        )
    batch: tuple[int, ...] = q.shape[:-3]
    for name, array in (("key", k), ("value", v)):
        try:
            batch = np.broadcast_shapes(batch, array.shape[:-3])
        except ValueError:
            raise InvalidArgumentError(
                name,
                got=f"leading axes {array.shape[:-3]} (shape {array.shape})",
                expected=f"axes that broadcast with {batch}, as those before it have",
            ) from None
    q, k, v = (np.broadcast_to(a, batch + a.shape[-3:]) for a in (q, k, v))
    return q, k, v


def _bias(guest: _Guest, bias: Array, dtype: np.dtype[Any], whole: tuple[int, ...]) -> NDArray[Any]:
    array = guest.array("bias", bias)
    if array.dtype != dtype:
        raise InvalidTypeError("bias", got=str(array.dtype), expected=f"{dtype}, as the query has")
    try:
        return np.broadcast_to(array, whole)
    except ValueError:
        raise InvalidArgumentError(
            "bias",
            got=f"shape {array.shape}",
            expected=f"one that broadcasts to (..., heads, queries, keys) = {whole}",
        ) from None


def _sinks(guest: _Guest, sinks: Array, dtype: np.dtype[Any], heads: int) -> NDArray[Any]:
    array = guest.array("sinks", sinks)
    if array.dtype != dtype:
        raise InvalidTypeError("sinks", str(array.dtype), f"{dtype}, as the query has")
    if array.shape != (heads,):
        raise InvalidArgumentError("sinks", f"shape {array.shape}", f"({heads},), one per head")
    return array


def _number(name: str, value: object, positive: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InvalidTypeError(name, type(value).__name__, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = inf
    if not isfinite(number) or (positive and number <= 0):
        expected = "a finite number above 0" if positive else "a finite number"
        raise InvalidArgumentError(name, repr(number), expected)
    return number


def _instance(name: str, value: Any, kind: type, expected: str) -> Any:
    if value is not None and not isinstance(value, kind):
        raise InvalidTypeError(name, got=repr(value), expected=expected)
    return value


def _index(name: str, which: slice | int | Array, length: int) -> NDArray[np.int64]:
    """The positions meant by a slice, a number or an array of numbers."""
    if isinstance(which, slice):
        return np.ascontiguousarray(np.arange(length, dtype=np.int64)[which])
    index = np.atleast_1d(np.asarray(which))
    if index.ndim != 1 or (index.dtype.kind not in "iu" and index.size):
        got = f"{index.dtype} of shape {index.shape}"
        raise InvalidTypeError(name, got, "a slice, a whole number or a 1-D array of them")
    index = index.astype(np.int64)
    if index.size and (index.min() < -length or index.max() >= length):
        raise InvalidArgumentError(
            name, f"positions {index.min()} to {index.max()}", f"positions from 0 to {length - 1}"
        )
    return np.where(index < 0, index + length, index)


# The caller's kind of arrays


class _Guest:
    """Arrays of one kind on their way in and back out: NumPy, or PyTorch on the CPU."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch

    @classmethod
    def of(cls, **arrays: Any) -> _Guest:
        """The kind that all the arrays are of. torch is looked up, never imported."""
        torch = sys.modules.get("torch")
        tensor = getattr(torch, "Tensor", ())
        kinds = {
            name: "torch" if isinstance(array, tensor) else type(array).__name__
            for name, array in arrays.items()
        }
        for name, array in arrays.items():
            if kinds[name] != "torch" and not isinstance(array, np.ndarray):
                raise InvalidTypeError(
                    name,
                    got=type(array).__name__,
                    expected="a NumPy array or a PyTorch tensor",
                    cure="np.asarray(..., dtype=np.float32) makes one of a list.",
                )
        if len({kind == "torch" for kind in kinds.values()}) > 1:
            raise InvalidTypeError(
                " and ".join(kinds),
                got=", ".join(f"{name}: {kind}" for name, kind in kinds.items()),
                expected="arrays of one kind",
            )
        return cls(torch if "torch" in kinds.values() else None)

    def array(self, name: str, value: Any) -> NDArray[Any]:
        """A NumPy view of one argument, its memory shared."""
        if self.torch is not None:
            if not isinstance(value, self.torch.Tensor):
                raise InvalidTypeError(name, type(value).__name__, "a tensor, as the query is")
            value = self._view(name, value)
        if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
            raise InvalidTypeError(name, type(value).__name__, "an array of the query's kind")
        if value.dtype.name not in _FLOATS or not value.dtype.isnative:
            raise InvalidTypeError(
                name,
                got=f"{value.dtype}",
                expected=", ".join(_FLOATS),
                cure="Convert it, for instance with .astype(np.float32).",
            )
        if value.ndim < 2 and name in ("query", "key", "value"):
            raise InvalidArgumentError(
                name, got=f"shape {value.shape}", expected="(..., heads, length, width)"
            )
        return value

    def _view(self, name: str, tensor: Any) -> NDArray[Any]:
        torch = self.torch
        tangent = torch.autograd.forward_ad.unpack_dual(tensor).tangent
        if tangent is not None or (tensor.requires_grad and torch.is_grad_enabled()):
            raise UnavailableError(
                name,
                got="a tensor that requires a gradient",
                expected="one that does not",
                cure="Call inside torch.no_grad(), or pass tensor.detach().",
            )
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            got = f"a {tensor.layout} tensor on {tensor.device}"
            raise UnavailableError(name, got, "a dense tensor on the CPU", "Move it with .cpu().")
        try:
            tensor = tensor.detach().resolve_neg()
            if tensor.dtype == torch.bfloat16:
                return np.asarray(tensor.view(torch.int16).numpy().view(_bfloat16(name)))
            return np.asarray(tensor.numpy())
        except (RuntimeError, TypeError) as error:
            if isinstance(error, UnavailableError):
                raise
            # A functorch transform, a meta tensor, a dtype that NumPy does not know.
            reason = str(error).split("\n")[0]
            raise UnavailableError(
                name, f"a tensor without plain memory ({reason})", "a plain CPU tensor"
            ) from None

    def spread(self, array: Any, shape: tuple[int, ...]) -> Any:
        """The caller's array with the leading axes of the whole call, nothing copied."""
        if array.ndim == 2 and len(shape) == 3:
            return array
        return np.broadcast_to(array, shape) if self.torch is None else array.expand(shape)

    def back(self, array: NDArray[Any]) -> Array:
        """An array of ours as one of the caller's kind."""
        if self.torch is None:
            return array
        if array.dtype.name == "bfloat16":
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(array)

    def statistics(self, statistics: Statistics, rank: int) -> Statistics:
        """Statistics with the caller's number of axes and kind of arrays."""
        back: Callable[[NDArray[Any], int], Array] = lambda a, tail: self.back(  # noqa: E731
            _squeeze(a, rank, tail)
        )
        facts: dict[str, Any] = {}
        for name, fact in statistics.facts().items():
            tail = 2 if name in ("top_keys", "top_weights", "group_mass", "picture") else 1
            facts[name] = (
                tuple(back(f, tail) for f in fact) if name == "picture" else back(fact, tail)
            )
        return Statistics(**facts)

    def empty_value(self, key: Any) -> Any:
        """Values of width 0 beside the keys: weights are asked for without values."""
        return key[..., :0] if key.ndim else key


def _bfloat16(name: str) -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError:
        raise UnavailableError(
            name,
            got="bfloat16, which NumPy does not know",
            expected="the package ml_dtypes beside it",
            cure="pip install ml_dtypes",
        ) from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def _squeeze(array: NDArray[Any], rank: int, tail: int) -> NDArray[Any]:
    """Without the heads axis that a 2-D caller did not give; `tail` axes follow it."""
    return array.reshape(array.shape[-tail:]) if rank == 2 else array


# Watching for several


def _restrict(statistics: Statistics, watch: Watch) -> Statistics:
    """Of all that was seen, what this watch asked for."""
    wanted = {
        "entropy": watch.entropy,
        "saturation": watch.saturation,
        "flow": watch.saturation,
        "top_keys": watch.top > 0,
        "top_weights": watch.top > 0,
        "distance": watch.distance,
        "received": watch.received,
        "received_share": watch.received,
        "group_mass": watch.groups is not None,
        "picture": watch.picture is not None,
    }
    facts = {n: f for n, f in statistics.facts().items() if wanted.get(n, True)}
    for name in ("top_keys", "top_weights"):
        if name in facts:
            facts[name] = facts[name][..., : watch.top]
    return Statistics(**facts)

"""attention(): check, choose a kernel, run; and weights(), any block of the matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, overload

from chumoku.arrays import Guest, guest_of
from chumoku.attention.call import (
    NOTHING,
    Relative,
    arrays_of,
    check,
    choose,
    index_of,
    instance,
    lse_of,
    squeeze,
    statistics_back,
)
from chumoku.dropout import Dropout
from chumoku.kernels import native
from chumoku.mask import Causal, Mask
from chumoku.record import open_recordings
from chumoku.statistics import Array, Statistics, Watch


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
        Of float64, float32, float16 or bfloat16: a NumPy array, a PyTorch tensor on the CPU or a
        CUDA GPU, or an array of the array API standard that speaks DLPack. 2-D is one head, 3-D
        is (heads, queries, width), up to 32 axes. Any strides; never written.
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
    guest = guest_of(query, gpu=True)
    recordings = open_recordings()
    shaped = bias is not None or scale is not None or softcap is not None or sinks is not None
    if not (shaped or dropout is not None or kernel is not None or watch is not None or recordings):
        result = _plain(guest, query, key, value, mask)
        if result is not None:
            return result
    options: dict[str, Any] = {
        "mask": mask,
        "bias": bias,
        "scale": scale,
        "softcap": softcap,
        "sinks": sinks,
    }
    found = attend((query, key, value), watch, dropout=dropout, kernel=kernel, **options)
    return found[0] if watch is None else found


def attend(
    given: tuple[Array, Array, Array],
    watch: Watch | None,
    exact: dict[str, Array] | None = None,
    *,
    dropout: Dropout | None,
    kernel: str | None = None,
    **options: Any,
) -> tuple[Array, Statistics | None]:
    """`attention` past its short way; as `Call.exact` says, output and lse before rounding."""
    guest, recordings = guest_of(given[0], gpu=True), open_recordings()
    query, key, value = given
    arrays = arrays_of(guest, query=query, key=key, value=value)
    asked = instance("watch", watch, Watch, "Watch(top=8, entropy=True, ...)") or NOTHING
    for open_one in recordings:
        asked = asked | open_one.watch
    rank = max(array.ndim for array in arrays.values())
    call = check(guest, arrays, dropout=dropout, watch=asked, **options)
    if exact is not None:
        call = replace(call, exact={})
    output, statistics = choose(call, kernel).run(call)
    for open_one in recordings:
        whole = query if rank == 2 else guest.spread(query, call.query.shape)
        block = partial(weights, whole, key, kernel=kernel, **options)
        seen = statistics_back(guest, _restrict(statistics, open_one.watch), rank)
        kept = [call.query, call.key, *_arrays_in(list(options.values()))]
        open_one.add(call.shape, seen, block, kept)
    if exact is not None:
        for name, array in (call.exact or {}).items():
            exact[name] = guest.back(squeeze(array, rank, 2 if name == "output" else 1))
    result = guest.back(squeeze(output, rank, 2))
    if watch is None:
        return result, None
    return result, statistics_back(guest, _restrict(statistics, watch), rank)


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
        Which queries and which keys; an int keeps its axis, of length 1. Negative ones count
        from the end.
    lse : array, (..., heads, queries), optional
        `seen.lse` of the same call; spares the pass over all keys. Leading axes that the call
        had from its value alone come from here.

    Returns
    -------
    array, (..., heads, rows, keys)
        exp(score - lse), of the query's kind; float32, or float64 for float64 inputs. 0 where a
        query may not look.
    """
    guest = guest_of(query, gpu=True)
    arrays = arrays_of(guest, query=query, key=key)
    # Weights are asked for without values: any of width 0 will do.
    arrays["value"] = arrays["key"][..., :0]
    known = None if lse is None else guest.array("lse", lse)
    rank = max(arrays["query"].ndim, arrays["key"].ndim, 0 if known is None else known.ndim + 1)
    lead = () if known is None else known.shape[:-2]
    call = check(guest, arrays, mask, bias, scale, softcap, sinks, None, NOTHING, lead)
    row_index = index_of("rows", rows, call.shape.queries)
    key_index = index_of("keys", keys, call.shape.keys)
    if known is not None:
        known = guest.chosen(lse_of(call, known, rank), row_index)
    block = choose(call, kernel).weights(call, row_index, key_index, known)
    return guest.back(squeeze(block, rank, 2))


def _plain(
    guest: Guest, query: Array, key: Array, value: Array, mask: Mask | Array | None
) -> Array | None:
    """What a call of arrays, and a triangle at most, gives; None when it must go the long way."""
    if mask is not None and type(mask) is not Causal:
        return None
    q, k, v = guest.plain(query), guest.plain(key), guest.plain(value)
    if q is None or k is None or v is None:
        return None
    output = native.plain(q, k, v, mask)
    return None if output is None else guest.back(output)


def _arrays_in(given: Any) -> Iterator[Array]:
    """All arrays among the options, and inside a mask."""
    if hasattr(given, "dtype"):
        yield given
    elif isinstance(given, (list, tuple)):
        for one in given:
            yield from _arrays_in(one)
    elif isinstance(given, (Mask, Relative)):
        yield from _arrays_in(list(vars(given).values()))


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
            # A copy: a recording must not keep more than it asked for.
            part = facts[name][..., : watch.top]
            facts[name] = part if part.shape == facts[name].shape else part * 1
    return Statistics(**facts)

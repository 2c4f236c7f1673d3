"""CPU: hands arrays to chumoku._native, the fused C++ kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chumoku import _native
from chumoku.mask import Asked, Band, Boolean, Equal, Joined, Lowered, Runs, position_offset
from chumoku.statistics import Statistics

if TYPE_CHECKING:
    from chumoku.kernels import Call

name = "native"

Ints = NDArray[np.int64]


def refuses(call: Call) -> str | None:
    """Why this kernel cannot serve the call, or None when it can."""
    if call.query.dtype not in (np.float32, np.float64):
        return f"it computes float32 and float64, not {call.query.dtype}"
    options = {
        "bias": call.bias is not None,
        "softcap": call.softcap is not None,
        "sinks": call.sinks is not None,
        "dropout": call.dropout is not None,
        "Watch(received=True)": call.watch.received,
        "Watch(groups=...)": call.watch.groups is not None,
        "Watch(picture=...)": call.watch.picture is not None,
    }
    for option, asked in options.items():
        if asked:
            return f"it does not know {option} yet"
    if call.mask is not None and _asks(call.mask.lower(call.shape)):
        return "it does not know Custom masks yet"
    return None


def run(call: Call) -> tuple[NDArray[Any], Statistics]:
    """Output of shape (*batch, heads, queries, value_width), and what was watched."""
    watch, dtype = call.watch, call.query.dtype
    places = call.query.shape[:-1]
    names = ["lse", "max_logit"]
    names += ["entropy"] * watch.entropy + ["saturation", "flow"] * watch.saturation
    names += ["distance"] * watch.distance
    facts: dict[str, NDArray[Any]] = {fact: np.empty(places, dtype) for fact in names}
    if watch.top:
        facts["top_keys"] = np.empty((*places, watch.top), np.int64)
        facts["top_weights"] = np.empty((*places, watch.top), dtype)
    return _attend(call, call.query, call.value, None, facts), Statistics(**facts)


def weights(call: Call, rows: Ints, keys: Ints, lse: NDArray[Any] | None) -> NDArray[Any]:
    """The block (*batch, heads, len(rows), len(keys)) of the weights."""
    query = call.query[..., rows, :]
    block = np.empty((*query.shape[:-1], keys.size), call.query.dtype)
    if lse is None:
        lse = np.empty(query.shape[:-1])
        _attend(call, query, call.key[..., :0], rows, {"exact_lse": lse})
    if block.size:
        _native.weights(
            query,
            call.key,
            np.ascontiguousarray(lse, dtype=np.float64),
            block,
            call.scale,
            _form(call),
            call.query.shape[-2],
            rows,
            None if np.array_equal(keys, np.arange(call.key.shape[-2])) else keys,
        )
    return block


def _attend(
    call: Call,
    query: NDArray[Any],
    value: NDArray[Any],
    rows: Ints | None,
    facts: dict[str, NDArray[Any]],
) -> NDArray[Any]:
    """The output for these queries, which are those at `rows`; fills the facts."""
    output = np.empty((*query.shape[:-1], value.shape[-1]), query.dtype)
    position = None
    if "distance" in facts:
        position = np.ascontiguousarray(position_offset(call.mask, call.shape)).reshape(-1)
    top = facts["top_keys"].shape[-1] if "top_keys" in facts else 0
    if query.shape[-3]:
        _native.attention(
            query,
            call.key,
            value,
            output,
            call.scale,
            _form(call),
            call.query.shape[-2],
            rows,
            position,
            facts,
            top,
        )
    return output


def _asks(lowered: Lowered) -> bool:
    if isinstance(lowered, Joined):
        return any(_asks(part) for part in lowered.parts)
    return isinstance(lowered, Asked)


def _form(call: Call) -> tuple[Any, ...] | None:
    """The lowered mask as the tuples that the binding reads."""
    return None if call.mask is None else _node(call.mask.lower(call.shape))


def _node(lowered: Lowered) -> tuple[Any, ...]:
    match lowered:
        case Band():
            fields = (
                lowered.row_start,
                lowered.row_stop,
                lowered.key_start,
                lowered.key_stop,
                lowered.low,
                lowered.high,
            )
            return "band", np.stack(np.broadcast_arrays(*fields), axis=-1)
        case Runs(start, stop):
            return "runs", np.ascontiguousarray(start), np.ascontiguousarray(stop)
        case Equal(query_ids, key_ids):
            return "equal", np.ascontiguousarray(query_ids), np.ascontiguousarray(key_ids)
        case Boolean(cells):
            return "boolean", cells
        case Joined(parts, every):
            return "all" if every else "any", [_node(part) for part in parts]
        case Asked():
            raise AssertionError("a Custom mask is refused before it comes here")

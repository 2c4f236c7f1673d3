"""CPU: hands arrays to chumoku._native, the fused C++ kernel."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chumoku import _native
from chumoku.arrays import dtype_name
from chumoku.kernels import Gradients
from chumoku.mask import (
    FARTHEST,
    Asked,
    Band,
    Boolean,
    Causal,
    Equal,
    Joined,
    Lowered,
    Mask,
    Runs,
    position_offset,
)
from chumoku.statistics import Statistics

if TYPE_CHECKING:
    from chumoku.kernels import Call, Upstream

name = "native"

DTYPES = ("float64", "float32", "float16", "bfloat16")

Reals = NDArray[Any]
Ints = NDArray[np.int64]

# Answers of a Custom mask to so many scores are held at a time, as bits.
HELD_SCORES = 2**27

# Bytes from which on a result gets the memory of one that is gone; smaller ones come from malloc.
LARGE = 2**17

# Strides of 0 can promise more queries than memory holds; such calls are looked at more closely.
PLAIN_NUMBERS = 2**32

# Masses of up to so many groups are kept beside a row's running sums; of more, a second pass adds
# them up.
KEPT_GROUPS = 1024


def refuses(call: Call) -> str | None:
    """Why this kernel cannot serve the call, or None when it can."""
    if not isinstance(call.query, np.ndarray):
        return "it reads main memory"
    if dtype_name(call.query.dtype) not in DTYPES:
        return f"it computes float64, float32, float16 and bfloat16, not {call.query.dtype}"
    if call.watch.top and call.query.dtype != np.float64 and call.key.shape[-2] > 2**31:
        return "it names the top keys among 2**31 at most, but in float64"
    return None


def run(call: Call) -> tuple[Reals, Statistics]:
    """Output of shape (*batch, heads, queries, value_width), and what was watched."""
    output = _empty_output(call.query, call.value.shape[-1:])
    exact = {} if call.exact is None else _empty_exact(output)
    facts = _empty_facts(call) | exact
    totals = _empty_totals(call)
    rows = call.query.shape[-2]
    for part in _slabs(call, np.arange(rows)):
        if part.size == rows:
            _attend(call, call.query, call.value, part, output, facts | totals)
            continue
        # What a row gets does not depend on its neighbours.
        own = (slice(None),) * (call.query.ndim - 2) + (slice(part[0], part[-1] + 1),)
        some = {name: np.ascontiguousarray(fact[own]) for name, fact in facts.items()}
        some_output = np.empty_like(output[own])
        _attend(call, call.query[own], call.value, part, some_output, some | totals)
        output[own] = some_output
        for name, fact in facts.items():
            fact[own] = some[name]
    for name in exact:
        del facts[name]
    if call.exact is not None:
        call.exact.update(_exact(output, exact))
    return output, _statistics(call, facts, totals)


def plain(query: Reals, key: Reals, value: Reals, mask: Causal | None = None) -> Reals | None:
    """A call of query, key, value and a triangle at most, whose sizes C++ checks; it makes no Call.

    None when something is out of the ordinary: then `run` serves it, or the checks before it say
    what is wrong.
    """
    dtype = dtype_name(query.dtype)
    if not query.dtype == key.dtype == value.dtype or dtype not in DTYPES:
        return None
    if not 2 < query.ndim == key.ndim <= 32:
        return None
    if query.size > PLAIN_NUMBERS or value.shape[-1:] > (1024,):
        return None
    offset = None if mask is None else _offset(mask, query.shape[-2], key.shape[-2])
    if mask is not None and offset is None:
        return None
    output = _empty_output(query, value.shape[-1:])
    if query.dtype.itemsize == 2:
        query, key, value = _plain(query), _plain(key), _plain(value)
    done = query.dtype.isnative and _native.plain(query, key, value, _plain(output), dtype, offset)
    return output if done else None


class Usual(NamedTuple):
    """A call of arrays of one rank, with no mask or a triangle; it makes no Call either."""

    query: Reals
    key: Reals
    value: Reals
    offset: int | None  # key j is visible to query i when j <= i + offset

    def _options(self) -> dict[str, Any]:
        width, queries = self.query.shape[-1], self.query.shape[-2]
        options = {
            "dtype": dtype_name(self.query.dtype),
            "scale": 1.0 / sqrt(width),
            "queries": queries,
        }
        if self.offset is not None:
            options["mask"] = _triangle(queries, self.key.shape[-2], self.offset)
        return options

    def attend(self) -> tuple[Reals, dict[str, Reals]]:
        """The output, and what `Call.exact` wants."""
        output = _empty_output(self.query, self.value.shape[-1:])
        facts = _empty_exact(output)
        q, k, v, o = (_plain(array) for array in (*self[:3], output))
        _native.attention(q, k, v, o, self._options(), facts)
        return output, _exact(output, facts)

    def backward(self, upstream: Reals, output: Reals, lse: Reals) -> tuple[Reals, Reals, Reals]:
        """Gradients of query, key and value."""
        found = [_empty_output(array, array.shape[-1:]) for array in self[:3]]
        arrays = _known_output(output, self.query.dtype)
        arrays |= {"upstream": upstream, "lse": lse, "pull": np.zeros(lse.shape)}
        arrays |= zip(("query", "key", "value"), found, strict=True)
        arrays = {name: _plain(array) for name, array in arrays.items()}
        q, k, v = (_plain(array) for array in self[:3])
        _native.backward(q, k, v, self._options(), arrays)
        return found[0], found[1], found[2]


def _empty_exact(output: Reals) -> dict[str, Reals]:
    """Memory for lse, and for the output where that is rounded, before they are."""
    facts = {"exact_lse": _empty(output.shape[:-1], np.dtype(np.float64))}
    if output.dtype.itemsize == 2:
        facts["exact_output"] = _empty(output.shape, np.dtype(np.float32))
    return facts


def _exact(output: Reals, facts: dict[str, Reals]) -> dict[str, Reals]:
    return {"output": facts.get("exact_output", output), "lse": facts["exact_lse"]}


def _known_output(output: Reals, dtype: np.dtype[Any]) -> dict[str, Reals]:
    """The output as the binding reads it: rounded or not."""
    if output.dtype == dtype:
        return {"output": output}
    return {"exact_output": np.asarray(output, np.float32, order="C")}


def usual(query: Reals, key: Reals, value: Reals, mask: Mask | None) -> Usual | None:
    """The call if it is one of these; its sizes are then right."""
    dtype = query.dtype
    if not dtype == key.dtype == value.dtype or not dtype.isnative:
        return None
    if dtype_name(dtype) not in DTYPES or not 2 < query.ndim == key.ndim == value.ndim <= 32:
        return None
    *batch, heads, queries, width = query.shape
    *key_batch, kv_heads, keys, key_width = key.shape
    *value_batch, value_heads, values, value_width = value.shape
    if not batch == key_batch == value_batch or kv_heads != value_heads or keys != values:
        return None
    sizes = (query.size, key.size, value.size)
    if width != key_width or max(width, value_width) > 1024 or not all(sizes) or heads % kv_heads:
        return None
    if max(sizes) > PLAIN_NUMBERS or keys > 2**24:
        return None
    if mask is None:
        return Usual(query, key, value, None)
    offset = _offset(mask, queries, keys)
    return None if offset is None else Usual(query, key, value, offset)


def _offset(mask: Mask, queries: int, keys: int) -> int | None:
    """The offset of a triangle that is the same for all batch entries."""
    if type(mask) is not Causal or np.ndim(mask.offset):  # type: ignore[arg-type]
        return None
    given: Any = mask.offset
    return keys - queries if given is None else int(given)


def _triangle(queries: int, keys: int, offset: int) -> tuple[str, Ints]:
    """A triangle as the binding reads it, without the way over intervals."""
    return "band", np.array([(0, queries, 0, keys, -FARTHEST, offset)])


def weights(call: Call, rows: Ints, keys: Ints, lse: Reals | None) -> Reals:
    """The block (*batch, heads, len(rows), len(keys)) of the weights."""
    places = (*call.query.shape[:-2], rows.size)
    block = _empty((*places, keys.size), _real(call))
    if block.size == 0:
        return block
    every = np.array_equal(keys, np.arange(call.key.shape[-2]))
    for part in _slabs(call, np.arange(rows.size)):
        some = rows[part]
        query = call.query[..., some, :]
        if lse is None:
            known = np.empty((*places[:-1], some.size))
            nothing = np.empty((*known.shape, 0), call.query.dtype)
            _attend(call, query, call.key[..., :0], some, nothing, {"exact_lse": known})
        else:
            known = np.ascontiguousarray(lse[..., part], dtype=np.float64)
        weighed = np.empty((*known.shape, keys.size), block.dtype)
        options = _options(call, some)
        if not every:
            options["keys"] = keys
        _native.weights(_plain(query), _plain(call.key), known, weighed, options)
        block[..., part, :] = weighed
    return block


def backward(call: Call, upstream: Upstream) -> Gradients:
    """The gradients in the dtype of the arrays; that of the bias in the dtype of its sums."""
    facts = _known(call, upstream)
    output, lse = facts["output"], facts["lse"]
    pull = np.zeros(lse.shape)
    if upstream.lse_gradient is not None:
        pull += upstream.lse_gradient
    twist = upstream.entropy_gradient
    sink_weight = _sink_weight(call, lse)
    if twist is not None:
        twist = np.asarray(twist, np.float64, order="C")
        pull -= twist * (facts["entropy"] + sink_weight)
    d_query, d_key, d_value = (
        _empty_output(array, array.shape[-1:]) for array in (call.query, call.key, call.value)
    )
    shape = upstream.bias_shape
    d_bias = None if call.bias is None or shape is None else _empty_bias(call, shape)
    if lse.size == 0 or call.key.shape[-2] == 0:
        for gradient in (d_query, d_key, d_value):
            gradient[...] = 0
    else:
        found: dict[str, Reals] = {"query": d_query, "key": d_key, "value": d_value}
        if d_bias is not None:
            found["bias"] = np.lib.stride_tricks.as_strided(
                d_bias, (*lse.shape, call.key.shape[-2]), _strides(d_bias)
            )
        rows = {"pull": pull, "lse": lse} | ({} if twist is None else {"twist": twist})
        _pull_back(call, upstream.gradient, output, rows, found)
    d_sinks = None
    if call.sinks is not None:
        pulled = sink_weight * (pull if twist is None else pull + twist)
        d_sinks = pulled.sum(axis=(*range(pulled.ndim - 2), -1))
    return Gradients(d_query, d_key, d_value, d_bias, d_sinks)


def _known(call: Call, upstream: Upstream) -> dict[str, Reals]:
    """Output and lse of the call, and the entropy where its gradient is given."""
    entropy = upstream.entropy_gradient is not None
    if upstream.output is not None and upstream.lse is not None and not entropy:
        return {"output": upstream.output, "lse": np.asarray(upstream.lse, np.float64, order="C")}
    places = call.query.shape[:-1]
    output = _empty_output(call.query, call.value.shape[-1:])
    facts = _empty_exact(output)
    if entropy:
        facts["entropy"] = _empty(places, _real(call))
    for part in _slabs(call, np.arange(places[-1])):
        rows = slice(part[0], part[-1] + 1) if part.size else slice(0)
        own = (*(slice(None),) * (len(places) - 1), rows)
        some = {name: np.ascontiguousarray(fact[own]) for name, fact in facts.items()}
        _attend(call, call.query[own], call.value, part, output[own], some)
        for name, fact in facts.items():
            fact[own] = some[name]
    return facts | _exact(output, facts)


def _sink_weight(call: Call, lse: Reals) -> Reals:
    """The weight of the sink in each row."""
    if call.sinks is None:
        return np.zeros(())
    with np.errstate(invalid="ignore", over="ignore"):
        weight = np.exp(call.sinks.astype(np.float64)[:, None] - lse)
    return np.where(np.isneginf(lse), 0, weight)


def _empty_bias(call: Call, shape: tuple[int, ...]) -> Reals:
    """Zeros for the sums of a bias of this shape, with all axes of the call."""
    ones = (1,) * (call.query.ndim - len(shape))
    zeros = _empty(ones + shape, _real(call))
    zeros.fill(0)
    return zeros


def _strides(array: Reals) -> tuple[int, ...]:
    """Its strides, 0 where it is broadcast."""
    return tuple(
        0 if size == 1 else step for size, step in zip(array.shape, array.strides, strict=True)
    )


def _pull_back(
    call: Call,
    gradient: Reals,
    output: Reals,
    by_row: dict[str, Reals],
    found: dict[str, Reals],
) -> None:
    """Fills the gradients found, and adds to by_row["pull"] what the output gives."""
    rows = np.arange(call.query.shape[-2])
    for part in _slabs(call, rows):
        whole = part.size == rows.size
        if part[0] == 0 and not whole:
            found["key"][...] = found["value"][...] = 0
        own = (..., slice(part[0], part[-1] + 1), slice(None))
        query, upstream = call.query[own], gradient[own]
        some = {name: np.ascontiguousarray(fact[own[:-1]]) for name, fact in by_row.items()}
        arrays = found if whole else {n: np.empty_like(found[n]) for n in ("key", "value")}
        arrays = arrays | {n: found[n] for n in ("bias",) if n in found}
        arrays["query"] = found["query"][own]
        inputs = {"upstream": upstream} | _known_output(output[own], call.query.dtype)
        given = {name: _plain(array) for name, array in (inputs | arrays).items()}
        options = _options(call, part)
        _native.backward(_plain(query), _plain(call.key), _plain(call.value), options, given | some)
        by_row["pull"][own[:-1]] = some["pull"]
        if not whole:
            for name in ("key", "value"):
                found[name] += arrays[name]


def _empty_output(query: Reals, width: tuple[int, ...]) -> Reals:
    """Memory for the output, with the heads inside the rows where the query has them there.

    Then whoever joins the heads again need not copy.
    """
    shape = query.shape[:-1] + width
    if query.ndim > 2 and 0 < query.strides[-3] < query.strides[-2]:
        *batch, heads, queries, _ = shape
        return _empty((*batch, queries, heads, *width), query.dtype).swapaxes(-3, -2)
    return _empty(shape, query.dtype)


def _empty(shape: tuple[int, ...], dtype: Any) -> Reals:
    """Memory for a result; where much is needed, what an earlier result had.

    It lies apart from what malloc gives: facts that a recording keeps would leave holes there.
    """
    size = prod(shape) * dtype.itemsize
    if size < LARGE:
        return np.empty(shape, dtype)
    found: Reals = _native.empty(size).view(dtype).reshape(shape)
    return found


def _real(call: Call) -> np.dtype[Any]:
    """The dtype of statistics and weights."""
    return np.dtype(np.float64 if call.query.dtype == np.float64 else np.float32)


def _empty_facts(call: Call) -> dict[str, Reals]:
    """Memory for the facts of each row that are watched."""
    watch, places, real = call.watch, call.query.shape[:-1], _real(call)
    facts: dict[str, Reals] = {fact: _empty(places, real) for fact in call.row_facts}
    groups = _groups(call)
    if groups is not None and groups <= KEPT_GROUPS:
        facts["group_mass"] = _empty((*places, groups), real)
    if groups is not None and groups > KEPT_GROUPS:
        facts["masses"] = np.zeros((*places, groups))
    if watch.top:
        facts["top_keys"] = _empty((*places, watch.top), np.dtype(np.int64))
        facts["top_weights"] = _empty((*places, watch.top), real)
    return facts


def _empty_totals(call: Call) -> dict[str, Reals]:
    """Zeros for the facts that add up over the rows."""
    *places, queries, _ = call.query.shape
    keys, totals = call.key.shape[-2], {}
    if call.watch.received:
        totals["received"] = np.zeros((*places, keys))
        totals["seers"] = np.zeros((*places, keys), np.int64)
    if call.watch.picture is not None:
        # A picture with more cells than there are places repeats them.
        cells = (min(call.watch.picture[0], queries), min(call.watch.picture[1], keys))
        totals["cell_sum"], totals["cell_most"] = np.zeros((2, *places, *cells))
    return totals


def _groups(call: Call) -> int | None:
    """How many groups of keys are watched."""
    groups = call.watch.groups
    return None if groups is None else int(groups.max(initial=-1)) + 1


def _statistics(call: Call, facts: dict[str, Any], totals: dict[str, Reals]) -> Statistics:
    real = _real(call)
    if "masses" in facts:
        facts["group_mass"] = facts.pop("masses").astype(real)
    if "received" in totals:
        facts["received"] = totals["received"].astype(real)
        share = totals["received"] / np.maximum(totals["seers"], 1)
        facts["received_share"] = share.astype(real)
    if call.watch.picture is not None:
        facts["picture"] = _picture(call, totals)
    return Statistics(**facts)


def _picture(call: Call, totals: dict[str, Reals]) -> tuple[Reals, Reals]:
    """Mean and largest weight of each cell of the picture that was asked for."""
    assert call.watch.picture is not None
    lengths = call.query.shape[-2], call.key.shape[-2]
    if 0 in lengths:
        empty = np.zeros((*call.query.shape[:-2], *call.watch.picture), _real(call))
        return empty, empty.copy()
    places, sizes = [], []
    for asked, length in zip(call.watch.picture, lengths, strict=True):
        cells = min(asked, length)
        edges = np.arange(cells + 1) * length // cells
        sizes.append(np.diff(edges))
        places.append(np.arange(asked) * cells // asked)
    mean, most = (np.empty(totals["cell_sum"].shape, _real(call)) for _ in range(2))
    np.divide(totals["cell_sum"], sizes[0][:, None] * sizes[1], out=mean, casting="same_kind")
    np.copyto(most, totals["cell_most"], casting="same_kind")
    if mean.shape[-2:] == call.watch.picture:
        return mean, most
    rows, columns = places
    grid = np.s_[..., rows[:, None], columns]
    return mean[grid], most[grid]


def _attend(
    call: Call,
    query: Reals,
    value: Reals,
    rows: Ints,
    output: Reals,
    facts: dict[str, Reals],
) -> None:
    """Fills output and facts for these queries, which are those at `rows`."""
    options = _options(call, rows)
    if "distance" in facts:
        position = position_offset(call.mask, call.shape)
        options["position"] = np.ascontiguousarray(position).reshape(-1)
    if call.watch.groups is not None and not facts.keys().isdisjoint(("group_mass", "masses")):
        options["groups"] = np.ascontiguousarray(call.watch.groups)
    if query.shape[-3]:
        q, k, v, o = (_plain(array) for array in (query, call.key, value, output))
        _native.attention(q, k, v, o, options, facts)


def _options(call: Call, rows: Ints) -> dict[str, Any]:
    """What decides the scores, as the binding reads it."""
    options: dict[str, Any] = {
        "dtype": dtype_name(call.query.dtype),
        "scale": call.scale,
        "queries": call.query.shape[-2],
        "rows": rows,
    }
    if call.softcap is not None:
        options["softcap"] = call.softcap
    if call.bias is not None:
        options["bias"] = _plain(call.bias)
    if call.sinks is not None:
        options["sinks"] = call.sinks.astype(np.float64)
    if call.dropout is not None:
        rate, seed = call.dropout.rate, call.dropout.seed
        options["dropout"] = (seed, round(rate * 2**32), 1 / (1 - rate))
    if call.mask is not None:
        queries, keys = call.query.shape[-2], call.key.shape[-2]
        offset = _offset(call.mask, queries, keys)
        if offset is None:
            options["mask"] = _node(call, call.mask.lower(call.shape), rows)
        else:
            options["mask"] = _triangle(queries, keys, offset)
    return options


def _plain(array: Reals) -> Reals:
    """16-bit floats as the integers of their bits: buffers know no bfloat16."""
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array


# Masks


def _node(call: Call, lowered: Lowered, rows: Ints) -> tuple[Any, ...]:
    """The lowered mask as the tuples that the binding reads."""
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
            return "all" if every else "any", [_node(call, part, rows) for part in parts]
        case Asked(mask):
            return "bits", mask.bits(call.shape, rows)


def _slabs(call: Call, rows: Ints) -> Iterator[Ints]:
    """The rows, in parts for which the answers of a Custom mask can be held as bits."""
    if call.mask is None or not call.mask.asks():
        yield rows
        return
    shape = call.shape
    height = HELD_SCORES // max(1, prod(shape.batch) * shape.heads * shape.keys)
    height = max(64, height)
    for first in range(0, max(1, rows.size), height):
        yield rows[first : first + height]

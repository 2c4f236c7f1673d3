"""Attention as it is defined, in float64 NumPy and four steps: the oracle of every kernel.

1. score    how well each query matches each key: their dot product
2. scale    the scores scaled, capped, biased and masked: the logits
3. softmax  logits to weights, which add up to 1 in each row
4. mix      the values, added up as the weights say

`gradients` walks the same steps in reverse. Whole matrices are held, so this is for small inputs.
Every function computes in the dtype it is given, float64 unless a test asks for more.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chumoku.kernels import Gradients
from chumoku.mask import position_offset
from chumoku.statistics import Statistics

if TYPE_CHECKING:
    from chumoku.kernels import Call, Upstream

Reals = NDArray[Any]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

name = "reference"


def refuses(call: Call) -> str | None:
    """Why this kernel cannot serve the call: it serves all in main memory, if that is enough."""
    return None if isinstance(call.query, np.ndarray) else "it reads main memory"


def run(call: Call) -> tuple[NDArray[Any], Statistics]:
    """Output in the query's dtype, statistics in float32 (float64 for float64)."""
    output, facts = compute(call)
    if call.exact is not None:
        wide = np.dtype(np.float32) if call.query.dtype.itemsize == 2 else call.query.dtype
        call.exact.update(output=output.astype(wide), lse=facts["lse"].astype(np.float64))
    real = _statistics_dtype(call)
    with np.errstate(all="ignore"):
        rounded = {fact: _rounded(numbers, real) for fact, numbers in facts.items()}
        return output.astype(call.query.dtype), Statistics(**rounded)


def weights(call: Call, rows: Ints, keys: Ints, lse: Reals | None) -> Reals:
    """The block (*batch, heads, len(rows), len(keys)) of the weights."""
    with np.errstate(all="ignore"):
        if lse is None:
            everything = np.arange(call.key.shape[-2])
            logits, visible = _logits(call, rows, everything, np.dtype(np.float64))
            block = softmax(logits, visible, _sinks(call, logits.dtype)).weights[..., keys]
        else:
            logits, visible = _logits(call, rows, keys, np.dtype(np.float64))
            known = lse.astype(logits.dtype)[..., None]
            block = np.where(visible & (logits != -np.inf), np.exp(logits - known), 0)
        return np.asarray(block.astype(_statistics_dtype(call)))


def compute(call: Call, dtype: type[np.floating[Any]] = np.float64) -> tuple[Reals, dict[str, Any]]:
    """The output and what was watched, by name, unrounded in the computing dtype."""
    real = np.dtype(dtype)
    rows, keys = np.arange(call.query.shape[-2]), np.arange(call.key.shape[-2])
    with np.errstate(all="ignore"):
        logits, visible = _logits(call, rows, keys, real)
        seen = softmax(logits, visible, _sinks(call, real))
        used = seen.weights * _dropout_factor(call, rows, keys, real)
        output = mix(used, visible, each_head(call, call.value, real))
        return output, _facts(call, logits, visible, seen)


# The four steps


def score(query: Reals, key: Reals) -> Reals:
    """Step 1: the dot product of every query with every key, (..., queries, keys)."""
    return np.asarray(query @ key.swapaxes(-1, -2))


def scale_scores(scores: Reals, factor: float, softcap: float | None) -> Reals:
    """Step 2, first half: scores times the factor, and bent so that none passes the cap."""
    scaled = np.multiply(scores, factor, dtype=scores.dtype)
    if softcap is None:
        return scaled
    cap = scores.dtype.type(softcap)
    return np.asarray(cap * np.tanh(scaled / cap))


def hide(logits: Reals, visible: Bools) -> Reals:
    """Step 2, last: -inf wherever a query may not look, whatever stood there, NaN too."""
    return np.where(visible, logits, logits.dtype.type(-np.inf))


class Softmax(NamedTuple):
    """Weights (..., queries, keys); the others have one number a row, (..., queries)."""

    weights: Reals
    max_logit: Reals
    lse: Reals
    sink_weight: Reals


def softmax(logits: Reals, visible: Bools, sinks: Reals | None) -> Softmax:
    """Step 3: exp(logit - lse), where lse = ln sum exp(logits), sink included.

    A row in which nothing is visible has weights 0 and lse -inf.
    """
    none = logits.dtype.type(-np.inf)
    max_logit = logits.max(axis=-1, initial=none)
    # inf goes before NaN: both make every weight NaN, and inf tells more.
    max_logit = np.where((logits == np.inf).any(axis=-1), np.inf, max_logit)
    sink = np.broadcast_to(none if sinks is None else sinks[:, None], max_logit.shape)
    # The largest number is taken off first, so that exp cannot overflow.
    largest = np.maximum(max_logit, sink)
    shift = np.where(largest == none, 0, largest)
    powers = np.exp(logits - shift[..., None])
    sink_power = np.exp(sink - shift)
    total = powers.sum(axis=-1) + sink_power
    divisor = np.where(total == 0, 1, total)
    return Softmax(
        weights=np.where(visible, powers / divisor[..., None], 0),
        max_logit=max_logit,
        lse=shift + np.log(total),
        sink_weight=sink_power / divisor,
    )


def mix(weights: Reals, visible: Bools, value: Reals) -> Reals:
    """Step 4: the sum over the keys of weight times value, (..., queries, value_width).

    A weight of 0 does not silence a NaN or Inf, for 0 * NaN is NaN: values that are not finite
    are added key by key, to the rows that see the key.
    """
    finite = np.isfinite(value)
    mixed = weights @ np.where(finite, value, 0)
    wild = np.where(finite, 0, value)
    for j in np.flatnonzero(~finite.all(axis=(*range(value.ndim - 2), -1))):
        part = weights[..., j, None] * wild[..., j, None, :]
        mixed = mixed + np.where(visible[..., j, None], part, 0)
    return np.asarray(mixed)


def _logits(call: Call, rows: Ints, keys: Ints, real: np.dtype[Any]) -> tuple[Reals, Bools]:
    """Steps 1 and 2 for any block: its logits, and which of them are visible."""
    visible = visible_keys(call, rows, keys)
    query = call.query[..., rows, :].astype(real)
    scores = score(query, each_head(call, call.key[..., keys, :], real))
    logits = scale_scores(scores, call.scale, call.softcap)
    if call.bias is not None:
        logits = logits + call.bias[..., rows[:, None], keys].astype(real)
    return hide(logits, visible), visible


def visible_keys(call: Call, rows: Ints, keys: Ints) -> Bools:
    """Which keys each row sees: the mask allows them, and no bias of -inf stands there."""
    shape = call.shape
    visible = np.ones((*shape.batch, shape.heads, rows.size, keys.size), np.bool_)
    if call.mask is not None:
        visible &= call.mask.allowed(shape, rows, keys)
    if call.bias is not None:
        visible &= ~np.isneginf(call.bias[..., rows[:, None], keys].astype(np.float64))
    return visible


def each_head(call: Call, shared: NDArray[Any], real: np.dtype[Any]) -> Reals:
    """Keys or values with one head for each query head: query heads in a row share one."""
    return np.repeat(shared.astype(real), call.group, axis=-3)


def _sinks(call: Call, real: np.dtype[Any]) -> Reals | None:
    return None if call.sinks is None else call.sinks.astype(real)


def _dropout_factor(call: Call, rows: Ints, keys: Ints, real: np.dtype[Any]) -> Reals:
    """What dropout multiplies the weights with: 0, or 1 / (1 - rate)."""
    if call.dropout is None:
        return np.ones(1, real)
    shape = call.shape
    kept = call.dropout.kept(shape.batch, shape.heads, rows, keys)
    return np.asarray(kept / (1 - real.type(call.dropout.rate)))


# Statistics


def _statistics_dtype(call: Call) -> np.dtype[Any]:
    return np.dtype(np.float64 if call.query.dtype == np.float64 else np.float32)


def _rounded(fact: Any, real: np.dtype[Any]) -> Any:
    if isinstance(fact, tuple):
        return tuple(_rounded(part, real) for part in fact)
    return fact if fact.dtype == np.int64 else fact.astype(real)


def _facts(call: Call, logits: Reals, visible: Bools, seen: Softmax) -> dict[str, Any]:
    """Everything that was watched, from the whole matrix of weights p."""
    watch, p = call.watch, seen.weights
    facts: dict[str, Any] = {"lse": seen.lse, "max_logit": seen.max_logit}
    if call.sinks is not None:
        facts["sink_weight"] = seen.sink_weight
    if watch.entropy:
        facts["entropy"] = -(p * np.log(np.where(p == 0, 1, p))).sum(axis=-1)
    if watch.saturation:
        facts["saturation"] = (p * p).sum(axis=-1)
        facts["flow"] = _flow(p, seen.sink_weight)
    if watch.top:
        facts["top_keys"], facts["top_weights"] = _top(logits, p, watch.top)
    if watch.distance:
        offset = position_offset(call.mask, call.shape)[..., None, None, None]
        i, j = np.arange(p.shape[-2])[:, None], np.arange(p.shape[-1])
        facts["distance"] = (p * abs(i + offset - j)).sum(axis=-1)
    if watch.received:
        facts["received"] = p.sum(axis=-2)
        can_see = np.maximum(visible.sum(axis=-2), 1).astype(p.dtype)
        facts["received_share"] = facts["received"] / can_see
    if watch.groups is not None:
        facts["group_mass"] = _group_mass(p, watch.groups)
    if watch.picture is not None:
        facts["picture"] = _picture(p, *watch.picture)
    return facts


def _flow(p: Reals, sink_weight: Reals) -> Reals:
    """sum_j p_j (1 - p_j) without the cancellation of 1 - sum_j p_j^2.

    r and q are the mass and the squares of all but the largest weight, and 1 minus the largest is
    r and the sink's weight: largest (r + sink) + r - q, which without sinks is 2r - r^2 - q.
    """
    if p.shape[-1] == 0:
        return np.zeros(p.shape[:-1], p.dtype)
    others = p.copy()
    np.put_along_axis(others, p.argmax(axis=-1)[..., None], 0, axis=-1)
    # NaN weights: argmax finds the first of them, which must not be lost.
    r = np.where(np.isnan(p).any(axis=-1), np.nan, others.sum(axis=-1)).astype(p.dtype)
    q = (others * others).sum(axis=-1)
    largest = p.max(axis=-1)
    # A row that sees no key has none, whatever its sink is.
    return np.asarray(np.where(largest == 0, 0, largest * (r + sink_weight)) + r - q)


def _top(logits: Reals, p: Reals, k: int) -> tuple[Ints, Reals]:
    """The k largest weights; equal logits go to the lower key, NaN counts as the largest."""
    rank = np.where(np.isnan(logits), np.inf, logits)
    order = np.argsort(-rank, axis=-1, kind="stable")[..., :k]
    there = np.take_along_axis(rank, order, axis=-1) > -np.inf
    keys = np.full((*p.shape[:-1], k), -1, np.int64)
    best = np.zeros(keys.shape, p.dtype)
    found = order.shape[-1]
    keys[..., :found] = np.where(there, order, -1)
    best[..., :found] = np.where(there, np.take_along_axis(p, order, axis=-1), 0)
    return keys, best


def _group_mass(p: Reals, groups: Ints) -> Reals:
    """Sum of the weights of each group; a row with a NaN weight is NaN in every group."""
    mass = np.zeros((*p.shape[:-1], groups.max(initial=-1) + 1), p.dtype)
    columns: Any = (..., groups)
    np.add.at(mass, columns, p)
    return np.where(np.isnan(p).any(axis=-1, keepdims=True), p.dtype.type(np.nan), mass)


def shares(length: int, parts: int) -> list[slice]:
    """Which of `length` indices each of `parts` shows.

    Part r shows r * length // parts up to (r + 1) * length // parts, and at least one: a picture
    with more rows than queries repeats them.
    """
    edges = [r * length // parts for r in range(parts + 1)]
    return [slice(a, max(b, a + 1)) for a, b in pairwise(edges)]


def _picture(p: Reals, rows: int, columns: int) -> tuple[Reals, Reals]:
    """Mean and largest weight of each cell; hidden places count as 0."""
    bands, parts = shares(p.shape[-2], rows), shares(p.shape[-1], columns)
    sums = np.stack([p[..., r, :].sum(axis=-2) for r in bands], axis=-2)
    sums = np.stack([sums[..., c].sum(axis=-1) for c in parts], axis=-1)
    most = np.stack([p[..., r, :].max(axis=-2, initial=0) for r in bands], axis=-2)
    most = np.stack([most[..., c].max(axis=-1, initial=0) for c in parts], axis=-1)
    heights = np.array([p[..., r, :].shape[-2] for r in bands])
    widths = np.array([p[..., c].shape[-1] for c in parts])
    cells = np.maximum(1, heights[:, None] * widths).astype(p.dtype)
    return sums / cells, most


# The steps in reverse


def backward(call: Call, upstream: Upstream) -> Gradients:
    """The gradients, unrounded in float64."""
    found = gradients(
        call,
        upstream.gradient,
        lse_gradient=upstream.lse_gradient,
        entropy_gradient=upstream.entropy_gradient,
    )
    if found.bias is None or upstream.bias_shape is None:
        return found._replace(bias=None)
    ones = (1,) * (found.bias.ndim - len(upstream.bias_shape)) + upstream.bias_shape
    axes = tuple(i for i, size in enumerate(ones) if size == 1)
    return found._replace(bias=found.bias.sum(axis=axes, keepdims=True))


def gradients(
    call: Call,
    output_gradient: NDArray[Any],
    dtype: type[np.floating[Any]] = np.float64,
    *,
    lse_gradient: NDArray[Any] | None = None,
    entropy_gradient: NDArray[Any] | None = None,
) -> Gradients:
    """Gradients of sum(output * output_gradient), unrounded in the computing dtype; bias in full.

    With P the weights, D the factor of dropout, A = P D and dX the gradient of X:
    dV = A^T dO, dP = D (dO V^T), dS = P (dP - sum_j P dP), dQ = scale dS K, dK = scale dS^T Q.
    Gradients of lse and of the entropy H, where they are given, add
    P dlse - P (ln P + 1 + H - sum_j P) dH to dS.
    """
    real = np.dtype(dtype)
    rows, keys = np.arange(call.query.shape[-2]), np.arange(call.key.shape[-2])
    query = call.query.astype(real)
    key, value = each_head(call, call.key, real), each_head(call, call.value, real)
    d_output = np.asarray(output_gradient).astype(real)
    with np.errstate(all="ignore"):
        logits, visible = _logits(call, rows, keys, real)
        seen = softmax(logits, visible, _sinks(call, real))
        p = seen.weights
        factor = _dropout_factor(call, rows, keys, real)
        turned = visible.swapaxes(-1, -2)
        # Step 4
        d_value = mix((p * factor).swapaxes(-1, -2), turned, d_output)
        d_weights = np.where(visible, factor * score(d_output, value), 0)
        # Step 3: all that pulls at the scores of a row alike, then what each score has of its own
        pull = -(p * d_weights).sum(axis=-1)
        d_sinks = seen.sink_weight * pull
        if lse_gradient is not None:
            pull = pull + lse_gradient
            d_sinks = d_sinks + seen.sink_weight * lse_gradient
        if entropy_gradient is not None:
            d_entropy = np.asarray(entropy_gradient).astype(real)
            logs = np.log(np.where(p == 0, 1, p))
            entropy, mass = -(p * logs).sum(axis=-1), p.sum(axis=-1)
            pull = pull - d_entropy * (1 + entropy - mass)
            d_sinks = d_sinks + seen.sink_weight * d_entropy * (mass - entropy)
            d_weights = d_weights - d_entropy[..., None] * logs
        d_logits = np.where(visible, p * (d_weights + pull[..., None]), 0)
        # Step 2
        d_scores = d_logits * real.type(call.scale)
        if call.softcap is not None:
            bent = scale_scores(score(query, key), call.scale, call.softcap) / real.type(
                call.softcap
            )
            d_scores = np.where(visible, d_scores * (1 - bent * bent), 0)
        # Step 1
        d_query = mix(d_scores, visible, key)
        d_key = mix(d_scores.swapaxes(-1, -2), turned, query)
    return Gradients(
        query=d_query,
        key=_shared(call, d_key),
        value=_shared(call, d_value),
        bias=None if call.bias is None else d_logits,
        sinks=None if call.sinks is None else d_sinks.sum(axis=(*range(pull.ndim - 2), -1)),
    )


def _shared(call: Call, gradient: Reals) -> Reals:
    """The gradient of a key or value head: the sum over the query heads that share it."""
    *batch, _, length, width = gradient.shape
    grouped = gradient.reshape(*batch, call.key.shape[-3], call.group, length, width)
    return np.asarray(grouped.sum(axis=-3))

"""steps(): every number between the inputs of attention and its output, for a person to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from math import floor, log10, prod, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chumoku.arrays import array_of
from chumoku.checks import real, shown
from chumoku.errors import InvalidArgumentError, InvalidTypeError
from chumoku.kernels import Call
from chumoku.kernels.reference import each_head, hide, scale_scores, score, softmax, visible_keys
from chumoku.mask import Mask, as_mask
from chumoku.statistics import Watch

Reals = NDArray[np.float64]
Bools = NDArray[np.bool_]

# The largest intermediate has one number for every query, key and place of the width.
MOST_NUMBERS = 2**20

# As many as NumPy takes when it spreads shapes over one another.
_AXES = 32

# A page of numbers: what is beyond is counted, not printed.
_ROWS, _COLUMNS = 12, 10


@dataclass(frozen=True, eq=False)
class Steps:
    """The four steps of attention in full, read-only float64.

    Leading axes are those of the inputs, none for 2-D ones; key and value are repeated for the
    query heads that share them. `print(steps)` shows the numbers of 2-D inputs.

    Attributes
    ----------
    query, key, value : (..., queries, width), (..., keys, width), (..., keys, value_width)
    products : (..., queries, keys, width)
        query * key, place by place.
    scores : (..., queries, keys)
        Step 1: the products added up.
    scale : float
    scaled : (..., queries, keys)
        Step 2: scores * scale.
    capped, biased : (..., queries, keys) or None
        After softcap, after bias; None where the option was not given.
    visible : (..., queries, keys), bool
        Whether the query may look at the key.
    logits : (..., queries, keys)
        What the softmax is given: -inf where nothing is visible.
    weights : (..., queries, keys)
        Step 3: where each query looks; a row adds up to 1, less the sink's weight.
    sink_weight : (..., queries) or None
    parts : (..., queries, keys, value_width)
        Step 4: weight * value, what each key gives.
    output : (..., queries, value_width)
        The parts added up over the keys.
    """

    query: Reals
    key: Reals
    value: Reals
    products: Reals
    scores: Reals
    scale: float
    scaled: Reals
    capped: Reals | None
    biased: Reals | None
    visible: Bools
    logits: Reals
    weights: Reals
    sink_weight: Reals | None
    parts: Reals
    output: Reals

    def __str__(self) -> str:
        if self.scores.ndim == 2:
            return "\n".join(_page(self))
        shapes = {f.name: np.shape(getattr(self, f.name)) for f in fields(self)}
        lines = [f"  {name:12}{shape}" for name, shape in shapes.items() if shape]
        head = "Steps of attention, many heads (print one: steps(query[0], key[0], value[0]))"
        return "\n".join([head, *lines])


def steps(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    mask: Mask | ArrayLike | None = None,
    bias: ArrayLike | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: ArrayLike | None = None,
) -> Steps:
    """Attention with every intermediate number, for small inputs.

    The same four steps as `attention` takes, in float64: score, scale, softmax, mix.

    Parameters
    ----------
    query : array or nested list, (..., heads, queries, width)
        2-D is one head, 3-D is (heads, queries, width).
    key : array or nested list, (..., kv_heads, keys, width)
    value : array or nested list, (..., kv_heads, keys, value_width)
    mask, bias, scale, softcap, sinks : optional
        As in `attention`.

    Returns
    -------
    Steps

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        A shape, number or dtype does not fit, or a step would have more than 2**20 numbers.

    Examples
    --------
    >>> look_up = steps([[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [[10.0], [20.0]])
    >>> look_up.weights.round(3).tolist()
    [[0.67, 0.33]]
    """
    call, rank = _call(query, key, value, mask, bias, scale, softcap, sinks)
    rows, keys = np.arange(call.query.shape[-2]), np.arange(call.key.shape[-2])
    real = np.dtype(np.float64)
    q, k, v = call.query, each_head(call, call.key, real), each_head(call, call.value, real)
    with np.errstate(all="ignore"):
        visible = visible_keys(call, rows, keys)
        scores = score(q, k)
        scaled = logits = scale_scores(scores, call.scale, None)
        capped = biased = None
        if call.softcap is not None:
            capped = logits = scale_scores(scores, call.scale, call.softcap)
        if call.bias is not None:
            biased = logits = logits + call.bias
        logits = hide(logits, visible)
        seen = softmax(logits, visible, call.sinks)
        gives = seen.weights[..., None] * v[..., None, :, :]
        parts = np.where(visible[..., None], gives, 0)
        found = Steps(
            query=q,
            key=k,
            value=v,
            products=q[..., :, None, :] * k[..., None, :, :],
            scores=scores,
            scale=call.scale,
            scaled=scaled,
            capped=capped,
            biased=biased,
            visible=visible,
            logits=logits,
            weights=seen.weights,
            sink_weight=None if call.sinks is None else seen.sink_weight,
            parts=parts,
            output=parts.sum(axis=-2),
        )
    return _as_given(found, rank)


def _as_given(found: Steps, rank: int) -> Steps:
    """Without the heads axis that 2-D inputs do not have, and closed to writing."""
    arrays = {f.name: getattr(found, f.name) for f in fields(found)}
    for name, array in arrays.items():
        if isinstance(array, np.ndarray):
            arrays[name] = array[0] if rank == 2 else array.view()
            arrays[name].setflags(write=False)
    return Steps(**arrays)


# Checking


def _call(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    mask: Mask | ArrayLike | None,
    bias: ArrayLike | None,
    scale: float | None,
    softcap: float | None,
    sinks: ArrayLike | None,
) -> tuple[Call, int]:
    """The call in float64 and in its normal form, and the number of axes that the caller used."""
    q, k, v = (_reals(n, a) for n, a in (("query", query), ("key", key), ("value", value)))
    rank = max(q.ndim, k.ndim, v.ndim)
    q, k, v = _fit(q, k, v)
    *batch, heads, queries, width = q.shape
    whole = (*batch, heads, queries, k.shape[-2])
    numbers = prod(whole) * max(width, v.shape[-1])
    if numbers > MOST_NUMBERS:
        raise InvalidArgumentError(
            "query",
            got=f"{numbers:,} numbers in one step ({prod(whole[:-2])} heads x {queries} queries"
            f" x {whole[-1]} keys x width {max(width, v.shape[-1])})",
            expected=f"{MOST_NUMBERS:,} at most",
            cure="Give fewer queries or heads; attention(..., watch=) tells the facts of any size.",
        )
    return Call(
        query=q,
        key=k,
        value=v,
        mask=None if mask is None else _mask(mask),
        bias=None if bias is None else _spread("bias", bias, whole),
        scale=1 / sqrt(width) if scale is None else real("scale", scale),
        softcap=None if softcap is None else real("softcap", softcap, above=0.0),
        sinks=None if sinks is None else _spread("sinks", sinks, (heads,)),
        dropout=None,
        watch=Watch(),
    ), rank


def _mask(given: Mask | ArrayLike) -> Mask:
    """A mask, or nested lists of booleans."""
    listed = isinstance(given, (list, tuple))
    return as_mask(array_of("mask", given, "a mask value or booleans") if listed else given)


def _reals(name: str, given: ArrayLike) -> Reals:
    """A float64 copy, so that the steps stay what they were."""
    expected = "an array or a nested list of numbers"
    array = array_of(name, given, expected)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        got = shown(given) if array.dtype == object else f"{array.dtype} values"
        raise InvalidTypeError(name, got, expected)
    if array.ndim > _AXES:
        raise InvalidArgumentError(name, f"{array.ndim} axes", f"{_AXES} at most")
    array = array.astype(np.float64)
    if array.ndim < 2 and name in ("query", "key", "value"):
        raise InvalidArgumentError(name, f"shape {array.shape}", "(..., heads, length, width)")
    return array


def _fit(q: Reals, k: Reals, v: Reals) -> tuple[Reals, Reals, Reals]:
    """The three with a heads axis and the same leading axes."""
    q, k, v = (a[(None,) * max(0, 3 - a.ndim)] for a in (q, k, v))
    (heads, _, width), (kv_heads, keys) = q.shape[-3:], k.shape[-3:-1]
    if not width:
        raise InvalidArgumentError("query", "width 0", "a width of 1 or more")
    if k.shape[-1] != width:
        got = f"width {k.shape[-1]}"
        raise InvalidArgumentError("key", got, f"width {width}, as the query has")
    if v.shape[-3:-1] != (kv_heads, keys):
        got = f"{v.shape[-3]} heads of {v.shape[-2]} positions"
        raise InvalidArgumentError("value", got, f"{kv_heads} of {keys}, as the key has")
    if heads % kv_heads if kv_heads else heads:
        expected = f"a divisor of the query's {heads} heads"
        raise InvalidArgumentError("key", f"{kv_heads} heads", expected)
    batch: tuple[int, ...] = q.shape[:-3]
    for name, array in (("key", k), ("value", v)):
        try:
            batch = np.broadcast_shapes(batch, array.shape[:-3])
        except ValueError:
            got, expected = f"leading axes {array.shape[:-3]}", f"axes that fit {batch}"
            raise InvalidArgumentError(name, got, expected) from None
    q, k, v = (np.broadcast_to(a, batch + a.shape[-3:]) for a in (q, k, v))
    return q, k, v


def _spread(name: str, given: ArrayLike, whole: tuple[int, ...]) -> Reals:
    array = _reals(name, given)
    try:
        return np.broadcast_to(array, whole)
    except ValueError:
        expected = f"one that broadcasts to {whole}"
        raise InvalidArgumentError(name, f"shape {array.shape}", expected) from None


# Printing


def _page(shown: Steps) -> Iterator[str]:
    """The four steps of one head, one table each."""
    (queries, keys), width = shown.scores.shape, shown.query.shape[-1]
    at_keys = [f"key {j}" for j in range(keys)]
    places = [f"[{c}]" for c in range(shown.output.shape[-1])]
    counts = (
        f"{queries} {'query' if queries == 1 else 'queries'}",
        f"{keys} key{'s'[: keys != 1]}",
    )
    yield f"Attention step by step: {', '.join(counts)}, width {width}"
    yield from _table("1. score: each query times each key", at_keys, shown.scores)
    yield from _table(f"2. scale: scores x {shown.scale:.4g}", at_keys, shown.scaled)
    if shown.capped is not None:
        yield from _table("   softcap", at_keys, shown.capped)
    if shown.biased is not None:
        yield from _table("   bias added", at_keys, shown.biased)
    if not shown.visible.all():
        yield from _table("   mask: . may not be looked at", at_keys, shown.logits)
    weights = np.where(shown.visible, shown.weights, -np.inf)
    title = "3. softmax: where each query looks, in percent"
    if shown.sink_weight is not None:
        weights = np.concatenate([weights, shown.sink_weight[:, None]], axis=-1)
    yield from _table(title, [*at_keys, "sink"][: weights.shape[-1]], weights, _percent)
    yield from _table("4. mix: values, as much of each as the weights say", places, shown.output)


def _table(
    title: str, heads: list[str], numbers: Reals, text: Callable[[float], str] | None = None
) -> Iterator[str]:
    rows, columns = min(_ROWS, numbers.shape[0]), min(_COLUMNS, numbers.shape[1])
    text = text or _plain(numbers)
    cells = [[text(x) for x in row[:columns]] for row in numbers[:rows]]
    wide = [max(map(len, column)) + 2 for column in zip(heads[:columns], *cells, strict=True)]
    label = max((len(f"query {i}") for i in range(rows)), default=0) + 3
    more = numbers.shape[1] - columns
    yield f"\n{title}"
    heading = "".join(f"{h:>{w}}" for h, w in zip(heads, wide, strict=False))
    yield " " * label + heading + (f"   ({more} more)" if more else "")
    for i, row in enumerate(cells):
        line = "".join(f"{cell:>{w}}" for cell, w in zip(row, wide, strict=True))
        yield f"   query {i}".ljust(label) + line
    if numbers.shape[0] > rows:
        yield f"   ({numbers.shape[0] - rows} more queries)"


def _plain(numbers: Reals) -> Callable[[float], str]:
    """How a table prints numbers: two decimals, more when all are small; hidden ones as dots."""
    largest = np.abs(numbers[np.isfinite(numbers)]).max(initial=0.0)
    decimals = 2 if largest >= 0.1 or largest == 0 else 2 - floor(log10(largest))
    form = f".{decimals}f" if largest < 1e6 and decimals < 8 else ".3g"
    return lambda x: "." if x == -np.inf else format(x + 0.0, form)


def _percent(x: float) -> str:
    return "." if x == -np.inf else f"{100 * x:.1f} %"

"""attention_backward(): the gradients of attention(), without the matrix of weights."""

from __future__ import annotations

from typing import Any, NamedTuple

from chumoku.arrays import Guest, dtype_name, guest_of
from chumoku.attention.call import NOTHING, arrays_of, check, choose, lse_of, same_dtype
from chumoku.checks import shown
from chumoku.dropout import Dropout
from chumoku.errors import InvalidArgumentError, InvalidTypeError
from chumoku.kernels import Call, Upstream
from chumoku.mask import Mask
from chumoku.statistics import Array


class Gradients(NamedTuple):
    """Gradients of a call's arrays, each of the shape, dtype and kind of its array.

    None for a bias or sinks that the call does not have.
    """

    query: Array
    key: Array
    value: Array
    bias: Array | None
    sinks: Array | None


def attention_backward(
    output_gradient: Array,
    query: Array,
    key: Array,
    value: Array,
    *,
    output: Array | None = None,
    lse: Array | None = None,
    lse_gradient: Array | None = None,
    entropy_gradient: Array | None = None,
    mask: Mask | Array | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout: Dropout | None = None,
    bias_gradient: bool = True,
    kernel: str | None = None,
) -> Gradients:
    """The gradients of `attention`, in memory that grows with queries + keys.

    Weights are taken again from the scores and lse, block by block, so that no matrix is kept
    between the two passes (Dao et al. 2022, section 3.1). Every sum is taken in one order: the
    bits are the same for any number of threads.

    Parameters
    ----------
    output_gradient : array, (..., heads, queries, value_width)
        The gradient of a loss with respect to the output, of the query's dtype.
    query, key, value, mask, bias, scale, softcap, sinks, dropout, kernel
        As given to `attention`.
    output : array, (..., heads, queries, value_width), optional
    lse : array, (..., heads, queries), optional
        What `attention` gave for this call, and its seen.lse: together they spare a forward pass.
        lse may be in float64, and of 16-bit arrays the output in float32: gradients are the
        better for what is not rounded.
    lse_gradient, entropy_gradient : array, (..., heads, queries), optional
        Gradients of the loss with respect to seen.lse and seen.entropy, of their dtype: float32,
        or float64 for float64 inputs.
    bias_gradient : bool
        Whether that of the bias is wanted; it takes memory of the bias's size.

    Returns
    -------
    Gradients
        query, key, value, bias and sinks, by name. What was broadcast has the sum over its axes.
        A query that sees no key gets 0, and what is hidden is not felt, be it NaN.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError, UnavailableError
        As `attention`.
    """
    guest = guest_of(query, gpu=True)
    arrays = arrays_of(guest, query=query, key=key, value=value)
    given = guest.array("output_gradient", output_gradient)
    same_dtype("output_gradient", given, arrays["query"].dtype)
    rank = max(array.ndim for array in (*arrays.values(), given))
    lead = given.shape[:-3]
    call = check(guest, arrays, mask, bias, scale, softcap, sinks, dropout, NOTHING, lead)
    if not isinstance(bias_gradient, bool):
        raise InvalidTypeError("bias_gradient", shown(bias_gradient), "True or False")
    own_bias = None if bias is None else guest.array("bias", bias)
    upstream = Upstream(
        gradient=_outputs("output_gradient", call, given, rank),
        output=None if output is None else _known_output(guest, call, output, rank),
        lse=_rows(guest, "lse", call, lse, rank),
        lse_gradient=_rows(guest, "lse_gradient", call, lse_gradient, rank),
        entropy_gradient=_rows(guest, "entropy_gradient", call, entropy_gradient, rank),
        bias_shape=own_bias.shape if own_bias is not None and bias_gradient else None,
    )
    found = choose(call, kernel).backward(call, upstream)

    def back(gradient: Array | None, like: Array | None) -> Any:
        if gradient is None or like is None:
            return None
        return guest.back(guest.rounded(summed(guest, gradient, like.shape), like))

    return Gradients(
        query=back(found.query, arrays["query"]),
        key=back(found.key, arrays["key"]),
        value=back(found.value, arrays["value"]),
        bias=back(found.bias, own_bias),
        sinks=back(found.sinks, call.sinks),
    )


def summed(guest: Guest, gradient: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of an array of this shape that was broadcast."""
    more = gradient.ndim - len(shape)
    axes = [*range(more)]
    axes += [
        more + i for i, size in enumerate(shape) if size == 1 and gradient.shape[more + i] != 1
    ]
    whole = guest.summed(gradient, tuple(axes)) if axes else gradient
    return whole.reshape(shape)


def _outputs(name: str, call: Call, array: Array, rank: int) -> Array:
    """An array of the output's shape, with all axes of the call."""
    whole = (*call.query.shape[:-1], call.value.shape[-1])
    expected = whole[len(whole) - rank :]
    if array.shape != expected:
        raise InvalidArgumentError(
            name, f"shape {tuple(array.shape)}", f"{expected}, as the output of the same call has"
        )
    return array.reshape(whole)


def _known_output(guest: Guest, call: Call, output: Array, rank: int) -> Array:
    array = guest.array("output", output)
    if call.query.dtype.itemsize > 2 or dtype_name(array.dtype) != "float32":
        same_dtype("output", array, call.query.dtype)
    return _outputs("output", call, array, rank)


def _rows(guest: Guest, name: str, call: Call, given: Array | None, rank: int) -> Array | None:
    """A statistic of each row, or its gradient, with all axes of the call."""
    if given is None:
        return None
    return lse_of(call, guest.array(name, given), rank, name, unrounded=name == "lse")

"""Eager training: the same gradients as the operator's, without its detours.

PyTorch needs some 300 us to send a call through an operator that is written in Python.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chumoku.arrays import Guest, guest_of
from chumoku.attention import attention_backward
from chumoku.attention.forward import attend
from chumoku.kernels import native
from chumoku.mask import Mask
from chumoku.record import open_recordings
from chumoku.statistics import Statistics, Watch
from chumoku.torch.operator import Asked, gradients_of, options_of


def trained(tensors: tuple[Any, ...], options: Asked, watch: Watch | None) -> Any:
    """The call of query, key, value, bias and sinks, differentiable once and again."""
    apply: Any = _Trained.apply
    if watch is None:
        return apply(*tensors, options, None, None)[0]
    seen: list[Statistics] = []
    output, lse, entropy = apply(*tensors, options, watch, seen)
    facts = seen[0].facts() | {"lse": lse}
    return output, Statistics(**(facts | {"entropy": entropy} if watch.entropy else facts))


class _Trained(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        sinks: Tensor | None,
        options: Asked,
        watch: Watch | None,
        seen: list[Statistics] | None,
    ) -> tuple[Tensor | None, ...]:
        guest, call, lse, entropy = guest_of(query, gpu=True), None, None, None
        if bias is None and sinks is None and options[1:] == (None,) * 3:
            call = _usual(guest, query, key, value, options.mask)
        ctx.options, ctx.usual = options, call is not None
        exact: dict[str, Any] = {}
        if call is not None and watch is None and not open_recordings():
            found, exact = call.attend()
            output = guest.back(found)
            exact = {name: guest.back(array) for name, array in exact.items()}
        else:
            q, k, v, b, s = (
                x if x is None else x.detach() for x in (query, key, value, bias, sinks)
            )
            output, statistics = attend(
                (q, k, v), watch, exact, bias=b, sinks=s, **options._asdict()
            )
            if seen is not None and statistics is not None:
                seen.append(statistics)
                lse, entropy = statistics.lse, statistics.facts().get("entropy")
        if exact["output"].dtype == output.dtype:
            exact["output"] = output
        known = (exact["output"], exact["lse"])
        ctx.save_for_backward(query, key, value, bias, sinks, *known)
        ctx.set_materialize_grads(False)
        return output, lse, entropy

    @staticmethod
    def backward(
        ctx: Any, d_output: Tensor | None, d_lse: Tensor | None, d_entropy: Tensor | None
    ) -> tuple[Any, ...]:
        rest = (None, None, None)
        if d_output is None and d_lse is None and d_entropy is None:
            return (None,) * 5 + rest
        query, key, value, bias, sinks, output, lse = ctx.saved_tensors
        if d_output is None:
            d_output = torch.zeros_like(output, dtype=query.dtype)
        if torch.is_grad_enabled():
            # Second derivatives: through the operator, which can be differentiated.
            real = torch.float64 if query.dtype == torch.float64 else torch.float32
            arrays = (query, key, value, output.to(query.dtype), lse.to(real))
            options = options_of(query, bias, sinks, ctx.options)
            return *gradients_of((d_output, d_lse, d_entropy), arrays, options), *rest
        if ctx.usual and d_lse is None and d_entropy is None:
            guest = guest_of(query)
            call = _usual(guest, query, key, value, ctx.options.mask)
            assert call is not None
            above, result = (_array(guest, x) for x in (d_output, output))
            found = call.backward(above, result, lse.detach().numpy())
            return *(guest.back(x) for x in found), None, None, *rest
        given = (x if x is None else x.detach() for x in (query, key, value, bias, sinks))
        query, key, value, bias, sinks = given
        gradients = attention_backward(
            d_output,
            query,
            key,
            value,
            output=output.detach(),
            lse=lse.detach(),
            lse_gradient=d_lse,
            entropy_gradient=d_entropy,
            bias=bias,
            sinks=sinks,
            bias_gradient=ctx.needs_input_grad[3],
            **ctx.options._asdict(),
        )
        return *gradients, *rest


def _array(guest: Guest, x: Tensor) -> Any:
    numbers = x.detach()
    array = guest.plain(numbers)
    return guest.array("query", numbers) if array is None else array


def _usual(guest: Guest, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Any:
    if guest.on_gpu or (mask is not None and not isinstance(mask, Mask)):
        return None
    q, k, v = (_array(guest, x) for x in (query, key, value))
    return native.usual(q, k, v, mask)

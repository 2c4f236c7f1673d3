"""The backward pass: its kernels in their order, and what each needs to know."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from chumoku.kernels import Call, Gradients, Upstream
from chumoku.kernels.triton import backward as back
from chumoku.kernels.triton.launch import Launch, plan_back, ready, rows_like
from chumoku.kernels.triton.passes import attend
from chumoku.statistics import Watch


class Known(NamedTuple):
    """Where facts of the rows lie; 0 where they are not needed."""

    lse: int = 0
    pull: int = 0
    twist: int = 0
    entropy: int = 0
    sink_weight: int = 0
    lse_gradient: int = 0


def backward(call: Call, upstream: Upstream) -> Gradients:
    """The gradients in the dtype of the arrays; those of bias and sinks in float32."""
    facts = _facts(call, upstream)
    lse, twist = facts["lse"], facts.get("twist")
    given = {"query": call.query, "key": call.key, "value": call.value}
    found = {which: rows_like(array, array.shape[-1]) for which, array in given.items()}
    d_bias = None
    if call.bias is not None and upstream.bias_shape is not None:
        ones = (1,) * (call.query.dim() - len(upstream.bias_shape))
        shape = (*ones, *upstream.bias_shape)
        d_bias = call.query.new_zeros(shape, dtype=torch.float32)
    if lse.numel() == 0 or call.shape.keys == 0:
        for gradient in found.values():
            gradient.zero_()
        if "lse_gradient" in facts:
            facts["pull"] += facts["lse_gradient"]
        if twist is not None and call.sinks is not None:
            facts["pull"] -= twist * facts["sink_weight"]
    else:
        given |= {"gradient": upstream.gradient, "output": facts.pop("output")}
        _pull_back(call, given, found, d_bias, facts)
    d_sinks = None
    if call.sinks is not None:
        pulled = facts["sink_weight"] * (facts["pull"] if twist is None else facts["pull"] + twist)
        axes = [axis for axis in range(pulled.dim()) if axis != pulled.dim() - 2]
        d_sinks = pulled.sum(dim=axes)
    return Gradients(**found, bias=d_bias, sinks=d_sinks)


def _facts(call: Call, upstream: Upstream) -> dict[str, Tensor]:
    """The output, and what is known of the rows, in float32."""
    twist = upstream.entropy_gradient
    output, lse = upstream.output, upstream.lse
    facts: dict[str, Tensor] = {}
    if output is None or lse is None or twist is not None:
        watch = Watch(entropy=twist is not None)
        output, facts = attend(replace(call, watch=watch, exact=None))
        lse = facts["lse"]
    rows: dict[str, Any] = {"lse": lse, "pull": torch.zeros_like(lse, dtype=torch.float32)}
    if twist is not None:
        rows |= {"twist": twist, "entropy": facts["entropy"]}
    if upstream.lse_gradient is not None:
        rows["lse_gradient"] = upstream.lse_gradient
    if call.sinks is not None:
        weight = torch.exp(call.sinks.float()[:, None] - lse)
        rows["sink_weight"] = torch.where(lse == -torch.inf, 0.0, weight)
    rows = {fact: x.float().contiguous() for fact, x in rows.items()}
    return rows | {"output": output.to(call.query.dtype)}


def _pull_back(
    call: Call,
    given: dict[str, Tensor],
    found: dict[str, Tensor],
    d_bias: Tensor | None,
    facts: dict[str, Tensor],
) -> None:
    """Fills the gradients found, and what pulls at each row."""
    plan = plan_back(call)
    asked = replace(call, watch=Watch(entropy="twist" in facts))
    own = None if d_bias is None else partial(_own, call, d_bias)
    made = ready(
        asked, plan, (*given.values(), *found.values()), own, lse_gradient="lse_gradient" in facts
    )
    q, k, v, g, o, dq, dk, dv = made.matrices
    numbers, form = made.given, made.form
    known = Known(**{fact: x.data_ptr() for fact, x in facts.items() if fact in Known._fields})
    rows, told = (made.programs,), plan.told
    back.pull[rows](o, g, known, numbers, form, **told)
    back.back_to_queries[rows](q, k, v, g, dq, known, numbers, form, **told)
    keys = (prod(call.key.shape[:-2]) * -(-call.shape.keys // plan.keys),)
    back.back_to_keys[keys](q, k, v, g, dk, dv, known, numbers, form, **told)
    if d_bias is not None and d_bias.numel():
        form = form.but(rows_shared=d_bias.shape[-2] == 1, keys_shared=d_bias.shape[-1] == 1)
        heads, height, width = d_bias.shape[-3:]
        tiles = -(-height // plan.rows) * -(-width // plan.keys)
        programs = (prod(d_bias.shape[:-3]) * heads * tiles,)
        at = d_bias.data_ptr()
        back.back_to_bias[programs](q, k, v, g, at, made.own, known, numbers, form, **told)


def _own(call: Call, d_bias: Tensor, launch: Launch) -> tuple[int, ...]:
    """Sizes of the bias, and which batch entries share each of its own."""
    batch, own = call.shape.batch, tuple(d_bias.shape[:-3])
    names = np.broadcast_to(np.arange(prod(own)).reshape(own), batch).reshape(-1)
    shared = names.size // max(1, prod(own))
    table = launch.tables.add(np.argsort(names, kind="stable"))
    return (*d_bias.shape[-3:], shared, table)

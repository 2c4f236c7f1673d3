"""The operators chumoku::attention and chumoku::attention_backward: real, fake, differentiated."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from chumoku.attention import attention, attention_backward
from chumoku.dropout import Dropout
from chumoku.errors import UnavailableError
from chumoku.mask import Mask
from chumoku.record import label
from chumoku.statistics import Statistics, Watch
from chumoku.torch.composed import composed
from chumoku.torch.forms import IN_TABLES, Drawn, Form, dropout_of, form_of, mask_of

_OPTIONS = (
    "Tensor? bias, Tensor? sinks, Tensor[] tables, str form, float scale, float softcap, "
    "float rate, int seed"
)
# Facts in the order in which the operator gives them; those that are not watched are empty. The
# first two can be differentiated.
_FACTS = (
    "lse",
    "entropy",
    "max_logit",
    "saturation",
    "flow",
    "distance",
    "sink_weight",
    "top_keys",
    "top_weights",
    "group_mass",
    "received",
    "received_share",
    "picture_mean",
    "picture_most",
)
_WATCH = (
    "int top, bool entropy, bool saturation, bool distance, bool received, Tensor? groups, "
    "int picture_rows, int picture_columns"
)


class Asked(NamedTuple):
    """The options of a call that are no tensors of numbers."""

    mask: Mask | Form | Tensor | None
    scale: float | None
    softcap: float | None
    dropout: Dropout | Drawn | None


_LIBRARY: Any = torch.library.Library("chumoku", "DEF")  # type: ignore[no-untyped-call]
# A call sends tables to its GPU: it cannot be part of a CUDA graph.
_TAGS = tuple(
    getattr(torch.Tag, name) for name in ("cudagraph_unsafe",) if hasattr(torch.Tag, name)
)
_LIBRARY.define(
    f"attention(Tensor query, Tensor key, Tensor value, {_OPTIONS}, {_WATCH}, str name) -> "
    f"({', '.join(['Tensor'] * (1 + len(_FACTS)))})",
    tags=_TAGS,
)
_LIBRARY.define(
    "attention_backward(Tensor output_gradient, Tensor? lse_gradient, Tensor? entropy_gradient, "
    f"Tensor query, Tensor key, Tensor value, Tensor output, Tensor lse, {_OPTIONS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)


# Facts


def watched(watch: Watch | None) -> tuple[Any, ...]:
    """What is watched, as the operator's last arguments."""
    if watch is None:
        return 0, False, False, False, False, None, 0, 0
    groups = None if watch.groups is None else torch.from_numpy(np.array(watch.groups))
    facts = (watch.entropy, watch.saturation, watch.distance, watch.received)
    return watch.top, *facts, groups, *(watch.picture or (0, 0))


def _watch_of(
    top: int,
    entropy: bool,
    saturation: bool,
    distance: bool,
    received: bool,
    groups: Tensor | None,
    *picture: int,
) -> Watch:
    return Watch(
        top=top,
        entropy=entropy,
        saturation=saturation,
        distance=distance,
        received=received,
        groups=None if groups is None else groups.numpy(),
        picture=(picture[0], picture[1]) if picture[0] else None,
    )


def _names(watch: Watch, sinks: bool) -> set[str]:
    """The facts that are there, as the operator names them."""
    names = {"lse", "max_logit"}
    names |= {"entropy"} if watch.entropy else set()
    names |= {"saturation", "flow"} if watch.saturation else set()
    names |= {"distance"} if watch.distance else set()
    names |= {"sink_weight"} if sinks else set()
    names |= {"top_keys", "top_weights"} if watch.top else set()
    names |= {"group_mass"} if watch.groups is not None else set()
    names |= {"received", "received_share"} if watch.received else set()
    names |= {"picture_mean", "picture_most"} if watch.picture is not None else set()
    return names


def statistics_of(facts: tuple[Tensor, ...], watch: Watch, sinks: bool) -> Statistics:
    """What was seen; lse and entropy can be differentiated."""
    names = _names(watch, sinks)
    there = {n: f for n, f in zip(_FACTS, facts, strict=True) if n in names}
    there = {n: f if n in ("lse", "entropy") else f.detach() for n, f in there.items()}
    if watch.picture is not None:
        picture = there.pop("picture_mean"), there.pop("picture_most")
        return Statistics(**there, picture=picture)
    return Statistics(**there)


# The operator


def options_of(
    query: Tensor,
    bias: Tensor | None,
    sinks: Tensor | None,
    asked: Asked,
) -> tuple[Any, ...]:
    """A call's options as the operators take them."""
    tables: list[Tensor] = []
    form = form_of(asked.mask, tables)
    scale = 1 / math.sqrt(query.shape[-1]) if asked.scale is None else asked.scale
    if isinstance(asked.dropout, Drawn):
        tables.append(asked.dropout.seed)
        dropout = (asked.dropout.rate, IN_TABLES)
    else:
        dropout = (0.0, 0) if asked.dropout is None else (asked.dropout.rate, asked.dropout.seed)
    return bias, sinks, tables, form, scale, asked.softcap or 0.0, *dropout


def _options(
    bias: Tensor | None,
    sinks: Tensor | None,
    tables: list[Tensor],
    form: str,
    scale: float,
    softcap: float,
    rate: float,
    seed: int,
) -> dict[str, Any]:
    return {
        "bias": bias,
        "sinks": sinks,
        "mask": mask_of(form, tables),
        "scale": scale,
        "softcap": softcap or None,
        "dropout": dropout_of(rate, seed, tables),
    }


def _forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    options, watch, name = rest[:8], _watch_of(*rest[8:-1]), rest[-1]
    call: Any = attention
    with torch.no_grad(), label(name) if name else nullcontext():
        output, seen = call(query, key, value, watch=watch, **_options(*options))
    facts = seen.facts()
    if watch.picture is not None:
        facts["picture_mean"], facts["picture_most"] = facts.pop("picture")
    return output, *(facts.get(name, query.new_empty(0)) for name in _FACTS)


def _backward(
    output_gradient: Tensor,
    lse_gradient: Tensor | None,
    entropy_gradient: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found = attention_backward(
            output_gradient,
            query,
            key,
            value,
            output=output,
            lse=lse,
            lse_gradient=lse_gradient,
            entropy_gradient=entropy_gradient,
            **_options(*options),
        )
    given = (query, key, value, *options[:2])
    return tuple(
        query.new_empty(0) if gradient is None or x is None else _laid(gradient, x)
        for gradient, x in zip(found, given, strict=True)
    )


def _laid(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient in the strides that the operator promises."""
    promised = _promised(like)
    if gradient.stride() == promised.stride():
        return gradient
    return promised.copy_(gradient)


def _promised(like: Tensor) -> Tensor:
    if like.dim() > 2:
        return _empty_rows(like, like.shape[-1:])
    return like.new_empty(like.shape)


def _empty_rows(query: Tensor, width: tuple[int, ...], lead: tuple[int, ...] = ()) -> Tensor:
    """Memory that lies as a kernel's output for such a query does: heads first, or inside."""
    shape = (*(lead or query.shape[:-3]), *query.shape[-3:-1], *width)
    if 0 < query.stride(-3) < query.stride(-2):
        *batch, heads, rows, last = shape
        return query.new_empty((*batch, rows, heads, last)).transpose(-3, -2)
    return query.new_empty(shape)


def _fake_forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    sinks = rest[1]
    top, entropy, saturation, distance, received, groups, *picture = rest[8:-1]
    rank = max(query.dim(), key.dim(), value.dim())
    shapes_of: Any = torch.broadcast_shapes
    lead = shapes_of(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    if rank == 2:
        output = query.new_empty((query.shape[0], value.shape[-1]))
    else:
        whole = query if query.dim() > 2 else query[None]
        output = _empty_rows(whole, value.shape[-1:], tuple(lead))
    real = torch.float64 if query.dtype == torch.float64 else torch.float32
    places, keys = output.shape[:-1], key.shape[-2]
    shapes: dict[str, tuple[Any, ...]] = {"lse": places, "max_logit": places}
    row_facts = {
        "entropy": entropy,
        "saturation": saturation,
        "flow": saturation,
        "distance": distance,
        "sink_weight": sinks is not None,
    }
    shapes |= {name: places for name, there in row_facts.items() if there}
    if top:
        shapes["top_keys"] = shapes["top_weights"] = (*places, top)
    if received:
        shapes["received"] = shapes["received_share"] = (*places[:-1], keys)
    if picture[0]:
        shapes["picture_mean"] = shapes["picture_most"] = (*places[:-1], *picture)
    if groups is not None:
        count = torch.library.get_ctx().new_dynamic_size()
        shapes["group_mass"] = (*places, count)
    return output, *(
        query.new_empty(shapes[name], dtype=torch.int64 if name == "top_keys" else real)
        if name in shapes
        else query.new_empty(0)
        for name in _FACTS
    )


def _fake_backward(*given: Any) -> tuple[Tensor, ...]:
    none = given[3].new_empty(0)
    arrays = (*given[3:6], *given[8:10])
    return tuple(none if x is None else _promised(x) for x in arrays)


# Gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, value, bias, sinks, tables, *numbers = inputs[:11]
    ctx.save_for_backward(query, key, value, bias, sinks, output[0], output[1], *tables)
    ctx.numbers = numbers
    ctx.entropy = inputs[12]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_output: Tensor | None, *d_facts: Tensor | None) -> tuple[Any, ...]:
    query, key, value, bias, sinks, output, lse, *tables = ctx.saved_tensors
    d_lse, d_entropy = d_facts[0], d_facts[1] if ctx.entropy else None
    rest = ([None] * len(tables), *(None,) * 14)
    if d_output is None and d_lse is None and d_entropy is None:
        return *(None,) * 5, *rest
    if d_output is None:
        d_output = torch.zeros_like(output)
    options = (bias, sinks, tables, *ctx.numbers)
    upstream = (d_output, d_lse, d_entropy)
    return *gradients_of(upstream, (query, key, value, output, lse), options), *rest


def gradients_of(
    upstream: tuple[Tensor | None, ...], arrays: tuple[Tensor, ...], options: tuple[Any, ...]
) -> tuple[Tensor | None, ...]:
    """Those of query, key, value, bias and sinks, by the operator, which can be differentiated.

    `upstream` are the gradients of output, lse and entropy, `arrays` query, key, value, output
    and lse, `options` those of `options_of`.
    """
    found = torch.ops.chumoku.attention_backward(*upstream, *arrays, *options)
    there = (*arrays[:3], *options[:2])
    return tuple(None if x is None else g for g, x in zip(found, there, strict=True))


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    del output  # PyTorch names it
    upstream, arrays, options = inputs[:3], inputs[3:6], inputs[8:]
    bias, sinks, tables, *numbers = options
    ctx.save_for_backward(*upstream, *arrays, bias, sinks, *tables)
    ctx.numbers = numbers
    ctx.set_materialize_grads(False)


def _differentiate_twice(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
    """Through PyTorch's own operations: the matrix of weights is held."""
    upstream, arrays = ctx.saved_tensors[:3], ctx.saved_tensors[3:8]
    tables = list(ctx.saved_tensors[8:])
    given: list[Any] = [
        None if x is None else x.detach().requires_grad_() for x in (*upstream, *arrays)
    ]
    with torch.enable_grad():
        query, key, value, bias, sinks = given[3:]
        outputs = composed(query, key, value, (bias, sinks, tables, *ctx.numbers))
        there = [(o, g) for o, g in zip(outputs, given[:3], strict=True) if g is not None]
        leaves = [x for x in given[3:] if x is not None]
        first = torch.autograd.grad(
            [o for o, _ in there], leaves, [g for _, g in there], create_graph=True
        )
        wanted = [g for g, x in zip(gradients, given[3:], strict=True) if x is not None]
        pairs = [(f, g) for f, g in zip(first, wanted, strict=True) if g is not None]
        inputs = [x for x in given if x is not None]
        second = iter(
            torch.autograd.grad(
                [f for f, _ in pairs],
                inputs,
                [g for _, g in pairs],
                allow_unused=True,
                create_graph=torch.is_grad_enabled(),
            )
        )
    found = [None if x is None else next(second) for x in given]
    return (*found[:6], None, None, *found[6:8], [None] * len(tables), *(None,) * 5)


# vmap


def _batched(info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[Any, Any]:
    """One call for a whole batch: the axis of vmap leads."""
    query, key, value, bias, sinks, tables, *rest = given
    at_query, at_key, at_value, at_bias, at_sinks, at_tables = in_dims[:6]
    if at_sinks is not None:
        raise UnavailableError(
            "sinks",
            got="sinks of each entry of vmap",
            expected="the same for all",
            cure="Call without vmap: leading axes are batches.",
        )
    ranks = [x.dim() - (at is not None) for x, at in zip(given[:3], in_dims[:3], strict=True)]
    rank = max(*ranks, 3)

    def led(x: Any, at: int | None, matrix: bool) -> Any:
        if x is None or at is None:
            return x
        x = x.movedim(at, 0)
        if matrix and x.dim() == 3:
            x = x.unsqueeze(1)
        return x.reshape(x.shape[0], *(1,) * (rank + 1 - x.dim()), *x.shape[1:])

    if at_query is None:
        query, at_query = query.expand(info.batch_size, *query.shape), 0
    tables = [led(x, at, False) for x, at in zip(tables, at_tables, strict=True)]
    found = torch.ops.chumoku.attention(
        led(query, at_query, True),
        led(key, at_key, True),
        led(value, at_value, True),
        led(bias, at_bias, False),
        sinks,
        tables,
        *rest,
    )
    if max(ranks) == 2:
        found = [x if x.numel() == 0 and x.dim() == 1 else x.squeeze(1) for x in found]
    dims = tuple(None if x.numel() == 0 and x.dim() == 1 else 0 for x in found)
    return tuple(found), dims


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("attention", _forward, _device)
    _LIBRARY.impl("attention_backward", _backward, _device)
torch.library.register_fake("chumoku::attention", _fake_forward, lib=_LIBRARY)
torch.library.register_fake("chumoku::attention_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd(
    "chumoku::attention", _differentiate, setup_context=_save, lib=_LIBRARY
)
torch.library.register_autograd(
    "chumoku::attention_backward",
    _differentiate_twice,
    setup_context=_save_backward,
    lib=_LIBRARY,
)
torch.library.register_vmap("chumoku::attention", _batched, lib=_LIBRARY)

"""The attention function that models of transformers call."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from chumoku.attention import attention as plain_attention
from chumoku.attention.call import Relative
from chumoku.errors import InvalidArgumentError, UnavailableError
from chumoku.huggingface.bias import RelativeBias
from chumoku.huggingface.masks import LazyMask
from chumoku.huggingface.views import AttentionView, collected
from chumoku.mask import Causal, Custom, Mask, Window, as_mask
from chumoku.record import label
from chumoku.torch.attention import attention, operated
from chumoku.torch.forms import Form, drawn
from chumoku.torch.operator import Asked

# What a watched layer is told: its name inside the model, and heads to silence.
NAME = "_chumoku_name"
SILENCED = "_chumoku_silenced"

# Arguments that change which keys are seen, and what to say of them.
_FOREIGN = {
    "cache": "continuous batching",
    "block_indices": "sparse attention by blocks",
    "sinks": "sinks that differ from query to query",
}


def attention_function(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LazyMask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | RelativeBias | None = None,
    indices: Tensor | None = None,
    output_attentions: bool | None = None,
    **others: Any,
) -> tuple[Tensor, AttentionView | None]:
    """One attention call of a model, as AttentionInterface asks for it.

    Parameters
    ----------
    module : Module
        The attention layer that calls.
    query : Tensor, (batch, heads, queries, width)
    key, value : Tensor, (batch, kv_heads, keys, width or value_width)
    attention_mask : LazyMask or Tensor, optional
        What `mask_function` made, or a 4-D mask of the user: True may look, floats are added.
    dropout : float
        The rate; the seed comes from PyTorch's generator.
    scaling, softcap : float, optional
    is_causal : bool, optional
        Without a mask, whether several queries are a triangle; `module.is_causal` if not given.
    sliding_window : int, optional
        Keys of a window, if there is no mask, which would tell it too.
    s_aux : Tensor, (heads,), optional
        Sinks.
    position_bias : Tensor, optional
        Added to the scaled scores.
    indices : int Tensor, (batch, queries, n), optional
        The only keys that a query sees; -1 is none.

    Returns
    -------
    output : Tensor, (batch, queries, heads, value_width)
    attentions : AttentionView
        The weights, computed where they are asked for. None inside torch.compile.

    Raises
    ------
    InvalidArgumentError, UnavailableError
        The mask has other sizes than the call, or the model asks for what chumoku does not have.
    """
    for name, what in _FOREIGN.items():
        if others.get(name) is not None:
            raise UnavailableError(
                name,
                got=f"{what}, in {type(module).__name__}",
                expected="attention that chumoku computes",
                cure='Use model.set_attn_implementation("eager").',
            )
    mask, own = _mask_and_bias(module, query, key, attention_mask, is_causal, sliding_window)
    if indices is not None:
        mask = _selected(mask, indices, key.shape[-2])
    bias = _with_position_bias(own, position_bias, query, key)
    sinks = None if s_aux is None else s_aux.reshape(-1).to(query.dtype)
    if not torch.is_grad_enabled():
        # What is kept of the call must not require gradients later.
        sinks = None if sinks is None else sinks.detach()
        bias = bias.detach() if isinstance(bias, Tensor) else bias
    asked = Asked(mask, scaling, softcap, drawn(dropout))
    name = getattr(module, NAME, "")
    if torch.compiler.is_compiling():
        output = operated((query, key, value, bias, sinks), asked, None, name)
        return _heads_inside(output, module), None
    call: Any = plain_attention if isinstance(bias, Relative) else attention
    with label(name) if name else nullcontext():
        output = call(query, key, value, bias=bias, sinks=sinks, **asked._asdict())
    options = {"bias": bias, "sinks": sinks, "mask": mask, "scale": scaling, "softcap": softcap}
    view = AttentionView(query, key, options)
    if output_attentions or collected():
        view.settle()
    return _heads_inside(output, module), view


def _heads_inside(output: Tensor, layer: torch.nn.Module) -> Tensor:
    """What the layer wants: (batch, queries, heads, value_width), 0 of the heads it silences."""
    silenced = getattr(layer, SILENCED, ())
    if silenced:
        if max(silenced) >= output.shape[1]:
            expected = f"heads from 0 to {output.shape[1] - 1}"
            raise InvalidArgumentError("without", f"head {max(silenced)}", expected)
        heard = output.new_ones(output.shape[1])
        heard[list(silenced)] = 0
        output = output * heard[:, None, None]
    return output.transpose(1, 2).contiguous()


def _mask_and_bias(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    given: Any,
    is_causal: bool | None,
    window: int | None,
) -> tuple[Mask | Form | Tensor | None, Tensor | None]:
    """What hides keys, and what is added to scores."""
    queries, keys = query.shape[2], key.shape[2]
    if given is None:
        if is_causal is None:
            is_causal = getattr(module, "is_causal", True)
        return _without_mask(queries, keys, bool(is_causal), window), None
    if given.shape[-2] not in (1, queries) or given.shape[-1] not in (1, keys):
        raise InvalidArgumentError(
            "attention_mask",
            got=f"shape {tuple(given.shape)}",
            expected=f"one that broadcasts to {(*query.shape[:3], keys)}",
            cure="A mask of your own has the axes (batch, 1 or heads, queries, keys).",
        )
    if isinstance(given, LazyMask):
        return given.mask, None
    if given.dtype == torch.bool:
        return given, None
    # Numbers beyond a narrower dtype become -inf there, which hides as they meant to.
    return None, given.to(query.dtype)


def _without_mask(queries: int, keys: int, is_causal: bool, window: int | None) -> Mask | None:
    """As "sdpa": a triangle starts at the first key, and a single query sees all of them."""
    offset = keys - 1 if queries == 1 else 0
    if window is not None and keys > window:
        right = 0 if is_causal else window - 1
        return Window(window - 1, right, offset)
    return Causal(offset) if is_causal and queries > 1 else None


def _with_position_bias(
    bias: Tensor | None, position: Any, query: Tensor, key: Tensor
) -> Tensor | Relative | None:
    if isinstance(position, RelativeBias):
        position = position.of(query, key, spread=bias is not None)
    if position is None:
        return bias
    if isinstance(position, Relative):
        return position
    narrow: Tensor = position.to(query.dtype)
    return narrow if bias is None else bias + narrow


def _selected(mask: Any, indices: Tensor, keys: int) -> Any:
    """A mask, and the keys chosen for each query, as sparse attention lists them."""
    # One column more, for -1.
    columns = indices.long().where(indices >= 0, keys)
    if torch.compiler.is_compiling():  # where no function can be asked later
        chosen = indices.new_zeros((*indices.shape[:2], keys + 1), dtype=torch.bool)
        chosen = chosen.scatter(-1, columns, True)[:, None, :, :keys]
        return chosen if mask is None else chosen & mask

    host = columns.cpu()

    def function(b: Any, h: Any, i: Any, j: Any) -> Any:
        del h
        rows = host[torch.from_numpy(b.reshape(-1, 1)), torch.from_numpy(i.reshape(1, -1))]
        allowed = torch.zeros((*rows.shape[:2], keys + 1), dtype=torch.bool)
        allowed.scatter_(-1, rows, True)
        return allowed[:, None, :, torch.from_numpy(j.reshape(-1))].numpy()

    return Custom(function) if mask is None else as_mask(mask) & Custom(function)

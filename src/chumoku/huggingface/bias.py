"""The relative bias of T5 and its like: of distances alone, so that no matrix is stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from chumoku.attention.call import Relative


class RelativeBias:
    """What stands for a layer's position_bias (1, heads, queries, keys).

    The first layer of a stack computes the bias and hands it on to the others.
    """

    def __init__(self, module: Any, past: int) -> None:
        self.module, self.past = module, past

    def of(self, query: Tensor, key: Tensor, spread: bool) -> Relative | Tensor | None:
        """The bias of a call; a tensor where `spread`, or where gradients reach the embedding."""
        if not self.module.has_relative_attention_bias:
            return None
        queries, keys = query.shape[-2], key.shape[-2]
        if spread or torch.is_grad_enabled():
            bias: Tensor = self.module.compute_bias(
                queries, keys, device=query.device, past_seen_tokens=self.past
            )
            return bias
        # One query, as far behind the first key as the first query is before the last.
        row = self.module.compute_bias(
            1, queries + keys - 1, device=query.device, past_seen_tokens=queries - 1 + self.past
        )
        return Relative(row[:, :, 0].to(query.dtype))


@contextmanager
def computed_bias(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block the attention layers of T5 and its like store no bias."""
    handles = [
        module.register_forward_pre_hook(_hand_over, with_kwargs=True)
        for module in model.modules()
        if _is_relative(module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_relative(module: torch.nn.Module) -> bool:
    """Whether a layer takes position_bias, and makes it as T5 does when there is none."""
    code = getattr(type(module).forward, "__code__", None)
    bias_code = getattr(getattr(type(module), "compute_bias", None), "__code__", None)
    return (
        code is not None
        and bias_code is not None
        and "position_bias" in code.co_varnames[: code.co_argcount]
        and {"query_length", "key_length", "past_seen_tokens"} <= {*bias_code.co_varnames}
        and hasattr(module, "has_relative_attention_bias")
        and "attention_interface" in code.co_varnames
    )


def _hand_over(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    if torch.compiler.is_compiling() or len(given) > 1 or named.get("position_bias") is not None:
        return None
    cache = named.get("past_key_values")
    past = cache.get_seq_length(module.layer_idx) if cache is not None else 0
    return given, {**named, "position_bias": RelativeBias(module, int(past))}

"""The relative bias of T5 and its like: of distances alone, so that no matrix is stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from chumoku.attention.call import Relative

# Under which transformers knows chumoku.
IMPLEMENTATION = "chumoku"


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
def computed_bias(layers: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Inside the block those of the layers that are T5's, or like them, store no bias."""
    with ExitStack() as stack:
        for layer in filter(_is_relative, layers):
            stack.enter_context(layer.register_forward_pre_hook(_hand_over, with_kwargs=True))
        yield


def _is_relative(layer: torch.nn.Module) -> bool:
    """Whether a layer takes position_bias, and makes it as T5 does when there is none."""
    compute = getattr(layer, "compute_bias", None)
    return (
        compute is not None
        and hasattr(layer, "has_relative_attention_bias")
        and "position_bias" in signature(layer.forward).parameters
        and {"query_length", "key_length", "past_seen_tokens"} <= {*signature(compute).parameters}
    )


def _hand_over(layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    if torch.compiler.is_compiling() or len(given) > 1 or named.get("position_bias") is not None:
        return None
    # A copy of the model has this hook as well, and may be on another implementation.
    if layer.config._attn_implementation != IMPLEMENTATION:
        return None
    cache = named.get("past_key_values")
    past = cache.get_seq_length(layer.layer_idx) if cache is not None else 0
    return given, {**named, "position_bias": RelativeBias(layer, int(past))}

"""use(): F.scaled_dot_product_attention served by chumoku inside a with block."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from chumoku.errors import ChumokuError
from chumoku.mask import Causal, as_mask
from chumoku.torch.attention import attention
from chumoku.torch.forms import drawn

_THEIRS = torch.nn.functional.scaled_dot_product_attention


class Use(TorchFunctionMode):
    """Inside the block every call of F.scaled_dot_product_attention is chumoku's, in this thread.

    Whoever makes it, under whatever name. A call that cannot be served goes to PyTorch, with one
    warning for each reason. Nothing is patched, so nothing is left behind.
    """

    def __init__(self) -> None:
        super().__init__()
        self.told: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """PyTorch hands every call to it."""
        kwargs = kwargs or {}
        if func is not _THEIRS:
            return func(*args, **kwargs)
        try:
            return serve(*args, **kwargs)
        except NotServed as reason:
            why = str(reason)
        except ChumokuError as error:
            why = str(error)
        if why not in self.told:
            self.told.add(why)
            message = f"chumoku leaves a call of scaled_dot_product_attention to PyTorch: {why}"
            warnings.warn(message, RuntimeWarning, stacklevel=3)
        return func(*args, **kwargs)


def use() -> Use:
    """Take over F.scaled_dot_product_attention: `with chumoku.torch.use(): model(...)`.

    Returns
    -------
    context manager
    """
    return Use()


class NotServed(Exception):
    """A call that PyTorch is to take."""


def serve(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """F.scaled_dot_product_attention by chumoku.

    Raises
    ------
    NotServed, ChumokuError
        The call is wrong for PyTorch as well, or cannot be served here.
    """
    grouped = query.dim() > 2 and key.dim() > 2 and query.shape[-3] != key.shape[-3]
    if grouped and not enable_gqa:
        raise NotServed("query and key differ in their heads, and enable_gqa is not set")
    options: dict[str, Any] = {"scale": scale}
    if attn_mask is not None:
        options["mask" if attn_mask.dtype == torch.bool else "bias"] = attn_mask
    if is_causal:
        options["mask"] = as_mask(options["mask"]) & Causal(0) if "mask" in options else Causal(0)
    output: Tensor = attention(query, key, value, dropout=drawn(dropout_p), **options)
    return output

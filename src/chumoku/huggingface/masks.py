"""The mask of a model in transformers, as a value: no queries x keys array is made of it."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import masking_utils

from chumoku.errors import UnavailableError
from chumoku.huggingface.lazy import Lazy
from chumoku.huggingface.reading import MaskFunction, Setting, evaluated, read
from chumoku.mask import Mask
from chumoku.torch.forms import Form

# Bytes of a mask that a model may have as a tensor, because it computes with it.
MOST = 2**30


class LazyMask(Lazy):
    """What stands for the 4-D mask (batch, 1, queries, keys) of a model.

    chumoku's attention takes the mask inside. A model that computes with its mask gets a tensor,
    which any operation of PyTorch makes: booleans, as with "sdpa", or numbers to be added, as
    with "eager", where its model knows no "sdpa".

    Attributes
    ----------
    mask : Mask, Form or None
        None: every query sees every key.
    shape : torch.Size
    """

    def __init__(
        self,
        mask: Mask | Form | None,
        setting: Setting,
        device: Any,
        dtype: torch.dtype = torch.bool,
    ) -> None:
        self.mask, self._setting = mask, setting
        self.device, self.dtype = torch.device(device), dtype
        self.shape = torch.Size((setting.batch, 1, setting.queries, setting.keys))

    def __repr__(self) -> str:
        return f"LazyMask({self.mask!r}, shape={tuple(self.shape)})"

    def dense(self) -> Tensor:
        """The tensor: True means may look, or 0; what is hidden is the least number of a dtype."""
        bytes_needed = self.shape.numel() * self.dtype.itemsize
        if bytes_needed > MOST:
            raise UnavailableError(
                "attention_mask",
                got=f"a model that computes with its mask of {bytes_needed:,} bytes",
                expected=f"{MOST:,} bytes at most",
                cure="Give a shorter text.",
            )
        rows, keys = np.arange(self._setting.queries), np.arange(self._setting.keys)
        shape = self._setting.shape
        if self.mask is None:
            return as_numbers(torch.ones(self.shape, dtype=torch.bool), self.dtype).to(self.device)
        if isinstance(self.mask, Form):
            raise UnavailableError(
                "attention_mask",
                got="a compiled model that computes with its mask",
                expected="one that hands it on",
                cure='Use model.set_attn_implementation("sdpa") for it, or do not compile it.',
            )
        allowed = np.broadcast_to(self.mask.allowed(shape, rows, keys), self.shape)
        return as_numbers(torch.from_numpy(np.array(allowed)), self.dtype).to(self.device)


def as_numbers(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask in another dtype: what is added to scores, as "eager" has it."""
    if dtype == torch.bool:
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


@cache
def _adds(kind: Hashable) -> bool:
    """Whether models of such a configuration know "eager" alone, where masks are added."""
    models: Any = transformers.MODEL_MAPPING
    return bool(kind in models and not models[kind]._supports_sdpa)


def mask_function(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction = masking_utils.causal_mask_function,
    attention_mask: LazyMask | Tensor | None = None,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: Any = "cpu",
    **others: Any,
) -> LazyMask | Tensor | None:
    """The mask of a model, as AttentionMaskInterface asks for it.

    Parameters
    ----------
    batch_size, q_length, kv_length, q_offset, kv_offset : int
        Sizes, and the positions of the first query and key.
    mask_function : callable
        Of batch entry, head, query and key.
    attention_mask : bool tensor, (batch, positions), optional
        False is padding. A mask that is made already comes back as it is.
    allow_is_bidirectional_skip : bool
        Whether None may say that every query sees every key.
    use_vmap : bool
        Whether the function is written for single numbers.
    others
        Of these, config and dtype: a model that knows "eager" alone adds its mask.

    Returns
    -------
    LazyMask or None
        Inside torch.compile, where the function cannot be read, a boolean tensor stands for masks
        other than triangles and padding.
    """
    if isinstance(attention_mask, LazyMask):
        return attention_mask
    padding = _padding(attention_mask, kv_length, kv_offset)
    function, config, dtype = mask_function, others.get("config"), others.get("dtype")
    dtype = dtype or torch.float32
    added = config is not None and _adds(type(config))  # type: ignore[arg-type]
    if torch.compiler.is_compiling():
        setting = Setting(batch_size, q_length, kv_length, 0, kv_offset)
        # Models that choose keys themselves compute with their mask.
        dense = use_vmap, added or getattr(config, "index_topk", None) is not None
        found = _compiled(function, padding, setting, q_offset, dense, device)
        return as_numbers(found, dtype) if added and isinstance(found, Tensor) else found
    if padding is not None:
        if padding.all():
            padding = None
        else:
            function = masking_utils.and_masks(
                function, masking_utils.padding_mask_function(padding.cpu())
            )
    setting = Setting(batch_size, q_length, kv_length, int(q_offset), kv_offset)
    mask = read(function, setting, use_vmap)
    if mask is None and allow_is_bidirectional_skip:
        return None
    return LazyMask(mask, setting, device, dtype if added else torch.bool)


def _padding(attention_mask: Tensor | None, keys: int, offset: int) -> Tensor | None:
    """Which positions are no padding; those beyond the given ones are."""
    if attention_mask is None:
        return None
    missing = keys + offset - attention_mask.shape[-1]
    padding = attention_mask.to(torch.bool)
    return torch.nn.functional.pad(padding, (0, missing)) if missing > 0 else padding


def _compiled(
    function: MaskFunction,
    padding: Tensor | None,
    setting: Setting,
    q_offset: Any,
    dense: tuple[bool, bool],
    device: Any,
) -> LazyMask | Tensor | None:
    """A mask inside a graph: positions are tensors, and functions cannot be read."""
    start = setting.key_offset
    whole = function
    if padding is not None:
        whole = masking_utils.and_masks(function, masking_utils.padding_mask_function(padding))
    batch, head, queries, keys = setting.indices()
    indices = tuple(index.to(device) for index in (batch, head, queries + q_offset, keys))
    plain = function is masking_utils.causal_mask_function
    vmap, computed = dense
    if computed or not (plain or function is masking_utils.bidirectional_mask_function):
        return evaluated(whole, indices, vmap)
    parts, tables = [], []
    if plain:
        offset = torch.as_tensor(q_offset, dtype=torch.int64, device=device) - start
        tables.append(offset.reshape(()))
        parts.append("{'mask': 'Causal', 'offset': {'table': 0}}")
    if padding is not None:
        kept = padding[:, None, None, start : start + setting.keys]
        parts.append(f"{{'mask': 'Cells', 'array': {{'table': {len(tables)}}}}}")
        tables.append(kept)
    if not parts:
        return None
    text = f"{{'mask': 'All', 'parts': [{', '.join(parts)}]}}"
    return LazyMask(Form(text, tuple(tables)), setting, device)

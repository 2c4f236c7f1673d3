"""Attention of PyTorch's own operations: differentiable at will, and it holds the matrix."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chumoku.mask import Shape
from chumoku.torch.forms import dropout_of, mask_of


def composed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: tuple[Any, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, lse and entropy step by step; `options` are the operator's."""
    bias, sinks, tables, form, scale, softcap, rate, seed = options
    q, k, v = (x if x.dim() > 2 else x[None] for x in (query, key, value))
    heads, queries, keys = q.shape[-3], q.shape[-2], k.shape[-2]
    group = heads // max(1, k.shape[-3])
    k, v = k.repeat_interleave(group, -3), v.repeat_interleave(group, -3)
    scores = (q @ k.mT) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    batch = np.broadcast_shapes(scores.shape[:-3], v.shape[:-3])
    rows, columns = np.arange(queries), np.arange(keys)
    mask = mask_of(form, tables)
    visible = scores > -math.inf
    if mask is not None:
        allowed = mask.allowed(Shape(batch, heads, queries, keys), rows, columns)
        visible = visible & torch.from_numpy(np.array(allowed)).to(scores.device)
    hidden = torch.where(visible, scores, -math.inf)
    if sinks is not None:
        sink = sinks[:, None, None].expand(*hidden.shape[:-1], 1)
        lse = torch.logsumexp(torch.cat([hidden, sink], -1), -1)
    else:
        lse = torch.logsumexp(hidden, -1)
    # A row that sees nothing has no lse to take a difference from.
    none = lse == -math.inf
    logs = torch.where(visible, scores - torch.where(none, 0.0, lse)[..., None], 0.0)
    weights = torch.where(visible, torch.exp(logs), 0.0)
    entropy = -(weights * logs).sum(-1)
    if dropout := dropout_of(rate, seed, tables):
        kept = dropout.kept(batch, heads, rows, columns)
        weights = weights * torch.from_numpy(np.array(kept)).to(scores.device) / (1 - rate)
    output = weights @ v
    if max(query.dim(), key.dim(), value.dim()) == 2:
        return output[0], lse[0], entropy[0]
    return output, lse, entropy


def composed_weights(query: Tensor, key: Tensor, bias: Tensor | None, mask: Any) -> Tensor:
    """The matrix of weights, differentiable; `mask` is a boolean tensor or None."""
    scores = (query @ key.mT) * query.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    visible = scores > -math.inf
    if mask is not None:
        visible = visible & mask
    hidden = torch.where(visible, scores, -math.inf)
    lse = torch.logsumexp(hidden, -1, keepdim=True)
    none = lse == -math.inf
    logs = torch.where(visible, scores - torch.where(none, 0.0, lse), 0.0)
    return torch.where(visible, torch.exp(logs), 0.0)

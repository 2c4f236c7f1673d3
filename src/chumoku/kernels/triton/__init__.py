"""CUDA: the same contract on a GPU, written in Triton; imported when a call on one comes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chumoku.kernels import Call, Gradients, Upstream
from chumoku.kernels.triton import gradients, passes
from chumoku.kernels.triton.launch import TYPES
from chumoku.statistics import Statistics

name = "triton"

WIDEST = 256
# Sums of positions are counted in 32 bits.
LONGEST = 2**29


def refuses(call: Call) -> str | None:
    """Why this kernel cannot serve the call, or None when it can."""
    if call.query.dtype not in TYPES:
        dtype = str(call.query.dtype).removeprefix("torch.")
        return f"it computes float32, float16 and bfloat16, not {dtype}"
    width = max(call.query.shape[-1], call.value.shape[-1])
    if width > WIDEST:
        return f"it computes widths up to {WIDEST}, not {width}"
    length = max(call.shape.queries * call.group, call.shape.keys)
    if length > LONGEST:
        return f"it counts queries and keys up to {LONGEST:,}, not {length:,}"
    if call.query.is_cuda and torch.cuda.is_current_stream_capturing():
        return "it sends tables to the GPU, which a CUDA graph that is being captured forbids"
    return None


def _current(tensor: Tensor) -> Any:
    """A context in which the tensor's GPU is the current one: Triton launches there."""
    device_of: Any = torch.cuda.device_of
    return device_of(tensor)


def run(call: Call) -> tuple[Tensor, Statistics]:
    """Output of shape (*batch, heads, queries, value_width), and what was watched."""
    with _current(call.query):
        return passes.run(call)


def weights(
    call: Call, rows: NDArray[np.int64], keys: NDArray[np.int64], lse: Tensor | None
) -> Tensor:
    """The block (*batch, heads, len(rows), len(keys)) of the weights."""
    with _current(call.query):
        return passes.weights(call, rows, keys, lse)


def backward(call: Call, upstream: Upstream) -> Gradients:
    """The gradients in the dtype of the arrays; those of bias and sinks in float32."""
    with _current(call.query):
        return gradients.backward(call, upstream)

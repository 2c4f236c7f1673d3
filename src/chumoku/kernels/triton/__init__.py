"""CUDA: the same contract on a GPU, written in Triton; imported when a call on one comes."""

from __future__ import annotations

from chumoku.kernels import Call
from chumoku.kernels.triton.gradients import backward
from chumoku.kernels.triton.launch import TYPES
from chumoku.kernels.triton.passes import run, weights

__all__ = ["backward", "name", "refuses", "run", "weights"]

name = "triton"

WIDEST = 256
# Positions are counted in 32 bits.
LONGEST = 2**30


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
    return None

"""attention() for tensors that may require gradients, and inside torch.compile and its like."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chumoku.attention import attention as plain_attention
from chumoku.checks import shown
from chumoku.dropout import Dropout
from chumoku.errors import InvalidTypeError, UnavailableError
from chumoku.mask import Mask
from chumoku.statistics import Watch
from chumoku.torch.composed import composed
from chumoku.torch.operator import Asked, options_of, statistics_of, watched
from chumoku.torch.trained import trained

DEVICES = ("cpu", "cuda")


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout: Dropout | None = None,
    watch: Watch | None = None,
    kernel: str | None = None,
) -> Any:
    """chumoku.attention for tensors that may require gradients.

    Gradients reach query, key, value, bias and sinks, through the output, seen.lse and
    seen.entropy; the other facts are constants. Works under torch.compile(fullgraph=True),
    torch.export, vmap, autocast and inference mode, and on the meta device. Second derivatives,
    forward mode and the derivatives of torch.func are composed of PyTorch's own operations, and
    hold the matrix of weights.

    Parameters
    ----------
    query, key, value, mask, bias, scale, softcap, sinks, dropout, watch, kernel
        As `chumoku.attention`. With a mask that holds a function (`Custom`) a call trains, but
        cannot be compiled or differentiated twice; with a boolean tensor it can.

    Returns
    -------
    output : Tensor, (..., heads, queries, value_width)
    seen : Statistics
        Only when watch is given.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError, UnavailableError
        As `chumoku.attention`.
    """
    device = "cuda" if isinstance(query, Tensor) and query.is_cuda else "cpu"
    if torch.is_autocast_enabled(device):
        query, key, value, bias, sinks = (
            _cast(x, device) for x in (query, key, value, bias, sinks)
        )
    tensors = (query, key, value, bias, sinks)
    composes = False
    if not torch.compiler.is_compiling():
        direct = _direct(tensors)
        if direct and not _differentiated(tensors):
            call: Any = plain_attention  # its overloads do not know a watch that may be None
            return call(
                query,
                key,
                value,
                mask=mask,
                bias=bias,
                scale=scale,
                softcap=softcap,
                sinks=sinks,
                dropout=dropout,
                watch=watch,
                kernel=kernel,
            )
        if direct and kernel is None:
            return trained(tensors, Asked(mask, scale, softcap, dropout), watch)
        _check(tensors)
        composes = _composes(tensors)
    served = "triton" if device == "cuda" else "native"
    if kernel not in (None, served):
        raise UnavailableError(
            "kernel",
            got=f"{shown(kernel)} for tensors that require a gradient, or while compiling",
            expected=f"the {served} kernel",
            cure="Leave kernel= out.",
        )
    asked = Asked(mask, scale, softcap, dropout)
    if composes:
        if watch is not None:
            raise UnavailableError(
                "watch",
                got="a call in forward mode or inside a derivative of torch.func",
                expected="one whose gradients are taken with backward() or autograd.grad()",
                cure="Watch in a call of its own, without gradients.",
            )
        return composed(query, key, value, options_of(query, bias, sinks, asked))[0]
    return operated(tensors, asked, watch)


def operated(
    tensors: tuple[Any, ...], asked: Asked, watch: Watch | None = None, name: str = ""
) -> Any:
    """The call of query, key, value, bias and sinks by the operator; recordings show its name."""
    query, key, value, bias, sinks = tensors
    options = options_of(query, bias, sinks, asked)
    found = torch.ops.chumoku.attention(query, key, value, *options, *watched(watch), name)
    if watch is None:
        return found[0]
    return found[0], statistics_of(found[1:], watch, sinks is not None)


def _cast(x: Any, device: str) -> Any:
    """What autocast does to the inputs of PyTorch's own attention."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(device))


def _direct(tensors: tuple[Any, ...]) -> bool:
    """Whether these are numbers in memory, outside of all transforms and modes."""
    return (
        all(x is None or _plain(x) for x in tensors)
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch._C._len_torch_dispatch_stack()
        and not _has_tangent(tensors)
    )


def _differentiated(tensors: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _plain(x: Any) -> bool:
    return type(x) in (Tensor, torch.nn.Parameter) and x.device.type in DEVICES


def _check(tensors: tuple[Any, ...]) -> None:
    """Refuse what no kernel of the operator can serve."""
    names = ("query", "key", "value", "bias", "sinks")
    fakes = (Tensor, torch.nn.Parameter, torch._subclasses.FakeTensor)
    for name, x in zip(names, tensors, strict=True):
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise InvalidTypeError(
                name,
                got=type(x).__name__,
                expected="a PyTorch tensor",
                cure="torch.as_tensor shares the memory of an array.",
            )
        if type(x) not in fakes:
            raise UnavailableError(
                name,
                got=f"a {type(x).__name__}, a subclass of torch.Tensor",
                expected="a plain tensor",
                cure="tensor.as_subclass(torch.Tensor) makes one, if it has plain memory.",
            )
        if x.device.type not in (*DEVICES, "meta"):
            raise UnavailableError(
                name,
                got=f"a tensor on {x.device}",
                expected="a tensor on the CPU or a CUDA GPU: there is no kernel for other devices",
                cure="Move it with .cpu().",
            )


def _composes(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether derivatives are asked for that the operator does not have."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    vmap = torch._C._functorch.TransformType.Vmap
    return any(level.key() != vmap for level in stack) or _has_tangent(tensors)


def _has_tangent(tensors: tuple[Tensor | None, ...]) -> bool:
    forward: Any = torch.autograd.forward_ad
    if forward._current_level < 0:
        return False
    return any(x is not None and forward.unpack_dual(x).tangent is not None for x in tensors)

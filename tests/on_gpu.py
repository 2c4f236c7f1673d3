"""The Triton kernel where tests want a kernel of NumPy arrays: on a GPU, or in the interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from chumoku.arrays import dtype_name
from chumoku.kernels import KERNELS, Call, Gradients, Kernel, Upstream
from chumoku.statistics import Statistics

IN_INTERPRETER = not torch.cuda.is_available()
DEVICE = torch.device("cpu" if IN_INTERPRETER else "cuda")


def tensor(array: Any) -> Any:
    """The same numbers in a tensor of the same layout, where tensors can have it."""
    if array is None:
        return None
    bits = array.view(np.int16) if dtype_name(array.dtype) == "bfloat16" else array
    steps = [step // array.itemsize for step in array.strides]
    if any(step < 0 or step % array.itemsize for step in array.strides) or not array.size:
        made = torch.from_numpy(np.array(bits))
    else:
        span = 1 + sum((n - 1) * step for n, step in zip(array.shape, steps, strict=True))
        flat = np.lib.stride_tricks.as_strided(bits, (span,), (array.itemsize,))
        made = torch.from_numpy(np.array(flat)).as_strided(array.shape, steps)
    made = made.to(DEVICE)
    return made.view(torch.bfloat16) if bits is not array else made


def array(given: Any) -> Any:
    """A tensor's numbers as a NumPy array."""
    if not isinstance(given, torch.Tensor):
        return given
    if given.dtype == torch.bfloat16:
        import ml_dtypes

        return given.cpu().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return given.cpu().numpy()


class OnTensors:
    """A kernel of tensors as one of NumPy arrays."""

    # Tensor cores multiply values of 16 bits with weights of 16 bits, as PyTorch's kernels do.
    rounds_weights = True

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.name = kernel, kernel.name

    def _call(self, call: Call) -> Call:
        names = ("query", "key", "value", "bias", "sinks")
        return replace(call, **{name: tensor(getattr(call, name)) for name in names})

    def refuses(self, call: Call) -> str | None:
        if IN_INTERPRETER and dtype_name(call.query.dtype) == "bfloat16":
            return "Triton's interpreter multiplies bfloat16 wrongly"
        return self.kernel.refuses(self._call(call))

    def run(self, call: Call) -> tuple[Any, Statistics]:
        output, seen = self.kernel.run(self._call(call))
        facts = {
            name: tuple(map(array, fact)) if isinstance(fact, tuple) else array(fact)
            for name, fact in seen.facts().items()
        }
        return array(output), Statistics(**facts)

    def weights(self, call: Call, rows: Any, keys: Any, lse: Any) -> Any:
        return array(self.kernel.weights(self._call(call), rows, keys, tensor(lse)))

    def backward(self, call: Call, upstream: Upstream) -> Gradients:
        fields = dict(vars(upstream))
        for name in ("gradient", "output", "lse", "lse_gradient", "entropy_gradient"):
            fields[name] = tensor(fields[name])
        found = self.kernel.backward(self._call(call), Upstream(**fields))
        return Gradients(*map(array, found))


KERNEL = OnTensors(next(kernel for kernel in KERNELS if kernel.name == "triton"))

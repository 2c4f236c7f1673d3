"""What stands for a tensor that is not there: it is computed when PyTorch asks for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Lazy:
    """Base of what stands for a tensor of 4 axes; `dense()` computes it.

    Any operation of PyTorch or Python on it is done on the tensor. Shape, dtype and device are
    known without.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    ndim = 4

    def dense(self) -> Tensor:
        """The tensor."""
        raise NotImplementedError

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def __dlpack__(self, **options: Any) -> Any:
        return self.dense().__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.dense().__dlpack_device__()

    def numel(self) -> int:
        return self.shape.numel()

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*_bare(args), **{name: _bare(one) for name, one in (kwargs or {}).items()})

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(Tensor, name, None)
        if name.startswith("_") or attribute is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        # Whether there is such a method can be asked without computing anything.
        return (
            _operation(name).__get__(self) if callable(attribute) else getattr(self.dense(), name)
        )


def _bare(given: Any) -> Any:
    if isinstance(given, Lazy):
        return given.dense()
    if isinstance(given, (tuple, list)):
        return type(given)(map(_bare, given))
    return given


def _operation(name: str) -> Any:
    def method(self: Lazy, *others: Any, **named: Any) -> Any:
        given = {key: _bare(value) for key, value in named.items()}
        return getattr(self.dense(), name)(*_bare(others), **given)

    return method


# Python looks for these in the class.
for _name in (
    *("getitem", "iter", "eq", "ne", "lt", "le", "gt", "ge", "neg", "abs", "invert"),
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "matmul"),
    *("rmatmul", "and", "rand", "or", "ror", "xor", "rxor", "bool"),
    *("floordiv", "rfloordiv", "mod", "rmod", "rpow", "pos", "contains"),
):
    setattr(Lazy, f"__{_name}__", _operation(f"__{_name}__"))
Lazy.__hash__ = object.__hash__  # type: ignore[method-assign]

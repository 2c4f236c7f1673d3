"""The caller's kinds of arrays: in as NumPy views of the same memory, out as the same kind.

NumPy arrays, PyTorch tensors on the CPU, and the arrays of any library that follows the array API
standard and exports its memory through DLPack. Tensors on a GPU stay tensors, where a call may be
made there. torch is looked up, never imported: who brings a tensor has imported it.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chumoku import _native
from chumoku.checks import shown
from chumoku.errors import ChumokuError, InvalidArgumentError, InvalidTypeError, UnavailableError

# NumPy holds 64 axes at most, and masks and kernels add a few of their own.
MOST_AXES = 32

_DLPACK_CPU = 1

# How libraries say that memory cannot be handed over. Anything else is the array's own error.
_CANNOT = (BufferError, RuntimeError, TypeError, ValueError)


class Wanted(NamedTuple):
    """Which dtypes an argument may have (none named: all), and how an error says so."""

    dtypes: tuple[str, ...]
    array: str
    expected: str
    cure: str


FLOATS = Wanted(
    dtypes=("float64", "float32", "float16", "bfloat16"),
    array="a NumPy array, a PyTorch tensor or an array that speaks DLPack",
    expected="float64, float32, float16 or bfloat16",
    cure="Convert it to one of them; chumoku converts nothing silently.",
)
BOOLEANS = Wanted(
    dtypes=("bool",),
    array="a mask value or a boolean array in which True means may look",
    expected="a mask value or a boolean array in which True means may look",
    cure="Numbers that are added to the scores are given as bias=.",
)
POSITIONS = Wanted(
    dtypes=tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    array="a slice, a whole number or a 1-D array of them",
    expected="a slice, a whole number or a 1-D array of them",
    cure="Positions count from 0; np.flatnonzero(chosen) gives those of a boolean array.",
)


_ANYTHING = Wanted((), "an array", "an array of numbers", "Convert it, as .float() does.")


class Guest(ABC):
    """Arrays of one kind on their way in and back out."""

    what: str
    on_gpu = False

    @abstractmethod
    def owns(self, value: Any) -> bool:
        """Whether this is an array of the kind."""

    @abstractmethod
    def view(self, name: str, value: Any, wanted: Wanted) -> NDArray[Any]:
        """NumPy's view of an array of the kind; its dtype may still be a wrong one."""

    def plain(self, value: Any) -> NDArray[Any] | None:
        """NumPy's view of an array that needs no checks, or None when they must be made."""
        return None

    @abstractmethod
    def back(self, array: NDArray[Any]) -> Any:
        """An array of ours as one of the caller's kind, on the device of the query."""

    @abstractmethod
    def spread(self, array: Any, shape: tuple[int, ...]) -> Any:
        """The caller's array broadcast to a shape, nothing copied."""

    def expanded(self, view: Any, shape: tuple[int, ...]) -> Any:
        """A view broadcast to a shape; ValueError where it does not fit."""
        return np.broadcast_to(view, shape)

    def turned(self, view: Any, rows: int, columns: int) -> Any:
        """(..., rows, columns) of a view (..., rows + columns - 1): row after row one to the left.

        Nothing is copied.
        """
        *lead, step = view.strides
        shape = (*view.shape[:-1], rows, columns)
        first = view[..., rows - 1 :]
        return np.lib.stride_tricks.as_strided(first, shape, (*lead, -step, step), writeable=False)

    def chosen(self, view: Any, places: NDArray[np.int64]) -> Any:
        """A view at these places of its last axis."""
        return view[..., places]

    def summed(self, view: Any, axes: tuple[int, ...]) -> Any:
        """The sum over some axes, in float32 at least."""
        real = np.float64 if view.dtype == np.float64 else np.float32
        return view.sum(axis=axes, dtype=real)

    def rounded(self, view: Any, like: Any) -> Any:
        """The same numbers in the dtype of another view."""
        return view.astype(like.dtype, copy=False)

    def array(self, name: str, value: Any, wanted: Wanted = FLOATS) -> NDArray[Any]:
        """A NumPy view of one argument, of a dtype that is wanted.

        Raises
        ------
        InvalidTypeError
            It is no array, one of another kind, or one of another dtype.
        InvalidArgumentError
            It has more than 32 axes.
        UnavailableError
            Its memory cannot be read here: another device, a gradient that would be lost.
        """
        if not self.owns(value):
            if _guest(value) is None:
                raise _stranger(name, value, wanted)
            raise InvalidTypeError(
                name,
                got=type(value).__name__,
                expected=f"{self.what}, as the query is",
                cure="Make all of them one kind; np.asarray and torch.as_tensor share the memory.",
            )
        array = self.view(name, value, wanted)
        native = getattr(array.dtype, "isnative", True)
        if dtype_name(array.dtype) not in wanted.dtypes or not native:
            raise _wrong_dtype(name, str(array.dtype), wanted)
        if array.ndim > MOST_AXES:
            raise _too_many_axes(name, array.ndim)
        return array


class _NumPy(Guest):
    what = "a NumPy array"

    def owns(self, value: Any) -> bool:
        return isinstance(value, np.ndarray)

    def plain(self, value: Any) -> NDArray[Any] | None:
        return value if type(value) is np.ndarray else None

    def view(self, name: str, value: Any, wanted: Wanted) -> NDArray[Any]:
        if type(value) is np.ndarray:
            return value
        # What these two mean would be lost; any other subclass is read as the plain array it is.
        if isinstance(value, np.ma.MaskedArray):
            cure = "Pass array.data, or array.filled(...)."
            raise InvalidTypeError(name, "a masked array", "a plain array", cure)
        if isinstance(value, np.matrix):
            raise InvalidTypeError(name, "a matrix", "a plain array", "Pass np.asarray(matrix).")
        return np.asarray(value)

    def back(self, array: NDArray[Any]) -> Any:
        return array

    def spread(self, array: Any, shape: tuple[int, ...]) -> Any:
        return np.broadcast_to(array, shape)


class _Torch(Guest):
    what = "a PyTorch tensor"

    def __init__(self, torch: Any) -> None:
        self.torch = torch

    def owns(self, value: Any) -> bool:
        return isinstance(value, self.torch.Tensor)

    def plain(self, value: Any) -> NDArray[Any] | None:
        torch = self.torch
        if type(value) is not torch.Tensor:
            return None
        try:
            # numpy() refuses what is not plain, but reads what has no memory, and knows neither
            # tangents nor modes.
            if torch.autograd.forward_ad._current_level >= 0 or not value.data_ptr():
                return None
            if torch._C._len_torch_dispatch_stack():
                return None
            return value.numpy()  # type: ignore[no-any-return]
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return None

    def checked(self, name: str, value: Any, wanted: Wanted) -> str:
        """The dtype of a tensor that is plain numbers on some device."""
        torch = self.torch
        if type(value) is not torch.Tensor and type(value) is not torch.nn.Parameter:
            raise UnavailableError(
                name,
                got=f"a {type(value).__name__}, a subclass of torch.Tensor",
                expected="a plain tensor",
                cure="tensor.as_subclass(torch.Tensor) makes one, if it has plain memory.",
            )
        dtype = dtype_name(value.dtype)
        if wanted.dtypes and dtype not in wanted.dtypes:
            raise _wrong_dtype(name, dtype, wanted)
        if value.ndim > MOST_AXES:
            raise _too_many_axes(name, value.ndim)
        tangent = torch.autograd.forward_ad.unpack_dual(value).tangent
        if tangent is not None or (value.requires_grad and torch.is_grad_enabled()):
            raise UnavailableError(
                name,
                got="a tensor that requires a gradient",
                expected="one that does not",
                cure="Call inside torch.no_grad(), or pass tensor.detach().",
            )
        if value.layout is not torch.strided or value.is_nested:
            layout = "nested" if value.is_nested else str(value.layout)
            way = "to_padded_tensor(0.0)" if value.is_nested else "to_dense()"
            cure = f"tensor.{way} is one."
            raise UnavailableError(name, f"a {layout} tensor", "a dense tensor", cure)
        return dtype

    def view(self, name: str, value: Any, wanted: Wanted) -> NDArray[Any]:
        torch, dtype = self.torch, self.checked(name, value, wanted)
        if value.device.type != "cpu":
            got = f"a tensor on {value.device}"
            raise UnavailableError(name, got, "a tensor on the CPU", "Move it with .cpu().")
        try:
            # numpy() alone would read what is not there: inside functionalize it gives garbage.
            if not value.untyped_storage().data_ptr() and value.numel():
                raise RuntimeError("it has no storage")
            if dtype == "bfloat16":
                bits = value.detach().resolve_neg().view(torch.int16).numpy()
                return np.asarray(bits.view(_bfloat16(name)))
            return np.asarray(value.numpy(force=True))
        except ChumokuError:
            raise
        except (RuntimeError, TypeError, AssertionError) as error:
            # Inside a transform of torch.func or a FakeTensorMode there is no memory to read.
            got = f"a tensor without plain memory ({_reason(error)})"
            cure = "Call outside of torch.func's transforms and of FakeTensorMode."
            raise UnavailableError(name, got, "a plain CPU tensor", cure) from error

    def back(self, array: NDArray[Any]) -> Any:
        if dtype_name(array.dtype) == "bfloat16":
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(array)

    def spread(self, array: Any, shape: tuple[int, ...]) -> Any:
        return array.expand(shape)


class _OnGPU(_Torch):
    """Tensors on the query's GPU: they are their own views."""

    on_gpu = True

    def __init__(self, torch: Any, device: Any) -> None:
        super().__init__(torch)
        self.device = device
        self.what = f"a PyTorch tensor on {device}"

    def plain(self, value: Any) -> None:
        return None

    def view(self, name: str, value: Any, wanted: Wanted) -> Any:
        self.checked(name, value, wanted)
        if value.device != self.device:
            got, expected = f"a tensor on {value.device}", f"{self.what}, as the query is"
            raise UnavailableError(name, got, expected, "Move it with .to(query.device).")
        return value.detach().resolve_neg()

    def back(self, array: Any) -> Any:
        return array

    def expanded(self, view: Any, shape: tuple[int, ...]) -> Any:
        try:
            return view.expand(shape)
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    def turned(self, view: Any, rows: int, columns: int) -> Any:
        *lead, step = view.stride()
        shape = (*view.shape[:-1], rows, columns)
        return Strided(view[..., rows - 1 :], shape, (*lead, -step, step))

    def chosen(self, view: Any, places: NDArray[np.int64]) -> Any:
        return view[..., self.torch.from_numpy(places).to(self.device)]

    def summed(self, view: Any, axes: tuple[int, ...]) -> Any:
        return view.sum(dim=axes, dtype=self.torch.float32)

    def rounded(self, view: Any, like: Any) -> Any:
        return view.to(like.dtype)


class Strided(NamedTuple):
    """A view of a tensor with strides that tensors cannot have: below 0."""

    base: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def stride(self) -> tuple[int, ...]:
        """In numbers, as a tensor's."""
        return self.strides

    def data_ptr(self) -> int:
        """Where the first number lies."""
        return int(self.base.data_ptr())

    def expand(self, shape: tuple[int, ...]) -> Strided:
        """Broadcast to a shape, as a tensor is."""
        more = len(shape) - len(self.shape)
        if more < 0 or any(a not in (1, b) for a, b in zip(self.shape, shape[more:], strict=True)):
            raise RuntimeError(f"{self.shape} does not broadcast to {shape}")
        kept = zip(self.shape, shape[more:], self.strides, strict=True)
        steps = (step if own == size else 0 for own, size, step in kept)
        return Strided(self.base, shape, (*(0,) * more, *steps))


class _Standard(Guest):
    """The array API standard, with DLPack for the way in and asarray for the way back."""

    def __init__(self, like: Any) -> None:
        self.space = like.__array_namespace__()
        self.device = like.device
        self.what = f"an array of {self.space.__name__}"

    def owns(self, value: Any) -> bool:
        return _speaks_dlpack(value) and value.__array_namespace__() is self.space

    def view(self, name: str, value: Any, wanted: Wanted) -> NDArray[Any]:
        try:
            if value.__dlpack_device__()[0] != _DLPACK_CPU:
                cure = "Copy it to the CPU first."
                raise UnavailableError(
                    name, f"an array on {value.device}", "an array on the CPU", cure
                )
            return np.from_dlpack(value)
        except ChumokuError:
            raise
        except _CANNOT as error:
            problem: Exception = error
        # DLPack brings neither bfloat16 nor misaligned memory to NumPy; __array__ brings both.
        try:
            array = np.asarray(value)
        except _CANNOT as error:
            problem = error
        else:
            if array.dtype != np.object_:
                return array
        raise UnavailableError(
            name,
            got=f"an array that NumPy cannot read ({_reason(problem)})",
            expected="one whose memory DLPack or __array__ hands over",
            cure="Convert it to float32, or to a NumPy array.",
        ) from problem

    def back(self, array: NDArray[Any]) -> Any:
        return self.space.asarray(array, device=self.device)

    def spread(self, array: Any, shape: tuple[int, ...]) -> Any:
        return self.space.broadcast_to(array, shape)


_NUMPY = _NumPy()


@cache
def dtype_name(dtype: Any) -> str:
    """The name of NumPy's dtype, which it puts together anew each time, or of PyTorch's."""
    return getattr(dtype, "name", "") or str(dtype).removeprefix("torch.")


def lies_on_gpu(tensor: Any) -> bool:
    """Whether a tensor's numbers are on a GPU that kernels are written for."""
    return bool(tensor.device.type == "cuda")


def guest_of(query: Any, gpu: bool = False) -> Guest:
    """How arrays of the query's kind come in and go out; on whose threads the call will run.

    Where `gpu` is true, tensors on a GPU may come too, and stay there.

    Raises
    ------
    InvalidTypeError
        It is no array of any kind that is known.
    """
    guest = _guest(query)
    if guest is None:
        raise _stranger("query", query, FLOATS)
    if gpu and isinstance(guest, _Torch) and lies_on_gpu(query):
        return _OnGPU(guest.torch, query.device)
    _native.beside_host(isinstance(guest, _Torch))
    return guest


def any_array(name: str, value: Any, wanted: Wanted, gpu: bool = False) -> Any:
    """A NumPy view of an argument that need not be of the query's kind: a mask, positions.

    What lies on a GPU is copied from there; where `gpu` is true, it stays.
    """
    guest = _guest(value)
    if guest is None:
        raise _stranger(name, value, wanted)
    if isinstance(guest, _Torch) and lies_on_gpu(value):
        array: Any = _OnGPU(guest.torch, value.device).array(name, value, wanted)
        return array if gpu else array.cpu().numpy()
    return guest.array(name, value, wanted)


def memory_of(name: str, value: Any, detach: bool = False) -> NDArray[Any] | None:
    """A NumPy view of an array of any kind and dtype; None of what is no array.

    What lies on a GPU is copied from there. A tensor that requires a gradient is refused, unless
    the caller says that numbers alone are wanted.
    """
    guest = _guest(value)
    if guest is None:
        return None
    plain = value.detach() if detach and isinstance(guest, _Torch) else value
    if isinstance(guest, _Torch) and lies_on_gpu(value):
        plain = plain.cpu()
    return guest.view(name, plain, _ANYTHING)


def array_of(name: str, value: Any, expected: str, detach: bool = False) -> NDArray[Any]:
    """`memory_of`, and of what is no array whatever NumPy makes: of numbers, of nested lists."""
    array = memory_of(name, value, detach)
    if array is not None:
        return array
    try:
        return np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:  # ragged lists, and whatever a foreign __array__ raises
        raise InvalidTypeError(name, shown(value), expected) from error


def _guest(value: Any) -> Guest | None:
    if isinstance(value, np.ndarray):
        return _NUMPY
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, getattr(torch, "Tensor", ())):
        return _Torch(torch)
    return _Standard(value) if _speaks_dlpack(value) else None


def _speaks_dlpack(value: Any) -> bool:
    names = ("__dlpack__", "__dlpack_device__", "__array_namespace__")
    # NumPy's scalars have these methods too, and are no arrays.
    return not isinstance(value, np.generic) and all(hasattr(type(value), n) for n in names)


def _wrong_dtype(name: str, dtype: str, wanted: Wanted) -> InvalidTypeError:
    """The error for an array whose numbers are of a wrong type."""
    return InvalidTypeError(name, f"an array of {dtype}", wanted.expected, wanted.cure)


def _stranger(name: str, value: Any, wanted: Wanted) -> InvalidTypeError:
    kind = type(value)
    if wanted is not FLOATS:
        cure = wanted.cure
    elif kind in (list, tuple, int, float, bool):
        cure = "np.asarray(..., dtype=np.float32) makes one."
    elif hasattr(kind, "to_numpy"):
        cure = ".to_numpy() makes a NumPy array of it."
    elif hasattr(kind, "__array_namespace__") and not hasattr(kind, "__dlpack_device__"):
        cure = "Inside jax.jit and its like an array has no memory to read."
    elif hasattr(kind, "__dlpack__") and kind.__module__ != "numpy":
        cure = "np.from_dlpack(...) makes a NumPy array of it."
    elif hasattr(kind, "__array__") or kind is memoryview or kind.__module__ == "array":
        cure = "np.asarray(...) makes a NumPy array of it."
    else:
        cure = ""
    return InvalidTypeError(name, kind.__name__, wanted.array, cure)


def _too_many_axes(name: str, axes: int) -> InvalidArgumentError:
    return InvalidArgumentError(name, f"{axes} axes", f"at most {MOST_AXES} axes")


def _reason(error: Exception) -> str:
    """The first line of an error's message, short enough to stand inside another."""
    return str(error).strip().split("\n")[0][:100] or type(error).__name__


def _bfloat16(name: str) -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError:
        raise UnavailableError(
            name,
            got="bfloat16, which NumPy does not know",
            expected="the package ml_dtypes beside it",
            cure="pip install ml_dtypes",
        ) from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype

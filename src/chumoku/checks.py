"""What callers give, checked in one way: numbers, paths, and arrays of any kind."""

from __future__ import annotations

import sys
from math import inf, isfinite
from os import fsencode
from pathlib import Path
from reprlib import Repr
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: object) -> str:
    """A value in one short line, whatever its own repr does."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    try:
        return " ".join(_SHORT.repr(value).split())
    except Exception:  # a foreign repr may raise anything; Python's own does for huge integers
        return f"an unprintable {type(value).__name__}"


def whole(name: str, value: object, least: int, most: int | None = None, of: str = "") -> int:
    """A whole number, NumPy's too; neither True nor False."""
    expected = f"a whole number{of and f' of {of}'} from {least}"
    if most is not None:
        expected += f" to {most}"
    # NumPy counts spans of time among its integers.
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, np.timedelta64)
    if not integer or isinstance(value, bool):
        raise InvalidTypeError(name, shown(value), expected)
    found: int = int(value)  # type: ignore[call-overload]
    if found < least or (most is not None and found > most):
        raise InvalidArgumentError(name, shown(found), expected)
    return found


def real(name: str, value: object, above: float = -inf) -> float:
    """A finite number above a bound, NumPy's too; neither True nor False."""
    expected = "a finite number" + ("" if above == -inf else f" above {above:g}")
    known = isinstance(value, (int, float, np.integer, np.floating))
    if not known or isinstance(value, (bool, np.timedelta64)):
        raise InvalidTypeError(name, shown(value), expected)
    try:
        found = float(value)  # type: ignore[arg-type]
    except OverflowError:
        found = inf
    if not isfinite(found) or found <= above:
        raise InvalidArgumentError(name, shown(found), expected)
    return found


def flag(name: str, value: object) -> bool:
    """True or False, NumPy's too."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidTypeError(name, shown(value), "True or False")
    return bool(value)


def has(value: object, *names: str) -> bool:
    """Whether an object has these attributes, all of them."""
    try:
        return all(hasattr(value, name) for name in names)
    except Exception:  # __getattr__ may raise anything
        return False


def list_of(name: str, value: Any, expected: str, cure: str = "") -> list[Any]:
    """What can be walked through, as a list."""
    try:
        return list(value)
    except MemoryError:
        raise
    except Exception as error:  # __iter__ may raise anything
        raise InvalidTypeError(name, shown(value), expected, cure) from error


def path_of(name: str, value: Any) -> Path:
    """A path that a file may have."""
    try:
        path = Path(value)
    except MemoryError:
        raise
    except Exception as error:  # __fspath__ may raise anything
        raise InvalidTypeError(name, shown(value), "a path, or a str that is one") from error
    try:
        fits = b"\0" not in fsencode(path)
    except ValueError:  # half a surrogate pair
        fits = False
    if not fits:
        raise InvalidArgumentError(name, shown(str(path)), "a path that a file may have")
    return path


def memory_of(name: str, value: Any, detach: bool = False) -> NDArray[Any] | None:
    """A NumPy view of an array of any kind, its memory shared; None of what is no array.

    NumPy's arrays, PyTorch's tensors on the CPU, and whatever speaks DLPack. A tensor that
    requires a gradient is refused, unless the caller says that numbers alone are wanted.
    """
    tensor = getattr(sys.modules.get("torch"), "Tensor", ())
    if isinstance(value, tensor):
        return _tensor(name, value, detach)
    if isinstance(value, np.ma.MaskedArray):
        cure = "Give value.filled(...), an array without a mask of its own."
        raise InvalidTypeError(name, "a masked array", "a plain array", cure)
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if not hasattr(type(value), "__dlpack__"):
        return None
    try:
        return np.from_dlpack(value)
    except MemoryError:
        raise
    except Exception as error:  # each library has its own for memory out of reach
        got = f"{type(value).__name__}, whose memory cannot be read ({_first_line(error)})"
        raise UnavailableError(name, got, "an array in main memory") from error


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


def _tensor(name: str, tensor: Any, detach: bool) -> NDArray[Any]:
    torch, layout = sys.modules["torch"], str(tensor.layout)
    if tensor.requires_grad and not detach and torch.is_grad_enabled():
        got, expected = "a tensor that requires a gradient", "one that does not"
        cure = "Call inside torch.no_grad(), or pass tensor.detach()."
        raise UnavailableError(name, got, expected, cure)
    if tensor.device.type != "cpu" or layout != "torch.strided":
        got = f"a {layout} tensor on {tensor.device}"
        cure = "Move it with .cpu(), or .to_dense()."
        raise UnavailableError(name, got, "a dense tensor on the CPU", cure)
    try:
        return np.asarray(tensor.detach().numpy())
    except (RuntimeError, TypeError) as error:
        got = f"a tensor of {tensor.dtype} ({_first_line(error)})"
        cure = "Convert it, for instance with .float()."
        raise InvalidTypeError(name, got, "a tensor that NumPy can read", cure) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]

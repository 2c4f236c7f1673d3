"""What callers give beside arrays, checked in one way: numbers, flags, lists and paths."""

from __future__ import annotations

from math import inf, isfinite
from os import fsencode
from pathlib import Path
from reprlib import Repr
from typing import Any

import numpy as np

from chumoku.errors import InvalidArgumentError, InvalidTypeError


class _Short(Repr):
    """Plain values in short; all others by their kind, whatever their own repr does."""

    plain = (bool, float, complex, bytes, range, slice, np.generic, Path, type(None))

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > 128:
            return f"a whole number of {x.bit_length()} bits"
        return super().repr_int(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        return (
            super().repr_instance(x, level) if issubclass(type(x), self.plain) else type(x).__name__
        )


_SHORT = _Short()


def shown(value: object) -> str:
    """A value in one short line: plain ones themselves, others by their kind."""
    if issubclass(type(value), np.ndarray):  # isinstance asks the value itself
        return f"an array of {value.dtype}, shape {value.shape}"  # type: ignore[attr-defined]
    try:
        return " ".join(_SHORT.repr(value).split())
    except Exception:  # a list of one's own may do anything
        return f"an unprintable {type(value).__name__}"


def is_whole(value: object) -> bool:
    """Whether this is a whole number, NumPy's too; neither True nor False."""
    # NumPy counts spans of time among its integers.
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, np.timedelta64)
    return integer and not isinstance(value, bool)


def whole(
    name: str, value: object, least: int, most: int | None = None, of: str = "", cure: str = ""
) -> int:
    """A whole number within bounds."""
    expected = f"a whole number{of and f' of {of}'} from {least}"
    if most is not None:
        expected += f" to {most}"
    if not is_whole(value):
        raise InvalidTypeError(name, shown(value), expected, cure)
    found: int = int(value)  # type: ignore[call-overload]
    if found < least or (most is not None and found > most):
        raise InvalidArgumentError(name, shown(found), expected, cure)
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

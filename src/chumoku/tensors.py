"""Safetensors files read and written with NumPy alone, every number in the header distrusted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chumoku.checks import path_of, shown
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError

_DTYPES: dict[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
    "BOOL": "<u1",
}
_NAMES = {
    np.dtype(code).name: name for name, code in _DTYPES.items() if name not in ("BF16", "BOOL")
} | {"bool": "BOOL", "bfloat16": "BF16"}
# The format's own limit, and NumPy's: a header that asks for more is not worth parsing.
_LONGEST_HEADER = 100_000_000
_MOST_AXES = 64


def read_tensors(path: str | PathLike[str]) -> dict[str, NDArray[Any]]:
    """All arrays of a safetensors file by name, in the order of the header.

    The format: https://huggingface.co/docs/safetensors (u64 length of the header, the header in
    JSON, the raw little-endian numbers). It is read whole; arrays share that memory.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    dict of str to array
        F64, F32, F16, I8 to I64, U8 to U64 and BOOL as stored; BF16 as float32, which holds each
        of its numbers exactly.

    Raises
    ------
    InvalidArgumentError
        The file is missing, or is not one of that format: cut short, offsets outside the file,
        overlapping or leaving gaps, a size that does not fit the shape, an unknown dtype.
    """
    file = path_of("path", path)
    header, data = _parts(file)
    spans: list[tuple[int, int, str]] = []
    arrays: dict[str, NDArray[Any]] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, start, stop = _entry(file, name, entry, data.size)
        spans.append((start, stop, name))
        arrays[name] = _array(file, name, data[start:stop], dtype, shape)
    _check_spans(file, sorted(spans), data.size)
    return arrays


def write_tensors(path: str | PathLike[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as a safetensors file, which `read_tensors` gives back bit for bit.

    The file appears whole or not at all: it is written beside its place and then moved there.

    Parameters
    ----------
    path : str or path
        In a folder that exists; a file of that name is replaced.
    arrays : mapping of str to array
        float64, float32, float16, bfloat16 (ml_dtypes), whole numbers or booleans.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        The folder is missing, a name is taken by the format, a dtype is not one of it.
    UnavailableError
        The file cannot be written: no permission, no room. What stood there stays.
    """
    file = path_of("path", path)
    if not file.name or not os.path.isdir(file.parent):
        raise InvalidArgumentError("path", shown(str(file)), "a file in a folder that exists")
    if not isinstance(arrays, Mapping):
        raise InvalidTypeError("arrays", shown(arrays), "a mapping of names to arrays")
    header: dict[str, dict[str, Any]] = {}
    blocks: list[NDArray[Any]] = []
    place = 0
    # Widest first: every array is then aligned to its own numbers.
    for name, array in sorted(arrays.items(), key=lambda item: -_stored(*item).itemsize):
        block = np.asarray(array, order="C").astype(_stored(name, array), copy=False)
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [place, place + block.nbytes],
        }
        place += block.nbytes
        blocks.append(block)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for block in blocks:
                out.write(block.tobytes())
        part.replace(file)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            got = f"{shown(str(file))} ({error.strerror or error})"
            raise UnavailableError("path", got, "a file that can be written") from error
        raise


def _stored(name: str, array: object) -> np.dtype[Any]:
    """The dtype in which an array is written."""
    if not isinstance(name, str) or name == "__metadata__":
        raise InvalidArgumentError("arrays", f"the name {shown(name)}", "a str but __metadata__")
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise InvalidTypeError(name, type(array).__name__, "a NumPy array")
    if array.dtype.name not in _NAMES:
        raise InvalidTypeError(name, str(array.dtype), ", ".join(_NAMES))
    stored: np.dtype[Any] = array.dtype.newbyteorder("<")
    return stored


def _bad(file: Path, got: str, expected: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        file.name, got, expected, "The file is damaged or not a safetensors file; fetch it again."
    )


def _parts(file: Path) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """The header, and every byte behind it."""
    try:
        with file.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            length = int.from_bytes(source.read(8), "little")
            if size < 8 or not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                got = f"a header of {length} bytes in a file of {size}"
                raise _bad(file, got, f"one of 2 to {min(_LONGEST_HEADER, max(2, size - 8))}")
            text = source.read(length)
            data = np.fromfile(source, np.uint8)
    except OSError as error:
        got = f"{shown(str(file))} ({error.strerror})"
        raise InvalidArgumentError("path", got, "a safetensors file that can be read") from error
    try:
        header = json.loads(text.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise _bad(file, f"a header that is no JSON ({error})", "a JSON object") from error
    if not isinstance(header, dict):
        raise _bad(file, f"a JSON {type(header).__name__} as header", "a JSON object")
    return header, data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _entry(file: Path, name: str, entry: Any, size: int) -> tuple[str, tuple[int, ...], int, int]:
    """One entry of the header, checked: dtype, shape, first and last byte."""
    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        got = f"{name}: {str(entry)[:80]}"
        raise _bad(file, got, "dtype, shape and two data_offsets") from None
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _bad(file, f"{name} of dtype {str(dtype)[:40]}", f"one of {', '.join(_DTYPES)}")
    whole = all(type(n) is int and n >= 0 for n in (*shape, start, stop))
    if not whole or len(shape) > _MOST_AXES:
        got = f"{name} of shape {str(shape)[:80]} at {str((start, stop))[:80]}"
        raise _bad(file, got, f"up to {_MOST_AXES} whole numbers from 0")
    if not start <= stop <= size:
        got = f"{name} at bytes {start} to {stop}"
        raise _bad(file, got, f"bytes from 0 to {size}, those behind the header")
    needed = prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if stop - start != needed:
        got = f"{name}: {stop - start} bytes"
        raise _bad(file, got, f"{needed}, for {dtype} of shape {shape}")
    return dtype, shape, start, stop


def _check_spans(file: Path, spans: list[tuple[int, int, str]], size: int) -> None:
    """The arrays lie one behind another and fill the file: no overlap, no gap."""
    place = 0
    for start, stop, name in spans:
        if start != place:
            raise _bad(
                file, f"{name} from byte {start}", f"byte {place}, where the one before ends"
            )
        place = stop
    if place != size:
        raise _bad(file, f"{size} bytes behind the header", f"{place}, as many as the arrays have")


def _array(
    file: Path, name: str, data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]
) -> NDArray[Any]:
    if data.ctypes.data % np.dtype(_DTYPES[dtype]).itemsize:
        data = data.copy()
    try:
        array = data.view(_DTYPES[dtype]).reshape(shape)
    except (ValueError, OverflowError):  # an axis of 0 beside one that no array can have
        raise _bad(
            file, f"{name} of shape {str(shape)[:80]}", "one that an array can have"
        ) from None
    if dtype == "BF16":
        return np.asarray(np.left_shift(array.astype(np.uint32), 16).view(np.float32))
    if dtype == "BOOL":
        if array.size and array.max() > 1:
            raise _bad(file, f"{name}: a boolean {array.max()}", "0 or 1")
        return array.view(np.bool_)
    return array.astype(array.dtype.newbyteorder("="), copy=False)

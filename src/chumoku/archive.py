"""Arrays of plain numbers in an .npz file: no pickle, every number of the file distrusted."""

from __future__ import annotations

import os
import re
import threading
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from math import prod
from os import PathLike
from pathlib import Path
from stat import S_ISREG
from struct import error as StructError
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from chumoku.errors import InvalidArgumentError, InvalidTypeError

# The header of an array, as NumPy writes it (numpy.lib.format, version 1.0), with up to 64 axes;
# nothing is evaluated.
_HEADER = re.compile(
    rb"\{'descr': '(<f4|<f8|<i8|\|u1)', 'fortran_order': False, "
    rb"'shape': \(((?:[0-9]{1,19}, ){0,63}[0-9]{1,19},?|)\), \} *\n"
)
_MAGIC = b"\x93NUMPY\x01\x00"
_DTYPES = ("float32", "float64", "int64", "uint8")
# All that the zip reader raises over a damaged file.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    StructError,
    EOFError,
    ValueError,
    OverflowError,
    IndexError,
    KeyError,
    RuntimeError,  # NotImplementedError among them: a member that is compressed or encrypted
)


def write_arrays(path: str | PathLike[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as an .npz file, which `read_arrays` and np.load give back bit for bit.

    The file appears whole or not at all: it is written beside its place and then moved there.
    Equal arrays give equal files.

    Parameters
    ----------
    path : str or path
        In a folder that exists; a file of that name is replaced, no suffix is added.
    arrays : mapping of str to array
        float32, float64, int64 or uint8.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        The file cannot be written there, or an array is of another dtype.
    """
    file = _file(path)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.name not in _DTYPES:
            got = str(getattr(array, "dtype", type(array).__name__))
            raise InvalidTypeError(name, got, f"a NumPy array of {', '.join(_DTYPES)}")
    part = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                # A ZipInfo made by hand has a date that stays the same.
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as out:
                    little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
                    np.lib.format.write_array(out, little, version=(1, 0), allow_pickle=False)
        part.replace(file)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        _remove(part)
        raise _no_path(file, error, "a file that can be written, in a folder that exists") from None
    except BaseException:
        _remove(part)
        raise


def read_arrays(path: str | PathLike[str]) -> dict[str, NDArray[Any]]:
    """All arrays of a file that `write_arrays` wrote, by name, in the order of the file.

    Numbers are stored as they are, never compressed: what a file declares it must have, so that
    no small file asks for much memory.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    dict of str to array
        float32, float64, int64 or uint8, in memory of their own.

    Raises
    ------
    InvalidArgumentError
        The file is missing, no file, cut short, damaged, compressed, or has objects inside.
    InvalidTypeError
        path is no path.
    """
    file = _file(path)
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with _opened(file) as source, zipfile.ZipFile(source) as archive:
            size = os.fstat(source.fileno()).st_size
            members = archive.infolist()
            if sum(member.file_size for member in members) > size:
                raise _bad(file, "arrays larger than the file", "numbers stored as they are")
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in arrays or name == member.filename:
                    got = f"{member.filename[:80]!r}"
                    raise _bad(file, got, "different names that end in .npy")
                if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                    got = f"{name[:80]}, compressed or encrypted"
                    raise _bad(file, got, "numbers stored as they are")
                with archive.open(member) as inside:
                    arrays[name] = _array(file, name[:80], inside.read(member.file_size + 1))
    except InvalidArgumentError:
        raise
    except OSError as error:
        raise _no_path(file, error, "a file that can be read") from None
    except _BROKEN as error:
        raise _bad(file, f"a broken archive ({str(error)[:80]})", "a whole one") from None
    return arrays


def check_version(path: str | PathLike[str], found: Any, version: int, what: str) -> None:
    """Refuse a file that tells of no version, None, or of another one than this."""
    expected = f"{what}, version {version}"
    if found is None:
        raise InvalidArgumentError("path", f"{str(path)!r}, of another kind", expected)
    if found != version:
        cure = "A later version of chumoku may have written it."
        got = f"{str(path)!r}, of another version"
        raise InvalidArgumentError("path", got, expected, cure)


def _file(path: object) -> Path:
    if not isinstance(path, (str, PathLike)):
        raise InvalidTypeError("path", type(path).__name__, "a str or a path")
    try:
        file = Path(path)
    except TypeError:  # a PathLike that answers with bytes
        raise InvalidTypeError("path", type(path).__name__, "a str or a path") from None
    if not file.name:
        raise InvalidArgumentError("path", repr(str(file)), "the name of a file")
    return file


def _opened(file: Path) -> IO[bytes]:
    """The file, open; a pipe or a device, which might never end, is refused."""
    try:
        regular = S_ISREG(file.stat().st_mode)
    except ValueError as error:
        raise _no_path(file, error, "a file that can be read") from None
    if not regular:
        raise InvalidArgumentError("path", f"{str(file)!r}, no plain file", "one that can be read")
    return file.open("rb")


def _remove(part: Path) -> None:
    with suppress(OSError, ValueError):
        part.unlink()


def _no_path(file: Path, error: Exception, expected: str) -> InvalidArgumentError:
    reason = getattr(error, "strerror", None) or str(error)
    return InvalidArgumentError("path", f"{str(file)!r} ({reason})", expected)


def _bad(file: Path, got: str, expected: str) -> InvalidArgumentError:
    cure = "The file is damaged or was not written by chumoku; save it again."
    return InvalidArgumentError(file.name, got, expected, cure)


def _array(file: Path, name: str, data: bytes) -> NDArray[Any]:
    """One array from the bytes of an .npy file: magic, length of the header, header, numbers."""
    start = 10 + int.from_bytes(data[8:10], "little")
    header = _HEADER.fullmatch(data[10:start])
    if not data.startswith(_MAGIC) or header is None:
        got = f"{name}: a header of {bytes(data[10:70])!r}"
        raise _bad(file, got, "one of float32, float64, int64 or uint8 numbers")
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(n) for n in header[2].split(b",") if n.strip())
    if len(data) - start != prod(shape) * dtype.itemsize:
        got = f"{name}: {len(data) - start} bytes"
        raise _bad(file, got, f"{prod(shape) * dtype.itemsize}, for {dtype} of shape {shape}")
    numbers = np.frombuffer(data, dtype, offset=start)
    try:
        shaped = numbers.reshape(shape)
    except (ValueError, OverflowError):  # an axis of 0 beside one that no array can have
        raise _bad(file, f"{name} of shape {shape}", "one that an array can have") from None
    return shaped.astype(dtype.newbyteorder("="))

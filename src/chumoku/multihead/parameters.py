"""The parameters of MultiHeadAttention: their names, ours and torch's, and which fit together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chumoku.arrays import array_of
from chumoku.checks import shown, whole
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError

Floats = NDArray[Any]

MATRICES = ("query_matrix", "key_matrix", "value_matrix", "output_matrix")
BIASES = ("query_bias", "key_bias", "value_bias", "output_bias")
# No size is larger: the numbers of a matrix can then be counted, and MemoryError says the rest.
MOST_SIZE = 2**28
# The widest head that attention takes.
MOST_WIDTH = 1024
# What an array of a given name holds, block of rows by block: ours, torch.nn.MultiheadAttention's.
_NAMES = {name: (name,) for name in (*MATRICES, *BIASES)} | {
    "in_proj_weight": MATRICES[:3],
    "q_proj_weight": MATRICES[:1],
    "k_proj_weight": MATRICES[1:2],
    "v_proj_weight": MATRICES[2:3],
    "in_proj_bias": BIASES[:3],
    "out_proj.weight": MATRICES[3:],
    "out_proj.bias": BIASES[3:],
}


def count_of(named: dict[str, Any], heads: object) -> int:
    """How many heads there are, as the argument or the parameters' own entry says."""
    said = named.pop("heads", heads)
    if said is None:
        cure = "Give heads=; matrices do not tell it."
        raise InvalidArgumentError("heads", "None", "the number of heads", cure)
    number = array_of("heads", said, "a whole number")
    count = whole("heads", said if number.ndim else number.item(), 1, MOST_SIZE)
    if heads is not None and whole("heads", heads, 1) != count:
        raise InvalidArgumentError("heads", shown(heads), f"{count}, as the parameters say")
    return count


def _parameter(name: str, value: Any) -> Floats:
    """A parameter as an array that shares its memory."""
    array = array_of(name, value, "numbers in main memory", detach=True)
    if array.dtype not in (np.float32, np.float64):
        cure = "Convert it first, with .astype(np.float32) or .float()."
        raise InvalidTypeError(name, str(array.dtype), "float32 or float64", cure)
    return array


def own_names(named: Mapping[str, Any], given: Iterable[str]) -> dict[str, Floats]:
    """The parameters under this module's names; joined ones are cut into views."""
    own: dict[str, Floats] = {}
    if "bias_k" in named or "bias_v" in named:
        got, expected = "one more learned key (add_bias_kv=True)", "a module without it"
        raise UnavailableError("bias_k", got, expected, "chumoku looks at given keys only.")
    for name in filter(_NAMES.__contains__, named):
        array, names = _parameter(name, named[name]), _NAMES[name]
        if array.ndim not in (1, 2) or len(array) % len(names):
            expected = "a matrix or a bias, with as many rows of query, key and value if joined"
            raise InvalidArgumentError(name, f"shape {array.shape}", expected)
        if not own.keys().isdisjoint(names):
            raise InvalidArgumentError("parameters", f"{names[0]} twice", "each of them once")
        own.update(zip(names, np.split(array, len(names)), strict=True))
    missing = [name for name in MATRICES if name not in own]
    unknown = [name for name in named if name not in _NAMES]
    if missing or unknown:
        marks = ("query_matrix", "in_proj_weight", "q_proj_weight")
        prefixes = {n.removesuffix(m) for n in given for m in marks if n.endswith(m)} - {""}
        got = f"nothing for {', '.join(missing)}" if missing else f"also {', '.join(unknown[:6])}"
        expected = f"{', '.join(MATRICES)}, or in_proj_weight, out_proj.weight, ..."
        cure = f"Give prefix=, such as {min(prefixes)!r}." if prefixes else ""
        raise InvalidArgumentError("parameters", got, expected, cure)
    return own


def check_shapes(parameters: Mapping[str, Floats], heads: int) -> None:
    """Every matrix fits the others, and every bias its matrix."""
    dtype = parameters["query_matrix"].dtype
    for name, array in parameters.items():
        rows = parameters[name.replace("_bias", "_matrix")].shape[:1]
        if array.ndim != (1 if name in BIASES else 2) or array.shape[:1] != rows or not array.size:
            expected = f"{rows}, as its matrix has rows" if name in BIASES else "(out, in)"
            raise InvalidArgumentError(name, f"shape {array.shape}", expected)
        if array.dtype != dtype:
            expected = f"{dtype}, as query_matrix has"
            raise InvalidTypeError(name, str(array.dtype), expected, "Convert one of them.")
    rows, kv_rows, value_rows = (parameters[name].shape[0] for name in MATRICES[:3])
    head_width = max(1, rows // heads)
    kv_heads = max(1, kv_rows // head_width)
    mixed = value_rows // kv_heads * heads
    shared = kv_rows == kv_heads * head_width and heads % kv_heads == 0
    for name, fits, expected in (
        ("query_matrix", rows % heads == 0, f"a multiple of {heads} heads as rows"),
        ("query_matrix", head_width <= MOST_WIDTH, f"at most {MOST_WIDTH} rows for each head"),
        ("value_matrix", value_rows <= kv_heads * MOST_WIDTH, f"at most {MOST_WIDTH} a head"),
        ("key_matrix", shared, f"rows: {head_width} for each head, a divisor of {heads} heads"),
        ("value_matrix", value_rows % kv_heads == 0, f"a multiple of {kv_heads} heads as rows"),
        ("output_matrix", parameters["output_matrix"].shape[1] == mixed, f"{mixed} columns"),
    ):
        if not fits:
            got = f"shape {parameters[name].shape}"
            raise InvalidArgumentError(name, got, expected, f"Is heads={heads} right?")

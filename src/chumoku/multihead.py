"""MultiHeadAttention: four matrices around attention(), and what each head did between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from os import PathLike
from typing import Any, Self, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from chumoku.attention import attention, weights
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.mask import Mask
from chumoku.statistics import Statistics, Watch
from chumoku.tensors import read_tensors, write_tensors

Floats = NDArray[Any]
Masking = Mask | NDArray[np.bool_] | None
File = str | PathLike[str]

_MATRICES = ("query_matrix", "key_matrix", "value_matrix", "output_matrix")
_BIASES = ("query_bias", "key_bias", "value_bias", "output_bias")
# What an array of a given name holds, block of rows by block: ours, torch.nn.MultiheadAttention's.
_NAMES = {name: (name,) for name in (*_MATRICES, *_BIASES)} | {
    "in_proj_weight": _MATRICES[:3],
    "q_proj_weight": _MATRICES[:1],
    "k_proj_weight": _MATRICES[1:2],
    "v_proj_weight": _MATRICES[2:3],
    "in_proj_bias": _BIASES[:3],
    "out_proj.weight": _MATRICES[3:],
    "out_proj.bias": _BIASES[3:],
}


class Cache:
    """Projected keys and values of one MultiHeadAttention, for decoding step by step.

    Give an empty one to the first call and the same one to the calls that follow. What it does
    is settled by the first call:

    - Self attention, `mha(x, mask=Causal(), cache=cache)`: every call appends the positions of
      its x, and the queries look at all that is held. Buffers double, so that a position is
      moved about once however many steps there are. `Causal()` sets the queries at the end.
    - Cross attention, `mha(x, memory, cache=cache)`: the first call projects the memory; later
      calls look at the same again and project nothing. They give the same array or leave it out.

    A call that raises leaves the cache as it was. Arrays that were handed out (`Trace.key`, the
    inputs of a recording) are not overwritten by what is appended later.
    """

    def __init__(self) -> None:
        self._buffers: tuple[Floats, ...] = ()
        self._length = 0
        # Whether the room behind the length was never handed out, so that it may be written.
        self._spare = False
        self._owner: tuple[Floats, ...] = ()
        self._memory: tuple[Floats, Floats | None] | None = None

    def __len__(self) -> int:
        """How many positions can be looked at."""
        return self._length

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on; 0 empties the cache for any use.

        Raises
        ------
        InvalidArgumentError
            Not 0 to len(cache), or a part of what a cross-attention memory gave.
        """
        length = _whole("length", length, 0)
        if length == 0:
            self.__dict__.update(Cache().__dict__)
        elif length > len(self):
            raise InvalidArgumentError("length", str(length), f"0 to {len(self)}, what is held")
        elif length < len(self) and self._memory is not None:
            got = f"{length}, of a cache that holds a memory of {len(self)}"
            cure = "To look at a part of the memory, give a mask."
            raise InvalidArgumentError("length", got, "0, which empties it", cure)
        elif length < len(self):
            self._length, self._spare = length, False

    def __copy__(self) -> Cache:
        self._spare = False
        twin = Cache()
        twin.__dict__.update(self.__dict__)
        return twin

    def _after(self, *added: Floats) -> dict[str, Any]:
        """The state with these keys and values at the end; the cache itself stays as it is."""
        if not self._buffers:
            return {"_buffers": added, "_length": added[0].shape[-2]}
        batch, held = added[0].shape[:-3], self._buffers[0].shape[:-3]
        if batch != held:
            got, expected = f"keys of leading axes {held} in it", f"{batch}, as x has"
            cure = "Step with the batch that filled the cache, or start with a new Cache()."
            raise InvalidArgumentError("cache", got, expected, cure)
        start, length = self._length, self._length + added[0].shape[-2]
        buffers = self._buffers
        if not self._spare or length > buffers[0].shape[-2]:
            room = max(length, 2 * start)
            buffers = tuple(np.empty((*a.shape[:-2], room, a.shape[-1]), a.dtype) for a in added)
            for new, old in zip(buffers, self._buffers, strict=True):
                new[..., :start, :] = old[..., :start, :]
        for buffer, new in zip(buffers, added, strict=True):
            buffer[..., start:length, :] = new
        return {"_buffers": buffers, "_length": length, "_spare": True}


@dataclass(frozen=True, eq=False)
class Trace:
    """One call of MultiHeadAttention, opened: what went into the heads and what came out.

    Attributes
    ----------
    query : (..., heads, queries, head_width)
        Projected, as each head reads it: a view of the one product.
    key, value : (..., kv_heads, keys, head_width)
        Projected; with a cache, all that is held.
    mixed : (..., heads, queries, head_width)
        What each head gave before the join: its mix of the values. 0 for silenced heads.
    output : (..., queries, width)
    seen : Statistics
        Per head, (..., heads, queries). Silenced heads look as before.
    """

    query: Floats
    key: Floats
    value: Floats
    mixed: Floats
    output: Floats
    seen: Statistics
    # What each head meets of the output matrix: views, (heads, head_width, width).
    _blocks: Floats = field(repr=False)
    _weights: Callable[..., Floats] = field(repr=False)

    @cached_property
    def parts(self) -> Floats:
        """Each head's part of the output, (..., heads, queries, width), made when first asked for.

        parts.sum(axis=-3) + output_bias is the output, to rounding. As large as `heads` outputs;
        `norms` does without it.
        """
        return np.asarray(self.mixed @ self._blocks)

    @cached_property
    def norms(self) -> Floats:
        """Euclidean norm of each head's part, (..., heads, queries): how much it gives."""
        norms = np.empty(self.mixed.shape[:-1], self.mixed.dtype)
        for head, block in enumerate(self._blocks):
            norms[..., head, :] = np.linalg.norm(self.mixed[..., head, :, :] @ block, axis=-1)
        return norms

    def weights(self, rows: Any = None, keys: Any = None) -> Floats:
        """Any block of the weights, exactly, computed now: (..., heads, rows, keys).

        rows and keys are slices, numbers or 1-D arrays of them; all when not given.
        """
        rows, keys = (slice(None) if which is None else which for which in (rows, keys))
        return self._weights(rows=rows, keys=keys)


@dataclass(frozen=True, eq=False, repr=False, init=False)
class MultiHeadAttention:
    """Multi-head attention on NumPy: four matrices around `attention`.

    head_h = attention(x Wq_h', memory Wk_h', memory Wv_h'); output = [head_0 ... head_n] Wo' + b
    (Vaswani et al. 2017, section 3.2.2). A frozen value; its matrices are read-only views.

    Parameters
    ----------
    width : int
        Width of x and of the output; a multiple of heads.
    heads : int
    kv_heads : int, optional
        Heads of keys and values, a divisor of heads: query head h looks at key head
        h // (heads // kv_heads) (Ainslie et al. 2023). None: as many as heads.
    bias : bool
        Whether a bias, 0 at first, is added after each matrix.
    key_width, value_width : int, optional
        Width of what keys and values are made from. None: width, and the keys' width.
    dtype : float32 or float64
    seed : int
        Of the generator of the matrices, Xavier-uniform (Glorot and Bengio 2010, equation 16).

    Attributes
    ----------
    query_matrix, key_matrix, value_matrix, output_matrix : (out, in)
        Rows head by head; projecting is x @ matrix.T.
    query_bias, key_bias, value_bias, output_bias : (out,), or None
    heads, kv_heads, width, key_width, value_width, dtype
        As above; the dtype is that of inputs and outputs too.
    silenced : frozenset of int
        Heads whose result is set to 0 before the output matrix: see `without`.
    """

    query_matrix: Floats
    key_matrix: Floats
    value_matrix: Floats
    output_matrix: Floats
    query_bias: Floats | None
    key_bias: Floats | None
    value_bias: Floats | None
    output_bias: Floats | None
    heads: int
    kv_heads: int
    width: int
    key_width: int
    value_width: int
    dtype: np.dtype[Any]
    silenced: frozenset[int]

    def __init__(
        self,
        width: int = 512,
        heads: int = 8,
        *,
        kv_heads: int | None = None,
        bias: bool = True,
        key_width: int | None = None,
        value_width: int | None = None,
        dtype: DTypeLike = np.float32,
        seed: int = 0,
    ) -> None:
        width, heads = _whole("width", width, 1), _whole("heads", heads, 1)
        kv_heads = heads if kv_heads is None else _whole("kv_heads", kv_heads, 1)
        key_width = width if key_width is None else _whole("key_width", key_width, 1)
        value_width = key_width if value_width is None else _whole("value_width", value_width, 1)
        if width % heads:
            raise InvalidArgumentError("heads", str(heads), f"a divisor of the width {width}")
        if heads % kv_heads:
            raise InvalidArgumentError("kv_heads", str(kv_heads), f"a divisor of {heads} heads")
        kind = np.dtype(dtype)
        if kind not in (np.float32, np.float64):
            raise InvalidTypeError("dtype", str(kind), "float32 or float64")
        random = np.random.default_rng(_whole("seed", seed, 0))
        kv_rows = kv_heads * (width // heads)
        shapes = (width, width), (kv_rows, key_width), (kv_rows, value_width), (width, width)
        parameters: dict[str, Floats] = {}
        for matrix, name, shape in zip(_MATRICES, _BIASES, shapes, strict=True):
            limit = np.sqrt(6.0 / sum(shape))
            parameters[matrix] = random.uniform(-limit, limit, shape).astype(kind, copy=False)
            if bias:
                parameters[name] = np.zeros(shape[0], kind)
        self._hold(parameters, heads)

    def _hold(self, parameters: Mapping[str, Floats], heads: int) -> None:
        held: dict[str, Any] = dict.fromkeys((*_MATRICES, *_BIASES))
        for name, array in parameters.items():
            held[name] = array.view()
            held[name].flags.writeable = False
        query, key, value = (parameters[name] for name in _MATRICES[:3])
        held.update(width=query.shape[1], key_width=key.shape[1], value_width=value.shape[1])
        held.update(heads=heads, kv_heads=key.shape[0] * heads // query.shape[0])
        self.__dict__.update(held, dtype=query.dtype, silenced=frozenset())

    @classmethod
    def from_parameters(
        cls, parameters: Mapping[str, Any], heads: int | None = None, *, prefix: str = ""
    ) -> Self:
        """One made of given parameters, which are not copied.

        Parameters
        ----------
        parameters : mapping of names to arrays
            query_matrix, key_matrix, value_matrix, output_matrix and those that there are of
            query_bias, key_bias, value_bias, output_bias. Or torch.nn.MultiheadAttention's:
            in_proj_weight (or q_proj_weight, k_proj_weight, v_proj_weight), in_proj_bias,
            out_proj.weight, out_proj.bias. Matrices are (out, in). Whatever np.asarray reads
            will do, a state_dict of tensors too: float32 or float64, None is no parameter.
        heads : int, optional
            May be left out when the parameters have an entry "heads", as saved files do. The
            other sizes follow from the shapes.
        prefix : str
            Of the names to be read, such as "encoder.layers.0.self_attn."; others are ignored.

        Raises
        ------
        InvalidArgumentError, InvalidTypeError
            A name is missing or unknown, a shape or a dtype does not fit.
        UnavailableError
            The torch module was made with add_bias_kv=True. (add_zero_attn=True leaves no trace
            in the parameters, and is not noticed.)
        """
        named = {
            name.removeprefix(prefix): value
            for name, value in parameters.items()
            if name.startswith(prefix) and value is not None
        }
        said = np.asarray(named.pop("heads", heads)).tolist()
        if said is None:
            cure = "Give heads=; matrices do not tell it."
            raise InvalidArgumentError("heads", "None", "the number of heads", cure)
        count = _whole("heads", said, 1)
        if heads is not None and heads != count:
            raise InvalidArgumentError("heads", str(heads), f"{count}, as the parameters say")
        silenced = np.asarray(named.pop("silenced", ()), np.int64).tolist()
        own = _own_names(named, parameters)
        _check_shapes(own, count)
        new = cls.__new__(cls)
        new._hold(own, count)
        return new.without(silenced)

    @classmethod
    def load(cls, path: File, heads: int | None = None, *, prefix: str = "") -> Self:
        """One read from a safetensors file, of this class or of torch: see `from_parameters`."""
        return cls.from_parameters(read_tensors(path), heads, prefix=prefix)

    def save(self, path: File) -> None:
        """Write a safetensors file that `load` reads: the parameters, "heads" and "silenced"."""
        counts = {"heads": self.heads, "silenced": sorted(self.silenced)}
        extra = {name: np.array(count, np.int64) for name, count in counts.items()}
        write_tensors(path, {**self.parameters, **extra})

    @property
    def parameters(self) -> dict[str, Floats]:
        """The matrices and those biases that there are, by name, not copied."""
        held = {name: getattr(self, name) for name in (*_MATRICES, *_BIASES)}
        return {name: array for name, array in held.items() if array is not None}

    def without(self, heads: Iterable[int]) -> Self:
        """A new value with these heads silenced too; the matrices are shared.

        Parameters
        ----------
        heads : iterable of int
            Such as {0, 3}, counted from 0. What they see is still reported.
        """
        asked = frozenset(_whole("heads", head, 0) for head in heads)
        if max(asked, default=0) >= self.heads:
            expected = f"heads from 0 to {self.heads - 1}"
            raise InvalidArgumentError("heads", f"head {max(asked)}", expected)
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__, silenced=self.silenced | asked)
        return new

    def __repr__(self) -> str:
        sizes = f"width={self.width}, heads={self.heads}, kv_heads={self.kv_heads}"
        silenced = f", silenced={sorted(self.silenced)}" if self.silenced else ""
        return f"MultiHeadAttention({sizes}, dtype={self.dtype}{silenced})"

    @overload
    def __call__(
        self,
        x: Floats,
        memory: Floats | None = None,
        value: Floats | None = None,
        *,
        mask: Masking = None,
        bias: Floats | None = None,
        scale: float | None = None,
        watch: None = None,
        cache: Cache | None = None,
    ) -> Floats: ...

    @overload
    def __call__(
        self,
        x: Floats,
        memory: Floats | None = None,
        value: Floats | None = None,
        *,
        mask: Masking = None,
        bias: Floats | None = None,
        scale: float | None = None,
        watch: Watch,
        cache: Cache | None = None,
    ) -> tuple[Floats, Statistics]: ...

    def __call__(
        self,
        x: Floats,
        memory: Floats | None = None,
        value: Floats | None = None,
        *,
        mask: Masking = None,
        bias: Floats | None = None,
        scale: float | None = None,
        watch: Watch | None = None,
        cache: Cache | None = None,
    ) -> Floats | tuple[Floats, Statistics]:
        """Let every position of x look at x itself, or at a memory.

        Parameters
        ----------
        x : array, (..., queries, width)
            NumPy, of the parameters' dtype; any leading axes, any strides.
        memory : array, (..., keys, key_width), optional
            What keys (and values) are made from. None: x.
        value : array, (..., keys, value_width), optional
            What values are made from. None: the memory.
        mask, bias, scale : optional
            As in `attention`, which sees (..., heads, queries, keys). True means may look.
        watch : Watch, optional
            What to report of each head.
        cache : Cache, optional
            Keys and values of the calls before.

        Returns
        -------
        output : array, (..., queries, width)
        seen : Statistics
            Only when watch is given; (..., heads, queries).
        """
        trace = self.trace(
            x, memory, value, mask=mask, bias=bias, scale=scale, watch=watch, cache=cache
        )
        return trace.output if watch is None else (trace.output, trace.seen)

    def trace(
        self,
        x: Floats,
        memory: Floats | None = None,
        value: Floats | None = None,
        *,
        mask: Masking = None,
        bias: Floats | None = None,
        scale: float | None = None,
        watch: Watch | None = None,
        cache: Cache | None = None,
    ) -> Trace:
        """As a call, with everything in between kept: see `Trace`. The output has equal bits."""
        query = self._heads_of("x", x, "query", self.heads)
        key, mix_from, state = self._looked_at(x, memory, value, cache)
        try:
            np.broadcast_shapes(query.shape[:-3], key.shape[:-3], mix_from.shape[:-3])
        except ValueError:
            got = f"leading axes {key.shape[:-3]} (of the values {mix_from.shape[:-3]})"
            expected = f"axes that broadcast with x's {query.shape[:-3]}"
            name = "cache" if memory is None else "memory"
            raise InvalidArgumentError(name, got, expected) from None
        options: dict[str, Any] = {"mask": mask, "bias": bias, "scale": scale}
        asked = Watch() if watch is None else watch
        mixed, seen = attention(query, key, mix_from, watch=asked, **options)
        if self.silenced:
            mixed[..., sorted(self.silenced), :, :] = 0
        # One copy, or none where the kernel answers in the layout that the query came in.
        rows, columns = self.output_matrix.shape
        joined = mixed.swapaxes(-3, -2).reshape(*mixed.shape[:-3], mixed.shape[-2], columns)
        output = _linear(joined, self.output_matrix, self.output_bias)
        if cache is not None:
            cache.__dict__.update(state)
        look = partial(weights, query, key, **options)
        blocks = self.output_matrix.reshape(rows, self.heads, -1).transpose(1, 2, 0)
        return Trace(query, key, mix_from, mixed, output, seen, blocks, look)

    def _looked_at(
        self, x: Floats, memory: Floats | None, value: Floats | None, cache: Cache | None
    ) -> tuple[Floats, Floats, dict[str, Any]]:
        """Keys and values of this call, and the cache's state for when it has succeeded."""
        if value is not None and memory is None:
            cure = "For keys made from x, give memory=x."
            raise InvalidArgumentError("value", "values alone", "memory= beside them", cure)
        if cache is not None:
            self._check_cache(cache, memory, value)
            if cache._memory is not None:
                return *cache._buffers, {}  # type: ignore[return-value]
        name, source = ("x", x) if memory is None else ("memory", memory)
        keys = self._heads_of(name, source, "key", self.kv_heads)
        if value is not None:
            name, source = "value", value
        values = self._heads_of(name, source, "value", self.kv_heads)
        if keys.shape[-2] != values.shape[-2]:
            got, expected = (f"{array.shape[-2]} positions" for array in (values, keys))
            raise InvalidArgumentError("value", got, f"{expected}, as the memory has")
        if cache is None:
            return keys, values, {}
        state = cache._after(keys, values)
        state["_owner"] = (self.key_matrix, self.value_matrix)
        if memory is not None:
            state["_memory"] = (memory, value)
        keys, values = (buffer[..., : state["_length"], :] for buffer in state["_buffers"])
        return keys, values, state

    def _check_cache(self, cache: Cache, memory: Floats | None, value: Floats | None) -> None:
        if not isinstance(cache, Cache):
            raise InvalidTypeError("cache", type(cache).__name__, "a chumoku.Cache")
        own = (self.key_matrix, self.value_matrix)
        if not all(a is b or np.array_equal(a, b) for a, b in zip(own, cache._owner, strict=False)):
            got, expected = "one that another module filled", "an empty one, or one of its own"
            raise InvalidArgumentError("cache", got, expected, "Each layer needs its own Cache().")
        held = cache._memory or (None, None)
        if memory is not None and cache._buffers and not (held[0] is memory and held[1] is value):
            got = "one that holds other positions"
            expected = "an empty one, or one filled from this very memory (and value)"
            cure = "Use a new Cache() for each memory; later calls may leave memory out."
            raise InvalidArgumentError("cache", got, expected, cure)

    def _heads_of(self, name: str, given: object, part: str, heads: int) -> Floats:
        """An input after its matrix, head by head: a view (..., heads, length, head width)."""
        matrix = getattr(self, f"{part}_matrix")
        array = _input(name, given, part, matrix)
        flat = _linear(array, matrix, getattr(self, f"{part}_bias"))
        return flat.reshape(*flat.shape[:-1], heads, len(matrix) // heads).swapaxes(-3, -2)


def _linear(x: Floats, matrix: Floats, bias: Floats | None) -> Floats:
    """One product, x @ matrix.T + bias, whatever leading axes x has."""
    product = x.reshape(-1, x.shape[-1]) @ matrix.T
    if bias is not None:
        product += bias
    return product.reshape(*x.shape[:-1], matrix.shape[0])


def _whole(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidTypeError(name, repr(value), "a whole number")
    if value < least:
        raise InvalidArgumentError(name, str(value), f"a whole number from {least}")
    return int(value)


def _input(name: str, given: object, part: str, matrix: Floats) -> Floats:
    """An input as a plain array that fits the matrix."""
    if not isinstance(given, np.ndarray):
        cure = f"np.asarray(..., dtype=np.{matrix.dtype}) makes one of a list."
        if hasattr(given, "detach"):
            cure = "Give tensor.detach().cpu().numpy()."
        got = f"{type(given).__module__}.{type(given).__qualname__}"
        raise InvalidTypeError(name, got, "a NumPy array", cure)
    array = np.asarray(given)
    if array.dtype != matrix.dtype:
        cure = f"Convert it with .astype(np.{matrix.dtype}), or make the module with dtype=."
        expected = f"{matrix.dtype}, as the parameters have"
        raise InvalidTypeError(name, str(array.dtype), expected, cure)
    if array.ndim < 2 or array.shape[-1] != matrix.shape[1]:
        expected = f"(..., length, {matrix.shape[1]}), as {part}_matrix takes it"
        cure = "Give value= too: their widths differ." if part == "value" != name else ""
        raise InvalidArgumentError(name, f"shape {array.shape}", expected, cure)
    return array


def _parameter(name: str, value: Any) -> Floats:
    """A parameter as an array that shares its memory."""
    try:
        array = np.asarray(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{type(value).__name__}, which NumPy cannot read ({error})"
        cure = "Of a tensor, give tensor.float().cpu()."
        raise InvalidTypeError(name, got, "numbers in main memory", cure) from error
    if array.dtype not in (np.float32, np.float64):
        cure = "Convert it first, with .astype(np.float32)."
        raise InvalidTypeError(name, str(array.dtype), "float32 or float64", cure)
    return array


def _own_names(named: Mapping[str, Any], given: Iterable[str]) -> dict[str, Floats]:
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
    missing = [name for name in _MATRICES if name not in own]
    unknown = [name for name in named if name not in _NAMES]
    if missing or unknown:
        marks = ("query_matrix", "in_proj_weight", "q_proj_weight")
        prefixes = {n.removesuffix(m) for n in given for m in marks if n.endswith(m)} - {""}
        got = f"nothing for {', '.join(missing)}" if missing else f"also {', '.join(unknown[:6])}"
        expected = f"{', '.join(_MATRICES)}, or in_proj_weight, out_proj.weight, ..."
        cure = f"Give prefix=, such as {min(prefixes)!r}." if prefixes else ""
        raise InvalidArgumentError("parameters", got, expected, cure)
    return own


def _check_shapes(parameters: Mapping[str, Floats], heads: int) -> None:
    """Every matrix fits the others, and every bias its matrix."""
    dtype = parameters["query_matrix"].dtype
    for name, array in parameters.items():
        rows = parameters[name.replace("_bias", "_matrix")].shape[:1]
        if array.ndim != (1 if name in _BIASES else 2) or array.shape[:1] != rows or not array.size:
            expected = f"{rows}, as its matrix has rows" if name in _BIASES else "(out, in)"
            raise InvalidArgumentError(name, f"shape {array.shape}", expected)
        if array.dtype != dtype:
            expected = f"{dtype}, as query_matrix has"
            raise InvalidTypeError(name, str(array.dtype), expected, "Convert one of them.")
    rows, kv_rows, value_rows = (parameters[name].shape[0] for name in _MATRICES[:3])
    head_width = max(1, rows // heads)
    kv_heads = max(1, kv_rows // head_width)
    mixed = value_rows // kv_heads * heads
    shared = kv_rows == kv_heads * head_width and heads % kv_heads == 0
    for name, fits, expected in (
        ("query_matrix", rows % heads == 0, f"a multiple of {heads} heads as rows"),
        ("key_matrix", shared, f"rows: {head_width} for each head, a divisor of {heads} heads"),
        ("value_matrix", value_rows % kv_heads == 0, f"a multiple of {kv_heads} heads as rows"),
        ("output_matrix", parameters["output_matrix"].shape[1] == mixed, f"{mixed} columns"),
    ):
        if not fits:
            got = f"shape {parameters[name].shape}"
            raise InvalidArgumentError(name, got, expected, f"Is heads={heads} right?")

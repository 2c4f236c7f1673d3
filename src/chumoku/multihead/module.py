"""MultiHeadAttention: four matrices around attention(), and what each head did between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from os import PathLike
from typing import Any, Self, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from chumoku.arrays import array_of
from chumoku.attention import attention, weights
from chumoku.checks import flag, list_of, shown, whole
from chumoku.errors import InvalidArgumentError, InvalidTypeError
from chumoku.mask import Mask
from chumoku.multihead.cache import Cache
from chumoku.multihead.parameters import (
    BIASES,
    MATRICES,
    MOST_SIZE,
    MOST_WIDTH,
    check_shapes,
    count_of,
    own_names,
)
from chumoku.statistics import Statistics, Watch
from chumoku.tensors import read_tensors, write_tensors

Floats = NDArray[Any]
Masking = Mask | NDArray[np.bool_] | None
File = str | PathLike[str]

# As many as NumPy takes when it spreads shapes over one another.
_AXES = 32


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
        width, heads = whole("width", width, 1, MOST_SIZE), whole("heads", heads, 1, MOST_SIZE)
        kv_heads = heads if kv_heads is None else whole("kv_heads", kv_heads, 1, MOST_SIZE)
        key_width = width if key_width is None else whole("key_width", key_width, 1, MOST_SIZE)
        if value_width is None:
            value_width = key_width
        value_width = whole("value_width", value_width, 1, MOST_SIZE)
        if width % heads:
            raise InvalidArgumentError("heads", str(heads), f"a divisor of the width {width}")
        if width // heads > MOST_WIDTH:
            expected = f"more, so that a head is at most {MOST_WIDTH} wide"
            raise InvalidArgumentError("heads", f"{heads} for a width of {width}", expected)
        if heads % kv_heads:
            raise InvalidArgumentError("kv_heads", str(kv_heads), f"a divisor of {heads} heads")
        kind, with_bias = _dtype(dtype), flag("bias", bias)
        random = np.random.default_rng(whole("seed", seed, 0))
        kv_rows = kv_heads * (width // heads)
        shapes = (width, width), (kv_rows, key_width), (kv_rows, value_width), (width, width)
        parameters: dict[str, Floats] = {}
        for matrix, name, shape in zip(MATRICES, BIASES, shapes, strict=True):
            limit = np.sqrt(6.0 / sum(shape))
            parameters[matrix] = random.uniform(-limit, limit, shape).astype(kind, copy=False)
            if with_bias:
                parameters[name] = np.zeros(shape[0], kind)
        self._hold(parameters, heads)

    def _hold(self, parameters: Mapping[str, Floats], heads: int) -> None:
        held: dict[str, Any] = dict.fromkeys((*MATRICES, *BIASES))
        for name, array in parameters.items():
            held[name] = array.view()
            held[name].flags.writeable = False
        query, key, value = (parameters[name] for name in MATRICES[:3])
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
        if not isinstance(parameters, Mapping):
            raise InvalidTypeError("parameters", shown(parameters), "names and their arrays")
        for name in (prefix, *parameters):
            if not isinstance(name, str):
                of = "prefix" if name is prefix else "parameters"
                raise InvalidTypeError(of, shown(name), "a name, a str")
        named = {
            name.removeprefix(prefix): value
            for name, value in parameters.items()
            if name.startswith(prefix) and value is not None
        }
        count = count_of(named, heads)
        silenced = array_of("silenced", named.pop("silenced", ()), "numbers of heads").tolist()
        own = own_names(named, parameters)
        check_shapes(own, count)
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
        held = {name: getattr(self, name) for name in (*MATRICES, *BIASES)}
        return {name: array for name, array in held.items() if array is not None}

    def without(self, heads: Iterable[int]) -> Self:
        """A new value with these heads silenced too; the matrices are shared.

        Parameters
        ----------
        heads : iterable of int
            Such as {0, 3}, counted from 0. What they see is still reported.
        """
        listed = list_of("heads", heads, "several heads", "One head is given as {3}.")
        asked = frozenset(whole("heads", head, 0, self.heads - 1) for head in listed)
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
        state: dict[str, Any] = {}
        if memory is None and value is None and cache is None:
            query, key, mix_from = self._own_heads(x)
        else:
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
        state["_owner"] = self._projection
        if memory is not None:
            state["_memory"] = (memory, value)
        keys, values = (buffer[..., : state["_length"], :] for buffer in state["_buffers"])
        return keys, values, state

    def _check_cache(self, cache: Cache, memory: Floats | None, value: Floats | None) -> None:
        if not isinstance(cache, Cache):
            raise InvalidTypeError("cache", type(cache).__name__, "a chumoku.Cache")
        # An empty cache has no owner yet.
        if not all(map(_alike, self._projection, cache._owner)):
            got, expected = "one that another module filled", "an empty one, or one of its own"
            raise InvalidArgumentError("cache", got, expected, "Each layer needs its own Cache().")
        held = cache._memory or (None, None)
        if memory is not None and cache._buffers and not (held[0] is memory and held[1] is value):
            got = "one that holds other positions"
            expected = "an empty one, or one filled from this very memory (and value)"
            cure = "Use a new Cache() for each memory; later calls may leave memory out."
            raise InvalidArgumentError("cache", got, expected, cure)

    @property
    def _projection(self) -> tuple[Any, ...]:
        """All that keys and values are made with."""
        matrices = (self.key_matrix, self.value_matrix)
        return (*matrices, self.key_bias, self.value_bias, self.kv_heads)

    def _own_heads(self, x: Floats) -> list[Floats]:
        """Queries, keys and values of x alone, in one piece of memory.

        The system gives that in larger pages: three pieces of 3 MB each took a tenth of the call's
        time to be faulted in.
        """
        sizes = [len(getattr(self, matrix)) for matrix in MATRICES[:3]]
        rows = _input("x", x, "query", self.query_matrix).size // self.width
        memory = np.split(np.empty(rows * sum(sizes), self.dtype), np.cumsum(sizes[:-1]) * rows)
        heads = (self.heads, self.kv_heads, self.kv_heads)
        return [
            self._heads_of("x", x, part, count, out)
            for part, count, out in zip(("query", "key", "value"), heads, memory, strict=True)
        ]

    def _heads_of(
        self, name: str, given: object, part: str, heads: int, out: Floats | None = None
    ) -> Floats:
        """An input after its matrix, head by head: a view (..., heads, length, head width)."""
        matrix = getattr(self, f"{part}_matrix")
        array = _input(name, given, part, matrix)
        flat = _linear(array, matrix, getattr(self, f"{part}_bias"), out)
        return flat.reshape(*flat.shape[:-1], heads, len(matrix) // heads).swapaxes(-3, -2)


def _linear(x: Floats, matrix: Floats, bias: Floats | None, out: Floats | None = None) -> Floats:
    """One product, x @ matrix.T + bias, whatever leading axes x has."""
    flat = x.reshape(-1, x.shape[-1])
    place = None if out is None else out.reshape(len(flat), len(matrix))
    product = np.matmul(flat, matrix.T, out=place)
    if bias is not None:
        product += bias
    return product.reshape(*x.shape[:-1], matrix.shape[0])


def _dtype(given: Any) -> np.dtype[Any]:
    try:
        name = "" if given is None else str(np.dtype(given))
    except MemoryError:
        raise
    except Exception:  # NumPy reads many things as a dtype, and raises as many errors
        name = ""
    if name not in ("float32", "float64"):
        raise InvalidTypeError("dtype", name or shown(given), "float32 or float64")
    return np.dtype(name)


def _alike(mine: Any, theirs: Any) -> bool:
    """Whether two parameters are one, or equal in every number."""
    if mine is theirs:
        return True
    same = np.array_equal(mine, theirs)
    return same and np.asarray(mine).dtype == np.asarray(theirs).dtype


def _input(name: str, given: object, part: str, matrix: Floats) -> Floats:
    """An input as a plain array that fits the matrix."""
    if not isinstance(given, np.ndarray) or isinstance(given, np.ma.MaskedArray):
        cure = f"np.asarray(..., dtype=np.{matrix.dtype}) makes one of a list."
        if hasattr(type(given), "detach"):
            cure = "Give tensor.detach().cpu().numpy()."
        got = f"{type(given).__module__}.{type(given).__qualname__}"
        raise InvalidTypeError(name, got, "a NumPy array", cure)
    array = np.asarray(given)
    if array.dtype != matrix.dtype:
        cure = f"Convert it with .astype(np.{matrix.dtype}), or make the module with dtype=."
        expected = f"{matrix.dtype}, as the parameters have"
        raise InvalidTypeError(name, str(array.dtype), expected, cure)
    if not 2 <= array.ndim <= _AXES or array.shape[-1] != matrix.shape[1]:
        expected = f"(..., length, {matrix.shape[1]}), as {part}_matrix takes it"
        cure = "Give value= too: their widths differ." if part == "value" != name else ""
        raise InvalidArgumentError(name, f"shape {array.shape}", expected, cure)
    return array

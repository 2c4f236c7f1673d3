"""Calls at the edge, in every dtype: chumoku, PyTorch's flash path and its math path on the CPU.

    python benchmarks/edges.py                       # the whole table
    python benchmarks/edges.py --dtypes float32      # some dtypes
    python benchmarks/edges.py --save NAME           # also benchmarks/results/NAME.json

Each contender runs in a process of its own, for some calls end the process. tests/test_edges.py
runs the same calls on chumoku alone. Outcomes:

pass      what the definition gives, NaN and Inf at the same places; a call that makes no sense
          raises an error
wrong     other numbers, or numbers where an error is due
refused   an error where an answer is due; also what the library cannot express
crash     the process died
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import chumoku
from chumoku.kernels import Call, reference
from chumoku.mask import as_mask

Array = NDArray[Any]

DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# Error in norm, relative; wide enough for a path that keeps weights in 16 bits.
ALLOWED = {"float32": 1e-5, "float64": 1e-13, "bfloat16": 3e-2, "float16": 4e-3}

CONTENDERS = ("chumoku", "torch flash", "torch math")

FAR = 2**28  # elements from one row to the next: ten rows reach beyond 2^31


@dataclass(frozen=True)
class Given:
    """One call."""

    query: Array
    key: Array
    value: Array
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Edge:
    """One call at the edge, made for any dtype; `senseless`: only an error is right."""

    name: str
    make: Callable[[np.dtype[Any]], Given]
    senseless: bool = False

    def __str__(self) -> str:
        return self.name


def plain(
    dtype: np.dtype[Any],
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    queries: int = 9,
    keys: int = 70,
    width: int = 8,
    value_width: int | None = None,
) -> Given:
    """Normal numbers in shapes of all kinds."""
    rng = np.random.default_rng(5)
    value_width = width if value_width is None else value_width
    q = rng.standard_normal((batch, heads, queries, width)).astype(dtype)
    k = rng.standard_normal((batch, kv_heads, keys, width)).astype(dtype)
    v = rng.standard_normal((batch, kv_heads, keys, value_width)).astype(dtype)
    return Given(q, k, v)


def sized(**sizes: int) -> Callable[[np.dtype[Any]], Given]:
    """Shapes that differ in some sizes."""
    return lambda dtype: plain(dtype, **sizes)


def moved(layout: Callable[[Array], Array]) -> Callable[[np.dtype[Any]], Given]:
    """The same numbers elsewhere in the memory."""

    def make(dtype: np.dtype[Any]) -> Given:
        given = plain(dtype)
        return Given(*(layout(a) for a in (given.query, given.key, given.value)))

    return make


def misaligned(array: Array) -> Array:
    """One byte off."""
    room = np.zeros(array.nbytes + 1, np.uint8)
    view = room[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def odd_rows(array: Array) -> Array:
    """Rows at distances that are no multiple of a number's bytes."""
    *shape, rows, width = array.shape
    step = width * array.itemsize + 1
    room = np.zeros(array.size // max(1, width) * step, np.uint8)
    count = np.cumprod([1, rows, *shape[:0:-1]])[: array.ndim - 1]
    strides = (*(int(n) * step for n in count[::-1]), array.itemsize)
    view: Array = np.ndarray(array.shape, array.dtype, room, 0, strides)
    view[...] = array
    return view


def read_only(array: Array) -> Array:
    """Memory that may not be written."""
    copy = array.copy()
    copy.setflags(write=False)
    return copy


def far(array: Array) -> Array:
    """Rows so far apart that their offsets pass 2^31 elements; the file has holes between them."""
    flat = array.reshape(-1, array.shape[-1])[:10]
    with tempfile.TemporaryFile() as file:
        room = np.memmap(file, array.dtype, "w+", shape=(10, FAR))
    room[: len(flat), : flat.shape[1]] = flat
    return room[: len(flat), : flat.shape[1]][None, None]


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "negative strides": lambda a: np.ascontiguousarray(a[..., ::-1, ::-1])[..., ::-1, ::-1],
    "zero strides": lambda a: np.broadcast_to(a[..., :1, :], a.shape),
    "zero strides of the width": lambda a: np.broadcast_to(a[..., :1], a.shape),
    "misaligned": misaligned,
    "rows at odd distances": odd_rows,
    "read-only": read_only,
    "transposed": lambda a: np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2),
    "heads inside": lambda a: np.ascontiguousarray(a.swapaxes(-3, -2)).swapaxes(-3, -2),
    "every other number": lambda a: np.repeat(np.repeat(a, 2, -1), 2, -2)[..., ::2, ::2],
    "offsets beyond 2^31": far,
}


def hidden(shape: tuple[int, ...]) -> Array:
    """A mask: keys 3, 20 and 66 are seen by odd rows only, key 0 by all, the rest at random."""
    cells = np.random.default_rng(6).random(shape) < 0.7
    cells[::2, (3, 20, 66)] = False
    cells[1::2, (3, 20, 66)] = True
    cells[:, 0] = True
    return cells


def spoilt(
    where: str, what: float, mask: bool = True, by_bias: bool = False
) -> Callable[[np.dtype[Any]], Given]:
    """NaN or Inf in keys, values or a query; a mask or a bias hides it from some rows."""

    def make(dtype: np.dtype[Any]) -> Given:
        given = plain(dtype)
        if where == "query":
            given.query[0, 1, 4, 2] = what
        else:
            array = given.key if where == "key" else given.value
            array[:, :, (3, 20, 66), 1] = what
        cells = hidden((9, 70))
        if by_bias:
            bias = np.where(cells, 0, -np.inf).astype(dtype)
            return Given(given.query, given.key, given.value, {"bias": bias})
        return Given(given.query, given.key, given.value, {"mask": cells} if mask else {})

    return make


def biased(kind: str) -> Callable[[np.dtype[Any]], Given]:
    """A bias with the smallest numbers that there are, in places or in whole rows."""

    def make(dtype: np.dtype[Any]) -> Given:
        given = plain(dtype)
        lowest = ml_dtypes.finfo(dtype).min if dtype.name == "bfloat16" else np.finfo(dtype).min
        bias = np.random.default_rng(7).standard_normal((9, 70)).astype(dtype)
        number = -np.inf if "-inf" in kind else lowest
        bias[~hidden((9, 70))] = number
        if "rows" in kind:
            bias[(0, 4), :] = number
        return Given(given.query, given.key, given.value, {"bias": bias})

    return make


def masked_rows(**options: Any) -> Callable[[np.dtype[Any]], Given]:
    """Some rows see nothing."""

    def make(dtype: np.dtype[Any]) -> Given:
        given = plain(dtype)
        cells = hidden((9, 70))
        cells[(0, 4, 8), :] = False
        made: dict[str, Any] = {"mask": cells, **options}
        if "sinks" in made:
            made["sinks"] = np.full(4, made["sinks"]).astype(dtype)
        return Given(given.query, given.key, given.value, made)

    return make


def with_options(**options: Any) -> Callable[[np.dtype[Any]], Given]:
    """Ordinary numbers, other options."""

    def make(dtype: np.dtype[Any]) -> Given:
        given = plain(dtype)
        made = dict(options)
        if "sinks" in made:
            made["sinks"] = np.full(4, made["sinks"]).astype(dtype)
        return Given(given.query, given.key, given.value, made)

    return make


def large(dtype: np.dtype[Any]) -> Given:
    """Logits in the thousands: one key has everything."""
    given = plain(dtype)
    return Given(given.query * dtype.type(200), given.key * dtype.type(8), given.value)


def weightless(dtype: np.dtype[Any]) -> Given:
    """NaN in a value that is visible with weight 0, as are all from key 1024 on."""
    given = plain(dtype, keys=1100)
    given.key[:, :, 1024:, 0] = -np.inf
    given.value[:, :, 1090, 2] = np.nan
    return Given(abs(given.query), given.key, given.value)


EDGES = (
    *(Edge(f"width {n}", sized(width=n)) for n in (1, 3, 5, 257, 1024)),
    *(Edge(f"value width {n}", sized(value_width=n)) for n in (1, 3, 257, 1024)),
    *(Edge(f"{n} queries, {m} keys", sized(queries=n, keys=m)) for n, m in ((1, 1), (65, 1025))),
    Edge("one key head", sized(kv_heads=1)),
    Edge("zero batch", sized(batch=0)),
    Edge("zero heads", sized(heads=0, kv_heads=1)),
    Edge("zero heads and key heads", sized(heads=0, kv_heads=0)),
    Edge("zero queries", sized(queries=0)),
    Edge("zero keys", sized(keys=0)),
    Edge("zero value width", sized(value_width=0)),
    Edge("zero width", sized(width=0, value_width=8), senseless=True),
    Edge("zero key heads", sized(kv_heads=0), senseless=True),
    Edge("3 key heads for 4", sized(kv_heads=3), senseless=True),
    *(Edge(name, moved(layout)) for name, layout in LAYOUTS.items()),
    *(
        Edge(f"{name} {where}", spoilt(part, number, mask, by_bias))
        for name, number in (("NaN", np.nan), ("Inf", np.inf), ("-Inf", -np.inf))
        for part in ("key", "value")
        for where, mask, by_bias in (
            (f"in {part}s, hidden from some", True, False),
            (f"in {part}s, hidden by a bias", False, True),
            (f"in {part}s, visible", False, False),
        )
    ),
    Edge("NaN in a query", spoilt("query", np.nan, False)),
    Edge("Inf in a query", spoilt("query", np.inf, False)),
    *(Edge(f"bias of {k}", biased(k)) for k in ("-inf", "finfo.min", "-inf in whole rows")),
    Edge("bias of finfo.min in whole rows", biased("finfo.min in whole rows")),
    Edge("rows that see nothing", masked_rows()),
    Edge("rows that see a sink only", masked_rows(sinks=0.5)),
    Edge("rows that see a sink of -inf only", masked_rows(sinks=-np.inf)),
    Edge("large sinks", with_options(sinks=1000.0)),
    Edge("large logits", large),
    Edge("NaN in values of weight 0", weightless),
    Edge("small softcap", with_options(softcap=0.01)),
    Edge("large softcap", with_options(softcap=3e4)),
    Edge("scale 0", with_options(scale=0.0)),
    Edge("scale below 0", with_options(scale=-0.7)),
    Edge("scale NaN", with_options(scale=np.nan), senseless=True),
)


def definition(given: Given, watch: chumoku.Watch | None = None) -> tuple[Array, dict[str, Any]]:
    """Output and facts by the definition; extended precision for float64."""
    q, k, v = (np.array(a) for a in (given.query, given.key, given.value))
    options = given.options
    whole = (*q.shape[:-1], k.shape[-2])
    bias, mask = options.get("bias"), options.get("mask")
    call = Call(
        q,
        k,
        v,
        None if mask is None else as_mask(mask),
        None if bias is None else np.broadcast_to(bias, whole),
        options.get("scale", q.shape[-1] ** -0.5),
        options.get("softcap"),
        options.get("sinks"),
        None,
        watch or chumoku.Watch(),
    )
    return reference.compute(call, np.longdouble if q.dtype == np.float64 else np.float64)


def difference(got: Array, wanted: Array) -> float:
    """Error in norm, relative; infinite where NaN, Inf or shapes differ."""
    if got.shape != wanted.shape:
        return np.inf
    got, wanted = got.astype(np.longdouble), wanted.astype(np.longdouble)
    wild = ~np.isfinite(wanted)
    if not np.array_equal(got[wild], wanted[wild], equal_nan=True):
        return np.inf
    off, norm = got[~wild] - wanted[~wild], np.sqrt((wanted[~wild] ** 2).sum())
    if not np.isfinite(off).all():
        return np.inf
    return float(np.sqrt((off**2).sum()) / max(norm, np.longdouble(1e-30)))


def by_chumoku(given: Given) -> Array:
    """Our answer, the kernel chosen automatically."""
    output = chumoku.attention(given.query, given.key, given.value, **given.options)
    return np.asarray(output)


def by_torch(given: Given, path: str) -> Array:
    """PyTorch's answer by one of its paths; raises where it has none."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def tensor(array: Array) -> Any:
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    options = dict(given.options)
    q, k, v = (tensor(a) for a in (given.query, given.key, given.value))
    if options.keys() & {"sinks", "softcap"}:
        raise TypeError("scaled_dot_product_attention knows neither sinks nor softcap")
    added = options.get("bias", options.get("mask"))
    if added is not None:
        whole = (*given.query.shape[:-1], given.key.shape[-2])
        added = tensor(np.array(np.broadcast_to(added, whole)))
    grouped = q.shape[1] != k.shape[1]
    backend = SDPBackend.MATH if path == "torch math" else SDPBackend.FLASH_ATTENTION
    call = torch.nn.functional.scaled_dot_product_attention
    with sdpa_kernel(backend):
        out = call(q, k, v, attn_mask=added, scale=options.get("scale"), enable_gqa=grouped)
    return np.asarray(out.double().numpy())


def outcome(edge: Edge, name: str, contender: str) -> str:
    """One word, and for a wrong answer what is wrong with it."""
    given = edge.make(DTYPES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            got = by_chumoku(given) if contender == "chumoku" else by_torch(given, contender)
        except Exception as error:
            if contender == "chumoku" and not isinstance(error, chumoku.errors.ChumokuError):
                raise  # nothing but the library's own errors may come out
            return "pass" if edge.senseless else "refused"
        if edge.senseless:
            return "wrong: no error"
        wanted, _ = definition(given)
    off = difference(got, wanted)
    if off <= ALLOWED[name]:
        return "pass"
    if np.isfinite(off):
        return f"wrong: error {off:.0e}"
    return "wrong: NaN" if np.isnan(got[np.isfinite(wanted)]).any() else "wrong: other NaN or Inf"


# Each contender in its own process


def worker(name: str, contender: str, start: int) -> None:
    """One outcome a line, from the edge `start` on."""
    for edge in EDGES[start:]:
        print(outcome(edge, name, contender), flush=True)


def outcomes(name: str, contender: str) -> list[str]:
    """The outcome of every edge; after a crash a new process goes on."""
    found: list[str] = []
    while len(found) < len(EDGES):
        command = [sys.executable, __file__, "--worker", name, contender, str(len(found))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found += done.stdout.splitlines()
        if done.returncode > 0:
            raise SystemExit(f"{contender}, {name}: {done.stderr}")
        if done.returncode < 0:
            found.append(f"crash: signal {-done.returncode}")
    return found


def report(every: dict[str, dict[str, list[str]]]) -> None:
    """The table: one row for each edge, what happened in which dtypes."""
    print(f"{'':<36}" + "".join(f"{contender:<34}" for contender in CONTENDERS))
    for i, edge in enumerate(EDGES):
        cells = []
        for contender in CONTENDERS:
            seen = Counter(found[contender][i] for found in every.values())
            words = [f"{what} ({n})" if len(seen) > 1 else what for what, n in seen.items()]
            cells.append(", ".join(words))
        print(f"{edge.name:<36}" + "".join(f"{cell:<34}" for cell in cells).rstrip())
    for contender in CONTENDERS:
        words = Counter(o.split(":")[0] for found in every.values() for o in found[contender])
        print(f"{contender}: " + ", ".join(f"{n} {word}" for word, n in words.most_common()))


def main() -> int:
    """Run the matrix as the command line asks; 1 when chumoku does not pass all of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker[0], options.worker[1], int(options.worker[2]))
        return 0
    every = {
        name: {contender: outcomes(name, contender) for contender in CONTENDERS}
        for name in options.dtypes.split(",")
    }
    report(every)
    if options.save:
        path = Path(__file__).parent / "results" / f"{options.save}.json"
        path.parent.mkdir(exist_ok=True)
        record = {"edges": [edge.name for edge in EDGES], "outcomes": every}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if all(set(found["chumoku"]) == {"pass"} for found in every.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""How far from the exact result: chumoku, PyTorch's math path and its flash path on the CPU.

    python benchmarks/accuracy.py                  # every dtype, 512 shapes each
    python benchmarks/accuracy.py --shapes 64      # fewer of them
    python benchmarks/accuracy.py --save NAME      # also benchmarks/results/NAME.json

The exact result is the definition in float64, in extended precision for float64 itself. Errors
are relative, in norm. A peer that meets the exact result by luck (one key, say) has an error
below that of the exact result rounded to its dtype: ratios are taken against the larger of the
two, the floor.
"""

from __future__ import annotations

import argparse
import json
import platform
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import chumoku
from chumoku.kernels import Call, reference
from chumoku.mask import Mask, as_mask

Array = NDArray[Any]

DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# Ours may be so many times the larger of PyTorch's error and the floor.
PROMISED = {"float32": 2.0, "float64": 2.0, "bfloat16": 1.01, "float16": 1.01}

WATCH = chumoku.Watch(top=3, entropy=True, received=True)

WIDTHS = (
    1,
    2,
    3,
    5,
    8,
    16,
    17,
    31,
    32,
    48,
    64,
    64,
    80,
    96,
    127,
    128,
    192,
    256,
    257,
    512,
    768,
    1024,
)
LENGTHS = (1, 2, 3, 7, 8, 15, 16, 31, 33, 63, 64, 65, 100, 127, 129, 200, 257, 333, 777)
MANY_KEYS = (1023, 1024, 1025, 1500, 2049, 3000)
MASKS = ("none", "none", "causal", "window", "lengths", "cells")
SIZES = (0.1, 1.0, 1.0, 4.0, 16.0)  # standard deviation of the logits
MOST_PRODUCTS = 4e7  # extended precision does them in a quarter of a second
LEAST_ROWS = 128  # with large logits few rows are off at all: fewer rows would measure luck


@dataclass(frozen=True)
class Sample:
    """One call: shapes, mask and the size of its logits."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    width: int
    value_width: int
    mask: str
    size: float
    seed: int

    def arrays(self, dtype: np.dtype[Any]) -> tuple[Array, Array, Array]:
        """Query, key and value, heads first, of normal numbers."""
        rng = np.random.default_rng(self.seed)
        q = rng.standard_normal((self.batch, self.heads, self.queries, self.width)) * self.size
        k = rng.standard_normal((self.batch, self.kv_heads, self.keys, self.width))
        v = rng.standard_normal((self.batch, self.kv_heads, self.keys, self.value_width))
        return q.astype(dtype), k.astype(dtype), v.astype(dtype)

    def asked(self) -> Mask | None:
        """Its mask. Every row sees a key, for PyTorch's rows without one are NaN."""
        rng = np.random.default_rng(self.seed)
        if self.mask == "causal":
            return chumoku.Causal(max(0, self.keys - self.queries))
        if self.mask == "window":
            return chumoku.Window(self.queries, self.keys // 4, 0)
        if self.mask == "lengths":
            return chumoku.Lengths(rng.integers(1, self.keys + 1, self.batch))
        if self.mask == "cells":
            cells = rng.random((self.queries, self.keys)) < 0.6
            cells[:, 0] = True
            return as_mask(cells)
        return None


def samples(count: int) -> list[Sample]:
    """So many different shapes, the same ones each time."""
    rng = np.random.default_rng(3)
    pick = lambda numbers: numbers[int(rng.integers(len(numbers)))]  # noqa: E731
    found: dict[Sample, None] = {}
    while len(found) < count:
        kv_heads = pick((1, 1, 2, 3))
        heads = kv_heads * pick((1, 1, 2, 4))
        queries, width = pick(LENGTHS), pick(WIDTHS)
        keys = pick(MANY_KEYS if len(found) % 4 == 0 else LENGTHS)
        # Both paths of PyTorch serve equal widths, only one the others.
        value_width = width if len(found) % 3 else pick(WIDTHS)
        least = -(-LEAST_ROWS // (heads * queries))
        batch = max(pick((1, 1, 2)), least)
        products = batch * heads * queries * keys * (width + value_width)
        if products <= MOST_PRODUCTS:
            mask, size, seed = pick(MASKS), pick(SIZES), len(found)
            sizes = (batch, heads, kv_heads, queries, keys, width, value_width)
            found[Sample(*sizes, mask, size, seed)] = None
    return list(found)


def exact(sample: Sample, dtype: np.dtype[Any]) -> tuple[Array, dict[str, Array]]:
    """Output and facts by the definition, with bits to spare."""
    q, k, v = sample.arrays(dtype)
    scale = sample.width**-0.5
    call = Call(q, k, v, sample.asked(), None, scale, None, None, None, WATCH)
    return reference.compute(call, np.longdouble if dtype == np.float64 else np.float64)


def error(got: Array, wanted: Array) -> float:
    """Error in norm, relative."""
    wide = wanted.astype(np.longdouble)
    off = got.astype(np.longdouble) - wide
    return float(np.sqrt((off * off).sum() / (wide * wide).sum()))


def tensor(array: Array) -> Any:
    """A PyTorch tensor over the same memory."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def torch_attention(sample: Sample, dtype: np.dtype[Any], backend: str) -> Array | None:
    """What PyTorch gives by "math" or "flash"; None where that path does not serve the call."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (tensor(array) for array in sample.arrays(dtype))
    cells, mask = None, sample.asked()
    if mask is not None:
        rows, keys = np.arange(sample.queries), np.arange(sample.keys)
        shape = chumoku.mask.Shape((sample.batch,), sample.heads, sample.queries, sample.keys)
        whole = (sample.batch, sample.heads, sample.queries, sample.keys)
        cells = torch.from_numpy(np.array(np.broadcast_to(mask.allowed(shape, rows, keys), whole)))
    path = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION}[backend]
    call = torch.nn.functional.scaled_dot_product_attention
    with sdpa_kernel(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            out = call(q, k, v, attn_mask=cells, enable_gqa=sample.heads != sample.kv_heads)
        except RuntimeError:
            return None
    return np.asarray(out.double().numpy())


def measure(sample: Sample, dtype: np.dtype[Any]) -> dict[str, float | None]:
    """Every error of one sample: outputs of all, statistics of ours."""
    wanted, facts = exact(sample, dtype)
    q, k, v = sample.arrays(dtype)
    output, seen = chumoku.attention(q, k, v, mask=sample.asked(), watch=WATCH, kernel="native")
    row: dict[str, float | None] = {
        "ours": error(output, wanted),
        "floor": error(wanted.astype(dtype), wanted),
    }
    for backend in ("math", "flash"):
        theirs = torch_attention(sample, dtype, backend)
        row[backend] = None if theirs is None else error(theirs, wanted)
    # A logit is a sum of products: what it loses is of the size of the largest ones.
    size = max(1.0, float(np.abs(facts["max_logit"]).max()))
    for fact in ("lse", "max_logit"):
        row[fact] = float(np.abs(getattr(seen, fact) - facts[fact]).max()) / size
    row["entropy"] = float(np.abs(seen.entropy - facts["entropy"]).max()) / size
    rows = sample.batch * sample.heads * sample.queries
    row["received"] = abs(float(seen.received.astype(np.float64).sum()) - rows) / rows
    row["top"] = float(misplaced(sample, q, k, seen))
    return row


def misplaced(sample: Sample, q: Array, k: Array, seen: chumoku.Statistics) -> int:
    """Top keys whose weight is not the one that stands there when all are put in order."""
    block = chumoku.weights(q, k, lse=seen.lse, mask=sample.asked(), kernel="native")
    best = -np.sort(-block, axis=-1)[..., : WATCH.top]
    keys = seen.top_keys[..., : best.shape[-1]]
    chosen = np.take_along_axis(block, np.maximum(keys, 0), axis=-1)
    return int((np.where(keys < 0, 0, chosen) != best).sum())


def ratios(row: dict[str, Any]) -> dict[str, float | None]:
    """Ours against each peer and against what is promised of the larger of all."""
    floor = row["floor"]
    peers = [row[peer] for peer in ("math", "flash") if row[peer] is not None]
    found = {"floor": row["ours"] / max(floor, 1e-300) if floor else None}
    for peer in ("math", "flash"):
        against = None if row[peer] is None else max(row[peer], floor)
        found[peer] = None if not against else row["ours"] / against
    largest = max(floor, *peers)
    found["larger"] = row["ours"] / largest if largest else float(row["ours"] > 0)
    return found


def broken(name: str, row: dict[str, Any]) -> list[str]:
    """What this sample breaks of the promises, in words; empty when it keeps them all."""
    against = ratios(row)
    peer = "math" if PROMISED[name] == 2 else "larger"
    said = []
    if (against[peer] or 0) > PROMISED[name]:
        said.append(f"output {against[peer]:.2f} x {peer}")
    limits = {"lse": 1.3e-6, "max_logit": 1.3e-6, "entropy": 1e-5, "received": 1e-6, "top": 0}
    said += [f"{fact} {row[fact]:.2g}" for fact, most in limits.items() if not row[fact] <= most]
    return said


def table(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Prints the distribution of each ratio; returns it."""
    print(f"\n{name}: {len(rows)} shapes; error of ours: median {median(rows, 'ours'):.2e}")
    print(f"  {'ours against':<16}{'shapes':>7}{'median':>9}{'90 %':>9}{'worst':>9}")
    found: dict[str, Any] = {}
    every = [ratios(row) for row in rows]
    for peer in ("math", "flash", "floor", "larger"):
        there = np.array([r[peer] for r in every if r[peer] is not None])
        numbers = [float(x) for x in (np.median(there), np.quantile(there, 0.9), there.max())]
        found[peer] = {"shapes": there.size, "median, 90 %, worst": numbers}
        label = {"larger": "larger of all"}.get(peer, peer)
        print(f"  {label:<16}{there.size:>7}" + "".join(f"{x:>9.3f}" for x in numbers))
    for fact in ("lse", "max_logit", "entropy", "received", "top"):
        found[fact] = max(row[fact] for row in rows)
        print(f"  {fact:<16}{'':>7}{'':>9}{'':>9}{found[fact]:>9.1e}")
    return found


def median(rows: list[dict[str, Any]], what: str) -> float:
    """The middle one of some numbers."""
    return float(np.median([row[what] for row in rows]))


def main() -> int:
    """Measure as the command line asks; 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", type=int, default=512)
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    options = parser.parse_args()
    from chumoku import _native

    machine = f"{platform.processor() or platform.machine()}, {_native.instruction_set()}"
    print(machine)
    chosen = samples(options.shapes)
    record: dict[str, Any] = {"machine": machine, "shapes": len(chosen)}
    faults = 0
    for name in options.dtypes.split(","):
        rows, broke = [], []
        for sample in chosen:
            rows.append(measure(sample, DTYPES[name]))
            if said := broken(name, rows[-1]):
                faults += 1
                broke.append({**asdict(sample), "broken": said})
                print(f"  {name} {sample}: {', '.join(said)}")
        record[name] = {**table(name, rows), "broken": broke}
    print(f"\n{faults} of {len(chosen) * len(options.dtypes.split(','))} break a promise")
    if options.save:
        path = Path(__file__).parent / "results" / f"{options.save}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())

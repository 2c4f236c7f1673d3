"""What is timed: shapes by name, their arrays, and exact rows to check a result with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import chumoku
from chumoku.mask import Mask, Shape, as_mask

Array = NDArray[Any]

# Relative error in norm, of some rows against float64, above which nothing is timed. Wide enough
# for a peer that keeps its weights in 16 bits.
WORST_ERROR = {"float32": 4e-6, "float64": 1e-14, "bfloat16": 2e-2, "float16": 2e-3}

CHECKED_ROWS = 16


def peak_of(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returned, and by how many MB it raised the process's memory at most (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _memory("VmRSS")
    result = run()
    return result, (_memory("VmHWM") - before) / 1024


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


@dataclass(frozen=True)
class Case:
    """Query (batch, heads, queries, width) against `keys` keys of `kv_heads` heads.

    mask is a word of MASKS, or nothing; bias says whether there is one for each head; alike, that
    key and value are the query, as in a module's self-attention.
    """

    name: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    width: int
    mask: str = ""
    bias: bool = False
    dtype: str = "float32"
    alike: bool = False

    def __str__(self) -> str:
        words = [f"{self.batch} x {self.heads} x {self.queries} x {self.width}", self.dtype]
        if self.keys != self.queries:
            words.insert(1, f"{self.keys:,} keys")
        if self.kv_heads != self.heads:
            words.insert(1, f"{self.kv_heads} key heads")
        return ", ".join(words + [self.mask] * bool(self.mask) + ["bias"] * self.bias)

    def given(self, dtype: str) -> Case:
        """The same in another dtype."""
        return replace(self, dtype=dtype)

    @property
    def size(self) -> int:
        """Bytes of one number."""
        return {"float64": 8, "float32": 4}.get(self.dtype, 2)

    def numbers(self, seed: int, *shape: int) -> Array:
        """Normal numbers of the case's dtype."""
        made = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        if self.dtype == "bfloat16":
            import ml_dtypes

            return made.astype(ml_dtypes.bfloat16)
        return made.astype(self.dtype, copy=False)

    def arrays(self) -> tuple[Array, Array, Array]:
        """Query, key and value: the same numbers for every contender."""
        query = self.numbers(0, self.batch, self.heads, self.queries, self.width)
        if self.alike:
            return query, query, query
        shape = self.batch, self.kv_heads, self.keys, self.width
        return query, self.numbers(1, *shape), self.numbers(2, *shape)

    def bias_array(self) -> Array | None:
        """(heads, queries, keys), or None."""
        return self.numbers(3, self.heads, self.queries, self.keys) if self.bias else None

    def mask_value(self) -> Mask | None:
        """What chumoku is given."""
        if self.mask == "causal":
            return chumoku.Causal()
        if self.mask.startswith("window"):
            return chumoku.Window(int(self.mask.partition(" ")[2] or 256) - 1, 0)
        if self.mask == "padding":
            return chumoku.Lengths(_lengths(self.batch, self.keys))
        if self.mask == "documents":
            ids = np.sort(np.random.default_rng(4).integers(0, 8, self.queries))
            return chumoku.Documents(ids, ids)
        if self.mask == "boolean":
            return as_mask(np.random.default_rng(5).random((self.queries, self.keys)) < 0.5)
        return None

    def cells(self, rows: Array | None = None) -> Array | None:
        """(batch, 1, rows, keys), true where a query may look: what peers are given."""
        mask = self.mask_value()
        if mask is None:
            return None
        shape = Shape((self.batch,), 1, self.queries, self.keys)
        rows = np.arange(self.queries) if rows is None else rows
        seen = mask.allowed(shape, rows, np.arange(self.keys))
        # One for all where it is the same for all: peers get the cheapest form that they take.
        own = self.mask == "padding"
        seen = np.broadcast_to(seen, (self.batch, 1, rows.size, self.keys))
        return np.array(seen if own else seen[:1])

    @property
    def flop(self) -> float:
        """Floating point operations of the scores that can be seen."""
        whole = 4.0 * self.batch * self.heads * self.queries * self.keys * self.width
        cells = self.cells(np.unique(np.linspace(0, self.queries - 1, 512).astype(int)))
        return whole if cells is None else whole * float(cells.mean())

    @property
    def memory(self) -> float:
        """Bytes of keys and values."""
        return 2.0 * self.size * self.batch * self.kv_heads * self.keys * self.width

    def exact_rows(self) -> tuple[Array, Array]:
        """Some rows, and what they should come to, in float64."""
        query, key, value = (array.astype(np.float64) for array in self.arrays())
        rows = np.unique(np.linspace(0, self.queries - 1, CHECKED_ROWS).astype(int))
        group = self.heads // self.kv_heads
        key, value = (np.repeat(array, group, axis=1) for array in (key, value))
        scores = query[..., rows, :] @ key.swapaxes(-1, -2) / self.width**0.5
        bias, cells = self.bias_array(), self.cells(rows)
        if bias is not None:
            scores = scores + bias[:, rows].astype(np.float64)
        if cells is not None:
            scores = np.where(cells, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return rows, weights @ value / weights.sum(-1, keepdims=True)

    def error(self, output: Array) -> float:
        """Relative error in norm of an output's checked rows."""
        rows, exact = self.exact_rows()
        got = np.asarray(output)[..., rows, :].astype(np.float64)
        return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


def _lengths(batch: int, keys: int) -> Array:
    """Half of the keys and more are real."""
    return np.random.default_rng(6).integers(keys // 2, keys + 1, batch)


MASKS = ("causal", "window", "padding", "documents", "boolean")

CASES = (
    Case("tiny", 1, 8, 8, 16, 16, 64),
    Case("encoder", 8, 12, 12, 128, 128, 64),
    Case("encoder-causal", 8, 12, 12, 128, 128, 64, "causal"),
    Case("training", 32, 12, 12, 384, 384, 64),
    Case("training-causal", 32, 12, 12, 384, 384, 64, "causal"),
    Case("prefill-512", 1, 8, 8, 512, 512, 64),
    Case("prefill-2048", 1, 8, 8, 2048, 2048, 64),
    Case("prefill-8192", 1, 8, 8, 8192, 8192, 64),
    Case("causal-512", 1, 8, 8, 512, 512, 64, "causal"),
    Case("causal-2048", 1, 8, 8, 2048, 2048, 64, "causal"),
    Case("causal-8192", 1, 8, 8, 8192, 8192, 64, "causal"),
    Case("wide-4096", 1, 16, 16, 4096, 4096, 128),
    Case("wide-4096-causal", 1, 16, 16, 4096, 4096, 128, "causal"),
    Case("grouped", 1, 32, 8, 1024, 1024, 128, "causal"),
    Case("decode", 1, 32, 32, 1, 4096, 128),
    Case("decode-grouped", 1, 32, 8, 1, 16384, 128),
    Case("window", 1, 8, 8, 2048, 2048, 64, "window"),
    Case("padding", 32, 12, 12, 256, 256, 64, "padding"),
    Case("documents", 1, 8, 8, 4096, 4096, 64, "documents"),
    Case("boolean", 1, 8, 8, 1024, 1024, 64, "boolean"),
    Case("bias", 1, 8, 8, 1024, 1024, 64, "", True),
    Case("odd-lengths", 1, 8, 8, 1021, 1531, 64),
    Case("module-128", 8, 12, 12, 128, 128, 64, alike=True),
    Case("module-384", 32, 12, 12, 384, 384, 64, alike=True),
    *(Case(f"width-{w}", 1, 8, 8, 1024, 1024, w) for w in (16, 32, 40, 64, 72, 80, 96, 128, 256)),
)

"""Shapes, memory layouts and an exact expectation, for every test that runs a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from chumoku.kernels import KERNELS, Call, Kernel, reference
from chumoku.mask import as_mask
from chumoku.statistics import Statistics, Watch

Array = NDArray[Any]

bfloat16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32, FLOAT64, FLOAT16 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16)
DTYPES = (FLOAT32, FLOAT64, FLOAT16, bfloat16)

EVERYTHING = Watch(top=5, entropy=True, saturation=True, distance=True, received=True)


def everything(keys: int) -> Watch:
    """All that can be watched at once, for so many keys."""
    return replace(EVERYTHING, groups=np.arange(keys) * 7 % 5, picture=(5, 8))


# Those that compute NumPy's arrays; test_triton.py has the other one.
HOST_KERNELS = tuple(kernel for kernel in KERNELS if kernel.name != "triton")


@dataclass(frozen=True)
class Case:
    """Shapes of one call: query (..., heads, queries, width), key, and the width of the values."""

    query: tuple[int, ...]
    key: tuple[int, ...]
    value_width: int

    @property
    def value(self) -> tuple[int, ...]:
        """Shape of the values."""
        return (*self.key[:-1], self.value_width)

    def __str__(self) -> str:
        sizes = ("x".join(map(str, shape)) for shape in (self.query, self.key))
        return "-".join([*sizes, str(self.value_width)])

    def arrays(self, dtype: np.dtype[Any] = FLOAT32, seed: int = 0) -> tuple[Array, Array, Array]:
        """Query, key and value of normal numbers."""
        rng = np.random.default_rng(seed)
        shapes = (self.query, self.key, self.value)
        q, k, v = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
        return q, k, v


def one_head(queries: int, keys: int, width: int, value_width: int) -> Case:
    return Case((queries, width), (keys, width), value_width)


# Every width and length at which a tile, a lane or a loop of some kernel may end.
WIDTHS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 96, 100, 127, 128, 129, 257, 512)
LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 255, 300)

CASES = (
    *(one_head(5, 19, width, width) for width in WIDTHS),
    *(one_head(length, 37, 8, 8) for length in LENGTHS),
    *(one_head(6, length, 8, 8) for length in LENGTHS),
    one_head(33, 47, 16, 1),
    one_head(33, 47, 3, 80),
    one_head(9, 1000, 24, 5),
    one_head(1, 3000, 64, 64),
    one_head(3, 5, 1024, 1024),
    Case((3, 17, 8), (3, 21, 8), 8),
    Case((4, 17, 8), (2, 21, 8), 6),
    Case((6, 5, 33), (1, 70, 33), 7),
    Case((2, 4, 33, 16), (2, 4, 33, 16), 16),
    Case((2, 8, 1, 32), (2, 2, 130, 32), 32),
    Case((3, 1, 6, 10, 5), (4, 3, 11, 5), 9),
    Case((1, 2, 1, 4, 9, 8), (3, 1, 2, 2, 13, 8), 4),
    Case((2, 4, 9, 8), (2, 9, 8), 8),
    Case((9, 8), (2, 1, 12, 8), 3),
)

ZEROS = (
    one_head(0, 5, 4, 3),
    one_head(5, 0, 4, 3),
    one_head(0, 0, 4, 3),
    one_head(5, 7, 4, 0),
    Case((0, 5, 4), (0, 7, 4), 3),
    Case((0, 5, 4), (2, 7, 4), 3),
    Case((0, 2, 5, 4), (0, 2, 7, 4), 3),
    Case((2, 0, 3, 5, 4), (1, 1, 3, 7, 4), 3),
)


def _strided(array: Array) -> Array:
    room = np.full([2 * n + 1 for n in array.shape], np.nan, array.dtype)
    view = room[tuple(slice(1, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def _backwards(array: Array) -> Array:
    return np.ascontiguousarray(array[..., ::-1, ::-1])[..., ::-1, ::-1]


def _turned(array: Array) -> Array:
    return np.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2)


def _heads_inside(array: Array) -> Array:
    """(..., length, heads, width) seen with the heads first, as models hold it."""
    if array.ndim < 3:
        return array
    return np.ascontiguousarray(array.swapaxes(-3, -2)).swapaxes(-3, -2)


def _one_row(array: Array) -> Array:
    """The first row for all: stride 0."""
    return np.broadcast_to(array[..., :1, :], array.shape)


def _misaligned(array: Array) -> Array:
    room = np.zeros(array.nbytes + 1, np.uint8)
    view = room[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def _read_only(array: Array) -> Array:
    copy = array.copy()
    copy.setflags(write=False)
    return copy


# Views that hold the same numbers (all but one_row) in other places of the memory.
LAYOUTS = {
    "strided": _strided,
    "backwards": _backwards,
    "turned": _turned,
    "heads_inside": _heads_inside,
    "one_row": _one_row,
    "misaligned": _misaligned,
    "read_only": _read_only,
}


def call(query: Array, key: Array, value: Array, **options: Any) -> Call:
    """The call that attention() hands to a kernel, made without its checks."""
    q, k, v = (a[(None,) * max(0, 3 - a.ndim)] for a in (query, key, value))
    batch = np.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    q, k, v = (np.broadcast_to(a, batch + a.shape[-3:]) for a in (q, k, v))
    made = Call(
        query=q,
        key=k,
        value=v,
        mask=None,
        bias=None,
        scale=q.shape[-1] ** -0.5,
        softcap=None,
        sinks=None,
        dropout=None,
        watch=Watch(),
    )
    if options.get("mask") is not None:
        options["mask"] = as_mask(options["mask"])
    if options.get("bias") is not None:
        whole = (*q.shape[:-1], k.shape[-2])
        options["bias"] = np.broadcast_to(options["bias"], whole)
    return replace(made, **options)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh arrays hold NaN (integers -77), so that an output left unwritten cannot pass."""
    empty, empty_like = np.empty, np.empty_like

    def poisoned(array: Array) -> Array:
        if array.dtype.kind == "f" or array.dtype == bfloat16:
            array[...] = np.nan
        elif array.dtype.kind == "i":
            array[...] = -77
        return array

    with (
        mock.patch.object(np, "empty", lambda *a, **k: poisoned(empty(*a, **k))),
        mock.patch.object(np, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k))),
    ):
        yield


def run(kernel: Kernel, made: Call) -> tuple[Array, Statistics]:
    """What a kernel gives; the test is skipped when it refuses in a sentence."""
    reason = kernel.refuses(made)
    if reason is not None:
        assert len(reason.split()) >= 3, f"{kernel.name} refuses without a sentence: {reason!r}"
        pytest.skip(f"{kernel.name}: {reason}")
    with poisoned_memory():
        return kernel.run(made)


def exact(made: Call) -> tuple[Array, dict[str, Any]]:
    """Output and facts by the definition, with bits to spare."""
    wide = made.query.dtype == FLOAT64
    return reference.compute(made, np.longdouble if wide else np.float64)


def error(got: Array, wanted: Array) -> float:
    """Error in norm, relative; infinite when NaN or Inf stand at different places."""
    got = np.asarray(got).astype(np.longdouble)
    wild = ~np.isfinite(wanted)
    if not np.array_equal(got[wild], wanted[wild], equal_nan=True):
        return np.inf
    rest, norm = got[~wild] - wanted[~wild], np.linalg.norm(wanted[~wild].astype(np.float64))
    off = float(np.linalg.norm(rest.astype(np.float64)))
    return off if np.isnan(off) else off / max(float(norm), 1e-300) if off else 0.0


def assert_close(kernel: Kernel, made: Call) -> None:
    """Output and every statistic of a kernel against the definition."""
    output, seen = run(kernel, made)
    wanted, facts = exact(made)
    dtype = made.query.dtype
    assert output.shape == wanted.shape
    assert output.dtype == dtype
    logits = np.abs(facts["lse"][np.isfinite(facts["lse"])]).max(initial=1.0)
    unit = 2e-7 if dtype != FLOAT64 else 4e-16
    bound = 4 * unit * (3 + float(logits))
    with np.errstate(all="ignore"):
        # 16 bits hold no more than the rounded result.
        floor = error(wanted.astype(dtype), wanted) if dtype.itemsize == 2 else 0.0
    if dtype.itemsize == 2 and getattr(kernel, "rounds_weights", False):
        with np.errstate(all="ignore"):
            most, _ = exact(replace(made, value=abs(made.value)))
        there = np.isfinite(wanted)
        spread = np.linalg.norm(most[there].astype(float))
        norm = max(np.linalg.norm(wanted[there].astype(float)), 1e-300)
        floor += float(ml_dtypes.finfo(dtype).eps) / 2 * float(spread / norm)
    assert error(output, wanted) <= bound + 1.01 * floor
    assert set(seen.facts()) == set(facts)
    for name, fact in facts.items():
        if name == "top_keys":
            assert_top(made, seen, facts, bound)
        elif name == "picture":
            for got, part in zip(seen.picture, fact, strict=True):
                assert error(got, part) <= bound, name
        elif name != "top_weights":
            got = getattr(seen, name)
            assert got.shape == fact.shape, name
            assert got.dtype == (FLOAT64 if dtype == FLOAT64 else FLOAT32), name
            assert np.array_equal(np.isnan(got), np.isnan(fact)), name
            assert np.array_equal(np.isneginf(got), np.isneginf(fact)), name
            there = np.isfinite(fact)
            allowed = bound * (1 + np.abs(fact[there]))
            assert (np.abs(got[there] - fact[there]) <= allowed).all(), name


def assert_top(made: Call, seen: Statistics, facts: dict[str, Any], bound: float) -> None:
    """The k largest weights; which key is named may differ where weights are equal to rounding."""
    keys, shares = seen.top_keys, seen.top_weights
    assert keys.dtype == np.int64
    assert keys.shape == shares.shape == facts["top_keys"].shape
    ordinary = ~np.isnan(facts["lse"])
    keys, shares = keys[ordinary], shares[ordinary]
    wanted_keys, wanted = facts["top_keys"][ordinary], facts["top_weights"][ordinary]
    assert np.array_equal(keys == -1, wanted_keys == -1)
    assert (shares[keys == -1] == 0).all()
    assert np.abs(shares - wanted).max(initial=0) <= 2 * bound
    everything = np.arange(made.key.shape[-2]), np.arange(made.query.shape[-2])
    p = reference.weights(made, everything[1], everything[0], None)[ordinary]
    chosen = np.take_along_axis(p, np.where(keys < 0, 0, keys), axis=-1) if p.size else shares
    assert np.abs(np.where(keys < 0, 0, chosen - wanted)).max(initial=0) <= 2 * bound
    for row in keys.reshape(-1, keys.shape[-1])[:200]:
        named = row[row >= 0]
        assert len(set(named.tolist())) == named.size

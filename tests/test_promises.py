"""The promises in numbers: accuracy, exp, the same bits, linear memory, far offsets."""

import os
import subprocess
import sys

import numpy as np
import pytest
from cases import DTYPES, FLOAT32, FLOAT64, LAYOUTS

from benchmarks import accuracy
from chumoku import (
    Causal,
    Custom,
    Documents,
    Dropout,
    Lengths,
    Prefix,
    Watch,
    Window,
    _native,
    attention,
)

ALL_SETS = _native.instruction_sets()


@pytest.fixture(autouse=True)
def as_it_was():
    """Threads and instruction set are the process's own."""
    threads, isa = _native.threads(), _native.instruction_set()
    yield
    _native.set_threads(threads)
    _native.set_instruction_set(isa)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


# Accuracy


QUICK = [s for s in accuracy.samples(512) if s.batch * s.heads * s.queries * s.keys < 60_000][:32]


def test_the_quick_samples_are_of_every_kind():
    assert len(QUICK) == 32
    assert {s.mask for s in QUICK} == set(accuracy.MASKS)
    assert {s.size for s in QUICK} == set(accuracy.SIZES)
    assert any(s.keys > 1024 for s in accuracy.samples(512))
    assert len(set(accuracy.samples(512))) == 512


@pytest.mark.parametrize("name", accuracy.DTYPES)
def test_errors_beside_those_of_pytorch(name):
    broken = {}
    for sample in QUICK:
        said = accuracy.broken(name, accuracy.measure(sample, accuracy.DTYPES[name]))
        if said:
            broken[sample] = said
    assert not broken


# Exp


def binades(dtype):
    """Numbers of every size from where exp(x) is 1 to where it ends, ends of binades too."""
    lowest, most = (-30, 87.3) if dtype == FLOAT32 else (-60, 708.3)
    rng = np.random.default_rng(0)
    powers = np.arange(lowest, 10)
    inside = np.ldexp(1 + rng.random((powers.size, 2000)), powers[:, None])
    ends = np.ldexp(1.0, powers)
    near = [ends, np.nextafter(ends.astype(dtype), dtype.type(0))]
    # Where 2^x turns to the next integer, the reduced argument is largest.
    halves = np.log(2) * (np.arange(int(most / np.log(2))) + 0.5)
    dense = rng.uniform(0, most, 100_000)
    x = np.concatenate([inside.ravel(), *near, halves, dense]).astype(dtype)
    return x[x < most]


def exps(x, place):
    """exp(x) as the kernel takes it, for the key at `place`: width 1, logits 0 and x.

    The outputs are share and share * exp(x), share = 1 / (1 + exp(x)) in its rounded form: their
    quotient has exp(x) with the rounding of one product (two where the share is divided by).
    """
    key, value = np.zeros((place + 1, 1), x.dtype), np.zeros((place + 1, 2), x.dtype)
    key[place], value[0, 0], value[place, 1] = 1, 1, 1
    visible = np.isin(np.arange(place + 1), (0, place))
    output = attention(x[:, None], key, value, mask=visible[None], scale=1.0, kernel="native")
    return output[:, 1].astype(np.longdouble) / output[:, 0]


def ulps(got, wanted, dtype):
    """How far off, in units of the last place of a number of dtype; 0 below the normal ones."""
    normal = wanted >= np.finfo(dtype).tiny
    unit = np.spacing(wanted.astype(dtype)).astype(np.longdouble)
    return np.where(normal, np.abs(got - wanted) / unit, got > np.finfo(dtype).tiny)


# 2 for exp itself, 1 for the rounding of the product that it is measured in.
WORST_ULPS = 2 + 1


@pytest.mark.parametrize("isa", ALL_SETS)
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("place", [1, 64], ids=["first tile", "second tile"])
def test_exp_is_right_in_every_binade(isa, dtype, place):
    assert _native.set_instruction_set(isa)
    x = binades(dtype)
    off = ulps(exps(-x, place), np.exp(-x.astype(np.longdouble)), dtype)
    assert off.max() <= WORST_ULPS, f"exp({-x[off.argmax()]!r}) is off by {off.max():.2f} units"


@pytest.mark.parametrize("isa", ALL_SETS)
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_exp_of_scores_above_the_reference(isa, dtype):
    """The reference stays where it is until a score passes it by 2^8."""
    assert _native.set_instruction_set(isa)
    x = binades(dtype)
    x = x[x < 6.5]
    off = ulps(exps(x, 64), np.exp(x.astype(np.longdouble)), dtype)
    assert off.max() <= WORST_ULPS, f"exp({x[off.argmax()]!r}) is off by {off.max():.2f} units"


def test_small_scores_keep_their_bits_under_a_cap():
    """cap * tanh(s / cap) is s for small s: what is lost there shows in the weights."""
    x = np.ldexp(1 + np.random.default_rng(0).random(4000), np.arange(4000) % 20 - 22)
    x = x.astype(np.float32)
    key, cells = np.zeros((2, 1), np.float32), np.array([[True, True]])
    key[1] = 1
    _, seen = attention(
        x[:, None], key, key, mask=cells, scale=1.0, softcap=4.0, watch=Watch(), kernel="native"
    )
    wanted = 4 * np.tanh(x.astype(np.float64) / 4)
    assert (np.abs(seen.max_logit - wanted) <= 4 * np.spacing(x)).all()


def test_flow_of_a_saturated_row_is_not_rounded_away():
    """1 - sum of squares would be 0 or as far off as the rounding of 1."""
    gaps = np.linspace(5, 60, 200).astype(np.float32)
    key = np.array([[1.0], [0.0], [0.0]], np.float32)
    _, seen = attention(
        gaps[:, None], key, key, scale=1.0, watch=Watch(saturation=True), kernel="native"
    )
    far = np.exp(-gaps.astype(np.float64))
    p = np.stack([np.ones_like(far), far, far]) / (1 + 2 * far)
    wanted = p[0] * (p[1] + p[2]) + p[1] * (p[0] + p[2]) + p[2] * (p[0] + p[1])
    assert (np.abs(seen.flow / wanted - 1) < 1e-5).all()


def test_received_over_many_rows():
    query, key, value = (
        np.random.default_rng(i).standard_normal((n, 8), dtype=np.float32)
        for i, n in enumerate((6000, 70, 70))
    )
    _, seen = attention(query, key, value, watch=Watch(received=True), kernel="native")
    _, exact = attention(
        *(a.astype(np.float64) for a in (query, key, value)),
        watch=Watch(received=True),
        kernel="reference",
    )
    assert np.abs(seen.received / exact.received - 1).max() < 1e-6
    assert abs(seen.received.astype(np.float64).sum() / 6000 - 1) < 1e-6


@pytest.mark.parametrize("isa", ALL_SETS)
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_16_bits_are_rounded_to_the_nearest(isa, dtype):
    """Means of two numbers fall between neighbours, halfway where these follow each other."""
    assert _native.set_instruction_set(isa)
    every = np.arange(2**16, dtype=np.uint16).view(dtype).astype(np.float32)
    every = every[np.isfinite(every) & (np.abs(every) < 1e38)].astype(dtype)
    near = np.roll(every, 1)
    value = np.stack([every, near])
    blocks = every.size // 1000
    stacked = value[:, : blocks * 1000].reshape(2, blocks, 1000).swapaxes(0, 1)
    keys = np.zeros((blocks, 2, 1), dtype)
    output = attention(keys[:, :1], keys, stacked, kernel="native")
    mean = stacked.astype(np.float64).mean(axis=1)
    with np.errstate(over="ignore"):
        wanted = mean.astype(np.float32).astype(dtype)
    assert np.array_equal(output[:, 0], wanted)


# What stands beside an array


def test_nothing_beyond_an_array_is_read():
    """Every input ends where the memory ends, or begins where it begins."""
    done = run_python(
        """
import ctypes, mmap
import ml_dtypes
import numpy as np, chumoku
page = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
def fenced(array, at_end):
    pages = -(-array.nbytes // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    room = np.frombuffer(memory, np.uint8)
    for fence in (0, pages + 1):
        address = ctypes.c_void_p(room.ctypes.data + fence * page)
        assert libc.mprotect(address, ctypes.c_size_t(page), 0) == 0  # PROT_NONE
    start = (pages + 1) * page - array.nbytes if at_end else page
    view = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view
rng = np.random.default_rng(0)
for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
    for queries, keys, width, value_width in ((1, 1, 1, 1), (5, 70, 3, 5), (33, 129, 17, 9)):
        q, k, v = (rng.standard_normal(shape).astype(dtype)
                   for shape in ((2, queries, width), (1, keys, width), (1, keys, value_width)))
        bias = rng.standard_normal((2, queries, keys)).astype(dtype)
        cells = rng.random((2, queries, keys)) < 0.8
        for layout in (lambda a: a, lambda a: a[..., ::-1, :], lambda a: a[..., ::-1]):
            for at_end in (False, True):
                there = [layout(fenced(a, at_end)) for a in (q, k, v, bias, cells)]
                for options in ({}, {"bias": there[3]}, {"mask": there[4]}):
                    chumoku.attention(*there[:3], **options, kernel="native")
                    chumoku.weights(*there[:2], **options, kernel="native")
print("done")
"""
    )
    assert done.stdout.split() == ["done"], f"{done.returncode} {done.stderr}"


# The same bits


# Beyond a tile (64 keys) and a chunk (1024 keys), and not a multiple of either.
BATCH, HEADS, KV_HEADS, QUERIES, KEYS, WIDTH, VALUE_WIDTH = 2, 4, 2, 37, 1130, 24, 20

EVERYTHING = Watch(
    top=5,
    entropy=True,
    saturation=True,
    distance=True,
    received=True,
    groups=np.arange(KEYS) % 3,
    picture=(3, 4),
)


def arrays(dtype):
    rng = np.random.default_rng(1)
    shapes = (
        (BATCH, HEADS, QUERIES, WIDTH),
        (BATCH, KV_HEADS, KEYS, WIDTH),
        (BATCH, KV_HEADS, KEYS, VALUE_WIDTH),
    )
    return [(2 * rng.standard_normal(shape)).astype(dtype) for shape in shapes]


def biases(dtype):
    rng = np.random.default_rng(2)
    bias = rng.standard_normal((BATCH, 1, QUERIES, KEYS))
    bias[rng.random(bias.shape) < 0.2] = -np.inf
    return bias.astype(dtype)


ROWS, ENTRIES = slice(0, QUERIES), slice(0, BATCH)
OFFSET = KEYS - QUERIES

# For some rows and batch entries, what must be given so that they are what they are in the whole.
OPTIONS = {
    "nothing": lambda dtype, rows, entries: {},
    "causal": lambda dtype, rows, entries: {"mask": Causal(OFFSET + rows.start)},
    "window": lambda dtype, rows, entries: {"mask": Window(600, 5, OFFSET + rows.start)},
    "lengths": lambda dtype, rows, entries: {"mask": Lengths(np.array([KEYS, 70])[entries])},
    "documents": lambda dtype, rows, entries: {
        "mask": Documents((np.arange(QUERIES) // 7)[rows], np.arange(KEYS) % 6)
    },
    "prefix": lambda dtype, rows, entries: {
        "mask": Prefix(100) | Window(70, 0, OFFSET + rows.start)
    },
    "cells": lambda dtype, rows, entries: {
        "mask": (np.random.default_rng(3).random((QUERIES, KEYS)) < 0.5)[rows]
    },
    "custom": lambda dtype, rows, entries: {
        "mask": Custom(lambda b, h, i, j: (i + rows.start + 3 * j + h) % 5 > 0)
    },
    "bias": lambda dtype, rows, entries: {"bias": biases(dtype)[entries, :, rows]},
    "softcap": lambda dtype, rows, entries: {"softcap": 3.0},
    "sinks": lambda dtype, rows, entries: {"sinks": np.linspace(-2, 5, HEADS).astype(dtype)},
    "dropout": lambda dtype, rows, entries: {"dropout": Dropout(0.3, 11)},
    "together": lambda dtype, rows, entries: {
        "mask": Window(900, 5, OFFSET + rows.start),
        "bias": biases(dtype)[entries, :, rows],
        "softcap": 3.0,
        "sinks": np.linspace(-2, 5, HEADS).astype(dtype),
        "dropout": Dropout(0.3, 11),
        "scale": 0.4,
    },
}

of_every_kind = pytest.mark.parametrize(
    ("dtype", "option"),
    [pytest.param(d, o, id=f"{d}-{o}") for d in DTYPES for o in OPTIONS],
)


def bits(array):
    return array.tobytes()


def fact_bits(seen):
    return {
        name: [bits(part) for part in fact] if name == "picture" else bits(fact)
        for name, fact in seen.facts().items()
    }


@of_every_kind
def test_same_bits_in_twenty_runs_on_any_number_of_threads(dtype, option):
    inputs, options = arrays(dtype), OPTIONS[option](dtype, ROWS, ENTRIES)
    _native.set_threads(1)
    output, seen = attention(*inputs, **options, watch=EVERYTHING, kernel="native")
    facts = fact_bits(seen)
    for run in range(20):
        _native.set_threads((1, 2, 3, 8)[run % 4])
        again, now = attention(*inputs, **options, watch=EVERYTHING, kernel="native")
        assert bits(again) == bits(output), run
        assert fact_bits(now) == facts, run


@of_every_kind
def test_same_bits_for_a_slice_of_queries_and_an_entry_alone(dtype, option):
    query, key, value = arrays(dtype)
    whole = attention(query, key, value, **OPTIONS[option](dtype, ROWS, ENTRIES), kernel="native")
    # Dropout counts queries and batch entries from 0.
    counted = "dropout" in OPTIONS[option](dtype, ROWS, ENTRIES)
    slices = (slice(0, 1), slice(0, 20)) if counted else (slice(0, 1), slice(5, 36), slice(36, 37))
    for entries in (slice(0, 2), slice(0, 1)) if counted else (slice(0, 2), slice(1, 2)):
        for rows in slices:
            for threads in (1, 8):
                _native.set_threads(threads)
                options = OPTIONS[option](dtype, rows, entries)
                part = attention(
                    query[entries, :, rows],
                    key[entries],
                    value[entries],
                    **options,
                    kernel="native",
                )
                assert bits(part) == bits(whole[entries, :, rows]), (entries, rows, threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 8, 9, 15, 16, 17, 23, 40, 72, 130])
def test_same_bits_for_few_queries_of_any_width(dtype, width):
    # Few queries have keys in the lanes; many have queries there.
    rng = np.random.default_rng(width)
    value_width = int(rng.choice([1, 7, 8, 16, 20, 33, 64, 100]))
    query = rng.standard_normal((3, 40, width)).astype(dtype)
    key = rng.standard_normal((3, 150, width)).astype(dtype)
    value = rng.standard_normal((3, 150, value_width)).astype(dtype)
    value[1, 10:12] = np.nan
    cells = rng.random((40, 150)) < 0.8
    cells[:, 10] = cells[::2, 11] = False
    watch = Watch(top=3, entropy=True, saturation=True)
    for mask in (None, cells):
        whole, seen = attention(query, key, value, mask=mask, watch=watch, kernel="native")
        for rows in (slice(5, 6), slice(6, 8), slice(8, 11), slice(30, 34), slice(11, 18)):
            own = None if mask is None else mask[rows]
            part, few = attention(
                query[:, rows], key, value, mask=own, watch=watch, kernel="native"
            )
            assert bits(part) == bits(whole[:, rows]), rows
            for name, fact in few.facts().items():
                assert bits(fact) == bits(seen.facts()[name][:, rows]), (name, rows)


@of_every_kind
def test_same_bits_in_every_layout_and_unwatched(dtype, option):
    inputs, options = arrays(dtype), OPTIONS[option](dtype, ROWS, ENTRIES)
    output, _ = attention(*inputs, **options, watch=EVERYTHING, kernel="native")
    assert bits(attention(*inputs, **options, kernel="native")) == bits(output)
    for watch in (Watch(received=True), Watch(top=1), Watch(entropy=True), Watch(picture=(2, 2))):
        assert bits(attention(*inputs, **options, watch=watch, kernel="native")[0]) == bits(output)
    for name, layout in LAYOUTS.items():
        if name == "one_row":
            continue  # other numbers
        moved = [layout(array) for array in inputs]
        if "bias" in options:
            options = {**options, "bias": layout(options["bias"])}
        assert bits(attention(*moved, **options, kernel="native")) == bits(output), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_same_bits_for_grouped_and_repeated_heads(dtype, kv_heads):
    query, key, value = arrays(dtype)
    key, value = (np.repeat(a[:, :1], kv_heads, axis=1) for a in (key, value))
    one = attention(query, key[:, :1], value[:, :1], mask=Causal(), kernel="native")
    assert bits(attention(query, key, value, mask=Causal(), kernel="native")) == bits(one)
    alone = [
        attention(query[:, [h]], key[:, :1], value[:, :1], mask=Causal(), kernel="native")
        for h in range(HEADS)
    ]
    assert bits(np.concatenate(alone, axis=1)) == bits(one)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_for_a_query_decoded_over_a_cache(dtype):
    query, key, value = arrays(dtype)
    whole = attention(query, key, value, mask=Causal(), kernel="native")
    for i in (0, 17, 36):
        there = slice(0, OFFSET + i + 1)
        decoded = attention(
            query[:, :, i : i + 1], key[:, :, there], value[:, :, there], kernel="native"
        )
        assert bits(decoded) == bits(whole[:, :, i : i + 1]), i


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_for_one_query_over_many_chunks(dtype):
    """More chunks than are held at a time."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((n, 8)).astype(dtype) for n in (1, 20_000, 20_000))
    _native.set_threads(1)
    alone = attention(query, key, value, kernel="native")
    for threads in (2, 3, 8):
        _native.set_threads(threads)
        assert bits(attention(query, key, value, kernel="native")) == bits(alone), threads


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value_width", [1, 5, 20, 33])
def test_a_value_column_is_the_same_alone(dtype, value_width):
    query, key, _ = arrays(dtype)
    value = np.random.default_rng(4).standard_normal((BATCH, KV_HEADS, KEYS, 40)).astype(dtype)
    whole = attention(query, key, value, mask=Causal(), kernel="native")
    part = attention(query, key, value[..., :value_width], mask=Causal(), kernel="native")
    assert bits(part) == bits(whole[..., :value_width])


# Memory


# Peak memory beyond what the process had before it made its inputs, over what the call needs:
# inputs, output, statistics, and for each thread a panel with its states and two tiles.
NEED = """
import resource
import numpy as np, chumoku
from chumoku import Causal, Dropout, Prefix, Watch, Window
def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
length, width, threads = 65536, {width}, 2
watch = Watch(top=8, entropy=True, saturation=True, distance=True, received=True,
              groups=np.arange(length) % 4, picture=(64, 64))
few = np.ones((300, width), np.float32)
small = Watch(top=8, entropy=True, saturation=True, distance=True, received=True,
              groups=np.arange(300) % 4, picture=(64, 64))
options = dict(softcap=30.0, sinks=np.ones(1, np.float32), dropout=Dropout(0.1, 1))
chumoku.attention(few, few, few, watch=small, mask={mask}, **options)
before = peak()
query, key, value = (np.random.default_rng(i).standard_normal((length, width), dtype=np.float32)
                     for i in range(3))
output, seen = chumoku.attention(query, key, value, watch=watch, mask={mask}, **options,
                                 kernel="native")
facts = []
for fact in seen.facts().values():
    facts += fact if type(fact) is tuple else [fact]
need = sum(array.nbytes for array in (query, key, value, output, watch.groups, *facts))
need += threads * 4 * (144 * (2 * width + 64) + 2 * 64 * width + 4 * 72 * 64)
assert np.isfinite(output).all()
print((peak() - before) / need)
"""


@pytest.mark.parametrize("mask", ["Window(200, 0)", "Window(50, 20) | Prefix(70)"])
def test_memory_is_what_the_call_needs(mask):
    done = run_python(NEED.format(width=64, mask=mask), CHUMOKU_NUM_THREADS="2")
    assert float(done.stdout or "nan") < 1.2, done.stderr + done.stdout


@pytest.mark.parametrize("mask", ["None", "Causal()"])
def test_memory_of_four_thousand_million_scores(mask):
    done = run_python(NEED.format(width=8, mask=mask), CHUMOKU_NUM_THREADS="2")
    assert float(done.stdout or "nan") < 1.2, done.stderr + done.stdout


def test_too_little_memory_is_an_error_that_one_survives():
    """Output that cannot be held, and working memory that cannot."""
    done = run_python(
        """
import resource
import numpy as np, chumoku
few = np.ones((5, 64), np.float32)
chumoku.attention(few, few, few)
with open("/proc/self/statm") as sizes:
    now = int(sizes.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 2**29, now + 2**29))
many = np.broadcast_to(np.float32(1), (20_000_000, 64))
for call in (
    lambda: chumoku.attention(many, few, few),
    lambda: chumoku.attention(few, many, many, watch=chumoku.Watch(received=True, top=2**20)),
    lambda: chumoku.weights(many, few),
    lambda: chumoku.weights(few, many, rows=[0] * 100),
):
    try:
        call()
        print("done")
    except MemoryError:
        print("MemoryError")
print(chumoku.attention(few, few, few)[0, 0])
""",
        CHUMOKU_NUM_THREADS="2",
    )
    assert done.stdout.split() == ["MemoryError"] * 4 + ["1.0"], done.stdout + done.stderr


# Far offsets


@pytest.fixture
def sparse(tmp_path):
    """Makes arrays whose file has holes: only what is written takes room."""

    def make(shape, dtype):
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        try:
            return np.memmap(path, dtype, "w+", shape=shape)
        except OSError as error:
            pytest.skip(f"this disk holds no sparse file: {error}")

    return make


FAR = 2**28  # elements from one row to the next: ten rows reach beyond 2^31


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
def test_rows_beyond_two_to_the_31(sparse, dtype, turned):
    far = sparse((10, FAR), dtype)
    rng = np.random.default_rng(0)
    key, value = (rng.standard_normal((10, 10)).astype(dtype) for _ in range(2))
    far[:, :10], far[:, -10:] = key, value
    there = far[:, :10], far[:, -10:]
    if turned:
        there, key, value = [a.T for a in there], key.T, value.T
    query = rng.standard_normal((3, 10)).astype(dtype)
    wanted = attention(query, key, value, mask=Causal(), kernel="native")
    got = attention(query, *there, mask=Causal(), kernel="native")
    assert bits(got) == bits(wanted)
    assert bits(attention(there[0], key, value, kernel="native")) == bits(
        attention(np.array(there[0]), key, value, kernel="native")
    )


@pytest.mark.parametrize("dtype", [FLOAT32, DTYPES[3]], ids=str)
def test_masks_and_biases_beyond_two_to_the_31(sparse, dtype):
    rng = np.random.default_rng(0)
    query, key = (rng.standard_normal((10, 6)).astype(dtype) for _ in range(2))
    cells = sparse((10, FAR), np.dtype(np.bool_))
    cells[:, :10] = rng.random((10, 10)) < 0.5
    bias = sparse((10, FAR), dtype)
    bias[:, :10] = rng.standard_normal((10, 10))
    for turn in (False, True):
        here, there = (a[:, :10].T if turn else a[:, :10] for a in (cells, bias))
        got = attention(query, key, key, mask=here, bias=there, kernel="native")
        wanted = attention(
            query, key, key, mask=np.array(here), bias=np.array(there), kernel="native"
        )
        assert bits(got) == bits(wanted)

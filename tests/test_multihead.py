"""MultiHeadAttention against the definition by hand, against torch, and against itself."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import chumoku
from chumoku import Cache, Causal, Lengths, MultiHeadAttention, Watch, Window
from chumoku.errors import ChumokuError, InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.tensors import read_tensors

Array = NDArray[Any]


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def random_module(width: int, heads: int, seed: int = 0, **options: Any) -> MultiHeadAttention:
    """With biases that are not 0, unlike a fresh module's."""
    fresh = MultiHeadAttention(width, heads, seed=seed, **options)
    random = np.random.default_rng(seed + 1)
    parameters = {
        name: random.normal(0, 0.3, array.shape).astype(array.dtype) if array.ndim == 1 else array
        for name, array in fresh.parameters.items()
    }
    return MultiHeadAttention.from_parameters(parameters, heads)


def by_hand(
    mha: MultiHeadAttention,
    x: Array,
    memory: Array | None = None,
    value: Array | None = None,
    allowed: Array | bool = True,
    scale: float | None = None,
) -> tuple[Array, Array]:
    """Output and weights (heads, queries, keys) of one sequence: loops over heads in double."""
    memory = x if memory is None else memory
    value = memory if value is None else value
    p = {name: array.astype(np.float64) for name, array in mha.parameters.items()}
    projected = {
        part: source.astype(np.float64) @ p[f"{part}_matrix"].T + p.get(f"{part}_bias", 0.0)
        for part, source in (("query", x), ("key", memory), ("value", value))
    }
    kv_heads = mha.kv_heads
    width = projected["query"].shape[-1] // mha.heads
    value_width = projected["value"].shape[-1] // kv_heads
    every = np.broadcast_to(allowed, (mha.heads, len(x), len(memory)))
    mixed, weights = [], []
    for head in range(mha.heads):
        shared = head // (mha.heads // kv_heads)
        q = projected["query"][:, head * width : (head + 1) * width]
        k = projected["key"][:, shared * width : (shared + 1) * width]
        v = projected["value"][:, shared * value_width : (shared + 1) * value_width]
        scores = q @ k.T * (width**-0.5 if scale is None else scale)
        powers = np.where(every[head], np.exp(scores - scores.max(initial=0.0)), 0.0)
        total = powers.sum(axis=-1, keepdims=True)
        weights.append(np.divide(powers, total, out=np.zeros_like(powers), where=total > 0))
        mixed.append(weights[-1] @ v * (head not in mha.silenced))
    joined = np.concatenate(mixed, axis=-1)
    return joined @ p["output_matrix"].T + p.get("output_bias", 0.0), np.stack(weights)


def assert_near(got: Array, expected: Array, tolerance: float = 2e-6) -> None:
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


# Against the definition


@settings(deadline=None, max_examples=60)
@given(
    head_width=st.sampled_from([1, 3, 8, 17]),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    lengths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    widths=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    cross=st.booleans(),
    bias=st.booleans(),
    double=st.booleans(),
    seed=st.integers(0, 99),
)
def test_definition(
    head_width: int,
    kv_heads: int,
    group: int,
    lengths: tuple[int, int],
    widths: tuple[int, int],
    cross: bool,
    bias: bool,
    double: bool,
    seed: int,
) -> None:
    heads = kv_heads * group
    dtype: Any = np.float64 if double else np.float32
    inputs = {"key_width": widths[0], "value_width": widths[1]} if cross else {}
    mha = random_module(
        heads * head_width, heads, seed, kv_heads=kv_heads, bias=bias, dtype=dtype, **inputs
    )
    x = draw(lengths[0], mha.width, seed=seed, dtype=dtype)
    others = [draw(lengths[1], width, seed=seed + 1, dtype=dtype) for width in widths]
    memories = others if cross else []
    allowed = np.random.default_rng(seed).random((heads, lengths[0], lengths[cross])) < 0.7
    output = mha(x, *memories, mask=allowed)
    assert output.dtype == dtype
    expected, _ = by_hand(mha, x, *memories, allowed=allowed)
    # Without a bias, an output of rows that see nothing is 0 on both sides.
    assert_near(output, expected, 1e-12 if double else 5e-6)


def test_leading_axes_are_independent_sequences() -> None:
    mha = random_module(24, 4, kv_heads=2)
    x = draw(2, 3, 5, 24)
    output, seen = mha(x, mask=Causal(), watch=Watch(entropy=True))
    assert output.shape == x.shape
    assert seen.entropy.shape == (2, 3, 4, 5)
    for place in np.ndindex(2, 3):
        expected, weights = by_hand(mha, x[place], allowed=np.tri(5, dtype=bool))
        assert_near(output[place], expected)
        entropy = -np.where(weights > 0, weights * np.log(np.maximum(weights, 1e-300)), 0).sum(-1)
        np.testing.assert_allclose(seen.entropy[place], entropy, atol=1e-5)


def test_memory_and_batch_broadcast() -> None:
    mha = random_module(12, 3)
    x, memory = draw(4, 5, 12), draw(7, 12, seed=1)
    for place in range(4):
        assert_near(mha(x, memory)[place], by_hand(mha, x[place], memory)[0])
    assert_near(mha(x[0], memory[None].repeat(2, 0))[1], by_hand(mha, x[0], memory)[0])


def test_memory_is_the_value_unless_one_is_given() -> None:
    mha = random_module(12, 3)
    x, memory, value = draw(5, 12), draw(7, 12, seed=1), draw(7, 12, seed=2)
    np.testing.assert_array_equal(mha(x, memory), mha(x, memory, memory))
    np.testing.assert_array_equal(mha(x), mha(x, x, x))
    assert_near(mha(x, memory, value), by_hand(mha, x, memory, value)[0])


def test_masks_scale_and_bias() -> None:
    mha = random_module(16, 2)
    x = draw(6, 16)
    i, j = np.ogrid[:6, :6]
    band = (j >= i - 1) & (j <= i + 2)
    assert_near(mha(x, mask=Window(1, 2)), by_hand(mha, x, allowed=band)[0])
    hides = np.where(band, 0, -np.inf).astype(np.float32)
    assert_near(mha(x, bias=hides), by_hand(mha, x, allowed=band)[0])
    assert_near(mha(x, scale=1.0), by_hand(mha, x, scale=1.0)[0])
    assert_near(mha(x, mask=np.zeros((6, 6), bool)), np.tile(mha.parameters["output_bias"], (6, 1)))


def test_padding_of_nan_is_not_felt() -> None:
    mha = random_module(16, 2)
    x = draw(2, 6, 16)
    x[0, 4:] = np.nan
    output = mha(x, mask=Lengths([4, 6], queries=[4, 6]))
    assert_near(output[0, :4], by_hand(mha, x[0, :4])[0])
    assert_near(output[1], by_hand(mha, x[1])[0])
    np.testing.assert_array_equal(output[0, 4:], np.tile(mha.parameters["output_bias"], (2, 1)))


@pytest.mark.parametrize("shape", [(0, 16), (3, 0, 16), (0, 4, 16), (2, 0, 0, 16)])
def test_zero_sizes(shape: tuple[int, ...]) -> None:
    mha = random_module(16, 4)
    x = np.zeros(shape, np.float32)
    assert mha(x, mask=Causal()).shape == shape
    trace = mha.trace(x)
    assert trace.parts.shape == (*shape[:-2], 4, *shape[-2:])
    assert trace.norms.shape == (*shape[:-2], 4, shape[-2])
    nothing = mha(draw(3, 16), np.zeros((0, 16), np.float32))
    np.testing.assert_array_equal(nothing, np.tile(mha.parameters["output_bias"], (3, 1)))


def test_inputs_of_any_strides_are_read_and_not_written() -> None:
    mha = random_module(16, 4)
    x = draw(3, 5, 16)
    transposed = np.asfortranarray(x)
    reversed_twice = x[:, ::-1].copy()[:, ::-1]
    expected = mha(x, mask=Causal())
    for same in (transposed, reversed_twice):
        before = same.copy()
        same.flags.writeable = False
        assert_near(mha(same, mask=Causal()), expected)
        np.testing.assert_array_equal(same, before)
    repeated = np.broadcast_to(x[0], (4, 5, 16))
    assert_near(mha(repeated)[3], mha(x[0]))


# A fresh module


def test_fresh_parameters() -> None:
    mha = MultiHeadAttention()
    assert (mha.width, mha.heads, mha.kv_heads) == (512, 8, 8)
    assert mha.dtype == np.float32
    matrix = mha.query_matrix
    limit = np.sqrt(6 / 1024)
    assert limit * 0.999 < np.abs(matrix).max() <= np.float32(limit)
    assert abs(float(matrix.std()) - limit / np.sqrt(3)) < 1e-3 * limit
    for name, array in mha.parameters.items():
        assert array.any() == name.endswith("_matrix"), name
    np.testing.assert_array_equal(matrix, MultiHeadAttention().query_matrix)
    assert (matrix != MultiHeadAttention(seed=1).query_matrix).any()
    assert (matrix != mha.key_matrix).any()
    double = MultiHeadAttention(dtype=np.float64)
    np.testing.assert_array_equal(double.query_matrix.astype(np.float32), matrix)


def test_shapes_of_a_fresh_module() -> None:
    mha = MultiHeadAttention(24, 6, kv_heads=2, key_width=10, value_width=7, bias=False)
    shapes = {name: array.shape for name, array in mha.parameters.items()}
    assert shapes == {
        "query_matrix": (24, 24),
        "key_matrix": (8, 10),
        "value_matrix": (8, 7),
        "output_matrix": (24, 24),
    }
    assert mha.query_bias is None
    assert (mha.key_width, mha.value_width) == (10, 7)
    assert MultiHeadAttention(8, 2, key_width=5).value_width == 5


def test_frozen_value() -> None:
    mha = random_module(8, 2)
    with pytest.raises(AttributeError):
        mha.heads = 4  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        mha.query_matrix[0, 0] = 1
    x = draw(3, 8)
    for twin in (pickle.loads(pickle.dumps(mha)), copy.deepcopy(mha), copy.copy(mha)):
        np.testing.assert_array_equal(twin(x), mha(x))
    assert repr(mha.without({1})) == (
        "MultiHeadAttention(width=8, heads=2, kv_heads=2, dtype=float32, silenced=[1])"
    )


# Watching and opening a call


def test_watching_changes_no_bit() -> None:
    mha = random_module(24, 4)
    x = draw(2, 9, 24)
    plain = mha(x, mask=Causal())
    watch = Watch(top=3, entropy=True, saturation=True, distance=True)
    output, seen = mha(x, mask=Causal(), watch=watch)
    np.testing.assert_array_equal(plain, output)
    np.testing.assert_array_equal(plain, mha.trace(x, mask=Causal()).output)
    assert seen.top_keys.shape == (2, 4, 9, 3)
    with pytest.raises(UnavailableError):
        _ = mha(x, watch=Watch())[1].entropy


def test_recording_sees_the_call() -> None:
    mha = random_module(24, 4)
    x = draw(9, 24)
    with chumoku.recording(Watch(entropy=True), inputs=True) as seen, chumoku.label("layer 0"):
        mha(x)
    entry = seen["layer 0"]
    assert entry.statistics.entropy.shape == (4, 9)
    np.testing.assert_allclose(entry.weights(), by_hand(mha, x)[1], atol=1e-6)


@pytest.mark.parametrize("silenced", [set(), {1, 2}])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_trace(silenced: set[int], batch: tuple[int, ...]) -> None:
    mha = random_module(24, 4, kv_heads=2, key_width=10, value_width=6).without(silenced)
    x, memory, value = draw(*batch, 5, 24), draw(*batch, 7, 10), draw(*batch, 7, 6)
    allowed = np.arange(7) <= np.arange(5)[:, None] + 1
    trace = mha.trace(x, memory, value, mask=allowed, watch=Watch(entropy=True))
    assert trace.query.shape == (*batch, 4, 5, 6)
    assert trace.key.shape == trace.value.shape == (*batch, 2, 7, 6)
    assert trace.mixed.shape == (*batch, 4, 5, 6)
    assert trace.seen.entropy.shape == trace.norms.shape == (*batch, 4, 5)
    assert "parts" not in trace.__dict__
    joined = trace.parts.sum(axis=-3) + mha.parameters["output_bias"]
    assert_near(joined, trace.output)
    assert trace.parts is trace.parts
    np.testing.assert_allclose(trace.norms, np.linalg.norm(trace.parts, axis=-1), rtol=1e-5)
    for head in silenced:
        assert not trace.mixed[..., head, :, :].any()
        assert not trace.norms[..., head, :].any()
    weights = trace.weights()
    np.testing.assert_array_equal(weights == 0, ~np.broadcast_to(allowed, weights.shape))
    mixed = weights @ trace.value.repeat(2, axis=-3)
    mixed[..., sorted(silenced), :, :] = 0
    assert_near(trace.mixed, mixed)
    first = tuple(0 for _ in batch)
    _, expected = by_hand(mha, x[first], memory[first], value[first], allowed)
    np.testing.assert_allclose(weights[first], expected, atol=1e-6)
    block = trace.weights(rows=[1, 4], keys=slice(2, 5))
    np.testing.assert_array_equal(block, weights[..., [1, 4], 2:5])
    assert trace.weights(rows=2).shape == (*batch, 4, 1, 7)


def test_projections_are_read_in_place() -> None:
    mha = random_module(24, 4)
    trace = mha.trace(draw(2, 5, 24))
    for heads in (trace.query, trace.key, trace.value):
        assert heads.swapaxes(-3, -2).reshape(2, 5, 24).flags.c_contiguous
        assert np.shares_memory(heads[:, 0], heads.swapaxes(-3, -2).reshape(2, 5, 24))


def test_scale_reaches_the_weights_of_a_trace() -> None:
    mha = random_module(24, 4)
    x = draw(5, 24)
    trace = mha.trace(x, scale=2.0, mask=Causal())
    expected = by_hand(mha, x, scale=2.0, allowed=np.tri(5, dtype=bool))[1]
    np.testing.assert_allclose(trace.weights(), expected, atol=2e-6)


# Silencing heads


def test_without_is_zero_columns_of_the_output_matrix() -> None:
    mha = random_module(24, 4)
    x = draw(2, 5, 24)
    output = mha.output_matrix.copy()
    output.reshape(24, 4, 6)[:, [0, 3]] = 0
    zeroed = MultiHeadAttention.from_parameters({**mha.parameters, "output_matrix": output}, 4)
    silenced = mha.without({0, 3})
    assert_near(silenced(x), zeroed(x))
    assert silenced.silenced == {0, 3}
    assert mha.silenced == frozenset()
    assert silenced.query_matrix is mha.query_matrix
    np.testing.assert_array_equal(mha.without([0]).without({3})(x), silenced(x))
    np.testing.assert_array_equal(mha.without(())(x), mha(x))
    everything = mha.without(range(4))(x)
    np.testing.assert_array_equal(everything, np.broadcast_to(mha.parameters["output_bias"], x.shape))


def test_silenced_heads_still_look() -> None:
    mha = random_module(24, 4)
    x = draw(5, 24)
    seen, as_before = (m(x, watch=Watch(top=2))[1] for m in (mha.without({2}), mha))
    np.testing.assert_array_equal(seen.top_keys, as_before.top_keys)
    np.testing.assert_array_equal(seen.lse, as_before.lse)


def test_nan_of_a_silenced_head_is_gone() -> None:
    mha = random_module(8, 2)
    matrix = mha.value_matrix.copy()
    matrix[0] = np.nan
    broken = MultiHeadAttention.from_parameters({**mha.parameters, "value_matrix": matrix}, 2)
    x = draw(3, 8)
    assert np.isnan(broken(x)).all()
    np.testing.assert_array_equal(broken.without({0})(x), mha.without({0})(x))


# Decoding step by step


@settings(deadline=None, max_examples=40)
@given(
    steps=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    batch=st.sampled_from([(), (2,), (2, 1, 3)]),
    kv_heads=st.sampled_from([1, 2, 4]),
)
def test_steps_equal_the_whole(steps: list[int], batch: tuple[int, ...], kv_heads: int) -> None:
    mha = random_module(16, 4, kv_heads=kv_heads)
    x = draw(*batch, sum(steps), 16)
    watch = Watch(top=2, distance=True)
    whole, seen = mha(x, mask=Causal(), watch=watch)
    cache = Cache()
    start = 0
    for step in steps:
        part = np.s_[..., start : start + step, :]
        output, facts = mha(x[part], mask=Causal(), cache=cache, watch=watch)
        start += step
        assert len(cache) == start
        np.testing.assert_allclose(output, whole[part], atol=2e-6)
        rows = np.s_[..., start - step : start]
        np.testing.assert_allclose(facts.lse, seen.lse[rows], atol=2e-6)
        np.testing.assert_allclose(facts.distance, seen.distance[rows], atol=1e-5)


def test_growth_is_amortised() -> None:
    mha = random_module(8, 2)
    cache = Cache()
    x = draw(300, 8)
    buffers = set()
    for step in x:
        trace = mha.trace(step[None], mask=Causal(), cache=cache)
        assert trace.key.shape == (2, len(cache), 4)
        buffers.add(id(trace.key.base))
        trace.key.flags.writeable = False
    assert len(cache) == 300
    buffer = trace.key.base
    assert buffer is not None
    assert 300 <= buffer.shape[-2] <= 600
    assert len(buffers) < 20


def test_truncate_takes_a_draft_back() -> None:
    mha = random_module(16, 4)
    x, draft = draw(2, 9, 16), draw(2, 3, 16, seed=1)
    cache = Cache()
    mha(x[:, :4], mask=Causal(), cache=cache)
    mha(x[:, 4:5], mask=Causal(), cache=cache)
    drafted = mha.trace(draft, mask=Causal(), cache=cache)
    kept = drafted.key.copy()
    cache.truncate(5)
    assert len(cache) == 5
    output = mha(x[:, 5:], mask=Causal(), cache=cache)
    np.testing.assert_allclose(output, mha(x, mask=Causal())[:, 5:], atol=2e-6)
    np.testing.assert_array_equal(drafted.key, kept)
    cache.truncate(0)
    other = random_module(8, 2)
    assert other(draw(3, 8), cache=cache).shape == (3, 8)
    for wrong in (-1, 4, True, 1.5):
        with pytest.raises(ChumokuError, match="^length: got"):
            cache.truncate(wrong)  # type: ignore[arg-type]
    assert len(cache) == 3


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_of_a_cache_go_their_own_ways(copied: Any) -> None:
    mha = random_module(16, 4)
    x, ways = draw(6, 16), [draw(1, 16, seed=seed) for seed in (1, 2)]
    cache = Cache()
    mha(x[:5], mask=Causal(), cache=cache)
    mha(x[5:], mask=Causal(), cache=cache)
    caches = [cache, copied(cache)]
    for way, own in zip(ways, caches, strict=True):
        mha(way, mask=Causal(), cache=own)
    for way, own in zip(ways, caches, strict=True):
        whole = np.concatenate([x, way, x[:1]])
        last = mha(x[:1], mask=Causal(), cache=own)
        np.testing.assert_allclose(last, mha(whole, mask=Causal())[-1:], atol=2e-6)


def test_a_failed_step_leaves_the_cache() -> None:
    mha = random_module(16, 4)
    x = draw(9, 16)
    cache = Cache()
    with pytest.raises(InvalidArgumentError):
        mha(x[:5], mask=np.ones((2, 2), bool), cache=cache)
    assert len(cache) == 0
    mha(x[:5], mask=Causal(), cache=cache)
    mha(x[5:6], mask=Causal(), cache=cache)
    with pytest.raises(InvalidArgumentError):
        mha(draw(2, 16, seed=1), mask=np.ones((2, 2), bool), cache=cache)
    assert len(cache) == 6
    output = mha(x[6:], mask=Causal(), cache=cache)
    np.testing.assert_allclose(output, mha(x, mask=Causal())[6:], atol=2e-6)


def test_cross_attention_projects_its_memory_once() -> None:
    mha = random_module(16, 4, key_width=10, value_width=6)
    x, memory, value = draw(5, 16), draw(7, 10, seed=1), draw(7, 6, seed=2)
    expected = mha(x, memory, value)
    cache = Cache()
    first = mha.trace(x[:1], memory, value, cache=cache)
    again = mha.trace(x[1:3], memory, value, cache=cache)
    alone = mha.trace(x[3:], cache=cache)
    output = np.concatenate([first.output, again.output, alone.output])
    np.testing.assert_allclose(output, expected, atol=2e-6)
    assert len(cache) == 7
    for later in (again, alone):
        assert np.shares_memory(first.key, later.key)
    with pytest.raises(InvalidArgumentError, match="give a mask"):
        cache.truncate(3)
    for arrays in ((memory.copy(), value), (memory, value.copy()), (memory,)):
        with pytest.raises(ChumokuError, match="^cache: got one that holds other positions"):
            mha(x, *arrays, cache=cache)
    cache.truncate(0)
    assert_near(mha(x, memory.copy(), value, cache=cache), expected)


def test_batch_that_does_not_fit_a_held_memory() -> None:
    mha = random_module(16, 4)
    cache = Cache()
    mha(draw(3, 2, 16), draw(3, 7, 16), cache=cache)
    with pytest.raises(InvalidArgumentError, match=r"^cache: got leading axes \(3,\)"):
        mha(draw(2, 2, 16), cache=cache)


def test_wrong_uses_of_a_cache() -> None:
    mha = random_module(16, 4)
    x = draw(2, 3, 16)
    cache = Cache()
    mha(x, cache=cache)
    with pytest.raises(InvalidArgumentError, match=r"^cache: got keys of leading axes \(2,\)"):
        mha(draw(3, 3, 16), cache=cache)
    with pytest.raises(InvalidArgumentError, match="another module filled"):
        random_module(16, 4, seed=5)(x, cache=cache)
    with pytest.raises(InvalidArgumentError, match="holds other positions"):
        mha(x, x, cache=cache)
    with pytest.raises(InvalidTypeError, match="^cache: got dict"):
        mha(x, cache={})  # type: ignore[arg-type]
    assert len(cache) == 3
    twin = pickle.loads(pickle.dumps(mha)).without({0})
    twin(x, cache=cache)
    assert len(cache) == 6


# Files


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"bias": False, "kv_heads": 2, "key_width": 5}])
def test_save_and_load(tmp_path: Path, dtype: Any, options: dict[str, Any]) -> None:
    mha = random_module(24, 4, dtype=dtype, **options).without({3, 1})
    file = tmp_path / "attention.safetensors"
    mha.save(file)
    twin = MultiHeadAttention.load(file)
    assert repr(twin) == repr(mha)
    assert twin.parameters.keys() == mha.parameters.keys()
    for name, array in mha.parameters.items():
        assert twin.parameters[name].dtype == array.dtype
        np.testing.assert_array_equal(twin.parameters[name], array)
    x, memory = draw(5, 24, dtype=dtype), draw(6, mha.key_width, dtype=dtype)
    np.testing.assert_array_equal(twin(x, memory), mha(x, memory))
    with pytest.raises(InvalidArgumentError, match="^heads: got 8, expected 4"):
        MultiHeadAttention.load(file, heads=8)


def test_safetensors_itself_reads_and_writes_them(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    mha = random_module(24, 4, kv_heads=2)
    mha.save(tmp_path / "ours.safetensors")
    read = safetensors.load_file(tmp_path / "ours.safetensors")
    assert int(read["heads"]) == 4
    for name, array in mha.parameters.items():
        np.testing.assert_array_equal(read[name], array)
    layers = {f"layers.{i}.{name}": array for i in (0, 1) for name, array in read.items()}
    layers["embedding"] = np.zeros((2, 2, 2), np.int64)
    safetensors.save_file(layers, tmp_path / "layers.safetensors")
    twin = MultiHeadAttention.load(tmp_path / "layers.safetensors", prefix="layers.1.")
    np.testing.assert_array_equal(twin(draw(3, 24)), mha(draw(3, 24)))
    with pytest.raises(InvalidArgumentError, match=r"Give prefix=, such as 'layers.0.'"):
        MultiHeadAttention.load(tmp_path / "layers.safetensors", 4)


def test_views_are_saved_whole(tmp_path: Path) -> None:
    joined = draw(3, 8, 8)
    names = ("query_matrix", "key_matrix", "value_matrix")
    parameters = {name: matrix.T for name, matrix in zip(names, joined, strict=True)}
    mha = MultiHeadAttention.from_parameters({**parameters, "output_matrix": draw(8, 8)}, 2)
    mha.save(tmp_path / "views.safetensors")
    np.testing.assert_array_equal(
        read_tensors(tmp_path / "views.safetensors")["value_matrix"], joined[2].T
    )


# Given parameters


def test_given_parameters_are_not_copied() -> None:
    given = {name: array.copy() for name, array in random_module(8, 2).parameters.items()}
    mha = MultiHeadAttention.from_parameters(given, heads=2)
    for name, array in given.items():
        assert np.shares_memory(mha.parameters[name], array)
        assert array.flags.writeable
    assert MultiHeadAttention.from_parameters({**given, "key_bias": None}, 2).key_bias is None


def test_widths_that_differ_between_heads_and_module() -> None:
    parameters = {
        "query_matrix": draw(12, 10, seed=1),
        "key_matrix": draw(6, 10, seed=2),
        "value_matrix": draw(10, 10, seed=3),
        "output_matrix": draw(7, 20, seed=4),
        "value_bias": draw(10, seed=5),
    }
    mha = MultiHeadAttention.from_parameters(parameters, heads=4)
    assert (mha.kv_heads, mha.width) == (2, 10)
    x = draw(6, 10)
    trace = mha.trace(x)
    assert_near(trace.output, by_hand(mha, x)[0])
    assert_near(trace.parts.sum(axis=0), trace.output)


@pytest.mark.parametrize(
    ("change", "heads", "error", "message"),
    [
        ({"query_matrix": None}, 4, InvalidArgumentError, "nothing for query_matrix"),
        ({"extra": np.ones(3)}, 4, InvalidArgumentError, "also extra"),
        ({"in_proj_weight": draw(24, 8)}, 4, InvalidArgumentError, "query_matrix twice"),
        ({"bias_k": draw(1, 1, 8)}, 4, UnavailableError, "bias_k: got one more learned key"),
        ({"in_proj_bias": draw(25)}, 4, InvalidArgumentError, r"in_proj_bias: got shape \(25,\)"),
        ({"key_matrix": draw(8, 8, 8)}, 4, InvalidArgumentError, "key_matrix: got shape"),
        ({"key_matrix": draw(8)}, 4, InvalidArgumentError, "key_matrix: got shape"),
        ({"key_matrix": draw(6, 8)}, 4, InvalidArgumentError, "key_matrix: got shape"),
        ({"key_matrix": draw(3, 8)}, 4, InvalidArgumentError, "key_matrix: got shape"),
        ({"value_matrix": draw(9, 8)}, 4, InvalidArgumentError, "value_matrix: got shape"),
        ({"output_matrix": draw(8, 7)}, 4, InvalidArgumentError, "output_matrix: got shape"),
        ({"query_bias": draw(7)}, 4, InvalidArgumentError, "query_bias: got shape"),
        ({"query_matrix": draw(0, 8)}, 4, InvalidArgumentError, "query_matrix: got shape"),
        ({"key_matrix": draw(8, 8, dtype=np.float64)}, 4, InvalidTypeError, "key_matrix: got"),
        ({"key_matrix": draw(8, 8, dtype=np.float16)}, 4, InvalidTypeError, "key_matrix: got"),
        ({"key_matrix": [["a"]]}, 4, InvalidTypeError, "key_matrix: got"),
        ({"key_matrix": [[1.0], [1.0, 2.0]]}, 4, InvalidTypeError, "key_matrix: got list"),
        ({}, 3, InvalidArgumentError, "Is heads=3 right"),
        ({}, 16, InvalidArgumentError, "Is heads=16 right"),
        ({}, None, InvalidArgumentError, "heads: got None"),
        ({}, 0, InvalidArgumentError, "heads: got 0"),
        ({}, 4.0, InvalidTypeError, "heads: got 4.0"),
        ({"heads": np.array([4])}, None, InvalidTypeError, "heads: got"),
        ({"silenced": np.array([4])}, 4, InvalidArgumentError, "heads: got head 4"),
    ],
)
def test_wrong_parameters(change: Any, heads: Any, error: type[ChumokuError], message: str) -> None:
    given = {**MultiHeadAttention(8, 4, bias=False).parameters, **change}
    with pytest.raises(error, match=message):
        MultiHeadAttention.from_parameters(given, heads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 10, "heads": 4}, "heads: got 4, expected a divisor of the width 10"),
        ({"width": 0}, "width: got 0"),
        ({"heads": 2.0}, "heads: got 2.0"),
        ({"heads": True}, "heads: got True"),
        ({"kv_heads": 3}, "kv_heads: got 3, expected a divisor of 8 heads"),
        ({"kv_heads": 16}, "kv_heads: got 16"),
        ({"key_width": -1}, "key_width: got -1"),
        ({"value_width": 0}, "value_width: got 0"),
        ({"dtype": np.float16}, "dtype: got float16"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_wrong_sizes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ChumokuError, match=f"^{message}"):
        MultiHeadAttention(**options)


# Wrong inputs


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ((draw(5, 7),), {}, r"x: got shape \(5, 7\), expected \(..., length, 8\)"),
        ((draw(8),), {}, "x: got shape"),
        ((draw(5, 8, dtype=np.float64),), {}, "x: got float64, expected float32"),
        (([[1.0] * 8],), {}, "x: got builtins.list, expected a NumPy array"),
        ((draw(5, 8), draw(5, 7)), {}, "memory: got shape"),
        ((draw(5, 8), draw(5, 8), draw(5, 7)), {}, "value: got shape"),
        ((draw(5, 8), draw(5, 8), draw(4, 8)), {}, "value: got 4 positions, expected 5 positions"),
        ((draw(5, 8), None, draw(5, 8)), {}, "value: got values alone"),
        ((draw(2, 5, 8), draw(3, 5, 8)), {}, r"memory: got leading axes \(3,\)"),
        ((draw(5, 8),), {"mask": np.ones((4, 4), bool)}, "mask: got"),
        ((draw(5, 8),), {"mask": np.ones((5, 5))}, "mask: got"),
        ((draw(5, 8),), {"bias": np.ones((4, 4), np.float32)}, "bias: got"),
        ((draw(5, 8),), {"scale": "1"}, "scale: got"),
        ((draw(5, 8),), {"watch": True}, "watch: got"),
    ],
)
def test_wrong_inputs(arrays: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ChumokuError, match=f"^{message}"):
        MultiHeadAttention(8, 4)(*arrays, **options)


def test_memory_that_cannot_be_the_value() -> None:
    mha = MultiHeadAttention(8, 4, key_width=5, value_width=6)
    with pytest.raises(InvalidArgumentError, match=r"^memory: .* Give value= too"):
        mha(draw(3, 8), draw(4, 5))


@pytest.mark.parametrize("heads", [{4}, {-1}, {0, 7}, [1.0], "0"])
def test_heads_that_are_not_there(heads: Any) -> None:
    with pytest.raises(ChumokuError, match="^heads: got"):
        MultiHeadAttention(8, 4).without(heads)


# torch.nn.MultiheadAttention


TORCH_CASES = [
    {"embed_dim": 512, "num_heads": 8},
    {"embed_dim": 24, "num_heads": 4, "bias": False},
    {"embed_dim": 24, "num_heads": 3, "kdim": 10, "vdim": 7},
    {"embed_dim": 24, "num_heads": 2, "kdim": 10, "bias": False},
    {"embed_dim": 384, "num_heads": 12},
]


@pytest.fixture(params=TORCH_CASES, ids=lambda case: "-".join(map(str, case.values())))
def pair(request: pytest.FixtureRequest) -> tuple[Any, MultiHeadAttention]:
    """A torch module with biases that are not 0, and ours of its parameters."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    module = torch.nn.MultiheadAttention(**request.param, batch_first=True).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "bias" in name:
                parameter.normal_(0, 0.3)
    mha = MultiHeadAttention.from_parameters(module.state_dict(), request.param["num_heads"])
    return module, mha


def test_equal_to_torch(pair: tuple[Any, MultiHeadAttention]) -> None:
    import torch

    module, mha = pair
    x, memory = draw(2, 9, mha.width), draw(2, 7, mha.key_width, seed=1)
    value = draw(2, 7, mha.value_width, seed=2)
    looks = np.random.default_rng(0).random((9, 7)) < 0.6
    looks[:, 0] = True
    valid = np.arange(7) < np.array([[4], [7]])
    with torch.no_grad():
        tensors = [torch.from_numpy(a) for a in (x, memory, value)]
        plain, weights = module(*tensors, average_attn_weights=False)
        hidden, _ = module(*tensors, attn_mask=torch.from_numpy(~looks))
        padded, _ = module(*tensors, key_padding_mask=torch.from_numpy(~valid))
    trace = mha.trace(x, memory, value)
    assert_near(trace.output, plain.numpy(), 1e-6)
    np.testing.assert_allclose(trace.weights(), weights.numpy(), atol=2e-6)
    assert_near(mha(x, memory, value, mask=looks), hidden.numpy(), 1e-6)
    assert_near(mha(x, memory, value, mask=Lengths([4, 7])), padded.numpy(), 1e-6)
    if mha.key_width == mha.value_width == mha.width:
        with torch.no_grad():
            triangle = torch.ones(9, 9, dtype=torch.bool).triu(1)
            expected, _ = module(*[tensors[0]] * 3, attn_mask=triangle, need_weights=False)
        assert_near(mha(x, mask=Causal()), expected.numpy(), 1e-6)


def test_torch_parameters_are_shared(pair: tuple[Any, MultiHeadAttention]) -> None:
    module, mha = pair
    arrays = [parameter.detach().numpy() for parameter in module.parameters()]
    for array in mha.parameters.values():
        assert any(np.shares_memory(array, theirs) for theirs in arrays)
    named = dict(module.named_parameters())
    again = MultiHeadAttention.from_parameters(named, mha.heads)
    np.testing.assert_array_equal(again.output_matrix, mha.output_matrix)


def test_a_torch_layer_from_a_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    stack = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(24, 4, batch_first=True), 2, enable_nested_tensor=False
    ).eval()
    file = tmp_path / "model.safetensors"
    safetensors.save_file(stack.state_dict(), file)
    mha = MultiHeadAttention.load(file, heads=4, prefix="layers.1.self_attn.")
    x = draw(5, 24)
    with torch.no_grad():
        expected, _ = stack.layers[1].self_attn(*[torch.from_numpy(x)] * 3)
    assert_near(mha(x), expected.numpy(), 1e-6)
    with pytest.raises(InvalidArgumentError, match=r"such as 'layers.0.self_attn.'"):
        MultiHeadAttention.load(file, heads=4)
    with pytest.raises(InvalidArgumentError, match="^heads: got None"):
        MultiHeadAttention.load(file, prefix="layers.1.self_attn.")


def test_what_torch_has_and_chumoku_refuses() -> None:
    torch = pytest.importorskip("torch")
    extra = torch.nn.MultiheadAttention(8, 2, add_bias_kv=True)
    with pytest.raises(UnavailableError, match="add_bias_kv=True"):
        MultiHeadAttention.from_parameters(extra.state_dict(), 2)
    half = torch.nn.MultiheadAttention(8, 2, dtype=torch.bfloat16)
    with pytest.raises(InvalidTypeError, match=r"Of a tensor, give tensor.float\(\).cpu\(\)"):
        MultiHeadAttention.from_parameters(half.state_dict(), 2)
    mha = MultiHeadAttention(8, 2)
    for arrays in ((torch.zeros(3, 8),), (draw(3, 8), torch.zeros(3, 8))):
        with pytest.raises(InvalidTypeError, match=r"got torch.Tensor, .*detach\(\).cpu\(\).numpy"):
            mha(*arrays)


def test_torch_is_not_imported() -> None:
    code = (
        "import sys, numpy, chumoku; x = numpy.ones((3, 8), numpy.float32);"
        "chumoku.MultiHeadAttention(8, 2)(x); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

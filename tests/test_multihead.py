"""MultiHeadAttention against the definition by hand, against torch, and against itself."""

from __future__ import annotations

import copy
import pickle
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

Array = NDArray[Any]
same, close = np.testing.assert_array_equal, np.testing.assert_allclose


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


def by_hand(mha, x, memory=None, value=None, allowed=True, scale=None) -> tuple[Array, Array]:
    """Output and weights (heads, queries, keys) of one sequence: loops over heads in double."""
    memory = x if memory is None else memory
    value = memory if value is None else value
    p = {name: array.astype(np.float64) for name, array in mha.parameters.items()}

    def project(part, source, heads):
        flat = source.astype(np.float64) @ p[f"{part}_matrix"].T + p.get(f"{part}_bias", 0.0)
        return flat.reshape(len(source), heads, -1)

    query = project("query", x, mha.heads)
    key, values = project("key", memory, mha.kv_heads), project("value", value, mha.kv_heads)
    every = np.broadcast_to(allowed, (mha.heads, len(x), len(memory)))
    mixed, weights = [], []
    for head in range(mha.heads):
        shared = head // (mha.heads // mha.kv_heads)
        scores = query[:, head] @ key[:, shared].T * (scale or query.shape[-1] ** -0.5)
        powers = np.where(every[head], np.exp(scores - scores.max(initial=0.0)), 0.0)
        total = powers.sum(axis=-1, keepdims=True)
        weights.append(np.divide(powers, total, out=np.zeros_like(powers), where=total > 0))
        mixed.append(weights[-1] @ values[:, shared] * (head not in mha.silenced))
    joined = np.concatenate(mixed, axis=-1)
    return joined @ p["output_matrix"].T + p.get("output_bias", 0.0), np.stack(weights)


def assert_near(got: Array, expected: Array, tolerance: float = 2e-6) -> None:
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


@settings(max_examples=60)
@given(
    sizes=st.tuples(st.sampled_from([1, 3, 8, 17]), st.integers(1, 3), st.integers(1, 3)),
    lengths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    widths=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    options=st.fixed_dictionaries(
        {"bias": st.booleans(), "dtype": st.sampled_from([np.float32, np.float64])}
    ),
    cross=st.booleans(),
    seed=st.integers(0, 99),
)
def test_definition(sizes, lengths, widths, options, cross, seed):
    head_width, kv_heads, group = sizes
    heads, dtype = kv_heads * group, options["dtype"]
    if cross:
        options |= {"key_width": widths[0], "value_width": widths[1]}
    mha = random_module(heads * head_width, heads, seed, kv_heads=kv_heads, **options)
    x = draw(lengths[0], mha.width, seed=seed, dtype=dtype)
    others = [draw(lengths[1], width, seed=seed + 1, dtype=dtype) for width in widths]
    memory, value = others if cross else (None, None)
    allowed = np.random.default_rng(seed).random((heads, lengths[0], lengths[cross])) < 0.7
    output = mha(x, memory, value, mask=allowed)
    assert output.dtype == dtype
    expected, _ = by_hand(mha, x, memory, value, allowed)
    assert_near(output, expected, 5e-6 if dtype == np.float32 else 1e-12)


def test_leading_axes_are_independent_sequences() -> None:
    mha = random_module(24, 4, kv_heads=2)
    x = draw(2, 3, 5, 24)
    output, seen = mha(x, mask=Causal(), watch=Watch(entropy=True))
    assert seen.entropy.shape == (2, 3, 4, 5)
    for place in np.ndindex(2, 3):
        expected, weights = by_hand(mha, x[place], allowed=np.tri(5, dtype=bool))
        assert_near(output[place], expected)
        entropy = -np.where(weights > 0, weights * np.log(np.maximum(weights, 1e-300)), 0).sum(-1)
        close(seen.entropy[place], entropy, atol=1e-5)


def test_memory_and_value() -> None:
    mha = random_module(12, 3)
    x, memory, value = draw(4, 5, 12), draw(7, 12, seed=1), draw(7, 12, seed=2)
    for place in range(4):
        assert_near(mha(x, memory)[place], by_hand(mha, x[place], memory)[0])
    assert_near(mha(x[0], memory[None].repeat(2, 0))[1], by_hand(mha, x[0], memory)[0])
    same(mha(x, memory), mha(x, memory, memory))
    same(mha(x), mha(x, x, x))
    assert_near(mha(x[0], memory, value), by_hand(mha, x[0], memory, value)[0])


def test_masks_scale_and_bias() -> None:
    mha = random_module(16, 2)
    x = draw(6, 16)
    i, j = np.ogrid[:6, :6]
    band = (j >= i - 1) & (j <= i + 2)
    assert_near(mha(x, mask=Window(1, 2)), by_hand(mha, x, allowed=band)[0])
    hides = np.where(band, 0, -np.inf).astype(np.float32)
    assert_near(mha(x, bias=hides), by_hand(mha, x, allowed=band)[0])
    assert_near(mha(x, scale=1.0), by_hand(mha, x, scale=1.0)[0])
    assert (mha(x, mask=np.zeros((6, 6), bool)) == mha.output_bias).all()


def test_padding_of_nan_is_not_felt() -> None:
    mha = random_module(16, 2)
    x = draw(2, 6, 16)
    x[0, 4:] = np.nan
    output = mha(x, mask=Lengths([4, 6], queries=[4, 6]))
    assert_near(output[0, :4], by_hand(mha, x[0, :4])[0])
    assert_near(output[1], by_hand(mha, x[1])[0])
    assert (output[0, 4:] == mha.output_bias).all()


@pytest.mark.parametrize("shape", [(0, 16), (3, 0, 16), (0, 4, 16), (2, 0, 0, 16)])
def test_zero_sizes(shape: tuple[int, ...]) -> None:
    mha = random_module(16, 4)
    x = np.zeros(shape, np.float32)
    assert mha(x, mask=Causal()).shape == shape
    trace = mha.trace(x)
    assert trace.parts.shape == (*shape[:-2], 4, *shape[-2:])
    assert trace.norms.shape == (*shape[:-2], 4, shape[-2])
    assert (mha(draw(3, 16), x[..., :0, :]) == mha.output_bias).all()


def test_inputs_of_any_strides_are_read_and_not_written() -> None:
    mha = random_module(16, 4)
    x = draw(3, 5, 16)
    expected = mha(x, mask=Causal())
    for strided in (np.asfortranarray(x), x[:, ::-1].copy()[:, ::-1]):
        before = strided.copy()
        strided.flags.writeable = False
        assert_near(mha(strided, mask=Causal()), expected)
        same(strided, before)
    repeated = np.broadcast_to(x[0], (4, 5, 16))
    assert_near(mha(repeated)[3], mha(x[0]))


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
    same(matrix, MultiHeadAttention().query_matrix)
    assert (matrix != MultiHeadAttention(seed=1).query_matrix).any()
    assert (matrix != mha.key_matrix).any()
    double = MultiHeadAttention(dtype=np.float64)
    same(double.query_matrix.astype(np.float32), matrix)
    mha = MultiHeadAttention(24, 6, kv_heads=2, key_width=10, value_width=7, bias=False)
    shapes = [array.shape for array in mha.parameters.values()]
    assert shapes == [(24, 24), (8, 10), (8, 7), (24, 24)]
    assert mha.query_bias is None
    assert (mha.key_width, mha.value_width) == (10, 7)
    assert MultiHeadAttention(8, 2, key_width=5).value_width == 5


def test_frozen_views_of_what_is_given() -> None:
    given = {name: array.copy() for name, array in random_module(8, 2).parameters.items()}
    mha = MultiHeadAttention.from_parameters({**given, "key_bias": None}, heads=2)
    assert mha.key_bias is None
    for name, array in mha.parameters.items():
        assert np.shares_memory(given[name], array)
        assert given[name].flags.writeable
    with pytest.raises(AttributeError):
        mha.heads = 4  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        mha.query_matrix[0, 0] = 1
    x = draw(3, 8)
    for twin in (pickle.loads(pickle.dumps(mha)), copy.deepcopy(mha), copy.copy(mha)):
        same(twin(x), mha(x))
    assert repr(mha.without({1})) == (
        "MultiHeadAttention(width=8, heads=2, kv_heads=2, dtype=float32, silenced=[1])"
    )


def test_watching_changes_no_bit() -> None:
    mha = random_module(24, 4)
    x = draw(2, 9, 24)
    plain = mha(x, mask=Causal())
    watch = Watch(top=3, entropy=True, saturation=True, distance=True)
    output, seen = mha(x, mask=Causal(), watch=watch)
    for again in (output, mha.trace(x, mask=Causal()).output):
        same(plain, again)
    assert seen.top_keys.shape == (2, 4, 9, 3)
    with pytest.raises(UnavailableError):
        _ = mha(x, watch=Watch())[1].entropy
    with chumoku.recording(Watch(entropy=True), inputs=True) as seen, chumoku.label("layer 0"):
        mha(x)
    entry = seen["layer 0"]
    assert entry.statistics.entropy.shape == (2, 4, 9)
    close(entry.weights()[1], by_hand(mha, x[1])[1], atol=1e-6)


@pytest.mark.parametrize("silenced", [set(), {1, 2}])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_trace(silenced: set[int], batch: tuple[int, ...]) -> None:
    mha = random_module(24, 4, kv_heads=2, key_width=10, value_width=6).without(silenced)
    x, memory, value = draw(*batch, 5, 24), draw(*batch, 7, 10), draw(*batch, 7, 6)
    allowed = np.arange(7) <= np.arange(5)[:, None] + 1
    trace = mha.trace(x, memory, value, mask=allowed, scale=0.7, watch=Watch(entropy=True))
    assert trace.query.shape == (*batch, 4, 5, 6)
    assert trace.key.shape == trace.value.shape == (*batch, 2, 7, 6)
    assert trace.mixed.shape == (*batch, 4, 5, 6)
    # Views of one product each: positions lie one behind another, heads inside them.
    for projected in (trace.query, trace.key, trace.value):
        assert projected.swapaxes(-3, -2).flags.c_contiguous
    assert trace.seen.entropy.shape == trace.norms.shape == (*batch, 4, 5)
    assert "parts" not in trace.__dict__
    assert_near(trace.parts.sum(axis=-3) + mha.output_bias, trace.output)
    assert trace.parts is trace.parts
    close(trace.norms, np.linalg.norm(trace.parts, axis=-1), rtol=1e-5)
    assert not trace.norms[..., sorted(silenced), :].any()
    weights = trace.weights()
    same(weights == 0, ~np.broadcast_to(allowed, weights.shape))
    mixed = weights @ trace.value.repeat(2, axis=-3)
    mixed[..., sorted(silenced), :, :] = 0
    assert_near(trace.mixed, mixed)
    first = (0,) * len(batch)
    expected = by_hand(mha, x[first], memory[first], value[first], allowed, 0.7)[1]
    close(weights[first], expected, atol=1e-6)
    block = trace.weights(rows=[1, 4], keys=slice(2, 5))
    same(block, weights[..., [1, 4], 2:5])
    assert trace.weights(rows=2).shape == (*batch, 4, 1, 7)


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
    same(mha.without([0]).without({3})(x), silenced(x))
    same(mha.without(())(x), mha(x))
    assert (mha.without(range(4))(x) == mha.output_bias).all()


def test_silenced_heads_still_look_and_their_nan_is_gone() -> None:
    mha = random_module(8, 2)
    x = draw(3, 8)
    seen, as_before = (m(x, watch=Watch(top=2))[1] for m in (mha.without({0}), mha))
    same(seen.top_keys, as_before.top_keys)
    same(seen.lse, as_before.lse)
    matrix = mha.value_matrix.copy()
    matrix[0] = np.nan
    broken = MultiHeadAttention.from_parameters({**mha.parameters, "value_matrix": matrix}, 2)
    assert np.isnan(broken(x)).all()
    same(broken.without({0})(x), mha.without({0})(x))


@settings(max_examples=40)
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
    cache, start = Cache(), 0
    for step in steps:
        part = np.s_[..., start : start + step, :]
        output, facts = mha(x[part], mask=Causal(), cache=cache, watch=watch)
        start += step
        assert len(cache) == start
        close(output, whole[part], atol=2e-6)
        rows = np.s_[..., start - step : start]
        close(facts.lse, seen.lse[rows], atol=2e-6)
        close(facts.distance, seen.distance[rows], atol=1e-5)


def test_growth_is_amortised() -> None:
    mha = random_module(8, 2)
    cache = Cache()
    buffers: list[Any] = [None]
    for step in draw(300, 8):
        key = mha.trace(step[None], mask=Causal(), cache=cache).key
        assert key.shape == (2, len(cache), 4)
        if key.base is not buffers[-1]:
            buffers.append(key.base)
    assert 300 == len(cache) <= buffers[-1].shape[-2] <= 600
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
    # One by one: the first lands where the draft was, in room that the buffer has.
    steps = [mha(x[:, i : i + 1], mask=Causal(), cache=cache) for i in range(5, 9)]
    close(np.concatenate(steps, axis=1), mha(x, mask=Causal())[:, 5:], atol=2e-6)
    same(drafted.key, kept)
    cache.truncate(0)
    random_module(8, 2)(draw(3, 8), cache=cache)
    for wrong in (-1, 4, True, 1.5):
        with pytest.raises(ChumokuError, match="^length: got"):
            cache.truncate(wrong)  # type: ignore[arg-type]
    assert len(cache) == 3


def test_copies_of_a_cache_go_their_own_ways() -> None:
    mha = random_module(16, 4)
    x, ways = draw(6, 16), [draw(1, 16, seed=seed) for seed in (1, 2, 3)]
    cache = Cache()
    mha(x[:5], mask=Causal(), cache=cache)
    mha(x[5:], mask=Causal(), cache=cache)
    caches = [cache, copy.copy(cache), copy.deepcopy(cache)]
    for way, own in zip(ways, caches, strict=True):
        mha(way, mask=Causal(), cache=own)
    for way, own in zip(ways, caches, strict=True):
        whole = mha(np.concatenate([x, way, x[:1]]), mask=Causal())
        close(mha(x[:1], mask=Causal(), cache=own), whole[-1:], atol=2e-6)


def test_a_failed_step_leaves_the_cache() -> None:
    mha = random_module(16, 4)
    x = draw(9, 16)
    cache = Cache()
    with pytest.raises(InvalidArgumentError):
        mha(x[:5], mask=np.ones((2, 2), bool), cache=cache)
    assert not cache
    mha(x[:5], mask=Causal(), cache=cache)
    mha(x[5:6], mask=Causal(), cache=cache)
    with pytest.raises(InvalidArgumentError):
        mha(draw(2, 16, seed=1), mask=np.ones((2, 2), bool), cache=cache)
    assert len(cache) == 6
    output = mha(x[6:], mask=Causal(), cache=cache)
    close(output, mha(x, mask=Causal())[6:], atol=2e-6)


def test_cross_attention_projects_its_memory_once() -> None:
    mha = random_module(16, 4, key_width=10, value_width=6)
    x, memory, value = draw(5, 16), draw(7, 10, seed=1), draw(7, 6, seed=2)
    expected = mha(x, memory, value)
    cache = Cache()
    first = mha.trace(x[:1], memory, value, cache=cache)
    again = mha.trace(x[1:3], memory, value, cache=cache)
    alone = mha.trace(x[3:], cache=cache)
    output = np.concatenate([first.output, again.output, alone.output])
    close(output, expected, atol=2e-6)
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
    cross = Cache()
    mha(draw(3, 2, 16), draw(3, 7, 16), cache=cross)
    with pytest.raises(InvalidArgumentError, match=r"^cache: got leading axes \(3,\)"):
        mha(x, cache=cross)
    twin = pickle.loads(pickle.dumps(mha)).without({0})
    twin(x, cache=cache)
    assert len(cache) == 6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"bias": False, "kv_heads": 2, "key_width": 5}])
def test_save_and_load(tmp_path: Path, dtype: Any, options: dict[str, Any]) -> None:
    mha = random_module(24, 4, dtype=dtype, **options).without({3, 1})
    mha.save(tmp_path / "mha.safetensors")
    twin = MultiHeadAttention.load(tmp_path / "mha.safetensors")
    assert repr(twin) == repr(mha)
    assert twin.parameters.keys() == mha.parameters.keys()
    for name, array in mha.parameters.items():
        assert twin.parameters[name].dtype == array.dtype
        same(twin.parameters[name], array)
    x, memory = draw(5, 24, dtype=dtype), draw(6, mha.key_width, dtype=dtype)
    same(twin(x, memory), mha(x, memory))
    with pytest.raises(InvalidArgumentError, match="^heads: got 8, expected 4"):
        MultiHeadAttention.load(tmp_path / "mha.safetensors", heads=8)


def test_safetensors_itself_reads_and_writes_them(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    mha = random_module(24, 4, kv_heads=2)
    file = tmp_path / "attention.safetensors"
    mha.save(file)
    read = safetensors.load_file(file)
    assert int(read["heads"]) == 4
    for name, array in mha.parameters.items():
        same(read[name], array)
    layers = {f"layers.{i}.{name}": array for i in (0, 1) for name, array in read.items()}
    safetensors.save_file({**layers, "embedding": np.zeros((2, 2, 2), np.int64)}, file)
    same(MultiHeadAttention.load(file, prefix="layers.1.")(draw(3, 24)), mha(draw(3, 24)))
    with pytest.raises(InvalidArgumentError, match=r"Give prefix=, such as 'layers.0.'"):
        MultiHeadAttention.load(file, 4)


def test_widths_that_differ_between_heads_and_module(tmp_path: Path) -> None:
    shapes = {"query": (12, 10), "key": (6, 10), "value": (10, 10), "output": (7, 20)}
    parameters = {f"{part}_matrix": draw(*shape) for part, shape in shapes.items()}
    parameters["query_matrix"] = np.asfortranarray(parameters["query_matrix"])
    mha = MultiHeadAttention.from_parameters({**parameters, "value_bias": draw(10)}, heads=4)
    assert (mha.kv_heads, mha.width) == (2, 10)
    x = draw(6, 10)
    trace = mha.trace(x)
    assert_near(trace.output, by_hand(mha, x)[0])
    assert_near(trace.parts.sum(axis=0), trace.output)
    mha.save(tmp_path / "strided.safetensors")
    assert_near(MultiHeadAttention.load(tmp_path / "strided.safetensors")(x), trace.output)


@pytest.mark.parametrize(
    "options",
    [
        {"embed_dim": 512, "num_heads": 8},
        {"embed_dim": 24, "num_heads": 4, "bias": False},
        {"embed_dim": 24, "num_heads": 3, "kdim": 10, "vdim": 7},
        {"embed_dim": 24, "num_heads": 2, "kdim": 10, "bias": False},
    ],
)
def test_equal_to_torch(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    module = torch.nn.MultiheadAttention(**options, batch_first=True).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "bias" in name:
                parameter.normal_(0, 0.3)
    mha = MultiHeadAttention.from_parameters(module.state_dict(), options["num_heads"])
    arrays = [parameter.detach().numpy() for parameter in module.parameters()]
    for array in mha.parameters.values():
        assert any(np.shares_memory(array, theirs) for theirs in arrays)
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
    close(trace.weights(), weights.numpy(), atol=2e-6)
    assert_near(mha(x, memory, value, mask=looks), hidden.numpy(), 1e-6)
    assert_near(mha(x, memory, value, mask=Lengths([4, 7])), padded.numpy(), 1e-6)
    if mha.key_width == mha.value_width == mha.width:
        with torch.no_grad():
            triangle = torch.ones(9, 9, dtype=torch.bool).triu(1)
            expected, _ = module(*[tensors[0]] * 3, attn_mask=triangle, need_weights=False)
        assert_near(mha(x, mask=Causal()), expected.numpy(), 1e-6)


def test_a_torch_layer_from_a_file_and_what_is_refused(tmp_path: Path) -> None:
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
    extra = torch.nn.MultiheadAttention(8, 2, add_bias_kv=True)
    with pytest.raises(UnavailableError, match="add_bias_kv=True"):
        MultiHeadAttention.from_parameters(extra.state_dict(), 2)
    half = torch.nn.MultiheadAttention(8, 2, dtype=torch.bfloat16)
    with pytest.raises(
        InvalidTypeError, match=r"got bfloat16, expected float32 or float64\. Convert"
    ):
        MultiHeadAttention.from_parameters(half.state_dict(), 2)
    for arrays in ((torch.zeros(3, 24),), (x, torch.zeros(3, 24))):
        with pytest.raises(InvalidTypeError, match=r"got torch.Tensor, .*detach\(\).cpu\(\).numpy"):
            mha(*arrays)

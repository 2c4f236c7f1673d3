"""Every kernel over the same cases, against the definition."""

from dataclasses import replace

import numpy as np
import pytest
from cases import (
    CASES,
    DTYPES,
    EVERYTHING,
    FLOAT32,
    FLOAT64,
    HOST_KERNELS,
    LAYOUTS,
    ZEROS,
    Case,
    assert_close,
    call,
    everything,
    exact,
    one_head,
    poisoned_memory,
    run,
)
from hypothesis import given
from hypothesis import strategies as st

from chumoku.dropout import Dropout
from chumoku.kernels import reference
from chumoku.mask import Causal, Chunks, Custom, Documents, Lengths, Prefix, Window
from chumoku.statistics import Watch

pytestmark = pytest.mark.parametrize("kernel", HOST_KERNELS, ids=[k.name for k in HOST_KERNELS])

SMALL = Case((2, 4, 33, 16), (2, 2, 70, 16), 24)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES + ZEROS, ids=str)
def test_cases(kernel, case, dtype):
    assert_close(kernel, call(*case.arrays(dtype), watch=EVERYTHING))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES + ZEROS, ids=str)
def test_causal_cases(kernel, case, dtype):
    made = call(*case.arrays(dtype, seed=1), mask=Causal(), watch=EVERYTHING)
    assert_close(kernel, made)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [SMALL, one_head(9, 13, 5, 3)], ids=str)
def test_layouts(kernel, case, layout, dtype):
    q, k, v = (LAYOUTS[layout](a) for a in case.arrays(dtype))
    made = call(q, k, v, mask=Window(9, 3), watch=EVERYTHING)
    before = [np.array(a) for a in (q, k, v)]
    assert_close(kernel, made)
    for old, new in zip(before, (q, k, v), strict=True):
        assert np.array_equal(old, new)


MASKS = {
    "top-left triangle": Causal(0),
    "offset for each entry": Causal(np.array([3, -40])),
    "far offsets": Causal(np.array([2**40, -(2**40)])),
    "window": Window(4, 0),
    "window ahead": Window(0, 7, offset=11),
    "wide window": Window(2**62, 2**62),
    "padding": Lengths(np.array([50, 0]), np.array([20, 33])),
    "padding on the left": Lengths(np.array([50, 1]), np.array([20, 3]), side="left"),
    "causal and padding": Causal() & Lengths(np.array([50, 13]), np.array([20, 33])),
    "documents": Documents(np.arange(33) // 7, np.arange(70) // 9),
    "documents, each entry its own": Documents(
        np.arange(66).reshape(2, 33) // 11, np.arange(140).reshape(2, 70) // 20
    ),
    "scattered documents": Documents(np.arange(33) % 3, np.arange(70) % 4),
    "chunks": Chunks(8),
    "prefix": Causal(0) | Prefix(np.array([5, 9])),
    "much": (Causal(20) & Window(30, 30, 20) & Lengths(60))
    | (Prefix(3) & Documents([1] * 33, [1] * 70)),
    "custom": Custom(lambda b, h, i, j: (i + j + h + b) % 3 != 0),
    "array": np.random.default_rng(0).random((33, 70)) < 0.4,
    "array for heads": np.random.default_rng(1).random((4, 1, 70)) < 0.4,
    "whole array": np.random.default_rng(2).random((2, 4, 33, 70)) < 0.1,
    "array and mask": np.random.default_rng(3).random((33, 1)) < 0.5,
    "nothing": np.zeros((1, 1), bool),
}


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_masks(kernel, mask, dtype):
    assert_close(kernel, call(*SMALL.arrays(dtype), mask=MASKS[mask], watch=EVERYTHING))


rng = np.random.default_rng(5)
OPTIONS = {
    "scale": {"scale": 0.3},
    "negative scale": {"scale": -1.0},
    "scale 0": {"scale": 0.0},
    "scale below float32": {"scale": 1e-200},
    "softcap": {"softcap": 1.5},
    "bias": {"bias": rng.standard_normal((4, 1, 70)).astype(np.float32)},
    "whole bias": {"bias": rng.standard_normal((2, 4, 33, 70)).astype(np.float32)},
    "bias hides": {"bias": np.where(rng.random((33, 70)) < 0.5, -np.inf, 0).astype(np.float32)},
    "finfo.min": {"bias": np.full((33, 70), np.finfo(np.float32).min)},
    "sinks": {"sinks": np.array([0.0, 5.0, -np.inf, -3.0], np.float32)},
    "sinks and rows that see nothing": {
        "sinks": np.array([0.0, 5.0, -np.inf, -3.0], np.float32),
        "mask": Causal(-10),
    },
    "dropout": {"dropout": Dropout(0.3, seed=11)},
    "all": {
        "scale": 0.7,
        "softcap": 3.0,
        "bias": rng.standard_normal((33, 70)).astype(np.float32),
        "sinks": np.array([0.1, -0.2, 0.3, 1.0], np.float32),
        "mask": Causal() & Window(20, 0),
        "dropout": Dropout(0.1, seed=3),
    },
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_options(kernel, option, dtype):
    given = dict(OPTIONS[option])
    with np.errstate(over="ignore"):  # finfo.min of float32 is -inf in float16
        given |= {n: given[n].astype(dtype) for n in ("bias", "sinks") if n in given}
    assert_close(kernel, call(*SMALL.arrays(dtype), **given, watch=everything(70)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_bias(kernel, layout, dtype):
    bias = LAYOUTS[layout](rng.standard_normal((2, 4, 33, 70)).astype(dtype))
    made = call(*SMALL.arrays(dtype), bias=bias, mask=Window(9, 3), watch=EVERYTHING)
    assert_close(kernel, made)


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0, "sinks": np.array([0, 1, 2, 3.0])}])
@pytest.mark.parametrize(
    "case", [Case((2, 4, 200, 8), (2, 2, 2300, 8), 6), one_head(2, 4000, 8, 8)]
)
def test_options_over_many_chunks_of_keys(kernel, case, options):
    """Everything at once, where keys are split over threads and chunks are joined."""
    q, k, v = case.arrays(FLOAT64)
    heads, keys = (1, *case.query)[-3], case.key[-2]
    sinks = options.get("sinks", np.zeros(4))[:heads]
    bias = rng.standard_normal((case.query[-2], keys))
    bias[rng.random(bias.shape) < 0.2] = -np.inf
    made = call(
        *(q, k, v),
        **options | {"sinks": sinks, "bias": bias},
        dropout=Dropout(0.4, seed=2**63 + 5),
        mask=Causal() | Prefix(70),
        watch=everything(keys),
    )
    assert_close(kernel, made)


CUSTOM = {
    "of all indices": lambda b, h, i, j: (i * 3 + j * 7 + h + b) % 5 != 0,
    "of the key alone": lambda b, h, i, j: j % 3 == 1,
    "of query and key": lambda b, h, i, j: i + 37 >= j,
    "of the head alone": lambda b, h, i, j: h > 1,
    "of nothing": lambda b, h, i, j: np.array(True),
    "nothing": lambda b, h, i, j: i < j - 1000,
}


@pytest.mark.parametrize("joined", [None, "and", "or"])
@pytest.mark.parametrize("function", CUSTOM)
def test_custom_masks(kernel, function, joined):
    mask = Custom(CUSTOM[function])
    mask = {None: mask, "and": Causal() & mask, "or": mask | Window(3, 3)}[joined]
    made = call(*SMALL.arrays(), mask=mask, watch=everything(70))
    assert_close(kernel, made)
    rows, keys = np.array([32, 0, 5, 5]), np.array([69, 0, 12, 13, 30, 0])
    p = reference.weights(made, rows, keys, None)
    run(kernel, made)
    with poisoned_memory():
        assert np.abs(kernel.weights(made, rows, keys, None) - p).max() < 2e-6


def test_a_custom_mask_is_asked_in_blocks(kernel):
    asked = []

    def function(b, h, i, j):
        asked.append((i.size, j.size))
        return (i + j) % 2 == 0

    made = call(*Case((2, 100, 4), (1, 20_000, 4), 4).arrays(), mask=Custom(function))
    assert_close(kernel, made)
    assert len(asked) < 100


@pytest.mark.parametrize(
    "watch",
    [
        Watch(received=True),
        Watch(groups=np.arange(70) % 5),
        Watch(groups=np.full(70, 3)),
        Watch(picture=(5, 8)),
        Watch(picture=(40, 100)),
        Watch(top=100),
    ],
    ids=[
        "received",
        "groups",
        "empty groups",
        "picture",
        "picture with more cells",
        "more than there are",
    ],
)
@pytest.mark.parametrize("mask", [None, Causal(), Causal(-5), Documents([0] * 33, [0, 1] * 35)])
def test_facts_of_all_rows(kernel, watch, mask):
    assert_close(kernel, call(*SMALL.arrays(), mask=mask, watch=watch))


def test_masses_received_add_up_to_the_rows_that_see_something(kernel):
    made = call(*SMALL.arrays(), mask=Causal(-5), watch=Watch(received=True))
    _, seen = run(kernel, made)
    assert np.abs(seen.received.sum(axis=-1) - 28).max() < 1e-5
    seers = np.minimum(28, np.maximum(0, 28 - np.arange(70)))
    assert np.abs(seen.received_share * seers - seen.received).max() < 1e-5
    assert (seen.received_share[..., seers == 0] == 0).all()


def test_equal_logits_go_to_the_lower_key(kernel):
    q, k, v = (np.zeros(shape, np.float32) for shape in (SMALL.query, SMALL.key, SMALL.value))
    _, seen = run(kernel, call(q, k, v, mask=Window(40, 2), watch=Watch(top=4)))
    first = np.maximum(0, np.arange(33) + 37 - 40)
    assert np.array_equal(seen.top_keys[1, 2], first[:, None] + np.arange(4))


@pytest.mark.parametrize("wild", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize(
    "mask",
    [
        Causal(),
        Lengths(40),
        Documents(np.arange(33) // 7, np.arange(70) // 9),
        np.arange(70) % 3 != 1,
        Causal() & (np.arange(70) % 5 != 1),
        Window(9, 0) | Prefix(2),
    ],
    ids=["causal", "lengths", "documents", "array", "joined", "window or prefix"],
)
def test_what_is_hidden_cannot_be_felt(kernel, mask, dtype, wild):
    """Bits must agree: NaN stands only in places that the row may not look at."""
    q, k, v = SMALL.arrays(dtype)
    clean = call(q, k, v, mask=mask, watch=EVERYTHING)
    hidden = ~clean.mask.allowed(clean.shape, np.arange(33), np.arange(70))
    hidden = np.broadcast_to(hidden, (2, 4, 33, 70))
    wanted, facts = run(kernel, clean)
    for row in (0, 5, 16, 32):
        everyone = hidden[0, :, row].all(axis=0)
        dirty_k, dirty_v = k.copy(), v.copy()
        dirty_k[:, :, everyone], dirty_v[:, :, everyone] = wild, wild
        output, seen = run(kernel, replace(clean, key=dirty_k, value=dirty_v))
        assert np.array_equal(output[..., row, :], wanted[..., row, :])
        for name, fact in seen.facts().items():
            if not name.startswith("received"):  # these are of the keys
                assert np.array_equal(fact[:, :, row], getattr(facts, name)[:, :, row]), name


def test_nan_reaches_exactly_the_rows_that_see_it(kernel):
    for place in (0, 7, 40, 69):
        for which in ("key", "value"):
            q, k, v = SMALL.arrays()
            {"key": k, "value": v}[which][1, 1, place, 2] = np.nan
            output, _ = run(kernel, call(q, k, v, mask=Causal()))
            # Query heads 2 and 3 share key head 1; row i sees keys up to i + 37.
            sees = np.zeros((2, 4, 33, 24), bool)
            sees[1, 2:, max(0, place - 37) :, 2 if which == "value" else slice(None)] = True
            assert np.array_equal(np.isnan(output), sees)


def test_nan_query_reaches_its_own_row(kernel):
    q, k, v = SMALL.arrays()
    q[0, 3, 5, 1] = np.nan
    output, seen = run(kernel, call(q, k, v, watch=EVERYTHING))
    for fact in (output[..., 0], seen.lse, seen.max_logit, seen.entropy, seen.flow):
        assert np.array_equal(np.argwhere(np.isnan(fact)), [[0, 3, 5]])


def test_rows_that_see_nothing(kernel):
    made = call(*SMALL.arrays(), mask=Causal(-5), watch=EVERYTHING)
    output, seen = run(kernel, made)
    blind = np.s_[..., :5]
    assert (output[..., :5, :] == 0).all()
    assert (seen.lse[blind] == -np.inf).all()
    assert (seen.max_logit[blind] == -np.inf).all()
    for fact in (seen.entropy, seen.saturation, seen.flow, seen.distance):
        assert (fact[blind] == 0).all()
        assert np.isfinite(fact).all()
    assert (seen.top_keys[..., :5, :] == -1).all()
    assert (seen.top_weights[..., :5, :] == 0).all()


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("gap", [0.0, 10.0, 15.0, 17.0, 30.0, 90.0])
def test_facts_of_saturated_rows(kernel, dtype, gap):
    """1 - sum p^2 would be 17 % wrong at a gap of 15 and 0 at 17; flow is right to rounding."""
    q, k = np.ones((1, 1), dtype), np.array([[gap], [0.0], [0.0]], dtype)
    _, seen = run(kernel, call(q, k, np.ones((3, 1), dtype), scale=1.0, watch=EVERYTHING))
    _, facts = reference.compute(
        call(
            q.astype(np.float64), k.astype(np.float64), np.ones((3, 1)), scale=1.0, watch=EVERYTHING
        ),
        np.longdouble,
    )
    unit = 1e-6 if dtype == FLOAT32 else 1e-14
    # Weights below the smallest normal number may be flushed to 0.
    least = 0 if gap < 80 or dtype == FLOAT64 else 1e-37
    for name in ("entropy", "flow", "saturation"):
        wanted = float(facts[name].item())
        assert getattr(seen, name).item() == pytest.approx(
            wanted,
            rel=unit * (1 + gap),
            abs=(1e-7 if dtype == FLOAT32 else 1e-15) if name == "entropy" else least,
        )


@pytest.mark.parametrize("large", [80.0, 1000.0, 1e30])
def test_large_logits_do_not_overflow(kernel, large):
    q, k, v = one_head(3, 50, 4, 2).arrays()
    made = call(q, k, v, scale=large, watch=Watch(top=1, saturation=True))
    output, seen = run(kernel, made)
    best = (q @ k.T).argmax(axis=-1)
    assert np.array_equal(seen.top_keys[0, :, 0], best)
    assert np.isfinite(output).all()
    assert np.isfinite(seen.lse).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_with_every_option(kernel, dtype):
    given = dict(OPTIONS["all"], dropout=None)
    given |= {n: given[n].astype(dtype) for n in ("bias", "sinks")}
    made = call(*SMALL.arrays(dtype), **given)
    rows, keys = np.array([32, 0, 5, 5]), np.array([69, 0, 12, 13, 30, 0])
    p = reference.weights(replace(made), rows, keys, None)
    _, seen = run(kernel, made)
    for lse in (None, np.ascontiguousarray(seen.lse[..., rows])):
        with poisoned_memory():
            block = kernel.weights(made, rows, keys, lse)
        assert block.dtype == (FLOAT64 if dtype == FLOAT64 else FLOAT32)
        assert np.abs(block - p).max() < (1e-14 if dtype == FLOAT64 else 2e-6)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("known", [False, True], ids=["lse found", "lse given"])
def test_weights_of_any_block(kernel, dtype, known):
    made = call(*SMALL.arrays(dtype), mask=Causal() & Lengths(np.array([60, 13])))
    run(kernel, made)
    rows, keys = np.array([32, 0, 5, 5]), np.array([69, 0, 12, 13, 30, 0])
    everything = np.arange(33), np.arange(70)
    p = reference.weights(replace(made, query=made.query.astype(np.float64)), *everything, None)
    lse = np.ascontiguousarray(kernel.run(made)[1].lse[..., rows]) if known else None
    with poisoned_memory():
        block = kernel.weights(made, rows, keys, lse)
        whole = kernel.weights(made, *everything, None)
        nothing = kernel.weights(made, rows[:0], keys, None)
    assert block.dtype == whole.dtype == dtype
    bound = 2e-6 if dtype == FLOAT32 else 1e-14
    assert np.abs(block - p[..., rows[:, None], keys]).max() <= bound
    assert np.abs(whole - p).max() <= bound
    assert nothing.shape == (2, 4, 0, 6)
    hidden = ~np.broadcast_to(made.mask.allowed(made.shape, *everything), p.shape)
    assert (whole[hidden] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_watching_changes_no_bit_of_the_output(kernel, option, dtype):
    given = dict(OPTIONS[option])
    with np.errstate(over="ignore"):
        given |= {n: given[n].astype(dtype) for n in ("bias", "sinks") if n in given}
    made = call(*SMALL.arrays(dtype), **{"mask": Causal(), **given})
    plain, _ = run(kernel, made)
    watched, _ = run(kernel, replace(made, watch=everything(70)))
    assert plain.tobytes() == watched.tobytes()


def test_a_visible_infinity_is_a_nan(kernel):
    q, k, v = SMALL.arrays()
    bias = np.zeros((33, 70), np.float32)
    bias[4, 7] = np.inf
    output, seen = run(kernel, call(q, k, v, bias=bias, watch=EVERYTHING))
    assert np.isnan(output[:, :, 4]).all()
    assert (seen.max_logit[:, :, 4] == np.inf).all()
    assert np.isfinite(np.delete(output, 4, axis=2)).all()


@pytest.mark.parametrize("sink", [30.0, 90.0, 1e4, 1e30])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sink_that_dwarfs_the_keys(kernel, dtype, sink):
    """Neither the sum nor flow and entropy are rounded away beside it."""
    with np.errstate(over="ignore"):
        sinks = np.array([sink, 0.0, -sink, -np.inf]).astype(dtype)
    made = call(*SMALL.arrays(dtype), mask=Causal(), sinks=sinks, watch=EVERYTHING)
    if np.isfinite(sinks[0]):
        assert_close(kernel, made)
    q, k, v = (np.ones((1, 1, n, 4), dtype) for n in (1, 9, 9))
    one = call(q, k, v, sinks=sinks[1:2] + 30, watch=Watch(entropy=True, saturation=True))
    _, seen = run(kernel, one)
    _, facts = exact(one)
    for name in ("flow", "entropy", "saturation"):
        assert getattr(seen, name) == pytest.approx(facts[name], rel=1e-5, abs=0), name


def test_lists_longer_than_the_keys(kernel):
    q, k, v = (np.eye(n, 8, dtype=np.float32)[None] for n in (2, 6, 6))
    _, seen = run(kernel, call(q, k, v, mask=Lengths(4), watch=Watch(top=2**16)))
    assert seen.top_keys.shape == (1, 2, 2**16)
    assert (np.sort(seen.top_keys[..., :4], axis=-1) == np.arange(4)).all()
    assert (seen.top_keys[..., 4:] == -1).all()
    assert (seen.top_weights[..., 4:] == 0).all()


@pytest.mark.parametrize("groups", [1024, 1025, 3000])
def test_any_number_of_groups(kernel, groups):
    q, k, v = one_head(9, 1500, 8, 4).arrays(FLOAT32)
    numbers = np.random.default_rng(0).integers(0, groups, 1500)
    numbers[7] = groups - 1
    made = call(q, k, v, mask=Causal(), watch=Watch(groups=numbers, received=True))
    assert_close(kernel, made)


@pytest.mark.parametrize("option", ["bias", "mask"])
def test_nan_rows_do_not_fill_what_is_hidden(kernel, option):
    """A key hidden by a mask has the weight 0 in every row; one with a bias of -inf is visible."""
    q, k, v = SMALL.arrays()
    q[:, :, 5] = np.nan
    cells = np.random.default_rng(1).random((33, 70)) < 0.5
    bias = np.where(cells, 0, -np.inf).astype(np.float32)
    given = {"bias": bias} if option == "bias" else {"mask": cells}
    made = call(q, k, v, watch=Watch(received=True, picture=(33, 70), top=3), **given)
    assert_close(kernel, made)
    block = kernel.weights(made, np.arange(33), np.arange(70), None)
    wanted = reference.weights(made, np.arange(33), np.arange(70), None)
    assert np.array_equal(np.isnan(block), np.isnan(wanted))


def test_rows_that_see_nothing_are_a_plain_zero(kernel):
    """The same bits everywhere, never -0."""
    q, k, v = SMALL.arrays()
    v = -abs(v)
    for mask in (Lengths(0), Window(0, 0, 200), Lengths([0, 0], side="left")):
        output, seen = run(kernel, call(q, k, v, mask=mask, watch=EVERYTHING))
        assert not np.signbit(output).any()
        assert not np.signbit(seen.received).any()


@pytest.mark.parametrize("scale", [1e25, -1e25, 1e31, 1e-25, 1e-35])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_scales_far_from_one(kernel, dtype, scale):
    q, k, v = SMALL.arrays(dtype)
    made = call(q * dtype.type(1 / abs(scale)), k, v, scale=scale, mask=Causal(), watch=EVERYTHING)
    assert_close(kernel, made)


def test_a_function_that_writes_into_its_arguments(kernel):
    def spoil(b, h, i, j):
        answer = (i + j + h) % 3 != 0
        for array in (b, h, i, j):
            array[...] = 0
        return answer

    arrays = SMALL.arrays()
    clean = Custom(lambda b, h, i, j: (i + j + h) % 3 != 0)
    wanted, _ = run(kernel, call(*arrays, mask=clean))
    for _ in range(2):
        output, _ = run(kernel, call(*arrays, mask=Custom(spoil)))
        assert np.array_equal(output, wanted)


@pytest.mark.parametrize("order", [1, -1])
def test_infinity_goes_before_nan_in_the_largest_logit(kernel, order):
    q, k, v = SMALL.arrays()
    bias = np.zeros((33, 70), np.float32)
    bias[4, [7, 50][::order]] = np.inf, np.nan
    bias[5, 9] = np.nan
    output, seen = run(kernel, call(q, k, v, bias=bias, watch=EVERYTHING))
    assert np.isnan(output[:, :, 4:6]).all()
    assert (seen.max_logit[:, :, 4] == np.inf).all()
    assert np.isnan(seen.max_logit[:, :, 5]).all()


@st.composite
def calls(draw):
    """Any small call: shapes, dtype, layout, mask, options."""
    queries, keys = draw(st.integers(0, 40)), draw(st.integers(0, 90))
    width, value_width = draw(st.integers(1, 40)), draw(st.integers(0, 40))
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    batch = draw(st.sampled_from([(), (1,), (2,), (2, 2)]))
    case = Case(
        (*batch, kv_heads * group, queries, width), (*batch, kv_heads, keys, width), value_width
    )
    dtype = draw(st.sampled_from(DTYPES))
    arrays = case.arrays(dtype, seed=draw(st.integers(0, 9)))
    layouts = [draw(st.sampled_from([np.asarray, *LAYOUTS.values()])) for _ in arrays]
    arrays = [layout(array) for layout, array in zip(layouts, arrays, strict=True)]
    offset = st.none() | st.integers(-20, 60)
    lengths = st.integers(0, keys)
    mask = draw(
        st.none()
        | st.builds(Causal, offset)
        | st.builds(Window, st.integers(0, 30), st.integers(0, 5), offset)
        | st.builds(lambda o, n: Causal(o) & Lengths(n), offset, lengths)
        | st.builds(lambda o, n: Causal(o) | Prefix(n), offset, lengths)
        | st.builds(
            lambda n: Documents(np.arange(queries) // n, np.arange(keys) // n), st.integers(1, 9)
        )
        | st.builds(
            lambda n: Documents(np.arange(queries) % n, np.arange(keys) % n), st.integers(1, 9)
        )
        | st.builds(
            lambda s: np.random.default_rng(s).random((queries, keys)) < 0.5, st.integers(0, 9)
        )
    )
    return call(*arrays, mask=mask, watch=EVERYTHING)


@given(made=calls())
def test_any_call(kernel, made):
    if kernel.refuses(made) is None:
        assert_close(kernel, made)


@given(made=calls(), data=st.data())
def test_any_call_with_options(kernel, made, data):
    seed = data.draw(st.integers(0, 9))
    numbers = np.random.default_rng(seed)
    whole = (*made.query.shape[:-1], made.key.shape[-2])
    bias = numbers.standard_normal(whole[-2:])
    bias[numbers.random(bias.shape) < 0.2] = -np.inf
    options = {
        "scale": data.draw(st.floats(-2, 2)),
        "softcap": data.draw(st.none() | st.floats(0.5, 50)),
        "bias": data.draw(
            st.none() | st.just(np.broadcast_to(bias.astype(made.query.dtype), whole))
        ),
        "sinks": data.draw(
            st.none() | st.just(numbers.standard_normal(whole[-3]).astype(made.query.dtype))
        ),
        "dropout": data.draw(st.none() | st.builds(Dropout, st.floats(0, 0.9), st.integers(0, 99))),
    }
    made = replace(made, **options)
    if kernel.refuses(made) is None:
        assert_close(kernel, made)

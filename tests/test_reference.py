"""The definition itself: against loops over single numbers, PyTorch, and differentiation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import (
    CASES,
    DTYPES,
    EVERYTHING,
    FLOAT64,
    Case,
    bfloat16,
    call,
    error,
    one_head,
    poisoned_memory,
)

from chumoku.dropout import Dropout
from chumoku.kernels import reference
from chumoku.mask import Causal, Lengths, Window
from chumoku.statistics import Watch

CASE = Case((2, 4, 5, 3), (1, 2, 7, 3), 2)
WATCH = Watch(
    top=3,
    entropy=True,
    saturation=True,
    distance=True,
    received=True,
    groups=np.array([0, 1, 1, 0, 3, 0, 1]),
    picture=(2, 3),
)
rng = np.random.default_rng(8)
BIAS = rng.standard_normal((4, 5, 7))
BIAS[:, 2, 3:] = -np.inf
OPTIONS = {
    "nothing": {},
    "mask": {"mask": Causal()},
    "blind rows": {"mask": Causal(-2)},
    "window": {"mask": Window(2, 1, offset=np.array([1, 4]))},
    "bias": {"bias": BIAS},
    "softcap": {"softcap": 0.8, "scale": 1.7},
    "sinks": {"sinks": rng.standard_normal(4), "mask": Causal(-2)},
    "dropout": {"dropout": Dropout(0.4, 12)},
    "all": {
        "mask": Causal() & Lengths(np.array([7, 4]), np.array([5, 3])),
        "bias": BIAS,
        "softcap": 2.0,
        "scale": -0.9,
        "sinks": rng.standard_normal(4),
        "dropout": Dropout(0.2, 5),
    },
}


def loop(made, b, h, i):
    """One row by loops over single numbers: its logits by key, its weights, its output."""
    q, shared = made.query[b, h, i], h // 2
    logits = {}
    for j in range(made.key.shape[-2]):
        if made.mask is not None:
            allowed = made.mask.allowed(made.shape, np.arange(5), np.arange(7))
            if not np.broadcast_to(allowed, (2, 4, 5, 7))[b, h, i, j]:
                continue
        s = math.fsum(float(x) * float(y) for x, y in zip(q, made.key[b, shared, j], strict=True))
        s *= made.scale
        if made.softcap is not None:
            s = made.softcap * math.tanh(s / made.softcap)
        if made.bias is not None:
            s += float(made.bias[b, h, i, j])
        if s != -math.inf:
            logits[j] = s
    sink = [] if made.sinks is None else [math.exp(made.sinks[h])]
    total = math.fsum([*map(math.exp, logits.values()), *sink])
    weights = {j: math.exp(s) / total for j, s in logits.items()}
    output = [0.0, 0.0]
    for j, p in weights.items():
        if made.dropout is not None:
            kept = made.dropout.kept((2,), 4, np.array([i]), np.array([j]))[b, h, 0, 0]
            p *= kept / (1 - made.dropout.rate)
        output = [o + p * float(v) for o, v in zip(output, made.value[b, shared, j], strict=True)]
    return logits, weights, total, output


@pytest.mark.parametrize("option", OPTIONS)
def test_every_fact_by_loops(option):
    made = call(*CASE.arrays(FLOAT64), **OPTIONS[option], watch=WATCH)
    with poisoned_memory():
        output, seen = reference.run(made)
    offsets = {"blind rows": [-2, -2], "window": [1, 4], "sinks": [-2, -2], "all": [2, 1]}
    for b, h, i in np.ndindex(2, 4, 5):
        logits, weights, total, wanted = loop(made, b, h, i)
        p = list(weights.values())
        near = {"rel": 1e-12, "abs": 1e-14}
        assert output[b, h, i] == pytest.approx(wanted, **near)
        assert seen.lse[b, h, i] == pytest.approx(math.log(total) if total else -math.inf)
        assert seen.max_logit[b, h, i] == pytest.approx(max(logits.values(), default=-math.inf))
        assert seen.entropy[b, h, i] == pytest.approx(-sum(x * math.log(x) for x in p), **near)
        assert seen.saturation[b, h, i] == pytest.approx(sum(x * x for x in p), **near)
        assert seen.flow[b, h, i] == pytest.approx(sum(x * (1 - x) for x in p), **near)
        offset = offsets.get(option, [2, 2])[b]
        distance = sum(x * abs(i + offset - j) for j, x in weights.items())
        assert seen.distance[b, h, i] == pytest.approx(distance, **near)
        for group in range(4):
            mass = sum(x for j, x in weights.items() if WATCH.groups[j] == group)
            assert seen.group_mass[b, h, i, group] == pytest.approx(mass, **near)
        best = sorted(weights, key=lambda j: (-logits[j], j))[:3]
        assert seen.top_keys[b, h, i].tolist() == best + [-1] * (3 - len(best))
        top = [weights[j] for j in best] + [0.0] * (3 - len(best))
        assert seen.top_weights[b, h, i] == pytest.approx(top, **near)
        if made.sinks is not None:
            sink = math.exp(made.sinks[h]) / total
            assert seen.sink_weight[b, h, i] == pytest.approx(sink, **near)
            assert sink + sum(p) == pytest.approx(1)


@pytest.mark.parametrize("option", OPTIONS)
def test_facts_of_many_rows_by_loops(option):
    made = call(*CASE.arrays(FLOAT64), **OPTIONS[option], watch=WATCH)
    _, seen = reference.run(made)
    mean, most = seen.picture
    for b, h in np.ndindex(2, 4):
        rows = [loop(made, b, h, i)[1] for i in range(5)]
        received = [math.fsum(row.get(j, 0) for row in rows) for j in range(7)]
        assert seen.received[b, h] == pytest.approx(received, rel=1e-12, abs=1e-14)
        seeing = [sum(j in row for row in rows) for j in range(7)]
        share = [mass / max(1, n) for mass, n in zip(received, seeing, strict=True)]
        assert seen.received_share[b, h] == pytest.approx(share, rel=1e-12, abs=1e-14)
        for r, part in enumerate(([0, 1], [2, 3, 4])):
            for c, columns in enumerate(([0, 1], [2, 3], [4, 5, 6])):
                cell = [rows[i].get(j, 0) for i in part for j in columns]
                assert mean[b, h, r, c] == pytest.approx(sum(cell) / len(cell), abs=1e-14)
                assert most[b, h, r, c] == pytest.approx(max(cell), abs=1e-14)


def test_picture_larger_than_the_matrix_repeats_rows():
    q, k, v = one_head(2, 3, 4, 1).arrays(FLOAT64)
    made = call(q, k, v, watch=Watch(picture=(5, 7)))
    mean, most = reference.run(made)[1].picture
    p = reference.weights(made, np.arange(2), np.arange(3), None)
    wanted = p[0][np.ix_([0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 2, 2])]
    assert mean[0] == pytest.approx(wanted)
    assert np.array_equal(mean, most)


@pytest.mark.parametrize("sinks", [None, np.zeros(4)])
def test_received_adds_up_to_the_rows_that_see(sinks):
    made = call(*CASE.arrays(FLOAT64), mask=Causal(-2), sinks=sinks, watch=Watch(received=True))
    _, seen = reference.run(made)
    sink = 0 if sinks is None else seen.sink_weight[..., 2:].sum(axis=-1)
    assert (seen.received.sum(axis=-1) + sink) == pytest.approx(np.full((2, 4), 3.0))


def test_share_received_counts_who_can_see():
    """A mask and a bias of -inf hide; a weight of 0 does not."""
    q, k = np.array([[1.0], [1], [1], [0]]), np.array([[0.0], [0], [0], [-1e4], [0]])
    v = np.zeros((5, 1))
    bias = np.zeros((4, 5))
    bias[:3, 1] = -np.inf
    mask = np.ones((4, 5), bool)
    mask[1:, 2] = False
    mask[:, 4] = False
    made = call(q, k, v, mask=mask, bias=bias, scale=1.0, watch=Watch(received=True))
    seen = reference.run(made)[1]
    first = 1 / 2 + 1 + 1 + 1 / 3
    assert seen.received[0] == pytest.approx([first, 1 / 3, 1 / 2, 1 / 3, 0])
    assert seen.received_share[0] == pytest.approx([first / 4, 1 / 3, 1 / 2, 1 / 12, 0])


def test_groups_without_keys_and_rows_with_nan():
    q, k, v = np.ones((2, 1)), np.array([[0.0], [0], [np.nan]]), np.zeros((3, 1))
    made = call(q, k, v, mask=np.tri(2, 3, 1, bool), watch=Watch(groups=[3, 1, 1]))
    mass = reference.run(made)[1].group_mass[0]
    assert mass[0] == pytest.approx([0, 0.5, 0, 0.5])
    assert np.isnan(mass[1]).all()


def test_distance_is_measured_from_where_the_query_stands():
    """The last query meets the last valid key: it looks at itself alone."""
    q, k, v = one_head(3, 6, 2, 1).arrays(FLOAT64)
    for mask, wanted in [
        (Window(0, 0), [0, 0, 0]),
        (Window(0, 0) & Lengths(4), [0, 0, 0]),
        (np.eye(3, 6, dtype=bool), [3, 3, 3]),
        (np.eye(3, 6, dtype=bool) & Lengths(3), [0, 0, 0]),
        (np.eye(3, 6, dtype=bool) & Causal(1), [1, 1, 1]),
        (Causal(2) & np.eye(3, 6, dtype=bool), [2, 2, 2]),
    ]:
        _, seen = reference.run(call(q, k, v, mask=mask, watch=Watch(distance=True)))
        assert seen.distance[0].tolist() == wanted


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_in_and_out(dtype):
    made = call(*CASE.arrays(dtype), mask=Causal(), watch=WATCH)
    output, seen = reference.run(made)
    exact, facts = reference.compute(made)
    assert output.dtype == dtype
    assert np.array_equal(output, exact.astype(dtype))
    real = np.float64 if dtype == FLOAT64 else np.float32
    for name, fact in facts.items():
        if name == "top_keys":
            assert seen.top_keys.dtype == np.int64
        elif name == "picture":
            assert all(part.dtype == real for part in seen.picture)
        else:
            assert getattr(seen, name).dtype == real
            assert np.array_equal(getattr(seen, name), fact.astype(real))


def test_computes_in_any_precision():
    made = call(*one_head(9, 400, 64, 16).arrays(FLOAT64), watch=EVERYTHING)
    near, _ = reference.compute(made)
    far, facts = reference.compute(made, np.longdouble)
    assert far.dtype == facts["entropy"].dtype == np.longdouble
    assert 0 < error(near, far) < 1e-15


def test_values_too_large_for_the_dtype_become_inf_quietly():
    q, k, v = one_head(2, 3, 1, 1).arrays(np.dtype(np.float16))
    output, seen = reference.run(call(100 * q, 600 * k, v, scale=3e35, watch=EVERYTHING))
    assert np.isfinite(output).all()
    assert np.isinf(seen.lse).any()


def test_infinite_scores():
    """-inf in the scores is a weight of 0; a row that has nothing else sees nothing."""
    k = np.array([[np.inf], [1.0]])
    made = call(np.array([[-1.0]]), k, np.array([[5.0], [7.0]]), watch=EVERYTHING)
    output, seen = reference.run(made)
    assert output.item() == 7
    assert seen.top_keys.tolist() == [[[1, -1, -1, -1, -1]]]
    output, seen = reference.run(replace(made, key=np.full((1, 2, 1), np.inf)))
    assert output.item() == 0
    assert seen.lse.item() == -np.inf
    output, seen = reference.run(replace(made, query=np.ones((1, 1, 1))))
    assert np.isnan(output.item())
    assert seen.max_logit.item() == np.inf


def test_a_bias_of_minus_infinity_hides_even_nan_and_finfo_min_does_not():
    q, k, v = CASE.arrays(FLOAT64)
    bias = np.zeros((5, 7))
    bias[:, 3] = -np.inf
    clean, _ = reference.run(call(q, k, v, bias=bias, watch=WATCH))
    k[..., 3, :] = v[..., 3, :] = np.nan
    dirty, seen = reference.run(call(q, k, v, bias=bias, watch=WATCH))
    assert np.array_equal(clean, dirty)
    assert (seen.received[..., 3] == 0).all()
    gradients = reference.gradients(call(q, k, v, bias=bias), np.ones(dirty.shape))
    assert all(np.isfinite(g).all() for g in gradients if g is not None)
    bias[...] = np.finfo(np.float64).min
    uniform, _ = reference.run(call(*CASE.arrays(FLOAT64), bias=bias))
    v = CASE.arrays(FLOAT64)[2]
    assert uniform == pytest.approx(
        np.broadcast_to(v[:, [0, 0, 1, 1]].mean(-2, keepdims=True), uniform.shape)
    )


def test_nan_statistics_stand_in_the_rows_that_see_it():
    q, k, v = CASE.arrays(FLOAT64)
    k[0, 1, 4] = np.nan
    _, seen = reference.run(call(q, k, v, mask=Causal(0), watch=WATCH))
    sees = np.zeros((2, 4, 5), bool)
    sees[:, 2:, 4] = True
    for name in ("lse", "max_logit", "entropy", "saturation", "flow", "distance"):
        assert np.array_equal(np.isnan(getattr(seen, name)), sees), name
    # Key 4 is the first of the best, and whatever is visible to that row received NaN.
    assert (seen.top_keys[sees][:, 0] == 4).all()
    assert np.array_equal(
        np.isnan(seen.received[:, 2:]), np.broadcast_to(np.arange(7) < 5, (2, 2, 7))
    )


# Against PyTorch


def as_torch(made, **changes):
    """Attention out of PyTorch's elementary functions, for autograd."""
    parts = {
        "query": made.query,
        "key": made.key,
        "value": made.value,
        "bias": made.bias,
        "sinks": made.sinks,
    }
    leaves = {
        n: None if a is None else torch.tensor(np.array(a, np.float64), requires_grad=True)
        for n, a in parts.items()
    }
    k, v = (leaves[n].repeat_interleave(made.group, -3) for n in ("key", "value"))
    s = leaves["query"] @ k.transpose(-1, -2) * made.scale
    if made.softcap is not None:
        s = made.softcap * torch.tanh(s / made.softcap)
    if leaves["bias"] is not None:
        s = s + leaves["bias"]
    rows, keys = np.arange(s.shape[-2]), np.arange(s.shape[-1])
    if made.mask is not None:
        allowed = np.broadcast_to(made.mask.allowed(made.shape, rows, keys), s.shape)
        s = s.masked_fill(~torch.tensor(allowed), -torch.inf)
    if leaves["sinks"] is not None:
        sink = leaves["sinks"][:, None, None].expand(*s.shape[:-1], 1)
        p = torch.softmax(torch.cat([s, sink], -1), -1)[..., :-1]
    else:
        p = torch.softmax(s, -1)
    if made.dropout is not None:
        kept = made.dropout.kept(made.shape.batch, made.shape.heads, rows, keys)
        p = p * torch.tensor(kept) / (1 - made.dropout.rate)
    return p @ v, leaves


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_scaled_dot_product_attention(case):
    q, k, v = case.arrays(FLOAT64)
    made = call(q, k, v)
    output, _ = reference.run(made)
    k, v = (np.repeat(a, made.group, axis=-3) for a in (made.key, made.value))
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(np.array(a)) for a in (made.query, k, v))
    )
    assert error(output, theirs.numpy()) < 1e-14


@pytest.mark.parametrize("option", [o for o in OPTIONS if o != "blind rows"])
def test_gradients_agree_with_autograd(option):
    made = call(*CASE.arrays(FLOAT64), **OPTIONS[option])
    output, leaves = as_torch(made)
    assert error(reference.run(made)[0], output.detach().numpy()) < 1e-13
    d_output = np.random.default_rng(3).standard_normal(output.shape)
    output.backward(torch.tensor(d_output))
    found = reference.gradients(made, d_output)
    for name, leaf in leaves.items():
        gradient = getattr(found, name)
        if leaf is None:
            assert gradient is None
            continue
        assert gradient.shape == tuple(leaf.shape)
        assert error(gradient, leaf.grad.numpy()) < 1e-12, name


@pytest.mark.parametrize("option", OPTIONS)
def test_gradients_agree_with_differences(option):
    """Central differences along a random direction of each input, in extended precision."""
    made = call(*CASE.arrays(FLOAT64), **OPTIONS[option])
    numbers = np.random.default_rng(4)
    d_output = numbers.standard_normal((2, 4, 5, 2))
    found = reference.gradients(made, d_output)
    step = np.longdouble(1e-7)
    for name in ("query", "key", "value", "bias", "sinks"):
        at = getattr(made, name)
        if at is None:
            continue
        direction = numbers.standard_normal(at.shape)
        there, back = (
            reference.compute(replace(made, **{name: at + sign * step * direction}), np.longdouble)[
                0
            ]
            for sign in (1, -1)
        )
        slope = float((((there - back) / (2 * step)) * d_output).sum())
        gradient = getattr(found, name)
        assert gradient.shape == at.shape
        assert np.isfinite(gradient).all()
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("wild", [np.nan, np.inf])
def test_gradients_do_not_feel_what_is_hidden(wild):
    q, k, v = CASE.arrays(FLOAT64)
    options = {"mask": Causal(0) & Lengths(4) & Window(9, 0, offset=-1), "softcap": 3.0}
    d_output = np.random.default_rng(3).standard_normal((2, 4, 5, 2))
    clean = reference.gradients(call(q, k, v, **options), d_output)
    # Keys from 4 on are hidden from all, query 0 sees none, query 4 stands before key 4.
    k[..., 4:, :] = v[..., 4:, :] = wild
    q[..., 0, :] = d_output[..., 0, :] = wild
    dirty = reference.gradients(call(q, k, v, **options), d_output)
    for name in ("query", "key", "value"):
        assert np.isfinite(getattr(dirty, name)).all(), name
        assert np.array_equal(getattr(clean, name), getattr(dirty, name)), name
    assert (dirty.key[..., 4:, :] == 0).all()
    assert (dirty.query[..., 0, :] == 0).all()


@pytest.mark.parametrize("where", ["key", "value"])
def test_gradients_of_nan_stay_with_the_rows_that_see_it(where):
    """Key 4 is NaN and visible to query 4 alone, which sees keys 2 to 4."""
    q, k, v = CASE.arrays(FLOAT64)
    {"key": k, "value": v}[where][..., 4, :] = np.nan
    found = reference.gradients(call(q, k, v, mask=Window(2, 0, offset=0)), np.ones((2, 4, 5, 2)))
    assert np.array_equal(np.isnan(found.query).any(axis=(0, 1, 3)), np.arange(5) == 4)
    for gradient in (found.key, found.value)[: 2 if where == "key" else 1]:
        spoilt = np.isnan(gradient).any(axis=(0, 1, 3))
        assert np.array_equal(spoilt, (np.arange(7) >= 2) & (np.arange(7) <= 4))


@pytest.mark.parametrize("case", [one_head(0, 3, 2, 2), one_head(3, 0, 2, 2), one_head(3, 2, 2, 0)])
def test_gradients_of_nothing(case):
    q, k, v = case.arrays(FLOAT64)
    found = reference.gradients(call(q, k, v), np.ones((1, len(q), v.shape[-1])))
    for gradient, array in zip(found, (q, k, v), strict=False):
        assert np.array_equal(gradient, np.zeros((1, *array.shape)))


def test_weights_follow_a_given_lse():
    made = call(*CASE.arrays(FLOAT64), mask=Causal(-1), sinks=np.ones(4))
    rows, keys = np.array([4, 0]), np.array([6, 0, 3])
    lse = reference.run(made)[1].lse[..., rows]
    found = reference.weights(made, rows, keys, None)
    assert reference.weights(made, rows, keys, lse) == pytest.approx(found, abs=1e-15)
    doubled = reference.weights(made, rows, keys, lse - np.log(2))
    assert doubled == pytest.approx(2 * found, abs=1e-15)
    assert (found[..., 1, :] == 0).all()
    blind = call(*CASE.arrays(FLOAT64), mask=Causal(-1))
    lse = reference.run(blind)[1].lse[..., rows]
    assert (lse[..., 1] == -np.inf).all()
    assert np.array_equal(reference.weights(blind, rows, keys, lse)[..., 1, :], np.zeros((2, 4, 3)))
    half = reference.weights(call(*CASE.arrays(bfloat16)), rows, keys, None)
    assert half.dtype == np.float32


# The measure of the tests


def test_the_error_measured_is_one():
    wanted, _ = reference.compute(call(*CASE.arrays(FLOAT64)))
    assert error(wanted, wanted) == 0
    for broken in (1.01 * wanted, -wanted, np.where(wanted > 0.2, np.nan, wanted)):
        assert not error(broken, wanted) <= 0.009
    torn = wanted.copy()
    torn[0, 0, 0, 0] = np.nan
    assert error(wanted, torn) == np.inf


def test_poisoned_memory_is_not_a_number():
    with poisoned_memory():
        assert np.isnan(np.empty(3)).all()
        assert np.isnan(np.empty_like(np.ones(2, np.float32))).all()
        assert (np.empty(3, np.int64) == -77).all()

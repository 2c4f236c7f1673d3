"""merge() and with_sinks(): shards joined agree with the call on everything."""

import re
from dataclasses import replace
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
import torch
from cases import bfloat16, call, poisoned_memory

from chumoku import Causal, Watch, Window, attention, merge, weights, with_sinks
from chumoku.errors import ChumokuError, InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.kernels import reference
from chumoku.merge import _rounded
from chumoku.statistics import FACTS, Statistics

GROUPS = np.array([0, 2, 1, 1, 0, 4, 2, 2, 0])
WATCH = Watch(top=4, entropy=True, saturation=True, distance=True, groups=GROUPS)
KEYS = GROUPS.size


def arrays(*lead, queries=3, dtype=np.float64, seed=0, whole=False):
    """Query, key and value; with `whole`, of whole numbers, so that many logits are equal."""
    numbers = np.random.default_rng(seed)
    shapes = (*lead, queries, 4), (*lead, KEYS, 4), (*lead, KEYS, 2)
    made = [numbers.standard_normal(shape) for shape in shapes]
    return [(np.round(x) if whole else x).astype(dtype) for x in made]


def sets(shape, parts, seed):
    """Each key of each row in one of several sets, at random; a set may be empty."""
    label = np.random.default_rng(seed).integers(parts, size=shape)
    return [label == part for part in range(parts)]


def shards(q, k, v, masks, **options):
    """One pair for each mask; the keys keep their numbers."""
    options = {"watch": WATCH, "kernel": "reference"} | options
    return [attention(q, k, v, mask=mask, **options) for mask in masks]


def joined(pairs, seed):
    """All of them merged, in a random order of pairs and brackets."""
    numbers, pairs = np.random.default_rng(seed), list(pairs)
    while len(pairs) > 1:
        a, b = (pairs.pop(int(numbers.integers(len(pairs)))) for _ in range(2))
        pairs.insert(int(numbers.integers(len(pairs) + 1)), merge(a, b))
    return pairs[0]


def same(got, wanted, bound, keys=True):
    """Whether output and every fact agree to a bound, relative to numbers above 1."""
    pairs = [("output", got[0], wanted[0])]
    assert list(got[1].facts()) == list(wanted[1].facts())
    pairs += [(n, getattr(got[1], n), fact) for n, fact in wanted[1].facts().items()]
    for name, mine, theirs in pairs:
        if name == "picture":
            mine, theirs = np.stack(mine), np.stack(theirs)
        assert mine.shape == theirs.shape, name
        assert mine.dtype == theirs.dtype, name
        if name == "top_keys":
            assert not keys or np.array_equal(mine, theirs), name
            continue
        assert np.array_equal(np.isfinite(mine), np.isfinite(theirs)), name
        there = np.isfinite(theirs)
        assert np.array_equal(mine[~there], theirs[~there], equal_nan=True), name
        off = abs(mine[there].astype(float) - theirs[there])
        assert (off <= bound * np.maximum(1, abs(theirs[there]))).all(), (name, off.max())


def bits(got, wanted):
    """Whether output and every fact are the same, bit for bit."""
    assert got[0].tobytes() == wanted[0].tobytes()
    assert list(got[1].facts()) == list(wanted[1].facts())
    for name, fact in wanted[1].facts().items():
        assert np.asarray(getattr(got[1], name)).tobytes() == np.asarray(fact).tobytes(), name


# Over the keys


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_a_thousand_partitions(parts):
    """3000 in all, each row its own, in any order: every fact within 1e-12, top keys exact."""
    q, k, v = arrays(1000, seed=parts)
    pairs = shards(q, k, v, sets((1000, 3, KEYS), parts, parts))
    with poisoned_memory():
        same(joined(pairs, parts), attention(q, k, v, watch=WATCH, kernel="reference"), 1e-12)


@pytest.mark.parametrize("scale", [0.01, 30.0, 1e3])
def test_logits_of_every_size(scale):
    q, k, v = arrays(200, seed=7)
    pairs = shards(q, k, v, sets((200, 3, KEYS), 3, 8), scale=scale)
    whole = attention(q, k, v, watch=WATCH, kernel="reference", scale=scale)
    same(joined(pairs, 1), whole, 1e-12, keys=scale < 1e3)
    first = joined(pairs, 1)[1].top_keys[..., 0]
    assert np.array_equal(first, whole[1].top_keys[..., 0])


def test_the_largest_logits_that_there_are():
    """The distance between two lse is beyond float64 here."""
    q, k = np.ones((1, 1)), np.array([[1.0], [-1.0], [1.0]])
    options = {"scale": 1.7e308, "kernel": "reference", "watch": Watch(entropy=True, top=2)}
    a, b, whole = (attention(q, x, x, **options) for x in (k[:1], k[1:2], k[:2]))
    same(merge(a, (b[0], b[1].shifted(1))), whole, 0)
    low, high = attention(q, k[1:2], k[:1], **options), np.array([1.7e308])
    same(with_sinks(low, high), attention(q, k[1:2], k[:1], sinks=high, **options), 0)


def test_masks_and_biases_that_hide():
    q, k, v = arrays(50, 2, seed=9)
    bias = np.random.default_rng(0).standard_normal((50, 2, 3, KEYS))
    bias[bias > 1] = -np.inf
    pairs = shards(q, k, v, [m & np.tri(3, KEYS, 1, bool) for m in sets((KEYS,), 3, 2)], bias=bias)
    whole = shards(q, k, v, [np.tri(3, KEYS, 1, bool)], bias=bias)[0]
    assert np.isneginf(whole[1].lse).any()
    same(joined(pairs, 5), whole, 1e-12)


def test_shards_of_one_array_are_shifted_to_their_place():
    q, k, v = arrays(4, seed=3)
    causal = shards(q, k, v, [Causal(5)])[0]
    cut = [0, 2, 2, 7, KEYS]
    pairs = []
    for first, last in pairwise(cut):
        watch = Watch(
            top=4, entropy=True, saturation=True, distance=True, groups=GROUPS[first:last]
        )
        part = slice(first, last)
        output, seen = attention(
            q, k[..., part, :], v[..., part, :], mask=Causal(5 - first), watch=watch
        )
        pairs.append((output, seen.shifted(first)))
    for order in range(6):
        same(joined(pairs, order), causal, 1e-12)
    with pytest.raises(InvalidArgumentError, match=r"b: got top_keys with key \d, which a has"):
        merge(pairs[0], (pairs[3][0], pairs[3][1].shifted(-7)))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_equal_logits_go_to_the_lower_key(dtype, scale):
    q, k, v = arrays(300, dtype=dtype, seed=4, whole=True)
    pairs = shards(q, k, v, sets((300, 3, KEYS), 3, 6), scale=scale)
    whole = attention(q, k, v, watch=WATCH, kernel="reference", scale=scale)
    ties = whole[1].top_weights[..., :-1] == whole[1].top_weights[..., 1:]
    assert ties.mean() > 0.1
    told = whole[1].top_weights > 0
    for order in range(3):
        got = joined(pairs, order)[1].top_keys
        assert np.array_equal(got[told], whole[1].top_keys[told])


def test_flow_keeps_its_relative_accuracy_where_one_key_has_everything():
    q, k, v = arrays(40, seed=11)
    made = call(q[:, None], k[:, None], v[:, None], scale=12.0, watch=WATCH)
    _, exact = reference.compute(made, np.longdouble)
    exact = exact["flow"][:, 0]
    pairs = shards(q, k, v, sets((40, 3, KEYS), 4, 1), scale=12.0)
    got = joined(pairs, 2)[1].flow
    assert (exact < 1e-9).sum() > 15
    assert (abs(got - exact) <= 1e-12 * exact).all()


@pytest.mark.parametrize(
    ("dtype", "bound"), [(np.float32, 3e-6), (np.float16, 2e-3), (bfloat16, 1.6e-2)]
)
def test_other_dtypes(dtype, bound):
    q, k, v = arrays(100, dtype=dtype, seed=5)
    pairs = shards(q, k, v, sets((100, 3, KEYS), 3, 4))
    whole = attention(q, k, v, watch=WATCH, kernel="reference")
    got = joined(pairs, 3)
    assert got[0].dtype == dtype
    assert got[1].lse.dtype == np.float32
    # Statistics are float32 for all; only the output has the rounding of its dtype, thrice.
    same((whole[0], got[1]), whole, 3e-6)
    same((got[0], whole[1]), whole, bound)


def test_bfloat16_is_rounded_once():
    """Past float32, 1 + 2^-8 + 2^-40 would fall on the tie and to the even side."""
    wide = np.array([1 + 2**-8 + 2**-40, 1 + 2**-8, 1 + 3 * 2**-8 - 2**-40, np.nan, -np.inf, 1e300])
    wanted = [1 + 2**-7, 1, 1 + 2**-7, np.nan, -np.inf, np.inf]
    with np.errstate(all="ignore"):
        got = _rounded(wide, bfloat16)
        assert np.array_equal(got.astype(float), wanted, equal_nan=True)
        assert (_rounded(-wide, bfloat16).astype(float)[:3] == -np.array(wanted[:3])).all()
    assert ml_dtypes.bfloat16(wide[0]) != got[0]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, bfloat16])
def test_no_keys_change_nothing(dtype):
    q, k, v = arrays(5, 2, dtype=dtype)
    v[..., 0] = -0.0
    pair = shards(q, k, v, [np.tri(3, KEYS, 0, bool) & (np.arange(3) > 0)[:, None]])[0]
    assert np.isneginf(pair[1].lse).any()
    watch = Watch(top=4, entropy=True, saturation=True, distance=True, groups=[])
    nothing = attention(q, k[..., :0, :], v[..., :0, :], watch=watch, kernel="reference")
    bits(merge(pair, nothing), pair)
    bits(merge(nothing, pair), pair)
    bits(merge(nothing, nothing), nothing)


def test_order_changes_only_the_rounding():
    q, k, v = arrays(60, seed=2)
    a, b, c = shards(q, k, v, sets((60, 3, KEYS), 3, 3))
    same(merge(a, b), merge(b, a), 1e-14)
    same(merge(merge(a, b), c), merge(a, merge(b, c)), 1e-14)


@pytest.mark.parametrize("wild", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["key", "value"])
def test_what_is_not_finite_stands_where_the_whole_call_has_it(wild, where):
    q, k, v = arrays(40, seed=6)
    (k if where == "key" else v)[::2, 4, 1] = wild
    # The first row sees fewer keys than its list of top keys has places.
    visible = np.ones((3, KEYS), bool)
    visible[0, 5:] = visible[0, :3] = False
    pairs = shards(q, k, v, [m & visible for m in sets((40, 3, KEYS), 3, 3)])
    (whole,) = shards(q, k, v, [visible])
    # Of keys in a row with NaN, the first alone is told by facts.
    for order in range(4):
        got = joined(pairs, order)
        same(got, whole, 1e-12, keys=where == "value")
        assert np.array_equal(got[1].top_keys[..., 0], whole[1].top_keys[..., 0])


def test_a_row_without_weights_still_feels_a_value_that_is_not_finite():
    """Every score of the shard is -inf, and 0 times NaN is NaN: so says the whole call."""
    q, k, v = np.ones((1, 1)), np.array([[-np.inf], [1.0]]), np.array([[np.nan, 1], [2, 3]])
    watch = Watch(entropy=True)
    options = {"kernel": "reference", "watch": watch}
    a, b = attention(q, k[:1], v[:1], **options), attention(q, k[1:], v[1:], **options)
    whole = attention(q, k, v, **options)
    for got in (merge(a, b), merge(b, a)):
        same(got, whole, 0)
        assert np.array_equal(got[0], [[np.nan, 3]], equal_nan=True)


def test_lists_of_different_lengths_keep_the_shorter():
    q, k, v = arrays(30)
    masks = sets((30, 3, KEYS), 2, 1)
    a, b = (shards(q, k, v, [m], watch=Watch(top=t))[0] for m, t in zip(masks, (2, 5), strict=True))
    whole = attention(q, k, v, watch=Watch(top=2))
    same(merge(a, b), whole, 1e-12)


def test_the_merged_lse_opens_the_weights_of_a_shard():
    q, k, v = arrays()
    masks = sets((KEYS,), 2, 1)
    a, b = shards(q, k, v, masks, watch=Watch())
    lse = merge(a, b)[1].lse
    block = weights(q, k[:4], lse=lse)
    assert block == pytest.approx(weights(q, k)[:, :4], rel=1e-12)


def test_two_dimensions_and_many():
    for lead in ((), (2,), (2, 1, 3)):
        q, k, v = arrays(*lead)
        pairs = shards(q, k, v, sets((KEYS,), 3, 1))
        same(joined(pairs, 0), shards(q, k, v, [None])[0], 1e-12)


def test_tensors_in_and_out():
    q, k, v = map(torch.from_numpy, arrays(6, dtype=np.float32))
    masks = [torch.from_numpy(m) for m in sets((6, 3, KEYS), 2, 2)]
    for kind, bound in ((torch.float32, 3e-6), (torch.bfloat16, 1.6e-2)):
        a, b = shards(q.to(kind), k.to(kind), v.to(kind), masks)
        output, seen = merge((a[0], a[1].shifted(0)), b)
        whole, facts = shards(q.to(kind), k.to(kind), v.to(kind), [None])[0]
        assert output.dtype == kind
        assert torch.allclose(output, whole, rtol=bound, atol=bound)
        assert torch.equal(seen.top_keys, facts.top_keys)
        assert torch.allclose(seen.entropy, facts.entropy, atol=3e-6)
    sunk, seen = with_sinks((output, seen), torch.zeros(6, dtype=kind))
    assert isinstance(seen.sink_weight, torch.Tensor)
    assert sunk.dtype == kind


# Sinks


@pytest.mark.parametrize("lead", [(), (2,), (5, 2)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_sinks_once_and_last(lead, dtype):
    q, k, v = arrays(*lead, dtype=dtype, seed=8)
    sinks = np.random.default_rng(1).standard_normal(lead[-1:] or (1,)).astype(dtype)
    blind = np.tri(3, KEYS, -1, bool)
    pairs = shards(q, k, v, [m & blind for m in sets((KEYS,), 3, 1)])
    whole = shards(q, k, v, [blind], sinks=sinks)[0]
    got = with_sinks(joined(pairs, 0), sinks)
    same(got, whole, 1e-12 if dtype == np.float64 else 3e-6)
    assert got[1].sink_weight[..., 0] == pytest.approx(1)


@pytest.mark.parametrize("sink", [-1e4, -40.0, 40.0, 1e4, -np.inf])
def test_sinks_of_every_size(sink):
    q, k, v = arrays(2, seed=8)
    sinks = np.array([sink, 0.0])
    blind = np.tri(3, KEYS, -1, bool)
    (pair,) = shards(q, k, v, [blind])
    (whole,) = shards(q, k, v, [blind], sinks=sinks)
    got = with_sinks(pair, sinks)
    same(got, whole, 1e-12)
    assert got[1].flow == pytest.approx(whole[1].flow, rel=1e-12)
    assert got[1].sink_weight == pytest.approx(whole[1].sink_weight, rel=1e-12)
    if sink == -np.inf:
        assert got[0][0].tobytes() == pair[0][0].tobytes()


def test_a_nan_sink_is_felt_by_the_rows_that_see():
    q, k, v = arrays(2, seed=8)
    blind = np.tri(3, KEYS, -1, bool)
    sinks = np.array([np.nan, 0.0])
    same(
        with_sinks(shards(q, k, v, [blind])[0], sinks),
        shards(q, k, v, [blind], sinks=sinks)[0],
        1e-12,
    )


def test_shards_with_sinks_are_refused():
    q, k, v = arrays(2)
    a, b = shards(q, k, v, sets((KEYS,), 2, 1), sinks=np.zeros(2))
    (plain,) = shards(q, k, v, [None])
    for pair in ((a, b), (plain, b), (b, plain)):
        with pytest.raises(InvalidArgumentError, match=r"[ab]: got a call with sinks.*with_sinks"):
            merge(*pair)
    with pytest.raises(InvalidArgumentError, match="pair: got a call with sinks"):
        with_sinks(a, np.zeros(2))


@pytest.mark.parametrize(
    ("sinks", "error", "words"),
    [
        (np.zeros(3), InvalidArgumentError, r"sinks: got shape \(3,\), expected \(2,\)"),
        (np.zeros((2, 1)), InvalidArgumentError, "sinks: got shape"),
        (np.zeros(2, np.float32), InvalidTypeError, "sinks: got float32, expected float64"),
        (np.zeros(2, int), InvalidTypeError, "sinks"),
        ([0.0, 0.0], InvalidTypeError, "sinks"),
        (None, InvalidTypeError, "sinks"),
    ],
)
def test_wrong_sinks(sinks, error, words):
    with pytest.raises(error, match=words):
        with_sinks(shards(*arrays(2), [None])[0], sinks)


# Over the queries


EVERYTHING = Watch(
    top=4,
    entropy=True,
    saturation=True,
    distance=True,
    received=True,
    groups=GROUPS,
    picture=(6, 5),
)


@pytest.mark.parametrize("sinks", [None, np.zeros(2)])
def test_queries_behind_one_another(sinks):
    q, k, v = arrays(4, 2, queries=6)
    mask = Causal(1)
    options = {"kernel": "reference", "sinks": sinks}
    whole = attention(q, k, v, mask=mask, watch=EVERYTHING, **options)
    assert (whole[1].received_share == 0).any()
    half = replace(EVERYTHING, picture=(3, 5))
    a = attention(q[..., :3, :], k, v, mask=Causal(1), watch=half, **options)
    b = attention(q[..., 3:, :], k, v, mask=Causal(4), watch=half, **options)
    same(merge(a, b, over="queries"), whole, 1e-14)


def test_shares_of_one_query_after_another():
    """The number of queries that see a key is told again after every merge."""
    q, k, v = (x.astype(np.float32) for x in arrays(4, queries=40))
    watch = Watch(received=True)
    whole = attention(q, k, v, mask=Window(3, 2, 0), watch=watch, kernel="reference")
    merged = None
    for i in range(40):
        one = attention(
            q[:, i : i + 1], k, v, mask=Window(3, 2, i), watch=watch, kernel="reference"
        )
        merged = one if merged is None else merge(merged, one, over="queries")
    same(merged, whole, 3e-6)


def test_the_counts_behind_shares_are_whole_numbers():
    """received / share is a count up to rounding; the shares of the whole have none of it."""
    numbers = np.random.default_rng(0)
    counts = numbers.integers(0, 50, (2, 1000))
    masses = (numbers.random((2, 1000)) * counts).astype(np.float32)
    pairs = []
    for mass, count in zip(masses, counts, strict=True):
        share = (mass / np.maximum(count, 1)).astype(np.float32)
        line = np.zeros(1, np.float32)
        seen = Statistics(lse=line, max_logit=line, received=mass, received_share=share)
        pairs.append((line[:, None], seen))
    got = merge(*pairs, over="queries")[1].received_share
    wanted = masses.astype(float).sum(axis=0) / np.maximum(counts.sum(axis=0), 1)
    assert np.array_equal(got, wanted.astype(np.float32))


def test_queries_of_different_watches_do_not_fit():
    q, k, v = arrays()
    for one, other, words in [
        (Watch(top=2), Watch(top=3), "top_keys of shape"),
        (Watch(groups=GROUPS), Watch(groups=GROUPS % 2), "group_mass of shape"),
        (Watch(picture=(2, 2)), Watch(picture=(2, 3)), "picture_mean of shape"),
    ]:
        a, b = (shards(q, k, v, [None], watch=watch)[0] for watch in (one, other))
        with pytest.raises(InvalidArgumentError, match=f"b: got {words}.*in the last axis, as a"):
            merge(a, b, over="queries")
    a = shards(q, k, v, [None], watch=Watch(received=True))[0]
    b = shards(q, k[:5], v[:5], [None], watch=Watch(received=True))[0]
    with pytest.raises(InvalidArgumentError, match=r"b: got received of shape \(5,\)"):
        merge(a, b, over="queries")


# What is refused


@pytest.mark.parametrize("option", [{"received": True}, {"picture": (2, 2)}])
def test_sums_over_queries_do_not_merge_over_keys(option):
    a, b = shards(*arrays(2), sets((KEYS,), 2, 1), watch=Watch(**option))
    name = next(iter(option))
    with pytest.raises(
        UnavailableError, match=rf"a: got {name}, a sum over the queries.*weights\("
    ):
        merge(a, b)
    with pytest.raises(UnavailableError, match=f"pair: got {name}"):
        with_sinks(a, np.zeros(2))


def watch_of(option):
    """The Watch that brings a fact, from the text that names it."""
    given = option.replace("...", "GROUPS")
    return eval(given, {"Watch": Watch, "GROUPS": GROUPS})


@pytest.mark.parametrize("option", sorted({o for o in FACTS.values() if o.startswith("Watch")}))
def test_a_fact_that_only_one_has_is_named(option):
    q, k, v = arrays(2)
    watch = watch_of(option)
    (full,) = shards(q, k, v, [None], watch=watch)
    (bare,) = shards(q, k, v, [None], watch=Watch())
    over = "queries" if "received" in option or "picture" in option else "keys"
    first = next(name for name, where in FACTS.items() if where == option)
    for pair, name in (((full, bare), "b"), ((bare, full), "a")):
        with pytest.raises(InvalidArgumentError, match=rf"{name}: got no {first}") as raised:
            merge(*pair, over=over)
        assert option in str(raised.value)


def wrong():
    """Pairs that are none, beside one that is."""
    q, k, v = arrays(2)
    good = shards(q, k, v, [None])[0]
    output, seen = good
    facts = seen.facts()
    single = shards(*arrays(2, dtype=np.float32), [None])[0]

    def broken(**changed):
        return output, Statistics(**{**facts, **changed})

    return {
        "no pair": (good, 3),
        "the output alone": (output, output),
        "three": (good, (*good, 1)),
        "nothing": (None, None),
        "no statistics": (good, (output, {})),
        "no output": (good, (None, seen)),
        "integers": (good, (output.astype(int), seen)),
        "another shape": (good, shards(q[:, :2], k, v, [None])[0]),
        "another width": (good, (output[..., :1], seen)),
        "another dtype": (good, single),
        "statistics of another dtype": ((output.astype(np.float32), seen), good),
        "both of another dtype": ((output.astype(np.float32), seen),) * 2,
        "statistics of another call": ((output[:, :2], seen), good),
        "torn lse": (good, broken(lse=facts["lse"][..., 0])),
        "no lse": (good, (output, Statistics(entropy=facts["entropy"]))),
        "scalar": (good, (output, Statistics(lse=np.float64(3)))),
        "torn top_keys": (good, broken(top_keys=facts["top_keys"][..., 0])),
        "float top_keys": (good, broken(top_keys=facts["top_weights"])),
        "no top_weights": (
            good,
            (output, Statistics(**{n: f for n, f in facts.items() if n != "top_weights"})),
        ),
        "integer lse": (good, broken(lse=facts["lse"].astype(np.int64))),
        "a list": (good, broken(entropy=[1.0])),
        "no picture": (good, broken(picture=3)),
        "torn picture": (good, broken(picture=(np.zeros((2, 2)),))),
        "tensors": (good, (torch.from_numpy(output), seen)),
        "tensors on one side": (
            good,
            (
                torch.from_numpy(output),
                Statistics(**{n: torch.from_numpy(f) for n, f in facts.items()}),
            ),
        ),
    }


@pytest.mark.parametrize("case", wrong())
@pytest.mark.parametrize("over", ["keys", "queries"])
def test_wrong_pairs(case, over):
    a, b = wrong()[case]
    for pair in ((a, b), (b, a)):
        if case == "another shape" and over == "queries":
            merge(*pair, over=over)
            continue
        with pytest.raises(ChumokuError) as raised:
            merge(*pair, over=over)
        error = raised.value
        assert error.argument
        assert error.got
        assert error.expected


def test_wrong_over():
    pair = shards(*arrays(), [None])[0]
    for over in ("values", None, 3, ["keys"]):
        with pytest.raises(InvalidArgumentError, match=re.escape("expected 'keys' or 'queries'")):
            merge(pair, pair, over=over)


def test_inputs_stay_as_they_are():
    pairs = shards(*arrays(3), sets((3, 3, KEYS), 2, 1))
    before = [(o.copy(), {n: f.copy() for n, f in s.facts().items()}) for o, s in pairs]
    got = merge(*pairs)
    for (output, seen), (old, facts) in zip(pairs, before, strict=True):
        bits((output, seen), (old, Statistics(**facts)))
        for name, fact in got[1].facts().items():
            assert not np.shares_memory(fact, getattr(seen, name)), name

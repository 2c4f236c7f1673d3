"""The softmax trap: against theory, softmax's Jacobian, and the model's own statistics."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import sqrt

import numpy as np
import pytest
from strange import anything, outcome

from chumoku.errors import InvalidArgumentError, UnavailableError
from chumoku.models import default_model
from chumoku.trap import (
    EVEN,
    SATURATED,
    WIDTHS,
    HeadTrap,
    Softmax,
    entropy_bound,
    saturated_heads,
    three_rows,
    width_study,
)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class Trace:
    query: np.ndarray
    key: np.ndarray


@dataclass(frozen=True)
class Fake:
    traces: tuple[Trace, ...]


@pytest.mark.parametrize(
    ("keys", "norm", "bound"), [(8, 5.0, 0.205592), (64, 5.0, 1.802616), (1024, 5.0, 6.431134)]
)
def test_the_entropy_bound_is_zhais_and_is_reached(keys: int, norm: float, bound: float) -> None:
    assert entropy_bound(norm, keys) == pytest.approx(bound, abs=1e-6)
    logits = np.full(keys, -norm / sqrt(keys * (keys - 1)))
    logits[0] = norm * sqrt((keys - 1) / keys)
    assert np.linalg.norm(logits) == pytest.approx(norm)
    weights = softmax(logits)
    assert -(weights * np.log(weights)).sum() == pytest.approx(bound, abs=1e-6)
    assert entropy_bound(0.0, keys) == pytest.approx(np.log(keys))
    assert entropy_bound([1e6, 1.0], keys).shape == (2,)
    assert entropy_bound(1e6, keys) == 0.0
    assert entropy_bound(3.0, 1) == 0.0


def test_three_rows() -> None:
    large, right, small = three_rows()
    assert [row.facts.verdict for row in (large, right, small)] == ["large", "right", "small"]
    assert right.weights == pytest.approx((0.0900, 0.2447, 0.6652), abs=1e-4)
    assert large.weights == pytest.approx((0.0, 0.0, 1.0), abs=1e-4)
    assert small.weights == pytest.approx((1 / 3,) * 3, abs=4e-3)
    for row in (large, right, small):
        weights = softmax(np.array(row.logits))
        facts = row.facts
        assert row.weights == pytest.approx(tuple(weights))
        assert (facts.rows, facts.keys, facts.scale) == (1, 3, 1.0)
        assert facts.entropy == pytest.approx(-(weights * np.log(weights)).sum())
        assert facts.share == pytest.approx(facts.entropy / np.log(3))
        assert facts.saturation == pytest.approx((weights**2).sum())
        assert facts.flow == pytest.approx((weights * (1 - weights)).sum())
        assert facts.largest == pytest.approx(weights.max())
        assert facts.deviation == pytest.approx(np.std(row.logits))
        assert facts.floor <= facts.entropy + 1e-12


def test_without_the_scale_the_logits_grow_as_the_root_of_the_width() -> None:
    points = width_study()
    assert [(p.width, p.scaled) for p in points] == [(w, s) for w in WIDTHS for s in (False, True)]
    for point in points:
        assert point.theory == pytest.approx(1.0 if point.scaled else sqrt(point.width))
        assert point.facts.deviation == pytest.approx(point.theory, rel=0.12)
        assert point.facts.floor <= point.facts.entropy
        assert point.facts.saturation + point.facts.flow == pytest.approx(1.0)
    at = {(point.width, point.scaled): point for point in points}
    assert at[512, False].facts.deviation == pytest.approx(22.6, rel=0.03)
    assert at[512, False].facts.verdict == "large"
    assert at[512, False].facts.share < 0.1 < 0.8 < at[512, True].facts.share
    assert {at[width, True].facts.verdict for width in WIDTHS} == {"right"}
    # What flows back: nearly nothing reaches a typical row, and its query, without the scale.
    assert at[512, False].median_logits < 0.02 * at[512, True].median_logits
    assert at[512, False].median_query < 0.2 * at[512, True].median_query
    assert at[512, False].gradient_logits < 0.5 * at[512, True].gradient_logits
    saturations = [at[width, False].facts.saturation for width in WIDTHS]
    assert saturations == sorted(saturations)


def test_the_gradient_is_that_of_softmax() -> None:
    """Against the Jacobian written out, diag(p) - p p', and against differences."""
    point = width_study((6,), keys=5, queries=3, seed=11)[1]
    upstream = np.random.default_rng(11).standard_normal((3, 5))
    random = np.random.default_rng([11, 6])
    query, key = random.standard_normal((3, 6)), random.standard_normal((5, 6))
    logits, through = [], []
    for row in range(3):
        p = softmax(key @ query[row] / sqrt(6))
        logits.append((np.diag(p) - np.outer(p, p)) @ upstream[row])
        step = 1e-6
        moved = [
            upstream[row] @ (softmax(key @ (query[row] + e) / sqrt(6)) - p) / step
            for e in step * np.eye(6)
        ]
        through.append(np.linalg.norm(moved))
    norms = np.linalg.norm(logits, axis=-1)
    assert point.gradient_logits == pytest.approx(norms.mean())
    assert point.median_logits == pytest.approx(np.median(norms))
    assert point.gradient_query == pytest.approx(np.mean(through), rel=1e-4)
    assert point.median_query == pytest.approx(np.median(through), rel=1e-4)


def test_a_width_does_not_depend_on_the_others() -> None:
    assert width_study((64,)) == width_study((8, 64))[2:]
    assert width_study((64,), seed=1) != width_study((64,))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"widths": (0,)}, "widths"),
        ({"widths": (8, 1025)}, "widths"),
        ({"keys": 1}, "keys"),
        ({"queries": 0}, "queries"),
    ],
)
def test_widths_that_cannot_be_are_refused(arguments: dict[str, int], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        width_study(**arguments)  # type: ignore[arg-type]


def check(facts: Softmax, query: np.ndarray, key: np.ndarray, scale: float) -> None:
    logits = scale * query.astype(np.float64) @ key.T.astype(np.float64)
    weights = softmax(logits)
    logs = np.log(np.where(weights > 0, weights, 1.0))
    entropy = -(weights * logs).sum(axis=-1)
    saturation = (weights**2).sum(axis=-1)
    assert (facts.rows, facts.keys) == logits.shape
    assert facts.scale == pytest.approx(scale)
    assert facts.deviation == pytest.approx(logits.std(axis=-1).mean(), rel=1e-5)
    assert facts.entropy == pytest.approx(entropy.mean(), rel=1e-4, abs=1e-6)
    assert facts.share == pytest.approx(entropy.mean() / np.log(key.shape[0]), rel=1e-4, abs=1e-6)
    assert facts.saturation == pytest.approx(saturation.mean(), rel=1e-4)
    assert facts.flow == pytest.approx((1 - saturation).mean(), rel=1e-3, abs=1e-6)
    assert facts.largest == pytest.approx(weights.max(axis=-1).mean(), rel=1e-4)
    assert facts.saturated == pytest.approx((saturation > SATURATED).mean(), abs=1e-9)
    assert facts.even == pytest.approx((entropy / np.log(key.shape[0]) > EVEN).mean(), abs=1e-9)


def each(entry: HeadTrap) -> tuple[Softmax, Softmax, Softmax]:
    return entry.as_is, entry.unscaled, entry.multiplied


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_heads_of_given_queries_and_keys(kv_heads: int) -> None:
    random = np.random.default_rng(3)
    traces = []
    for _ in range(2):
        query = random.standard_normal((4, 7, 16)).astype(np.float32)
        # A key head each for no choice, a mild one, a sharp one and one with everything.
        sizes = np.array([0.01, 1.0, 4.0, 60.0])[-kv_heads:, None, None]
        key = (sizes * random.standard_normal((kv_heads, 7, 16))).astype(np.float32)
        traces.append(Trace(query, key))
    seen = saturated_heads(Fake(tuple(traces)), factor=20.0)
    assert (seen.layers, seen.heads, seen.rows, seen.factor) == (2, 4, 7, 20.0)
    for entry in seen.entries:
        trace = traces[entry.layer]
        key = trace.key[entry.head // (4 // kv_heads)]
        for facts, scale in zip(each(entry), (0.25, 1.0, 5.0), strict=True):
            check(facts, trace.query[entry.head], key, scale)
    assert seen.at(1, 3) is seen.entries[7]
    if kv_heads == 4:
        assert seen.having("large") == ((0, 3), (1, 3))
        assert seen.having("small") == ((0, 0), (1, 0))
        assert seen.having("right") == ((0, 1), (0, 2), (1, 1), (1, 2))
        assert set(seen.having("large")) < set(seen.having("large", "multiplied"))


def test_what_cannot_be_read_is_refused() -> None:
    one = Fake((Trace(np.ones((1, 2, 4)), np.ones((1, 2, 4))),))
    for factor in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InvalidArgumentError, match="factor"):
            saturated_heads(one, factor=factor)
    with pytest.raises(InvalidArgumentError, match="no traced layer"):
        saturated_heads(Fake(()))
    seen = saturated_heads(one)
    with pytest.raises(InvalidArgumentError, match="head: got 1, expected .* from 0 to 0"):
        seen.at(0, 1)
    with pytest.raises(InvalidArgumentError, match="verdict"):
        seen.having("huge")
    with pytest.raises(InvalidArgumentError, match="which"):
        seen.having("large", "scaled")


def test_the_default_model_is_saturated_without_its_scale() -> None:
    try:
        model = default_model()
    except UnavailableError as error:
        pytest.skip(f"the default model is not here: {error}")
    encoding = model.encode("The old library at the end of the street keeps more maps than books.")
    seen = saturated_heads(encoding, factor=8.0)
    assert (seen.layers, seen.heads, seen.rows) == (12, 12, len(encoding.tokens))
    for layer, entry in enumerate(encoding.recording):
        for head in range(12):
            facts = seen.at(layer, head).as_is
            recorded = entry.statistics
            assert facts.saturation == pytest.approx(recorded.saturation[head].mean(), rel=1e-4)
            assert facts.entropy == pytest.approx(recorded.entropy[head].mean(), rel=1e-3)
    as_is, unscaled = seen.having("large"), seen.having("large", "unscaled")
    assert 1 <= len(as_is) < 10
    assert len(unscaled) > 8 * len(as_is)
    assert (2, 6) in as_is  # it always looks at the next token: saturated, and at work


def test_the_bound_of_any_norm() -> None:
    assert entropy_bound([1e3, 1e308, np.inf], 5).tolist() == [0.0, 0.0, 0.0]
    assert np.isnan(entropy_bound(np.nan, 5))
    for norm, keys, words in ((-1.0, 5, "norm: got -1.0"), (1.0, -1, "keys: got -1")):
        with pytest.raises(InvalidArgumentError, match=words):
            entropy_bound(norm, keys)


def test_only_the_library_s_errors_come_out() -> None:
    rng = random.Random(8)
    fake = Fake((Trace(np.ones((1, 2, 4)), np.ones((1, 2, 4))),))
    seen = saturated_heads(fake)
    for _ in range(1500):
        bound = outcome(entropy_bound, anything(rng), rng.choice([4, anything(rng)]))
        assert isinstance(bound, type) or bound.dtype == np.float64
        widths = rng.choice([(4,), anything(rng)])
        named = {n: anything(rng) for n in ("keys", "queries", "seed") if rng.random() < 0.3}
        outcome(width_study, widths, **({"keys": 4, "queries": 2} | named))
        outcome(saturated_heads, rng.choice([fake, anything(rng)]), factor=anything(rng))
        outcome(seen.at, rng.choice([0, anything(rng)]), anything(rng))
        outcome(seen.having, rng.choice(["large", anything(rng)]), anything(rng))

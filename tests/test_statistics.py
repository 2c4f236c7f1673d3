"""Statistics: reference values of the literature, and what Watch and Statistics promise."""

import copy
import math
import pickle

import numpy as np
import pytest

from chumoku import attention
from chumoku.errors import ChumokuError, InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.kernels import KERNELS
from chumoku.statistics import FACTS, Statistics, Watch


def looks(logits, dtype=np.float64, **options):
    """What one query sees whose logits are these numbers."""
    key = np.array(logits, dtype)[:, None]
    ones = np.ones((1, 1), dtype)
    _, seen = attention(ones, key, key, scale=1.0, **options)
    return seen


@pytest.fixture(params=[k.name for k in KERNELS])
def kernel(request):
    return request.param


@pytest.mark.parametrize(
    ("logits", "percent"), [([1, 2, 3], [9.0, 24.5, 66.5]), ([10, 20, 30], [0, 0, 100])]
)
def test_the_softmax_trap_in_one_line(kernel, logits, percent):
    seen = looks(logits, watch=Watch(top=3), kernel=kernel)
    assert seen.top_keys.tolist() == [[2, 1, 0]]
    assert np.round(100 * seen.top_weights[0, ::-1], 1).tolist() == percent


@pytest.mark.parametrize(
    ("keys", "sigma", "bound"), [(8, 5, 0.205592), (64, 5, 1.802616), (1024, 5, 6.431134)]
)
def test_entropy_bound_of_zhai_2023(kernel, keys, sigma, bound):
    """Stabilizing Transformer Training by Preventing Attention Entropy Collapse, theorem 3.1.

    The bound is reached by one logit at sigma sqrt((T - 1) / T), the others equal.
    """
    beta = math.exp(-sigma * math.sqrt(keys / (keys - 1)))
    rest = (keys - 1) * beta
    formula = math.log1p(rest) + sigma * math.sqrt(keys * (keys - 1)) * beta / (1 + rest)
    assert formula == pytest.approx(bound, abs=5e-7)
    logits = np.full(keys, -sigma / math.sqrt(keys * (keys - 1)))
    logits[keys // 2] = sigma * math.sqrt((keys - 1) / keys)
    assert np.linalg.norm(logits) == pytest.approx(sigma)
    seen = looks(logits, watch=Watch(entropy=True), kernel=kernel)
    assert seen.entropy.item() == pytest.approx(formula, rel=1e-12)
    single = looks(logits, np.float32, watch=Watch(entropy=True), kernel=kernel)
    assert single.entropy.item() == pytest.approx(formula, abs=1e-5)


@pytest.mark.parametrize("keys", [1, 2, 7, 100])
def test_uniform_rows(kernel, keys):
    watch = Watch(entropy=True, saturation=True, distance=True)
    seen = looks(np.full(keys, 2.5), watch=watch, kernel=kernel)
    assert seen.lse.item() == pytest.approx(2.5 + math.log(keys))
    assert seen.max_logit.item() == 2.5
    assert seen.entropy.item() == pytest.approx(math.log(keys), rel=1e-13, abs=1e-15)
    assert seen.saturation.item() == pytest.approx(1 / keys)
    assert seen.flow.item() == pytest.approx(1 - 1 / keys)
    # The only query stands at the last key.
    assert seen.distance.item() == pytest.approx((keys - 1) / 2)


@pytest.mark.parametrize(("gap", "naive"), [(15.0, 0.17), (17.0, 1.0)])
def test_flow_does_not_cancel(kernel, gap, naive):
    """1 - sum p^2 in float32 is 17 % wrong at a gap of 15, and 0 at 17."""
    away = 1 / (1 + math.exp(gap))
    flow = 2 * away * (1 - away)
    # The squares of the weights as a running softmax has them: sum e^2(s - m) / (sum e^(s - m))^2.
    total = np.float32(1) + np.float32(math.exp(-gap))
    assert abs(1 - 1 / (total * total) - flow) / flow == pytest.approx(naive, abs=0.01)
    seen = looks([gap, 0.0], np.float32, watch=Watch(saturation=True), kernel=kernel)
    assert seen.flow.item() == pytest.approx(flow, rel=1e-5)


def test_equal_tokens_without_positions_look_at_all_before_them(kernel):
    """Gu 2024: then query t gives each of its keys 1 / t."""
    x = np.ones((9, 4))
    _, seen = attention(
        x, x, x, mask=np.tri(9, dtype=bool), watch=Watch(saturation=True, top=1), kernel=kernel
    )
    assert seen.saturation == pytest.approx(1 / np.arange(1, 10))
    assert seen.top_weights[:, 0] == pytest.approx(1 / np.arange(1, 10))


def test_logits_grow_with_the_width_unless_they_are_scaled(kernel):
    """The variance of q.k is the width: at 512 the deviation is 22.6, and 1 with 1 / sqrt(512)."""
    numbers = np.random.default_rng(0)
    q, k = numbers.standard_normal((2, 200, 512)).astype(np.float32)
    saturation = {}
    for scale in (1.0, None):
        _, seen = attention(q, k, k, scale=scale, watch=Watch(saturation=True), kernel=kernel)
        saturation[scale] = float(seen.saturation.mean())
    assert (q @ k.T).std() == pytest.approx(512**0.5, rel=0.02)
    assert saturation[1.0] > 0.75
    assert saturation[None] < 0.02


# Watch


def test_watching_nothing_gives_lse_and_max_logit():
    assert list(looks([1.0, 2.0], watch=Watch()).facts()) == ["lse", "max_logit"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"top": -1}, InvalidArgumentError, "top: got -1, expected 0 or more keys"),
        ({"top": 1.0}, InvalidTypeError, "top: got 1.0"),
        ({"top": True}, InvalidTypeError, "top: got True"),
        ({"entropy": 1}, InvalidTypeError, "entropy: got 1, expected True or False"),
        ({"received": "yes"}, InvalidTypeError, "received: got 'yes'"),
        ({"groups": [0.5]}, InvalidTypeError, "groups: got float64"),
        ({"groups": [[1]]}, InvalidTypeError, r"groups: got int64 of shape \(1, 1\)"),
        ({"groups": [0, -2]}, InvalidArgumentError, "groups: got group -2, expected groups from 0"),
        (
            {"picture": (3,)},
            InvalidArgumentError,
            r"picture: got \(3,\), expected \(rows, columns\)",
        ),
        ({"picture": (0, 3)}, InvalidArgumentError, "picture"),
        ({"picture": 5}, InvalidArgumentError, "picture: got 5"),
        ({"picture": (2.0, 3)}, InvalidArgumentError, "picture"),
    ],
)
def test_wrong_watches(options, error, words):
    with pytest.raises(error, match=words):
        Watch(**options)


def test_the_union_of_two_watches():
    groups = np.array([0, 1])
    both = Watch(top=3, entropy=True, groups=groups) | Watch(top=5, distance=True, picture=(2, 3))
    assert (both.top, both.entropy, both.distance, both.saturation) == (5, True, True, False)
    assert both.groups.tolist() == [0, 1]
    assert both.picture == (2, 3)
    assert (Watch(received=True) | Watch(saturation=True)).received
    assert (both | Watch(groups=[0, 1])).groups.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "one", "other"), [("groups", [0, 1], [1, 0]), ("picture", (2, 3), (3, 2))]
)
def test_watches_that_contradict_each_other(name, one, other):
    with pytest.raises(InvalidArgumentError, match=f"{name}: got two different requests"):
        Watch(**{name: one}) | Watch(**{name: other})


def test_groups_are_kept_from_change():
    groups = np.array([0, 1])
    watch = Watch(groups=groups)
    groups[0] = 7
    assert watch.groups.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        watch.groups[0] = 7


# Statistics


@pytest.mark.parametrize("name", [n for n, option in FACTS.items() if option])
def test_what_was_not_watched_names_the_option(name):
    with pytest.raises(UnavailableError) as raised:
        getattr(looks([1.0], watch=Watch()), name)
    assert str(raised.value).startswith(f"{name}: got a call that did not watch it")
    assert FACTS[name] in str(raised.value)


def test_each_option_brings_the_facts_that_it_promises():
    options = {
        "top": 2,
        "entropy": True,
        "saturation": True,
        "distance": True,
        "received": True,
        "groups": [0, 1, 0],
        "picture": (2, 2),
    }
    for option, value in options.items():
        seen = looks([1.0, 2.0, 3.0], watch=Watch(**{option: value}), kernel="reference")
        promised = {n for n, where in FACTS.items() if where.startswith(f"Watch({option}=")}
        assert promised
        assert set(seen.facts()) == {"lse", "max_logit"} | promised
    seen = looks([1.0], watch=Watch(), sinks=np.zeros(1), kernel="reference")
    assert seen.sink_weight.item() == pytest.approx(1 / (1 + math.e))


def test_unknown_names():
    seen = looks([1.0], watch=Watch())
    with pytest.raises(AttributeError, match="no fact 'entrpy'; it knows lse"):
        seen.entrpy  # noqa: B018
    with pytest.raises(InvalidArgumentError, match="facts: got entrpy"):
        Statistics(entrpy=1)


def test_frozen():
    seen = looks([1.0], watch=Watch(entropy=True))
    with pytest.raises(AttributeError, match="frozen: entropy cannot be set"):
        seen.entropy = 1
    with pytest.raises(AttributeError, match="frozen: lse cannot be deleted"):
        del seen.lse


def test_copied_and_pickled():
    seen = looks([1.0, 2.0], watch=Watch(top=1))
    for other in (copy.copy(seen), copy.deepcopy(seen), pickle.loads(pickle.dumps(seen))):
        assert repr(other) == repr(seen) == "Statistics(lse, max_logit, top_keys, top_weights)"
        assert np.array_equal(other.top_weights, seen.top_weights)
        with pytest.raises(UnavailableError):
            other.entropy  # noqa: B018


def test_errors_are_the_librarys():
    with pytest.raises(ChumokuError):
        looks([1.0], watch=Watch()).received  # noqa: B018

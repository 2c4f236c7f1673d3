"""Statistics: reference values of the literature, and what Watch and Statistics promise."""

import copy
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import HOST_KERNELS
from hypothesis import given, settings
from hypothesis import strategies as st

from chumoku import attention
from chumoku.errors import ChumokuError, InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.statistics import FACTS, Statistics, Watch


def looks(logits, dtype=np.float64, **options):
    """What one query sees whose logits are these numbers."""
    key = np.array(logits, dtype)[:, None]
    ones = np.ones((1, 1), dtype)
    _, seen = attention(ones, key, key, scale=1.0, **options)
    return seen


@pytest.fixture(params=[k.name for k in HOST_KERNELS])
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
        ({"top": -1}, InvalidArgumentError, "top: got -1, expected a whole number of keys from 0"),
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
            r"picture: got \(3\), expected \(rows, columns\)",
        ),
        ({"picture": (0, 3)}, InvalidArgumentError, "picture"),
        ({"picture": (1, 4097)}, InvalidArgumentError, r"picture: got \(1, 4097\)"),
        ({"groups": [2**20, 0]}, InvalidArgumentError, "groups: got group 1048576.*np.unique"),
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


def test_equal_watches():
    one = Watch(top=2, groups=[0, 1], picture=(2, 3))
    same = Watch(top=np.int32(2), groups=np.array([0, 1], np.uint8), picture=[2, 3])
    assert one == same
    assert hash(one) == hash(same)
    assert len({one, same, Watch(), Watch(entropy=np.False_)}) == 2
    for other in (
        Watch(),
        replace(one, top=3),
        replace(one, received=True),
        replace(one, groups=[0, 1, 1]),
        replace(one, groups=[1, 0]),
        replace(one, groups=None),
        replace(one, picture=(3, 2)),
        3,
        None,
    ):
        assert one != other
    with pytest.raises(TypeError):
        one | 3
    for copied in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert copied == one


@pytest.mark.parametrize(
    "groups",
    [
        (0, 2, 1),
        np.array([0, 2, 1], np.uint64),
        torch.tensor([0, 2, 1]),
        np.arange(6)[::-2] // 2 * 0 + [0, 2, 1],
        np.array([0, 2, 1], ">i4"),
    ],
)
def test_kinds_of_groups(groups):
    watch = Watch(groups=groups)
    assert watch.groups.dtype == np.int64
    assert watch.groups.dtype.isnative
    assert watch == Watch(groups=[0, 2, 1])
    seen = looks([1.0, 2.0, 3.0], watch=watch, kernel="reference")
    assert seen.group_mass.shape == (1, 3)


def test_groups_of_no_keys():
    for groups in ([], (), np.zeros(0), np.zeros(0, np.int64)):
        assert Watch(groups=groups).groups.dtype == np.int64
        assert looks([], watch=Watch(groups=groups), kernel="reference").group_mass.shape == (1, 0)


def test_the_largest_numbers_that_are_allowed():
    watch = Watch(top=2**20, groups=[2**20 - 1, 0], picture=(4096, 4096))
    seen = looks([1.0, 2.0], watch=watch, kernel="reference")
    assert seen.top_keys.shape == (1, 2**20)
    assert seen.top_keys[0, :3].tolist() == [1, 0, -1]
    assert seen.group_mass.shape == (1, 2**20)
    assert seen.group_mass[0, [0, -1]].tolist() == seen.top_weights[0, :2].tolist()
    assert seen.picture[0].shape == (4096, 4096)


class Awkward:
    """An object whose every answer is an error."""

    def __repr__(self):
        raise ValueError("no repr")

    def __array__(self, *_, **__):
        raise RuntimeError("no array")

    def __len__(self):
        raise TypeError("no length")

    def __iter__(self):
        raise KeyError("no items")


ODD = [
    -1,
    2**20 + 1,
    2**62,
    10**12,
    10**5000,
    -(10**5000),
    1.5,
    math.nan,
    math.inf,
    1j,
    "a",
    b"a",
    None,
    ...,
    {},
    set(),
    object(),
    Awkward(),
    [[1], [1, 2]],
    [None, 1],
    [1, "a"],
    [10**30, 1],
    [2**63, 1],
    [-1, 2],
    [10**12, 0],
    [2**20, 0],
    [True, False],
    (True, True),
    (10**7, 10**7),
    (10**5000, 1),
    (2, 3, -4),
    (2.0, 3),
    ("2", "3"),
    np.zeros((2, 2), int),
    np.array(3),
    np.ma.array([0, 1], mask=[0, 1]),
    np.array([2**64 - 1], np.uint64),
    np.array(["2020-01-01"], "M8[D]"),
    np.array([(1, 2)], "i4,i4"),
    torch.zeros(2),
    torch.zeros(2, dtype=torch.int64, device="meta"),
    torch.zeros(2, dtype=torch.int64).to_sparse(),
    lambda: 3,
    Watch,
]


@pytest.mark.parametrize(
    "option", ["top", "entropy", "saturation", "distance", "received", "groups", "picture"]
)
@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_odd_values_raise_the_librarys_errors(option, value):
    if value is None and option in ("groups", "picture"):
        return
    with pytest.raises(ChumokuError) as raised:
        Watch(**{option: value})
    error = raised.value
    assert error.argument == option
    assert len(str(error)) < 400


MESS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers(), inner, max_size=2)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.dictionaries(
        st.sampled_from(["top", "entropy", "saturation", "distance", "received", "groups"])
        | st.just("picture"),
        MESS,
        max_size=4,
    )
)
def test_whatever_is_asked_for_is_a_watch_or_an_error(options):
    try:
        watch = Watch(**options)
    except ChumokuError as error:
        assert error.argument in options
    else:
        assert watch == Watch(**options)
        assert hash(watch) == hash(Watch(**options))


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


def test_shifting_moves_the_keys_that_are_there():
    for kind in (np.asarray, torch.tensor):
        seen = Statistics(
            lse=kind([1.0, 2.0]), top_keys=kind([[3, 0], [1, -1]]), top_weights=kind([[1.0, 0]] * 2)
        )
        assert seen.shifted(5).top_keys.tolist() == [[8, 5], [6, -1]]
        assert seen.shifted(np.int64(5)).shifted(-5).top_keys.tolist() == [[3, 0], [1, -1]]
        assert type(seen.shifted(5).top_keys) is type(seen.top_keys)
        assert seen.top_keys.tolist() == [[3, 0], [1, -1]]
        assert seen.shifted(5).top_weights is seen.top_weights
        for first in (-1, 2**63, 10**30, 2**63 - 3):
            with pytest.raises(InvalidArgumentError, match="first: got"):
                seen.shifted(first)
        for first in (1.0, True, None, "3"):
            with pytest.raises(InvalidTypeError, match="first: got .*a whole number"):
                seen.shifted(first)
    none = Statistics(lse=np.zeros(1))
    assert list(none.shifted(3).facts()) == ["lse"]


# Saving and loading


EVERYTHING = Watch(
    top=2,
    entropy=True,
    saturation=True,
    distance=True,
    received=True,
    groups=[0, 1, 1],
    picture=(2, 3),
)


def everything(dtype=np.float64, shape=(2, 3, 3, 4), **options):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    return attention(x, x, x, watch=EVERYTHING, kernel="reference", **options)[1]


def parts(seen):
    """Every array of some statistics, by name, in order."""
    facts = seen.facts()
    return [(n, half) for n, f in facts.items() for half in (f if n == "picture" else (f,))]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 2, 3, 4)])
def test_saved_and_loaded_bit_for_bit(tmp_path, dtype, shape):
    heads = shape[-3] if len(shape) > 2 else 1
    seen = everything(dtype, shape, sinks=np.zeros(heads, dtype), mask=np.tri(3, 3, -1, bool))
    assert np.isneginf(seen.max_logit).any()
    assert set(seen.facts()) == set(FACTS)
    seen.save(tmp_path / "seen.npz")
    back = Statistics.load(str(tmp_path / "seen.npz"))
    assert [name for name, _ in parts(back)] == [name for name, _ in parts(seen)]
    for (name, got), (_, wanted) in zip(parts(back), parts(seen), strict=True):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), name
        assert got.tobytes() == wanted.tobytes(), name
    assert isinstance(back.picture, tuple)


def test_saved_with_few_facts_and_odd_bits(tmp_path):
    odd = np.array([0x7FF8000000000001, 0xFFF0000000000000, 1 << 63, 1], np.uint64).view(float)
    Statistics(lse=odd, max_logit=odd[::-1]).save(tmp_path / "x")
    back = Statistics.load(tmp_path / "x")
    assert list(back.facts()) == ["lse", "max_logit"]
    assert back.lse.tobytes() == odd.tobytes()
    assert back.max_logit.tobytes() == odd[::-1].tobytes()
    with pytest.raises(UnavailableError):
        back.entropy  # noqa: B018


def test_tensors_come_back_as_arrays(tmp_path):
    x = torch.ones(2, 3, 4, dtype=torch.float64)
    _, seen = attention(x, x, x, watch=EVERYTHING, kernel="reference")
    seen.save(tmp_path / "x")
    back = Statistics.load(tmp_path / "x")
    assert isinstance(back.top_keys, np.ndarray)
    assert np.array_equal(back.picture[1], seen.picture[1].numpy())


def test_nothing_is_pickled(tmp_path):
    everything().save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        assert file.files[0] == "chumoku_statistics"
        assert {"picture_mean", "picture_most", "lse"} <= set(file.files)
        assert all(file[name].dtype.kind in "fi" for name in file.files)


def flat(seen):
    """The arrays of a saved file."""
    mean, most = seen.picture
    facts = {name: fact for name, fact in seen.facts().items() if name != "picture"}
    return {"chumoku_statistics": np.array(1), **facts, "picture_mean": mean, "picture_most": most}


def changed(**arrays):
    """A saved file with some arrays changed, or left out where None."""
    whole = flat(everything()) | arrays
    return {name: array for name, array in whole.items() if array is not None}


FACT = np.zeros((2, 3, 3))
BAD_FILES = {
    "another kind": changed(chumoku_statistics=None),
    "version 0": changed(chumoku_statistics=np.array(0)),
    "version 2": changed(chumoku_statistics=np.array(2)),
    "many versions": changed(chumoku_statistics=np.array([1, 1])),
    "unknown fact": changed(entrpy=FACT),
    "long name": changed(**{"x" * 1000: FACT}),
    "a whole picture": changed(picture=np.zeros((2, 2, 3, 2, 3))),
    "no lse": changed(lse=None),
    "scalar lse": {"chumoku_statistics": np.array(1), "lse": np.array(1.0)},
    "integer lse": {"chumoku_statistics": np.array(1), "lse": np.zeros(2, np.int64)},
    "half a picture": changed(picture_most=None),
    "the other half": changed(picture_mean=None),
    "two pictures": changed(picture_mean=np.zeros((2, 3, 4, 3))),
    "no top_keys": changed(top_keys=None),
    "no top_weights": changed(top_weights=None),
    "no flow": changed(flow=None),
    "no share": changed(received_share=None),
    "more top_keys": changed(top_keys=np.zeros((2, 3, 3, 9), np.int64)),
    "float top_keys": changed(top_keys=np.zeros((2, 3, 3, 2))),
    "integer entropy": changed(entropy=np.zeros((2, 3, 3), np.int64)),
    "narrow entropy": changed(entropy=np.zeros((2, 3, 3), np.float32)),
    "short entropy": changed(entropy=np.zeros((2, 3, 2))),
    "flat entropy": changed(entropy=np.zeros((3, 3))),
    "flat group_mass": changed(group_mass=np.zeros((2, 3, 3))),
    "deep received": changed(received=np.zeros((2, 3, 3, 1)), received_share=FACT),
    "other heads": changed(received=np.zeros((2, 2, 3)), received_share=np.zeros((2, 2, 3))),
    "wrong lse": changed(lse=np.zeros((2, 3, 4))),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_of_other_things_are_refused(tmp_path, case):
    np.savez(tmp_path / "x.npz", **BAD_FILES[case])
    with pytest.raises(InvalidArgumentError) as raised:
        Statistics.load(tmp_path / "x.npz")
    assert len(str(raised.value)) < 500


def test_a_good_file_among_them(tmp_path):
    np.savez(tmp_path / "x.npz", **changed())
    assert set(Statistics.load(tmp_path / "x.npz").facts()) == set(FACTS) - {"sink_weight"}


def test_a_later_version_says_so(tmp_path):
    np.savez(tmp_path / "x.npz", **BAD_FILES["version 2"])
    with pytest.raises(InvalidArgumentError, match="another version.*version 1.*A later version"):
        Statistics.load(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", a=FACT)
    with pytest.raises(InvalidArgumentError, match="path: got .*x.npz', of another kind"):
        Statistics.load(tmp_path / "x.npz")


def test_facts_that_do_not_fit_are_not_saved(tmp_path):
    for facts in (
        {"lse": [1.0, 2.0], "entropy": [1.0]},
        {"entropy": np.zeros(2)},
        {"lse": np.zeros(2), "picture": 3},
        {"lse": np.zeros(2), "picture": (1, 2, 3)},
        {"lse": object()},
        {"lse": [[1.0], [1.0, 2.0]]},
        {"lse": torch.zeros(2, device="meta")},
    ):
        with pytest.raises(ChumokuError):
            Statistics(**facts).save(tmp_path / "x")
    for path in (None, 3, tmp_path, tmp_path / "missing" / "x"):
        with pytest.raises(ChumokuError, match="path: got"):
            everything().save(path)
        with pytest.raises(ChumokuError, match="path: got"):
            Statistics.load(path)
    assert not list(tmp_path.iterdir())


def test_errors_are_the_librarys():
    with pytest.raises(ChumokuError):
        looks([1.0], watch=Watch()).received  # noqa: B018

"""attention() and weights(): kinds of arrays, the choice of a kernel, and what the errors say."""

import sys
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import CASES, FLOAT32, LAYOUTS, Case, call, error, one_head

from chumoku import (
    Causal,
    Custom,
    Dropout,
    Lengths,
    UnavailableError,
    Watch,
    attention,
    recording,
    weights,
)
from chumoku.errors import InvalidArgumentError, InvalidTypeError
from chumoku.kernels import KERNELS, reference

# `chumoku.attention` is the function; this is the module that chooses its kernel.
module = sys.modules["chumoku.attention.call"]

CASE = Case((2, 4, 5, 8), (2, 2, 7, 8), 6)
Q, K, V = CASE.arrays()
BIAS = np.random.default_rng(1).standard_normal((5, 7)).astype(np.float32)
EVERYTHING = Watch(
    top=3,
    entropy=True,
    saturation=True,
    distance=True,
    received=True,
    groups=np.arange(7) % 3,
    picture=(2, 3),
)


def tensor(array):
    return torch.from_numpy(array)


# Shapes


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_shape_against_the_definition(case):
    q, k, v = case.arrays()
    output, seen = attention(q, k, v, mask=Causal(), watch=Watch(top=2))
    made = call(q, k, v, mask=Causal())
    wanted, facts = reference.compute(made)
    # Only a caller of 2-D arrays does not see the axis of the heads.
    assert output.shape == wanted.shape[int(max(q.ndim, k.ndim) == 2) :]
    assert seen.lse.shape == output.shape[:-1]
    assert seen.top_keys.shape == (*output.shape[:-1], 2)
    assert error(output.reshape(wanted.shape), wanted) < 2e-6
    block = weights(q, k, mask=Causal())
    assert block.shape == (*output.shape[:-1], k.shape[-2])
    lse, blind = seen.lse.reshape(facts["lse"].shape), facts["lse"] == -np.inf
    assert np.array_equal(lse == -np.inf, blind)
    assert lse[~blind] == pytest.approx(facts["lse"][~blind], abs=1e-5)


def test_facts_keep_the_callers_axes():
    for lead in [(), (3,), (2, 3)]:
        q, k = np.ones((*lead, 5, 8)), np.ones((*lead, 7, 8))
        _, seen = attention(q, k, k, sinks=np.zeros(lead[-1] if lead else 1), watch=EVERYTHING)
        shapes = {
            name: tuple(part.shape for part in fact) if name == "picture" else fact.shape
            for name, fact in seen.facts().items()
        }
        rows = ("lse", "max_logit", "entropy", "saturation", "flow", "distance", "sink_weight")
        assert shapes == {
            **dict.fromkeys(rows, (*lead, 5)),
            "top_keys": (*lead, 5, 3),
            "top_weights": (*lead, 5, 3),
            "received": (*lead, 7),
            "received_share": (*lead, 7),
            "group_mass": (*lead, 5, 3),
            "picture": ((*lead, 2, 3), (*lead, 2, 3)),
        }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_are_never_written(layout):
    arrays = [LAYOUTS[layout](a) for a in (Q, K, V)]
    before = [np.array(a) for a in arrays]
    attention(*arrays, mask=Causal(), watch=Watch(top=2, entropy=True))
    weights(*arrays[:2], rows=slice(2))
    for old, new in zip(before, arrays, strict=True):
        assert np.array_equal(old, new)


# The choice of a kernel


def stand_in(name, reason=None):
    """A kernel that counts its calls, and refuses for a reason."""
    calls = []

    def run(made):
        calls.append(made)
        return reference.run(made)

    return SimpleNamespace(name=name, refuses=lambda made: reason, run=run, calls=calls)


def test_the_first_that_does_not_refuse_is_taken(monkeypatch):
    first, second, third = stand_in("a", "it is tired"), stand_in("b"), stand_in("c")
    monkeypatch.setattr(module, "KERNELS", (first, second, third))
    attention(Q, K, V, scale=1.0)  # a plain call goes to the native kernel and asks nobody
    attention(Q, K, V, kernel="c")
    assert [len(kernel.calls) for kernel in (first, second, third)] == [0, 1, 1]


def test_a_kernel_asked_for_by_name_never_falls_back(monkeypatch):
    tired, ready = stand_in("a", "it is tired of this"), stand_in("b")
    monkeypatch.setattr(module, "KERNELS", (tired, ready))
    words = (
        r"kernel: got 'a', which cannot serve this call: it is tired of this, .* Leave kernel= out"
    )
    with pytest.raises(UnavailableError, match=words):
        attention(Q, K, V, kernel="a")
    with pytest.raises(UnavailableError, match=words):
        weights(Q, K, kernel="a")
    assert not ready.calls


def test_the_names_of_the_kernels():
    assert [kernel.name for kernel in KERNELS] == ["native", "triton", "reference"]
    words = "kernel: got 'fast', expected 'native', 'triton' or 'reference'"
    with pytest.raises(InvalidArgumentError, match=words):
        attention(Q, K, V, kernel="fast")


def test_the_reference_is_never_chosen_silently_for_large_calls(monkeypatch):
    tired = stand_in("tired", "it sleeps")
    only = stand_in("reference")
    monkeypatch.setattr(module, "KERNELS", (tired, only))
    q, k = np.ones((2**11, 1), np.float32), np.ones((2**11 + 1, 1), np.float32)
    assert attention(q, k[:-1], k[:-1]).shape == (2**11, 1)
    with pytest.raises(UnavailableError) as raised:
        attention(q, k, k)
    message = str(raised.value)
    assert "tired: it sleeps" in message
    assert "reference: it would hold 4,196,352 scores" in message
    assert 'kernel="reference" computes it all the same' in message
    assert len(only.calls) == 1
    assert attention(q, k, k, kernel="reference").shape == (2**11, 1)


# Options on their way to the kernel


def test_sinks_dropout_softcap_and_bias_arrive():
    options = {
        "mask": Causal() & Lengths(6),
        "bias": BIAS,
        "scale": 0.4,
        "softcap": 2.0,
        "sinks": np.array([0, 1, 2, 3], np.float32),
        "dropout": Dropout(0.3, 4),
    }
    output = attention(Q, K, V, **options)
    for name in options:
        changed = attention(Q, K, V, **{**options, name: None})
        assert error(changed, output) > 1e-3, name
    wanted, _ = reference.compute(call(Q, K, V, **options))
    assert error(output, wanted) < 1e-6


@pytest.mark.parametrize("kind", [int, np.float32, np.float64, np.int8, np.uint64])
def test_every_kind_of_real_number_will_do(kind):
    wanted = attention(Q, K, V, scale=2.0, softcap=3.0)
    assert np.array_equal(attention(Q, K, V, scale=kind(2), softcap=kind(3)), wanted)


@pytest.mark.parametrize(
    "odd",
    [
        "2",
        True,
        2j,
        Decimal(2),
        Fraction(2),
        np.array(2.0),
        np.bool_(True),
        torch.tensor(2.0),
        [2.0],
        b"2",
    ],
    ids=lambda odd: type(odd).__name__,
)
def test_what_is_no_real_number(odd):
    for name in ("scale", "softcap"):
        for ask in (lambda **o: attention(Q, K, V, **o), lambda **o: weights(Q, K, **o)):
            with pytest.raises(
                InvalidTypeError, match=rf"{name}: got .*, expected a finite number"
            ):
                ask(**{name: odd})


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 10**400, 0, -1.0])
def test_numbers_that_cannot_be(odd):
    with pytest.raises(InvalidArgumentError, match="softcap: got .*, expected a finite number ab"):
        attention(Q, K, V, softcap=odd)
    if not abs(odd) <= 1:
        with pytest.raises(InvalidArgumentError, match=r"scale: got .*, expected a finite \w+\."):
            attention(Q, K, V, scale=odd)


def test_only_what_was_asked_for_is_returned():
    assert isinstance(attention(Q, K, V), np.ndarray)
    with recording(Watch(entropy=True, top=5)):
        _, seen = attention(Q, K, V, watch=Watch(top=2))
    assert list(seen.facts()) == ["lse", "max_logit", "top_keys", "top_weights"]
    assert seen.top_keys.shape[-1] == 2


# weights()


@pytest.mark.parametrize(
    ("rows", "keys", "where"),
    [
        (slice(None), slice(None), np.s_[..., :, :]),
        (slice(1, 4), slice(None, None, -2), np.s_[..., 1:4, ::-2]),
        (2, -1, np.s_[..., 2:3, 6:]),
        ([4, 0, -1], np.array([3, 3]), np.ix_([0, 1], range(4), [4, 0, 4], [3, 3])),
        ([], slice(3, 3), np.s_[..., :0, :0]),
    ],
)
@pytest.mark.parametrize("known", [False, True], ids=["lse found", "lse given"])
def test_blocks(rows, keys, where, known):
    _, seen = attention(Q, K, V, mask=Causal(), watch=Watch())
    options = {"mask": Causal(), "lse": seen.lse} if known else {"mask": Causal()}
    whole = weights(Q, K, mask=Causal(), kernel="reference")
    block = weights(Q, K, rows=rows, keys=keys, **options)
    assert block.shape == whole[where].shape
    assert np.abs(block - whole[where]).max(initial=0) < 1e-6


def test_blocks_of_one_head_and_of_tensors_with_lse():
    q, k, v = Q[0, 0], K[0, 0], V[0, 0]
    _, seen = attention(q, k, v, watch=Watch())
    assert weights(q, k, rows=3, lse=seen.lse).shape == (1, 7)
    found = weights(tensor(q), tensor(k), rows=3, lse=tensor(seen.lse))
    assert np.array_equal(found.numpy(), weights(q, k, rows=3, lse=seen.lse))


def test_leading_axes_that_only_the_lse_has():
    """The call had them from its value, which weights() is not given."""
    values = np.random.default_rng(0).standard_normal((3, 1, 7, 6)).astype(np.float32)
    for q, k in ((Q[0, 0], K[0, 0]), (Q[:1, 0], K[:1, 0]), (Q[:1, :1], K[:1, :1])):
        mask = Causal([0, 1, 2]) & Lengths([7, 6, 5])
        bias = np.random.default_rng(1).standard_normal((3, 1, 5, 7)).astype(np.float32)
        output, seen = attention(q, k, values, mask=mask, bias=bias, watch=Watch())
        assert seen.lse.shape == (3, 1, 5)
        p = weights(q, k, lse=seen.lse, mask=mask, bias=bias)
        assert p.shape == (3, 1, 5, 7)
        assert p @ values == pytest.approx(output, abs=1e-5)
    _, seen = attention(Q[0, 0], K[0, 0], values[0], watch=Watch())
    assert weights(Q[0, 0], K[0, 0], lse=seen.lse).shape == (1, 5, 7)


@pytest.mark.parametrize(
    ("q", "lse", "words"),
    [
        (Q, (4, 5), r"shape \(4, 5\), expected \(2, 4, 5\), as seen.lse of the same call has"),
        (Q, (1, 4, 5), r"shape \(1, 4, 5\), expected \(2, 4, 5\)"),
        (Q, (3, 4, 5), r"leading axes \(3,\), expected axes that broadcast with \(2,\)"),
        (Q, (2, 4, 7), r"shape \(2, 4, 7\), expected \(2, 4, 5\)"),
        (Q, (), r"shape \(\), expected \(2, 4, 5\)"),
        (Q[0, 0], (1,), r"shape \(1,\), expected \(5,\)"),
        (Q[0, 0], (), r"shape \(\), expected \(5,\)"),
        (Q[0, 0], (5, 1), r"shape \(5, 1\), expected \(1, 5\)"),
    ],
)
def test_an_lse_of_another_call(q, lse, words):
    k = K if q.ndim == 4 else K[0, 0]
    with pytest.raises(InvalidArgumentError, match=f"lse: got {words}"):
        weights(q, k, lse=np.zeros(lse, np.float32))


@pytest.mark.parametrize(("dtype", "odd"), [(np.float32, np.float64), (np.float64, np.float32)])
def test_an_lse_of_another_dtype(dtype, odd):
    q, k, _ = CASE.arrays(np.dtype(dtype))
    with pytest.raises(InvalidTypeError, match=f"lse: got {np.dtype(odd)}, expected {q.dtype}, as"):
        weights(q, k, lse=np.zeros((2, 4, 5), odd))


POSITIONS = [
    range(1, 4),
    range(4, -1, -2),
    (np.int8(1), 2, -2),
    np.array([1, 4], np.uint8),
    np.array(3),
    torch.tensor([0, -5]),
    slice(np.int64(1), 10**30, 10**30),
]


@pytest.mark.parametrize("rows", POSITIONS, ids=str)
def test_positions_of_any_kind(rows):
    whole = weights(Q, K, kernel="reference")
    plain = rows.numpy() if isinstance(rows, torch.Tensor) else rows
    plain = plain if isinstance(plain, slice) else list(np.atleast_1d(np.asarray(plain)))
    assert weights(Q, K, rows=rows) == pytest.approx(whole[:, :, plain], abs=1e-6)


@pytest.mark.parametrize(
    ("odd", "error", "words"),
    [
        (5, InvalidArgumentError, "positions 5 to 5, expected positions from 0 to 4"),
        ([0, -6], InvalidArgumentError, "positions -6 to 0, expected positions from 0 to 4"),
        ((4, 10**30), InvalidArgumentError, "positions 4 to 1000000000000000000000000000000,"),
        (10**4000, InvalidArgumentError, "positions a whole number of 13288 bits to"),
        (range(10**15), InvalidArgumentError, "positions 0 to 999999999999999"),
        (
            np.array([2**64 - 1], np.uint64),
            InvalidArgumentError,
            "positions 18446744073709551615 to",
        ),
        (slice(None, None, 0), InvalidArgumentError, "a slice of step 0"),
        (slice(1.5), InvalidTypeError, "a slice with 1.5, expected a slice of whole numbers"),
        (1.0, InvalidTypeError, "float, expected a slice, a whole number or a 1-D array of them"),
        (True, InvalidTypeError, "bool, expected a slice"),
        ([True, False], InvalidTypeError, "a list that holds True, .* np.flatnonzero"),
        (np.ones(5, bool), InvalidTypeError, "an array of bool, .* np.flatnonzero"),
        (torch.ones(5).bool(), InvalidTypeError, "an array of bool, .* np.flatnonzero"),
        ([1, [2, 3]], InvalidTypeError, r"a list that holds \[2, 3\]"),
        ([[0]], InvalidTypeError, r"a list that holds \[0\]"),
        (np.zeros((1, 1), int), InvalidTypeError, r"an array of shape \(1, 1\)"),
        (np.array(["a"]), InvalidTypeError, "an array of <U1"),
        (np.array([0.0]), InvalidTypeError, "an array of float64"),
        (np.newaxis, InvalidTypeError, "NoneType"),
        (..., InvalidTypeError, "ellipsis"),
        ("1", InvalidTypeError, "str"),
        ({1}, InvalidTypeError, "set"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), UnavailableError, "a tensor on meta"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_are_no_positions(odd, error, words):
    for name in ("rows", "keys"):
        with pytest.raises(error, match=f"{name}: got {words}"):
            weights(Q, K[..., :5, :], **{name: odd})


def test_no_positions_at_all():
    nothing = Q[..., :0, :]
    assert weights(nothing, K).shape == (2, 4, 0, 7)
    assert weights(Q, K, rows=[], keys=range(0)).shape == (2, 4, 0, 0)
    with pytest.raises(InvalidArgumentError, match="positions 0 to 0, expected none"):
        weights(nothing, K, rows=0)


def test_rows_of_the_weights_give_the_output():
    options = {"mask": Causal(-1), "bias": BIAS, "softcap": 1.0, "sinks": np.ones(4, np.float32)}
    p = weights(Q, K, **options)
    assert p @ np.repeat(V, 2, axis=1) == pytest.approx(attention(Q, K, V, **options), abs=1e-5)


# Errors; their messages are read in test_errors.py


@pytest.mark.parametrize("key", [np.array(1, np.float32), np.ones(3, np.float32)])
def test_weights_of_keys_without_axes(key):
    with pytest.raises(InvalidArgumentError, match="key: got shape"):
        weights(Q, key)


def test_groups_of_a_recording_are_checked_too():
    with (
        recording(Watch(groups=[0, 1])),
        pytest.raises(InvalidArgumentError, match="groups: got 2 groups"),
    ):
        attention(Q, K, V)


def test_a_custom_masks_own_error_comes_through():
    def function(b, h, i, j):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        attention(Q, K, V, mask=Custom(function))


def test_zero_sizes_go_through():
    for case in (one_head(0, 5, 4, 3), one_head(5, 0, 4, 3), Case((0, 5, 4), (0, 7, 4), 3)):
        output, seen = attention(*case.arrays(FLOAT32), watch=Watch(top=2, entropy=True))
        assert output.shape == (*case.query[:-1], 3)
        assert (output == 0).all()
        assert (seen.lse == -np.inf).all()
        assert (seen.top_keys == -1).all()

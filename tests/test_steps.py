"""steps(): every number agrees with attention(), and what a person reads."""

import random
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
import torch
from strange import anything, outcome

from chumoku import attention, weights
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.mask import Causal, Lengths
from chumoku.steps import MOST_NUMBERS, Steps, steps

rng = np.random.default_rng(0)
Q, K, V = (rng.standard_normal(s) for s in ((2, 4, 5, 3), (2, 2, 7, 3), (1, 2, 7, 6)))
BIAS = rng.standard_normal((5, 7))
BIAS[1, 3] = -np.inf
OPTIONS = {
    "nothing": {},
    "mask": {"mask": Causal()},
    "rows that see nothing": {"mask": Causal(-2)},
    "array": {"mask": rng.random((5, 7)) < 0.5},
    "scale": {"scale": 2.0},
    "all": {
        "mask": Causal() & Lengths([7, 5]),
        "bias": BIAS,
        "scale": 0.9,
        "softcap": 1.1,
        "sinks": np.array([0.0, 1.0, -np.inf, 3.0]),
    },
}


@pytest.mark.parametrize("option", OPTIONS)
def test_agrees_with_attention(option):
    options = OPTIONS[option]
    seen = steps(Q, K, V, **options)
    output = attention(Q, K, V, **options, kernel="reference")
    assert seen.output == pytest.approx(output, abs=1e-15)
    assert seen.weights == pytest.approx(weights(Q, K, **options, kernel="reference"), abs=1e-15)
    if "sinks" in options:
        total = seen.weights.sum(axis=-1) + seen.sink_weight
        assert total == pytest.approx(np.ones((2, 4, 5)))
    else:
        assert seen.sink_weight is None


def test_each_step_follows_from_the_one_before():
    seen = steps(Q, K, V, **OPTIONS["all"])
    hidden = np.broadcast_to(np.isneginf(BIAS), seen.visible.shape)
    assert seen.products.shape == (2, 4, 5, 7, 3)
    assert seen.products[1, 2, 3, 4] == pytest.approx(Q[1, 2, 3] * K[1, 1, 4])
    assert seen.scores == pytest.approx(seen.products.sum(axis=-1))
    assert seen.scaled == pytest.approx(0.9 * seen.scores)
    assert seen.capped == pytest.approx(1.1 * np.tanh(seen.scaled / 1.1))
    assert np.array_equal(seen.biased, seen.capped + BIAS)
    assert not (seen.visible & hidden).any()
    assert np.array_equal(seen.logits, np.where(seen.visible, seen.biased, -np.inf))
    assert (seen.weights[~seen.visible] == 0).all()
    assert seen.parts.shape == (2, 4, 5, 7, 6)
    assert seen.parts[1, 3, 4, 2] == pytest.approx(seen.weights[1, 3, 4, 2] * V[0, 1, 2])
    assert np.array_equal(seen.output, seen.parts.sum(axis=-2))
    plain = steps(Q, K, V)
    assert plain.capped is plain.biased is None
    assert np.array_equal(plain.logits, plain.scaled)


def test_two_dimensions_stay_two():
    seen = steps(Q[0, 0], K[0, 0], V[0, 0], mask=Causal(), sinks=[1.0])
    shapes = {f.name: np.shape(getattr(seen, f.name)) for f in fields(seen)}
    assert shapes["scores"] == shapes["weights"] == shapes["visible"] == (5, 7)
    assert shapes["parts"] == (5, 7, 6)
    assert shapes["sink_weight"] == (5,)
    whole = steps(Q[:1, :1], K[:1, :1], V[:, :1], mask=Causal(), sinks=[1.0])
    assert np.array_equal(whole.output[0, 0], seen.output)


def test_lists_and_tensors_are_read():
    lists = steps([[1.0, 2.0]], [[3, 4], [5, 6]], [[1], [0]], mask=[[True, False]])
    assert lists.scores.tolist() == [[11, 17]]
    assert lists.weights.tolist() == [[1, 0]]
    tensors = steps(*(torch.tensor(a, dtype=torch.float32) for a in (Q, K, V)))
    assert tensors.output.dtype == np.float64
    assert tensors.output == pytest.approx(steps(Q, K, V).output, abs=1e-6)


def test_hidden_nan_is_not_felt():
    k, v = K.copy(), V.copy()
    k[:, :, 6], v[:, :, 6] = np.nan, np.inf
    clean, dirty = steps(Q, K, V, mask=Causal(1)), steps(Q, k, v, mask=Causal(1))
    assert np.array_equal(clean.output, dirty.output)
    assert np.array_equal(clean.logits, dirty.logits)


def test_frozen_and_apart_from_its_inputs():
    q = Q.copy()
    seen = steps(q, K, V)
    q[...] = 0
    assert np.array_equal(seen.query, Q)
    with pytest.raises(FrozenInstanceError):
        seen.weights = None
    for field in fields(seen):
        array = getattr(seen, field.name)
        if isinstance(array, np.ndarray):
            assert not array.flags.writeable, field.name


# What a person reads


def test_printed():
    page = str(
        steps([[1.0]], [[1.0], [2.0], [3.0]], [[10.0, 0.5], [20.0, 0.25], [30.0, 0.0]], scale=1)
    )
    assert page == "\n".join(
        [
            "Attention step by step: 1 query, 3 keys, width 1",
            "",
            "1. score: each query times each key",
            "            key 0  key 1  key 2",
            "   query 0   1.00   2.00   3.00",
            "",
            "2. scale: scores x 1",
            "            key 0  key 1  key 2",
            "   query 0   1.00   2.00   3.00",
            "",
            "3. softmax: where each query looks, in percent",
            "            key 0   key 1   key 2",
            "   query 0  9.0 %  24.5 %  66.5 %",
            "",
            "4. mix: values, as much of each as the weights say",
            "              [0]   [1]",
            "   query 0  25.75  0.11",
        ]
    )


def test_printed_with_every_option():
    page = str(
        steps(
            Q[0, 0],
            K[0, 0],
            V[0, 0],
            mask=Causal(0),
            bias=BIAS,
            softcap=3.0,
            sinks=[0.5],
            scale=0.1,
        )
    )
    titles = [block.splitlines()[0] for block in page.split("\n\n")]
    assert [title.split(":")[0].strip() for title in titles] == [
        "Attention step by step",
        "1. score",
        "2. scale",
        "softcap",
        "bias added",
        "mask",
        "3. softmax",
        "4. mix",
    ]
    assert "because" not in page
    first = page[page.index("3. softmax") :].splitlines()[2].split()
    assert first[:2] == ["query", "0"]
    # One visible key and the sink, each with its percent sign; six hidden keys.
    assert first.count(".") == 6
    assert first.count("%") == 2


def test_columns_are_aligned():
    for factor in (1e-9, 1e-3, 1.0, 1e4, 1e9):
        tables = str(steps(factor * Q[0, 0], K[0, 0], V[0, 0], mask=Causal())).split("\n\n")[1:]
        for table in tables:
            assert len({len(line) for line in table.splitlines()[1:]}) == 1, table


def test_small_numbers_keep_their_digits():
    page = str(steps([[1.0]], [[0.00123], [-0.0004]], [[1.0], [1.0]], scale=1))
    assert "0.00123  -0.00040" in page


def test_large_tables_are_cut_and_say_so():
    page = str(steps(rng.standard_normal((15, 2)), rng.standard_normal((30, 2)), np.ones((30, 40))))
    assert max(map(len, page.splitlines())) <= 110
    assert page.count("(3 more queries)") == 4
    assert page.count("(20 more)") == 3
    assert page.count("(30 more)") == 1


def test_many_heads_print_their_shapes():
    page = str(steps(Q, K, V))
    assert "weights     (2, 4, 5, 7)" in page
    assert "print one" in page
    assert "capped" not in page


def test_nothing_can_be_printed():
    for shapes in [((0, 2), (3, 2), (3, 2)), ((2, 2), (0, 2), (0, 2)), ((2, 2), (3, 2), (3, 0))]:
        assert "4. mix" in str(steps(*map(np.ones, shapes)))


# Errors


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (([1.0], K, V), {}, InvalidArgumentError, r"query: got shape \(1,\)"),
        (("query", K, V), {}, InvalidTypeError, "query: got <U5 values, expected an array or"),
        (
            ([[1.0], [1.0, 2.0]], K, V),
            {},
            InvalidTypeError,
            r"query: got \[\[1.0\], \[1.0, 2.0\]\], exp",
        ),
        ((Q, 1j * K, V), {}, InvalidTypeError, "key: got complex128 values"),
        ((Q, K, torch.ones(7, 6, requires_grad=True)), {}, UnavailableError, "value: got a tensor"),
        ((Q, K[..., :2], V), {}, InvalidArgumentError, "key: got width 2, expected width 3"),
        ((Q[..., :0], K, V), {}, InvalidArgumentError, "query: got width 0"),
        ((Q, K, V[..., :6, :]), {}, InvalidArgumentError, "value: got 2 heads of 6 positions"),
        ((Q, K, V[:, :1]), {}, InvalidArgumentError, "value: got 1 heads"),
        ((Q[:, :3], K, V), {}, InvalidArgumentError, "key: got 2 heads, expected a divisor of"),
        ((np.ones((3, 4, 5, 3)), K, V), {}, InvalidArgumentError, r"key: got leading axes \(2,\)"),
        (
            (Q, K, np.ones((5, 2, 7, 6))),
            {},
            InvalidArgumentError,
            r"value: got leading axes \(5,\)",
        ),
        ((Q, K, V), {"bias": np.ones((6, 7))}, InvalidArgumentError, r"bias: got shape \(6, 7\)"),
        (([["1.0"]], K, V), {}, InvalidTypeError, "query: got <U3 values"),
        (([[10**400]], K, V), {}, InvalidTypeError, "query: got "),
        ((np.ones((1,) * 40), K, V), {}, InvalidArgumentError, "query: got 40 axes, expected 32"),
        ((Q, K, V), {"mask": [[True], [1, 2]]}, InvalidTypeError, "mask: got"),
        ((Q, K, V), {"bias": "x"}, InvalidTypeError, "bias: got <U1 values"),
        ((Q, K, V), {"sinks": np.ones(3)}, InvalidArgumentError, r"sinks: got shape \(3,\)"),
        ((Q, K, V), {"scale": "x"}, InvalidTypeError, "scale: got 'x', expected a finite number"),
        ((Q, K, V), {"scale": np.nan}, InvalidArgumentError, "scale: got nan, expected a finite"),
        ((Q, K, V), {"softcap": 0}, InvalidArgumentError, "softcap: got 0.0, .* above 0"),
        ((Q, K, V), {"mask": np.ones((5, 7))}, InvalidTypeError, "mask: got an array of float64"),
        ((Q, K, V), {"mask": Lengths(9)}, InvalidArgumentError, "keys: got lengths up to 9"),
    ],
)
def test_errors(arguments, options, error, words):
    with pytest.raises(error, match=words):
        steps(*arguments, **options)


def test_large_inputs_are_refused_by_their_size():
    x = np.ones((8, 64, 64))
    words = (
        r"query: got 2,097,152 numbers in one step \(8 heads x 64 queries x 64 keys x width 64\)"
    )
    with pytest.raises(InvalidArgumentError, match=words):
        steps(x, x, x)
    assert steps(x[:4], x[:4], x[:4]).products.size == MOST_NUMBERS


def test_only_the_library_s_errors_come_out():
    dice = random.Random(4)
    options = ("mask", "bias", "scale", "softcap", "sinks")
    made = 0
    for _ in range(2000):
        given = [dice.choice([right, right, anything(dice)]) for right in (Q, K, V)]
        named = {name: anything(dice) for name in options if dice.random() < 0.1}
        found = outcome(steps, *given, **named)
        if isinstance(found, Steps):
            assert str(found)
            made += 1
    assert made > 100

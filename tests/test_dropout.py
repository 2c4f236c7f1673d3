"""Dropout: the published random numbers, and that they depend on absolute indices alone."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strange import anything, outcome

from chumoku.dropout import Dropout, _philox
from chumoku.errors import InvalidArgumentError, InvalidTypeError


@pytest.mark.parametrize(
    ("counter", "seed", "words"),
    [
        ([0, 0, 0, 0], 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, seed, words):
    """Random123's kat_vectors, philox4x32, 10 rounds."""
    found = _philox([np.array([c], np.uint64) for c in counter], seed)
    assert [int(word[0]) for word in found] == words


def test_where_each_weight_finds_its_number():
    """At counter (key // 4, query, head, batch entry), word key % 4; kept from rate * 2**32 on."""
    kept = Dropout(0.25, 9).kept((2, 3), 4, np.array([5]), np.array([10, 11, 12]))
    for entry, head in np.ndindex(6, 4):
        for place, key in enumerate((10, 11, 12)):
            counter = [np.array([c], np.uint64) for c in (key // 4, 5, head, entry)]
            word = int(_philox(counter, 9)[key % 4][0])
            assert kept[entry // 3, entry % 3, head, 0, place] == (word >= 2**30)


def everything(dropout, batch=(2,), heads=3, queries=9, keys=21):
    return dropout.kept(batch, heads, np.arange(queries), np.arange(keys))


@given(
    rows=st.lists(st.integers(0, 8), max_size=6),
    keys=st.lists(st.integers(0, 20), max_size=6),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_tile_makes_its_own_part(rows, keys, seed):
    dropout = Dropout(0.5, seed)
    rows, keys = np.array(rows, np.int64), np.array(keys, np.int64)
    tile = dropout.kept((2,), 3, rows, keys)
    assert np.array_equal(tile, everything(dropout)[..., rows[:, None], keys])


def test_growing_a_call_changes_nothing():
    dropout = Dropout(0.4, 3)
    small = everything(dropout, queries=4, keys=6)
    assert np.array_equal(small, everything(dropout, queries=40, keys=60)[..., :4, :6])
    assert np.array_equal(everything(dropout, (2, 2))[1, 0], everything(dropout, (4,))[2])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_rate(rate):
    kept = everything(Dropout(rate, 7), (4,), 5, 100, 100)
    # Five standard deviations of the mean of 200,000 draws.
    assert abs((~kept).mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / kept.size)


def test_every_axis_and_the_seed_matter():
    kept = everything(Dropout(0.5, 7), (2,), 2, 64, 64)
    for other in (
        kept[1, 0],
        kept[0, 1],
        np.roll(kept[0, 0], 1, axis=0),
        np.roll(kept[0, 0], 1, axis=1),
        everything(Dropout(0.5, 8), (2,), 2, 64, 64)[0, 0],
        everything(Dropout(0.5, 7 + 2**32), (2,), 2, 64, 64)[0, 0],
    ):
        # Independent halves agree in half of 4096 places, give or take 5 deviations of 32.
        assert abs((kept[0, 0] == other).sum() - 2048) <= 160


def test_a_larger_rate_drops_more_of_the_same():
    few, many = everything(Dropout(0.2, 1)), everything(Dropout(0.6, 1))
    assert (few | ~many).all()
    assert (few & ~many).any()


def test_nothing_to_drop():
    assert everything(Dropout(0.3, 1), (0,)).shape == (0, 3, 9, 21)
    assert everything(Dropout(0.3, 1), (), 1, 0, 5).shape == (1, 0, 5)


@pytest.mark.parametrize(
    ("rate", "seed", "error", "words"),
    [
        (1.0, 0, InvalidArgumentError, "rate: got 1.0, expected a number from 0 up to 1"),
        (-0.1, 0, InvalidArgumentError, "rate: got -0.1"),
        (float("nan"), 0, InvalidArgumentError, "rate: got nan"),
        (10**400, 0, InvalidArgumentError, "rate: got inf"),
        (False, 0, InvalidTypeError, "rate: got False"),
        (None, 0, InvalidTypeError, "rate: got None"),
        (0.1, 10**400, InvalidArgumentError, "seed: got a whole number of 1329 bits,"),
        ("0.1", 0, InvalidTypeError, "rate: got '0.1', expected a finite number"),
        (0.1, -1, InvalidArgumentError, "seed: got -1, expected a whole number from 0 to"),
        (0.1, 2**64, InvalidArgumentError, "seed: got 18446744073709551616"),
        (0.1, 1.0, InvalidTypeError, "seed: got 1.0, expected a whole number"),
        (0.1, True, InvalidTypeError, "seed: got True"),
    ],
)
def test_errors(rate, seed, error, words):
    with pytest.raises(error, match=words):
        Dropout(rate, seed)


def test_numpy_numbers_are_welcome():
    assert Dropout(np.float32(0.5), np.int64(3)) == Dropout(0.5, 3)


def test_only_the_library_s_errors_come_out():
    rng = random.Random(3)
    for _ in range(2000):
        rate = rng.choice([0, 0.5, np.float32(0.25), anything(rng)])
        made = outcome(Dropout, rate, anything(rng))
        if isinstance(made, Dropout):
            kept = made.kept((2,), 1, np.arange(3), np.arange(5))
            assert kept.shape == (2, 1, 3, 5)
            assert (type(made.rate), type(made.seed)) == (float, int)

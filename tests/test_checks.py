"""What callers give: numbers of the right kind, arrays of any kind, and words for the rest."""

import math
import random

import numpy as np
import pytest
from strange import ERRORS, anything, outcome

from chumoku.checks import real, shown, whole
from chumoku.errors import InvalidArgumentError, InvalidTypeError


def test_anything_is_shown_in_a_line():
    rng = random.Random(1)
    for _ in range(1000):
        text = shown(anything(rng))
        assert "\n" not in text
        assert 0 < len(text) < 400


class Hostile:
    def __getattribute__(self, name):
        raise KeyError("mine")

    __repr__ = __str__ = __len__ = __getattribute__


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "None"),
        (True, "True"),
        (0.1, "0.1"),
        (2j, "2j"),
        (-7, "-7"),
        (10**30, "1000000000000000000000000000000"),
        (10**5000, "a whole number of 16610 bits"),
        ("top", "'top'"),
        ("x" * 1000, f"'{'x' * 37}...{'x' * 38}'"),
        (np.ones((2, 3)), "an array of float64, shape (2, 3)"),
        ([1, None, max, [np.ones(2)]], "[1, None, builtin_function_or_method, [ndarray]]"),
        (np.float32(2), "np.float32(2.0)"),
        (object(), "object"),
        (Hostile(), "Hostile"),
    ],
    ids=range(14),
)
def test_shown(value, words):
    assert shown(value) == words


def test_whole_numbers():
    for given in (3, np.int8(3), np.uint64(3)):
        assert whole("n", given, 0) == 3
        assert type(whole("n", given, 0)) is int
    for given in (3.0, True, np.True_, "3", None, np.array(3), np.timedelta64(3)):
        with pytest.raises(InvalidTypeError, match="n: got .*, expected a whole number from 1"):
            whole("n", given, 1)
    for given, most, words in (
        (0, None, "n: got 0, expected a whole number of keys from 1."),
        (9, 8, "n: got 9, expected a whole number of keys from 1 to 8."),
        (-(10**5000), None, "n: got a whole number of 16610 bits"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            whole("n", given, 1, most, of="keys")


def test_numbers():
    for given in (2, 2.0, np.float16(2), np.int64(2)):
        assert real("x", given) == 2.0
        assert type(real("x", given)) is float
    assert real("x", -1.5) == -1.5
    for given in ("2", None, True, 1j, np.ones(1), np.timedelta64(2)):
        with pytest.raises(InvalidTypeError, match="x: got .*, expected a finite number above 0"):
            real("x", given, above=0)
    for given in (0.0, -1, math.nan, math.inf, 10**400, np.float32("nan")):
        with pytest.raises(InvalidArgumentError, match="x: got .*, expected a finite number above"):
            real("x", given, above=0)


def test_only_the_library_s_errors_come_out():
    rng = random.Random(2)
    for _ in range(3000):
        for check in (real, lambda name, given: whole(name, given, 0)):
            outcome(check, "a", anything(rng))
    assert len(ERRORS) == 3

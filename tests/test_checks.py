"""What callers give: numbers of the right kind, arrays of any kind, and words for the rest."""

import math
import random
import sys

import array_api_strict
import numpy as np
import pytest
import torch
from strange import ERRORS, anything, outcome

from chumoku.checks import memory_of, real, shown, whole
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError


def test_anything_is_shown_in_a_line():
    rng = random.Random(1)
    for _ in range(1000):
        text = shown(anything(rng))
        assert "\n" not in text
        assert 0 < len(text) < 400
    assert shown("top") == "'top'"
    assert shown(np.ones((2, 3))) == "an array of float64, shape (2, 3)"
    assert shown(10**5000) == "an unprintable int"


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
        (-(10**5000), None, "n: got an unprintable int"),
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


def test_arrays_share_their_memory():
    array = np.zeros((2, 3))
    for other in (array, array[::-1], torch.tensor(array), array_api_strict.asarray(array)):
        view = memory_of("a", other)
        other[0, 1] = 7
        assert type(view) is np.ndarray
        assert view[0, 1] == 7
        other[0, 1] = 0
    for other in ([1], 3, None, np.float32(3), "a", np.ndarray):
        assert memory_of("a", other) is None


def test_arrays_out_of_reach():
    bits = torch.ones(3, dtype=torch.int8)
    for tensor in (bits.to("meta"), bits.to_sparse()):
        with pytest.raises(UnavailableError, match="a: got a .* tensor on .*, expected a dense"):
            memory_of("a", tensor)
    with pytest.raises(InvalidTypeError, match="a: got a tensor of torch.bfloat16"):
        memory_of("a", bits.to(torch.bfloat16))
    with pytest.raises(InvalidTypeError, match="a: got a tensor of torch.int8"):
        torch.func.vmap(lambda row: memory_of("a", row) is None)(bits)
    with pytest.raises(InvalidTypeError, match="a: got a masked array"):
        memory_of("a", np.ma.MaskedArray([1]))
    remote = type("Remote", (), {"__dlpack__": None, "__dlpack_device__": None})()
    with pytest.raises(UnavailableError, match="a: got Remote, whose memory cannot be read"):
        memory_of("a", remote)


def test_no_torch_is_no_trouble(monkeypatch: pytest.MonkeyPatch):
    for stand_in in (None, object()):
        monkeypatch.setitem(sys.modules, "torch", stand_in)
        assert memory_of("a", np.ones(2)).sum() == 2


def test_only_the_library_s_errors_come_out():
    rng = random.Random(2)
    for _ in range(3000):
        for check in (memory_of, real, lambda name, given: whole(name, given, 0)):
            outcome(check, "a", anything(rng))
    assert len(ERRORS) == 3

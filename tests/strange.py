"""Objects that no argument expects, for every test that gives such to a constructor."""

from __future__ import annotations

import array
import math
import random
import types
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import array_api_strict
import ml_dtypes
import numpy as np
import torch

from chumoku import Causal, Cells, Dropout, Watch
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError

ERRORS = (InvalidArgumentError, InvalidTypeError, UnavailableError)


def _hostile(**methods: Any) -> object:
    """An object some of whose methods raise an error of their own."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a hostile object")

    return type("Hostile", (), dict.fromkeys(methods, fail) | {"shape": (4,)})()


def _deep(levels: int) -> list[Any]:
    nest: list[Any] = []
    for _ in range(levels):
        nest = [nest]
    return nest


def _round() -> list[Any]:
    """A list that holds itself."""
    own: list[Any] = [1]
    own.append(own)
    return own


NUMBERS: tuple[Any, ...] = (
    *(0, 1, 2, 3, 4, 6, -1, 7, 2**31, 2**62, 2**63, -(2**63) - 1, 2**64, 10**40, 10**5000),
    *(np.int8(2), np.uint64(2**63), np.bool_(True), np.timedelta64(3, "s"), np.timedelta64("NaT")),
    *(0.0, 0.5, 1.0, -1.5, math.nan, math.inf, 1e308, np.float16("nan"), np.float32(0.25)),
    *(True, False, 1j, np.complex64(1), Decimal(2), Fraction(1, 2), ml_dtypes.bfloat16(1)),
)
WORDS: tuple[Any, ...] = ("", "right", "left", "nope", "2", "\0", "\udcff", "x" * 9999, b"2")
LISTS: tuple[Any, ...] = (
    *([], [1, 2], (1, 2), [[1], [2, 3]], [1, None], [True, 2], [math.nan], ["a"], [2**70, 1]),
    *([[1, 2, 3, 4], [1, 2, 3, 4]], [2**63, -1], [[]], [[True]], _deep(70), _round(), [np.int8(3)]),
    *({"a": 1}, {1, 2}, range(4), range(0), memoryview(b"abcd"), array.array("q", [1, 2])),
)
OTHERS: tuple[Any, ...] = (
    *(None, NotImplemented, Ellipsis, object(), type, int, Causal, Causal(), math, slice(3)),
    *(Cells(np.ones((4, 6), bool)), Watch(), Dropout(0.5, 0), np, np.ndarray, torch.Tensor),
    *(lambda *_: 1, lambda b, h, i, j: i >= j, types.SimpleNamespace(shape=(4,)), iter([1])),
    _hostile(__array__=1),
    _hostile(__array__=1, __repr__=1),
    _hostile(__dlpack__=1, __dlpack_device__=1),
    _hostile(__len__=1, __getitem__=1, __iter__=1),
    _hostile(__index__=1, __int__=1, __float__=1, __bool__=1, __hash__=1, __eq__=1),
    _hostile(__getattr__=1),
    _hostile(__fspath__=1),
)
SHAPES = ((), (0,), (1,), (2,), (3,), (4,), (6,), (2, 4), (2, 6), (4, 6), (2, 1, 4, 6), (1,) * 40)
DTYPES = (
    *"?bBhqQefdgcFDO",
    *("S1", "U2", ">i8", ">f4", "M8[s]", "m8[s]", "i4,i4", "bfloat16", "bool", "int64"),
)


def arrays(rng: random.Random) -> Any:
    """An array of any kind, shape, dtype and layout."""
    shape, dtype = rng.choice(SHAPES), rng.choice(DTYPES)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    made = np.zeros(shape, kind)
    if kind.kind in "biuf":
        made = np.asarray(np.random.default_rng(rng.randrange(99)).integers(0, 3, shape), kind)
    plain = kind.kind in "biuf" and kind.isnative and kind.itemsize <= 8
    changes: list[Callable[[], Any]] = [
        lambda: made,
        lambda: made[::-1] if made.ndim else made,
        lambda: np.broadcast_to(made[..., :1] if made.ndim else made, made.shape),
        lambda: np.ma.MaskedArray(made, np.ones(shape, bool)),
        lambda: made.view(np.matrix) if made.ndim == 2 else made,
        lambda: np.broadcast_to(np.zeros((), kind), (2**40, 2**18)),
    ]
    if plain:
        changes += [
            lambda: torch.tensor(made.tolist()),
            lambda: torch.tensor(made.tolist(), device="meta"),
            lambda: torch.tensor(made.tolist()).to_sparse() if made.ndim else made,
            lambda: torch.tensor(made.tolist(), dtype=torch.float32, requires_grad=True),
            lambda: torch.tensor(made.tolist(), dtype=torch.bfloat16),
            lambda: torch.zeros(shape, dtype=torch.complex64).conj(),
            lambda: array_api_strict.asarray(made.tolist()),
        ]
    return rng.choice(changes)()


def anything(rng: random.Random) -> Any:
    """A random object: a number, a word, a list, an array, or something hostile."""
    choices = (NUMBERS, WORDS, LISTS, OTHERS)
    place = rng.randrange(7)
    return rng.choice(choices[place]) if place < 4 else arrays(rng)


def outcome(make: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """What is made, or the class of the library's error (or MemoryError) that was raised."""
    try:
        return make(*given, **options)
    except (*ERRORS, MemoryError) as error:
        assert str(error) or isinstance(error, MemoryError)
        return type(error)

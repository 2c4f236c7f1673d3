"""Random arguments of every kind: what cannot be served ends in the library's errors.

Each example starts as a valid call; some of its arguments are then replaced by strange ones. Only
the library's three errors and MemoryError may come out, or the very error of a hostile object.
A call that stays valid is compared with the definition. 200 examples; CHUMOKU_EXAMPLES=10000 runs
as many as it says. `python tests/test_fuzz.py 27 28` runs example 27 again.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import array_api_strict as strict
import ml_dtypes
import numpy as np
import torch
from cases import call, error

import chumoku
from chumoku import ChumokuError, Watch
from chumoku.kernels import reference

EXAMPLES = int(os.environ.get("CHUMOKU_EXAMPLES", "200"))

# Bytes of address space that the examples may take.
MEMORY = 12 * 2**30

# Sizes no machine can hold: smaller ones could be served, and would take their time.
HUGE = (2**45, 2**50, 2**58)

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)


class Mine(Exception):
    """What the hostile objects below raise: it is the caller's own, and comes through."""


def raises(*_: Any, **__: Any) -> Any:
    raise Mine


class RaisingArray:
    __array__ = __dlpack__ = __getitem__ = __len__ = __iter__ = raises
    shape = dtype = ndim = property(raises)


class RaisingDLPack:
    __dlpack__ = __dlpack_device__ = __array_namespace__ = raises


class RaisingNumber(float):
    __float__ = __index__ = __lt__ = __repr__ = raises


class RaisingInt(int):
    __int__ = __index__ = __float__ = __lt__ = __repr__ = __str__ = raises


class RaisingString(str):
    __eq__ = __repr__ = __str__ = raises
    __hash__ = str.__hash__


class Subclass(np.ndarray):
    __array_ufunc__ = __getitem__ = __repr__ = raises
    shape = dtype = ndim = property(raises)


class Tagged(torch.Tensor):
    pass


def subclass() -> Subclass:
    return np.ndarray.__new__(Subclass, (4, 4), np.float32, buffer=np.ones((4, 4), np.float32))


looped: list[Any] = []
looped.append(looped)

STRANGE: list[Callable[[], Any]] = [
    lambda: None,
    lambda: 0,
    lambda: -1,
    lambda: 3.5,
    lambda: 10**5000,
    lambda: -(10**30),
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: 5e-324,
    lambda: 1.7e308,
    lambda: 2j,
    lambda: True,
    lambda: Decimal("0.1"),
    lambda: Fraction(1, 3),
    lambda: Fraction(10**400, 3),
    lambda: "native",
    lambda: "x" * 10_000,
    lambda: b"bytes",
    lambda: bytearray(16),
    lambda: memoryview(bytes(64)).cast("f"),
    lambda: ...,
    lambda: NotImplemented,
    lambda: object(),
    lambda: np.ndarray,
    lambda: chumoku.attention,
    lambda: np,
    lambda: (x for x in range(3)),
    lambda: iter([]),
    lambda: {},
    lambda: {1, 2},
    lambda: [],
    lambda: [[]],
    lambda: [[1.0, 2.0], [3.0]],
    lambda: [[1.0]],
    lambda: looped,
    lambda: [None, "a", 10**30],
    lambda: (1, 2),
    lambda: range(10**18),
    lambda: slice(None, None, 0),
    lambda: slice("a", 2.5),
    lambda: slice(10**30, -(10**30), -1),
    lambda: RaisingArray(),
    lambda: RaisingDLPack(),
    lambda: RaisingNumber(1.0),
    lambda: RaisingInt(1),
    lambda: RaisingString("native"),
    lambda: subclass(),
    lambda: SimpleNamespace(shape=(2, 2), dtype="float32", ndim=2),
    lambda: np.ma.masked_array(np.ones((4, 4), np.float32), mask=True),
    lambda: np.ndarray.__new__(np.matrix, (4, 4), np.float32),
    lambda: np.float32(2),
    lambda: np.bool_(True),
    lambda: np.int64(-3),
    lambda: np.array(2.0),
    lambda: np.array(3),
    lambda: np.ones(4, np.float32),
    lambda: np.ones((4, 4), np.float32),
    lambda: np.ones((3, 4, 4, 4), np.float64),
    lambda: np.ones((0, 0), np.float32),
    lambda: np.ones((1,) * 40, np.float32),
    lambda: np.ones((1,) * 64, bool),
    lambda: np.ones((4, 4), ">f4"),
    lambda: np.ones((4, 4), np.complex64),
    lambda: np.ones((4, 4), np.longdouble),
    lambda: np.ones((4, 4), object),
    lambda: np.array([["a", "b"]]),
    lambda: np.ones((4, 4), "M8[s]"),
    lambda: np.ones((4, 4), [("a", "f4")]),
    lambda: np.ones((4, 4), ml_dtypes.float8_e4m3fn),
    lambda: np.ones((4, 4), bool),
    lambda: np.array([2**64 - 1], np.uint64),
    lambda: np.array([-(2**63)]),
    lambda: np.full((4, 4), np.nan, np.float32),
    lambda: torch.ones(4, 4),
    lambda: torch.ones(4, 4, dtype=torch.int8),
    lambda: torch.ones(4, 4, dtype=torch.complex64),
    lambda: torch.ones(4, 4).to(torch.float8_e4m3fn),
    lambda: torch.ones(4, 4).bool(),
    lambda: torch.ones(4, 4, device="meta"),
    lambda: torch.ones(4, 4).bool().to_sparse(),
    lambda: torch.ones(4, 4).to_sparse(),
    lambda: torch.ones(4, 4, requires_grad=True),
    lambda: torch.ones(4, 4).as_subclass(Tagged),
    lambda: torch.ones((1,) * 70),
    lambda: torch.tensor(1.0),
    lambda: strict.ones((4, 4)),
    lambda: strict.ones((4, 4), dtype=strict.int64),
    lambda: strict.ones((4, 4), dtype=strict.complex64),
    lambda: np.broadcast_to(np.float32(1), (2**50, 1, 1)),
    lambda: np.broadcast_to(np.float32(1), (2**40, 1, 1, 1, 1)),
    lambda: np.broadcast_to(np.True_, (2**50, 1, 1, 1)),
]


class Fuzz:
    """One example: a valid call, and what was replaced in it."""

    def __init__(self, number: int) -> None:
        self.random = np.random.default_rng([31415, number])
        self.replaced: list[str] = []
        self.build()
        if self.flip(0.6):
            for _ in range(self.whole(1, 3)):
                self.replace()

    def whole(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high + 1))

    def flip(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def pick(self, things: Any) -> Any:
        return things[self.whole(0, len(things) - 1)]

    # A valid call

    def build(self) -> None:
        self.dtype = np.dtype(self.pick(DTYPES))
        lead = self.pick([(), (), (1,), (2,), (3, 2), (1, 2, 1, 2)])
        kv_heads, group = self.whole(0 if self.flip(0.1) else 1, 3), self.whole(1, 3)
        least = 0 if self.flip(0.2) else 1
        self.batch = lead
        self.heads, self.queries, self.keys = (
            kv_heads * group,
            self.whole(least, 20),
            self.whole(least, 150),
        )
        width, value_width = self.whole(1, 40), self.whole(least, 40)
        if self.flip(0.05):
            width = value_width = 1024
        self.arrays = {
            "query": self.normal(*lead, self.heads, self.queries, width),
            "key": self.normal(*lead, kv_heads, self.keys, width),
            "value": self.normal(*lead, kv_heads, self.keys, value_width),
        }
        if not lead and self.heads == kv_heads == 1 and self.flip(0.5):
            self.arrays = {name: array[0] for name, array in self.arrays.items()}
        if lead and self.flip(0.2):
            self.arrays["key"] = self.arrays["key"][:1]
        for name in self.arrays:
            self.arrays[name] = self.laid_out(self.arrays[name])
        self.options = self.drawn_options()

    def normal(self, *shape: int) -> Any:
        return self.random.standard_normal(shape).astype(self.dtype)

    def laid_out(self, array: Any) -> Any:
        way = self.whole(0, 6)
        if way == 0:
            return np.ascontiguousarray(array.mT).mT
        if way == 1:
            return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
        if way == 2:
            return np.broadcast_to(array[..., :1, :], array.shape)
        if way == 3 and array.size:
            room = np.zeros(array.nbytes + 1, np.uint8)[1:].view(self.dtype)
            room[...] = array.reshape(-1)
            return room.reshape(array.shape)
        if way == 4:
            array.setflags(write=False)
        return array

    def mask(self, depth: int = 0) -> Any:
        offset = self.pick([None, 0, -7, 40, 2**60, -(2**60)])
        far = self.pick([0, 1, 5, 200, 2**63 - 1])
        ids = [self.random.integers(0, 4, n) for n in (self.queries, self.keys)]
        choices: list[Callable[[], Any]] = [
            lambda: chumoku.Causal(offset),
            lambda: chumoku.Window(far, self.pick([0, 3, 2**63 - 1]), offset),
            lambda: chumoku.Lengths(self.whole(0, self.keys), self.whole(0, self.queries)),
            lambda: chumoku.Lengths(self.whole(0, self.keys), side="left"),
            lambda: chumoku.Documents(*ids),
            lambda: chumoku.Documents(*(np.sort(part) for part in ids)),
            lambda: chumoku.Prefix(self.pick([0, 3, 2**62, -1])),
            lambda: chumoku.Chunks(self.pick([1, 8, 2**62]), offset),
            lambda: chumoku.Custom(lambda b, h, i, j: (i + j + b + h) % 3 > 0),
            lambda: self.random.random((self.queries, self.keys)) < 0.7,
            lambda: self.random.random((self.heads, 1, self.keys)) < 0.7,
        ]
        found = self.pick(choices)()
        if depth < 2 and self.flip(0.3):
            found = chumoku.Mask.__and__(*map(as_value, (found, self.mask(depth + 1))))
        elif depth < 2 and self.flip(0.2):
            found = chumoku.Mask.__or__(*map(as_value, (found, self.mask(depth + 1))))
        return found

    def drawn_options(self) -> dict[str, Any]:
        whole = (*self.batch, self.heads, self.queries, self.keys)
        shape = tuple(n if self.flip(0.7) else 1 for n in whole)[self.whole(0, 2) :]
        bias = self.normal(*shape)
        if bias.size and self.flip(0.5):
            bias[self.random.random(shape) < 0.2] = -np.inf
        options = {
            "mask": lambda: self.mask(),
            "bias": lambda: bias,
            "scale": lambda: self.pick([0.5, -1, 0.0, 3.0, 1e-30, np.float32(0.25)]),
            "softcap": lambda: self.pick([0.5, 30, 1e6]),
            "sinks": lambda: self.normal(self.heads),
            "dropout": lambda: chumoku.Dropout(self.pick([0, 0.3, 0.99]), self.whole(0, 2**60)),
            "watch": self.drawn_watch,
            "kernel": lambda: "reference",
        }
        return {name: make() for name, make in options.items() if self.flip(0.25)}

    def drawn_watch(self) -> Watch:
        return Watch(
            top=self.pick([0, 1, 5, 200]),
            entropy=self.flip(0.5),
            saturation=self.flip(0.5),
            distance=self.flip(0.5),
            received=self.flip(0.3),
            groups=self.random.integers(0, 5, self.keys) if self.flip(0.3) else None,
            picture=(self.whole(1, 9), self.whole(1, 9)) if self.flip(0.3) else None,
        )

    # Strange arguments in it

    def replace(self) -> None:
        way = self.whole(0, 5)
        everywhere = {**self.arrays, **self.options}
        plain = [name for name, value in everywhere.items() if type(value) is np.ndarray]
        name = self.pick(plain if way <= 2 and plain else ["query", "key", "value", *OPTIONS])
        held = self.arrays if name in self.arrays else self.options
        array = held.get(name)
        self.replaced.append(name)
        turned = isinstance(array, np.ndarray) and array.ndim > 0 and 0 < array.nbytes < 2**30
        if way == 0 and turned:
            held[name] = array[..., 1:] if self.flip(0.5) else array.swapaxes(0, -1)
        elif way == 1 and turned and array.dtype.kind in "fVb":  # V: bfloat16
            held[name] = array.astype(self.pick([*DTYPES, np.int32, np.complex64, bool]))
        elif way == 2 and turned:
            shape = list(array.shape)
            shape[self.whole(0, max(0, len(shape) - 3))] = self.pick(HUGE)
            one = array.reshape(-1)[:1].reshape((1,) * len(shape))
            with suppress(ValueError):  # NumPy itself refuses some
                held[name] = np.broadcast_to(one, shape)
        elif way == 3:
            self.values()
        elif name == "watch" and way == 4:
            held[name] = self.pick([Watch(top=2**45), Watch(groups=[0]), Watch(groups=[2**62])])
        else:
            held[name] = self.pick(STRANGE)()

    def values(self) -> None:
        """A value object, made of what is strange; the library's errors may come already."""
        one, other = self.pick(STRANGE), self.pick(STRANGE)
        makers: dict[str, list[Callable[[], Any]]] = {
            "mask": [
                lambda: chumoku.Causal(one()),
                lambda: chumoku.Window(one(), other()),
                lambda: chumoku.Window(3, 3, one()),
                lambda: chumoku.Lengths(one(), other()),
                lambda: chumoku.Documents(one(), other()),
                lambda: chumoku.Prefix(one()),
                lambda: chumoku.Chunks(one()),
                lambda: chumoku.Custom(lambda b, h, i, j: one()),
                lambda: chumoku.Custom(raises),
                lambda: chumoku.Causal() & one(),
                lambda: one() | chumoku.Causal(),
            ],
            "dropout": [lambda: chumoku.Dropout(one(), 3), lambda: chumoku.Dropout(0.1, one())],
            "watch": [
                lambda: Watch(top=one()),
                lambda: Watch(groups=one()),
                lambda: Watch(picture=(one(), 3)),
                lambda: Watch(picture=one(), entropy=True),
            ],
        }
        name = self.pick(list(makers))
        self.options[name] = self.pick(makers[name])()

    # The call

    def run(self) -> None:
        arrays = dict(self.arrays)
        options = dict(self.options)
        dense = [v for v in (*arrays.values(), *options.values()) if isinstance(v, np.ndarray)]
        plain = all(type(v) is np.ndarray and v.dtype.isnative for v in dense)
        kind = self.pick(["numpy", "numpy", "torch", "strict"])
        if kind == "torch" and plain:
            arrays, options = (convert(held, as_tensor) for held in (arrays, options))
        elif kind == "strict" and plain and self.dtype in (np.float32, np.float64):
            arrays, options = (convert(held, strict.asarray) for held in (arrays, options))
        if self.flip(0.3):
            self.ask_weights(arrays, options)
            return
        found = chumoku.attention(**arrays, **options)
        if not self.replaced:
            self.compare(found[0] if options.get("watch") is not None else found)

    def ask_weights(self, arrays: dict[str, Any], options: dict[str, Any]) -> None:
        del arrays["value"]
        for name in ("dropout", "watch"):
            options.pop(name, None)
        for name in ("rows", "keys", "lse"):
            if self.flip(0.15):
                self.replaced.append(name)
                options[name] = self.pick(STRANGE)()
        chumoku.weights(**arrays, **options)

    def compare(self, output: Any) -> None:
        options = {name: v for name, v in self.options.items() if name not in ("kernel", "watch")}
        made = call(**self.arrays, **options)
        wanted, facts = reference.compute(made)
        lse = facts["lse"][np.isfinite(facts["lse"])]
        unit = 1e-14 if self.dtype == np.float64 else 1e-6
        bound = unit * (4 + float(np.abs(lse).max(initial=0.0)))
        if self.dtype.itemsize == 2:  # 16 bits hold no more than the rounded result
            bound += 1.01 * error(wanted.astype(self.dtype), wanted)
        assert error(as_numpy(output).reshape(wanted.shape), wanted) <= bound


OPTIONS = ("mask", "bias", "scale", "softcap", "sinks", "dropout", "watch", "kernel")


def as_value(mask: Any) -> Any:
    return mask if isinstance(mask, chumoku.Mask) else chumoku.Cells(mask)


def as_tensor(array: Any) -> Any:
    array = np.require(array, requirements=["C", "W", "A"])
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_numpy(array: Any) -> Any:
    if isinstance(array, torch.Tensor):
        array = (
            array.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            if (array.dtype == torch.bfloat16)
            else array.numpy()
        )
    return array if isinstance(array, np.ndarray) else np.from_dlpack(array)


def convert(held: dict[str, Any], make: Callable[[Any], Any]) -> dict[str, Any]:
    """NumPy arrays as another kind; what that kind cannot hold stays."""
    result = dict(held)
    for name, value in held.items():
        if isinstance(value, np.ndarray) and value.nbytes < 2**30:
            with suppress(TypeError, ValueError, RuntimeError):
                result[name] = make(value)
    return result


def outcome(number: int) -> str:
    """What came of one example: "served", or the name of the error."""
    fuzz = None
    try:
        with np.errstate(all="ignore"):
            fuzz = Fuzz(number)
            fuzz.run()
    except (ChumokuError, MemoryError) as known:
        assert fuzz is None or fuzz.replaced, f"a valid call raises {known!r}"
        return type(known).__name__
    except Mine:
        return "the caller's own"
    return "served"


def each_strange_object_in_each_place() -> None:
    x = np.ones((4, 4), np.float32)
    for strange in STRANGE:
        for name in ("query", "key", "value", *OPTIONS):
            given = {"query": x, "key": x, "value": x, name: strange()}
            with suppress(ChumokuError, MemoryError, Mine):
                chumoku.attention(**given)
        for name in ("query", "key", "rows", "keys", "lse", *OPTIONS):
            if name not in ("dropout", "watch"):
                with suppress(ChumokuError, MemoryError, Mine):
                    chumoku.weights(**{"query": x, "key": x, name: strange()})


def main(first: int, last: int) -> None:
    """Run examples and print what came of them, as JSON; the number of one that fails is told."""
    # What asks for more than this machine has shall not find it by and by.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    if first == 0:
        each_strange_object_in_each_place()
    counts: dict[str, int] = {}
    for number in range(first, last):
        print(number, end=" ", file=sys.stderr, flush=True)
        came = outcome(number)
        counts[came] = counts.get(came, 0) + 1
    print(json.dumps(counts))


def test_random_arguments_end_in_the_librarys_errors() -> None:
    """In a process of its own, whose memory has a limit and whose end by a signal is told."""
    command = [sys.executable, "-W", "error", __file__, "0", str(EXAMPLES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-3000:]}"
    counts = json.loads(done.stdout)
    assert sum(counts.values()) == EXAMPLES
    # The draws reach every way a call can end.
    assert counts["served"] >= EXAMPLES // 4
    for name in ("InvalidArgumentError", "InvalidTypeError"):
        assert counts[name] >= EXAMPLES // 20


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

"""What all masks are: `Mask`, masks joined with & and |, and boolean arrays as masks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import prod
from operator import and_, or_
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from chumoku.arrays import BOOLEANS, any_array
from chumoku.checks import shown
from chumoku.errors import InvalidArgumentError, InvalidTypeError
from chumoku.mask.lowered import Band, Boolean, Joined, Lowered
from chumoku.mask.shape import Bools, Ints, Shape, broadcast

# Reading a mask goes one call deeper for each & inside a | and each | inside an &, in the kernels
# for every row. Masks made by people have two or three; a nest without bounds would end the stack.
MAX_NEST = 32

# A mask is asked for so many scores at a time when its answers are held as bits.
ASKED_SCORES = 2**20

# Longer arrays and longer joins are named, not written out.
_SHORT = 8


class Mask:
    """Base of all masks. Masks are joined with `&` (both must allow) and `|` (either may).

    A mask is a value that never changes, and equal to itself alone: `==` compares no arrays.
    Joins of one kind stay flat, however many; & and | may take turns up to 32 times inside one
    another, and a deeper nest is an InvalidArgumentError when it is made.
    """

    # How many joins stand inside one another.
    _nest = 0

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        """Which of `keys` each of `rows` may look at: the definition.

        `rows` and `keys` are 1-D indices. The answer broadcasts to (*batch, heads, rows, keys).
        """
        raise NotImplementedError

    def lower(self, shape: Shape) -> Lowered:
        """The form that kernels walk."""
        raise NotImplementedError

    def asks(self) -> bool:
        """Whether `allowed` calls a function of the caller's."""
        return False

    def bits(self, shape: Shape, rows: Ints) -> NDArray[np.uint64]:
        """The answers for these rows, one bit for each key: (*batch, heads, rows, words).

        Axes that are answered alike have stride 0.
        """
        words = -(-shape.keys // 64)
        bits = np.zeros((*(1,) * (len(shape.batch) + 1), rows.size, 8 * words), np.uint8)
        height = max(1, ASKED_SCORES // max(1, prod(shape.batch) * shape.heads * shape.keys))
        for top in range(0, rows.size, height):
            for left in range(0, shape.keys, ASKED_SCORES):
                keys = np.arange(left, min(left + ASKED_SCORES, shape.keys))
                answer = self.allowed(shape, rows[top : top + height], keys)
                # Batch entries and heads that are answered alike are held once.
                alike = [slice(0, 1) if step == 0 else slice(None) for step in answer.strides[:-2]]
                packed = np.packbits(answer[tuple(alike)], axis=-1, bitorder="little")
                places = np.broadcast_shapes(bits.shape[:-2], packed.shape[:-2])
                if places != bits.shape[:-2]:
                    bits = np.broadcast_to(bits, (*places, *bits.shape[-2:])).copy()
                first = left // 8
                bits[..., top : top + height, first : first + packed.shape[-1]] = packed
        whole = (*shape.batch, shape.heads, rows.size, words)
        return np.broadcast_to(bits.view(np.uint64), whole)

    def refine(self, shape: Shape) -> Shape:
        """What this mask tells its neighbours in an `&` about the valid lengths."""
        return shape

    def __and__(self, other: Mask) -> Mask:
        return All(_parts(self, All) + _parts(as_mask(other), All))

    def __or__(self, other: Mask) -> Mask:
        return Any_(_parts(self, Any_) + _parts(as_mask(other), Any_))

    # NumPy must not spread `array & mask` over the array's elements.
    __array_ufunc__ = None

    def __rand__(self, other: Mask) -> Mask:
        return as_mask(other) & self

    def __ror__(self, other: Mask) -> Mask:
        return as_mask(other) | self

    def __repr__(self) -> str:
        said = {
            name: _brief(value)
            for name, value in vars(self).items()
            if not name.startswith("_") and value is not getattr(type(self), name, self)
        }
        given = ", ".join(f"{name}={text}" for name, text in said.items())
        return f"{type(self).__name__}({given})"


def _parts(mask: Mask, kind: type[All] | type[Any_]) -> tuple[Mask, ...]:
    return mask.parts if isinstance(mask, kind) else (mask,)


def _brief(value: object) -> str:
    if not isinstance(value, np.ndarray):
        return shown(value)
    return str(value.tolist()) if value.size <= _SHORT else f"<{value.dtype} {value.shape}>"


def as_mask(value: object) -> Mask:
    """A mask value as it is; a boolean array as `Cells`; anything else is refused."""
    if isinstance(value, type) and issubclass(value, Mask):
        got = f"the class {value.__name__}"
        raise InvalidTypeError("mask", got, "a value of it", f"Write {value.__name__}(...).")
    return value if isinstance(value, Mask) else Cells(value)


@dataclass(frozen=True, eq=False, repr=False)
class Cells(Mask):
    """A boolean array that broadcasts to (..., heads, queries, keys); True means may look.

    `attention(mask=array)` is short for `attention(mask=Cells(array))`.

    Parameters
    ----------
    array : array of bool
        NumPy's, a PyTorch tensor on the CPU or, for calls there, on a GPU, or any array in main
        memory that speaks DLPack. It is not copied: who writes to it changes the mask.
    """

    array: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "array", any_array("mask", self.array, BOOLEANS, gpu=True))

    def _view(self, shape: Shape) -> Any:
        whole = (*shape.batch, shape.heads, shape.queries, shape.keys)
        on_gpu = not isinstance(self.array, np.ndarray)
        array = np.broadcast_to(True, self.array.shape) if on_gpu else self.array
        view = broadcast(array, whole, "mask", "Its axes are (..., heads, queries, keys).")
        return self.array.expand(whole) if on_gpu else view

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        view = self._view(shape)
        if not isinstance(view, np.ndarray):
            view = np.broadcast_to(self.array.cpu().numpy(), view.shape)
        return np.asarray(view[..., rows[:, None], keys])

    def lower(self, shape: Shape) -> Lowered:
        return Boolean(self._view(shape))


@dataclass(frozen=True, eq=False, repr=False)
class _Join(Mask):
    """Masks joined with `&` or `|`, one or more."""

    parts: tuple[Mask, ...]

    _sign: ClassVar[str]

    def __post_init__(self) -> None:
        if not isinstance(self.parts, (tuple, list)):
            raise InvalidTypeError("parts", shown(self.parts), "a tuple of masks")
        if not self.parts:
            raise InvalidArgumentError("parts", "no mask", "one mask or more")
        parts = tuple(as_mask(part) for part in self.parts)
        nest = 1 + max(part._nest for part in parts)
        if nest > MAX_NEST:
            got = f"& and | that take turns {nest} deep"
            cure = "Put what is joined alike side by side, or give a boolean array."
            raise InvalidArgumentError("mask", got, f"{MAX_NEST} deep at most", cure)
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "_nest", nest)

    def asks(self) -> bool:
        return any(part.asks() for part in self.parts)

    def __repr__(self) -> str:
        shorter = self.parts if len(self.parts) <= _SHORT else self.parts[: _SHORT // 2]
        texts = [f"({part!r})" if isinstance(part, _Join) else repr(part) for part in shorter]
        if len(self.parts) > _SHORT:
            texts.append(f"... {len(self.parts) - len(shorter)} more")
        return self._sign.join(texts)


class All(_Join):
    """Masks joined with `&`: every part must allow a key."""

    _sign = " & "

    def refine(self, shape: Shape) -> Shape:
        for part in self.parts:
            shape = part.refine(shape)
        return shape

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        shape = self.refine(shape)
        return reduce(and_, (part.allowed(shape, rows, keys) for part in self.parts))

    def lower(self, shape: Shape) -> Lowered:
        shape = self.refine(shape)
        lowered = [part.lower(shape) for part in self.parts]
        bands = [part for part in lowered if isinstance(part, Band)]
        forms: list[Lowered] = [reduce(and_, bands)] if bands else []
        forms += [part for part in lowered if not isinstance(part, Band)]
        return forms[0] if len(forms) == 1 else Joined(tuple(forms), all=True)


class Any_(_Join):
    """Masks joined with `|`: one part that allows a key is enough."""

    _sign = " | "

    def allowed(self, shape: Shape, rows: Ints, keys: Ints) -> Bools:
        return reduce(or_, (part.allowed(shape, rows, keys) for part in self.parts))

    def lower(self, shape: Shape) -> Lowered:
        return Joined(tuple(part.lower(shape) for part in self.parts), all=False)

"""The cache: projected keys and values, kept between the calls of one MultiHeadAttention."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chumoku.checks import shown, whole
from chumoku.errors import InvalidArgumentError

Floats = NDArray[Any]


class Cache:
    """Projected keys and values of one MultiHeadAttention, for decoding step by step.

    Give an empty one to the first call and the same one to the calls that follow. What it does
    is settled by the first call:

    - Self attention, `mha(x, mask=Causal(), cache=cache)`: every call appends the positions of
      its x, and the queries look at all that is held. Buffers double, so that a position is
      moved about once however many steps there are. `Causal()` sets the queries at the end.
    - Cross attention, `mha(x, memory, cache=cache)`: the first call projects the memory; later
      calls look at the same again and project nothing. They give the same array or leave it out.

    A call that raises leaves the cache as it was. Arrays that were handed out (`Trace.key`, the
    inputs of a recording) are not overwritten by what is appended later.
    """

    def __init__(self) -> None:
        self._buffers: tuple[Floats, ...] = ()
        self._length = 0
        # Whether the room behind the length was never handed out, so that it may be written.
        self._spare = False
        self._owner: tuple[Floats, ...] = ()
        self._memory: tuple[Floats, Floats | None] | None = None

    def __len__(self) -> int:
        """How many positions can be looked at."""
        return self._length

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on; 0 empties the cache for any use.

        Raises
        ------
        InvalidArgumentError
            Not 0 to len(cache), or a part of what a cross-attention memory gave.
        """
        length = whole("length", length, 0)
        if length == 0:
            self.__dict__.update(Cache().__dict__)
        elif length > len(self):
            raise InvalidArgumentError("length", shown(length), f"0 to {len(self)}, what is held")
        elif length < len(self) and self._memory is not None:
            got = f"{length}, of a cache that holds a memory of {len(self)}"
            cure = "To look at a part of the memory, give a mask."
            raise InvalidArgumentError("length", got, "0, which empties it", cure)
        elif length < len(self):
            self._length, self._spare = length, False

    def __copy__(self) -> Cache:
        self._spare = False
        twin = Cache()
        twin.__dict__.update(self.__dict__)
        return twin

    def _after(self, *added: Floats) -> dict[str, Any]:
        """The state with these keys and values at the end; the cache itself stays as it is."""
        if not self._buffers:
            return {"_buffers": added, "_length": added[0].shape[-2]}
        batch, held = added[0].shape[:-3], self._buffers[0].shape[:-3]
        if batch != held:
            got, expected = f"keys of leading axes {held} in it", f"{batch}, as x has"
            cure = "Step with the batch that filled the cache, or start with a new Cache()."
            raise InvalidArgumentError("cache", got, expected, cure)
        start, length = self._length, self._length + added[0].shape[-2]
        buffers = self._buffers
        if not self._spare or length > buffers[0].shape[-2]:
            room = max(length, 2 * start)
            buffers = tuple(np.empty((*a.shape[:-2], room, a.shape[-1]), a.dtype) for a in added)
            for new, old in zip(buffers, self._buffers, strict=True):
                new[..., :start, :] = old[..., :start, :]
        for buffer, new in zip(buffers, added, strict=True):
            buffer[..., start:length, :] = new
        return {"_buffers": buffers, "_length": length, "_spare": True}

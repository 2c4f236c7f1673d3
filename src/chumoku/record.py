"""Recording: what every attention call inside a `with` block saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from chumoku.checks import shown
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.mask import Shape
from chumoku.statistics import Statistics, Watch

_open: ContextVar[tuple[Recording, ...]] = ContextVar("chumoku_recordings", default=())
_label: ContextVar[str] = ContextVar("chumoku_label", default="")


@dataclass(frozen=True)
class Entry:
    """One attention call: its name, its sizes, its statistics.

    Attributes
    ----------
    name : str
        The label that was set around the call, or "attention N".
    shape : Shape
        batch, heads, queries, keys.
    statistics : Statistics
    """

    name: str
    shape: Shape
    statistics: Statistics
    _weights: Callable[..., Any] | None = field(default=None, repr=False)

    def weights(self, rows: Any = None, keys: Any = None) -> Any:
        """Any block of the weights, computed now: (*batch, heads, rows, keys).

        Parameters
        ----------
        rows, keys : slice, int or array of int, optional
            Which queries and keys; all when not given.

        Raises
        ------
        UnavailableError
            When the recording did not keep the inputs.
        """
        if self._weights is None:
            raise UnavailableError(
                "weights",
                got="a recording without inputs",
                expected="recording(watch, inputs=True)",
                cure="It keeps query and key of each call, so that blocks can be computed later.",
            )
        return self._weights(
            rows=slice(None) if rows is None else rows, keys=slice(None) if keys is None else keys
        )


@dataclass(frozen=True)
class Recording:
    """What a run saw, call by call, in order.

    Attributes
    ----------
    watch : Watch
        What is asked of every call.
    inputs : bool
        Whether query and key of each call are kept (as they are, not copied).
    entries : list of Entry
    """

    watch: Watch = field(default_factory=Watch)
    inputs: bool = False
    entries: list[Entry] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __getitem__(self, which: int | str) -> Entry:
        """An entry by its place or, when it is the only one of that name, by its name."""
        if isinstance(which, int):
            return self.entries[which]
        found = [entry for entry in self.entries if entry.name == which]
        if len(found) == 1:
            return found[0]
        names = ", ".join(dict.fromkeys(entry.name for entry in self.entries)) or "nothing"
        raise InvalidArgumentError(
            "name", got=f"{shown(which)}, {len(found)} entries", expected=f"one entry of: {names}"
        )

    def add(self, shape: Shape, statistics: Statistics, weights: Callable[..., Any]) -> None:
        """Note one call; attention() does this."""
        name = _label.get() or f"attention {len(self.entries)}"
        kept = weights if self.inputs else None
        self.entries.append(Entry(name, shape, statistics, kept))


@contextmanager
def recording(watch: Watch | None = None, *, inputs: bool = False) -> Iterator[Recording]:
    """Collect what every attention() call inside the block saw.

    Parameters
    ----------
    watch : Watch, optional
        Facts to collect besides lse and max logit.
    inputs : bool
        Keep query and key of each call, so that `Entry.weights` can give any block later. They
        are kept as they are: writing into them afterwards changes what the entry gives.

    Yields
    ------
    Recording
        Filled call by call. Recordings may be nested: each gets every call made inside it.
        Threads started inside the block do not report to it.
    """
    if watch is not None and not isinstance(watch, Watch):
        raise InvalidTypeError("watch", shown(watch), "Watch(top=8, entropy=True, ...)")
    if not isinstance(inputs, bool):
        raise InvalidTypeError("inputs", shown(inputs), "True or False")
    seen = Recording(Watch() if watch is None else watch, inputs)
    token = _open.set((*_open.get(), seen))
    try:
        yield seen
    finally:
        _open.reset(token)


@contextmanager
def label(name: str) -> Iterator[None]:
    """Name the attention calls made inside the block, as recordings will show them."""
    if not isinstance(name, str):
        raise InvalidTypeError("name", shown(name), "a str")
    token = _label.set(name)
    try:
        yield
    finally:
        _label.reset(token)


def open_recordings() -> tuple[Recording, ...]:
    """The recordings that the next call reports to."""
    return _open.get()

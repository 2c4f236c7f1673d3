"""The ways to compute attention: what a kernel is, and the ones there are, best first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from chumoku.dropout import Dropout
from chumoku.mask import Mask, Shape
from chumoku.statistics import Statistics, Watch


@dataclass(frozen=True)
class Call:
    """One checked call: NumPy views that agree with one another, leading axes broadcast.

    query (*batch, heads, queries, width), key (*batch, kv_heads, keys, width), value
    (*batch, kv_heads, keys, value_width), bias (*batch, heads, queries, keys) with stride 0 where
    it is broadcast, sinks (heads,). Query head h reads key head h // (heads // kv_heads).
    """

    query: NDArray[Any]
    key: NDArray[Any]
    value: NDArray[Any]
    mask: Mask | None
    bias: NDArray[Any] | None
    scale: float
    softcap: float | None
    sinks: NDArray[Any] | None
    dropout: Dropout | None
    watch: Watch
    # Where a kernel puts output and lse as it had them before rounding, for the gradients.
    exact: dict[str, NDArray[Any]] | None = None

    @property
    def shape(self) -> Shape:
        """The sizes, as masks want them."""
        *batch, heads, queries, _ = self.query.shape
        return Shape(tuple(batch), heads, queries, self.key.shape[-2])

    @property
    def group(self) -> int:
        """Query heads that share one key head."""
        return int(self.query.shape[-3] // max(1, self.key.shape[-3]))

    @property
    def scores(self) -> int:
        """How many numbers the matrix of scores would hold."""
        return int(np.prod(self.query.shape[:-1], dtype=np.int64)) * int(self.key.shape[-2])


@dataclass(frozen=True)
class Upstream:
    """What the gradients of a call are taken from, and what is known of the call already.

    gradient and output (*batch, heads, queries, value_width), the others (*batch, heads, queries).
    Output and lse may be unrounded, as `Call.exact` has them.
    """

    gradient: NDArray[Any]
    output: NDArray[Any] | None = None
    lse: NDArray[Any] | None = None
    lse_gradient: NDArray[Any] | None = None
    entropy_gradient: NDArray[Any] | None = None
    bias_shape: tuple[int, ...] | None = ()  # before it was broadcast; None: no gradient of it


class Gradients(NamedTuple):
    """Gradients with the shapes of the call's arrays, leading axes broadcast.

    That of the bias has all axes too, those of length 1 over which it was broadcast.
    """

    query: NDArray[Any]
    key: NDArray[Any]
    value: NDArray[Any]
    bias: NDArray[Any] | None
    sinks: NDArray[Any] | None


class Kernel(Protocol):
    """One way to compute the same thing; a module that has these names is one."""

    @property
    def name(self) -> str:
        """How a caller asks for it."""

    def refuses(self, call: Call) -> str | None:
        """A sentence why this kernel cannot serve the call, or None when it can."""

    def run(self, call: Call) -> tuple[NDArray[Any], Statistics]:
        """Output of shape (*batch, heads, queries, value_width), and what was watched."""

    def weights(
        self,
        call: Call,
        rows: NDArray[np.int64],
        keys: NDArray[np.int64],
        lse: NDArray[Any] | None,
    ) -> NDArray[Any]:
        """The block (*batch, heads, len(rows), len(keys)) of the weights.

        `lse` of shape (*batch, heads, len(rows)) spares the pass over all keys.
        """

    def backward(self, call: Call, upstream: Upstream) -> Gradients:
        """The gradients of query, key, value, bias and sinks."""


# The kernels need Call for their annotations only; they are imported below what they describe.
from chumoku.kernels import native, reference  # noqa: E402

KERNELS: tuple[Kernel, ...] = (native, reference)

"""The ways to compute attention: what a kernel is, and the ones there are, best first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from chumoku.dropout import Dropout
from chumoku.mask import Mask, Shape
from chumoku.statistics import Array, Statistics, Watch


@dataclass(frozen=True)
class Call:
    """One checked call: arrays that agree with one another, leading axes broadcast.

    NumPy views; of a call on a GPU, PyTorch tensors that lie there.

    query (*batch, heads, queries, width), key (*batch, kv_heads, keys, width), value
    (*batch, kv_heads, keys, value_width), bias (*batch, heads, queries, keys) with stride 0 where
    it is broadcast, sinks (heads,). Query head h reads key head h // (heads // kv_heads).
    """

    query: Array
    key: Array
    value: Array
    mask: Mask | None
    bias: Array | None
    scale: float
    softcap: float | None
    sinks: Array | None
    dropout: Dropout | None
    watch: Watch
    # Where a kernel puts output and lse as it had them before rounding, for the gradients.
    exact: dict[str, Array] | None = None

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
    def row_facts(self) -> list[str]:
        """The facts that have one number for each query."""
        watch, names = self.watch, ["lse", "max_logit"]
        names += ["sink_weight"] * (self.sinks is not None)
        names += ["entropy"] * watch.entropy + ["saturation", "flow"] * watch.saturation
        return names + ["distance"] * watch.distance

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

    gradient: Array
    output: Array | None = None
    lse: Array | None = None
    lse_gradient: Array | None = None
    entropy_gradient: Array | None = None
    bias_shape: tuple[int, ...] | None = ()  # before it was broadcast; None: no gradient of it


class Gradients(NamedTuple):
    """Gradients with the shapes of the call's arrays, leading axes broadcast.

    That of the bias has all axes too, those of length 1 over which it was broadcast.
    """

    query: Array
    key: Array
    value: Array
    bias: Array | None
    sinks: Array | None


class Kernel(Protocol):
    """One way to compute the same thing; a module that has these names is one."""

    @property
    def name(self) -> str:
        """How a caller asks for it."""

    def refuses(self, call: Call) -> str | None:
        """A sentence why this kernel cannot serve the call, or None when it can."""

    def run(self, call: Call) -> tuple[Array, Statistics]:
        """Output of shape (*batch, heads, queries, value_width), and what was watched."""

    def weights(
        self,
        call: Call,
        rows: NDArray[np.int64],
        keys: NDArray[np.int64],
        lse: Array | None,
    ) -> Array:
        """The block (*batch, heads, len(rows), len(keys)) of the weights.

        `lse` of shape (*batch, heads, len(rows)) spares the pass over all keys.
        """

    def backward(self, call: Call, upstream: Upstream) -> Gradients:
        """The gradients of query, key, value, bias and sinks."""


class _OnGPU:
    """The kernel of tensors on a GPU; nothing of it is imported before one comes."""

    name = "triton"

    @cached_property
    def _module(self) -> Kernel:
        return cast(Kernel, import_module("chumoku.kernels.triton"))

    def refuses(self, call: Call) -> str | None:
        if isinstance(call.query, np.ndarray):
            return "it computes PyTorch tensors on a GPU"
        if find_spec("triton") is None:
            return "it needs the package triton (pip install triton)"
        return self._module.refuses(call)

    def run(self, call: Call) -> tuple[Array, Statistics]:
        return self._module.run(call)

    def weights(
        self, call: Call, rows: NDArray[np.int64], keys: NDArray[np.int64], lse: Array | None
    ) -> Array:
        return self._module.weights(call, rows, keys, lse)

    def backward(self, call: Call, upstream: Upstream) -> Gradients:
        return self._module.backward(call, upstream)


# The kernels need Call for their annotations only; they are imported below what they describe.
from chumoku.kernels import native, reference  # noqa: E402

KERNELS: tuple[Kernel, ...] = (native, _OnGPU(), reference)

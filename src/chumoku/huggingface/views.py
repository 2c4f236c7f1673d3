"""outputs.attentions: the weights of a layer, computed where someone looks."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import output_capturing

from chumoku.attention import attention, weights
from chumoku.attention.call import Relative, index_of
from chumoku.errors import UnavailableError
from chumoku.huggingface.lazy import Lazy
from chumoku.mask import Mask
from chumoku.mask.values import mask_of_entry
from chumoku.record import silent
from chumoku.statistics import Statistics, Watch
from chumoku.torch.composed import composed
from chumoku.torch.operator import Asked, options_of


class AttentionView(Lazy):
    """The weights of one layer, (batch, heads, queries, keys), of which nothing is stored.

    It keeps query and key instead. `row`, `block`, `top` and `entropy` compute what they give.
    Where a tensor is wanted (indexing, NumPy, any operation of PyTorch) the part that is asked
    for is computed, up to `budget` bytes. Weights are those before dropout.

    Attributes
    ----------
    shape : torch.Size
        (batch, heads, queries, keys).
    budget : int
        Bytes that a tensor of weights may take; set AttentionView.budget to change it for all.
    """

    budget = 2**28

    def __init__(self, query: Tensor, key: Tensor, options: dict[str, Any]) -> None:
        batch = max(query.shape[0], key.shape[0])
        self._static = hasattr(key, "_dynamo_static_input_type")
        self._query, self._key = (x.expand(batch, *x.shape[1:]) for x in (query, key))
        self._options = options
        self.shape = torch.Size((batch, *query.shape[1:3], key.shape[2]))
        self.dtype, self.device = query.dtype, query.device
        self._version = None if key.is_inference() else key._version
        self._kept: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        stale = self._version is not None and self._key._version != self._version
        return {**vars(self), "_version": -1 if stale else self._version}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._version is not None and self._version >= 0:
            self._version = self._key._version  # a copy counts anew

    # What is computed where it is asked for

    def row(self, batch: int, head: int, query: int) -> Tensor:
        """The weights of one query: (keys,), float32."""
        return self.block(batch, head, query)[0]

    def block(
        self,
        batch: int | None = None,
        head: int | None = None,
        queries: Any = slice(None),
        keys: Any = slice(None),
    ) -> Tensor:
        """Any block of the weights, float32 (float64 for float64).

        Parameters
        ----------
        batch, head : int, optional
            One of each, whose axis is left out; all when not given.
        queries, keys : slice, int or 1-D array of int

        Returns
        -------
        Tensor, (batch, heads, queries, keys), without the axes of which one was chosen

        Raises
        ------
        InvalidArgumentError
            There is no such batch entry, head, query or key.
        UnavailableError
            The block is larger than the budget.
        """
        batch, head = (_place(n, p, self.shape) for n, p in (("batch", batch), ("head", head)))
        rows, columns = (
            index_of(name, which, length)
            for name, which, length in zip(
                ("queries", "keys"), (queries, keys), self.shape[2:], strict=True
            )
        )
        if self._kept is not None:
            block = self._kept[:, :, torch.from_numpy(rows)][..., torch.from_numpy(columns)]
        else:
            block = self._computed(batch, head, rows, columns)
        # What was cut to one entry or head has an axis of length 1.
        for axis, place in ((1, head), (0, batch)):
            if place is not None:
                block = block.select(axis, place if block.shape[axis] > 1 else 0)
        found: Tensor = block
        return found

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The k keys with the largest weights: indices and weights, (batch, heads, queries, k).

        -1 and 0 where a query sees fewer.
        """
        if self._kept is None:
            seen = self._watched(Watch(top=k))
            return seen.top_keys, seen.top_weights
        found = self._kept.topk(min(k, self.shape[-1]), dim=-1)
        places = found.indices.where(found.values > 0, -1)
        missing = (0, k - places.shape[-1])
        pad = torch.nn.functional.pad
        return pad(places, missing, value=-1), pad(found.values, missing)

    @property
    def entropy(self) -> Tensor:
        """Entropy of each query's weights in nats: (batch, heads, queries)."""
        if self._kept is not None:
            entropy: Tensor = torch.special.entr(self._kept).sum(-1)
        else:
            entropy = self._watched(Watch(entropy=True)).entropy
        return entropy

    # As a tensor

    @property
    def requires_grad(self) -> bool:
        return self._trains()

    def dense(self) -> Tensor:
        """All weights as a tensor of the model's dtype; differentiable where query and key are.

        Raises
        ------
        UnavailableError
            They are larger than the budget.
        """
        if not self._trains():
            return self.block().to(self.dtype)
        self._check(self.shape)
        key = self._key
        one = torch.eye(key.shape[2], dtype=key.dtype).expand(*key.shape[:2], -1, -1)
        given = self._options
        asked = Asked(given["mask"], given["scale"], given["softcap"], None)
        options = options_of(self._query, given["bias"], given["sinks"], asked)
        return composed(self._query, key, one, options)[0]

    def retain_grad(self) -> None:
        """There is no tensor whose gradient could be kept."""
        raise UnavailableError(
            "attentions",
            got="retain_grad() of weights that are computed anew each time",
            expected="a tensor",
            cure="Keep one: weights = view.dense(), and use that in the loss.",
        )

    def numpy(self) -> Any:
        """All weights as a NumPy array."""
        return self.dense().detach().numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def __getitem__(self, index: Any) -> Tensor:
        """As of a tensor; of numbers and slices only that part is computed."""
        places = index if isinstance(index, tuple) else (index,)
        simple = all(type(p) is int or isinstance(p, slice) or p is Ellipsis for p in places)
        if self._trains() or not simple or len(places) > 4 + places.count(Ellipsis):
            return self.dense()[index]
        if Ellipsis in places:
            at = places.index(Ellipsis)
            gap = (slice(None),) * (5 - len(places))
            places = places[:at] + gap + places[at + 1 :]
        batch, head, queries, keys = places + (slice(None),) * (4 - len(places))
        one_batch, one_head = (p if type(p) is int else None for p in (batch, head))
        block = self.block(one_batch, one_head, queries, keys).to(self.dtype)
        rest: list[Any] = [p for p in (batch, head) if type(p) is not int]
        rest += [0 if type(p) is int else slice(None) for p in (queries, keys)]
        return block[tuple(rest)]

    def settle(self) -> None:
        """Keep the weights themselves where they are smaller than what they are computed from.

        They are, for the one query of each step of a generation. A static cache's keys, which the
        next step writes over, are copied.
        """
        if self._trains():
            return
        if self.numel() <= self._key.numel():
            self._kept = self._computed(None, None, *map(np.arange, self.shape[2:]))
            del self._query, self._key, self._options
        elif self._static:
            self._key, self._version = self._key.clone(), None

    def _trains(self) -> bool:
        if self._kept is not None or not torch.is_grad_enabled():
            return False
        return self._query.requires_grad or self._key.requires_grad

    def _check(self, sizes: Any) -> None:
        """Refuse more than the budget, and keys that are no longer what they were."""
        size = 8 if self.dtype == torch.float64 else 4
        needed = prod(sizes) * size
        if needed > self.budget:
            raise UnavailableError(
                "attentions",
                got=f"{needed:,} bytes for weights of shape {tuple(sizes)}",
                expected=f"{self.budget:,} at most, which AttentionView.budget allows",
                cure="Ask for a part: .row(batch, head, query), .block(...), .top(k), .entropy.",
            )
        if self._version is not None and self._key._version != self._version:
            raise UnavailableError(
                "attentions",
                got="a layer whose keys were written over since, as static caches are",
                expected="them as they were",
                cure="Pass output_attentions=True to the call, or use a dynamic cache.",
            )

    def _computed(self, batch: int | None, head: int | None, rows: Any, keys: Any) -> Tensor:
        """A block of one head or all, and of one batch entry where its mask is known."""
        query, key, options = self._query.detach(), self._key.detach(), dict(self._options)
        tensors = {"mask": options["mask"], "bias": options["bias"]}
        known = True
        if isinstance(tensors["mask"], Mask) and batch is not None:
            alone = mask_of_entry(tensors["mask"], batch)
            known = alone is not None
            tensors["mask"] = alone if known else tensors["mask"]
        if batch is not None and known:
            query, key = query[batch : batch + 1], key[batch : batch + 1]
            for name, tensor in tensors.items():
                tensors[name] = _cut(tensor, 0, batch)
        if head is not None:
            own = head // (query.shape[1] // key.shape[1])
            query, key = query[:, head : head + 1], key[:, own : own + 1]
            for name, tensor in tensors.items():
                tensors[name] = _cut(tensor, 1, head)
            if options["sinks"] is not None:
                options["sinks"] = options["sinks"][head : head + 1]
        self._check((*query.shape[:2], len(rows), len(keys)))
        with torch.no_grad():
            block: Tensor = weights(query, key, rows=rows, keys=keys, **{**options, **tensors})
        return block

    def _watched(self, watch: Watch) -> Statistics:
        self._check(())
        query, key = self._query.detach(), self._key.detach()
        with torch.no_grad(), silent():
            return attention(query, key, key[..., :1], watch=watch, **self._options)[1]


def _cut(tensor: Any, axis: int, place: int) -> Any:
    """One entry of an axis, which stays, of a mask or bias that may be broadcast."""
    if isinstance(tensor, Relative):
        return Relative(_cut(tensor.values[:, :, None], axis, place)[:, :, 0])
    if not isinstance(tensor, Tensor) or tensor.shape[axis] == 1:
        return tensor
    return tensor.narrow(axis, place, 1)


def _place(name: str, place: int | None, shape: torch.Size) -> int | None:
    """A batch entry or head; negative ones count from the end."""
    if place is None:
        return None
    return int(index_of(name, place, shape[0 if name == "batch" else 1])[0])


def collected() -> bool:
    """Whether the call is made for a model that was asked for output_attentions."""
    collector: Any = output_capturing._active_collector
    found = collector.get()
    return found is not None and any("attentions" in name for name in found)

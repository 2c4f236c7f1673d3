"""Forward passes: output and facts of the rows, then what needs their final sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from chumoku.kernels import Call
from chumoku.kernels.triton import forward, totals
from chumoku.kernels.triton.launch import Launch, Plan, plan_back, plan_of, ready, rows_like
from chumoku.statistics import Statistics, Watch

Ints = NDArray[np.int64]

# Longer lists do not fit beside a tile: they are sorted, from so many logits at a time.
LISTED = 32
SORTED_SCORES = 2**26


class Facts(NamedTuple):
    """Where facts of the rows are written; 0 where they are not watched."""

    lse: int = 0
    max_logit: int = 0
    sink_weight: int = 0
    entropy: int = 0
    saturation: int = 0
    flow: int = 0
    distance: int = 0
    top_weights: int = 0
    top_keys: int = 0


class Cut(NamedTuple):
    """Tiles, and the edges of the blocks of rows."""

    plan: Plan
    edges: Ints


class Scratch(NamedTuple):
    """Where splits are kept until they are joined."""

    sums: int = 0
    scores: int = 0
    names: int = 0


def run(call: Call) -> tuple[Tensor, Statistics]:
    """Output of shape (*batch, heads, queries, value_width), and what was watched."""
    watch = call.watch
    output, facts = attend(call)
    if call.exact is not None:
        call.exact.update(output=output, lse=facts["lse"])
    totals_of = Totals(call, facts["lse"])
    if watch.top > LISTED:
        facts["top_keys"], facts["top_weights"] = totals_of.sorted(watch.top)
    if watch.received:
        facts["received"], facts["received_share"] = totals_of.received()
    if watch.groups is not None:
        facts["group_mass"] = totals_of.masses(watch.groups)
    if watch.picture is not None:
        facts["picture"] = totals_of.picture(*watch.picture)
    return output, Statistics(**facts)


def weights(call: Call, rows: Ints, keys: Ints, lse: Tensor | None) -> Tensor:
    """The block (*batch, heads, len(rows), len(keys)) of the weights."""
    if lse is None:
        lse = attend(call)[1]["lse"][..., torch.from_numpy(rows).to(call.query.device)]
    return Totals(call, lse).block(rows, keys)


def attend(call: Call) -> tuple[Tensor, dict[str, Any]]:
    """The output, and the facts of each row that one pass gives."""
    plan, watch = plan_of(call), call.watch
    if watch.top > LISTED:
        watch = replace(watch, top=0)
    if watch is not call.watch:
        call = replace(call, watch=watch)
    output = rows_like(call.query, call.value.shape[-1])
    facts = _empty_facts(call, watch)
    arrays = (call.query, call.key, call.value, output)
    given, form, matrices, _, programs, held = ready(call, plan, arrays)
    at = Facts(**{fact: x.data_ptr() for fact, x in facts.items()})
    scratch = Scratch()
    if plan.splits > 1:
        rows, slots = prod(call.query.shape[:-1]) * plan.splits, form.slots.value
        wide = forward.FIELDS.value + form.value_block.value
        sums = call.query.new_empty(rows * wide, dtype=torch.float32)
        scores = call.query.new_empty(rows * slots if watch.top else 1, dtype=torch.float32)
        names = torch.empty_like(scores, dtype=torch.int32)
        scratch = Scratch(sums.data_ptr(), scores.data_ptr(), names.data_ptr())
    if programs:
        forward.attend[(programs * plan.splits,)](*matrices, given, at, scratch, form, **plan.told)
        if plan.splits > 1:
            forward.join[(programs,)](matrices[-1], given, at, scratch, form, **plan.told)
    return output, facts


def _empty_facts(call: Call, watch: Watch) -> dict[str, Any]:
    """Memory for the facts of each row that are watched."""
    places = call.query.shape[:-1]
    facts = {fact: call.query.new_empty(places, dtype=torch.float32) for fact in call.row_facts}
    if watch.top:
        lists = (*places, watch.top)
        facts["top_keys"] = call.query.new_empty(lists, dtype=torch.int64)
        facts["top_weights"] = call.query.new_empty(lists, dtype=torch.float32)
    return facts


class Totals:
    """What is found from lse, (*batch, heads, rows): weights, and facts that add up over rows."""

    def __init__(self, call: Call, lse: Tensor) -> None:
        self.call, self.lse = replace(call, watch=Watch()), lse.float().contiguous()
        self.heads, self.plan = prod(call.query.shape[:-2]), plan_back(call)

    def received(self) -> tuple[Tensor, Tensor]:
        """What each key receives, and its share of the rows that see it."""
        keys = self.call.shape.keys
        both = self._empty(keys), self._empty(keys)
        parts = -(-keys // self.plan.keys)
        self._go(totals.receive, self.heads * parts, both)
        return both

    def masses(self, groups: Ints) -> Tensor:
        """The weight of each group of keys in each row."""
        queries, count = self.call.shape.queries, int(groups.max(initial=-1)) + 1
        found = self._empty(queries, count)
        blocks = -(-queries // self.plan.rows) * -(-count // totals.GROUPS.value)
        programs = self.heads * blocks
        self._go(totals.collect, programs, (found,), lambda made: (made.tables.add(groups), count))
        return found

    def picture(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Mean and largest weight of each cell."""
        queries, keys = self.call.shape.queries, self.call.shape.keys
        if 0 in (queries, keys):
            return self._empty(rows, columns).zero_(), self._empty(rows, columns).zero_()
        # A picture with more cells than there are places repeats them.
        height, width = min(rows, queries), min(columns, keys)
        both = self._empty(height, width), self._empty(height, width)
        edges = np.arange(height + 1) * queries // height
        tall = int(triton.next_power_of_2(int(np.diff(edges).max())))
        plan = replace(self.plan, rows=min(self.plan.rows, max(16, tall)))
        programs = self.heads * height * -(-width // totals.CELLS.value)
        self._go(totals.pool, programs, both, lambda _: (height, width), Cut(plan, edges))
        if (height, width) == (rows, columns):
            return both
        places = (np.arange(n) * m // n for n, m in ((rows, height), (columns, width)))
        down, across = (torch.from_numpy(place).to(both[0].device) for place in places)
        return both[0][..., down[:, None], across], both[1][..., down[:, None], across]

    def block(self, rows: Ints, keys: Ints, raw: bool = False) -> Tensor:
        """Weights of chosen rows, whose lse this has, and keys; where raw, their logits."""
        found = self._empty(rows.size, keys.size)
        parts = -(-rows.size // self.plan.rows) * -(-keys.size // self.plan.keys)

        def index(launch: Launch) -> tuple[int, ...]:
            add = launch.tables.add
            return add(rows), rows.size, add(keys), keys.size

        self._go(totals.block_of, self.heads * parts, (found,), index, raw=raw)
        return found

    def sorted(self, top: int) -> tuple[Tensor, Tensor]:
        """The largest weights of each row, by sorting its logits: equal ones by key."""
        queries, keys = self.call.shape.queries, self.call.shape.keys
        lists = self._empty(queries, top)
        names, found = torch.full_like(lists, -1, dtype=torch.int64), lists.zero_()
        height = max(1, SORTED_SCORES // max(1, self.heads * keys))
        for first in range(0, queries, height):
            rows = np.arange(first, min(first + height, queries))
            own, place = slice(first, first + rows.size), min(top, keys)
            logits = self.block(rows, np.arange(keys), raw=True)
            rank = torch.where(logits.isnan(), torch.inf, logits)
            rank, order = rank.sort(dim=-1, descending=True, stable=True)
            rank, order = rank[..., :place], order[..., :place]
            best = torch.gather(logits, -1, order)
            weight = torch.exp(best - self.lse[..., own, None])
            there = rank > -torch.inf
            names[..., own, :place] = torch.where(there, order, -1)
            found[..., own, :place] = torch.where(there, weight, 0.0)
        return names, found

    def _go(
        self,
        kernel: Any,
        programs: int,
        found: tuple[Tensor, ...],
        index: Callable[[Launch], tuple[int, ...]] | None = None,
        cut: Cut | None = None,
        **more: Any,
    ) -> None:
        """Runs one kernel; `index` adds to the tables what it needs besides the call."""
        if not programs:
            return
        plan, edges = cut or (self.plan, None)
        arrays = self.call.query, self.call.key
        made = ready(self.call, plan, arrays, index, edges, **more)
        at = tuple(x.data_ptr() for x in found)
        lse, own = self.lse.data_ptr(), made.own or (0,)
        kernel[(programs,)](*made.matrices, lse, at, own, made.given, made.form, **plan.told)

    def _empty(self, *sizes: int) -> Tensor:
        places = self.call.query.shape[:-2]
        empty: Tensor = self.call.query.new_empty((*places, *sizes), dtype=torch.float32)
        return empty

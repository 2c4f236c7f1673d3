"""A checked call as what the kernels take: addresses, strides, tables and sizes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log2, prod
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from chumoku.kernels import Call
from chumoku.kernels.triton import masks
from chumoku.kernels.triton.ranges import ranges
from chumoku.mask import (
    All,
    Any_,
    Asked,
    Band,
    Boolean,
    Causal,
    Chunks,
    Documents,
    Equal,
    Joined,
    Lengths,
    Lowered,
    Mask,
    Prefix,
    Runs,
    Window,
    position_offset,
)

Ints = NDArray[np.int64]

TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}

# A part of the tables begins at a multiple of so many numbers: what is known to be divisible needs
# no code of its own.
ALIGNED = 16

# What so many calls need stays ready, those that came last; masks of longer arrays, in bytes, are
# read anew.
KEPT_READY = 64
COMPARED = 2**18

# Masks of more parts are read as bits: the compiler takes minutes for some thirty.
MOST_PARTS = 8

# Rows of all heads that share a key head are computed together, where they are so few.
PACKED_ROWS = 64

# Then keys are split into parts of so many, joined in their order, where there are enough of them.
SPLIT_KEYS = 1024


@dataclass(frozen=True)
class Form:
    """What decides which code is made. All but `program`, `dtype` and `stack` are constexpr."""

    dtype: Any
    flat: Any  # matrices whose rows begin at multiples of 16 bytes, columns side by side
    bits: Any  # scores are in bits: they are bent by nothing but the scale
    precision: Any
    stack: Any
    program: tuple[int, ...]
    masked: Any
    softcap: Any
    bias: Any
    sinks: Any
    dropout: Any
    entropy: Any
    saturation: Any
    distance: Any
    top: Any
    slots: Any
    packed: Any
    rows: Any
    keys: Any
    width: Any
    width_block: Any
    value_width: Any
    value_block: Any
    split: Any  # keys of each, 0 where they are not split
    raw: Any
    lse_gradient: Any
    rows_shared: Any
    keys_shared: Any

    def but(self, **fields: Any) -> Form:
        """With some fields changed."""
        return replace(self, **{name: tl.constexpr(value) for name, value in fields.items()})


class Matrix(NamedTuple):
    """An array (..., heads, rows, columns), as kernels read it."""

    address: int
    starts: int  # where the table says where each batch entry begins
    head: int
    row: int
    column: int


class Given(NamedTuple):
    """What all kernels need of a call."""

    table: int
    scale: float  # in the units of scores
    factor: float  # as it was given
    softcap: float
    bias: Matrix
    sinks: int
    sinks_step: int
    dropout: int
    dropout_factor: float
    positions: int
    leaves: int
    ranges: int
    ranges_of: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    splits: int


class Tables:
    """Whole numbers that kernels read, in one block of the GPU's memory."""

    def __init__(self) -> None:
        self.parts: list[Ints] = []
        self.size = 0

    def add(self, numbers: Any) -> int:
        """Where some numbers will be."""
        part = np.ascontiguousarray(numbers, np.int64).reshape(-1)
        room = -(-max(1, part.size) // ALIGNED) * ALIGNED
        at, self.size = self.size, self.size + room
        self.parts += [part, np.zeros(room - part.size, np.int64)]
        return at

    def on(self, device: Any) -> Tensor:
        """All of them there."""
        return torch.from_numpy(np.concatenate(self.parts)).to(device)


class Launch:
    """One call as it is made ready for kernels: `ready` below does it.

    `edges` are those of the blocks of rows, where they are not those of the plan.
    """

    def __init__(self, call: Call, plan: Plan, edges: Ints | None = None) -> None:
        self.call, self.plan, self.tables = call, plan, Tables()
        self.kept: list[Any] = []  # what must outlive the launch
        self.program: list[int] = []
        self.leaves: list[list[int]] = []
        self.depth = self.deepest = 0
        self.flat = True
        shape = call.shape
        lowered = None if call.mask is None else call.mask.lower(shape)
        if call.mask is not None and lowered is not None:
            self._add(Asked(call.mask) if _parts(call.mask) > MOST_PARTS else lowered)
        if edges is None:
            edges = np.append(np.arange(0, shape.queries, plan.rows), shape.queries)
        found = ranges(lowered, shape, edges)
        offset = np.broadcast_to(position_offset(call.mask, shape), shape.batch)
        dropout = call.dropout
        seed, rate = (0, 0.0) if dropout is None else (dropout.seed, dropout.rate)
        last = round(rate * 2**32) - 1  # the last random number that drops a weight
        bits = call.bias is None and call.softcap is None and abs(call.scale) < 2.0**126
        self.given = Given(
            table=0,
            scale=_float32(call.scale * log2(np.e) if bits else call.scale),
            factor=_float32(call.scale),
            softcap=_float32(call.softcap or 1),
            bias=Matrix(0, 0, 0, 0, 0) if call.bias is None else self.matrix(call.bias, False),
            sinks=0 if call.sinks is None else call.sinks.data_ptr(),
            sinks_step=0 if call.sinks is None else call.sinks.stride(0),
            dropout=self.tables.add([last, seed & 0xFFFFFFFF, seed >> 32]),
            dropout_factor=1 / (1 - rate),
            positions=self.tables.add(offset),
            leaves=self.tables.add(np.array(self.leaves, np.int64)),
            ranges=self.tables.add(found),
            ranges_of=len(found),
            heads=shape.heads,
            kv_heads=call.key.shape[-3],
            queries=shape.queries,
            keys=shape.keys,
            splits=plan.splits,
        )
        self.bits, self.drops = bits, last >= 0

    def _add(self, lowered: Lowered) -> None:
        """A lowered mask as a program: leaves, each with eight numbers, and joins behind them."""
        add, shape = self.tables.add, self.call.shape
        match lowered:
            case Band():
                fields = np.stack(np.broadcast_arrays(*vars(lowered).values()), axis=-1)
                self._leaf(masks.BAND, add(fields), len(fields))
            case Runs(start, stop):
                entries, _, runs = start.shape
                self._leaf(masks.RUNS, add(start), add(stop), entries, runs, shape.queries)
            case Equal(query_ids, key_ids):
                sizes = len(query_ids), query_ids.shape[1], key_ids.shape[1]
                self._leaf(masks.EQUAL, add(query_ids), add(key_ids), *sizes)
            case Boolean(cells):
                self._cells(masks.BYTES, cells)
            case Asked(mask):
                words = mask.bits(shape, np.arange(shape.queries))
                self._cells(masks.WORDS, words.view(np.int64))
            case Joined(parts, every):
                for number, part in enumerate(parts):
                    self._add(part)
                    if number:
                        self.program.append((masks.AND if every else masks.OR).value)
                        self.depth -= 1

    def _leaf(self, kind: Any, *numbers: int) -> None:
        self.program.append(kind.value)
        self.leaves.append([*numbers, *(0,) * (masks.LEAF.value - len(numbers))])
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)

    def _cells(self, kind: Any, cells: Any) -> None:
        """A leaf of bytes or of words, (*batch, heads, queries, keys), axes of stride 0 too."""
        if isinstance(cells, np.ndarray):
            cells = _spread(cells, self.call.query.device)
        self.kept.append(cells)
        *batch, head, row, column = cells.stride()
        starts = self.tables.add(_offsets(cells.shape[:-3], batch) * cells.element_size())
        self._leaf(kind, cells.data_ptr(), starts, head, row, column)

    def matrix(self, array: Tensor, flat: bool = True) -> Matrix:
        """(..., heads, rows, columns) as kernels read it; the bias need not be flat."""
        *batch, head, row, column = array.stride()
        starts = _offsets(array.shape[:-3], batch)
        if flat:
            unit = 16 // array.element_size()
            steps = [s for s, n in zip((*batch, head, row), array.shape, strict=False) if n > 1]
            at = array.data_ptr() % 16 == 0 and all(step % unit == 0 for step in steps)
            self.flat &= at and (column == 1 or array.shape[-1] == 1)
        return Matrix(array.data_ptr(), self.tables.add(starts), head, row, column)

    def programs(self) -> int:
        """How many blocks of rows there are."""
        shape, kv_heads = self.call.shape, self.call.key.shape[-3]
        if not shape.queries:
            return 0
        if self.plan.packed:
            return prod(shape.batch) * int(kv_heads)
        return prod(shape.batch) * shape.heads * -(-shape.queries // self.plan.rows)

    def form(self) -> Form:
        """What decides the code, when all matrices are known."""
        call, watch, plan = self.call, self.call.watch, self.plan
        width, value_width = call.query.shape[-1], call.value.shape[-1]
        return Form(
            dtype=TYPES[call.query.dtype],
            stack=tl.int32 if self.deepest < 31 else tl.int64,
            program=tuple(self.program),
            **{
                name: tl.constexpr(value)
                for name, value in {
                    "flat": self.flat,
                    "bits": self.bits,
                    "precision": _precision(call),
                    "masked": bool(self.program),
                    "softcap": call.softcap is not None,
                    "bias": call.bias is not None,
                    "sinks": call.sinks is not None,
                    "dropout": self.drops,
                    "entropy": watch.entropy,
                    "saturation": watch.saturation,
                    "distance": watch.distance,
                    "top": watch.top,
                    "slots": max(2, triton.next_power_of_2(max(1, watch.top))),
                    "packed": plan.packed,
                    "rows": plan.rows,
                    "keys": plan.keys,
                    "width": width,
                    "width_block": _block(width),
                    "value_width": value_width,
                    "value_block": _block(value_width),
                    "split": SPLIT_KEYS if plan.splits > 1 else 0,
                    "raw": False,
                    "lse_gradient": False,
                    "rows_shared": False,
                    "keys_shared": False,
                }.items()
            },
        )


class Ready(NamedTuple):
    """What kernels take of a call: its numbers, its matrices, and what `index` added."""

    given: Given
    form: Form
    matrices: tuple[Matrix, ...]
    own: tuple[int, ...]
    programs: int  # blocks of rows
    held: tuple[Any, ...]  # memory of the GPU that is named in them


_made: OrderedDict[tuple[Any, ...], Ready] = OrderedDict()
_making = Lock()


def ready(
    call: Call,
    plan: Plan,
    arrays: Sequence[Tensor],
    index: Callable[[Launch], tuple[int, ...]] | None = None,
    edges: Ints | None = None,
    **more: Any,
) -> Ready:
    """A call and its arrays, made ready; `index` adds numbers of its own to the tables.

    Where an earlier call differed in nothing but where its arrays lie, what it needed is taken.
    """
    key = None
    if index is None and edges is None and call.dropout is None:
        key = _key(call, plan, arrays, more)
    with _making:
        made = None if key is None else _made.pop(key, None)
    if made is None:
        launch = Launch(call, plan, edges)
        matrices = tuple(launch.matrix(array) for array in arrays)
        own = () if index is None else index(launch)
        table = launch.tables.on(call.query.device)
        given = launch.given._replace(table=table.data_ptr())
        held = (table, *launch.kept)
        form = launch.form().but(**more)
        made = Ready(given, form, matrices, own, launch.programs(), held)
    if key is not None:
        with _making:
            _made[key] = made
            if len(_made) > KEPT_READY:
                _made.popitem(last=False)
    given = made.given
    if call.bias is not None:
        given = given._replace(bias=given.bias._replace(address=call.bias.data_ptr()))
    if call.sinks is not None:
        given = given._replace(sinks=call.sinks.data_ptr())
    pairs = zip(made.matrices, arrays, strict=True)
    matrices = tuple(matrix._replace(address=x.data_ptr()) for matrix, x in pairs)
    return made._replace(given=given, matrices=matrices)


def _key(
    call: Call, plan: Plan, arrays: Sequence[Tensor], more: dict[str, Any]
) -> tuple[Any, ...] | None:
    """All that decides what a call needs, but where its arrays lie; None when that is not known."""
    try:
        mask = _value(call.mask)
    except _NoValueError:
        return None
    device, watch, bias = call.query.device, call.watch, call.bias
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return (
        (device.index, stream, call.query.dtype, _precision(call)),
        (call.query.shape, call.key.shape, call.value.shape, plan, *more.items()),
        tuple((x.shape, x.stride(), x.data_ptr() % 16 == 0) for x in arrays),
        (call.scale, call.softcap, None if bias is None else bias.stride()),
        None if call.sinks is None else call.sinks.stride(),
        (watch.top, watch.entropy, watch.saturation, watch.distance),
        mask,
    )


class _NoValueError(Exception):
    """A mask holds an array of the caller's, a function, or more than is worth comparing."""


def _value(part: Any) -> Any:
    """A mask, or a field of one, as a value that can be compared."""
    if isinstance(part, Mask):
        if type(part) not in (Causal, Window, Lengths, Documents, Prefix, Chunks, All, Any_):
            raise _NoValueError
        return type(part), *map(_value, vars(part).values())
    if isinstance(part, tuple):
        return tuple(map(_value, part))
    if isinstance(part, np.ndarray):
        if part.nbytes > COMPARED:
            raise _NoValueError
        return part.shape, part.tobytes()
    return part


def _precision(call: Call) -> str:
    """How products of float32 are computed: as PyTorch's own are, by its newer setting or older."""
    if call.query.dtype != torch.float32 or not call.query.is_cuda:
        return "ieee"
    settings: Any = torch.backends.cuda.matmul
    if hasattr(settings, "fp32_precision"):
        return "tf32" if settings.fp32_precision == "tf32" else "ieee"
    return "tf32" if settings.allow_tf32 else "ieee"


def _parts(mask: Mask) -> int:
    """How many masks are joined in one."""
    return sum(map(_parts, mask.parts)) if isinstance(mask, (All, Any_)) else 1


@dataclass(frozen=True)
class Plan:
    """How the work is cut: rows and keys of a tile, and what the compiler is told."""

    rows: int
    keys: int
    packed: bool = False
    splits: int = 1
    num_warps: int = 4
    num_stages: int = 2

    @property
    def told(self) -> dict[str, int]:
        """What the compiler is told."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


# Tiles that keep sums in registers, by the width up to which they do: as the compiler tells of
# spilled registers on a Hopper GPU (benchmarks/notes.md). Products in float32 need more of them.
FORWARD = {
    64: Plan(128, 64, num_warps=8, num_stages=3),
    128: Plan(128, 64, num_warps=8, num_stages=3),
    256: Plan(128, 32, num_warps=8),
}
FORWARD_FLOAT32 = {
    64: Plan(64, 32, num_warps=8),
    128: Plan(32, 32, num_warps=8),
    256: Plan(16, 32, num_warps=8),
}
BACKWARD = {
    64: Plan(128, 64, num_warps=8),
    128: Plan(64, 64, num_warps=8),
    256: Plan(64, 32, num_warps=8),
}
BACKWARD_FLOAT32 = {
    64: Plan(32, 32, num_warps=8),
    128: Plan(32, 32, num_warps=8),
    256: Plan(16, 16, num_warps=8),
}


def _plan(plans: dict[int, Plan], call: Call) -> Plan:
    """The one for the widths of a call."""
    width = max(call.query.shape[-1], call.value.shape[-1])
    plan = next(plan for most, plan in plans.items() if width <= most)
    if call.mask is not None and (call.mask.asks() or _parts(call.mask) > MOST_PARTS):
        # Bits that are fetched ahead need more memory than there is beside keys and values.
        plan = replace(plan, rows=min(64, plan.rows), keys=32, num_stages=1)
    return plan


def plan_of(call: Call) -> Plan:
    """How the forward pass is cut; by the sizes of one batch entry alone, whatever the batch is."""
    plan = _plan(FORWARD_FLOAT32 if call.query.element_size() == 4 else FORWARD, call)
    if call.dropout is not None:  # its random numbers need registers too
        plan = replace(plan, rows=max(16, plan.rows // 2), keys=32)
    rows, keys = call.group * call.shape.queries, call.shape.keys
    if rows > min(PACKED_ROWS, plan.rows):
        return plan
    splits = -(-keys // SPLIT_KEYS) if keys >= 2 * SPLIT_KEYS else 1
    tall = max(16, int(triton.next_power_of_2(max(1, rows))))
    few = plan.num_warps if tall * plan.keys > 2048 else 4
    stages = 3 if plan.num_stages > 1 else 1
    return replace(plan, rows=tall, packed=True, splits=splits, num_warps=few, num_stages=stages)


def plan_back(call: Call) -> Plan:
    """How everything else is cut: gradients, blocks of weights, facts that add up over rows."""
    return _plan(BACKWARD_FLOAT32 if call.query.element_size() == 4 else BACKWARD, call)


def _block(width: int) -> int:
    """What a matrix product can take."""
    return max(16, int(triton.next_power_of_2(max(1, width))))


def _float32(number: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(number))


def _offsets(shape: Any, steps: Any) -> Ints:
    """Where the matrices of each batch entry begin."""
    at = np.zeros(tuple(shape), np.int64)
    for axis, (size, step) in enumerate(zip(shape, steps, strict=True)):
        at += (np.arange(size) * step).reshape(-1, *(1,) * (len(shape) - axis - 1))
    return at.reshape(-1)


def _spread(cells: NDArray[Any], device: Any) -> Tensor:
    """A host's array on a device, each axis that is broadcast held once."""
    alike = tuple(slice(0, 1) if step == 0 else slice(None) for step in cells.strides)
    own = torch.from_numpy(np.array(cells[alike])).to(device)
    return own.expand(cells.shape)


def rows_like(array: Tensor, width: int) -> Tensor:
    """Memory for rows of this width, with the heads inside the rows where the array's are there.

    Then whoever joins the heads again need not copy.
    """
    *batch, heads, rows, _ = array.shape
    if 0 < array.stride(-3) < array.stride(-2):
        return array.new_empty((*batch, rows, heads, width)).transpose(-3, -2)
    return array.new_empty((*batch, heads, rows, width))

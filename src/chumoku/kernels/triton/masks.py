"""Masks on the device: what a program of leaves and joins lets each score see."""

import triton
import triton.language as tl

BAND: tl.constexpr = tl.constexpr(0)
RUNS: tl.constexpr = tl.constexpr(1)
EQUAL: tl.constexpr = tl.constexpr(2)
BYTES: tl.constexpr = tl.constexpr(3)
WORDS: tl.constexpr = tl.constexpr(4)
AND: tl.constexpr = tl.constexpr(5)
OR: tl.constexpr = tl.constexpr(6)
LEAF: tl.constexpr = tl.constexpr(8)  # numbers of a leaf


@triton.jit
def table(call):
    """The whole numbers of a call: offsets, limits, ids."""
    return call.table.to(tl.int64).to(tl.pointer_type(tl.int64))


@triton.jit
def visible(call, b, h, i, j, inside, FORM: tl.constexpr):
    """Which keys j (1, keys) the queries i (rows, 1) of heads h may look at.

    The program is in postfix: a leaf puts what it allows on a stack of bits, a join takes two.
    """
    stack = inside.to(FORM.stack) * 0
    at = call.leaves
    for n in tl.static_range(len(FORM.program)):
        if FORM.program[n] == AND:
            stack = (stack >> 1) & (stack | -2)
        elif FORM.program[n] == OR:
            stack = (stack >> 1) | (stack & 1)
        else:
            seen = leaf(call, at, b, h, i, j, inside, FORM.program[n])
            stack = (stack << 1) | seen.to(FORM.stack)
            at += LEAF
    return inside & ((stack & 1) != 0)


@triton.jit
def leaf(call, at, b, h, i, j, inside, KIND: tl.constexpr):
    """What one mask allows; its numbers begin at `at`."""
    numbers = table(call)
    if KIND == BAND:
        limits = numbers + tl.load(numbers + at) + b % tl.load(numbers + at + 1) * 6
        low = i + tl.load(limits + 4).to(tl.int32)
        high = i + tl.load(limits + 5).to(tl.int32) + 1
        row = (i >= tl.load(limits).to(tl.int32)) & (i < tl.load(limits + 1).to(tl.int32))
        start = tl.maximum(low, tl.load(limits + 2).to(tl.int32))
        stop = tl.where(row, tl.minimum(high, tl.load(limits + 3).to(tl.int32)), 0)
        return (j >= start) & (j < stop)
    elif KIND == RUNS:
        runs = tl.load(numbers + at + 3)
        place = (b % tl.load(numbers + at + 2) * tl.load(numbers + at + 4) + i) * runs
        starts = numbers + tl.load(numbers + at) + place
        stops = numbers + tl.load(numbers + at + 1) + place
        row = i < call.queries
        seen = inside & (j < 0)
        for run in range(0, runs):
            start = tl.load(starts + run, mask=row, other=0)
            stop = tl.load(stops + run, mask=row, other=0)
            seen = seen | ((j >= start) & (j < stop))
        return seen
    elif KIND == EQUAL:
        entry = b % tl.load(numbers + at + 2)
        length = tl.load(numbers + at + 4)
        queries = numbers + tl.load(numbers + at) + entry * tl.load(numbers + at + 3)
        keys = numbers + tl.load(numbers + at + 1) + entry * length
        query_id = tl.load(queries + i, mask=i < call.queries, other=0)
        return query_id == tl.load(keys + j, mask=j < length, other=0)
    else:
        cells = tl.load(numbers + at) + tl.load(numbers + tl.load(numbers + at + 1) + b)
        place = h.to(tl.int64) * tl.load(numbers + at + 2) + i * tl.load(numbers + at + 3)
        step = tl.load(numbers + at + 4)
        if KIND == BYTES:
            found = cells.to(tl.pointer_type(tl.int8)) + (place + j * step)
            return tl.load(found, mask=inside, other=0) != 0
        else:
            found = cells.to(tl.pointer_type(tl.int64)) + (place + (j >> 6) * step)
            return (tl.load(found, mask=inside, other=0) >> (j & 63).to(tl.int64)) & 1 != 0

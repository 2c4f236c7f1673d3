"""What needs the final sums of the rows: blocks of weights, and facts that add up over rows."""

import triton
import triton.language as tl

from chumoku.kernels.triton.masks import table
from chumoku.kernels.triton.scores import (
    NONE,
    load_rows,
    logits,
    nats,
    power,
    reals,
    scored,
)

BIG: tl.constexpr = tl.constexpr(2**30)
SCANNED: tl.constexpr = tl.constexpr(128)
GROUPS: tl.constexpr = tl.constexpr(16)
CELLS: tl.constexpr = tl.constexpr(16)


@triton.jit
def head_of(call, entry):
    """Batch entry, head and key head of a flat number."""
    h = entry % call.heads
    return (entry // call.heads).to(tl.int64), h, h // (call.heads // call.kv_heads)


@triton.jit
def weighed(q, k, lse, call, where, i, j, row, column, FORM: tl.constexpr):
    """Weights (rows, keys) of queries i and keys j of one head, and which of them are visible."""
    b, h, kv = where
    x, seen, slope = logits(q, k, call, b, h, i, j, row[:, None] & column[None, :], FORM, True)
    shift = scored(tl.where(lse == NONE, 0.0, lse), FORM)
    return tl.where(seen, power(x - shift[:, None], FORM), 0.0), seen


@triton.jit
def blocks_of(call, b, j0, FORM: tl.constexpr):
    """First block of rows that sees some of the keys from j0 on, and the end of such blocks."""
    blocks = tl.cdiv(call.queries, FORM.rows)
    at = table(call) + call.ranges + b % call.ranges_of * blocks * 4
    first, last = tl.zeros([SCANNED], tl.int32) + BIG, tl.zeros([SCANNED], tl.int32)
    for start in range(0, blocks, SCANNED):
        block = start + tl.arange(0, SCANNED)
        there = block < blocks
        low = tl.load(at + block * 4, mask=there, other=0)
        high = tl.load(at + block * 4 + 3, mask=there, other=0)
        hit = there & (low < j0 + FORM.keys) & (high > j0)
        first = tl.minimum(first, tl.where(hit, block, BIG))
        last = tl.maximum(last, tl.where(hit, block + 1, 0))
    return tl.min(first, 0), tl.max(last, 0)


@triton.jit
def receive(query, key, lse_of, found, index, call, FORM: tl.constexpr):
    """What each key receives of all rows of a head, and its share of those that see it."""
    blocks = tl.cdiv(call.keys, FORM.keys)
    where = head_of(call, tl.program_id(0) // blocks)
    b, h, kv = where
    j0 = tl.program_id(0) % blocks * FORM.keys
    j = j0 + tl.arange(0, FORM.keys)
    k = load_rows(call, key, b, kv, j, j < call.keys, FORM.width, FORM)
    total = tl.zeros([FORM.keys], tl.float64)
    seers = tl.zeros([FORM.keys], tl.int64)
    first, last = blocks_of(call, b, j0, FORM)
    for block in range(first, last):
        i = block * FORM.rows + tl.arange(0, FORM.rows)
        row = i < call.queries
        lse = tl.load(reals(lse_of) + (b * call.heads + h) * call.queries + i, mask=row, other=0)
        q = load_rows(call, query, b, h, i, row, FORM.width, FORM)
        p, seen = weighed(q, k, lse, call, where, i, j, row, j < call.keys, FORM)
        total += tl.sum(p, 0).to(tl.float64)
        seers += tl.sum(seen.to(tl.int32), 0)
    at = (b * call.heads + h) * call.keys + j
    share = total / tl.maximum(seers, 1).to(tl.float64)
    tl.store(reals(found[0]) + at, total.to(tl.float32), mask=j < call.keys)
    tl.store(reals(found[1]) + at, share.to(tl.float32), mask=j < call.keys)


@triton.jit
def pool(query, key, lse_of, found, cells, call, FORM: tl.constexpr):
    """Mean and largest weight of some cells of one row of a picture."""
    height, width = cells[0], cells[1]
    parts, number = tl.cdiv(width, CELLS), tl.program_id(0)
    column, band = number % parts * CELLS + tl.arange(0, CELLS), number // parts % height
    where = head_of(call, number // parts // height)
    b, h, kv = where
    top = (band.to(tl.int64) * call.queries // height).to(tl.int32)
    bottom = ((band + 1).to(tl.int64) * call.queries // height).to(tl.int32)
    edges = column.to(tl.int64) * call.keys // width
    ends = (column + 1).to(tl.int64) * call.keys // width
    limits = table(call) + call.ranges + (b % call.ranges_of * height + band) * 4
    left = tl.maximum(tl.min(edges, 0), tl.load(limits)).to(tl.int32)
    right = tl.minimum(tl.minimum(tl.max(ends, 0), call.keys), tl.load(limits + 3)).to(tl.int32)
    total, most = tl.zeros([CELLS], tl.float64), tl.zeros([CELLS], tl.float32)
    for i0 in range(top, bottom, FORM.rows):
        i = i0 + tl.arange(0, FORM.rows)
        at = (b * call.heads + h) * call.queries + i
        lse = tl.load(reals(lse_of) + at, mask=i < bottom, other=0)
        q = load_rows(call, query, b, h, i, i < bottom, FORM.width, FORM)
        for j0 in range(left, right, FORM.keys):
            j = j0 + tl.arange(0, FORM.keys)
            k = load_rows(call, key, b, kv, j, j < right, FORM.width, FORM)
            p, seen = weighed(q, k, lse, call, where, i, j, i < bottom, j < right, FORM)
            # The cell in which key j lies.
            cell = ((j.to(tl.int64) + 1) * width - 1) // call.keys
            own = cell[:, None] == column[None, :]
            sums = tl.sum(p, 0).to(tl.float64)
            total += tl.sum(tl.where(own, sums[:, None], 0.0), 0)
            most = tl.maximum(most, tl.max(tl.where(own, tl.max(p, 0)[:, None], 0.0), 0))
    mean = total / tl.maximum((bottom - top) * (ends - edges), 1).to(tl.float64)
    largest = tl.where(total == total, most, total.to(tl.float32))
    at = ((b * call.heads + h) * height + band) * width + column
    tl.store(reals(found[0]) + at, mean.to(tl.float32), mask=column < width)
    tl.store(reals(found[1]) + at, largest, mask=column < width)


@triton.jit
def collect(query, key, lse_of, found, groups, call, FORM: tl.constexpr):
    """The weight of some groups of keys in each of some rows of a head."""
    number, count = tl.program_id(0), groups[1]
    parts, blocks = tl.cdiv(count, GROUPS), tl.cdiv(call.queries, FORM.rows)
    name = number % parts * GROUPS + tl.arange(0, GROUPS)
    block = number // parts % blocks
    where = head_of(call, number // parts // blocks)
    b, h, kv = where
    i = block * FORM.rows + tl.arange(0, FORM.rows)
    row = i < call.queries
    at = (b * call.heads + h) * call.queries + i
    lse = tl.load(reals(lse_of) + at, mask=row, other=0)
    q = load_rows(call, query, b, h, i, row, FORM.width, FORM)
    mass = tl.zeros([FORM.rows, GROUPS], tl.float32)
    limits = table(call) + call.ranges + (b % call.ranges_of * blocks + block) * 4
    first, last = tl.load(limits).to(tl.int32), tl.load(limits + 3).to(tl.int32)
    for j0 in range(first // FORM.keys * FORM.keys, last, FORM.keys):
        j = j0 + tl.arange(0, FORM.keys)
        k = load_rows(call, key, b, kv, j, j < call.keys, FORM.width, FORM)
        p, seen = weighed(q, k, lse, call, where, i, j, row, j < call.keys, FORM)
        group = tl.load(table(call) + groups[0] + j, mask=j < call.keys, other=-1)
        one = (group[:, None] == name[None, :]).to(tl.float32)
        mass = tl.dot(p, one, mass, input_precision="ieee")
    place = (at * count)[:, None] + name[None, :]
    tl.store(reals(found[0]) + place, mass, mask=row[:, None] & (name < count)[None, :])


@triton.jit
def block_of(query, key, lse_of, found, index, call, FORM: tl.constexpr):
    """Weights of chosen rows and keys; where raw, their logits, -inf where they are hidden."""
    rows, keys = index[1], index[3]
    parts, blocks = tl.cdiv(keys, FORM.keys), tl.cdiv(rows, FORM.rows)
    number = tl.program_id(0)
    c = number % parts * FORM.keys + tl.arange(0, FORM.keys)
    r = number // parts % blocks * FORM.rows + tl.arange(0, FORM.rows)
    where = head_of(call, number // parts // blocks)
    b, h, kv = where
    row, column = r < rows, c < keys
    i = tl.load(table(call) + index[0] + r, mask=row, other=0).to(tl.int32)
    j = tl.load(table(call) + index[2] + c, mask=column, other=0).to(tl.int32)
    at = (b * call.heads + h) * rows + r
    there = row[:, None] & column[None, :]
    q = load_rows(call, query, b, h, i, row, FORM.width, FORM)
    k = load_rows(call, key, b, kv, j, column, FORM.width, FORM)
    if FORM.raw:
        x, seen, slope = logits(q, k, call, b, h, i, j, there, FORM, True)
        block = nats(x, FORM)
    else:
        lse = tl.load(reals(lse_of) + at, mask=row, other=0)
        block, seen = weighed(q, k, lse, call, where, i, j, row, column, FORM)
    tl.store(reals(found[0]) + (at * keys)[:, None] + c[None, :], block, mask=there)

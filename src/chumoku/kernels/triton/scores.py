"""Scores of one tile, as every kernel here takes them, and how matrices are read and written."""

import triton
import triton.language as tl

from chumoku.kernels.triton.masks import table, visible

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
NONE: tl.constexpr = tl.constexpr(float("-inf"))


@triton.jit
def power(x, FORM: tl.constexpr):
    """The power of e to x, in the units of scores: bits where nothing but the scale bends them."""
    return tl.exp2(x if FORM.bits else x * LOG2E)


@triton.jit
def nats(x, FORM: tl.constexpr):
    """Scores in nats."""
    return x * LN2 if FORM.bits else x


@triton.jit
def scored(x, FORM: tl.constexpr):
    """Nats in the units of scores."""
    return x * LOG2E if FORM.bits else x


@triton.jit
def tanh(x):
    """By exp alone; by its series where that would cancel."""
    e = tl.exp2(tl.abs(x) * (-2 * LOG2E))
    y = x * x
    small = x * (1 - y * (1 / 3 - y * (2 / 15 - y * (17 / 315))))
    large = (1 - e) / (1 + e)
    return tl.where(tl.abs(x) < 0.1, small, tl.where(x < 0, -large, large))


@triton.jit
def reals(address):
    """Where float32 numbers lie."""
    return address.to(tl.int64).to(tl.pointer_type(tl.float32))


@triton.jit
def rows_of(call, number, FORM: tl.constexpr):
    """Batch entry, head, key head, queries of one program, and which of them exist.

    A program has some queries of one head; or all of the heads that share a key head, where they
    are few.
    """
    r = tl.arange(0, FORM.rows)
    if FORM.packed:
        group = call.heads // call.kv_heads
        b = number // call.kv_heads
        kv = number % call.kv_heads
        inside = r < group * call.queries
        r = tl.where(inside, r, 0)
        return b.to(tl.int64), kv * group + r // call.queries, kv, r % call.queries, inside
    else:
        blocks = tl.cdiv(call.queries, FORM.rows)
        # With causal masks the last rows have most to do: they begin first.
        i = (blocks - 1 - number % blocks) * FORM.rows + r
        head = number // blocks % call.heads
        b = (number // blocks // call.heads).to(tl.int64)
        return b, head, head // (call.heads // call.kv_heads), i, i < call.queries


@triton.jit
def cells(call, array, b, h, i, BLOCK: tl.constexpr, FORM: tl.constexpr):
    """Where (rows, BLOCK) numbers of a matrix (..., heads, rows, columns) lie."""
    start = tl.load(table(call) + array.starts + b)
    base = array.address.to(tl.int64).to(tl.pointer_type(FORM.dtype))
    h, i, c = h.to(tl.int64), i.to(tl.int64), tl.arange(0, BLOCK)
    if FORM.flat:
        # Rows begin at multiples of 16 bytes, and their columns lie side by side.
        unit: tl.constexpr = 128 // FORM.dtype.primitive_bitwidth
        base = tl.multiple_of(base, 16) + tl.multiple_of(start, unit)
        row = tl.multiple_of(h * array.head + i * array.row, unit)
        return base + row[:, None] + c[None, :]
    else:
        column = c.to(tl.int64) * array.column
        return base + start + (h * array.head + i * array.row)[:, None] + column[None, :]


@triton.jit
def load_rows(call, array, b, h, i, inside, WIDTH: tl.constexpr, FORM: tl.constexpr):
    """(rows, columns rounded up) of a matrix, zeros beyond what it has."""
    BLOCK: tl.constexpr = FORM.width_block if WIDTH == FORM.width else FORM.value_block
    at = cells(call, array, b, h, i, BLOCK, FORM)
    mask = inside[:, None]
    if WIDTH < BLOCK:
        mask = mask & (tl.arange(0, BLOCK) < WIDTH)[None, :]
    return tl.load(at, mask=mask, other=0)


@triton.jit
def store_rows(call, array, x, b, h, i, inside, WIDTH: tl.constexpr, FORM: tl.constexpr):
    """Writes what `load_rows` reads."""
    BLOCK: tl.constexpr = FORM.width_block if WIDTH == FORM.width else FORM.value_block
    at = cells(call, array, b, h, i, BLOCK, FORM)
    mask = inside[:, None] & (tl.arange(0, BLOCK) < WIDTH)[None, :]
    tl.store(at, x.to(FORM.dtype), mask=mask)


@triton.jit
def logits(q, k, call, b, h, i, j, inside, FORM: tl.constexpr, MASKED: tl.constexpr):
    """Scores (rows, keys), -inf where hidden, which are visible, and the slope of the cap.

    `inside` is which of them exist; where all do and no mask applies, MASKED is false.
    """
    # By fma, so that what is taken off later is not fused with it: a score has the same bits in
    # every tile, and the largest less itself is 0.
    x = tl.fma(tl.dot(q, tl.trans(k), input_precision=FORM.precision), call.scale, 0.0)
    slope = x
    seen = inside
    if FORM.softcap:
        bent = tanh(x / call.softcap)
        x = tl.fma(bent, call.softcap, 0.0)
        slope = 1 - bent * bent
    if FORM.bias:
        at = call.bias.address.to(tl.int64).to(tl.pointer_type(FORM.dtype))
        at += tl.load(table(call) + call.bias.starts + b)
        place = (h.to(tl.int64) * call.bias.head + i.to(tl.int64) * call.bias.row)[:, None]
        place += (j.to(tl.int64) * call.bias.column)[None, :]
        y = tl.load(at + place, mask=inside, other=0).to(tl.float32)
        x += y
        seen = seen & (y != NONE)
    if MASKED:
        if FORM.masked:
            own = (h + tl.zeros_like(i))[:, None]
            seen = seen & visible(call, b, own, i[:, None], j[None, :], inside, FORM)
        x = tl.where(seen, x, NONE)
    elif FORM.bias:
        x = tl.where(seen, x, NONE)
    return x, seen, slope


@triton.jit
def mixed(found, p, v, seen, FORM: tl.constexpr, CAREFUL: tl.constexpr):
    """What is found, and p v; where careful, what a row does not see is not felt, be it NaN."""
    if CAREFUL:
        tame = (v - v) == 0
        found = tl.dot(
            p.to(FORM.dtype),
            tl.where(tame, v, 0.0).to(FORM.dtype),
            found,
            input_precision=FORM.precision,
        )
        wild = tl.where(tame, 0.0, v.to(tl.float32))
        n = tl.arange(0, v.shape[0])
        for key in range(0, v.shape[0]):
            here = n == key
            row = tl.sum(tl.where(here[:, None], wild, 0.0), 0)
            if tl.max((row != 0).to(tl.int32), 0) > 0:
                weight = tl.sum(tl.where(here[None, :], p, 0.0), 1)
                sees = tl.max((here[None, :] & seen).to(tl.int32), 1) > 0
                felt = sees[:, None] & (row != 0)[None, :]
                found += tl.where(felt, weight[:, None] * row[None, :], 0.0)
    else:
        found = tl.dot(p.to(FORM.dtype), v, found, input_precision=FORM.precision)
    return found


@triton.jit
def has_nan(found, inside):
    """Whether something in these rows is NaN."""
    felt = tl.max((found != found).to(tl.int32), 1)
    return tl.max(tl.where(inside, felt, 0), 0) > 0


@triton.jit
def kept(call, b, h, i, j, FORM: tl.constexpr):
    """Which weights dropout leaves: Philox4x32-10 at (key // 4, query, head, batch entry)."""
    zero = tl.zeros([FORM.rows, FORM.keys], tl.uint32)
    c0 = (j >> 2).to(tl.uint32)[None, :] + zero
    c1 = i.to(tl.uint32)[:, None] + zero
    c2 = (h + tl.zeros_like(i)).to(tl.uint32)[:, None] + zero
    c3 = b.to(tl.uint32) + zero
    drawn = table(call) + call.dropout
    last = tl.load(drawn).to(tl.uint32)
    k0 = tl.load(drawn + 1).to(tl.uint32)
    k1 = tl.load(drawn + 2).to(tl.uint32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, zero + 0xD2511F53)
        high1 = tl.umulhi(c2, zero + 0xCD9E8D57)
        low0 = c0 * (zero + 0xD2511F53)
        low1 = c2 * (zero + 0xCD9E8D57)
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    lane = (j & 3)[None, :]
    word = tl.where(lane == 0, c0, tl.where(lane == 1, c1, tl.where(lane == 2, c2, c3)))
    return word > last

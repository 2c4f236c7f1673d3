"""Gradients: weights are taken again from the scores and lse, tile by tile."""

import triton
import triton.language as tl

from chumoku.kernels.triton.forward import limits_of
from chumoku.kernels.triton.masks import table
from chumoku.kernels.triton.scores import (
    NONE,
    has_nan,
    kept,
    load_rows,
    logits,
    mixed,
    nats,
    power,
    reals,
    rows_of,
    scored,
    store_rows,
)
from chumoku.kernels.triton.totals import blocks_of


@triton.jit
def pull(output, gradient, facts, call, FORM: tl.constexpr):
    """What pulls at all scores of a row alike: lse's gradient less output times gradient."""
    row = rows_of(call, tl.program_id(0), FORM)
    b, h, _, i, inside = row
    o = load_rows(call, output, b, h, i, inside, FORM.value_width, FORM).to(tl.float32)
    g = load_rows(call, gradient, b, h, i, inside, FORM.value_width, FORM).to(tl.float32)
    at = (b * call.heads + h) * call.queries + i
    found = -tl.sum(o * g, 1)
    if FORM.lse_gradient:
        found += tl.load(reals(facts.lse_gradient) + at, mask=inside, other=0)
    if FORM.entropy:
        twist = tl.load(reals(facts.twist) + at, mask=inside, other=0)
        entropy = tl.load(reals(facts.entropy) + at, mask=inside, other=0)
        if FORM.sinks:
            entropy += tl.load(reals(facts.sink_weight) + at, mask=inside, other=0)
        found -= twist * entropy
    tl.store(reals(facts.pull) + at, found, mask=inside)


@triton.jit
def told(facts, at, inside, FORM: tl.constexpr):
    """The lse in the units of scores, what pulls at a row, and the entropy's gradient."""
    lse = tl.load(reals(facts.lse) + at, mask=inside, other=0)
    lse = scored(tl.where(lse == NONE, 0.0, lse), FORM)
    pulls = tl.load(reals(facts.pull) + at, mask=inside, other=0)
    twist = pulls
    if FORM.entropy:
        twist = tl.load(reals(facts.twist) + at, mask=inside, other=0)
    return lse, pulls, twist


@triton.jit
def felt(q, k, v, g, known, call, place, FORM: tl.constexpr, MASKED: tl.constexpr):
    """Weights after dropout, gradients of logits and of scores before the cap, of one tile."""
    lse, pulls, twist = known
    b, h, i, j, exists = place
    x, seen, slope = logits(q, k, call, b, h, i, j, exists, FORM, MASKED)
    log_p = x - lse[:, None]
    p = power(log_p, FORM)
    if MASKED or FORM.bias:
        p = tl.where(seen, p, 0.0)
    d = tl.dot(g, tl.trans(v), input_precision=FORM.precision)
    used = p
    if FORM.dropout:
        stays = kept(call, b, h, i, j, FORM)
        used = tl.where(stays, p * call.dropout_factor, 0.0)
        d = tl.where(stays, d * call.dropout_factor, 0.0)
    d += pulls[:, None]
    if FORM.entropy:
        d -= twist[:, None] * tl.where(p > 0, nats(log_p, FORM), 0.0)
    ds = p * d
    if MASKED or FORM.bias:
        ds = tl.where(seen, ds, 0.0)
    raw = ds
    if FORM.softcap:
        raw = tl.where(seen, ds * slope, 0.0)
    return used, ds, raw, seen


@triton.jit
def pulled_at_queries(
    found, arrays, known, call, row, first, last,
    FORM: tl.constexpr, MASKED: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """The gradient of some queries, with the keys of some tiles more."""
    q, g, key, value = arrays
    b, h, kv, i, inside = row
    for j0 in range(first, last, FORM.keys):
        j = j0 + tl.arange(0, FORM.keys)
        there = j < call.keys if MASKED else j >= 0
        k = load_rows(call, key, b, kv, j, there, FORM.width, FORM)
        v = load_rows(call, value, b, kv, j, there, FORM.value_width, FORM)
        place = b, h, i, j, inside[:, None] & there[None, :]
        used, ds, raw, seen = felt(q, k, v, g, known, call, place, FORM, MASKED)
        found = mixed(found, raw, k, seen, FORM, CAREFUL)
    return found


@triton.jit
def back_to_queries(query, key, value, gradient, found, facts, call, FORM: tl.constexpr):
    """The gradient of some queries."""
    number = tl.program_id(0)
    row = rows_of(call, number, FORM)
    b, h, _, i, inside = row
    q = load_rows(call, query, b, h, i, inside, FORM.width, FORM)
    g = load_rows(call, gradient, b, h, i, inside, FORM.value_width, FORM)
    known = told(facts, (b * call.heads + h) * call.queries + i, inside, FORM)
    first, solid, solid_end, last = limits_of(call, b, number, 0, FORM)
    zero = tl.zeros([FORM.rows, FORM.width_block], tl.float32)
    arrays = q, g, key, value
    dq = pulled_at_queries(zero, arrays, known, call, row, first, solid, FORM, True, False)
    dq = pulled_at_queries(dq, arrays, known, call, row, solid, solid_end, FORM, False, False)
    dq = pulled_at_queries(dq, arrays, known, call, row, solid_end, last, FORM, True, False)
    if has_nan(dq, inside):
        dq = pulled_at_queries(zero, arrays, known, call, row, first, last, FORM, True, True)
    store_rows(call, found, dq * call.factor, b, h, i, inside, FORM.width, FORM)


@triton.jit
def pulled_at_keys(k, v, arrays, facts, call, where, j, FORM: tl.constexpr, CAREFUL: tl.constexpr):
    """The gradients of some keys and values, from all rows of the heads that share them."""
    query, gradient, first, last = arrays
    b, kv = where
    dk = tl.zeros([FORM.keys, FORM.width_block], tl.float32)
    dv = tl.zeros([FORM.keys, FORM.value_block], tl.float32)
    group = call.heads // call.kv_heads
    # Blocks of rows that see these keys, head after head.
    count = tl.maximum(last - first, 0)
    for number in range(0, group * count):
        h = kv * group + number // count
        i = (first + number % count) * FORM.rows + tl.arange(0, FORM.rows)
        inside = i < call.queries
        q = load_rows(call, query, b, h, i, inside, FORM.width, FORM)
        g = load_rows(call, gradient, b, h, i, inside, FORM.value_width, FORM)
        known = told(facts, (b * call.heads + h) * call.queries + i, inside, FORM)
        place = b, h, i, j, inside[:, None] & (j < call.keys)[None, :]
        used, ds, raw, seen = felt(q, k, v, g, known, call, place, FORM, True)
        turned = tl.trans(seen)
        dk = mixed(dk, tl.trans(raw), q, turned, FORM, CAREFUL)
        dv = mixed(dv, tl.trans(used), g, turned, FORM, CAREFUL)
    return dk, dv


@triton.jit
def back_to_keys(
    query, key, value, gradient, found_key, found_value, facts, call, FORM: tl.constexpr
):
    """The gradients of some keys and values."""
    blocks = tl.cdiv(call.keys, FORM.keys)
    entry = tl.program_id(0) // blocks
    b, kv = (entry // call.kv_heads).to(tl.int64), entry % call.kv_heads
    j0 = tl.program_id(0) % blocks * FORM.keys
    j = j0 + tl.arange(0, FORM.keys)
    there = j < call.keys
    k = load_rows(call, key, b, kv, j, there, FORM.width, FORM)
    v = load_rows(call, value, b, kv, j, there, FORM.value_width, FORM)
    first, last = blocks_of(call, b, j0, FORM)
    arrays = query, gradient, first, last
    dk, dv = pulled_at_keys(k, v, arrays, facts, call, (b, kv), j, FORM, False)
    if has_nan(dk, there) | has_nan(dv, there):
        dk, dv = pulled_at_keys(k, v, arrays, facts, call, (b, kv), j, FORM, True)
    store_rows(call, found_key, dk * call.factor, b, kv, j, there, FORM.width, FORM)
    store_rows(call, found_value, dv, b, kv, j, there, FORM.value_width, FORM)


@triton.jit
def back_to_bias(query, key, value, gradient, found, own, facts, call, FORM: tl.constexpr):
    """One tile of the gradient of the bias: the sum over all that it is broadcast to.

    `own` is heads, rows and keys of the bias, batch entries that share one of its own, and where
    the table names them.
    """
    heads, rows, keys, shared, names = own
    row_blocks, key_blocks = tl.cdiv(rows, FORM.rows), tl.cdiv(keys, FORM.keys)
    number = tl.program_id(0)
    c = number % key_blocks * FORM.keys + tl.arange(0, FORM.keys)
    r = number // key_blocks % row_blocks * FORM.rows + tl.arange(0, FORM.rows)
    own_head = number // key_blocks // row_blocks % heads
    own_entry = (number // key_blocks // row_blocks // heads).to(tl.int64)
    many_heads = call.heads // heads
    many_rows = tl.cdiv(call.queries, FORM.rows) if FORM.rows_shared else 1
    many_keys = tl.cdiv(call.keys, FORM.keys) if FORM.keys_shared else 1
    total = tl.zeros([FORM.rows, FORM.keys], tl.float32)
    steps = tl.full((), 1, tl.int64) * shared * many_heads * many_rows * many_keys
    for n in range(0, steps):
        j = tl.cast(n % many_keys, tl.int32) * FORM.keys
        j += tl.arange(0, FORM.keys) if FORM.keys_shared else c
        i = tl.cast(n // many_keys % many_rows, tl.int32) * FORM.rows
        i += tl.arange(0, FORM.rows) if FORM.rows_shared else r
        h = own_head + tl.cast(n // many_keys // many_rows % many_heads, tl.int32)
        entry = n // many_keys // many_rows // many_heads
        b = tl.load(table(call) + names + own_entry * shared + entry)
        kv = h // (call.heads // call.kv_heads)
        row, column = i < call.queries, j < call.keys
        q = load_rows(call, query, b, h, i, row, FORM.width, FORM)
        g = load_rows(call, gradient, b, h, i, row, FORM.value_width, FORM)
        k = load_rows(call, key, b, kv, j, column, FORM.width, FORM)
        v = load_rows(call, value, b, kv, j, column, FORM.value_width, FORM)
        known = told(facts, (b * call.heads + h) * call.queries + i, row, FORM)
        place = b, h, i, j, row[:, None] & column[None, :]
        used, ds, raw, seen = felt(q, k, v, g, known, call, place, FORM, True)
        total += ds
    if FORM.rows_shared:
        total = tl.sum(total, 0)[None, :] + tl.zeros([FORM.rows, FORM.keys], tl.float32)
    if FORM.keys_shared:
        total = tl.sum(total, 1)[:, None] + tl.zeros([FORM.rows, FORM.keys], tl.float32)
    at = ((own_entry * heads + own_head) * rows + r) * keys
    there = (r < rows)[:, None] & (c < keys)[None, :]
    tl.store(reals(found) + at[:, None] + c[None, :], total, mask=there)

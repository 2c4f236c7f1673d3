"""Output and facts of each row, in one pass over the keys that it sees."""

import triton
import triton.language as tl

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
    store_rows,
)

NOBODY: tl.constexpr = tl.constexpr(2**31 - 1)
FIELDS: tl.constexpr = tl.constexpr(7)
UNROLLED: tl.constexpr = tl.constexpr(8)


@triton.jit
def empty(FORM: tl.constexpr):
    """The state of rows that have seen nothing.

    Largest score, sum of weights over its weight; sum of weight times score below it; how many
    share it, sum and squares of the other weights; distance; output; list of scores and keys.
    """
    zero = tl.zeros([FORM.rows], tl.float32)
    slots = tl.arange(0, FORM.slots)
    spare = tl.where(slots >= FORM.top, float("inf"), NONE)
    scores = spare[None, :] + tl.zeros([FORM.rows, FORM.slots], tl.float32)
    names = (-1 - slots)[None, :] + tl.zeros([FORM.rows, FORM.slots], tl.int32)
    found = tl.zeros([FORM.rows, FORM.value_block], tl.float32)
    return zero + NONE, zero, zero, zero, zero, zero, zero, found, scores, names


@triton.jit
def listed(scores, names, x, j, FORM: tl.constexpr):
    """The lists with the scores of a tile taken up: equal scores go to the lower key."""
    rank = tl.where(x == x, x, float("inf"))
    if FORM.top <= UNROLLED:
        # A loop inside the walk over the keys would keep them from being fetched ahead.
        for _ in tl.static_range(FORM.top):
            if tl.max((tl.max(rank, 1) > tl.min(scores, 1)).to(tl.int32), 0) > 0:
                scores, names, rank = entered(scores, names, rank, j)
    else:
        while tl.max((tl.max(rank, 1) > tl.min(scores, 1)).to(tl.int32), 0) > 0:
            scores, names, rank = entered(scores, names, rank, j)
    return scores, names


@triton.jit
def entered(scores, names, rank, j):
    """The lists, where the best of each row takes the place of its least, if it is better."""
    best, least = tl.max(rank, 1), tl.min(scores, 1)
    at = tl.min(tl.where(rank == best[:, None], j[None, :], NOBODY), 1)
    last = scores == least[:, None]
    which = tl.max(tl.where(last, names, -NOBODY), 1)
    goes = last & (names == which[:, None]) & (best > least)[:, None]
    scores = tl.where(goes, best[:, None], scores)
    names = tl.where(goes, at[:, None], names)
    return scores, names, tl.where(j[None, :] == at[:, None], NONE, rank)


@triton.jit
def walked(
    state, q, arrays, call, row, first, last,
    FORM: tl.constexpr, MASKED: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """The state of rows with the keys of some tiles more."""
    key, value = arrays
    b, h, kv, i, inside = row
    here = i + tl.load(table(call) + call.positions + b)
    for j0 in range(first, last, FORM.keys):
        top, total, below, ties, rest, squares, way, found, scores, names = state
        j = j0 + tl.arange(0, FORM.keys)
        there = j < call.keys if MASKED else j >= 0
        k = load_rows(call, key, b, kv, j, there, FORM.width, FORM)
        v = load_rows(call, value, b, kv, j, there, FORM.value_width, FORM)
        exists = inside[:, None] & there[None, :]
        x, seen, slope = logits(q, k, call, b, h, i, j, exists, FORM, MASKED)
        if FORM.top > 0:
            scores, names = listed(scores, names, x, j, FORM)
        now = tl.maximum(top, tl.max(x, 1))
        shift = tl.where(now == NONE, 0.0, now)
        away = top - shift
        alpha = power(away, FORM)
        d = x - shift[:, None]
        p = power(d, FORM)
        here_total = tl.sum(p, 1)
        if FORM.entropy:
            moved = tl.where(total == 0, 0.0, away * total)
            # A weight of 0 counts for nothing, however far below it is.
            below = alpha * (below + moved) + tl.sum(p * tl.maximum(d, -1000.0), 1)
        if FORM.entropy or FORM.saturation:
            # Those that share the largest weight are told from the others, so that nothing is
            # rounded away beside them.
            others = tl.where(d == 0, 0.0, p)
            others_total = tl.sum(others, 1)
            gone = tl.where(now > top, ties, 0.0) * alpha
            ties = tl.where(now > top, 0.0, ties) + tl.floor(here_total - others_total + 0.5)
            rest = rest * alpha + gone + others_total
            if FORM.saturation:
                squares = squares * alpha * alpha + gone * alpha + tl.sum(others * others, 1)
        if FORM.distance:
            far = tl.abs(here[:, None] - j[None, :]).to(tl.float32)
            way = way * alpha + tl.sum(p * far, 1)
        total = total * alpha + here_total
        if FORM.dropout:
            p = tl.where(kept(call, b, h, i, j, FORM), p, 0.0)
        found = mixed(found * alpha[:, None], p, v, seen, FORM, CAREFUL)
        state = now, total, below, ties, rest, squares, way, found, scores, names
    return state


@triton.jit
def log1p(x):
    """ln(1 + x); by its series where 1 + x would round it away."""
    rest = x * (1 / 3 - x * (1 / 4 - x * (1 / 5 - x * (1 / 6))))
    return tl.where(x < 0.05, x * (1 - x * (1 / 2 - rest)), tl.log(1 + x))


@triton.jit
def finish(state, output, facts, call, row, FORM: tl.constexpr):
    """Divides by the sums, and writes output and facts."""
    top, total, below, ties, rest, squares, way, found, scores, names = state
    b, h, _, i, inside = row
    none = total == 0
    m = nats(top, FORM)
    sink = tl.zeros([FORM.rows], tl.float32) + NONE
    if FORM.sinks:
        at = call.sinks.to(tl.int64).to(tl.pointer_type(FORM.dtype)) + h * call.sinks_step
        sink = tl.load(at).to(tl.float32) + tl.zeros([FORM.rows], tl.float32)
    most = tl.maximum(m, sink)
    shift = tl.where(most == NONE, 0.0, most)
    unit, sink_power = tl.exp(m - shift), tl.exp(sink - shift)
    whole = total * unit + sink_power
    divisor = tl.where(whole == 0, 1.0, whole)
    share, sink_weight = unit / divisor, sink_power / divisor
    found = tl.where(none[:, None], 0.0, found * (share * call.dropout_factor)[:, None])
    store_rows(call, output, found, b, h, i, inside, FORM.value_width, FORM)
    # How far lse is above the largest logit.
    above = tl.where(m >= sink, log1p((total - 1) + tl.exp(sink - m)), sink - m + tl.log(whole))
    at = (b * call.heads + h) * call.queries + i
    tl.store(reals(facts.lse) + at, tl.where(none, sink, m + above), mask=inside)
    largest = tl.where((total == total) | (m == float("inf")), m, total)
    tl.store(reals(facts.max_logit) + at, largest, mask=inside)
    if FORM.sinks:
        tl.store(reals(facts.sink_weight) + at, sink_weight, mask=inside)
    if FORM.entropy:
        # total - 1, of which nothing was rounded away beside the 1.
        more = rest + (ties - 1) + tl.exp(sink - m)
        above = tl.where(m >= sink, log1p(more), above)
        entropy = total * share * above - nats(below, FORM) * share
        tl.store(reals(facts.entropy) + at, tl.where(none, 0.0, entropy), mask=inside)
    if FORM.saturation:
        saturation = share * share * (ties + squares)
        tl.store(reals(facts.saturation) + at, tl.where(none, 0.0, saturation), mask=inside)
        r, q = (rest + (ties - 1)) * share, (squares + (ties - 1)) * share * share
        flow = share * (r + sink_weight) + r - q
        tl.store(reals(facts.flow) + at, tl.where(none, 0.0, flow), mask=inside)
    if FORM.distance:
        tl.store(reals(facts.distance) + at, tl.where(none, 0.0, way * share), mask=inside)
    if FORM.top > 0:
        for slot in range(0, FORM.top):
            # The spare slots have scores of inf and names below those of empty ones.
            there = names >= -FORM.top
            x = tl.max(tl.where(there, scores, NONE), 1)
            best = there & (scores == x[:, None])
            free = tl.where(best, tl.where(names < 0, NOBODY + names, names), NOBODY)
            name = tl.min(free, 1)
            taken = best & (free == name[:, None])
            weight = tl.where(x > NONE, power(x - top, FORM) * share, 0.0)
            place = at * FORM.top + slot
            tl.store(reals(facts.top_weights) + place, weight, mask=inside)
            found_at = facts.top_keys.to(tl.int64).to(tl.pointer_type(tl.int64)) + place
            tl.store(found_at, tl.where(x > NONE, name, -1).to(tl.int64), mask=inside)
            names = tl.where(taken, -1 - FORM.slots, names)


@triton.jit
def keep(state, scratch, place, inside, FORM: tl.constexpr):
    """Writes what a split came to."""
    top, total, below, ties, rest, squares, way, found, scores, names = state
    at = reals(scratch.sums) + place * (FIELDS + FORM.value_block)
    tl.store(at, top, mask=inside)
    tl.store(at + 1, total, mask=inside)
    tl.store(at + 2, below, mask=inside)
    tl.store(at + 3, ties, mask=inside)
    tl.store(at + 4, rest, mask=inside)
    tl.store(at + 5, squares, mask=inside)
    tl.store(at + 6, way, mask=inside)
    columns = tl.arange(0, FORM.value_block)[None, :]
    tl.store(at[:, None] + (FIELDS + columns), found, mask=inside[:, None])
    if FORM.top > 0:
        slots = place[:, None] * FORM.slots + tl.arange(0, FORM.slots)[None, :]
        tl.store(reals(scratch.scores) + slots, scores, mask=inside[:, None])
        at = scratch.names.to(tl.int64).to(tl.pointer_type(tl.int32)) + slots
        tl.store(at, names, mask=inside[:, None])


@triton.jit
def fetched(scratch, place, inside, FORM: tl.constexpr):
    """What `keep` wrote."""
    _, _, _, _, _, _, _, _, scores, names = empty(FORM)
    at = reals(scratch.sums) + place * (FIELDS + FORM.value_block)
    top = tl.load(at, mask=inside, other=NONE)
    total = tl.load(at + 1, mask=inside, other=0)
    below = tl.load(at + 2, mask=inside, other=0)
    ties = tl.load(at + 3, mask=inside, other=0)
    rest = tl.load(at + 4, mask=inside, other=0)
    squares = tl.load(at + 5, mask=inside, other=0)
    way = tl.load(at + 6, mask=inside, other=0)
    columns = tl.arange(0, FORM.value_block)[None, :]
    found = tl.load(at[:, None] + (FIELDS + columns), mask=inside[:, None], other=0)
    if FORM.top > 0:
        slots = place[:, None] * FORM.slots + tl.arange(0, FORM.slots)[None, :]
        scores = tl.load(reals(scratch.scores) + slots, mask=inside[:, None], other=0)
        at = scratch.names.to(tl.int64).to(tl.pointer_type(tl.int32)) + slots
        names = tl.load(at, mask=inside[:, None], other=0)
    return top, total, below, ties, rest, squares, way, found, scores, names


@triton.jit
def merged(one, other, FORM: tl.constexpr):
    """Two states as one; the keys of the first come before those of the other."""
    top, total, below, ties, rest, squares, way, found, scores, names = one
    top2, total2, below2, ties2, rest2, squares2, way2, found2, scores2, names2 = other
    now = tl.maximum(top, top2)
    shift = tl.where(now == NONE, 0.0, now)
    away, away2 = top - shift, top2 - shift
    alpha, alpha2 = power(away, FORM), power(away2, FORM)
    moved = tl.where(total == 0, 0.0, away * total)
    moved2 = tl.where(total2 == 0, 0.0, away2 * total2)
    below = alpha * (below + moved) + alpha2 * (below2 + moved2)
    gone = tl.where(now > top, ties, 0.0) * alpha
    gone2 = tl.where(now > top2, ties2, 0.0) * alpha2
    ties = tl.where(now > top, 0.0, ties) + tl.where(now > top2, 0.0, ties2)
    rest = rest * alpha + rest2 * alpha2 + gone + gone2
    squares = squares * alpha * alpha + squares2 * alpha2 * alpha2 + gone * alpha + gone2 * alpha2
    way = way * alpha + way2 * alpha2
    total = total * alpha + total2 * alpha2
    found = found * alpha[:, None] + found2 * alpha2[:, None]
    for slot in range(0, FORM.top):
        own = tl.arange(0, FORM.slots)[None, :] == slot
        x = tl.max(tl.where(own, scores2, NONE), 1)
        j = tl.max(tl.where(own, names2, -NOBODY), 1)
        least = tl.min(scores, 1)
        last = scores == least[:, None]
        which = tl.max(tl.where(last, names, -NOBODY), 1)
        # Of equal scores the lower key stays, in whatever order they come.
        better = (x > least) | ((x == least) & (j >= 0) & (j < which))
        goes = last & (names == which[:, None]) & better[:, None]
        scores = tl.where(goes, x[:, None], scores)
        names = tl.where(goes, j[:, None], names)
    return now, total, below, ties, rest, squares, way, found, scores, names


@triton.jit
def limits_of(call, b, number, split, FORM: tl.constexpr):
    """Where the tiles that some rows see begin and end, and those that all of them see whole."""
    blocks = tl.cdiv(call.queries, FORM.rows)
    block = 0 if FORM.packed else blocks - 1 - number % blocks
    at = table(call) + call.ranges + (b % call.ranges_of * blocks + block) * 4
    first, last = tl.load(at).to(tl.int32), tl.load(at + 3).to(tl.int32)
    solid, solid_end = tl.load(at + 1).to(tl.int32), tl.load(at + 2).to(tl.int32)
    if FORM.split > 0:
        # Splits begin at the same keys, whatever else is in the batch.
        first = tl.maximum(first, split * FORM.split)
        last = tl.minimum(last, (split + 1) * FORM.split)
    first = first // FORM.keys * FORM.keys
    solid = tl.maximum(first, tl.cdiv(solid, FORM.keys) * FORM.keys)
    solid_end = tl.minimum(last, solid_end) // FORM.keys * FORM.keys
    none = solid_end <= solid
    solid = tl.where(none, tl.maximum(first, last), solid)
    return first, solid, tl.where(none, solid, solid_end), last


@triton.jit
def attend(query, key, value, output, call, facts, scratch, FORM: tl.constexpr):
    """All keys of some rows, finished; or one split of them, kept until `join`."""
    number, split = tl.program_id(0) // call.splits, tl.program_id(0) % call.splits
    row = rows_of(call, number, FORM)
    b, h, _, i, inside = row
    q = load_rows(call, query, b, h, i, inside, FORM.width, FORM)
    first, solid, solid_end, last = limits_of(call, b, number, split, FORM)
    arrays = key, value
    state = empty(FORM)
    state = walked(state, q, arrays, call, row, first, solid, FORM, True, False)
    state = walked(state, q, arrays, call, row, solid, solid_end, FORM, False, False)
    state = walked(state, q, arrays, call, row, solid_end, last, FORM, True, False)
    if has_nan(state[7], inside):
        # From what these rows do not see, or from what they see: once more, with care.
        state = walked(empty(FORM), q, arrays, call, row, first, last, FORM, True, True)
    if FORM.split > 0:
        at = (b * call.heads + h) * call.queries + i
        keep(state, scratch, at * call.splits + split, inside, FORM)
    else:
        finish(state, output, facts, call, row, FORM)


@triton.jit
def join(output, call, facts, scratch, FORM: tl.constexpr):
    """The splits of some rows, in their order."""
    row = rows_of(call, tl.program_id(0), FORM)
    b, h, _, i, inside = row
    at = (b * call.heads + h) * call.queries + i
    state = empty(FORM)
    for split in range(0, call.splits):
        state = merged(state, fetched(scratch, at * call.splits + split, inside, FORM), FORM)
    finish(state, output, facts, call, row, FORM)

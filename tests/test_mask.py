"""Masks: each element by its definition, the two readings against each other, the errors."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chumoku.mask import (
    MAX_RUNS,
    Asked,
    Band,
    Boolean,
    Causal,
    Cells,
    Chunks,
    Custom,
    Documents,
    Equal,
    Joined,
    Lengths,
    Prefix,
    Runs,
    Shape,
    Window,
    position_offset,
)


def whole(mask, shape):
    """Every cell by `allowed`."""
    cells = mask.allowed(shape, np.arange(shape.queries), np.arange(shape.keys))
    return np.broadcast_to(cells, (*shape.batch, shape.heads, shape.queries, shape.keys))


def expand(lowered, shape):
    """Every cell by `lower`: what a kernel would walk, one entry and row at a time."""
    entries = int(np.prod(shape.batch))
    i, j = np.arange(shape.queries)[:, None], np.arange(shape.keys)
    cells = np.zeros((entries, shape.heads, shape.queries, shape.keys), bool)
    for b in range(entries):
        match lowered:
            case Band():
                row_start, row_stop, key_start, key_stop, low, high = (
                    int(limit[b % limit.size]) for limit in vars(lowered).values()
                )
                cells[b] = (row_start <= i) & (i < row_stop) & (key_start <= j) & (j < key_stop)
                cells[b] &= (low <= j - i) & (j - i <= high)
            case Runs(start, stop):
                for row in range(shape.queries):
                    runs = zip(start[b % len(start), row], stop[b % len(stop), row], strict=True)
                    for first, end in runs:
                        assert 0 <= first <= end <= shape.keys
                        cells[b, :, row, first:end] = True
            case Equal(query_ids, key_ids):
                mine, theirs = query_ids[b % len(query_ids)], key_ids[b % len(key_ids)]
                cells[b] = mine[:, None] == theirs
            case Boolean(view):
                assert view.shape == (*shape.batch, *cells.shape[1:])
                cells[b] = view.reshape(cells.shape)[b]
            case Asked(asked):
                h = np.arange(shape.heads)[:, None, None]
                cells[b] = asked.function(np.array(b), h, i, j)
            case Joined(parts, every):
                answers = [expand(part, shape).reshape(cells.shape)[b] for part in parts]
                cells[b] = np.all(answers, axis=0) if every else np.any(answers, axis=0)
    return cells.reshape(*shape.batch, *cells.shape[1:])


# A plan is a tree of (kind, numbers); `build` makes the mask of it, `sees` says of one element
# whether it is visible, by the words of the documentation.


def build(plan):
    kind, *given = plan
    match kind:
        case "and" | "or":
            left, right = (build(part) for part in given)
            return left & right if kind == "and" else left | right
        case "custom":
            return Custom(lambda b, h, i, j: (b + 2 * h + 3 * i + j) % given[0] != 0)
        case _:
            kinds = {
                "causal": Causal,
                "window": Window,
                "lengths": Lengths,
                "documents": Documents,
                "prefix": Prefix,
                "chunks": Chunks,
                "cells": Cells,
            }
            return kinds[kind](*given)


def ends(plan, b, ends_now):
    """Ends of the valid keys and queries, as the Lengths that are joined by & leave them."""
    kind, *given = plan
    if kind == "and":
        return ends(given[1], b, ends(given[0], b, ends_now))
    if kind == "lengths" and given[2] == "right":
        queries = ends_now[1] if given[1] is None else min(ends_now[1], one(given[1], b))
        return min(ends_now[0], one(given[0], b)), queries
    return ends_now


def one(values, b):
    values = np.asarray(values)
    return int(values if values.ndim == 0 else values[b])


def sees(plan, shape, b, h, i, j, ends_now):
    kind, *given = plan
    keys_end, queries_end = ends_now
    match kind:
        case "and":
            ends_now = ends(plan, b, ends_now)
            return all(sees(part, shape, b, h, i, j, ends_now) for part in given)
        case "or":
            return any(sees(part, shape, b, h, i, j, ends(part, b, ends_now)) for part in given)
        case "lengths":
            keys, queries, side = given
            keys, queries = one(keys, b), shape.queries if queries is None else one(queries, b)
            if side == "right":
                return j < keys and i < queries
            return j >= shape.keys - keys and i >= shape.queries - queries
        case "documents":
            ids = [np.broadcast_to(x, (3, x.shape[-1]))[b] for x in given]
            return ids[0][i] == ids[1][j]
        case "prefix":
            return j < one(given[0], b)
        case "custom":
            return (b + 2 * h + 3 * i + j) % given[0] != 0
        case "cells":
            view = np.broadcast_to(given[0], (3, shape.heads, shape.queries, shape.keys))
            return bool(view[b, h, i, j])
    offset = keys_end - queries_end if given[-1] is None else one(given[-1], b)
    match kind:
        case "causal":
            return j <= i + offset
        case "window":
            return i + offset - given[0] <= j <= i + offset + given[1]
        case "chunks":
            return (i + offset) // given[0] == j // given[0]


BATCH = 3


def plans(queries, keys, heads):
    def each(numbers):
        return numbers | st.lists(numbers, min_size=BATCH, max_size=BATCH)

    def ids(length, last):
        shapes = st.sampled_from([(length,), (BATCH, length), (1, length)])
        order = st.sampled_from([np.sort, np.asarray])
        return st.builds(
            lambda shape, seed, sort: sort(np.random.default_rng(seed).integers(0, last, shape)),
            shapes,
            st.integers(0, 99),
            order,
        )

    def cells(shape, seed):
        return np.asarray(np.random.default_rng(seed).random(shape) < 0.6)

    offset = st.none() | each(st.integers(-keys - 3, keys + 3))
    sides = st.sampled_from(["right", "left"])
    documents = st.integers(1, 40).flatmap(
        lambda last: st.tuples(st.just("documents"), ids(queries, last), ids(keys, last))
    )
    shapes = st.sampled_from([(), (keys,), (queries, 1), (heads, 1, keys), (3, 1, queries, keys)])
    leaf = st.one_of(
        st.tuples(st.just("causal"), offset),
        st.tuples(st.just("window"), st.integers(0, 9), st.integers(0, 4), offset),
        st.tuples(
            st.just("lengths"),
            each(st.integers(0, keys)),
            st.none() | each(st.integers(0, queries)),
            sides,
        ),
        documents,
        st.tuples(st.just("prefix"), each(st.integers(-2, keys + 2))),
        st.tuples(st.just("chunks"), st.integers(1, 9), offset),
        st.tuples(st.just("custom"), st.integers(2, 5)),
        st.tuples(st.just("cells"), st.builds(cells, shapes, st.integers(0, 99))),
    )
    return st.recursive(
        leaf, lambda part: st.tuples(st.sampled_from(["and", "or"]), part, part), max_leaves=4
    )


@given(data=st.data(), queries=st.integers(0, 7), keys=st.integers(0, 11), heads=st.integers(1, 2))
def test_every_element_by_its_definition(data, queries, keys, heads):
    plan = data.draw(plans(queries, keys, heads))
    shape = Shape((BATCH,), heads, queries, keys)
    cells = whole(build(plan), shape)
    for b, h, i, j in np.ndindex(*cells.shape):
        assert cells[b, h, i, j] == sees(plan, shape, b, h, i, j, (keys, queries)), (b, h, i, j)


@given(data=st.data(), queries=st.integers(0, 30), keys=st.integers(0, 40), heads=st.integers(1, 2))
def test_both_readings_agree(data, queries, keys, heads):
    mask = build(data.draw(plans(queries, keys, heads)))
    shape = Shape((BATCH,), heads, queries, keys)
    assert np.array_equal(expand(mask.lower(shape), shape), whole(mask, shape))


@given(data=st.data())
def test_any_block_is_a_part_of_the_whole(data):
    mask = build(data.draw(plans(9, 14, 2)))
    shape = Shape((BATCH,), 2, 9, 14)
    rows = np.array(data.draw(st.lists(st.integers(0, 8), max_size=5)), np.int64)
    keys = np.array(data.draw(st.lists(st.integers(0, 13), max_size=5)), np.int64)
    block = mask.allowed(shape, rows, keys)
    block = np.broadcast_to(block, (BATCH, 2, rows.size, keys.size))
    assert np.array_equal(block, whole(mask, shape)[..., rows[:, None], keys])


@pytest.mark.parametrize("batch", [(), (0,), (2, 2), (1, 3, 1)])
def test_any_batch(batch):
    count = int(np.prod(batch))
    offsets = np.arange(count).reshape(batch)
    shape = Shape(batch, 1, 4, 6)
    for mask in (
        Causal(offsets),
        Window(1, 1, offsets),
        Chunks(2, offsets),
        Prefix(offsets),
        Lengths(offsets),
        Documents(np.zeros((*batch, 4), int), np.arange(6) % 2),
        Custom(lambda b, h, i, j: (b + i + j) % 2 == 0),
        Causal(offsets) | Lengths(2) & Causal(),
    ):
        assert np.array_equal(expand(mask.lower(shape), shape), whole(mask, shape))


def picture(mask, queries=3, keys=5):
    cells = whole(mask, Shape((), 1, queries, keys))[0]
    return [" ".join("x" if cell else "." for cell in row) for row in cells]


def test_the_shapes_people_expect():
    assert picture(Causal()) == ["x x x . .", "x x x x .", "x x x x x"]
    assert picture(Causal(0)) == ["x . . . .", "x x . . .", "x x x . ."]
    assert picture(Window(1, 0)) == [". x x . .", ". . x x .", ". . . x x"]
    assert picture(Causal() & Lengths(4)) == ["x x . . .", "x x x . .", "x x x x ."]
    assert picture(Causal() & Lengths(4, 2)) == ["x x x . .", "x x x x .", ". . . . ."]
    assert picture(Causal() & Lengths(4) & Lengths(5)) == picture(Causal() & Lengths(4))
    assert picture(Lengths(2, 1, side="left")) == [". . . . .", ". . . . .", ". . . x x"]
    assert picture(Causal(0) | Prefix(2)) == ["x x . . .", "x x . . .", "x x x . ."]
    assert picture(Chunks(2)) == [". . x x .", ". . x x .", ". . . . x"]
    assert picture(Documents([7, 7, 9], [7, 9, 9, 7, 7])) == [
        "x . . x x",
        "x . . x x",
        ". x x . .",
    ]


def test_huge_numbers_do_not_overflow():
    shape = Shape((), 1, 3, 5)
    for mask, wanted in [
        (Window(sys.maxsize, sys.maxsize), True),
        (Window(10**30, 0, offset=2**60), True),
        (Window(2**60 + 9, 2**60, offset=2**60), True),
        (Window(2**60 - 9, 2**60, offset=2**60), False),
        (Causal(2**60), True),
        (Causal(-(2**60)), False),
        (Chunks(10**30), True),
        (Chunks(10**30, offset=-9), False),
        (Prefix(2**62), True),
    ]:
        assert whole(mask, shape).all() == whole(mask, shape).any() == wanted
        assert np.array_equal(expand(mask.lower(shape), shape), whole(mask, shape))


# What the lowered forms promise to kernels


def test_bands_are_joined_into_one():
    shape = Shape((2,), 1, 6, 8)
    mask = Causal() & Window(3, 0) & Lengths(np.array([8, 5])) & Prefix(7)
    band = mask.lower(shape)
    assert isinstance(band, Band)
    assert all(limit.size in (1, 2) and limit.dtype == np.int64 for limit in vars(band).values())
    assert isinstance((mask & np.ones((6, 8), bool)).lower(shape), Joined)


def test_equal_limits_are_one_limit():
    band = Causal(np.array([3, 3, 3])).lower(Shape((3,), 1, 4, 4))
    assert band.high.tolist() == [3]


def test_contiguous_documents_become_runs_and_scattered_ones_ids():
    shape = Shape((2,), 1, 40, 40)
    runs = Documents(np.arange(40) // 7).lower(shape)
    assert isinstance(runs, Runs)
    assert runs.start.shape == (1, 40, 1)
    few = Documents(np.arange(40) // 5 % 2).lower(shape)
    assert isinstance(few, Runs)
    assert few.start.shape == (1, 40, 4)
    scattered = Documents(np.arange(40) % 2).lower(shape)
    assert isinstance(scattered, Equal)
    assert MAX_RUNS < 40 / 2


def test_arrays_are_not_copied():
    array = np.ones((4, 6), bool)
    view = Cells(array).lower(Shape((2,), 3, 4, 6)).cells
    assert np.shares_memory(view, array)
    assert view.strides[:2] == (0, 0)


def test_values_cannot_be_changed_from_outside():
    offset, ids = np.array([1, 2]), np.array([0, 1, 1])
    causal, documents = Causal(offset), Documents(ids)
    offset[:] = ids[:] = 9
    assert causal.offset.tolist() == [1, 2]
    assert documents.query_ids.tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        causal.offset[0] = 3
    with pytest.raises(AttributeError):
        causal.offset = 3


def test_custom_is_asked_for_blocks():
    asked = []

    def function(b, h, i, j):
        asked.append(np.broadcast_shapes(*(np.shape(x) for x in (b, h, i, j))))
        return (i >= j) & (b < 9) & (h < 9)

    Custom(function).allowed(Shape((2, 3), 4, 50, 60), np.arange(5), np.arange(7))
    assert asked == [(2, 3, 4, 5, 7)]


def test_joining_with_arrays_from_either_side():
    array = np.eye(3, 5, dtype=bool)
    shape = Shape((), 1, 3, 5)
    for mask in (Prefix(1) & array, array & Prefix(1), torch.tensor(array) & Prefix(1)):
        assert np.array_equal(whole(mask, shape)[0], array & (np.arange(5) < 1))
    for mask in (Prefix(1) | array, array | Prefix(1), Prefix(1) | torch.tensor(array)):
        assert np.array_equal(whole(mask, shape)[0], array | (np.arange(5) < 1))


def calls(work):
    """How many calls of Python and of C a piece of work makes."""
    seen = []
    sys.setprofile(lambda frame, event, argument: seen.append(event))
    try:
        work()
    finally:
        sys.setprofile(None)
    return sum(event in ("call", "c_call") for event in seen)


@pytest.mark.parametrize("runs", [1, 4, 30])
def test_documents_of_many_entries_cost_no_loop_over_them(runs):
    random = np.random.default_rng(runs)
    ids = np.sort(random.integers(0, 5, (1000, 24)), axis=1)
    if runs > 1:
        ids = random.permuted(ids, axis=1) if runs > 9 else np.roll(ids, 7, axis=1)
    other = random.integers(0, 7, (1000, 30)) if runs > 9 else np.sort(ids, axis=1)[:, ::2]
    mask, shape = Documents(ids, other), Shape((1000,), 1, *ids.shape[1:], *other.shape[1:])
    lowered = mask.lower(shape)
    assert isinstance(lowered, Equal if runs > 9 else Runs)
    assert np.array_equal(expand(lowered, shape), whole(mask, shape))
    one = calls(lambda: Documents(ids[:1], other[:1]).lower(Shape((1,), 1, 24, other.shape[1])))
    many = calls(lambda: mask.lower(shape))
    assert many <= one + 10 * MAX_RUNS


def test_ids_at_the_ends_of_int64():
    ids = np.array([[-(2**63), 2**63 - 1, -(2**63), 0], [2**63 - 1, -1, 0, 2**63 - 1]])
    shape = Shape((2,), 1, 4, 4)
    mask = Documents(ids)
    assert np.array_equal(expand(mask.lower(shape), shape), whole(mask, shape))


def test_chains_stay_flat():
    assert len((Causal() & Prefix(1) & Chunks(2)).parts) == 3
    assert len((Causal() | Prefix(1) | Chunks(2) & Prefix(3)).parts) == 3


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [
        (None, [2, 2]),
        (Prefix(1), [2, 2]),
        (Causal(), [2, 2]),
        (Causal(7), [7, 7]),
        (Lengths([4, 6], [4, 1]), [0, 5]),
        (Window(1, 0) & Lengths([4, 6]), [0, 2]),
        (Lengths([4, 6]) & Window(1, 0, offset=[3, 9]), [3, 9]),
        (Prefix(2) | Lengths([4, 6]) & Causal(), [0, 2]),
        (Chunks(3, offset=1) & Causal(), [1, 1]),
        (Lengths([4, 6], side="left"), [2, 2]),
    ],
)
def test_position_of_the_queries(mask, wanted):
    shape = Shape((2,), 1, 4, 6)
    assert position_offset(mask, shape).tolist() == wanted


def test_shapes_are_compared_by_their_sizes():
    assert Shape((2,), 3, 4, 5) == Shape((2,), 3, 4, 5)
    assert Shape((2,), 3, 4, 5) != Shape((2,), 3, 4, 6)
    assert len({Shape((), 1, 2, 3), Shape((), 1, 2, 3)}) == 1

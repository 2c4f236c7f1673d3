"""Mask values: what may be given for them, what is refused, how they are joined and shown."""

import copy
import pickle
import random

import array_api_strict
import numpy as np
import pytest
import torch
from strange import ERRORS, anything, outcome
from test_mask import expand, whole

from chumoku.errors import InvalidArgumentError, InvalidTypeError
from chumoku.mask import (
    MAX_NEST,
    All,
    Any_,
    Causal,
    Cells,
    Chunks,
    Custom,
    Documents,
    Lengths,
    Mask,
    Prefix,
    Shape,
    Window,
    as_mask,
    position_offset,
)

SHAPE = Shape((2,), 1, 4, 6)


def test_ids_and_lengths_may_be_arrays_of_any_kind():
    shape = Shape((2,), 1, 4, 6)
    for kind in (list, np.array, torch.tensor, array_api_strict.asarray, np.uint8):
        lengths, ids = kind([4, 6]), kind([0, 0, 1, 1])
        mask = Lengths(lengths) & Causal(lengths) & Documents(ids, kind([0, 1, 1, 1, 0, 0]))
        assert mask.parts[0].keys.tolist() == [4, 6]
        assert whole(mask, shape).sum() == 2 * (1 + 1 + 3 + 3) + 2 * 2
    big = np.array([4, 6], ">i4")
    assert Prefix(big).n.dtype == np.dtype(np.int64)


def test_boolean_arrays_of_any_kind_share_their_memory():
    array = np.eye(4, 6, dtype=bool)
    shape = Shape((), 1, 4, 6)
    for other in (torch.tensor(array), array_api_strict.asarray(array), array[::-1][::-1]):
        mask = as_mask(other)
        assert np.array_equal(whole(mask, shape)[0], array)
        other[0, 1] = True
        assert whole(mask, shape)[0, 0, 1]
        other[0, 1] = False


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (torch.ones(4, 6, dtype=torch.bfloat16), "mask: got an array of bfloat16"),
        (torch.ones(4, 6, requires_grad=True), "mask: got an array of float32"),
        (torch.ones(4, 6, dtype=torch.bool, device="meta"), "mask: got a tensor on meta"),
        (torch.ones(4, 6, dtype=torch.bool).to_sparse(), "mask: got a torch.sparse_coo tensor"),
        (np.ma.MaskedArray(np.ones((4, 6), bool)), "mask: got a masked array"),
        (array_api_strict.ones((4, 6)), "mask: got an array of float64"),
        (Causal, r"mask: got the class Causal, .* Write Causal\(...\)"),
        (None, "mask: got NoneType"),
        (True, "mask: got bool"),
    ],
)
def test_arrays_that_are_no_masks(array, words):
    with pytest.raises(ERRORS, match=words):
        as_mask(array)


def test_masks_are_shown_in_one_line():
    assert repr(Causal()) == "Causal()"
    assert repr(Lengths([4, 6], side="left")) == "Lengths(keys=[4, 6], side='left')"
    assert repr(Prefix(3)) == "Prefix(n=3)"
    joined = Window(3, 0) & (Prefix(2) | Documents(np.zeros((2, 99), int)))
    assert repr(joined) == (
        "Window(left=3, right=0) & (Prefix(n=2) | "
        "Documents(query_ids=<int64 (2, 99)>, key_ids=<int64 (2, 99)>))"
    )
    assert repr(All([Causal()] * 9)) == "Causal() & Causal() & Causal() & Causal() & ... 5 more"


def test_masks_are_equal_to_themselves_alone():
    mask = Prefix([1, 2])
    assert mask == mask
    assert mask != Prefix([1, 2])
    assert len({mask, mask, Prefix([1, 2])}) == 2
    for twin in (copy.deepcopy(mask & Causal()), pickle.loads(pickle.dumps(mask & Causal()))):
        assert repr(twin) == repr(mask & Causal())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Causal(1.5), "offset: got float64 values, expected whole numbers"),
        (lambda: Causal(2**61), "offset: got numbers from .*, expected numbers from"),
        (
            lambda: Causal(np.array([2**63], np.uint64)),
            "offset: got numbers from 9223372036854775808",
        ),
        (lambda: Window(-1, 0), "left: got -1, expected a whole number of keys from 0"),
        (lambda: Window(0, -2), "right: got -2"),
        (lambda: Window(1.0, 0), "left: got 1.0, expected a whole number of keys"),
        (lambda: Window(True, 0), "left: got True"),
        (lambda: Lengths("5"), "keys: got <U1 values"),
        (lambda: Lengths(3, side="top"), """side: got 'top', expected "right" or "left\""""),
        (lambda: Documents([0.5]), "query_ids: got float64 values"),
        (lambda: Documents([1], [True]), "key_ids: got bool values"),
        (lambda: Documents(3), "query_ids: got one id, 3, expected an id for each position"),
        (lambda: Documents(None), "query_ids: got None, expected whole numbers"),
        (lambda: Documents(np.ones((2, 4), int), np.ones((3, 6), int)), "key_ids: got axes"),
        (lambda: Documents([[1], [2, 3]]), r"query_ids: got \[\[1\], \[2, 3\]\], expected whole"),
        (lambda: Prefix(None), "n: got None"),
        (lambda: Prefix([1, 2**70]), "n: got numbers from 1 to 1180591620717411303424"),
        (lambda: Prefix(np.array([1, 2], object)), "n: got an array of object"),
        (lambda: Prefix([[1j]]), "n: got complex128 values"),
        (lambda: Prefix(torch.tensor([1.0])), "n: got float32 values"),
        (lambda: Prefix(torch.tensor([1], device="meta")), "n: got a tensor on meta"),
        (lambda: Lengths(None), "keys: got None"),
        (lambda: Lengths([3, -1]), "keys: got numbers from -1 to 3, expected numbers from 0"),
        (lambda: Lengths([3, 1], [1, 1, 1]), r"queries: got axes \(3,\), expected axes that fit"),
        (lambda: Causal([True]), "offset: got bool values"),
        (lambda: Window(10**5000, -(10**5000)), "right: got a whole number of 16610 bits"),
        (lambda: Chunks(np.timedelta64(3)), "size: got np.timedelta64"),
        (lambda: Prefix(2.5), "n: got float64 values"),
        (lambda: Chunks(0), "size: got 0, expected a whole number of keys from 1"),
        (lambda: Chunks("2"), "size: got '2'"),
        (
            lambda: Cells(np.zeros(3)),
            "mask: got an array of float64, expected a mask value or a bool",
        ),
        (lambda: Custom(3), "function: got 3, expected a function"),
        (lambda: as_mask([[True]]), "mask: got list, expected a mask value or a bool"),
        (lambda: Causal() & 3, "mask: got int"),
        (lambda: Causal() | np.ones(3), "mask: got an array of float64.*given as bias="),
    ],
)
def test_wrong_values_are_refused_when_made(make, words):
    with pytest.raises(ERRORS, match=words):
        make()


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (
            Causal([1, 2, 3]),
            r"offset: got shape \(3,\), expected a shape that broadcasts to \(2,\)",
        ),
        (Window(1, 1, [1, 2, 3]), "offset: got shape"),
        (Chunks(2, [1, 2, 3]), "offset: got shape"),
        (Prefix([1, 2, 3]), "n: got shape"),
        (Lengths([1, 2, 3]), r"keys: got shape \(3,\)"),
        (Lengths(7), "keys: got lengths up to 7, expected 0 to 6, the number of keys"),
        (Lengths(1, [0, 5]), "queries: got lengths up to 5, expected 0 to 4"),
        (Documents([1] * 5), r"query_ids: got shape \(5,\), expected one id for each of the 4"),
        (Documents([1] * 4), "key_ids: .* each of the 6 .* Without key_ids the keys have"),
        (Documents([[1] * 4] * 3, [1] * 6), r"query_ids: got shape \(3, 4\)"),
        (Cells(np.ones((5, 6), bool)), r"mask: got shape \(5, 6\).*\(2, 1, 4, 6\).*Its axes are"),
    ],
)
@pytest.mark.parametrize("read", ["allowed", "lower"])
def test_masks_that_do_not_fit_the_call(mask, words, read):
    with pytest.raises(InvalidArgumentError, match=words):
        whole(mask, SHAPE) if read == "allowed" else mask.lower(SHAPE)
    with pytest.raises(InvalidArgumentError, match=words):
        whole(mask & Causal(), SHAPE) if read == "allowed" else (mask | Causal()).lower(SHAPE)


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda b, h, i, j: i - j, InvalidTypeError, "function: got int64 from the mask function"),
        (
            lambda b, h, i, j: np.ones((3, 3), bool),
            InvalidArgumentError,
            r"function: got shape \(3, 3\)",
        ),
    ],
)
def test_custom_functions_that_answer_wrong(function, error, words):
    with pytest.raises(error, match=words):
        whole(Custom(function), SHAPE)


def deep(turns):
    """Turns of & and |, each around the one before."""
    mask = Prefix(1)
    for turn in range(turns):
        mask = mask & Chunks(3) if turn % 2 else mask | Chunks(2)
    return mask


def test_nests_have_an_end():
    # One entry: `expand` asks every part once for each.
    one = Shape((), 1, 4, 6)
    mask = deep(MAX_NEST)
    assert np.array_equal(expand(mask.lower(one), one), whole(mask, one))
    position_offset(mask, SHAPE)
    assert len(repr(mask)) < 2000
    with pytest.raises(InvalidArgumentError, match=f"mask: got .* {MAX_NEST + 1} deep, expected"):
        deep(5000)
    with pytest.raises(InvalidArgumentError, match="deep"):
        All((mask, Any_([mask])))
    flat = Prefix(1)
    for _ in range(3000):
        flat = flat | Chunks(2)
    assert len(flat.parts) == 3001
    assert whole(flat, SHAPE).sum() == 2 * 4 * 3


@pytest.mark.parametrize("parts", [None, (), 3, Causal(), (Causal(), 3), "ab"])
def test_joins_are_of_masks(parts):
    for kind in (All, Any_):
        with pytest.raises(ERRORS):
            kind(parts)


MASKS = (Causal, Window, Lengths, Documents, Prefix, Chunks, Cells, Custom, All, Any_)
COUNTS = {Window: (2, 3), Lengths: (1, 3), Documents: (1, 2), Chunks: (1, 2)}


def test_only_the_library_s_errors_come_out():
    rng = random.Random(7)
    made = 0
    for _ in range(4000):
        kind = rng.choice(MASKS)
        count = rng.randint(*COUNTS.get(kind, (1, 1)))
        arguments = [anything(rng) for _ in range(count)]
        # What a function raises of its own accord is its caller's: here functions only answer.
        if kind is Custom and (callable(arguments[0]) or rng.random() < 0.8):
            arguments = [lambda *_, answer=arguments[0]: answer]
        if kind in (All, Any_) and rng.random() < 0.8:
            arguments = [(Causal(), *arguments)]
        mask = outcome(kind, *arguments)
        if isinstance(mask, type):
            assert isinstance(outcome(as_mask, arguments[0]), Mask | type)
            continue
        assert len(repr(mask)) < 400
        shape = Shape(rng.choice([(), (2,), (0,)]), rng.choice([0, 1, 2]), 4, rng.choice([0, 4, 6]))
        cells = outcome(whole, mask, shape)
        lowered = outcome(mask.lower, shape)
        offset = outcome(position_offset, mask, shape)
        assert isinstance(offset, type) or offset.shape == shape.batch
        if asks(mask):
            continue
        assert isinstance(cells, type) == isinstance(lowered, type), (mask, cells, lowered)
        if not isinstance(cells, type):
            assert np.array_equal(expand(lowered, shape), cells)
            made += 1
    assert made > 50


def asks(mask):
    return isinstance(mask, Custom) or any(map(asks, getattr(mask, "parts", ())))


def test_a_mask_says_that_it_must_be_written():
    for read in (
        lambda: Mask().allowed(SHAPE, np.arange(1), np.arange(1)),
        lambda: Mask().lower(SHAPE),
    ):
        with pytest.raises(NotImplementedError):
            read()

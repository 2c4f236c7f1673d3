"""Mask functions of transformers read as masks, and the masks that models compute with."""

import numpy as np
import pytest
import torch
from transformers import masking_utils

from chumoku.errors import UnavailableError
from chumoku.huggingface import LazyMask, mask_function
from chumoku.huggingface.reading import Setting, read
from chumoku.mask import Custom, Shape, position_offset

# Mask functions

KEYS = 16
SETTINGS = {
    "square": Setting(2, 16, 16),
    "cache": Setting(2, 5, 16, 11),
    "one query": Setting(2, 1, 16, 15),
    "sliding cache": Setting(2, 4, 10, 12, 6),
    "static cache": Setting(2, 4, 16, 0, 0),
}
PADDING = {
    "none": [[1] * 16, [1] * 16],
    "left": [[0] * 3 + [1] * 13, [1] * 16],
    "right": [[1] * 16, [1] * 11 + [0] * 5],
    "both": [[0] * 3 + [1] * 13, [1] * 11 + [0] * 5],
    "holes": [[0] * 3 + [1] * 13, [1] * 5 + [0] + [1] * 10],
    "nothing left": [[0] * 16, [1] * 16],
}
IMAGES = torch.tensor(
    [[-1] * 4 + [0] * 4 + [-1] * 8, [-1] * 4 + [0] * 4 + [-1] + [1] * 3 + [-1] * 4]
)
IDS = torch.tensor([[0] * 6 + [1] * 10, [0] * 9 + [1] * 7])
FUNCTIONS = {
    "causal": masking_utils.causal_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function(4),
    "both sides": masking_utils.sliding_window_bidirectional_mask_function(3),
    "everything": masking_utils.bidirectional_mask_function,
    "chunks": masking_utils.chunked_causal_mask_function(4, torch.tensor([3, 0])),
    "images": masking_utils.or_masks(
        masking_utils.causal_mask_function, masking_utils.blockwise_overlay(IMAGES)
    ),
    "prefix": masking_utils.or_masks(
        masking_utils.causal_mask_function, lambda b, h, q, k: k < torch.tensor([3, 5])[b]
    ),
    "strict": lambda b, h, q, k: (q > k) & (q - k < 5),
    "mirrored": lambda b, h, q, k: ~((k > 2) & (k < 5)) & (abs(k - q) < 4),
    "own": lambda b, h, q, k: torch.logical_and(torch.ge(q, k), torch.abs(torch.sub(q, k)) <= 2),
    "future": lambda b, h, q, k: k >= q + 2,
}
STRANGE = {
    "checkered": lambda b, h, q, k: (q + k) % 2 == 0,
    "not equal": lambda b, h, q, k: q != k,
    "products": lambda b, h, q, k: q * k < 60,
    "branching": lambda b, h, q, k: k <= q if q.numel() > 0 and bool((q >= 0).all()) else k < 0,
    "stepped": lambda b, h, q, k: 2 * k <= q,
}


def dense(mask, setting):
    rows, keys = np.arange(setting.queries), np.arange(setting.keys)
    shape = Shape((setting.batch,), 1, setting.queries, setting.keys)
    whole = (setting.batch, 1, setting.queries, setting.keys)
    return np.broadcast_to(True if mask is None else mask.allowed(shape, rows, keys), whole)


def theirs(function, setting, vmap=False):
    return masking_utils.sdpa_mask(
        setting.batch,
        setting.queries,
        setting.keys,
        setting.query_offset,
        setting.key_offset,
        function,
        allow_is_causal_skip=False,
        use_vmap=vmap,
    ).numpy()


def with_padding(function, padding):
    mask = torch.tensor(PADDING[padding], dtype=torch.bool)
    return masking_utils.and_masks(function, masking_utils.padding_mask_function(mask))


def has_custom(mask):
    return isinstance(mask, Custom) or any(map(has_custom, getattr(mask, "parts", ())))


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_read(name, setting, padding):
    setting = SETTINGS[setting]
    function = with_padding(FUNCTIONS[name], padding)
    mask = read(function, setting)
    assert np.array_equal(dense(mask, setting), theirs(function, setting))
    assert not has_custom(mask)
    if mask is not None:
        assert (position_offset(mask, setting.shape) == setting.offset).all()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", STRANGE)
def test_functions_that_cannot_be_read_are_asked(name, setting):
    setting = SETTINGS[setting]
    function = STRANGE[name]
    assert np.array_equal(dense(read(function, setting), setting), theirs(function, setting))


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("setting", ["square", "cache", "one query"])
def test_functions_of_single_numbers(setting, padding):
    setting = SETTINGS[setting]
    function = with_padding(lambda b, h, q, k: (k <= q) | (IDS[b][q] == IDS[b][k]), padding)
    assert np.array_equal(
        dense(read(function, setting, True), setting), theirs(function, setting, True)
    )


@pytest.mark.parametrize("window", [None, 3])
def test_packed_sequences(window):
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 2], list(range(16))])
    inner = FUNCTIONS["causal"]
    if window:
        inner = masking_utils.sliding_window_causal_mask_function(window)
    packed = masking_utils.find_packed_sequence_indices(positions)
    function = masking_utils.packed_sequence_compatibility_function(inner, positions, packed)
    mask = read(function, SETTINGS["square"])
    assert np.array_equal(dense(mask, SETTINGS["square"]), theirs(function, SETTINGS["square"]))
    assert not has_custom(mask)


def test_positions_that_are_no_places_are_compared():
    """Positions that begin anew where no id says so are not those of documents."""
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7]] * 2)
    function = masking_utils.remap_positions_for_packed_sequence(FUNCTIONS["causal"], positions)
    for outer in (function, masking_utils.and_masks(function, FUNCTIONS["chunks"])):
        mask = read(outer, SETTINGS["square"])
        assert np.array_equal(dense(mask, SETTINGS["square"]), theirs(outer, SETTINGS["square"]))
        assert has_custom(mask)


def test_masks_of_long_texts_are_small():
    length = 100_000
    ids = torch.arange(length) // 1000
    function = masking_utils.and_masks(
        masking_utils.sliding_window_causal_mask_function(4096),
        masking_utils.packed_sequence_mask_function(ids[None]),
        masking_utils.padding_mask_function(torch.arange(length)[None] > 17),
    )
    mask = read(function, Setting(1, length, length))
    held = sum(x.nbytes for part in mask.parts for x in vars(part).values() if hasattr(x, "nbytes"))
    assert held < 3e6
    assert not has_custom(mask)


# LazyMask


def made(**others):
    given = {"batch_size": 2, "q_length": 6, "kv_length": 6} | others
    return mask_function(**given)


def test_a_model_may_compute_with_its_mask():
    mask = made(attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]))
    expected = torch.from_numpy(theirs(FUNCTIONS["causal"], Setting(2, 6, 6)))
    expected = expected & (torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]) > 0)[:, None, None]
    assert isinstance(mask, LazyMask)
    assert mask.shape == expected.shape == mask.size()
    assert (mask.dtype, mask.ndim, mask.dim(), mask.size(-1)) == (torch.bool, 4, 4, 6)
    assert torch.equal(mask[:, 0, :, :], expected[:, 0])
    assert torch.equal(mask & ~expected, torch.zeros_like(expected))
    assert torch.equal(expected | mask, expected)
    assert torch.equal(~mask, ~expected)
    assert torch.equal(torch.cat([mask, expected], -1), torch.cat([expected, expected], -1))
    assert torch.equal(torch.where(mask, 1.0, 0.0), expected.float())
    assert torch.equal(mask.to(torch.float32), expected.float())
    assert (mask == expected).all()
    assert len({mask, mask}) == 1
    assert not hasattr(mask, "no_such_thing")


def test_a_mask_too_large_for_a_tensor_says_so():
    mask = mask_function(batch_size=1, q_length=100_000, kv_length=100_000)
    with pytest.raises(UnavailableError, match=r"attention_mask.*10,000,000,000 bytes"):
        mask[0]


def test_a_mask_made_already_comes_back():
    mask = made()
    assert made(attention_mask=mask) is mask


def test_everything_is_no_mask():
    everything = masking_utils.bidirectional_mask_function
    assert made(mask_function=everything, allow_is_bidirectional_skip=True) is None
    assert made(mask_function=everything).mask is None
    assert bool(made(mask_function=everything).all())

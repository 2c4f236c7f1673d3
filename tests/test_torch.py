"""Random calls beside PyTorch's scaled_dot_product_attention, taken in float64."""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from chumoku import Causal, attention

CALLS = 200

# Error in norm that each dtype may have: its own rounding of the output, and sums in float32.
UNITS = {
    torch.float64: 1e-14,
    torch.float32: 2e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 6e-3,
}


def drawn(number):
    """One random call: query, key, value and the options of both libraries."""
    random = np.random.default_rng([2718, number])
    seeded = torch.Generator().manual_seed(number)
    dtype = list(UNITS)[number % 4]
    lead = tuple(int(n) for n in random.integers(1, 4, random.integers(0, 3)))
    kv_heads, group = int(random.integers(1, 4)), int(random.integers(1, 4))
    queries, keys = (int(n) for n in random.integers(1, 90, 2))
    width, value_width = (int(n) for n in random.integers(1, 80, 2))

    def tensor(heads, length, size):
        x = torch.randn((*lead, heads, length, size), dtype=torch.float64, generator=seeded)
        return x.to(dtype)

    q = tensor(kv_heads * group, queries, width)
    k, v = tensor(kv_heads, keys, width), tensor(kv_heads, keys, value_width)
    if random.random() < 0.3:
        q, k, v = (x.mT.contiguous().mT for x in (q, k, v))
    whole = (*lead, kv_heads * group, queries, keys)
    shape = tuple(n if random.random() < 0.6 else 1 for n in whole)[int(random.integers(3)) :]
    cells = torch.rand(shape, generator=seeded) < random.choice([0.1, 0.5, 0.95])
    bias = torch.randn(shape, generator=seeded).to(dtype)
    theirs, ours = [
        ({}, {}),
        ({"is_causal": True}, {"mask": Causal(0)}),
        ({"attn_mask": cells}, {"mask": cells}),
        ({"attn_mask": bias}, {"bias": bias}),
        ({"attn_mask": bias.masked_fill(~cells, -torch.inf)}, {"bias": bias, "mask": cells}),
        ({"attn_mask": bias.masked_fill(~cells, -torch.inf)},) * 2,
    ][random.integers(6)]
    if theirs is ours:
        ours = {"bias": theirs["attn_mask"]}
    if random.random() < 0.5:
        scale = float(random.normal())
        theirs, ours = {**theirs, "scale": scale}, {**ours, "scale": scale}
    return (q, k, v), theirs, ours


@pytest.mark.parametrize("number", range(CALLS))
def test_a_random_call(number):
    tensors, theirs, ours = drawn(number)
    wide = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in theirs.items()
    }
    wanted = scaled_dot_product_attention(*(x.double() for x in tensors), enable_gqa=True, **wide)
    found = attention(*tensors, **ours)
    dtype = tensors[0].dtype
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    assert torch.isfinite(found).all()
    assert (found.double() - wanted).norm() <= UNITS[dtype] * (1 + wanted.norm())


@pytest.mark.parametrize("dtype", UNITS, ids=str)
def test_rows_that_see_nothing_are_zero_in_both(dtype):
    q, k, v = (torch.randn(2, 5, 8).to(dtype) for _ in range(3))
    cells = torch.ones(5, 5, dtype=torch.bool)
    cells[[0, 3]] = False
    for options in (
        {"mask": cells},
        {"bias": torch.zeros(5, 5, dtype=dtype).masked_fill(~cells, -torch.inf)},
    ):
        theirs = scaled_dot_product_attention(q, k, v, attn_mask=next(iter(options.values())))
        ours = attention(q, k, v, **options)
        for output in (theirs, ours):
            assert (output[:, [0, 3]] == 0).all()
            assert (output[:, [1, 2, 4]] != 0).all()


def test_the_draws_reach_every_case():
    seen = [drawn(number) for number in range(CALLS)]
    names = [tuple(theirs) for _, theirs, _ in seen]
    assert {(), ("is_causal",), ("attn_mask",), ("attn_mask", "scale")} <= set(names)
    assert any(q.shape[-3] > k.shape[-3] > 1 for (q, k, _), _, _ in seen)
    masks = [theirs["attn_mask"] for _, theirs, _ in seen if "attn_mask" in theirs]
    hidden = [~m if m.dtype == torch.bool else m == -torch.inf for m in masks]
    assert any(h.all(dim=-1).any() for h in hidden), "a row that sees nothing"

"""chumoku.torch.attention: gradients, transforms, compilers."""

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.library import opcheck

import chumoku
import chumoku.torch
from chumoku import Causal, Custom, Documents, Dropout, Lengths, Prefix, Watch, Window
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.torch.forms import form_of, mask_of

pytestmark = [
    # Both are said by PyTorch about itself.
    pytest.mark.filterwarnings("ignore:.*is deprecated.*"),
    pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning"),
]

attention = chumoku.torch.attention


def tensors(*shapes, dtype=torch.float64, seed=0):
    seeded = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, dtype=dtype, generator=seeded) for shape in shapes]
    return [x.requires_grad_() for x in made]


SHAPES = ((2, 2, 3, 2), (2, 1, 5, 2), (2, 1, 5, 2))
CELLS = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)) < 0.6

OPTIONS = {
    "plain": {},
    "causal": {"mask": Causal()},
    "blind rows": {"mask": Causal(-2)},
    "padding and window": {"mask": Lengths([5, 3]) & (Window(2, 2) | Prefix(1))},
    "cells": {"mask": CELLS},
    "documents": {"mask": Documents([0, 0, 1], [0, 1, 1, 0, 1])},
    "scale": {"scale": -0.6},
    "cap": {"softcap": 1.5},
    "dropout": {"dropout": Dropout(0.3, 1)},
    "all": {"mask": Causal(), "softcap": 2.0, "dropout": Dropout(0.3, 1), "scale": 0.8},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_gradients(option):
    q, k, v, bias, sinks = tensors(*SHAPES, (2, 3, 5), (2,))

    def run(q, k, v, bias, sinks):
        return attention(q, k, v, bias=bias, sinks=sinks, **OPTIONS[option])

    assert gradcheck(run, (q, k, v, bias, sinks))
    assert gradcheck(lambda *a: run(*a, None, None), (q, k, v))
    assert gradgradcheck(run, (q, k, v, bias, sinks))


def test_gradients_of_facts():
    def facts(q, k, v):
        output, seen = attention(q, k, v, mask=Causal(), watch=Watch(entropy=True, top=2))
        assert not seen.top_weights.requires_grad
        assert not seen.max_logit.requires_grad
        return output, seen.lse, seen.entropy

    assert gradcheck(facts, tensors(*SHAPES))
    assert gradgradcheck(facts, tensors(*SHAPES))
    q, k, v = tensors(*SHAPES)
    attention(q, k, v, watch=Watch(entropy=True))[1].entropy.sum().backward()
    assert v.grad is None or not v.grad.any()
    assert q.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [((3, 5), (4, 5), (4, 6)), ((2, 4, 9, 8),) * 3], ids=str)
def test_the_same_numbers_as_without_gradients(shape, dtype):
    q, k, v = tensors(*shape, dtype=dtype)
    plain = chumoku.attention(q.detach(), k.detach(), v.detach())
    output = attention(q, k, v)
    assert output.requires_grad
    assert torch.equal(output, plain)
    output.float().sum().backward()
    for x in (q, k, v):
        assert x.grad.dtype == dtype
        assert x.grad.isfinite().all()


def test_custom_masks_train():
    q, k, v = tensors(*SHAPES)
    ours = attention(q, k, v, mask=Custom(lambda b, h, i, j: j <= i))
    theirs = attention(q, k, v, mask=Causal(0))
    for one, two in zip(
        torch.autograd.grad(ours.sum(), (q, k, v)),
        torch.autograd.grad(theirs.sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.allclose(one, two)


def test_only_what_is_wanted_has_a_gradient():
    q, k, v = tensors(*SHAPES)
    k.requires_grad_(False)
    attention(q, k, v).sum().backward()
    assert k.grad is None
    assert q.grad is not None


def arguments(q, k, v, bias=None, sinks=None, tables=(), form="", watched=False):
    options = (bias, sinks, list(tables), form, 0.5, 0.0, 0.0, 0)
    watch = (2, True, True, True, True, None, 2, 3) if watched else (0, *[False] * 4, None, 0, 0)
    return q, k, v, *options, *watch, ""


CALLS = {
    "plain": lambda: arguments(*tensors(*SHAPES)),
    "one head": lambda: arguments(*tensors((5, 3), (7, 3), (7, 2))),
    "broadcast": lambda: arguments(*tensors((3, 1, 4, 5, 3), (2, 4, 7, 3), (2, 4, 7, 2))),
    "all": lambda: arguments(
        *tensors(*SHAPES, (2, 1, 5), (2,)), [CELLS], form_of(CELLS, []), watched=True
    ),
    "heads inside": lambda: arguments(
        *(
            x.detach().transpose(1, 2).requires_grad_()
            for x in tensors((2, 5, 4, 3), (2, 7, 4, 3), (2, 7, 4, 2))
        )
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    results = opcheck(torch.ops.chumoku.attention.default, CALLS[name]())
    assert set(results.values()) == {"SUCCESS"}
    assert len(results) == 4


def compiled_cases():
    mask, watch = Window(3, 0), Watch(entropy=True, received=True)
    return {
        "plain": lambda q, k, v: attention(q, k, v),
        "causal": lambda q, k, v: attention(q, k, v, mask=Causal(), softcap=2.0),
        "cells": lambda q, k, v: attention(q, k, v, mask=torch.ones(3, 5, dtype=torch.bool)),
        "mask from outside": lambda q, k, v: attention(q, k, v, mask=mask),
        "watch": lambda q, k, v: attention(q, k, v, watch=watch)[1].received,
        "with more": lambda q, k, v: torch.relu(attention(q * 2, k, v) + 1),
    }


@pytest.mark.parametrize("name", compiled_cases())
def test_compiled_in_one_graph(name):
    torch._dynamo.reset()
    run = compiled_cases()[name]
    compiled = torch.compile(run, fullgraph=True)
    q, k, v = tensors(*SHAPES, dtype=torch.float32)
    assert torch.allclose(compiled(q, k, v), run(q, k, v), atol=1e-6)
    if name == "watch":
        return
    ours = torch.autograd.grad(compiled(q, k, v).sum(), (q, k, v))
    theirs = torch.autograd.grad(run(q, k, v).sum(), (q, k, v))
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one, two, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(compiled(q, k, v), run(q, k, v), atol=1e-6)


class Module(torch.nn.Module):
    def forward(self, q, k, v):
        return attention(q, k, v, mask=Causal())


def test_exported():
    inputs = tuple(x.detach() for x in tensors(*SHAPES))
    program = torch.export.export(Module(), inputs)
    assert torch.equal(program.module()(*inputs), Module()(*inputs))


@pytest.mark.parametrize("axis", [0, 1])
def test_vmap(axis):
    q, k, v = (x.detach() for x in tensors((3, 2, 4, 5, 8), (3, 2, 4, 7, 8), (3, 2, 4, 7, 6)))
    keys, values = k[0, 0], v[0, 0]
    apart = [attention(q.select(axis, i), keys, values) for i in range(q.shape[axis])]
    together = torch.vmap(lambda x: attention(x, keys, values), in_dims=axis)(q)
    assert torch.allclose(together, torch.stack(apart))
    apart = [attention(*(x.select(axis, i) for x in (q, k, v))) for i in range(q.shape[axis])]
    together = torch.vmap(attention, in_dims=axis)(q, k, v)
    assert torch.allclose(together, torch.stack(apart))


def test_vmap_of_one_head_masks_biases_and_facts():
    q, k, v = (x.detach() for x in tensors((3, 5, 8), (3, 7, 8), (7, 6)))
    cells, bias = torch.rand(3, 5, 7) < 0.7, torch.randn(3, 5, 7, dtype=torch.float64)

    def run(q, k, cells, bias):
        output, seen = attention(q, k, v, mask=cells, bias=bias, watch=Watch(top=2))
        return output, seen.lse, seen.top_keys

    found = torch.vmap(run)(q, k, cells, bias)
    for i in range(3):
        alone = run(q[i], k[i], cells[i], bias[i])
        for one, two in zip(found, alone, strict=True):
            assert torch.allclose(one[i], two)
    biased = torch.vmap(lambda b: attention(q[0], k[0], v, bias=b))(bias)
    assert torch.allclose(biased[1], attention(q[0], k[0], v, bias=bias[1]))


def test_derivatives_of_torch_func_and_forward_mode():
    q, k, v = tensors(*SHAPES)

    def run(q):
        return attention(q, k.detach(), v.detach(), mask=Causal())

    expected = torch.autograd.grad(run(q).sum(), q)[0]
    assert torch.allclose(torch.func.grad(lambda x: run(x).sum())(q.detach()), expected)
    tangent = torch.randn_like(q)
    slope = torch.func.jvp(run, (q.detach(),), (tangent,))[1].sum()
    assert torch.allclose(slope, (expected * tangent).sum())
    with forward_ad.dual_level():
        dual = run(forward_ad.make_dual(q.detach(), tangent))
        assert torch.allclose(forward_ad.unpack_dual(dual).tangent.sum(), slope)


def test_autocast_inference_and_meta():
    q, k, v = tensors(*SHAPES, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = attention(q, k, v)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert q.grad.dtype == torch.float32
    with torch.inference_mode():
        assert torch.equal(attention(q, k, v), chumoku.attention(q, k, v))
    meta = attention(*(x.detach().to("meta") for x in (q, k, v)))
    assert meta.device.type == "meta"
    assert meta.shape == (2, 2, 3, 2)


@pytest.mark.parametrize("option", OPTIONS)
def test_masks_as_text(option):
    mask = OPTIONS[option].get("mask")
    tables = []
    again = mask_of(form_of(mask, tables), tables)
    if mask is None:
        assert again is None
        return
    shape = chumoku.mask.Shape((2,), 2, 3, 5)
    before = chumoku.mask.as_mask(mask).allowed(shape, np.arange(3), np.arange(5))
    assert np.array_equal(before, again.allowed(shape, np.arange(3), np.arange(5)))


class Stranger(torch.Tensor):
    pass


def test_errors():
    q, k, v = tensors(*SHAPES)
    with pytest.raises(UnavailableError, match="query: got a Stranger, a subclass"):
        attention(q.detach().as_subclass(Stranger), k, v)
    with pytest.raises(UnavailableError, match="mask: got a Custom mask"):
        output = attention(q, k, v, mask=Custom(lambda b, h, i, j: j <= i))
        torch.autograd.grad(output.sum(), q, create_graph=True)
    with pytest.raises(UnavailableError, match="kernel: got 'reference'"):
        attention(q, k, v, kernel="reference")
    with pytest.raises(InvalidArgumentError, match="key: got width 1"):
        attention(q, k[..., :1], v)
    with pytest.raises(InvalidTypeError, match="key: got float32"):
        attention(q, k.float(), v)
    with pytest.raises(InvalidTypeError, match="key: got ndarray"):
        attention(q, k.detach().numpy(), v)
    with pytest.raises(UnavailableError, match="watch: got a call in forward mode"):
        torch.func.grad(lambda x: attention(x, k, v, watch=Watch())[0].sum())(q.detach())
    with pytest.raises(UnavailableError, match="keys: got a tensor without plain memory"):
        torch.vmap(lambda x, m: attention(x, k, v, mask=Lengths(m)))(
            q.detach(), torch.tensor([[3, 4], [5, 2]])
        )
    with pytest.raises(UnavailableError, match="sinks: got sinks of each entry of vmap"):
        torch.vmap(lambda x, s: attention(x, k, v, sinks=s))(
            q.detach(), torch.zeros(2, 2, dtype=torch.float64)
        )

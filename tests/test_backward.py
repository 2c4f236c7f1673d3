"""Gradients of every kernel over the same cases, against the definition."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import (
    CASES,
    DTYPES,
    FLOAT32,
    FLOAT64,
    HOST_KERNELS,
    LAYOUTS,
    ZEROS,
    Case,
    bfloat16,
    call,
    one_head,
    poisoned_memory,
)

import chumoku
import chumoku.torch
from chumoku import attention, attention_backward
from chumoku.dropout import Dropout
from chumoku.errors import InvalidArgumentError, InvalidTypeError
from chumoku.kernels import Upstream, native, reference
from chumoku.mask import Causal, Custom, Documents, Lengths, Prefix, Window
from chumoku.statistics import Watch

every_kernel = pytest.mark.parametrize("kernel", HOST_KERNELS, ids=[k.name for k in HOST_KERNELS])

# Error in norm that each dtype may have: sums in float32, and the rounding of the result and of
# the output, which is taken for the exact one.
UNITS = {"float64": 1e-13, "float32": 3e-6, "float16": 2e-3, "bfloat16": 1.6e-2}

SMALL = Case((2, 4, 33, 16), (2, 2, 70, 16), 24)


def upstream_of(made, seed=5, **more):
    shape = (*made.query.shape[:-1], made.value.shape[-1])
    numbers = np.random.default_rng(seed).standard_normal(shape)
    return Upstream(numbers.astype(made.query.dtype), **more)


def assert_gradients(kernel, made, upstream):
    """The kernel's gradients are those of the definition, to rounding."""
    expected = reference.backward(made, upstream)
    with poisoned_memory():
        found = kernel.backward(made, upstream)
    unit = UNITS[made.query.dtype.name]
    # Sums of numbers that cancel are as exact as the numbers in them.
    arrays = (made.query, made.key, made.value, upstream.gradient)
    most = [float(np.abs(a.astype(np.float64)).max(initial=0)) for a in arrays]
    above = float(np.linalg.norm(upstream.gradient.astype(np.float64)))
    terms = above * (1 + most[2]) * (1 + abs(made.scale) * (most[0] + most[1]))
    for name, gradient, exact in zip(expected._fields, found, expected, strict=True):
        if exact is None:
            assert gradient is None
            continue
        assert gradient.shape == exact.shape, name
        gone = np.linalg.norm(gradient.astype(np.float64) - exact)
        assert gone <= unit * (np.linalg.norm(exact) + 0.1 * terms), (name, gone)


@every_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES + ZEROS, ids=str)
def test_cases(kernel, case, dtype):
    made = call(*case.arrays(dtype))
    assert_gradients(kernel, made, upstream_of(made))


@every_kernel
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [SMALL, one_head(9, 13, 5, 3)], ids=str)
def test_layouts(kernel, case, layout, dtype):
    q, k, v = (LAYOUTS[layout](a) for a in case.arrays(dtype))
    made = call(q, k, v, mask=Window(9, 3))
    upstream = upstream_of(made)
    assert_gradients(kernel, made, replace(upstream, gradient=LAYOUTS[layout](upstream.gradient)))


MASKS = {
    "triangle": Causal(0),
    "offset for each entry": Causal(np.array([3, -40])),
    "window": Window(4, 0),
    "narrow window": Window(1, 1, offset=20),
    "padding": Lengths(np.array([50, 0]), np.array([20, 33])),
    "documents": Documents(np.arange(33) // 7, np.arange(70) // 9),
    "scattered documents": Documents(np.arange(33) % 3, np.arange(70) % 4),
    "prefix": Causal(0) | Prefix(np.array([5, 9])),
    "custom": Custom(lambda b, h, i, j: (i * 3 + j * 5 + h + b) % 4 != 0),
    "boolean": np.random.default_rng(0).random((2, 4, 33, 70)) < 0.4,
    "nothing": np.zeros((33, 70), np.bool_),
}


@every_kernel
@pytest.mark.parametrize("dtype", [FLOAT32, bfloat16], ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_masks(kernel, mask, dtype):
    made = call(*SMALL.arrays(dtype), mask=MASKS[mask])
    assert_gradients(kernel, made, upstream_of(made))


def numbers(*shape):
    return np.random.default_rng(9).standard_normal(shape).astype(np.float32)


BIASES = {
    "full": numbers(2, 4, 33, 70),
    "of heads": numbers(4, 33, 70),
    "of entries": numbers(2, 1, 33, 70),
    "one for all": numbers(33, 70),
    "of keys": numbers(2, 1, 1, 70),
    "of queries": numbers(2, 4, 33, 1),
    "of queries alone": numbers(33, 1),
    "one number": numbers(),
    "one for each head": numbers(4, 1, 1),
}
BIASES["that hides"] = np.where(numbers(4, 33, 70) < -1, -np.inf, numbers(4, 33, 70))
BIASES["hiding rows"] = np.where(np.arange(33)[:, None] % 4 == 0, -np.inf, numbers(33, 70))

OPTIONS = {
    **{f"bias {name}": {"bias": bias} for name, bias in BIASES.items()},
    "bias and triangle": {"bias": numbers(4, 33, 70), "mask": Causal(0)},
    "scale": {"scale": -0.7},
    "scale of nothing": {"scale": 0.0},
    "tiny scale": {"scale": 1e-35},
    "cap": {"softcap": 0.8},
    "cap, bias and window": {"softcap": 1.5, "bias": numbers(33, 70), "mask": Window(9, 9)},
    "sinks": {"sinks": np.array([-1, 0, 2, 30], np.float32)},
    "sinks and blind rows": {"sinks": np.ones(4, np.float32), "mask": Causal(-20)},
    "dropout": {"dropout": Dropout(0.4, 7)},
    "dropout, cap, bias": {
        "dropout": Dropout(0.4, 7),
        "softcap": 2.0,
        "bias": numbers(4, 33, 70),
        "mask": Causal(),
    },
}


@every_kernel
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_options(kernel, option, dtype):
    options = dict(OPTIONS[option])
    for name in ("bias", "sinks"):
        if name in options:
            options[name] = options[name].astype(dtype)
    shape = options["bias"].shape if "bias" in options else ()
    made = call(*SMALL.arrays(dtype), **options)
    assert_gradients(kernel, made, upstream_of(made, bias_shape=shape))


@every_kernel
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("option", ["plain", "sinks", "cap", "bias hiding rows", "scale"])
def test_gradients_of_lse_and_entropy(kernel, option, dtype):
    options = dict(OPTIONS.get(option, {}))
    for name in ("bias", "sinks"):
        if name in options:
            options[name] = options[name].astype(dtype)
    shape = options["bias"].shape if "bias" in options else ()
    made = call(*SMALL.arrays(dtype), **options)
    d_lse, d_entropy = np.random.default_rng(2).standard_normal((2, 2, 4, 33)).astype(dtype)
    for given in ({"lse_gradient": d_lse}, {"entropy_gradient": d_entropy}):
        assert_gradients(kernel, made, upstream_of(made, bias_shape=shape, **given))


@pytest.mark.parametrize("options", [{}, {"mask": Causal(0)}, {"sinks": np.ones(4)}], ids=str)
def test_definition_of_the_gradients_of_facts(options):
    """Central differences of sum(lse * a) and sum(entropy * b), in extended precision."""
    case = Case((2, 4, 5, 3), (2, 2, 7, 3), 2)
    made = replace(call(*case.arrays(FLOAT64), **options), watch=Watch(entropy=True))
    d_lse, d_entropy = np.random.default_rng(2).standard_normal((2, 2, 4, 5))
    found = reference.gradients(
        made, np.zeros((2, 4, 5, 2)), lse_gradient=d_lse, entropy_gradient=d_entropy
    )
    step = np.longdouble(1e-7)
    for name in ("query", "key", "sinks"):
        at = getattr(made, name)
        if at is None:
            continue
        direction = np.random.default_rng(3).standard_normal(at.shape)
        sums = []
        for sign in (1, -1):
            moved = replace(made, **{name: at + sign * step * direction})
            facts = reference.compute(moved, np.longdouble)[1]
            sums.append((facts["lse"] * d_lse).sum() + (facts["entropy"] * d_entropy).sum())
        slope = float((sums[0] - sums[1]) / (2 * step))
        gradient = float((getattr(found, name) * direction).sum())
        assert gradient == pytest.approx(slope, rel=1e-8, abs=1e-10)


BIT_CASES = {
    "one head": (Case((1, 300, 16), (1, 700, 16), 16), {"mask": Causal()}),
    "groups": (Case((6, 70, 8), (2, 400, 8), 24), {}),
    "shared bias": (Case((2, 4, 70, 8), (2, 2, 300, 8), 8), {"bias": numbers(70, 300)}),
    "bias of keys": (Case((2, 4, 70, 8), (2, 2, 300, 8), 8), {"bias": numbers(300)}),
    "bias of queries": (Case((3, 4, 70, 8), (3, 4, 300, 8), 8), {"bias": numbers(4, 70, 1)}),
    "dropout": (Case((3, 70, 8), (3, 300, 8), 8), {"dropout": Dropout(0.5, 3)}),
}


@pytest.mark.parametrize("name", BIT_CASES)
def test_same_bits_for_any_number_of_threads(name):
    case, options = BIT_CASES[name]
    q, k, v = case.arrays()
    above = np.random.default_rng(1).standard_normal((*q.shape[:-1], v.shape[-1])).astype(q.dtype)
    found = []
    before = chumoku.get_threads()
    try:
        for threads in (1, 2, 3, 8, 2):
            chumoku.set_threads(threads)
            found.append(attention_backward(above, q, k, v, **options))
    finally:
        chumoku.set_threads(before)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert (one is None and two is None) or one.tobytes() == two.tobytes()


@every_kernel
@pytest.mark.parametrize("wild", [np.nan, np.inf])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_what_is_hidden_is_not_felt(kernel, wild, cap):
    case = Case((2, 4, 90, 20), (2, 2, 150, 20), 12)
    q, k, v = case.arrays()
    options = {"mask": Causal(0) & Lengths(77) & Window(99, 0, offset=-1), "softcap": cap}
    made = call(q, k, v, **options)
    upstream = upstream_of(made)
    clean = kernel.backward(made, upstream)
    # Keys from 77 on are hidden from all, query 0 sees none; query 60 hides from keys after it.
    k[..., 77:, :] = v[..., 77:, :] = wild
    upstream.gradient[..., 0, :] = q[..., 0, :] = wild
    dirty = kernel.backward(call(q, k, v, **options), upstream)
    for name in ("query", "key", "value"):
        assert np.array_equal(getattr(clean, name), getattr(dirty, name)), name
    upstream.gradient[..., 60, :] = wild
    dirty = kernel.backward(call(q, k, v, **options), upstream)
    for name in ("key", "value"):
        spoilt = ~np.isfinite(getattr(dirty, name)).all(axis=(0, 1, 3))
        assert np.array_equal(spoilt, np.arange(150) < 60), name
    spoilt = ~np.isfinite(dirty.query).all(axis=(0, 1, 3))
    assert np.array_equal(spoilt, np.arange(90) == 60)


@every_kernel
def test_a_bias_whose_gradient_is_not_wanted(kernel):
    q, k, v = SMALL.arrays()
    above, bias = numbers(2, 4, 33, 24), numbers(4, 33, 70)
    both = [
        attention_backward(above, q, k, v, bias=bias, bias_gradient=wanted, kernel=kernel.name)
        for wanted in (True, False)
    ]
    assert both[0].bias.shape == bias.shape
    assert both[1].bias is None
    for one, two in zip(both[0][:3], both[1][:3], strict=True):
        assert np.array_equal(one, two)
    with pytest.raises(InvalidTypeError, match="bias_gradient: got 1, expected True or False"):
        attention_backward(above, q, k, v, bias=bias, bias_gradient=1)


def test_known_output_and_lse_spare_a_pass():
    q, k, v = SMALL.arrays()
    output, seen = attention(q, k, v, watch=Watch())
    above = numbers(*output.shape)
    bare = attention_backward(above, q, k, v)
    told = attention_backward(above, q, k, v, output=output, lse=seen.lse)
    for one, two in zip(bare[:3], told[:3], strict=True):
        assert np.abs(one - two).max() < 1e-5
    # They are believed: a larger lse makes all weights smaller.
    wrong = attention_backward(above, q, k, v, output=output, lse=seen.lse + np.float32(1))
    assert np.abs(wrong.value * np.exp(1) - bare.value).max() < 1e-4


def test_pytorch_tensors_get_gradients_of_their_shapes_and_dtypes():
    torch = pytest.importorskip("torch")
    q, k, v = (torch.randn(*shape) for shape in ((3, 1, 6, 10, 5), (4, 3, 11, 5), (4, 3, 11, 9)))
    bias, sinks = torch.randn(1, 6, 10, 1), torch.randn(6)
    above = torch.randn(3, 4, 6, 10, 9)
    found = attention_backward(above, q, k, v, bias=bias, sinks=sinks)
    for gradient, array in zip(found, (q, k, v, bias, sinks), strict=True):
        assert type(gradient) is torch.Tensor
        assert gradient.shape == array.shape
        assert gradient.dtype == array.dtype
    halves = [x.bfloat16() for x in (above, q, k, v)]
    for gradient, exact in zip(attention_backward(*halves)[:3], found, strict=False):
        assert gradient.dtype == torch.bfloat16
        assert gradient.shape == exact.shape


def test_pytorch_autograd_agrees():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 40, 16, requires_grad=True) for _ in range(3))
    bias = torch.randn(3, 40, 40, requires_grad=True)
    output = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    above = torch.randn_like(output)
    theirs = torch.autograd.grad(output, (q, k, v, bias), above)
    ours = attention_backward(above, *(x.detach() for x in (q, k, v)), bias=bias.detach())
    for one, two in zip(ours, theirs, strict=False):
        assert torch.allclose(one, two, atol=2e-5)


BAD = {
    "output_gradient": (numbers(2, 4, 33, 23), InvalidArgumentError, "(2, 4, 33, 24)"),
    "output": (numbers(2, 4, 32, 24), InvalidArgumentError, "(2, 4, 33, 24)"),
    "lse": (numbers(2, 4, 32), InvalidArgumentError, "(2, 4, 33)"),
    "lse_gradient": (numbers(2, 4, 33).astype(np.float64), InvalidTypeError, "float32"),
    "entropy_gradient": (numbers(4, 33), InvalidArgumentError, "(2, 4, 33)"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    wrong, kind, expected = BAD[name]
    given = {"output_gradient": numbers(2, 4, 33, 24), name: wrong}
    above = given.pop("output_gradient")
    with pytest.raises(kind) as caught:
        attention_backward(above, *SMALL.arrays(), **given)
    assert str(caught.value).startswith(name)
    assert expected in str(caught.value)


def test_memory_grows_with_the_length_not_with_its_square():
    code = """
import numpy as np, resource, chumoku
rng = np.random.default_rng(0)
arrays = rng.standard_normal((4, 16384, 8), dtype=np.float32)
options = {"bias": arrays[0, :, 0], "dropout": chumoku.Dropout(0.1, 1), "softcap": 5.0}
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
chumoku.attention_backward(*arrays[:, :256], softcap=5.0)
before = peak()
chumoku.attention_backward(*arrays, mask=chumoku.Window(700, 0), **options)
print(peak() - before)
"""
    given = {**os.environ, "CHUMOKU_NUM_THREADS": "2"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=given)
    assert float(done.stdout) < 32, done.stderr  # MiB; one matrix of scores would be 1024


def test_custom_masks_are_taken_in_slabs(monkeypatch):
    mask = Custom(lambda b, h, i, j: (i + j) % 3 != 0)
    made = call(*Case((2, 200, 8), (2, 90, 8), 8).arrays(), mask=mask)
    upstream = upstream_of(made)
    whole = native.backward(made, upstream)
    monkeypatch.setattr(native, "HELD_SCORES", 1)
    for one, two in zip(whole[:3], native.backward(made, upstream)[:3], strict=True):
        assert np.abs(one - two).max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", [None, Causal(), Window(40, 40)], ids=str)
@pytest.mark.parametrize("shift", [0, 50])
def test_gradients_of_16_bits_are_rounded_once(dtype, mask, shift):
    """A part that all values share cancels in the gradients of query and key, not in the output."""
    random = torch.Generator().manual_seed(1)
    q, k, v, above = (torch.randn(2, 4, 130, 32, generator=random) for _ in range(4))
    halves = [x.to(dtype) for x in (q, k, v + shift, above)]
    exact = gradients(*(x.double().numpy() for x in halves), mask)
    leaves = [x.requires_grad_() for x in halves[:3]]
    output = chumoku.torch.attention(*leaves, mask=mask)
    for found, wanted in zip(torch.autograd.grad(output, leaves, halves[3]), exact, strict=True):
        wanted = torch.from_numpy(wanted)
        floor = (wanted.to(dtype).double() - wanted).norm()
        assert (found.double() - wanted).norm() <= 1.01 * floor


def gradients(q, k, v, above, mask):
    return attention_backward(above, q, k, v, mask=mask, kernel="reference")[:3]

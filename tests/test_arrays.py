"""The kinds of arrays: each goes in without a copy and comes out as it came, or is refused."""

import array as buffers
import random
import subprocess
import sys
import warnings
from types import SimpleNamespace

import array_api_strict as strict
import ml_dtypes
import numpy as np
import pytest
import torch
from cases import DTYPES, FLOAT32, LAYOUTS, Case
from strange import anything, outcome
from torch._subclasses.fake_tensor import FakeTensorMode

from chumoku import Causal, UnavailableError, Watch, attention, recording, weights
from chumoku.arrays import BOOLEANS, MOST_AXES, any_array, array_of, guest_of, memory_of
from chumoku.errors import InvalidArgumentError, InvalidTypeError
from chumoku.kernels import reference

# `chumoku.attention` is the function; this is the module that chooses its kernel.
module = sys.modules["chumoku.attention.call"]

CASE = Case((2, 4, 5, 8), (2, 2, 7, 8), 6)
Q, K, V = CASE.arrays()
BIAS = np.random.default_rng(1).standard_normal((5, 7)).astype(np.float32)
EVERYTHING = Watch(
    top=3,
    entropy=True,
    saturation=True,
    distance=True,
    received=True,
    groups=np.arange(7) % 3,
    picture=(2, 3),
)


def tensor(array):
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def numbers(found):
    """Any kind of array as NumPy's."""
    if isinstance(found, Jaxlike):
        return found.held
    if not isinstance(found, torch.Tensor):
        return found if isinstance(found, np.ndarray) else np.from_dlpack(found)
    if found.dtype == torch.bfloat16:
        return found.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return found.numpy()


class Jaxlike:
    """An array of the standard which can hand bfloat16 over through __array__ alone, as JAX's."""

    device = "cpu:0"

    def __init__(self, array):
        self.held = array

    @classmethod
    def asarray(cls, array, *, device):
        assert device == cls.device
        return cls(array)

    def __array_namespace__(self):
        return SPACE

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **_):
        raise BufferError("bfloat16 is beyond DLPack")

    def __array__(self, dtype=None, copy=None):
        return self.held


SPACE = SimpleNamespace(__name__="jaxlike", asarray=Jaxlike.asarray)

KINDS = {
    "numpy": (np.asarray, np.ndarray),
    "torch": (tensor, torch.Tensor),
    "strict": (strict.asarray, strict.asarray(0).__class__),
    "jaxlike": (Jaxlike, Jaxlike),
}
FITTING = [
    (kind, dtype)
    for kind in KINDS
    for dtype in DTYPES
    if kind != "strict" or dtype.name in ("float32", "float64")
]


def facts_of(seen):
    for name, fact in seen.facts().items():
        if name == "picture":
            yield from ((f"picture {i}", part) for i, part in enumerate(fact))
        else:
            yield name, fact


# In and out


@pytest.mark.parametrize(("kind", "dtype"), FITTING, ids=str)
def test_what_comes_in_goes_out(kind, dtype):
    make, out = KINDS[kind]
    arrays, bias = CASE.arrays(dtype), BIAS.astype(dtype)
    some = {"mask": Causal()}
    every = {"bias": bias, "sinks": np.array(bias[0, :4]), "watch": EVERYTHING}
    for options in (some, every):
        wanted = attention(*arrays, **options)
        for name in {"bias", "sinks"} & options.keys():
            options[name] = make(options[name])
        found = attention(*map(make, arrays), **options)
        if "watch" not in options:
            wanted, found = (wanted, None), (found, None)
        assert type(found[0]) is out
        assert numbers(found[0]).dtype == dtype
        assert np.array_equal(numbers(found[0]), wanted[0])
        if found[1] is not None:
            for (name, mine), (_, theirs) in zip(
                facts_of(found[1]), facts_of(wanted[1]), strict=True
            ):
                assert type(mine) is out, name
                assert numbers(mine).dtype == theirs.dtype, name
                assert np.array_equal(numbers(mine), theirs), name


@pytest.mark.parametrize(("kind", "dtype"), FITTING, ids=str)
def test_weights_of_every_kind(kind, dtype):
    make, out = KINDS[kind]
    q, k, v = CASE.arrays(dtype)
    _, seen = attention(q, k, v, mask=Causal(), watch=Watch())
    for lse in (None, seen.lse):
        wanted = weights(q, k, rows=[0, 4], mask=Causal(), lse=lse)
        given = None if lse is None else make(lse)
        found = weights(make(q), make(k), rows=make(np.array([0, 4])), mask=Causal(), lse=given)
        assert type(found) is out
        assert np.array_equal(numbers(found), wanted)
        assert wanted.dtype == (np.float64 if dtype == np.float64 else np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_shared_not_copied(kind, monkeypatch):
    seen = []
    spy = SimpleNamespace(
        name="spy",
        refuses=lambda made: None,
        run=lambda made: (seen.append(made), reference.run(made))[1],
    )
    monkeypatch.setattr(module, "KERNELS", (spy,))
    make, _ = KINDS[kind]
    for dtype in [dtype for name, dtype in FITTING if name == kind]:
        q, k, v = CASE.arrays(dtype)
        cells = np.ones((5, 7), bool)
        attention(make(q), make(k), make(v), bias=make(BIAS.astype(dtype)), mask=make(cells))
        made = seen.pop()
        for mine, theirs in ((made.query, q), (made.key, k), (made.value, v)):
            assert np.shares_memory(mine, theirs) or kind == "strict"
        if kind == "strict":
            one = strict.asarray(q)
            assert np.shares_memory(guest_of(one).array("query", one), one._array)
        assert made.bias.strides[:2] == (0, 0)
        assert kind == "strict" or np.shares_memory(made.mask.array, cells)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_an_array_that_speaks_dlpack(layout):
    """Where DLPack does not take the strides, __array__ does; both give the same numbers."""
    # asarray of the standard copies what another library holds, so the layout is put inside.
    given = []
    for array in map(LAYOUTS[layout], CASE.arrays()):
        one = strict.asarray(0.0)
        one._array = array
        given.append(one)
    wanted = attention(*(a._array for a in given), mask=Causal())
    assert np.array_equal(numbers(attention(*given, mask=Causal())), wanted)


def test_tensors_that_are_not_contiguous():
    q, k, v = map(tensor, CASE.arrays())
    wanted = attention(q, k, v, mask=torch.ones(5, 7).bool())
    inside = [a.transpose(1, 2).contiguous().transpose(1, 2) for a in (q, k, v)]
    turned = [a.mT.contiguous().mT for a in (q, k, v)]
    strided = [torch.stack([a, a], dim=-1)[..., 1] for a in (q, k, v)]
    for layout in (inside, turned, strided):
        assert not any(a.is_contiguous() for a in layout)
        assert torch.equal(attention(*layout), wanted)
    one = torch.randn(4, 1, 8).expand(4, 5, 8)
    assert torch.equal(attention(one, k[0], v[0]), attention(one.clone(), k[0], v[0]))


def test_masks_and_positions_may_be_of_another_kind():
    cells = np.random.default_rng(2).random((5, 7)) < 0.5
    wanted = attention(Q, K, V, mask=cells)
    for make in (tensor, strict.asarray, Jaxlike):
        assert np.array_equal(attention(Q, K, V, mask=make(cells)), wanted)
        found = weights(Q, K, keys=make(np.array([6, -7])))
        assert np.array_equal(found, weights(Q, K, keys=[6, 0]))
    assert torch.equal(attention(*map(tensor, (Q, K, V)), mask=cells), tensor(wanted))


def test_the_device_of_the_query_is_kept():
    device = strict.Device("device1")
    x = strict.asarray(Q, device=device)
    output, seen = attention(x, x, x, watch=Watch(top=2))
    assert {output.device, seen.lse.device, seen.top_keys.device} == {device}


def test_blocks_of_a_recording_have_the_callers_kind():
    for kind in ("numpy", "torch", "strict"):
        make, out = KINDS[kind]
        with recording(inputs=True) as run:
            attention(make(Q[0]), make(K[0]), make(V))
        block = run[0].weights(rows=[1])
        assert type(block) is out
        assert block.shape == (2, 4, 1, 7)


# NumPy


def test_subclasses_are_read_as_the_plain_arrays_they_are(tmp_path):
    class Tagged(np.ndarray):
        shape = dtype = property(lambda self: 1 / 0)

    held = np.memmap(tmp_path / "query", np.float32, mode="w+", shape=Q.shape)
    held[...] = Q
    found = attention(held, np.asarray(K), V)
    assert type(found) is np.ndarray
    assert np.array_equal(found, attention(Q, K, V))
    tagged = np.ndarray.__new__(Tagged, Q.shape, np.float32, buffer=Q.copy())
    assert np.array_equal(attention(tagged, K, V), found)


def test_read_only_and_misaligned_memory():
    for layout in ("read_only", "misaligned", "backwards", "one_row"):
        arrays = [LAYOUTS[layout](a) for a in CASE.arrays()]
        wanted = attention(*(a.copy() for a in arrays))
        assert np.array_equal(attention(*arrays), wanted), layout


@pytest.mark.parametrize("rank", [2, 3, 4, 5, 6, 7, 20, MOST_AXES])
def test_any_number_of_axes(rank):
    lead = (3, 2)[: max(0, rank - 3)]
    shape = (1,) * (rank - 2 - len(lead) - (rank > 2)) + lead + (4,) * (rank > 2)
    q, k = np.ones((*shape, 5, 8), np.float32), np.ones((*shape, 7, 8), np.float32)
    bias = np.zeros((*shape, 5, 7), np.float32)
    for options in ({}, {"bias": bias, "sinks": np.zeros(shape[-1] if shape else 1, np.float32)}):
        output, seen = attention(q, k, k, mask=Causal(), watch=EVERYTHING, **options)
        assert output.shape == q.shape
        assert seen.lse.shape == q.shape[:-1]
        assert weights(q, k, lse=None if options else seen.lse, **options).shape == bias.shape


def test_too_many_axes():
    for make in (np.ones, torch.ones):
        for rank in (MOST_AXES + 1, 64):
            x = make((1,) * rank)
            with pytest.raises(InvalidArgumentError, match=f"query: got {rank} axes"):
                attention(x, x, x)
    with pytest.raises(InvalidArgumentError, match="got 70 axes, expected at most 32 axes"):
        attention(*[torch.ones((1,) * 70)] * 3)


# What is no array here


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        ([[1.0]], "got list, .* np.asarray"),
        (((1.0,), (2.0, 3.0)), "got tuple, .* np.asarray"),
        (1.5, "got float"),
        (np.float32(1), "got float32"),
        (None, "got NoneType, expected a NumPy array, a PyTorch tensor or an array that speaks"),
        (memoryview(b"abcd"), r"got memoryview, .* np.asarray\(...\) makes"),
        (buffers.array("f", [1.0]), r"got array, .* np.asarray\(...\) makes"),
        (SimpleNamespace(shape=(2, 2), dtype="float32"), "got SimpleNamespace"),
        (type("Frame", (), {"to_numpy": None})(), r"got Frame, .*\.to_numpy\(\) makes"),
        (type("Alone", (), {"__dlpack__": None})(), r"got Alone, .*np.from_dlpack"),
        (type("Traced", (), {"__array_namespace__": None})(), r"got Traced, .*Inside jax.jit"),
        (np.ma.masked_array(Q), r"got a masked array, .*array.filled"),
        (np.ndarray.__new__(np.matrix, (1, 1)), r"got a matrix, .* np.asarray\(matrix\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_arrays(thing, words):
    for name, arrays in (
        ("query", (thing, K, V)),
        ("key", (Q, thing, V)),
        ("value", (Q, K, thing)),
    ):
        with pytest.raises(InvalidTypeError, match=f"{name}: {words}"):
            attention(*arrays)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_not_mixed(kind):
    make, _ = KINDS[kind]
    for other, (make_other, _) in KINDS.items():
        if other != kind:
            with pytest.raises(InvalidTypeError, match="key: got .*, as the query is. Make all"):
                attention(make(Q), make_other(K), make(V))
            with pytest.raises(InvalidTypeError, match="bias: got .*, as the query is. Make all"):
                attention(make(Q), make(K), make(V), bias=make_other(BIAS))


def test_arrays_on_other_devices():
    class Elsewhere(Jaxlike):
        device = "<CUDA Device 0>"

        def __dlpack_device__(self):
            return 2, 0

    with pytest.raises(UnavailableError, match=r"query: got an array on <CUDA Device 0>, expected"):
        attention(*map(Elsewhere, (Q, K, V)))


def test_memory_that_nobody_hands_over():
    class Deleted(Jaxlike):
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("the array was deleted")

    class Odd(Jaxlike):
        __array__ = None

    for kind, words in ((Deleted, "the array was deleted"), (Odd, "")):
        with pytest.raises(UnavailableError, match=f"an array that NumPy cannot read .*{words}"):
            attention(*map(kind, (Q, K, V)))


def test_an_arrays_own_error_comes_through():
    class Broken(Jaxlike):
        def __dlpack__(self, **_):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        attention(*map(Broken, (Q, K, V)))


# PyTorch


def test_gradients_are_never_lost_in_silence():
    q, k, v = map(tensor, CASE.arrays())
    for position, name in enumerate(("query", "key", "value")):
        arrays = [q, k, v]
        arrays[position] = arrays[position].clone().requires_grad_()
        with pytest.raises(
            UnavailableError, match=f"{name}: got a tensor that requires a gradient"
        ):
            attention(*arrays)
        with torch.no_grad():
            assert torch.equal(attention(*arrays), attention(q, k, v))
    with pytest.raises(UnavailableError, match="bias: got a tensor that requires a gradient"):
        attention(q, k, v, bias=torch.zeros(5, 7, requires_grad=True))
    with pytest.raises(UnavailableError, match="key: got a tensor that requires a gradient"):
        weights(q, k.clone().requires_grad_())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, about its scripts
        with pytest.raises(UnavailableError, match="requires a gradient"):
            torch.func.jvp(lambda x: attention(x, k, v), (q,), (q,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_lazy_minus_sign_is_not_lost(dtype):
    q, k, v = map(tensor, CASE.arrays(dtype))
    lazy = torch._neg_view(q)
    assert lazy.is_neg()
    assert torch.equal(attention(lazy, k, v), attention(-q, k, v))


def test_parameters_are_tensors():
    q, k, v = map(tensor, CASE.arrays())
    held = [torch.nn.Parameter(a, requires_grad=False) for a in (q, k, v)]
    assert type(attention(*held)) is torch.Tensor
    assert torch.equal(attention(*held), attention(q, k, v))
    with torch.inference_mode():
        assert torch.equal(attention(q * 1, k, v), attention(q, k, v))


class Tagged(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda q: q.to("meta"), "a tensor on meta, expected a tensor on the CPU"),
        (lambda q: q.to_sparse(), r"a torch.sparse_coo tensor, .* tensor.to_dense\(\)"),
        (lambda q: q.to_mkldnn(), "a torch._mkldnn tensor, expected a dense tensor"),
        (lambda q: torch.nested.nested_tensor([q[0], q[1]]), "a nested tensor"),
        (lambda q: q.as_subclass(Tagged), "a Tagged, a subclass of torch.Tensor"),
        (lambda q: FakeTensorMode().from_tensor(q), "a FakeTensor, a subclass"),
    ],
    ids=["meta", "sparse", "mkldnn", "nested", "subclass", "fake"],
)
def test_tensors_without_plain_memory(make, words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype
        odd = make(tensor(Q))
    with pytest.raises(UnavailableError, match=f"query: got {words}"):
        attention(odd, tensor(K), tensor(V))


def test_masks_without_plain_memory():
    cells = torch.ones(5, 7).bool()
    for odd in (cells.to("meta"), cells.to_sparse()):
        with pytest.raises(UnavailableError, match="mask: got a t"):
            attention(Q, K, V, mask=odd)
    with pytest.raises(InvalidTypeError, match="mask: got a masked array"):
        attention(Q, K, V, mask=np.ma.masked_array(np.ones((5, 7), bool)))
    with pytest.raises(InvalidTypeError, match="mask: got an array of float32.* bias="):
        any_array("mask", strict.asarray(BIAS), BOOLEANS)


@pytest.mark.parametrize(
    "transform", [torch.func.functionalize, torch.vmap], ids=["functionalize", "vmap"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_memory_is_read_inside_a_transform(transform, dtype):
    """Inside functionalize, tensor.numpy() reads what is not there."""
    q, k, v = map(tensor, CASE.arrays(dtype))
    with pytest.raises(UnavailableError, match="query: got a tensor without plain memory"):
        transform(lambda x: attention(x, k[0], v[0]))(q)
    with pytest.raises(UnavailableError, match="value: got a tensor without plain memory"):
        transform(lambda x: attention(q[0], k[0], x[..., 1:]))(v)


def test_no_memory_is_read_inside_a_fake_mode():
    q, k, v = map(tensor, (Q, K, V))
    with FakeTensorMode(), pytest.raises(UnavailableError, match="without plain memory"):
        attention(q, k, v)


@pytest.mark.parametrize("dtype", ["complex64", "int32", "bool", "float8_e4m3fn"])
def test_other_dtypes_of_tensors(dtype):
    odd = tensor(Q).to(getattr(torch, dtype))
    with pytest.raises(InvalidTypeError, match=f"query: got an array of {dtype}, expected float64"):
        attention(odd, odd, odd)


def test_bfloat16_without_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    q = torch.ones(3, 4, dtype=torch.bfloat16)
    with pytest.raises(UnavailableError, match="query: got bfloat16.*pip install ml_dtypes"):
        attention(q, q, q)


# Sizes that strides of 0 can promise

PROMISES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
import numpy as np
import chumoku

one = np.ones((1, 1), np.float32)
def big(*shape): return np.broadcast_to(one, shape)

for q, k in [
    ((10**9, 1, 1, 1), (1, 1, 1)),
    ((1, 1, 1), (10**9, 1, 1, 1)),
    ((2**58, 1, 1), (1, 1, 1)),
    ((2**20, 1, 1, 1, 1), (2**20, 1, 1, 1)),
    ((2**58, 1), (1, 1)),
    ((2**40, 1, 1, 1, 1), (2**40, 1, 1, 1)),
    ((2**31, 1), (2**31, 1)),
]:
    for kernel in (None, "native", "reference"):
        for options in ({}, {"mask": chumoku.Causal()}):
            for f in (
                lambda: chumoku.attention(big(*q), big(*k), big(*k), kernel=kernel, **options),
                lambda: chumoku.weights(big(*q), big(*k), kernel=kernel, **options),
            ):
                try:
                    f()
                except (MemoryError, chumoku.ChumokuError) as error:
                    assert isinstance(error, MemoryError) or "2**60" in str(error), error
                else:
                    assert False, "such an array cannot be"
print("done")
"""


def test_sizes_beyond_the_memory_end_in_memory_errors():
    command = [sys.executable, "-c", PROMISES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


@pytest.mark.parametrize(
    ("q", "k"),
    [
        ((2**40, 1, 1, 1, 1), (2**40, 1, 1, 1)),
        ((2**40, 1, 1, 0, 1), (2**30, 1, 1, 1)),
        ((2**30, 1), (2**30, 1)),
        ((2**52, 1, 256), (1, 1, 256)),
    ],
)
def test_sizes_beyond_counting_are_refused(q, k):
    one = np.ones((1, 1), FLOAT32)
    with pytest.raises(InvalidArgumentError, match=r"query: got sizes .* fewer than 2\*\*60"):
        x = np.broadcast_to(one, k)
        attention(np.broadcast_to(one, q), x, x)


def test_arrays_of_any_dtype_share_their_memory():
    array = np.zeros((2, 3), np.complex128)
    for other in (array, array[::-1], torch.tensor(array), strict.asarray(array)):
        view = memory_of("a", other)
        other[0, 1] = 7
        assert type(view) is np.ndarray
        assert view[0, 1] == 7
        other[0, 1] = 0
    for other in ([1], 3, None, np.float32(3), "a", np.ndarray):
        assert memory_of("a", other) is None


def test_numbers_of_a_tensor_that_requires_a_gradient():
    tensor = torch.ones(3, requires_grad=True)
    with pytest.raises(UnavailableError, match="requires a gradient"):
        memory_of("a", tensor)
    assert memory_of("a", tensor, detach=True).sum() == 3
    assert memory_of("a", torch.ones(3, dtype=torch.bfloat16)).dtype == ml_dtypes.bfloat16


def test_what_numpy_makes_an_array_of():
    rng = random.Random(2)
    assert array_of("a", [[1, 2], [3, 4]], "numbers").shape == (2, 2)
    for _ in range(3000):
        outcome(array_of, "a", anything(rng), "numbers")

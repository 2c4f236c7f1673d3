"""The kernel of a GPU's tensors: on a GPU, or its small cases in Triton's interpreter.

every_triton.py has all cases. Where there is no GPU, tensors in main memory stand in for those on
one: they take the same way through attention() and the operators.
"""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import test_backward
import test_kernels
import torch
from cases import (
    EVERYTHING,
    FLOAT16,
    FLOAT32,
    ZEROS,
    Case,
    assert_close,
    call,
    everything,
    one_head,
)
from test_backward import assert_gradients, upstream_of

import chumoku
import chumoku.torch
import run
from chumoku import arrays, attention, attention_backward, weights
from chumoku.attention.call import Relative
from chumoku.dropout import Dropout
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.mask import Causal, Cells, Chunks, Custom, Documents, Lengths, Prefix, Window
from chumoku.statistics import Watch
from chumoku.torch.attention import operated
from chumoku.torch.operator import Asked

pytest.importorskip("triton", reason="the kernel of a GPU's tensors is written in Triton")

from on_gpu import DEVICE, IN_INTERPRETER, KERNEL, tensor

# The interpreter computes with NumPy, which tells of each NaN.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning")

SMALL = Case((2, 4, 33, 16), (2, 2, 70, 16), 24)
FEW = Case((2, 2, 9, 8), (2, 1, 40, 8), 6)


@pytest.mark.parametrize(
    "mask",
    [
        Causal(np.array([3, -40])),
        Window(4, 0),
        Lengths(np.array([50, 0]), np.array([20, 33])),
        Documents(np.arange(66).reshape(2, 33) // 11, np.arange(140).reshape(2, 70) // 20),
        Documents(np.arange(33) % 3, np.arange(70) % 4),
        Chunks(8),
        Custom(lambda b, h, i, j: (i + j + h + b) % 3 != 0),
        np.random.default_rng(2).random((2, 4, 33, 70)) < 0.1,
        test_kernels.MASKS["much"],
        test_kernels.MASKS["nothing"],
    ],
    ids=str,
)
def test_masks(mask):
    assert_close(KERNEL, call(*SMALL.arrays(), mask=mask, watch=EVERYTHING))


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16], ids=str)
@pytest.mark.parametrize("option", ["all", "bias hides", "sinks and rows that see nothing"])
def test_options(option, dtype):
    given = dict(test_kernels.OPTIONS[option])
    given |= {n: given[n].astype(dtype) for n in ("bias", "sinks") if n in given}
    watch = everything(40) if option == "all" else EVERYTHING
    case = FEW if option == "all" else SMALL
    if option == "all":
        given |= {"bias": given["bias"][:9, :40], "sinks": given["sinks"][:2]}
    assert_close(KERNEL, call(*case.arrays(dtype), **given, watch=watch))


@pytest.mark.parametrize(
    "case",
    [
        *ZEROS,
        one_head(1, 3000, 64, 64),
        one_head(130, 70, 129, 3),
        Case((1, 2, 1, 4, 9, 8), (3, 1, 2, 2, 13, 8), 4),
    ],
    ids=str,
)
def test_cases(case):
    assert_close(KERNEL, call(*case.arrays(), mask=Causal() | Prefix(1), watch=EVERYTHING))


def test_keys_in_splits():
    watch = Watch(top=5, entropy=True, saturation=True, distance=True)
    case = Case((1, 8, 1, 16), (1, 2, 2100, 16), 256)
    assert_close(KERNEL, call(*case.arrays(), mask=Lengths(2090), watch=watch))


@pytest.mark.parametrize("wild", [np.nan, np.inf])
def test_what_is_hidden_cannot_be_felt(wild):
    """Bits must agree: NaN stands only in places that the rows may not look at."""
    q, k, v = FEW.arrays()
    clean = call(q, k, v, mask=Window(5, 0), watch=EVERYTHING)
    output, seen = KERNEL.run(clean)
    dirty_k, dirty_v = k.copy(), v.copy()
    for array in (dirty_k, dirty_v):
        array[..., :26, :] = array[..., 35, 0] = wild
    found, facts = KERNEL.run(replace(clean, key=dirty_k, value=dirty_v))
    # Row i sees keys 26 + i to 31 + i.
    sees = np.arange(9) >= 4
    assert np.isnan(facts.lse[..., sees]).all() or np.isinf(wild)
    assert not np.isfinite(found[..., sees, 0]).any()
    assert found[..., ~sees, :].tobytes() == output[..., ~sees, :].tobytes()
    for name, fact in facts.facts().items():
        if not name.startswith("received"):
            mine, theirs = fact[:, :, ~sees], getattr(seen, name)[:, :, ~sees]
            assert mine.tobytes() == theirs.tobytes(), name


@pytest.mark.parametrize(
    "test",
    [
        test_kernels.test_nan_reaches_exactly_the_rows_that_see_it,
        test_kernels.test_nan_query_reaches_its_own_row,
        test_kernels.test_a_visible_infinity_is_a_nan,
        test_kernels.test_rows_that_see_nothing_are_a_plain_zero,
        test_kernels.test_equal_logits_go_to_the_lower_key,
        test_kernels.test_lists_longer_than_the_keys,
    ],
    ids=lambda test: test.__name__,
)
def test_promises(test):
    test(KERNEL)


@pytest.mark.parametrize("gap", [10.0, 17.0, 90.0])
def test_facts_of_saturated_rows(gap):
    test_kernels.test_facts_of_saturated_rows(KERNEL, FLOAT32, gap)


def test_weights():
    test_kernels.test_weights_of_any_block(KERNEL, FLOAT32, False)
    test_kernels.test_weights_with_every_option(KERNEL, FLOAT16)


def test_watching_changes_no_bit_of_the_output():
    test_kernels.test_watching_changes_no_bit_of_the_output(KERNEL, "bias", FLOAT16)


def test_same_bits_in_every_batch_and_run():
    made = call(*Case((3, 4, 20, 16), (3, 2, 70, 16), 16).arrays(), mask=Causal())
    output, seen = KERNEL.run(made)
    alone = call(made.query[1:2], made.key[1:2], made.value[1:2], mask=Causal())
    for again, rows in ((made, slice(None)), (alone, slice(1, 2))):
        found, facts = KERNEL.run(again)
        assert found.tobytes() == output[rows].tobytes()
        assert facts.lse.tobytes() == seen.lse[rows].tobytes()


@pytest.mark.parametrize("option", ["dropout, cap, bias", "bias of keys", "sinks and blind rows"])
def test_gradients(option):
    given = test_backward.OPTIONS[option]
    shape = given["bias"].shape if "bias" in given else ()
    batch = 1 if "dropout" in given else 2
    made = call(*Case((batch, 4, 33, 8), (batch, 2, 70, 8), 8).arrays(), **given)
    d_entropy = np.random.default_rng(2).standard_normal(made.query.shape[:-1]).astype(np.float32)
    more = {"entropy_gradient": d_entropy, "lse_gradient": d_entropy[::-1]}
    more = {} if batch == 1 else more  # as much as a minute has room for
    assert_gradients(KERNEL, made, upstream_of(made, bias_shape=shape, **more))


@pytest.mark.parametrize("case", [*ZEROS[:5], one_head(130, 70, 129, 3)], ids=str)
def test_gradients_of_cases(case):
    made = call(*case.arrays(FLOAT16), mask=Causal())
    assert_gradients(KERNEL, made, upstream_of(made))


def test_gradients_of_what_is_hidden():
    q, k, v = FEW.arrays()
    clean = call(q, k, v, mask=Lengths(30))
    wanted = KERNEL.backward(clean, upstream_of(clean))
    for wild in (np.nan, np.inf):
        dirty_k, dirty_v = k.copy(), v.copy()
        dirty_k[..., 30:, :] = dirty_v[..., 30:, :] = wild
        made = call(q, dirty_k, dirty_v, mask=Lengths(30))
        for mine, theirs in zip(KERNEL.backward(made, upstream_of(made)), wanted, strict=True):
            assert mine is theirs is None or mine.tobytes() == theirs.tobytes()


def test_gradients_of_sinks_without_keys():
    sinks = np.array([0.5, 1], np.float32)
    made = call(*Case((1, 2, 3, 4), (1, 1, 0, 4), 2).arrays(), sinks=sinks)
    ones = np.ones((1, 2, 3), np.float32)
    for more in ({"lse_gradient": ones}, {"entropy_gradient": ones}):
        assert_gradients(KERNEL, made, upstream_of(made, **more))


def test_dropout_that_leaves_nothing():
    """A rate so near to 1 that every random number drops; and 0, which drops none."""
    arrays = FEW.arrays()
    output, _ = KERNEL.run(call(*arrays, dropout=Dropout(1 - 2**-40, 1)))
    assert (output == 0).all()
    assert_close(KERNEL, call(*arrays, dropout=Dropout(0.0, 1)))


def test_masks_of_many_parts():
    many = Window(5, 5)
    for left in range(12):
        many = (many | Window(left, 0)) & Prefix(30 + left)
    assert_close(KERNEL, call(*FEW.arrays(), mask=many, watch=EVERYTHING))
    assert_close(KERNEL, call(*FEW.arrays(), mask=many & Causal()))


# Through attention() and the operators


@pytest.fixture
def gpu(monkeypatch):
    """Tensors of a GPU, or what stands in for them."""
    if IN_INTERPRETER:
        monkeypatch.setattr(arrays, "lies_on_gpu", lambda tensor: tensor.device.type == "cpu")
    return DEVICE


def tensors(case=FEW, dtype=FLOAT32):
    return [tensor(array) for array in case.arrays(dtype)]


def host(x):
    return x.detach().cpu().numpy()


WATCH = Watch(top=3, entropy=True, received=True, groups=np.arange(40) % 3, picture=(2, 3))


def test_attention_takes_tensors_of_a_gpu(gpu):
    q, k, v = tensors()
    output, seen = attention(q, k, v, mask=Causal(), watch=WATCH)
    wanted, facts = attention(*FEW.arrays(), mask=Causal(), watch=WATCH)
    assert output.device.type == q.device.type
    assert np.abs(host(output) - wanted).max() < 1e-5
    assert seen.facts().keys() == facts.facts().keys()
    assert np.array_equal(host(seen.top_keys), facts.top_keys)
    assert np.abs(host(seen.received) - facts.received).max() < 1e-5
    assert np.abs(host(seen.picture[1]) - facts.picture[1]).max() < 1e-5
    named = attention(q, k, v, mask=Causal(), kernel="triton")
    assert torch.equal(named, output)


def test_axes_are_the_callers(gpu):
    q, k, v = (x[0, 0] for x in tensors())
    output, seen = attention(q, k, v, watch=Watch(top=2))
    assert output.shape == (9, 6)
    assert seen.lse.shape == (9,)
    assert seen.top_keys.shape == (9, 2)
    wide = attention(tensors()[0], k, v)
    assert wide.shape == (2, 2, 9, 6)


@pytest.mark.parametrize("joined", [False, True])
def test_boolean_tensors_stay_where_they_are(gpu, joined):
    cells = np.random.default_rng(0).random((2, 1, 9, 40)) < 0.5
    mask, theirs = tensor(cells), cells
    if joined:
        mask, theirs = Causal() & Cells(mask), Causal() & Cells(theirs)
    found = attention(*tensors(), mask=mask)
    assert np.abs(host(found) - attention(*FEW.arrays(), mask=theirs)).max() < 1e-5
    assert np.abs(host(attention(*tensors(), mask=theirs)) - host(found)).max() == 0
    asked = Cells(tensor(cells)).allowed(
        chumoku.mask.Shape((2,), 2, 9, 40), np.arange(3), np.arange(4)
    )
    assert np.array_equal(asked, np.broadcast_to(cells[:, :, :3, :4], (2, 2, 3, 4)))


def test_a_function_may_call_attention(gpu):
    def function(b, h, i, j):
        attention(*tensors(), mask=Causal())
        return i + b * h >= j - 31

    found = attention(*tensors(), mask=Custom(function))
    mask = Custom(lambda b, h, i, j: i + b * h >= j - 31)
    assert np.abs(host(found) - attention(*FEW.arrays(), mask=mask)).max() < 1e-5


def test_numbers_of_masks_may_be_tensors(gpu):
    lengths = torch.tensor([30, 7], device=gpu)
    found = attention(*tensors(), mask=Lengths(lengths))
    assert np.abs(host(found) - attention(*FEW.arrays(), mask=Lengths([30, 7]))).max() < 1e-5


def test_weights_of_tensors(gpu):
    q, k, v = tensors()
    _, seen = attention(q, k, v, mask=Causal(), watch=Watch())
    wanted = weights(*FEW.arrays()[:2], rows=[8, 0], keys=slice(3, 7), mask=Causal())
    for lse in (None, seen.lse):
        block = weights(q, k, rows=[8, 0], keys=slice(3, 7), mask=Causal(), lse=lse)
        assert np.abs(host(block) - wanted).max() < 1e-6


def test_a_bias_of_distances(gpu):
    values = np.random.default_rng(1).standard_normal((2, 9 + 40 - 1)).astype(np.float32)
    found = attention(*tensors(), bias=Relative(tensor(values)))
    wanted = attention(*FEW.arrays(), bias=Relative(values))
    assert np.abs(host(found) - wanted).max() < 1e-5


def test_recordings(gpu):
    q, k, v = tensors()
    with chumoku.recording(Watch(top=2), inputs=True) as seen:
        attention(q, k, v, mask=Causal(), watch=Watch(top=4, entropy=True))
    assert seen[0].statistics.top_keys.shape == (2, 2, 9, 2)
    wanted = weights(*FEW.arrays()[:2], mask=Causal())
    assert np.abs(host(seen[0].weights()) - wanted).max() < 1e-6
    assert seen.nbytes > 0


def test_backward_of_tensors(gpu):
    made = FEW.arrays()
    d_output = np.random.default_rng(3).standard_normal((2, 2, 9, 6)).astype(np.float32)
    bias = np.random.default_rng(4).standard_normal((2, 1, 40)).astype(np.float32)
    sinks = np.array([0.5, -1], np.float32)
    wanted = attention_backward(d_output, *made, bias=bias, sinks=sinks, mask=Causal())
    arguments = [tensor(x) for x in (d_output, *made)]
    more = {"bias": tensor(bias), "sinks": tensor(sinks)}
    found = attention_backward(*arguments, **more, mask=Causal())
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32
        assert np.abs(host(mine) - theirs).max() < 1e-4
    one = attention_backward(arguments[0], arguments[1], *(x[:1] for x in arguments[2:]))
    assert one.key.shape == (1, 1, 40, 8)


def gradients(call, *given):
    inputs = [x.detach().clone().requires_grad_() for x in given]
    output, seen = call(*inputs)
    loss = output.square().sum() + seen.lse.sum() + (seen.entropy * 2).sum()
    return output, torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("way", ["eager", "operator"])
def test_training(gpu, way, monkeypatch):
    """Eager training, and the operator that compilers and transforms call."""
    q, k, v = tensors()
    cells = tensor(np.random.default_rng(0).random((9, 40)) < 0.5)
    dropout = Dropout(0.2, 5)

    def ours(q, k, v):
        mask = Causal() & Cells(cells)
        options = {"mask": mask, "watch": Watch(entropy=True), "dropout": dropout}
        if way == "eager":
            return chumoku.torch.attention(q, k, v, **options)
        asked = Asked(mask, None, None, dropout)
        return operated((q, k, v, None, None), asked, options["watch"])

    output, found = gradients(ours, q, k, v)
    monkeypatch.undo()
    cells = cells.cpu()
    wanted, theirs = gradients(ours, *(x.cpu() for x in (q, k, v)))
    assert np.abs(host(output) - host(wanted)).max() < 1e-5
    for mine, other in zip(found, theirs, strict=True):
        assert np.abs(host(mine) - host(other)).max() < 1e-4


def test_what_cannot_be_served_is_said(gpu):
    q, k, v = tensors()
    wide = torch.ones((1, 4, 300), device=gpu)
    with pytest.raises(
        UnavailableError, match=r"triton: it computes widths up to 256, not 300.*cpu"
    ):
        attention(wide, wide, wide)
    double = q.double()
    with pytest.raises(UnavailableError, match=r"it computes float32, float16 and .*, not float64"):
        attention(double, double, double, kernel="triton")
    with pytest.raises(InvalidTypeError, match="key: got float16, expected float32, as the query"):
        attention(q, k.half(), v)
    with pytest.raises(
        InvalidArgumentError, match=r"value: got 39 positions \(shape \(2, 1, 39, 6"
    ):
        attention(q, k, v[..., :39, :])
    with pytest.raises(InvalidArgumentError, match=r"bias: got shape \(3,\), expected one that"):
        attention(q, k, v, bias=torch.ones(3, device=gpu))
    with pytest.raises(InvalidArgumentError, match=r"mask: got shape \(3,\), expected"):
        attention(q, k, v, mask=torch.ones(3, dtype=torch.bool, device=gpu))
    with pytest.raises(InvalidTypeError, match="key: got ndarray, expected a PyTorch tensor on"):
        attention(q, host(k), v)
    with pytest.raises(UnavailableError, match="native.*it reads main memory"):
        attention(q, k, v, kernel="native")


def test_tensors_in_two_places_are_refused(monkeypatch):
    """Which are on a GPU is said by their numbers here, so that no GPU is needed."""
    q, k = (torch.ones(1, n, 8) for n in (3, 5))
    monkeypatch.setattr(arrays, "lies_on_gpu", lambda tensor: tensor.shape[1] == 5)
    with pytest.raises(UnavailableError, match="mask: got a tensor on cpu, expected one in main"):
        attention(q, q, q, mask=Causal() & torch.ones((1, 5, 3), dtype=torch.bool))
    away = torch.empty((1, 5, 8), device="meta")
    with pytest.raises(
        UnavailableError, match="value: got a tensor on meta, expected a PyTorch te"
    ):
        attention(k, k, away)
    cells = torch.ones((1, 5, 5), dtype=torch.bool, device="meta")
    with pytest.raises(UnavailableError, match="mask: got a tensor on meta, expected a PyTorch te"):
        attention(k, k, k, mask=Causal() & Cells(cells))


def test_numpy_arrays_are_not_for_it():
    q, k, v = FEW.arrays()
    with pytest.raises(
        UnavailableError, match="'triton', .*: it computes PyTorch tensors on a GPU"
    ):
        attention(q, k, v, kernel="triton")


def test_without_triton_the_package_is_named(gpu, monkeypatch):
    monkeypatch.setattr(chumoku.kernels, "find_spec", lambda name: None)
    with pytest.raises(
        UnavailableError, match=r"it needs the package triton \(pip install triton\)"
    ):
        attention(*tensors())


def test_calls_alike_are_made_ready_once(gpu, monkeypatch):
    """What is kept is taken for other arrays of the same sizes, and for no other mask."""
    from chumoku.kernels.triton import launch

    monkeypatch.setattr(launch, "_made", made := type(launch._made)())
    for seed in range(3):
        arrays = FEW.arrays(seed=seed)
        given = {"bias": np.full(40, seed, np.float32), "sinks": np.full(2, seed, np.float32)}
        wanted = attention(*arrays, mask=Window(3, 3), **given)
        theirs = {name: tensor(array) for name, array in given.items()}
        found = attention(*map(tensor, arrays), mask=Window(3, 3), **theirs)
        assert np.abs(host(found) - wanted).max() < 1e-5
    assert len(made) == 1
    cells = tensor(np.ones((9, 40), bool))
    for mask in (cells, Causal() & cells, Custom(lambda b, h, i, j: i > j)):
        attention(*tensors(), mask=mask)
    attention(*tensors(), dropout=Dropout(0.1, 1))
    assert len(made) == 1
    for mask in (Causal(), Causal(1), Causal() | Prefix(1), Causal() & Prefix(1), Lengths([3, 4])):
        attention(*tensors(), mask=mask)
    assert len(made) == 6
    monkeypatch.setattr(launch, "KEPT_READY", 2)
    attention(*tensors())
    attention(*(x.swapaxes(0, 1) for x in tensors()[:1]), *(x[:1] for x in tensors()[1:]))
    assert len(made) <= 6


IMPORTS = """
import sys
import numpy as np, torch
import chumoku, chumoku.torch
x = np.ones((2, 5, 8), np.float32)
chumoku.attention(x, x, x, kernel="reference", watch=chumoku.Watch(top=2))
t = torch.ones(2, 5, 8, requires_grad=True)
chumoku.torch.attention(t, t, t).sum().backward()
ours = ("triton", "chumoku.kernels.triton")
print([name for name in sys.modules if name == ours[0] or name.startswith(ours[1])])
"""


def test_main_memory_imports_nothing_of_it():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_it_compiles_for_a_gpu_that_is_not_there():
    """Products on tensor cores, keys fetched ahead 16 bytes at a time, memory enough."""
    command = [sys.executable, "tests/compiled.py", "--json", "seeing", "decoding", "backward"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=run.ROOT)
    assert done.returncode == 0, done.stderr
    seeing = json.loads(done.stdout)[0]
    # One of 32 for each of a thread's scores, in four walks: a product fused with a subtraction
    # leaves something of the largest score less itself.
    assert seeing["subtracted"] >= 4 * 32, seeing
    found = {one["kernel"]: one for one in json.loads(done.stdout)}
    assert found.keys() >= {"attend", "join", "pull", "back_to_queries", "back_to_keys"}
    for one in found.values():
        assert one["shared"] < 227 * 1024, one
        assert one["single"] == 0, one
    for name in ("back_to_queries", "back_to_keys"):
        assert found[name]["wgmma"] > 0, name
        assert found[name]["fetched"] > 0, name


@pytest.mark.skipif(IN_INTERPRETER, reason="there is no GPU here: its speed and memory wait")
def test_memory_grows_with_the_sum_of_lengths():
    q = torch.ones((1, 1, 32768, 64), dtype=torch.bfloat16, device=DEVICE)
    attention(q, q, q, mask=Causal(), watch=Watch(top=8, entropy=True, received=True))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attention(q, q, q, mask=Causal(), watch=Watch(top=8, entropy=True, received=True))
    assert torch.cuda.max_memory_allocated() - before < 64 * 2**20

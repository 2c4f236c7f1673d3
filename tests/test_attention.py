"""attention() and weights(): kinds of arrays, the choice of a kernel, and what the errors say."""

import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import torch
from cases import CASES, DTYPES, FLOAT32, LAYOUTS, Case, call, error, one_head

from chumoku import (
    Causal,
    Custom,
    Dropout,
    Lengths,
    UnavailableError,
    Watch,
    attention,
    recording,
    weights,
)
from chumoku.errors import ChumokuError, InvalidArgumentError, InvalidTypeError
from chumoku.kernels import KERNELS, reference

# `chumoku.attention` is the function; this is the module of that name.
module = sys.modules[attention.__module__]

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
TORCH = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def tensor(array):
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def numbers(found):
    """Any kind of array as NumPy's."""
    if not isinstance(found, torch.Tensor):
        return found
    if found.dtype == torch.bfloat16:
        return found.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return found.numpy()


# Shapes


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_shape_against_the_definition(case):
    q, k, v = case.arrays()
    output, seen = attention(q, k, v, mask=Causal(), watch=Watch(top=2))
    made = call(q, k, v, mask=Causal())
    wanted, facts = reference.compute(made)
    # Only a caller of 2-D arrays does not see the axis of the heads.
    assert output.shape == wanted.shape[int(max(q.ndim, k.ndim) == 2) :]
    assert seen.lse.shape == output.shape[:-1]
    assert seen.top_keys.shape == (*output.shape[:-1], 2)
    assert error(output.reshape(wanted.shape), wanted) < 2e-6
    block = weights(q, k, mask=Causal())
    assert block.shape == (*output.shape[:-1], k.shape[-2])
    lse, blind = seen.lse.reshape(facts["lse"].shape), facts["lse"] == -np.inf
    assert np.array_equal(lse == -np.inf, blind)
    assert lse[~blind] == pytest.approx(facts["lse"][~blind], abs=1e-5)


def test_facts_keep_the_callers_axes():
    for lead in [(), (3,), (2, 3)]:
        q, k = np.ones((*lead, 5, 8)), np.ones((*lead, 7, 8))
        _, seen = attention(q, k, k, sinks=np.zeros(lead[-1] if lead else 1), watch=EVERYTHING)
        shapes = {
            name: tuple(part.shape for part in fact) if name == "picture" else fact.shape
            for name, fact in seen.facts().items()
        }
        rows = ("lse", "max_logit", "entropy", "saturation", "flow", "distance", "sink_weight")
        assert shapes == {
            **dict.fromkeys(rows, (*lead, 5)),
            "top_keys": (*lead, 5, 3),
            "top_weights": (*lead, 5, 3),
            "received": (*lead, 7),
            "group_mass": (*lead, 5, 3),
            "picture": ((*lead, 2, 3), (*lead, 2, 3)),
        }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_are_never_written(layout):
    arrays = [LAYOUTS[layout](a) for a in (Q, K, V)]
    before = [np.array(a) for a in arrays]
    attention(*arrays, mask=Causal(), watch=Watch(top=2, entropy=True))
    weights(*arrays[:2], rows=slice(2))
    for old, new in zip(before, arrays, strict=True):
        assert np.array_equal(old, new)


# Kinds of arrays


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_give_what_arrays_give(dtype):
    arrays = CASE.arrays(dtype)
    bias = BIAS.astype(dtype)
    for options in ({"mask": Causal()}, {"bias": bias, "sinks": bias[0, :4], "watch": EVERYTHING}):
        plain = attention(*arrays, **options)
        for name in ("bias", "sinks"):
            if name in options:
                options[name] = tensor(np.array(options[name]))
        found = attention(*map(tensor, arrays), **options)
        if "watch" not in options:
            plain, found = (plain, None), (found, None)
        assert isinstance(found[0], torch.Tensor)
        assert found[0].dtype == TORCH[dtype.name]
        assert np.array_equal(numbers(found[0]), plain[0])
        if found[1] is not None:
            for name, fact in found[1].facts().items():
                pairs = (
                    zip(fact, plain[1].picture, strict=True)
                    if name == "picture"
                    else [(fact, getattr(plain[1], name))]
                )
                for mine, theirs in pairs:
                    assert isinstance(mine, torch.Tensor)
                    assert np.array_equal(mine.numpy(), theirs), name
                    assert mine.numpy().dtype == theirs.dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_of_tensors(dtype):
    q, k, _ = CASE.arrays(dtype)
    plain = weights(q, k, rows=[0, 4], mask=Causal())
    found = weights(tensor(q), tensor(k), rows=torch.tensor([0, 4]), mask=Causal())
    assert isinstance(found, torch.Tensor)
    assert np.array_equal(found.numpy(), plain)
    assert plain.dtype == (np.float64 if dtype == np.float64 else np.float32)


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


def test_memory_is_shared_not_copied(monkeypatch):
    seen = []
    spy = SimpleNamespace(
        name="spy",
        refuses=lambda made: None,
        run=lambda made: (seen.append(made), reference.run(made))[1],
    )
    monkeypatch.setattr(module, "KERNELS", (spy,))
    for dtype in DTYPES:
        q, k, v = CASE.arrays(dtype)
        attention(q[:, ::-1], k[:, ::-1], v[:1], bias=BIAS.astype(dtype))
        made = seen.pop()
        for mine, theirs in ((made.query, q), (made.key, k), (made.value, v)):
            assert np.shares_memory(mine, theirs)
        assert made.bias.strides[:2] == (0, 0)
        tensors = [tensor(a) for a in (q, k, v)]
        attention(*tensors)
        made = seen.pop()
        for mine, theirs in ((made.query, q), (made.key, k), (made.value, v)):
            assert np.shares_memory(mine, theirs)


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_agrees_with_pytorch(dtype, causal):
    q, k, v = (tensor(a) for a in Case((2, 4, 33, 16), (2, 4, 33, 16), 16).arrays(dtype))
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    ours = attention(q, k, v, mask=Causal() if causal else None)
    unit = {"float64": 1e-15, "float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}[dtype.name]
    assert error(numbers(ours), numbers(theirs).astype(np.float64)) < unit


def test_options_agree_with_pytorch():
    q, k, v = (tensor(a) for a in CASE.arrays())
    mask = torch.rand(2, 1, 5, 7, generator=torch.manual_seed(0)) < 0.6
    mask[..., 0] = True
    bias = tensor(BIAS)
    for theirs, ours in [
        ({"attn_mask": mask}, {"mask": mask}),
        ({"attn_mask": bias}, {"bias": bias}),
        ({"attn_mask": bias.masked_fill(~mask, -torch.inf)}, {"bias": bias, "mask": mask}),
        ({"scale": 0.7}, {"scale": 0.7}),
    ]:
        wanted = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, enable_gqa=True, **theirs
        )
        assert error(attention(q, k, v, **ours).numpy(), wanted.numpy()) < 1e-6


# The choice of a kernel


def stand_in(name, reason=None):
    """A kernel that counts its calls, and refuses for a reason."""
    calls = []

    def run(made):
        calls.append(made)
        return reference.run(made)

    return SimpleNamespace(name=name, refuses=lambda made: reason, run=run, calls=calls)


def test_the_first_that_does_not_refuse_is_taken(monkeypatch):
    first, second, third = stand_in("a", "it is tired"), stand_in("b"), stand_in("c")
    monkeypatch.setattr(module, "KERNELS", (first, second, third))
    attention(Q, K, V)
    attention(Q, K, V, kernel="c")
    assert [len(kernel.calls) for kernel in (first, second, third)] == [0, 1, 1]


def test_a_kernel_asked_for_by_name_never_falls_back(monkeypatch):
    tired, ready = stand_in("a", "it is tired of this"), stand_in("b")
    monkeypatch.setattr(module, "KERNELS", (tired, ready))
    words = (
        r"kernel: got 'a', which cannot serve this call: it is tired of this, .* Leave kernel= out"
    )
    with pytest.raises(UnavailableError, match=words):
        attention(Q, K, V, kernel="a")
    with pytest.raises(UnavailableError, match=words):
        weights(Q, K, kernel="a")
    assert not ready.calls


def test_the_names_of_the_kernels():
    assert [kernel.name for kernel in KERNELS] == ["native", "reference"]
    words = "kernel: got 'fast', expected 'native' or 'reference'"
    with pytest.raises(InvalidArgumentError, match=words):
        attention(Q, K, V, kernel="fast")


def test_the_reference_is_never_chosen_silently_for_large_calls(monkeypatch):
    tired = stand_in("tired", "it sleeps")
    only = stand_in("reference")
    monkeypatch.setattr(module, "KERNELS", (tired, only))
    q, k = np.ones((2**11, 1), np.float32), np.ones((2**11 + 1, 1), np.float32)
    assert attention(q, k[:-1], k[:-1]).shape == (2**11, 1)
    with pytest.raises(UnavailableError) as raised:
        attention(q, k, k)
    message = str(raised.value)
    assert "tired: it sleeps" in message
    assert "reference: it would hold 4,196,352 scores" in message
    assert 'kernel="reference" computes it all the same' in message
    assert len(only.calls) == 1
    assert attention(q, k, k, kernel="reference").shape == (2**11, 1)


# Options on their way to the kernel


def test_sinks_dropout_softcap_and_bias_arrive():
    options = {
        "mask": Causal() & Lengths(6),
        "bias": BIAS,
        "scale": 0.4,
        "softcap": 2.0,
        "sinks": np.array([0, 1, 2, 3], np.float32),
        "dropout": Dropout(0.3, 4),
    }
    output = attention(Q, K, V, **options)
    for name in options:
        changed = attention(Q, K, V, **{**options, name: None})
        assert error(changed, output) > 1e-3, name
    wanted, _ = reference.compute(call(Q, K, V, **options))
    assert error(output, wanted) < 1e-6


def test_numpy_numbers_are_numbers():
    wanted = attention(Q, K, V, scale=2.0, softcap=3.0)
    assert np.array_equal(attention(Q, K, V, scale=np.float32(2), softcap=np.int64(3)), wanted)


def test_only_what_was_asked_for_is_returned():
    assert isinstance(attention(Q, K, V), np.ndarray)
    with recording(Watch(entropy=True, top=5)):
        _, seen = attention(Q, K, V, watch=Watch(top=2))
    assert list(seen.facts()) == ["lse", "max_logit", "top_keys", "top_weights"]
    assert seen.top_keys.shape[-1] == 2


# weights()


@pytest.mark.parametrize(
    ("rows", "keys", "where"),
    [
        (slice(None), slice(None), np.s_[..., :, :]),
        (slice(1, 4), slice(None, None, -2), np.s_[..., 1:4, ::-2]),
        (2, -1, np.s_[..., 2:3, 6:]),
        ([4, 0, -1], np.array([3, 3]), np.ix_([0, 1], range(4), [4, 0, 4], [3, 3])),
        ([], slice(3, 3), np.s_[..., :0, :0]),
    ],
)
@pytest.mark.parametrize("known", [False, True], ids=["lse found", "lse given"])
def test_blocks(rows, keys, where, known):
    _, seen = attention(Q, K, V, mask=Causal(), watch=Watch())
    options = {"mask": Causal(), "lse": seen.lse} if known else {"mask": Causal()}
    whole = weights(Q, K, mask=Causal(), kernel="reference")
    block = weights(Q, K, rows=rows, keys=keys, **options)
    assert block.shape == whole[where].shape
    assert np.abs(block - whole[where]).max(initial=0) < 1e-6


def test_blocks_of_one_head_and_of_tensors_with_lse():
    q, k, v = Q[0, 0], K[0, 0], V[0, 0]
    _, seen = attention(q, k, v, watch=Watch())
    assert weights(q, k, rows=3, lse=seen.lse).shape == (1, 7)
    found = weights(tensor(q), tensor(k), rows=3, lse=tensor(seen.lse))
    assert np.array_equal(found.numpy(), weights(q, k, rows=3, lse=seen.lse))


def test_rows_of_the_weights_give_the_output():
    options = {"mask": Causal(-1), "bias": BIAS, "softcap": 1.0, "sinks": np.ones(4, np.float32)}
    p = weights(Q, K, **options)
    assert p @ np.repeat(V, 2, axis=1) == pytest.approx(attention(Q, K, V, **options), abs=1e-5)


# Errors: each names the argument, what came and what was expected

BIG = np.zeros((1, 1025), np.float32)
MASKED = np.ma.masked_array(Q)
Value, Type = InvalidArgumentError, InvalidTypeError


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (([[1.0]], K, V), {}, Type, r"query: got list, expected a NumPy array or .* np.asarray"),
        ((Q, None, V), {}, Type, "key: got NoneType"),
        ((Q, tensor(K), V), {}, Type, "query: ndarray, key: torch, .* of one kind"),
        ((MASKED, K, V), {}, Type, "query: got MaskedArray"),
        ((Q.astype(int), K, V), {}, Type, "query: got int64, expected float64, float32, "),
        ((Q.astype(">f4"), K, V), {}, Type, "query: got >f4"),
        ((Q + 1j, K, V), {}, Type, "query: got complex64"),
        ((Q, K.astype(np.float64), V), {}, Type, "key: got float64, expected float32, as"),
        ((Q, K, V.astype(np.float16)), {}, Type, "value: got float16.* never narrows or widens"),
        ((Q[0, 0, 0], K, V), {}, Value, r"query: got shape \(8,\), expected \(\.\.\., heads"),
        ((Q, np.float32(1), V), {}, Type, "key: got float32"),
        ((Q, K[..., :7], V), {}, Value, r"key: got width 7 .*expected width 8.*The last axis"),
        ((Q[..., :0], K[..., :0], V), {}, Value, "query: got width 0, expected a width from 1"),
        ((BIG, BIG, BIG), {}, Value, "query: got width 1025"),
        ((BIG[:, :3], BIG[:, :3], BIG), {}, Value, "value: got width 1025"),
        ((Q, K, V[..., :6, :]), {}, Value, "value: got 6 positions .* expected 7, one for"),
        ((Q, K, V[:, :1]), {}, Value, "value: got 1 heads .* expected 2, as the key has"),
        (
            (Q[:, :3], K, V),
            {},
            Value,
            "key: got 2 heads .* a divisor of the .* 3 heads .* transpose",
        ),
        ((Q, K[:, :0], V[:, :0]), {}, Value, "key: got 0 heads"),
        ((Q[:, :, :, None], K, V), {}, Value, "key"),
        ((np.repeat(Q, 2, 0)[:3], K, V), {}, Value, r"key: got leading axes \(2,\).*\(3,\)"),
        ((Q, K, np.repeat(V, 2, 0)[:3]), {}, Value, r"value: got leading axes \(3,\).*\(2,\)"),
        ((Q, K, V), {"mask": [[True]]}, Type, "mask: got list, expected a mask value or a boolean"),
        ((Q, K, V), {"mask": BIAS}, Type, "mask: got an array of float32.*bias="),
        ((Q, K, V), {"mask": np.ones((7, 5), bool)}, Value, r"mask: got shape \(7, 5\)"),
        ((Q, K, V), {"mask": Causal([1, 2, 3])}, Value, "offset: got shape"),
        ((Q, K, V), {"bias": BIAS.astype(float)}, Type, "bias: got float64, expected float32"),
        ((Q, K, V), {"bias": BIAS.T}, Value, r"bias: got shape \(7, 5\).*\(2, 4, 5, 7\)"),
        ((Q, K, V), {"bias": 1.0}, Type, "bias: got float"),
        ((Q, K, V), {"bias": tensor(BIAS)}, Type, "bias: got Tensor, expected an array of"),
        (tuple(map(tensor, (Q, K, V))), {"bias": BIAS}, Type, "bias: got ndarray, expected a t"),
        ((Q, K, V), {"scale": "1"}, Type, "scale: got str, expected a number"),
        ((Q, K, V), {"scale": True}, Type, "scale: got bool"),
        ((Q, K, V), {"scale": np.inf}, Value, "scale: got inf, expected a finite number"),
        ((Q, K, V), {"scale": 10**400}, Value, "scale: got inf"),
        ((Q, K, V), {"softcap": 0.0}, Value, "softcap: got 0.0, expected a finite number above 0"),
        ((Q, K, V), {"softcap": np.nan}, Value, "softcap: got nan"),
        ((Q, K, V), {"sinks": BIAS[0, :2]}, Value, r"sinks: got shape \(2,\), expected \(4,\)"),
        ((Q, K, V), {"sinks": np.ones(4)}, Type, "sinks: got float64, expected float32"),
        ((Q, K, V), {"dropout": 0.1}, Type, r"dropout: got 0.1, expected Dropout\(rate, seed\)"),
        ((Q, K, V), {"watch": False}, Type, "watch: got False, expected Watch"),
        ((Q, K, V), {"watch": "top"}, Type, "watch: got 'top'"),
        ((Q, K, V), {"watch": Watch(groups=[0, 1])}, Value, "groups: got 2 groups, .* the 7 keys"),
        ((Q, K, V), {"kernel": 3}, Value, "kernel: got 3"),
    ],
)
def test_errors(arguments, options, error, words):
    with pytest.raises(error, match=words) as raised:
        attention(*arguments, **options)
    assert isinstance(raised.value, ChumokuError)
    assert isinstance(raised.value, (ValueError, TypeError))
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"rows": 5},
            InvalidArgumentError,
            "rows: got positions 5 to 5, expected positions from 0 to 4",
        ),
        (
            {"keys": [0, -8]},
            InvalidArgumentError,
            "keys: got positions -8 to 0, expected positions from 0 to 6",
        ),
        ({"rows": 1.0}, InvalidTypeError, "rows: got float64"),
        ({"rows": [[0]]}, InvalidTypeError, r"rows: got int64 of shape \(1, 1\)"),
        ({"rows": [True, False]}, InvalidTypeError, "rows: got bool"),
        (
            {"lse": np.zeros((4, 5))},
            InvalidArgumentError,
            r"lse: got shape \(4, 5\), expected \(2, 4, 5\)",
        ),
        ({"lse": [1.0]}, InvalidTypeError, "lse: got list"),
        ({"mask": np.ones((7, 5), bool)}, InvalidArgumentError, "mask: got shape"),
        ({"softcap": -1}, InvalidArgumentError, "softcap: got -1.0"),
    ],
)
def test_errors_of_weights(options, error, words):
    with pytest.raises(error, match=words):
        weights(Q, K, **options)


@pytest.mark.parametrize("key", [np.array(1, np.float32), np.ones(3, np.float32)])
def test_weights_of_keys_without_axes(key):
    with pytest.raises(InvalidArgumentError, match="key: got shape"):
        weights(Q, key)


def test_tensors_that_are_not_here():
    q, k, v = map(tensor, CASE.arrays())
    with pytest.raises(UnavailableError, match="query: got a torch.strided tensor on meta"):
        attention(q.to("meta"), k.to("meta"), v.to("meta"))
    with pytest.raises(UnavailableError, match="query: got a torch.sparse_coo tensor on cpu"):
        attention(q.to_sparse(), k, v)


def test_bfloat16_without_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    q = torch.ones(3, 4, dtype=torch.bfloat16)
    with pytest.raises(UnavailableError, match="query: got bfloat16.*pip install ml_dtypes"):
        attention(q, q, q)


def test_groups_of_a_recording_are_checked_too():
    with (
        recording(Watch(groups=[0, 1])),
        pytest.raises(InvalidArgumentError, match="groups: got 2 groups"),
    ):
        attention(Q, K, V)


def test_a_custom_masks_own_error_comes_through():
    def function(b, h, i, j):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        attention(Q, K, V, mask=Custom(function))


def test_zero_sizes_go_through():
    for case in (one_head(0, 5, 4, 3), one_head(5, 0, 4, 3), Case((0, 5, 4), (0, 7, 4), 3)):
        output, seen = attention(*case.arrays(FLOAT32), watch=Watch(top=2, entropy=True))
        assert output.shape == (*case.query[:-1], 3)
        assert (output == 0).all()
        assert (seen.lse == -np.inf).all()
        assert (seen.top_keys == -1).all()

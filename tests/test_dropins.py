"""Drop-ins for PyTorch's attention, over the samples that PyTorch tests its own with."""

import warnings

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

import chumoku
import chumoku.torch
from chumoku import Watch
from chumoku.errors import InvalidArgumentError, InvalidTypeError

TOLERANCES = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
    torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2},
}


def operator_samples():
    (info,) = [op for op in op_db if op.name == "nn.functional.scaled_dot_product_attention"]
    for dtype in TOLERANCES:
        for i, sample in enumerate(info.sample_inputs("cpu", dtype, requires_grad=True)):
            yield pytest.param(sample, dtype, id=f"{dtype}-{i}".removeprefix("torch."))


def run_sample(sample, dtype):
    """Output and gradients of one sample, with the random numbers of one seed."""
    torch.manual_seed(0)
    options = dict(sample.kwargs)
    if options.get("attn_mask") is not None and options["attn_mask"].is_floating_point():
        options["attn_mask"] = options["attn_mask"].to(dtype)
    inputs = [x.detach().to(dtype).requires_grad_() for x in (sample.input, *sample.args)]
    output = scaled_dot_product_attention(*inputs, **options)
    return output, *torch.autograd.grad(output.sum(), inputs)


UNITS = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.mark.parametrize(("sample", "dtype"), list(operator_samples()))
def test_samples_of_the_operator(sample, dtype):
    """Numbers of up to 9 give logits in the hundreds: errors are measured by what cancels."""
    exact = run_sample(sample, torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with chumoku.torch.use():
            ours, again = run_sample(sample, dtype), run_sample(sample, dtype)
    most = [x.detach().abs().max().item() for x in (sample.input, *sample.args)]
    terms = exact[0].numel() ** 0.5 * (1 + most[2]) * (1 + max(most[:2]))
    for one, two, same in zip(ours, exact, again, strict=True):
        assert torch.equal(one, same)
        assert one.shape == two.shape
        assert one.dtype == dtype
        # What is dropped is drawn in another way.
        if not sample.kwargs.get("dropout_p"):
            error = (one.double() - two).norm().item()
            assert error <= UNITS[dtype] * (two.norm().item() + terms), error


def module_samples():
    (info,) = [m for m in module_db if m.module_cls is torch.nn.MultiheadAttention]
    for dtype in (torch.float32, torch.float64):
        for training in (True, False):
            given = {"device": "cpu", "dtype": dtype, "requires_grad": False, "training": training}
            for sample in info.module_inputs_func(info, **given):
                yield sample, dtype, training


# Built at once: a module takes a moment, and there are 256 samples.
def test_samples_of_the_module():
    count = 0
    for sample, dtype, training in module_samples():
        made, given = sample.constructor_input, sample.forward_input
        theirs = torch.nn.MultiheadAttention(*made.args, **made.kwargs).to(dtype).train(training)
        ours = chumoku.torch.MultiheadAttention(*made.args, **made.kwargs).to(dtype)
        ours.train(training).load_state_dict(theirs.state_dict())
        theirs.dropout = ours.dropout = 0.0
        expected, found = (m(*given.args, **given.kwargs) for m in (theirs, ours))
        torch.testing.assert_close(found, expected, **TOLERANCES[dtype])
        count += 1
    assert count >= 128


def test_use_reaches_every_name_and_leaves_nothing():
    q = torch.randn(2, 4, 8, 16)
    before = torch.nn.functional.scaled_dot_product_attention
    with chumoku.recording() as seen, chumoku.torch.use():
        scaled_dot_product_attention(q, q, q)
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    scaled_dot_product_attention(q, q, q)
    assert len(seen) == 2
    assert torch.nn.functional.scaled_dot_product_attention is before


def test_what_cannot_be_served_goes_to_pytorch_with_one_warning():
    q, k = torch.randn(2, 4, 8, 16), torch.randn(2, 2, 8, 16)
    wide = torch.randn(1, 2, 3, 1025)
    with chumoku.torch.use(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            assert scaled_dot_product_attention(wide, wide, wide).shape == wide.shape
        with pytest.raises(RuntimeError):
            scaled_dot_product_attention(q, k, k)
    texts = [str(w.message) for w in said if issubclass(w.category, RuntimeWarning)]
    assert len(texts) == 2
    assert "width 1025" in texts[0]
    assert "enable_gqa" in texts[1]
    assert all(t.startswith("chumoku leaves a call of scaled_dot_product") for t in texts)


@pytest.mark.parametrize("kind", ["boolean", "floats"])
def test_a_mask_and_a_triangle(kind):
    q = torch.randn(2, 4, 8, 16)
    mask = torch.rand(8, 8) > 0.3 if kind == "boolean" else torch.randn(8, 8)
    if kind == "boolean":
        mask[:, 0] = True
    expected = scaled_dot_product_attention(q, q, q, attn_mask=mask, is_causal=True)
    with chumoku.torch.use():
        found = scaled_dot_product_attention(q, q, q, attn_mask=mask, is_causal=True)
    torch.testing.assert_close(found, expected)


def test_dropout_follows_the_seed_of_pytorch():
    q = torch.randn(1, 2, 64, 16)
    with chumoku.torch.use():
        outputs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            outputs.append(scaled_dot_product_attention(q, q, q, dropout_p=0.5))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def encoder():
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def test_replace_and_restore_a_model():
    model, x = encoder(), torch.randn(2, 10, 32)
    parameters = dict(model.named_parameters())
    expected = model(x)
    expected.sum().backward()
    theirs = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    names = chumoku.torch.replace(model)
    assert names == ["layers.0.self_attn", "layers.1.self_attn"]
    assert chumoku.torch.replace(model) == []
    with chumoku.recording() as seen:
        output = model(x)
    assert len(seen) == 2
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    for p, gradient in zip(model.parameters(), theirs, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-4)
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert chumoku.torch.restore(model) == names
    assert all(type(m) is not chumoku.torch.MultiheadAttention for m in model.modules())


def test_a_recording_has_the_names_of_modules():
    model, x = encoder(), torch.randn(2, 10, 32)
    chumoku.torch.replace(model)
    with chumoku.torch.recording(model, Watch(entropy=True)) as run:
        model(x)
        chumoku.attention(x, x, x)
        with pytest.raises(RuntimeError):
            model(x[..., :7])
        model.eval()
        with torch.no_grad(), chumoku.torch.use():
            model.layers[0].self_attn(x, x, x)
    names = [entry.name for entry in run]
    assert names == ["layers.0.self_attn", "layers.1.self_attn", "attention 2", names[0]]
    assert not run["layers.1.self_attn"].statistics.entropy.requires_grad
    model(x)
    assert len(run) == 4
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(InvalidTypeError, match="model: got 3, expected a torch.nn.Module"):
        chumoku.torch.recording(3).__enter__()


def test_calls_of_a_compiled_model_are_recorded_without_names():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(8, 8)

        def forward(self, x):
            y = self.inner(x)[:, None]
            return chumoku.torch.attention(y, y, y, mask=chumoku.Causal())

    torch.compiler.reset()
    model = torch.compile(Model(), backend="eager", fullgraph=True)
    x = torch.randn(2, 5, 8)
    for _ in range(2):
        with chumoku.torch.recording(model, Watch(entropy=True)) as run:
            model(x).sum().backward()
        assert [entry.name for entry in run] == ["attention 0"]
        assert run[0].statistics.entropy.shape == (2, 1, 5)
    with chumoku.torch.recording(model) as run:
        model(x)
        model(x)
    assert [entry.name for entry in run] == ["attention 0", "attention 1"]


def module(**options):
    torch.manual_seed(0)
    return chumoku.torch.MultiheadAttention(16, 4, batch_first=True, **options)


def test_a_masked_row_is_not_nan():
    attend, x = module(), torch.randn(2, 5, 16)
    hidden = torch.tensor([[True] * 5, [False] * 5])
    output, matrix = attend(x, x, x, key_padding_mask=hidden)
    assert output.isfinite().all()
    assert (matrix[0] == 0).all()
    assert torch.allclose(matrix[1].sum(-1), torch.ones(5))
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in attend.parameters())


def test_watch_in_place_of_the_matrix():
    attend, x = module(), torch.randn(2, 5, 16)
    output, seen = attend(x, x, x, watch=Watch(top=2, entropy=True, picture=(2, 2)))
    torch.testing.assert_close(output, attend(x, x, x)[0])
    assert seen.top_keys.shape == (2, 4, 5, 2)
    seen.entropy.sum().backward()
    assert attend.in_proj_weight.grad.any()
    _, seen = attend(x[0], x[0], x[0], watch=Watch(picture=(2, 2)))
    assert seen.lse.shape == (4, 5)
    assert seen.picture[0].shape == (4, 2, 2)


@pytest.mark.parametrize("bias", [False, True])
def test_the_matrix_has_gradients(bias):
    attend, x = module().double(), torch.randn(2, 5, 16, dtype=torch.float64)
    twin = torch.nn.MultiheadAttention(16, 4, batch_first=True).double()
    twin.load_state_dict(attend.state_dict())
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    if bias:
        mask = torch.zeros(5, 5, dtype=torch.float64).masked_fill(mask, -torch.inf)
    for one in (attend, twin):
        _, matrix = one(x, x, x, attn_mask=mask, average_attn_weights=False)
        (matrix**2).sum().backward()
    for p, theirs in zip(attend.parameters(), twin.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(p.grad, theirs.grad)


def test_the_matrix_of_training_is_the_dropped_one():
    attend, x = module(dropout=0.5).train(), torch.randn(2, 30, 16)
    output, matrix = attend(x, x, x, average_attn_weights=False)
    assert 0.3 < (matrix == 0).float().mean() < 0.7
    values = torch.nn.functional.linear(
        x, attend.in_proj_weight[32:], attend.in_proj_bias[32:]
    ).view(2, 30, 4, 4)
    mixed = torch.einsum("bhqk,bkhd->bqhd", matrix, values).flatten(-2)
    torch.testing.assert_close(attend.out_proj(mixed), output)


def test_errors_of_the_module():
    attend, x = module(), torch.randn(2, 5, 16)
    with pytest.raises(InvalidArgumentError, match="is_causal: got True without attn_mask"):
        attend(x, x, x, is_causal=True)
    with pytest.raises(InvalidArgumentError, match=r"attn_mask: got shape \(5, 4\)"):
        attend(x, x, x, attn_mask=torch.zeros(5, 4, dtype=torch.bool))
    with pytest.raises(InvalidArgumentError, match=r"key_padding_mask: got shape \(2, 4\)"):
        attend(x, x, x, key_padding_mask=torch.zeros(2, 4, dtype=torch.bool))

import gc
import warnings

import numpy as np
import pytest
import torch
import transformers
from architectures import ARCHITECTURES

import chumoku
import chumoku.huggingface
from chumoku import Watch
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.huggingface import AttentionView, attention_function, mask_function, watch

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def made(**others):
    given = {"batch_size": 2, "q_length": 6, "kv_length": 6} | others
    return mask_function(**given)


# The function


class Layer(torch.nn.Module):
    is_causal = True


def tensors(queries=6, keys=6, heads=4, kv_heads=2, width=8, value_width=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = (
        (2, heads, queries, width),
        (2, kv_heads, keys, width),
        (2, kv_heads, keys, value_width),
    )
    return [torch.randn(shape, generator=g) for shape in shapes]


def eager(query, key, value, allowed=None, bias=None, scale=None, softcap=None, sinks=None):
    query, key, value = (x.double() for x in (query, key, value))
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    if sinks is not None:
        column = sinks.double()[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], -1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    return (weights @ value).transpose(1, 2), weights


def places(queries, keys, offset=0):
    return torch.arange(keys)[None] - torch.arange(queries)[:, None] - offset


CALLS = {
    "causal by module": ({}, {}, lambda d: d <= 0),
    "not causal": ({}, {"is_causal": False}, lambda d: d == d),
    "window": ({}, {"sliding_window": 3}, lambda d: (d <= 0) & (d > -3)),
    "window on both sides": (
        {},
        {"sliding_window": 3, "is_causal": False},
        lambda d: d.abs() < 3,
    ),
    "more keys": ({"keys": 9}, {}, lambda d: d <= 0),
    "value width": ({"value_width": 5}, {}, lambda d: d <= 0),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_without_a_mask(name):
    sizes, options, allowed = CALLS[name]
    query, key, value = tensors(**sizes)
    output, view = attention_function(Layer(), query, key, value, None, **options)
    shown = allowed(places(query.shape[2], key.shape[2]))
    expected, weights = eager(query, key, value, shown)
    assert output.is_contiguous()
    assert torch.allclose(output.double(), expected, atol=1e-6)
    assert torch.allclose(view.dense().double(), weights, atol=1e-6)


def test_one_query_sees_all_and_windows_end_with_it():
    query, key, value = tensors(queries=1, keys=9)
    output, _ = attention_function(Layer(), query, key, value, None)
    assert torch.allclose(output.double(), eager(query, key, value)[0], atol=1e-6)
    output, _ = attention_function(Layer(), query, key, value, None, sliding_window=4)
    expected = eager(query, key, value, places(1, 9, 8) > -4)[0]
    assert torch.allclose(output.double(), expected, atol=1e-6)


def test_scaling_softcap_sinks_and_position_bias():
    query, key, value = tensors()
    sinks, bias = torch.tensor([0.5, -1.0, 2.0, 0.0]), torch.randn(1, 4, 6, 6)
    allowed = torch.rand(2, 1, 6, 6) < 0.7
    allowed[..., 0] = True
    options = {"scaling": 0.7, "softcap": 1.5, "s_aux": sinks, "position_bias": bias}
    output, view = attention_function(Layer(), query, key, value, allowed, unknown=3, **options)
    expected, weights = eager(query, key, value, allowed, bias, 0.7, 1.5, sinks)
    assert torch.allclose(output.double(), expected, atol=1e-6)
    assert torch.allclose(view.dense().double(), weights, atol=1e-6)
    assert torch.allclose(view.row(1, 2, 3).double(), weights[1, 2, 3], atol=1e-6)
    assert torch.allclose(
        view.block(1, 3, [1, 4], slice(2, 5)).double(), weights[1, 3][[1, 4], 2:5], atol=1e-6
    )


def test_masks_of_the_user():
    query, key, value = tensors()
    numbers = torch.randn(2, 1, 6, 6)
    numbers[..., 4] = torch.finfo(torch.float32).min
    output, _ = attention_function(Layer(), query, key, value, numbers, sliding_window=2)
    assert torch.allclose(output.double(), eager(query, key, value, bias=numbers)[0], atol=1e-6)
    with pytest.raises(InvalidArgumentError, match=r"attention_mask.*\(2, 1, 6, 7\)"):
        attention_function(Layer(), query, key, value, torch.ones(2, 1, 6, 7))
    with pytest.raises(InvalidArgumentError, match="attention_mask"):
        attention_function(Layer(), query, key, value, made(kv_length=7))


def test_chosen_keys():
    query, key, value = tensors(keys=9)
    indices = torch.stack([torch.randperm(9)[:4] for _ in range(12)]).view(2, 6, 4)
    indices[0, 2, 1:] = -1
    allowed = torch.zeros(2, 1, 6, 10, dtype=torch.bool)
    allowed.scatter_(-1, indices.where(indices >= 0, 9)[:, None], True)
    allowed = allowed[..., :9]
    options = {"is_causal": False, "indices": indices}
    output, view = attention_function(Layer(), query, key, value, None, **options)
    expected, weights = eager(query, key, value, allowed)
    assert torch.allclose(output.double(), expected, atol=1e-6)
    assert torch.allclose(view.block(keys=[7, 2]).double(), weights[..., [7, 2]], atol=1e-6)


@pytest.mark.parametrize("name", ["cache", "block_indices", "sinks"])
def test_what_chumoku_does_not_have_is_refused(name):
    with pytest.raises(UnavailableError, match=rf"{name}.*eager"):
        attention_function(Layer(), *tensors(), None, **{name: object()})


def test_dropout_follows_the_seed():
    given = tensors()
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(attention_function(Layer(), *given, None, dropout=0.5)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


# Views


@pytest.fixture
def view():
    query, key, value = tensors(width=16)
    mask = made(attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]))
    _, found = attention_function(Layer(), query, key, value, mask)
    return found, eager(query, key, value, mask.dense())[1].nan_to_num(0.0).float()


INDICES = (
    0,
    (1, 2),
    (1, 2, 5),
    (1, 2, 5, 3),
    (slice(None), 1),
    (..., -1),
    (0, ..., 2),
    (slice(None), slice(1, 3), slice(0, 6, 2), slice(-3, None)),
    (None, 0),
    torch.tensor([1, 0]),
    ([0, 1], [2, 3]),
)


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing_as_a_tensor(view, index, settled):
    found, expected = view
    if settled:
        found.settle()
        assert found._kept is not None
    part = found[index]
    assert part.shape == expected[index].shape
    assert torch.allclose(part, expected[index], atol=1e-6)


@pytest.mark.parametrize("settled", [False, True])
def test_what_a_view_gives(view, settled):
    found, expected = view
    if settled:
        found.settle()
    entropy = torch.special.entr(expected).sum(-1)
    assert torch.allclose(found.entropy, entropy, atol=1e-5)
    keys, weights = found.top(2)
    most = expected.topk(2)
    assert torch.allclose(weights, most.values, atol=1e-6)
    assert torch.equal(keys, most.indices.where(most.values > 0, -1))
    assert torch.allclose(found.row(-1, -1, -1), expected[-1, -1, -1], atol=1e-6)
    assert torch.allclose(found.block(head=3), expected[:, 3], atol=1e-6)
    assert np.allclose(np.asarray(found), expected.numpy(), atol=1e-6)
    assert np.asarray(found, dtype=np.float16).dtype == np.float16
    assert torch.allclose(torch.stack([found, found]).mean(0), expected, atol=1e-6)
    assert torch.allclose(found.squeeze(0) * 2 + expected, expected * 3, atol=1e-5)
    assert (found.shape, found.ndim, len(found)) == (expected.shape, 4, 2)
    assert (found > 0.5).shape == expected.shape
    assert found.detach().cpu().tolist()[1][0][0][0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda v: v.row(2, 0, 0), "batch"),
        (lambda v: v.row(0, 4, 0), "head"),
        (lambda v: v.row(0, 0, 6), "queries"),
        (lambda v: v.block(keys=[7]), "keys"),
        (lambda v: v.top(-1), "top"),
        (lambda v: v[0, 0, 0, 9], "keys"),
    ],
)
def test_places_that_are_not_there(view, call, name):
    with pytest.raises(InvalidArgumentError, match=name):
        call(view[0])


def test_a_budget_for_tensors(view, monkeypatch):
    found, expected = view
    monkeypatch.setattr(AttentionView, "budget", 500)
    with pytest.raises(
        UnavailableError, match=r"attentions: got 1,152 bytes.*\(2, 4, 6, 6\).*\.row"
    ):
        found.dense()
    with pytest.raises(UnavailableError):
        torch.stack([found])
    with pytest.raises(UnavailableError):
        np.asarray(found)
    assert torch.allclose(found[1, 2], expected[1, 2], atol=1e-6)
    assert found.entropy.shape == (2, 4, 6)


def test_what_can_be_asked_without_computing(view, monkeypatch):
    found, _ = view
    monkeypatch.setattr(AttentionView, "dense", None)
    assert hasattr(found, "to") and hasattr(found, "retain_grad")
    assert not hasattr(found, "no_such_thing")
    assert (found.requires_grad, found.numel(), found.size(1)) == (False, 288, 4)
    assert isinstance(repr(found), str)


def test_queries_of_one_entry_for_many():
    query, key, value = tensors()
    output, view = attention_function(Layer(), query[:1], key, value, None, is_causal=False)
    expected, weights = eager(query[:1].expand(2, -1, -1, -1), key, value)
    assert torch.allclose(output.double(), expected, atol=1e-6)
    assert torch.allclose(view.dense().double(), weights, atol=1e-6)
    assert torch.allclose(view[1, 2].double(), weights[1, 2], atol=1e-6)


def test_rows_of_a_long_text():
    length = 30_000
    query, key, _ = tensors(
        queries=length, keys=length, heads=2, kv_heads=1, width=4, value_width=4
    )
    view = AttentionView(
        query,
        key,
        {"mask": chumoku.Causal(0), "bias": None, "sinks": None} | {"scale": None, "softcap": None},
    )
    with pytest.raises(UnavailableError, match="14,400,000,000 bytes"):
        view.dense()
    row = view.row(1, 1, length - 1)
    expected = (key[1, 0] @ query[1, 1, -1] / 2).softmax(-1)
    assert torch.allclose(row, expected, atol=1e-7)
    assert torch.allclose(view[1, 1, -1], expected, atol=1e-7)


def test_weights_can_be_trained():
    query, key, value = (x.requires_grad_() for x in tensors())
    _, view = attention_function(Layer(), query, key, value, made())
    (view[0, 0, 3, 1] + view.dense()[1].square().sum()).backward()
    mine = query.grad.clone()
    query.grad = None
    weights = eager(query, key, value, places(6, 6) <= 0)[1].float()
    (weights[0, 0, 3, 1] + weights[1].square().sum()).backward()
    assert torch.allclose(mine, query.grad, atol=1e-6)


def test_keys_that_were_written_over_are_noticed():
    query, key, value = tensors()
    _, view = attention_function(Layer(), query, key, value, None)
    key.zero_()
    for use in (lambda: view.entropy, lambda: view.dense(), lambda: view.row(0, 0, 0)):
        with pytest.raises(UnavailableError, match="written over"):
            use()


# Whole models


def model_of(name="llama"):
    return BY_NAME[name].build(), BY_NAME[name].given("left")


@pytest.mark.parametrize(
    "name", ["llama", "bert", "gpt-oss", "t5", "bart", "vit", "qwen2-vl", "gemma2"]
)
def test_attentions_of_outputs(name):
    model, given = model_of(name)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**given, output_attentions=True)
        with watch(model):
            found = model(**given, output_attentions=True)
    names = [n for n in expected if "attentions" in n and expected[n]]
    assert names
    for kind in names:
        assert len(found[kind]) == len(expected[kind]) > 0
        for mine, theirs in zip(found[kind], expected[kind], strict=True):
            assert isinstance(mine, AttentionView)
            seen = theirs.isfinite() & (mine.dense().sum(-1, keepdim=True) > 0)
            assert torch.allclose(mine.dense()[seen], theirs[seen], atol=1e-5)


@pytest.mark.parametrize("cache", [None, "static"])
def test_attentions_of_generate(cache):
    model, given = model_of()
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    settings = {"max_new_tokens": 5, "do_sample": False, "output_attentions": True}
    settings |= {"return_dict_in_generate": True, "cache_implementation": cache}
    model.set_attn_implementation("eager")
    expected = model.generate(**given, **settings).attentions
    with watch(model):
        found = model.generate(**given, **settings).attentions
    assert len(found) == len(expected) == 5
    for mine, theirs in zip(found, expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            # Entry 1 begins with padding, whose own rows mean nothing.
            assert torch.allclose(a.dense()[0], b[0], atol=1e-5)
            assert torch.allclose(a[1, :, -1], b[1, :, -1], atol=1e-5)


def test_steps_of_a_generation_keep_weights_alone():
    model, given = model_of()
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    with watch(model):
        found = model.generate(
            **given, max_new_tokens=4, output_attentions=True, return_dict_in_generate=True
        ).attentions
    assert all(view._kept is not None and not hasattr(view, "_key") for view in found[2])


def test_facts_of_every_layer_and_head():
    model, given = model_of()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**given, output_attentions=True).attentions
        with watch(model, Watch(entropy=True, top=2, received=True), inputs=True) as run:
            model(**given)
    assert [e.name for e in run] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    for entry, weights in zip(run, expected, strict=True):
        weights = weights[0]  # without padding
        seen = entry.statistics
        assert torch.allclose(seen.entropy[0], torch.special.entr(weights).sum(-1), atol=1e-5)
        assert torch.allclose(seen.top_weights[0], weights.topk(2).values, atol=1e-6)
        assert torch.allclose(seen.received[0], weights.sum(-2), atol=1e-5)
        assert torch.allclose(entry.weights()[0], weights, atol=1e-6)


def test_some_layers_and_heads():
    model, given = model_of()
    with (
        watch(model, Watch(top=2), heads=[3, 0], inputs=True) as some,
        watch(model, Watch(top=2)) as all_,
    ):
        model(**given)
    assert some[1].heads == (3, 0)
    assert torch.equal(some[1].statistics.lse, all_[1].statistics.lse[:, [3, 0]])
    assert torch.equal(some[1].statistics.top_keys, all_[1].statistics.top_keys[:, [3, 0]])
    assert some[1].weights(rows=0, keys=0).shape == (2, 2, 1, 1)
    for layers in (1, [1], "model.layers.1.*", ["*.1.self_attn"]):
        with watch(model, layers=layers) as run:
            model(**given)
        assert [entry.name for entry in run] == ["model.layers.1.self_attn"]


def test_layers_of_both_stacks():
    model, given = model_of("bart")
    with watch(model, layers="decoder.*.encoder_attn") as run:
        model(**given)
    assert [e.name for e in run] == [f"decoder.layers.{n}.encoder_attn" for n in (0, 1)]
    with watch(model, layers=0) as run:
        model(**given)
    kinds = [
        "encoder.layers.0.self_attn",
        "decoder.layers.0.self_attn",
        "decoder.layers.0.encoder_attn",
    ]
    assert [e.name for e in run] == kinds


def test_recordings_with_heads_are_saved(tmp_path):
    model, given = model_of()
    with watch(model, Watch(entropy=True), heads=2) as run:
        model(**given)
    run.save(tmp_path / "run.npz")
    again = chumoku.record.Recording.load(tmp_path / "run.npz")
    assert [entry.heads for entry in again] == [(2,), (2,)]
    assert again.heads == (2,)
    assert np.array_equal(again[1].statistics.entropy, run[1].statistics.entropy.detach().numpy())


@pytest.mark.parametrize("before", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "clip", "qwen2-vl", "llava", "t5"])
def test_everything_is_as_before(name, before):
    model, given = model_of(name)
    model.set_attn_implementation(before)
    parts = [m.config for m in model.modules() if isinstance(m, transformers.PreTrainedModel)]
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(KeyboardInterrupt), watch(model):
        assert {config._attn_implementation for config in parts} == {"chumoku"}
        raise KeyboardInterrupt
    assert {config._attn_implementation for config in parts} == {before}
    assert hooks == [len(m._forward_pre_hooks) for m in model.modules()]
    assert not any("chumoku" in key for m in model.modules() for key in vars(m))
    with watch(model) as run:
        pass
    model(**given)
    assert len(run) == 0


def test_parts_with_implementations_of_their_own_get_them_back():
    model, _ = model_of("clip")
    model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    with watch(model):
        pass
    assert model.text_model.config._attn_implementation == "eager"
    assert model.vision_model.config._attn_implementation == "sdpa"


def test_both_towers_are_seen():
    model, given = model_of("clip")
    with watch(model) as run:
        model(**given)
    assert {entry.name.split(".")[0] for entry in run} == {"text_model", "vision_model"}


def test_the_permanent_switch():
    config = transformers.LlamaConfig(**BY_NAME["llama"].config, attn_implementation="chumoku")
    model = transformers.LlamaForCausalLM(config).eval()
    given = BY_NAME["llama"].given("left")
    with chumoku.torch.recording(model) as run:
        mine = model(**given).logits
    assert [entry.name for entry in run] == [f"model.layers.{n}.self_attn" for n in (0, 1)]
    model.set_attn_implementation("eager")
    real = given["attention_mask"].bool()
    assert torch.allclose(mine[real], model(**given).logits[real], atol=1e-6)


@pytest.mark.parametrize("name", ["t5", "mt5"])
def test_no_bias_is_stored(name, monkeypatch):
    model, given = model_of(name)
    kind = type(model.encoder.block[0].layer[0].SelfAttention)
    shapes = []
    bucket = kind._relative_position_bucket

    def counted(positions, **others):
        shapes.append(tuple(positions.shape))
        return bucket(positions, **others)

    monkeypatch.setattr(kind, "_relative_position_bucket", staticmethod(counted))
    with watch(model), torch.no_grad():
        model(**given)
    assert shapes
    assert all(shape[0] == 1 for shape in shapes)


def test_nothing_as_large_as_the_weights_is_held():
    """2,000 tokens: the weights of a layer would be 64 MB, and its mask 4 MB."""
    import resource

    model, _ = model_of()
    model.config.max_position_embeddings = 4096
    length = 2000
    ids = torch.randint(3, 90, (1, length))
    mask = torch.ones_like(ids)
    mask[:, :7] = 0
    with watch(model, Watch(top=4, entropy=True, received=True)), torch.no_grad():
        model(input_ids=ids[:, :50], attention_mask=mask[:, :50])
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        model(input_ids=ids, attention_mask=mask)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000


# Models that cannot be reached


def tiny(kind, **config):
    kind = getattr(transformers, kind)
    return kind(kind.config_class(**config)).eval()


def bloom():
    return tiny("BloomModel", vocab_size=90, hidden_size=16, n_layer=2, n_head=2)


def test_a_model_outside_the_interface_is_refused():
    match = r"h\.0\.self_attention, .*BloomAttention.*eager"
    with pytest.raises(UnavailableError, match=match), watch(bloom()):
        pass


def test_a_part_outside_the_interface_is_named():
    class Both(transformers.PreTrainedModel):
        config_class = transformers.LlamaConfig
        _supports_sdpa = True

        def __init__(self, config):
            super().__init__(config)
            self.inside = BY_NAME["llama"].build()
            self.outside = bloom()

    model = Both(BY_NAME["llama"].build().config)
    match = r"outside\.h\.0\.self_attention.*BloomAttention.*eager"
    with pytest.warns(RuntimeWarning, match=match), watch(model) as run:
        model.inside(**BY_NAME["llama"].given())
    assert len(run) == 2


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"layers": 7}, InvalidArgumentError, r"layers.*7.*model\.layers\.0\.self_attn"),
        ({"layers": "nothing"}, InvalidArgumentError, "layers"),
        ({"layers": [1.5]}, InvalidTypeError, "layers"),
        ({"layers": True}, InvalidTypeError, "layers"),
        ({"layers": 1.0}, InvalidTypeError, "layers"),
        ({"layers": []}, InvalidArgumentError, "layers.*no layer"),
        ({"without": [(5, 0)]}, InvalidArgumentError, "without.*5"),
        ({"heads": -1}, InvalidArgumentError, "heads"),
        ({"heads": [1, 1]}, InvalidArgumentError, "heads"),
        ({"heads": []}, InvalidArgumentError, "heads"),
        ({"heads": "first"}, InvalidTypeError, "heads"),
        ({"watch": {"top": 3}}, InvalidTypeError, "watch"),
        ({"budget": 0}, InvalidArgumentError, "budget"),
        ({"inputs": 1}, InvalidTypeError, "inputs"),
    ],
)
def test_wrong_wishes(options, error, match):
    with pytest.raises(error, match=match), watch(model_of()[0], **options):
        pass


def test_a_head_that_no_layer_has():
    model, given = model_of()
    with watch(model, heads=4), pytest.raises(InvalidArgumentError, match="heads.*head 4.*0 to 3"):
        model(**given)


def test_no_model():
    for wrong in (torch.nn.Linear(2, 2), "llama", None):
        with pytest.raises(InvalidTypeError, match=r"model.*transformers"), watch(wrong):
            pass


def test_what_transformers_says_of_a_switch_is_not_said_twice(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with watch(model_of()[0]):
            pass
    assert not [r for r in caplog.records if "attention implementation" in r.message]

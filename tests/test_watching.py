"""Blocks inside and beside one another, models that compute with their masks, and copies."""

import copy
import pickle
from contextlib import ExitStack

import numpy as np
import pytest
import torch
import transformers
from architectures import ARCHITECTURES, BART, SIZES, VISION
from transformers.masking_utils import and_masks, causal_mask_function, or_masks

from chumoku import Watch
from chumoku.errors import UnavailableError
from chumoku.huggingface import AttentionView, mask_function, watch

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def model_of(name="llama"):
    architecture = BY_NAME[name]
    return architecture.build(), architecture.given()


def first(outputs):
    return next(x for x in outputs.values() if isinstance(x, torch.Tensor) and x.dim() == 3)


# Models that know "eager" alone


def test_a_model_that_adds_its_mask_does_not_look_ahead():
    torch.manual_seed(0)
    model = transformers.GitModel(transformers.GitConfig(**SIZES, vision_config=VISION)).eval()
    ids = torch.randint(3, 90, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        with pytest.warns(RuntimeWarning, match="GitSelfAttention"), watch(model):
            assert (model(ids).last_hidden_state - expected).abs().max() < 1e-5


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_that_hands_its_mask_to_its_experts(compiled):
    config = {**BART, "num_experts": 2, "encoder_sparse_step": 2, "decoder_sparse_step": 2}
    torch.manual_seed(0)
    model = transformers.NllbMoeModel(transformers.NllbMoeConfig(**config)).eval()
    ids = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(1))
    run = torch.compile(model, backend="eager") if compiled else model
    with torch.no_grad():
        expected = model(input_ids=ids, decoder_input_ids=ids).last_hidden_state
        with watch(model):
            found = run(input_ids=ids, decoder_input_ids=ids).last_hidden_state
    assert (found - expected).abs().max() < 1e-5


def test_masks_are_numbers_where_models_add_them():
    config = transformers.NllbMoeConfig(**BART)
    options = {"batch_size": 1, "q_length": 3, "kv_length": 3, "dtype": torch.bfloat16}
    mask = mask_function(**options, config=config)
    least = torch.finfo(torch.bfloat16).min
    hidden = torch.ones(3, 3, dtype=torch.bool).triu(1)
    assert mask.dtype == torch.bfloat16
    assert torch.equal(mask.dense()[0, 0], torch.zeros(3, 3).masked_fill(hidden, least).bfloat16())
    boolean = mask_function(**options, config=transformers.LlamaConfig())
    assert boolean.dtype == torch.bool


# Masks that ask for the batch entry alone

FLAG = torch.tensor([True, False, True])


def flagged(b, h, q, k):
    return FLAG[b]


@pytest.mark.parametrize("queries", [1, 8])
@pytest.mark.parametrize(
    "function",
    [
        flagged,
        or_masks(causal_mask_function, flagged),
        and_masks(causal_mask_function, flagged),
        or_masks(and_masks(flagged, causal_mask_function), lambda b, h, q, k: ~FLAG[b]),
    ],
)
def test_masks_of_the_batch_entry(function, queries):
    lazy = mask_function(3, queries, 8, 8 - queries, 0, function)
    places = torch.meshgrid(
        *(torch.arange(n) for n in (3, 1)), torch.arange(8 - queries, 8), torch.arange(8)
    )
    assert torch.equal(lazy.dense(), function(*places).expand(3, 1, queries, 8))


# Which layers


def test_numbers_count_the_layers_of_t5():
    model, given = model_of("t5")
    for number in (0, 1):
        with watch(model, layers=number) as run, torch.no_grad():
            model(**given)
        assert [entry.name for entry in run] == [
            f"encoder.block.{number}.layer.0.SelfAttention",
            f"decoder.block.{number}.layer.0.SelfAttention",
            f"decoder.block.{number}.layer.1.EncDecAttention",
        ]


def test_numbers_count_the_layers_of_each_model():
    both = torch.nn.ModuleList([BY_NAME["bert"].build(), BY_NAME["llama"].build()])
    with watch(both, layers=np.int64(1)) as run, torch.no_grad():
        for name, model in zip(("bert", "llama"), both, strict=True):
            model(**BY_NAME[name].given())
    names = [entry.name for entry in run]
    assert names == ["0.encoder.layer.1.attention.self", "1.model.layers.1.self_attn"]


# Blocks inside and beside one another


def test_a_part_is_watched_inside_its_model():
    model, given = model_of()
    for outer, inner in ((model, model.model), (model.model, model)):
        with watch(outer) as all_, watch(inner, layers=0) as some, torch.no_grad():
            model(**given)
        assert len(all_) == 2
        assert [entry.name for entry in some] == [all_[0].name]


def test_heads_of_both_blocks_are_silent():
    model, given = model_of()
    with torch.no_grad():
        with watch(model, without=[(0, 0), (0, 1)]):
            expected = model(**given).logits
        with watch(model, without=[(0, 0)]), watch(model, without=[(0, 1)]):
            assert torch.equal(model(**given).logits, expected)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_blocks_may_end_in_any_order(order):
    model, given = model_of()
    before = model.config._attn_implementation
    stacks, runs = [ExitStack(), ExitStack()], []
    for stack in stacks:
        runs.append(stack.enter_context(watch(model)))
    stacks[order[0]].close()
    assert model.config._attn_implementation == "chumoku"
    with torch.no_grad():
        model(**given)
    stacks[order[1]].close()
    assert model.config._attn_implementation == before
    assert not any("chumoku" in name for module in model.modules() for name in vars(module))


def test_a_switch_that_fails_is_taken_back(monkeypatch):
    model, _ = model_of("clip")
    before = [part.config._attn_implementation for part in (model, model.vision_model)]

    def fail(self, implementation):
        raise ValueError("no")

    monkeypatch.setattr(type(model.vision_model), "set_attn_implementation", fail)
    with pytest.raises(ValueError, match="no"), watch(model):
        pass
    assert [p.config._attn_implementation for p in (model, model.vision_model)] == before


# What is kept


def test_weights_of_sinks_that_are_parameters():
    model, given = model_of("gpt-oss")
    with watch(model, inputs=True) as run, torch.no_grad():
        model(**given)
    assert run[0].weights(rows=[3]).shape == (2, 4, 1, 24)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_views(copied):
    model, given = model_of()
    with watch(model), torch.no_grad():
        view = model(**given, output_attentions=True).attentions[0]
        assert torch.equal(copied(view)[0, 1], view[0, 1])
        view._key.add_(1)
    with pytest.raises(UnavailableError, match="written over"):
        copied(view)[0, 1]


def test_a_copy_of_t5_is_free():
    model, given = model_of("t5")
    with torch.no_grad():
        expected = first(model(**given))
        with watch(model):
            copied = copy.deepcopy(model)
        copied.set_attn_implementation("eager")
        assert (first(copied(**given)) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "bert", "t5"])
def test_one_entry_of_a_batch_alone(name, monkeypatch):
    model, given = model_of(name)
    with watch(model), torch.no_grad():
        outputs = model(**given, output_attentions=True)
    views = outputs.get("attentions", outputs.get("decoder_attentions"))
    wanted = [view.dense() for view in views]
    one = views[0].shape[2:].numel() * 4
    monkeypatch.setattr(AttentionView, "budget", one)
    for view, whole in zip(views, wanted, strict=True):
        for entry in range(2):
            assert torch.allclose(view[entry, 1], whole[entry, 1], atol=1e-6)


def test_more_of_what_tensors_have():
    model, given = model_of()
    with watch(model, Watch()), torch.no_grad():
        view = model(**given, output_attentions=True).attentions[0]
    whole = view.dense()
    assert view.size(dim=1) == 4
    assert view.is_floating_point()
    assert torch.equal(torch.from_dlpack(view), whole)
    assert torch.equal(view // 0.5, whole // 0.5)
    assert torch.equal(2**view, 2**whole)
    assert torch.equal(+view, whole)
    assert whole[0, 0, 0, 0] in view
    with pytest.raises(UnavailableError, match=r"retain_grad.*dense\(\)"):
        view.retain_grad()

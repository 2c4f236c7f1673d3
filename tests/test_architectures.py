"""Models of transformers give on chumoku what they give on "eager", and are seen layer by layer.

`python tests/test_architectures.py` measures all and writes docs/reference/architectures.md.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, PADDING, Architecture

import chumoku.huggingface
from chumoku import Watch

DOCS = Path(__file__).parents[1] / "docs" / "reference" / "architectures.md"
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
OUTPUTS = ("logits", "last_hidden_state", "text_embeds", "image_embeds")
SIDES = ("right", "left")

pytestmark = [
    # What transformers says of configurations that are this small, and of itself.
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def outputs(model: Any, given: dict[str, Any], real: torch.Tensor) -> list[torch.Tensor]:
    """What a model gives for positions that are no padding."""
    dtype = next(model.parameters()).dtype
    given = {n: x.to(dtype) if x.is_floating_point() else x for n, x in given.items()}
    with torch.no_grad():
        found = model(**given)
    kept = []
    for name in OUTPUTS:
        if isinstance(found.get(name), torch.Tensor):
            x = found[name].float()
            whole = x.dim() == 3 and x.shape[1] == real.shape[1]
            kept.append(x[real] if whole else x)
    assert kept
    return kept


def compared(architecture: Architecture, dtype: torch.dtype, side: str) -> dict[str, Any]:
    """Outputs on chumoku, "eager" and "sdpa", as far as they are from one another."""
    given, real = architecture.given(side), architecture.real(side)
    model = architecture.build(dtype)
    found = {}
    for implementation in ("eager", "sdpa"):
        try:
            model.set_attn_implementation(implementation)
        except ValueError:  # this architecture does not have it
            continue
        found[implementation] = outputs(model, given, real)
    with chumoku.huggingface.watch(model, Watch(entropy=True)) as run:
        found["chumoku"] = outputs(model, given, real)
    if dtype != torch.float32:
        exact = architecture.build(torch.float32)
        exact.set_attn_implementation("eager")
        found["exact"] = outputs(exact, given, real)
    found["calls"] = len(run)
    return found


def distance(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


def bound(found: dict[str, Any]) -> float:
    """How far chumoku may be from "eager"."""
    eager = found["eager"]
    largest = max(float(x.abs().max()) for x in eager)
    theirs = 2 * distance(found["sdpa"], eager) if "sdpa" in found else 0.0
    return max(theirs, 2e-6 * largest)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", BY_NAME)
def test_float32_equals_eager(name: str, side: str) -> None:
    found = compared(BY_NAME[name], torch.float32, side)
    assert distance(found["chumoku"], found["eager"]) <= bound(found)
    assert found["calls"] >= 2


@pytest.mark.parametrize("name", BY_NAME)
def test_bfloat16_is_as_near_as_theirs(name: str) -> None:
    """As near to "eager" as twice "sdpa", or no farther from float32 than "eager" or "sdpa"."""
    found = compared(BY_NAME[name], torch.bfloat16, "left")
    exact = found["exact"]
    theirs = max(distance(found[n], exact) for n in ("eager", "sdpa") if n in found)
    near = distance(found["chumoku"], found["eager"]) <= bound(found)
    assert near or distance(found["chumoku"], exact) <= 1.25 * theirs


# What must be noticed: a mask that is lost, a window, sinks, a softcap.

TEXTS = [a.name for a in ARCHITECTURES if "attention_mask" in a.given()]
SETTINGS = [(a.name, setting) for a in ARCHITECTURES for setting in a.settings]


@pytest.mark.parametrize("name", TEXTS)
def test_a_lost_mask_is_noticed(name: str) -> None:
    architecture = BY_NAME[name]
    side = "left"
    found = compared(architecture, torch.float32, side)
    model = architecture.build()
    given = architecture.given(side)
    given["attention_mask"] = torch.ones_like(given["attention_mask"])
    with chumoku.huggingface.watch(model):
        lost = outputs(model, given, architecture.real(side))
    assert distance(lost, found["eager"]) > 10 * bound(found)


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_a_lost_setting_is_noticed(name: str, setting: str) -> None:
    """The same weights without the window or the softcap are another model."""
    architecture = BY_NAME[name]
    found = compared(architecture, torch.float32, "right")
    other = Architecture(
        **{
            **vars(architecture),
            "config": architecture.config | {setting: architecture.settings[setting]},
        }
    )
    model = other.build()
    with chumoku.huggingface.watch(model):
        lost = outputs(model, other.given(), other.real())
    assert distance(lost, found["eager"]) > 10 * bound(found)


def test_lost_sinks_are_noticed() -> None:
    architecture = BY_NAME["gpt-oss"]
    found = compared(architecture, torch.float32, "right")
    model = architecture.build()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("sinks"):
                weight.fill_(-1e9)
    with chumoku.huggingface.watch(model):
        lost = outputs(model, architecture.given(), architecture.real())
    assert distance(lost, found["eager"]) > 10 * bound(found)


# Generation

DECODERS = (
    "llama", "mistral", "gemma2", "gemma3", "gpt-oss", "llama4", "deepseek-v3", "deepseek-v3.2",
    "gpt2", "t5", "bart",
)  # fmt: skip
WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DECODERS)
def test_generate_equals_eager(name: str, way: str) -> None:
    architecture = BY_NAME[name]
    model = architecture.build()
    if architecture.inputs == "seq2seq":
        kind = architecture.model.replace("Model", "ForConditionalGeneration")
        model = getattr(transformers, kind)(model.config).eval()
    given = architecture.given("left")
    given.pop("decoder_input_ids", None)
    if way == "prompt lookup":
        given = {name: x[:1] for name, x in given.items()}
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None

    def generated() -> Any:
        return model.generate(
            **given, max_new_tokens=8, do_sample=False, return_dict_in_generate=True,
            output_scores=True, **WAYS[way],
        )  # fmt: skip

    model.set_attn_implementation("eager")
    expected = generated()
    with chumoku.huggingface.watch(model) as run:
        found = generated()
    assert torch.equal(found.sequences, expected.sequences)
    for mine, theirs in zip(found.scores, expected.scores, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    assert len(run) > 4


def test_assisted_generation() -> None:
    model, assistant = BY_NAME["llama"].build(), BY_NAME["smollm3"].build()
    ids = BY_NAME["llama"].given()["input_ids"][:1]
    settings = {"max_new_tokens": 8, "do_sample": False, "assistant_model": assistant}
    for one in (model, assistant):
        one.set_attn_implementation("eager")
        one.generation_config.pad_token_id, one.generation_config.eos_token_id = 0, None
    expected = model.generate(ids, **settings)
    with chumoku.huggingface.watch(model), chumoku.huggingface.watch(assistant):
        assert torch.equal(model.generate(ids, **settings), expected)


# Training

TRAINED = ("llama", "gemma2", "gpt-oss", "bert", "t5", "modernbert", "deepseek-v3", "vit")


def without_dropout(model: Any) -> Any:
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        for name in ("attention_dropout", "attention_probs_dropout_prob"):
            if hasattr(getattr(module, "config", None), name):
                setattr(module.config, name, 0.0)
    return model


def gradients(architecture: Architecture, implementation: str, checkpointing: bool) -> Any:
    model = without_dropout(architecture.build())
    model.set_attn_implementation(implementation)
    if checkpointing:
        model.gradient_checkpointing_enable()
    found = model(**architecture.given(), use_cache=False)
    main = next(found[name] for name in OUTPUTS if name in found)
    real = architecture.real()
    main = main[real] if main.shape[1] == real.shape[1] else main
    weight = torch.linspace(-1, 1, main.numel()).view(main.shape)
    (main * weight).sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("name", TRAINED)
def test_gradients_equal_eager(name: str, checkpointing: bool) -> None:
    eager, ours = (
        gradients(BY_NAME[name], implementation, checkpointing)
        for implementation in ("eager", "chumoku")
    )
    assert eager.keys() == ours.keys()
    for parameter, gradient in eager.items():
        far = float((ours[parameter] - gradient).norm())
        # Some parameters' gradients are zero but for rounding: a bias of keys, for one.
        assert far <= 1e-5 * float(gradient.norm()) + 1e-5, parameter


COMPILED = (
    "deepseek-v3.2",
    "llama",
    "mistral",
    "gemma2",
    "bert",
    "modernbert",
    "t5",
    "vit",
    "deepseek-v3",
)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_without_graph_breaks(name: str) -> None:
    architecture = BY_NAME[name]
    model, given = architecture.build(), architecture.given("left")
    model.set_attn_implementation("chumoku")
    with torch.no_grad():
        expected = outputs(model, given, architecture.real("left"))
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        found = outputs(compiled, given, architecture.real("left"))
    assert distance(found, expected) <= 1e-5


def test_compiled_models_are_watched() -> None:
    model, given = BY_NAME["llama"].build(), BY_NAME["llama"].given("left")
    with chumoku.huggingface.watch(model, Watch(entropy=True), layers=1) as run, torch.no_grad():
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        compiled(**given)
        compiled(**given)
        plain = model(**given).logits
        assert torch.allclose(compiled(**given).logits, plain, atol=1e-6)
    assert [entry.name for entry in run] == ["model.layers.1.self_attn"] * 4
    assert torch.allclose(run[0].statistics.entropy, run[2].statistics.entropy, atol=1e-6)


def test_compiled_dropout_follows_the_seed() -> None:
    model, given = BY_NAME["bert"].build(), BY_NAME["bert"].given("left")
    model.train()
    model.set_attn_implementation("chumoku")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    found = []
    for run in (model, compiled, compiled):
        torch.manual_seed(len(found) // 2)
        found.append(run(**given)[0])
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert not torch.allclose(found[1], found[2], atol=1e-3)


def test_a_compiled_step_with_a_static_cache() -> None:
    model, given = BY_NAME["llama"].build(), BY_NAME["llama"].given("left")
    model.set_attn_implementation("chumoku")

    def steps(run: Any) -> torch.Tensor:
        cache = transformers.StaticCache(config=model.config, max_cache_len=40)
        mask, found = given["attention_mask"], [model(**given, past_key_values=cache).logits[:, -1]]
        for _ in range(3):
            mask = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], 1)
            ids = found[-1].argmax(-1, keepdim=True)
            given_now = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
            place = mask.sum(1, keepdim=True) - 1
            found.append(run(**given_now, position_ids=place).logits[:, -1])
        return torch.stack(found)

    with torch.no_grad():
        torch._dynamo.reset()
        compiled = steps(torch.compile(model, backend="eager", fullgraph=True))
        assert torch.allclose(compiled, steps(model), atol=1e-6)
        model.set_attn_implementation("eager")
        assert torch.allclose(compiled, steps(model), atol=1e-5)


# The table


def row(architecture: Architecture) -> str:
    found = compared(architecture, torch.float32, "left")
    sdpa = f"{distance(found['sdpa'], found['eager']):.1e}" if "sdpa" in found else "has none"
    largest = max(float(x.abs().max()) for x in found["eager"])
    narrow = compared(architecture, torch.bfloat16, "left")
    exact = narrow["exact"]
    cells = [
        architecture.name,
        architecture.what,
        f"{distance(found['chumoku'], found['eager']):.1e}",
        sdpa,
        f"{largest:.1f}",
        f"{distance(narrow['chumoku'], exact):.1e}",
        f"{distance(narrow['eager'], exact):.1e}",
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = f"""# Architectures of transformers

Written by `python tests/test_architectures.py`. Each architecture of transformers
{transformers.__version__} below is built as small as it goes, with random weights (queries and keys
made larger, so that its masks matter), and given two texts, one of them with {PADDING} tokens of
padding on the left, or images, or speech. The first three numbers are largest differences of the
outputs at real tokens in float32, chumoku's and "sdpa"'s, from "eager"'s, and the largest output
itself. The last two are differences of the same model in bfloat16 from "eager" in float32.

The tests do the same with padding on both sides, and see that a lost mask, window, softcap or sink
is noticed in each of them.

| architecture | what is in it | chumoku | sdpa | largest output | bfloat16 | eager bfloat16 |
|---|---|---|---|---|---|---|
"""


def test_the_table_is_written_anew() -> None:
    names = [
        line.split("|")[1].strip() for line in DOCS.read_text().splitlines() if line[:1] == "|"
    ]
    assert names[2:] == list(BY_NAME)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    DOCS.write_text(HEAD + "\n".join(row(a) for a in ARCHITECTURES) + "\n")

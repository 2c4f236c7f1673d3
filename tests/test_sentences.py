"""Treebanks: files that are strange and right, files that are wrong, words found in the text."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from strange import anything, outcome

from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.heads import Sentence, parse_treebank, read_treebank


def line(number: object, form: str, head: object, relation: str, misc: str = "_") -> str:
    return f"{number}\t{form}\t_\t_\t_\t_\t{head}\t{relation}\t_\t{misc}\n"


CAT = (
    "# sent_id = 1\n# text = The cat sat.\n"
    + line(1, "The", 2, "det")
    + line(2, "cat", 3, "nsubj:pass")
    + line(3, "sat", 0, "root", "SpaceAfter=No")
    + line(4, ".", 3, "punct")
    + "\n"
)


def spelled(sentence: Sentence) -> list[str]:
    assert sentence.spans is not None
    return [sentence.text[start:end] for start, end in sentence.spans]


def test_a_plain_sentence() -> None:
    (cat,) = parse_treebank(CAT)
    assert cat.text == "The cat sat."
    assert cat.words == ("The", "cat", "sat", ".")
    assert cat.governors == (1, 2, -1, 2)
    assert cat.relations == ("det", "nsubj", "root", "punct")
    assert cat.spans == ((0, 3), (4, 7), (8, 11), (11, 12))


def test_words_that_are_written_as_one() -> None:
    text = (
        "# text = I don't go au lit.\n"
        + line(1, "I", 4, "nsubj")
        + line("2-3", "don't", "_", "_")
        + line(2, "do", 4, "aux", "SpaceAfter=No")
        + line(3, "n't", 4, "advmod")
        + line(4, "go", 0, "root")
        + line("4.1", "gone", "_", "_")
        + line("5-6", "au", "_", "_")
        + line(5, "à", 7, "case")
        + line(6, "le", 7, "det")
        + line(7, "lit", 4, "obl", "SpaceAfter=No|Gloss=bed")
        + line(8, ".", 4, "punct")
    )
    (seen,) = parse_treebank(text)
    assert seen.words == ("I", "do", "n't", "go", "à", "le", "lit", ".")
    assert spelled(seen) == ["I", "do", "n't", "go", "au", "au", "lit", "."]
    (bare,) = parse_treebank(text.replace("# text", "# not text"))
    assert (bare.text, bare.spans) == (seen.text, seen.spans)


def test_the_text_decides_where_words_are() -> None:
    changed = CAT.replace("The cat sat.", "  The\u00a0cat   sat .  ")
    assert spelled(parse_treebank(changed)[0]) == ["The", "cat", "sat", "."]
    other = parse_treebank(CAT.replace("The cat sat.", "The cat sits."))[0]
    assert other.spans is None
    assert parse_treebank(CAT.replace("The cat sat.", "The cat sat. Amen."))[0].spans is None
    equals = parse_treebank(CAT.replace("The cat sat.", "The cat = sat ."))[0]
    assert equals.text == "The cat = sat ."
    spaces = "# text = 10 000\n" + line(1, "10 000", 0, "root") + "\n"
    assert spelled(parse_treebank(spaces)[0]) == ["10 000"]
    assert parse_treebank(spaces.replace("\t10 000", "\t10  000"))[0].spans == ((0, 6),)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\n\n" + text + "\n \n\n",
        lambda text: text.rstrip("\n"),
        lambda text: "# newdoc\n\n" + text,
        lambda text: (
            "# global.columns = ID FORM LEMMA UPOS XPOS FEATS HEAD DEPREL DEPS MISC\n" + text
        ),
        lambda text: text.replace("2\tcat", "0.1\tempty" + "\t_" * 8 + "\n# in between\n2\tcat"),
        lambda text: text.replace("\t_\n", "\t\n"),
    ],
)
def test_files_that_look_strange_and_are_right(
    tmp_path: Path, change: Callable[[str], str]
) -> None:
    file = tmp_path / "cat.conllu"
    text = change(CAT)
    file.write_bytes(text.encode("utf-8"))
    (cat,) = read_treebank(file)
    assert cat == parse_treebank(CAT)[0]


BROKEN = {
    "": "no sentence",
    "# text = nothing\n\n": "no sentence",
    "The cat sat on the mat.\n": "line 1 with 1 column: 'The cat sat on the mat.', expected",
    '{"a": 1}': "There are treebanks at https://universaldependencies.org.",
    "1  The  the  DET  _  _  2  det  _  _\n": "line 1 with 1 column",
    CAT + CAT[: CAT.rindex("\tpunct")]: "The file seems to be cut off: fetch it again.",
    CAT.replace("3\tsat", "x\tsat"): "at line 1: Failed parsing field 'id': 'x' is not a valid ID",
    CAT + CAT.replace("3\tsat", "7\tsat"): "at line 8: ID 7 after 2 words, expected words num",
    CAT.replace("2\tcat", "_\tcat"): "ID _ after 1 words",
    CAT.replace("\t2\tdet", "\ttwo\tdet"): "'two' is not a valid value",
    CAT.replace("\t2\tdet", "\t_\tdet"): "HEAD _ of word 1, expected 0 to 4, for it has 4 words",
    CAT.replace("\t2\tdet", "\t9\tdet"): "HEAD 9 of word 1",
    CAT.replace("\t2\tdet", "\t-1\tdet"): "HEAD -1 of word 1",
    CAT.replace("\t0\troot", "\t2\troot"): "word 2 depends on itself, over 2 steps",
    CAT.replace("\t2\tdet", "\t1\tdet"): "word 1 depends on itself, over 1 steps",
    CAT.replace("4\t.", "4-6\t..\t_\t_\t_\t_\t_\t_\t_\t_\n4\t."): "a range to 6 over 4 words",
    CAT.replace("1\tThe", "1-2\tX" + "\t_" * 8 + "\n1-2\tX" + "\t_" * 8 + "\n1\tThe"): "ID 1-2",
    "# global.columns = ID FORM\n" + CAT: "line 1: the columns ID FORM, expected the columns ID",
}


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_treebank_says_why(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(BROKEN[text])) as caught:
        parse_treebank(text)
    assert str(caught.value).startswith("treebank: got ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="path: got .*No such file.*CoNLL-U file"):
        read_treebank(tmp_path / "missing.conllu")
    with pytest.raises(InvalidArgumentError, match="path: got .*directory"):
        read_treebank(tmp_path)
    file = tmp_path / "cat.conllu"
    file.write_bytes(CAT.encode("utf-16"))
    with pytest.raises(InvalidArgumentError, match="not UTF-8 from byte 1 on.*compressed or conv"):
        read_treebank(file)
    with pytest.raises(InvalidTypeError, match="path: got 3, expected a path"):
        read_treebank(3)  # type: ignore[arg-type]


def test_without_the_package_the_cure_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "conllu", None)
    with pytest.raises(UnavailableError, match=r'pip install "chumoku\[treebank\]"'):
        parse_treebank(CAT)


def test_nothing_but_the_library_s_errors() -> None:
    rng = random.Random(0)
    marks = ["\t", "\n", "#", "1", "-", ".", "_", " ", "=", "0", "é", "|", "\u2028"]
    for _ in range(1500):
        text = list(CAT * 2)
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(text))
            text[place : place + rng.randrange(3)] = rng.choice(marks)
        seen = outcome(parse_treebank, "".join(text))
        assert seen is InvalidArgumentError or all(isinstance(s, Sentence) for s in seen)
    for _ in range(1500):
        fields = [anything(rng) if rng.random() < 0.4 else good for good in ("ab", ["a", "b"])]
        fields += [anything(rng) if rng.random() < 0.4 else good for good in ([1, -1], ["x", "y"])]
        outcome(Sentence, *fields, spans=anything(rng) if rng.random() < 0.4 else [(0, 1), (1, 2)])
        outcome(parse_treebank, anything(rng))
        outcome(read_treebank, anything(rng))


def test_sentences_are_trees() -> None:
    for wrong, message in (
        ({"governors": (1, 0)}, "word 1 depends on itself, over 2 steps, expected a tree"),
        ({"governors": (-1,)}, "governors: got 1, expected one for each of the 2 words"),
        ({"governors": (-1, 2)}, "word 2 of 2 depends on word 3"),
        ({"relations": ("x",)}, "relations: got 1, expected one for each"),
        ({"spans": ((0, 1), (1, 3))}, "spans: got (1, 3), expected 2 pairs of places, in order"),
        ({"spans": ((1, 2), (0, 1))}, "spans: got (0, 1)"),
    ):
        with pytest.raises(InvalidArgumentError, match=re.escape(message)):
            Sentence("ab", ("a", "b"), **{"governors": (1, -1), "relations": ("x", "y"), **wrong})
    long = 3000
    chain = Sentence("", ("a",) * long, (*range(1, long), -1), ("x",) * long)
    assert chain.governors[0] == 1

"""Tokens: ids as SentencePiece gives them, offsets into the text as it was typed."""

import random
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chumoku.errors import ChumokuError, InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.tokens import JsonTokenizer, Token, Tokenizer, Unigram

needs_tokenizers = pytest.mark.skipif(
    find_spec("tokenizers") is None, reason="the package tokenizers is not installed"
)

CONTROL = ["<s>", "<pad>", "</s>", "<unk>"]
WORDS = ["▁", "▁the", "▁cat", "the", "cat", "s", "t", "h", "e", "c", "a", "▁a", "at", "A", "B", "1"]
JAPANESE = [
    "▁その",
    "その",
    "猫",
    "は",
    "可愛い",
    "可",
    "愛",
    "い",
    "株式",
    "会社",
    "が",
    "カ",
    "ガ",
    "é",
]
NORMALISER = {
    **{chr(0xFF21 + n): chr(ord("A") + n) for n in range(26)},
    "\n": " ",
    "\t": " ",
    "\u3000": " ",
    "\xa0": " ",
    "\u2581": " ",
    "\x1b": "",
    "\u200d": " ",
    "㍿": "株式会社",
    "①": "1",
    "ｶ": "カ",
    "ﾞ": "\u3099",
}
# Hypothesis draws mostly from what the small vocabulary and the normaliser know.
CHARS = (
    "thecas AB1その猫は可愛い株式会社がカé"
    + "".join(NORMALISER)
    + "か\u3099e\u0301🙂𠮷ᄒ\u1161\u11ab"
)
TEXTS = st.text(st.one_of(st.sampled_from(CHARS), st.characters(exclude_categories=["Cs"])))


def unigram(**changes: Any) -> Unigram:
    pieces = CONTROL + WORDS + JAPANESE
    random.seed(0)
    scores = [0.0] * len(CONTROL) + [-random.uniform(1, 12) / len(p) for p in WORDS + JAPANESE]
    options = {"unknown": 3, "begin": 0, "end": 2, "normaliser": NORMALISER, **changes}
    return Unigram(pieces, scores, **options)


def words(tokens: Sequence[Token]) -> list[str]:
    return [token.text for token in tokens]


def seen(tokenizer: Tokenizer, text: str) -> list[tuple[str, str]]:
    """Each token's text, and the characters it stands for."""
    return [
        (token.text, text[token.start : token.end])
        for token in tokenizer.encode(text)[0]
        if not token.special
    ]


def test_the_best_path_is_taken() -> None:
    pieces = ["<unk>", "▁", "a", "b", "ab", "▁a", "▁ab"]
    tokenizer = Unigram(pieces, [0, -1, -2, -2, -3.5, -2.4, -9], unknown=0)
    tokens, cut = tokenizer.encode("ab")
    assert [token.piece for token in tokens] == ["▁a", "b"]  # -4.4, "▁" "ab" -4.5
    assert cut == 0
    tokens, _ = Unigram(pieces, [0, -1, -2, -2, -3.3, -2.4, -9], unknown=0).encode("ab")
    assert [token.piece for token in tokens] == ["▁", "ab"]


def test_special_tokens_and_ids() -> None:
    tokens, _ = unigram().encode("その猫")
    assert [token.id for token in tokens][0::3] == [0, 2]
    assert [(t.text, t.start, t.end, t.special) for t in tokens] == [
        ("<s>", -1, -1, True),
        ("その", 0, 2, False),
        ("猫", 2, 3, False),
        ("</s>", -1, -1, True),
    ]
    assert tokens[1].piece == "▁その"


def test_control_tokens_are_not_matched_by_the_text() -> None:
    tokens, _ = unigram().encode("<s> </s>")
    assert [token.id for token in tokens if token.id in (0, 2)] == [0, 2]
    assert words(tokens)[1:-1] == ["␣", "<", "s", ">", "␣", "</", "s", ">"]


def test_unknown_characters_join_and_stay_readable() -> None:
    tokens, _ = unigram().encode("𠮷野の猫")
    assert [(t.text, t.unknown, t.start, t.end) for t in tokens[1:-1]] == [
        ("␣", False, 0, 0),
        ("𠮷野の", True, 0, 3),
        ("猫", False, 3, 4),
    ]
    assert (tokens[2].id, tokens[2].piece) == (3, "<unk>")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  the \n\t cat ", [("the", "the"), ("cat", "cat")]),
        ("ＡＢ", [("␣", ""), ("Ａ", "Ａ"), ("Ｂ", "Ｂ")]),
        ("㍿", [("␣", ""), ("株式", "㍿"), ("会社", "㍿")]),
        ("ｶﾞ", [("␣", ""), ("ｶﾞ", "ｶﾞ")]),
        ("か\u3099", [("␣", ""), ("か\u3099", "か\u3099")]),
        ("e\u0301①", [("␣", ""), ("e\u0301", "e\u0301"), ("①", "①")]),
        ("猫🙂", [("␣", ""), ("猫", "猫"), ("🙂", "🙂")]),
        ("猫\u3000猫", [("␣", ""), ("猫", "猫"), ("␣", "\u3000"), ("猫", "猫")]),
        ("c\x1bat", [("cat", "c\x1bat")]),
        ("\u0301e", [("␣", ""), ("◌\u0301", "\u0301"), ("e", "e")]),
        ("\u009b", [("␣", ""), ("U+009B", "\u009b")]),
        ("\u202e猫", [("␣", ""), ("U+202E", "\u202e"), ("猫", "猫")]),
    ],
)
def test_what_a_person_reads_and_where_it_stands(
    text: str, expected: list[tuple[str, str]]
) -> None:
    assert seen(unigram(), text) == expected


@given(TEXTS)
def test_offsets_follow_the_text_and_miss_nothing(text: str) -> None:
    try:
        tokens, cut = unigram().encode(text)
    except InvalidArgumentError:
        removed = {c for c in text if NORMALISER.get(c, c).strip(" ")}
        assert not removed
        return
    assert cut == 0
    inner = tokens[1:-1]
    start, end = 0, 0
    covered: set[int] = set()
    for token in inner:
        assert start <= token.start <= token.end <= len(text)
        assert end <= token.end
        assert token.text == token.text.strip(" ") != ""
        start, end = token.start, token.end
        covered |= set(range(token.start, token.end))
    for index, char in enumerate(text):
        assert index in covered or not NORMALISER.get(char, char).strip(" ")


@given(st.text("thecas AB1その猫は可愛い"))
def test_characters_that_stay_as_they_are_are_shown_as_typed(text: str) -> None:
    if not text.strip():
        return
    tokens, _ = unigram().encode(text)
    assert "".join(t.text for t in tokens if t.text != "␣" and not t.special) == text.replace(
        " ", ""
    )
    for token in tokens[1:-1]:
        assert token.text == (text[token.start : token.end].strip() or "␣")


@given(TEXTS, st.integers(3, 20))
def test_a_limit_cuts_the_end_and_counts_it(text: str, limit: int) -> None:
    try:
        whole, _ = unigram().encode(text)
    except InvalidArgumentError:
        return
    tokens, cut = unigram().encode(text, limit)
    assert len(tokens) <= limit
    assert len(tokens) + cut == len(whole)
    assert [t.id for t in tokens[:-1]] == [t.id for t in whole[: len(tokens) - 1]]
    assert tokens[-1] == whole[-1]


@pytest.mark.parametrize("text", ["", " ", "\n\t \u3000", "\x1b"])
def test_texts_with_nothing_to_see_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="one visible character"):
        unigram().encode(text)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidTypeError, match="bytes"):
        unigram().encode(b"cat")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="U\\+D83D at character 1"):
        unigram().encode("a\ud83d")
    for limit in (0, 2, -1):
        with pytest.raises(InvalidArgumentError, match="special"):
            unigram().encode("cat", limit)
    with pytest.raises(InvalidTypeError, match="whole number"):
        unigram().encode("cat", 2.5)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="one for each"):
        Unigram(["a"], [], unknown=0)
    with pytest.raises(InvalidArgumentError, match="unknown"):
        Unigram(["a"], [-1], unknown=1)


def test_many_marks_on_one_letter_end_soon() -> None:
    tokens, _ = unigram().encode("e" + "\u0301\u0323" * 20_000)
    assert tokens[-1].special


def theirs(tokenizer: Unigram, scores: Sequence[float]) -> Any:
    """The same model in the package tokenizers, behind our normaliser."""
    from tokenizers import Tokenizer as Theirs
    from tokenizers import models, pre_tokenizers

    built = Theirs(models.Unigram(list(zip(tokenizer.pieces, scores, strict=True)), unk_id=0))
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    return built


@needs_tokenizers
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_package_tokenizers_takes_the_same_path(seed: int) -> None:
    draw = random.Random(seed)
    alphabet = "abcあ🙂"
    made = {
        "".join(draw.choices("▁" + alphabet, weights=[1, 4, 4, 4, 2, 2], k=draw.randint(1, 4)))
        for _ in range(draw.randint(2, 60))
    }
    pieces = ["<unk>", *sorted(made)]
    scores = [0.0, *(-draw.uniform(0.1, 20) for _ in made)]
    ours = Unigram(pieces, scores, unknown=0)
    # It takes the least score of all pieces for unknown characters, ours leaves control tokens out.
    package = theirs(ours, [min(scores[1:]), *scores[1:]])
    for _ in range(20):
        text = "".join(draw.choices(alphabet + " z𠮷", k=draw.randint(1, 30)))
        text = " ".join(text.split()) or "a"
        tokens, _ = ours.encode(text)
        assert [token.id for token in tokens] == package.encode(text).ids, text


# A tokenizer.json


@pytest.fixture
def wordpiece(tmp_path: Path) -> Path:
    """A small uncased BERT tokenizer, with the truncation and padding that files often bring."""
    pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    from tokenizers import Tokenizer as Theirs
    from tokenizers import models, normalizers, pre_tokenizers, processors

    listed = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "the",
        "cat",
        "##s",
        "cafe",
        "jump",
        "##ing",
        "は",
    ]
    vocabulary = {piece: place for place, piece in enumerate(listed)}
    built = Theirs(models.WordPiece(vocabulary, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer()
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    built.enable_truncation(4)
    built.enable_padding(length=16)
    built.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_a_tokenizer_json_gives_tokens_as_typed(wordpiece: Path) -> None:
    tokens, cut = JsonTokenizer(wordpiece).encode("The Cafés, jumping 猫は")
    assert cut == 0
    assert [(t.text, t.id, t.start, t.end, t.special, t.unknown) for t in tokens] == [
        ("[CLS]", 2, -1, -1, True, False),
        ("The", 4, 0, 3, False, False),
        ("Café", 7, 4, 8, False, False),
        ("s", 6, 8, 9, False, False),
        (",", 1, 9, 10, False, True),
        ("jump", 8, 11, 15, False, False),
        ("ing", 9, 15, 18, False, False),
        ("猫", 1, 19, 20, False, True),
        ("は", 10, 20, 21, False, False),
        ("[SEP]", 3, -1, -1, True, False),
    ]
    assert tokens[3].piece == "##s"
    assert tokens[4].piece == "[UNK]"
    assert len(JsonTokenizer(wordpiece)) == 11


def test_a_tokenizer_json_is_cut_before_its_last_token(wordpiece: Path) -> None:
    tokens, cut = JsonTokenizer(wordpiece).encode("the cat " * 10, limit=5)
    assert words(tokens) == ["[CLS]", "the", "cat", "the", "[SEP]"]
    assert cut == 17


def test_a_tokenizer_json_refuses_what_ours_refuses(wordpiece: Path) -> None:
    tokenizer = JsonTokenizer(wordpiece)
    for text in ("", "  \n", "\ud83d", None):
        with pytest.raises(ChumokuError):
            tokenizer.encode(text)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="limit"):
        tokenizer.encode("cat", 2)


@needs_tokenizers
def test_spaces_inside_offsets_are_not_counted(tmp_path: Path) -> None:
    tokenizer = unigram(begin=None, end=None, unknown=3)
    built = theirs(tokenizer, np.linspace(-1, -9, len(tokenizer)).tolist())
    built.save(str(tmp_path / "tokenizer.json"))
    text = " the  cat"
    for shown, typed in seen(JsonTokenizer(tmp_path / "tokenizer.json"), text):
        assert shown == typed.strip() or (shown == "␣" and not typed.strip())


@needs_tokenizers
def test_a_damaged_or_missing_tokenizer_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no file"):
        JsonTokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidArgumentError, match=r"tokenizer\.json"):
        JsonTokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(InvalidArgumentError, match=r"tokenizer\.json"):
        JsonTokenizer(tmp_path / "tokenizer.json")


def test_without_the_package_the_cure_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UnavailableError, match=r"chumoku\[bert\]"):
        JsonTokenizer(tmp_path / "tokenizer.json")


def test_importing_tokens_imports_no_package() -> None:
    code = "import sys, chumoku.tokens; assert 'tokenizers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_normaliser_is_applied_before_marks_are_composed() -> None:
    decomposed = unicodedata.normalize("NFD", "ガ")
    for text in ("ガ", decomposed, "ｶﾞ"):
        tokens, _ = unigram().encode(text)
        assert [token.piece for token in tokens[1:-1]] == ["▁", "ガ"]
        assert (tokens[2].start, tokens[2].end) == (0, len(text))

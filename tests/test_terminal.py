"""Drawings: aligned at every width, safe for hostile text, and plain where they must be."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from test_scene import tiny

from chumoku import heads as roles
from chumoku import trap as traps
from chumoku.errors import UnavailableError
from chumoku.tokens import Token
from chumoku.view.explanation import explanation
from chumoku.view.scene import (
    Gaze,
    HeadsScene,
    Model,
    Scene,
    Sink,
    TrapScene,
    gaze,
    model_of,
    scene,
)
from chumoku.view.terminal import (
    Page,
    Span,
    cells,
    explain,
    heads,
    ink,
    look,
    picture,
    trap,
    visible,
    write,
)
from chumoku.view.terminal.ink import bar, fit, length, level, percent, wrap
from chumoku.view.terminal.names import Names

pytest.importorskip("rich", reason="the package rich is missing")
pytest.importorskip("wcwidth", reason="the package wcwidth is missing")

WIDTHS = (60, 80, 120, 200)
SENTENCE = "the cat and a dog 👨‍👩‍👧 その猫 e\u0301"
HOSTILE = ("\x1b[31mred", "\x07", "\u202egnp", "a\x9bJ", "\x1b]0;title\x07", "\u200b", "x\ry")


def fake(texts, weights=None, **more) -> Scene:
    """A scene of one head that looks at these tokens."""
    tokens = tuple(
        Token(text, i, -1, -1, special=i in (0, len(texts) - 1)) for i, text in enumerate(texts)
    )
    special = np.array([token.special for token in tokens])
    if weights is None:
        weights = np.random.default_rng(0).dirichlet(np.ones(len(texts)), len(texts))
    seen = gaze(weights, special, None, None, 3)
    one = Gaze(2, 6, weights, seen.rows)
    model = Model("fake", 12, 12, 384, 512)
    received = weights.mean(axis=0)
    sink = Sink(int(received.argmax()), float(received.max()))
    return Scene(model, " ".join(texts), tokens, 0, seen, (), sink, (one,), **more)


def drawings(lang, width):
    """Every drawing there is, of one sentence."""
    page = Page(width=width, lang=lang)
    model = tiny()
    encoding = model.encode(SENTENCE)
    silent = model.encode(SENTENCE, without={(0, 1)})
    yield look(scene(model, SENTENCE, encoding), page)
    yield look(scene(model, SENTENCE, encoding, layer=1), page, every=True)
    yield look(scene(model, SENTENCE, encoding, layer=1, head=2, top=6), page)
    yield look(scene(model, SENTENCE, encoding, query=2), page)
    yield look(scene(model, SENTENCE, silent, before=encoding, silenced={(0, 1)}), page)
    yield explain(explanation(model, SENTENCE, encoding, 2), page)
    study = traps.width_study((4, 16), keys=8, queries=16)
    map_ = traps.saturated_heads(encoding)
    yield trap(TrapScene(traps.three_rows(), study, 8, model_of(model), SENTENCE, 3, map_), page)
    raw, words = roles.viewpoints(encoding), roles.viewpoints(encoding, special=False)
    yield heads(HeadsScene(model_of(model), (SENTENCE,), 2, 3, raw, words), page)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("lang", ["en", "ja"])
def test_no_line_is_wider_than_the_page(lang, width):
    for lines in drawings(lang, width):
        text = write(lines, Page(width=width, lang=lang), colour=False)
        assert max(cells(line) for line in text.splitlines()) <= width
        assert len(text.splitlines()) == len(lines)


def test_bars_begin_in_one_column_whatever_the_tokens():
    texts = ["<s>", "猫", "👨‍👩‍👧", "e\u0301", "か\u3099", "internationalization", "ｶﾞ", "</s>"]
    lines = look(fake(texts), Page(width=80))
    starts = set()
    for line in lines:
        for place, span in enumerate(line):
            if span.bar is not None and span.ink in ("accent", "pale"):
                starts.add((length(line[:place]), cells(span.text)))
    # Those of the rows, and those of the heads below.
    assert len(starts) == 2


@pytest.mark.parametrize("width", WIDTHS)
def test_maps_are_rectangles(width):
    texts = ["<s>", "その", "猫", "は", "可愛い", "a", "</s>"]
    lines = [line for line in look(fake(texts), Page(width=width)) if any(s.level for s in line)]
    assert lines
    for place, span in enumerate(lines[0]):
        assert cells(span.text) == cells(lines[1][place].text)


def test_a_long_text_shows_some_rows_and_says_how_many_more():
    texts = ["<s>", *(f"w{i}" for i in range(40)), "</s>"]
    some = write(look(fake(texts), Page()), Page(), colour=False)
    assert "28 more tokens" in some and "w11" in some
    every = write(look(fake(texts), Page(), every=True), Page(), colour=False)
    assert "more tokens" not in every and " 40 w39 " in every


def test_the_sink_is_said_aloud():
    weights = np.tile([0.76, 0.14, 0.1], (3, 1))
    text = write(look(fake(["<s>", "猫", "</s>"], weights), Page()), Page(), colour=False)
    assert "76 % of all attention goes to <s>." in text
    even = np.full((4, 4), 0.25)
    text = write(look(fake(["<s>", "a", "b", "</s>"], even), Page()), Page(), colour=False)
    assert "No single token is a sink here" in text


def test_both_views_are_labelled():
    text = write(look(fake(["<s>", "猫", "は", "</s>"]), Page()), Page(), colour=False)
    assert "without special tokens" in text and "raw, all tokens" in text


def test_a_token_that_occurs_twice_carries_its_index():
    names = Names(fake(["<s>", "the", "cat", "the", "</s>"]).tokens, Page())
    assert names.texts == ["<s>", "the#1", "cat", "the#3", "</s>"]
    assert names.plain[1] == "the"


def test_a_cut_text_is_said():
    lines = look(fake(["<s>", "a", "</s>"], None), Page())
    assert "left out" not in write(lines, Page(), colour=False)
    cut = fake(["<s>", "a", "</s>"])
    cut = Scene(**{**cut.__dict__, "left_out": 7})
    assert "7 were left out" in write(look(cut, Page()), Page(), colour=False)


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp932"])
def test_hostile_tokens_reach_no_terminal(monkeypatch, colour, encoding):
    monkeypatch.setenv("TERM", "xterm-256color")
    page = Page(encoding=encoding)
    seen = fake(["<s>", *HOSTILE, "</s>"])
    text = write(look(seen, page), page, colour=colour)
    own = re.sub(r"\x1b\[[0-9;]*m", "", text) if colour else text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]", own)
    assert "\x1b[31mred" not in text
    own.encode(encoding)
    svg = picture(look(seen, Page()), Page(), command="chumoku look \x1b[31m")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", svg)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[0m", "␛[0m"),
        ("a\nb\tc", "a␊b␉c"),
        ("\x7f", "␡"),
        ("\x9b", "\\u009b"),
        ("\u202e", "\\u202e"),
        ("\ufeff", "\\ufeff"),
        ("\u3099", "◌\u3099"),
        ("👨‍👩‍👧", "👨‍👩‍👧"),
        ("\u200d", "\\u200d"),
        ("猫", "猫"),
    ],
)
def test_what_may_be_seen(text, shown):
    assert visible(text) == shown
    assert visible(shown) == shown


def test_encodings_without_a_character_get_a_stand_in():
    assert visible("猫 × √4 · …", "ascii") == "\\u732b x sqrt 4 - ..."
    assert visible("猫", "cp932") == "猫"
    assert not Page(encoding="ascii").blocks and not Page(encoding="nonsense").blocks


def test_ascii_drawings_are_ascii():
    page = Page(encoding="ascii")
    for lines in (look(fake(["<s>", "猫", "は", "</s>"]), page),):
        text = write(lines, page, colour=False)
        assert text.isascii() and "###" in text and "@@" in text


def test_colours_come_only_when_asked_for(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = look(fake(["<s>", "猫", "</s>"]), Page())
    assert "\x1b" not in write(lines, Page(), colour=False)
    coloured = write(lines, Page(), colour=True)
    # Rich keeps the first form in which a style was written: full colours, or the nearest of 256.
    assert re.search(r"\x1b\[38;(2;224;96;15|5;166)m", coloured)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == write(lines, Page(), colour=False)


def test_bars_have_eighths_and_are_never_empty_for_something():
    page = Page()
    assert bar(0.5, 4, page).text == "██  "
    assert bar(0.53125, 4, page).text == "██▏ "
    assert bar(0.006, 4, page).text == "▏   "
    assert bar(0, 4, page).text == "    "
    assert bar(7, 4, page).text == "████"
    assert bar(0.375, 4, page, leftwards=True).text == "  ▐█"
    assert bar(0.5, 4, Page(encoding="ascii")).text == "##  "
    for share in np.linspace(0, 1, 50):
        assert cells(bar(share, 9, page).text) == 9


def test_blocks_grow_with_the_share():
    glyphs = [level(share, 3, Page()).text for share in (0, 0.2, 0.5, 1)]
    assert glyphs == [" · ", "▁▁▁", "▄▄▄", "▇▇▇"]


def test_percent_is_five_cells():
    assert [percent(x) for x in (0, 0.001, 0.07, 0.5, 1)] == [
        "  0 %",
        " <1 %",
        "  7 %",
        " 50 %",
        "100 %",
    ]


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("猫", 4, "猫  "),
        ("可愛い", 4, "可… "),
        ("可愛い", 5, "可愛…"),
        ("cat", 3, "cat"),
        ("か\u3099き", 3, "か\u3099…"),
        ("abc", 1, "…"),
    ],
)
def test_text_fits_into_cells(text, width, shown):
    assert fit(text, width, Page()) == shown
    assert cells(fit(text, width, Page(), right=True)) == width


def test_sentences_break_where_they_may():
    assert wrap("one two three", 8) == ["one two", "three"]
    for line in wrap("これは、とても長い文です。折り返しを確かめます。" * 3, 20):
        assert cells(line) <= 20 and line[0] not in "、。っょ"
    assert wrap("このトークンはトークンです", 12)[0] in ("この", "このトークン")
    assert all(cells(line) <= 10 for line in wrap("x" * 35, 10))


def test_a_picture_is_svg_that_loads_nothing():
    seen = fake(["<s>", "<b>&", "猫", "</s>"])
    svg = picture(look(seen, Page()), Page(), command="chumoku look 'a <b>& 猫'")
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "猫" in texts and "<b>&" in texts
    assert re.findall(r"https?:[^\"]+|url\(|@import|href|<script", svg) == [
        "http://www.w3.org/2000/svg"
    ]
    assert "prefers-color-scheme: dark" in svg


def test_missing_packages_name_the_line_that_cures_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    with pytest.raises(UnavailableError, match=r"chumoku\[look\]"):
        write([(Span("a"),)], Page(), colour=False)
    monkeypatch.setitem(__import__("sys").modules, "wcwidth", None)
    ink._wcwidth.cache_clear()
    with pytest.raises(UnavailableError, match="wcwidth"):
        cells("猫")

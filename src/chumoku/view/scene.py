"""Scene: where a model looks in one text. The one data form that every view draws.

`to_json` turns a scene, and the result of any other command, into plain dicts, lists and numbers
in full precision, field by field: the dataclasses below are the schema of what `--json` prints.
Nothing in here is a sentence: views find their words in `chumoku.words`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from chumoku.heads import HeadMap
    from chumoku.huggingface.looking import Looked, TextModel
    from chumoku.models import Encoder, Encoding
    from chumoku.tokens import Token
    from chumoku.trap import Row as Row3
    from chumoku.trap import TrapMap, TrapPoint

Floats = NDArray[np.float64]

# A column that gathers this share of all attention is called a sink (Gu et al. 2024 use 0.3).
SINK = 0.3
# Heads that a scene singles out.
STANDOUTS = 3


@dataclass(frozen=True)
class Look:
    """One key and the weight it gets."""

    key: int
    weight: float


@dataclass(frozen=True)
class Row:
    """Where one token looks.

    Attributes
    ----------
    query : int
        Index of the token that looks.
    raw : tuple of Look
        Its largest weights, as they are; all weights of the row sum to 1.
    words : tuple of Look
        The same with the special tokens left out: the remaining weights divided by their sum.
        Empty for a special token.
    to_words : float
        That sum: the share of the attention that stays among the words.
    """

    query: int
    raw: tuple[Look, ...]
    words: tuple[Look, ...]
    to_words: float


@dataclass(frozen=True)
class Gaze:
    """The weights of one head, or the mean of several, over the whole text.

    Attributes
    ----------
    layer, head : int or None
        None means the mean over all of them. Both count from 0.
    weights : (tokens, tokens) float64
        Raw weights, rows look at columns.
    rows : tuple of Row
        One for each token.
    """

    layer: int | None
    head: int | None
    weights: Floats
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Sink:
    """The token on which the most attention lands, and its share of all attention."""

    key: int
    share: float

    @property
    def rests(self) -> bool:
        """Whether so much lands there that it counts as a sink."""
        return self.share >= SINK


@dataclass(frozen=True)
class HeadPart:
    """One head of a layer, for one token.

    Attributes
    ----------
    head : int
    row : Row
        Where it looks.
    norm : float or None
        Length of the vector it adds to the joined result: its part after the output matrix; None
        where the model does not keep the parts apart.
    """

    head: int
    row: Row
    norm: float | None


@dataclass(frozen=True)
class Query:
    """The heads of one layer side by side, for one token.

    Attributes
    ----------
    token, layer : int
    chosen : bool
        Whether the layer was asked for; otherwise it is the one whose heads look the most at
        words from this token.
    heads : tuple of HeadPart
    joined : float or None
        Length of the sum of the heads' parts.
    """

    token: int
    layer: int
    chosen: bool
    heads: tuple[HeadPart, ...]
    joined: float | None


@dataclass(frozen=True)
class Change:
    """What silencing heads did.

    Attributes
    ----------
    silenced : tuple of (layer, head)
    before : Gaze
        Where the tokens looked with every head heard.
    moved : tuple of float
        For each token, the share of its attention that went elsewhere: half the sum of the
        absolute differences of its raw weights.
    state : tuple of float
        For each token, the length of the change of its final state, relative to the state before.
    cosine : tuple of float
        For each token, the cosine between its final states before and after.
    """

    silenced: tuple[tuple[int, int], ...]
    before: Gaze
    moved: tuple[float, ...]
    state: tuple[float, ...]
    cosine: tuple[float, ...]


@dataclass(frozen=True)
class Model:
    """What is known of a model at a glance.

    Attributes
    ----------
    name : str
    layers, heads, width, positions : int
        Heads are those of each layer; positions is how many tokens are read.
    causal : bool
        Whether it is a decoder, whose tokens see only what stands before them.
    inside : bool
        Whether the parts of its heads are known, so that they can be explained.
    """

    name: str
    layers: int
    heads: int
    width: int
    positions: int
    causal: bool = False
    inside: bool = True


@dataclass(frozen=True)
class Scene:
    """Where a model looks in one text.

    Attributes
    ----------
    model : Model
    text : str
    tokens : tuple of Token
        text, id, start, end (offsets in the text, -1 for special tokens), special.
    left_out : int
        Tokens that did not fit into the model's positions and were cut off at the end.
    gaze : Gaze
        What was asked for: one head, the mean of a layer, or the mean of all heads.
    heads : tuple of Gaze
        Every head of the layer, when a layer was asked for and no head.
    sink : Sink
    standouts : tuple of Gaze
        The heads that look the most decidedly from word to other word, each with a pattern of its
        own: `STANDOUTS` of them, the most decided first.
    query : Query or None
    change : Change or None
    written : tuple of Row
        Where the model looked when it wrote each of the last tokens: `query` is the token
        written, the looks are those of the token before it.
    """

    model: Model
    text: str
    tokens: tuple[Token, ...]
    left_out: int
    gaze: Gaze
    heads: tuple[Gaze, ...]
    sink: Sink
    standouts: tuple[Gaze, ...]
    query: Query | None = None
    change: Change | None = None
    written: tuple[Row, ...] = ()


@dataclass(frozen=True)
class TrapScene:
    """The softmax trap: in three rows, against the width, and in a model's heads.

    Attributes
    ----------
    rows : tuple of chumoku.trap.Row
        Logits that are too large, right, too small.
    study : tuple of chumoku.trap.TrapPoint
    model, text : of the text that was given, or None
    heads : chumoku.trap.TrapMap or None
    """

    rows: tuple[Row3, ...]
    study: tuple[TrapPoint, ...]
    keys: int
    model: Model | None = None
    text: str | None = None
    left_out: int = 0
    heads: TrapMap | None = None


@dataclass(frozen=True)
class HeadsScene:
    """What each head looks at, raw and with the special tokens left out.

    Attributes
    ----------
    model : Model
    texts : tuple of str
        Those that were read.
    unread : int
        How many more there were.
    left_out : int
        Tokens of the texts that did not fit into the model's positions.
    raw, words : chumoku.heads.HeadMap
    """

    model: Model
    texts: tuple[str, ...]
    unread: int
    left_out: int
    raw: HeadMap
    words: HeadMap


@dataclass(frozen=True)
class Machine:
    """What `chumoku info` knows.

    Attributes
    ----------
    versions : dict of name to version, None when not installed
    system : str
    isa : str
        Instruction set of the native kernel.
    threads : int
    kernels : dict of name to the sentence why it does not run here, None when it runs
    model : (package, version or None)
        Package of the default model.
    """

    versions: dict[str, str | None]
    system: str
    isa: str
    threads: int
    kernels: dict[str, str | None]
    model: tuple[str, str | None]


def scene(
    encoder: Encoder | TextModel,
    text: str,
    encoding: Encoding | Looked,
    *,
    layer: int | None = None,
    head: int | None = None,
    query: int | None = None,
    top: int = 3,
    before: Encoding | Looked | None = None,
    silenced: Collection[tuple[int, int]] = (),
) -> Scene:
    """The scene of one encoded text.

    Parameters
    ----------
    encoder, text, encoding
        The model, the text, and what `encoder.encode(text)` gave.
    layer, head : int, optional
        Which head, or the mean of which layer; the mean of all heads when not given.
    query : int, optional
        Token for which the heads of a layer are put side by side.
    top : int
        How many keys each row names.
    before : Encoding, optional
        The same text with every head heard, when `encoding` is without the heads in `silenced`.
    """
    special = np.array([token.special for token in encoding.tokens], dtype=bool)
    weights = _mean(encoder, encoding, layer, head)
    heads: tuple[Gaze, ...] = ()
    if layer is not None and head is None:
        each = np.asarray(encoding.weights(layer), dtype=np.float64)
        heads = tuple(gaze(w, special, layer, h, top) for h, w in enumerate(each))
    received = weights.mean(axis=0)
    change = None
    if before is not None:
        change = _change(encoder, encoding, before, weights, (layer, head, top), silenced)
    return Scene(
        model=model_of(encoder),
        text=text,
        tokens=tuple(encoding.tokens),
        left_out=int(encoding.truncated),
        gaze=gaze(weights, special, layer, head, top),
        heads=heads,
        sink=Sink(int(received.argmax()), float(received.max())),
        standouts=_standouts(encoder, encoding, special, top),
        query=None if query is None else _query(encoder, encoding, special, query, layer, top),
        change=change,
        written=_written(encoding, weights, special, top),
    )


def model_of(encoder: Encoder | TextModel) -> Model:
    """Name and sizes of a model."""
    sizes = len(encoder.layers), encoder.heads, encoder.width, encoder.positions
    causal = getattr(encoder, "writes", None)
    return Model(encoder.name, *sizes, bool(causal), causal is None)


def gaze(
    weights: Floats, special: NDArray[np.bool_], layer: int | None, head: int | None, top: int
) -> Gaze:
    """The rows of a (tokens, tokens) matrix of weights."""
    rows = tuple(row(i, weights[i], special, top) for i in range(len(weights)))
    return Gaze(layer, head, weights, rows)


def row(query: int, weights: Floats, special: NDArray[np.bool_], top: int) -> Row:
    """Where one token looks, raw and with the special tokens left out."""
    to_words = float(weights[~special].sum())
    words: tuple[Look, ...] = ()
    if not special[query] and to_words > 0:
        words = largest(among_words(weights, special), top, ~special)
    return Row(query, largest(weights, top, np.ones_like(special)), words, to_words)


def among_words(weights: Floats, special: NDArray[np.bool_]) -> Floats:
    """Weights (..., keys) with the special keys left out: the rest divided by its sum."""
    kept = np.where(special, 0.0, weights)
    total = kept.sum(axis=-1, keepdims=True)
    shared: Floats = np.divide(kept, total, out=np.zeros_like(kept), where=total > 0)
    return shared


def to_json(value: Any) -> Any:
    """Dataclasses, arrays and NumPy numbers as plain dicts, lists and numbers, nothing rounded."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, (frozenset, set)):
        return [to_json(item) for item in sorted(value)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def largest(weights: Floats, count: int, allowed: NDArray[np.bool_]) -> tuple[Look, ...]:
    """The largest of the allowed weights above 0; equal ones in the order of the text."""
    order = [int(k) for k in np.argsort(-weights, kind="stable") if allowed[k] and weights[k] > 0]
    return tuple(Look(k, float(weights[k])) for k in order[:count])


def _written(
    encoding: Encoding | Looked, weights: Floats, special: NDArray[np.bool_], top: int
) -> tuple[Row, ...]:
    count, last = getattr(encoding, "generated", 0), len(encoding.tokens)
    rows = []
    for token in range(last - count, last):
        found = row(token - 1, weights[token - 1], special, top)
        rows.append(Row(token, found.raw, found.words, found.to_words))
    return tuple(rows)


def _mean(
    encoder: Encoder | TextModel,
    encoding: Encoding | Looked,
    layer: int | None,
    head: int | None,
) -> Floats:
    """One head, the mean of a layer, or the mean of all heads, in float64."""
    if layer is None:
        total = np.zeros((len(encoding.tokens), len(encoding.tokens)))
        for index in range(len(encoder.layers)):
            total += np.asarray(encoding.weights(index), dtype=np.float64).mean(axis=0)
        return total / len(encoder.layers)
    if head is None:
        mean: Floats = np.asarray(encoding.weights(layer), dtype=np.float64).mean(axis=0)
        return mean
    return np.asarray(encoding.weights(layer, head), dtype=np.float64)


def _standouts(
    encoder: Encoder | TextModel,
    encoding: Encoding | Looked,
    special: NDArray[np.bool_],
    top: int,
) -> tuple[Gaze, ...]:
    """Heads by their mean weight, over the words, on the one other word they look at the most.

    A head whose words mostly look where those of a head before it look is passed over.
    """
    words = np.flatnonzero(~special)
    if words.size < 2:
        return ()
    scores, keys = [], []
    for layer in range(len(encoder.layers)):
        block = np.asarray(encoding.weights(layer))[:, words[:, None], words]
        block = np.where(np.eye(words.size, dtype=bool), -1.0, block)
        scores.append(block.max(axis=-1).mean(axis=-1))
        keys.append(block.argmax(axis=-1))
    score, key = np.concatenate(scores), np.concatenate(keys)
    kept: list[int] = []
    for one in np.argsort(-score, kind="stable").tolist():
        if all((key[one] == key[other]).mean() <= 0.5 for other in kept):
            kept.append(one)
        if len(kept) == STANDOUTS:
            break
    places = [divmod(one, encoder.heads) for one in kept]
    return tuple(
        gaze(_mean(encoder, encoding, layer, head), special, layer, head, top)
        for layer, head in places
    )


def _query(
    encoder: Encoder | TextModel,
    encoding: Encoding | Looked,
    special: NDArray[np.bool_],
    token: int,
    layer: int | None,
    top: int,
) -> Query:
    chosen = layer is not None
    if layer is None:
        among = [
            float(np.asarray(encoding.weights(index))[:, token, ~special].sum())
            for index in range(len(encoder.layers))
        ]
        layer = int(np.argmax(among))
    weights = np.asarray(encoding.weights(layer), dtype=np.float64)[:, token]
    norms: list[float | None] = [None] * len(weights)
    joined = None
    traces = getattr(encoding, "traces", None)
    if traces is not None:
        parts = np.asarray(traces[layer].parts, dtype=np.float64)[:, token]
        norms = np.asarray(traces[layer].norms, dtype=np.float64)[:, token].tolist()
        joined = float(np.linalg.norm(parts.sum(axis=0)))
    heads = tuple(
        HeadPart(h, row(token, weights[h], special, top), norms[h]) for h in range(len(weights))
    )
    return Query(token, layer, chosen, heads, joined)


def _change(
    encoder: Encoder | TextModel,
    after: Encoding | Looked,
    before: Encoding | Looked,
    weights: Floats,
    shown: tuple[int | None, int | None, int],
    silenced: Collection[tuple[int, int]],
) -> Change:
    layer, head, top = shown
    special = np.array([token.special for token in before.tokens], dtype=bool)
    was = _mean(encoder, before, layer, head)
    old = np.asarray(before.states, dtype=np.float64)
    new = np.asarray(after.states, dtype=np.float64)
    length = np.linalg.norm(old, axis=-1)
    cosine = (old * new).sum(axis=-1) / (length * np.linalg.norm(new, axis=-1))
    return Change(
        silenced=tuple(sorted(silenced)),
        before=gaze(was, special, layer, head, top),
        moved=tuple((np.abs(weights - was).sum(axis=-1) / 2).tolist()),
        state=tuple((np.linalg.norm(new - old, axis=-1) / length).tolist()),
        cosine=tuple(cosine.tolist()),
    )

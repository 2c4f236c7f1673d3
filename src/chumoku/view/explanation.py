"""The scene of an explanation: the four steps of one head for one token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chumoku.steps import steps
from chumoku.view.scene import Floats, Model, model_of

if TYPE_CHECKING:
    from chumoku.models import Encoder, Encoding
    from chumoku.tokens import Token

# The favourite's weight in a head that is chosen for an explanation.
TELLING = 0.6


@dataclass(frozen=True)
class Explanation:
    """The four steps of one head for one token, with every number.

    Attributes
    ----------
    model, text, tokens, left_out
        As in a scene.
    layer, head, query : int
    chosen : bool
        Whether layer and head were both asked for.
    scale : float
        1 / sqrt(width).
    memo : (width,) float64
        The token's query.
    spines, contents : (tokens, width) float64
        Keys and values.
    scores, scaled, weights : (tokens,) float64
        memo . spine; that times the scale; softmax of that.
    unscaled : (tokens,) float64
        Softmax of the scores as they are: what the weights would be without the scale.
    parts : (tokens, width) float64
        Each token's contents times its weight.
    mixed : (width,) float64
        Their sum.
    """

    model: Model
    text: str
    tokens: tuple[Token, ...]
    left_out: int
    layer: int
    head: int
    query: int
    chosen: bool
    scale: float
    memo: Floats
    spines: Floats
    contents: Floats
    scores: Floats
    scaled: Floats
    weights: Floats
    unscaled: Floats
    parts: Floats
    mixed: Floats


def explanation(
    encoder: Encoder,
    text: str,
    encoding: Encoding,
    query: int,
    layer: int | None = None,
    head: int | None = None,
) -> Explanation:
    """The four steps of one head for one token.

    A layer or head that is not given is one with a favourite among the other words, which leaves
    something for the others too: there the four steps are seen the best.
    """
    chosen = layer is not None and head is not None
    if layer is None or head is None:
        layer, head = _telling(encoder, encoding, query, layer)
    trace = encoding.traces[layer]
    group = trace.query.shape[0] // trace.key.shape[0]
    memo = np.asarray(trace.query[head, query], dtype=np.float64)
    spines = np.asarray(trace.key[head // group], dtype=np.float64)
    contents = np.asarray(trace.value[head // group], dtype=np.float64)
    read = steps(memo[None], spines, contents)
    bare = steps(memo[None], spines, contents, scale=1.0)
    return Explanation(
        model=model_of(encoder),
        text=text,
        tokens=tuple(encoding.tokens),
        left_out=int(encoding.truncated),
        layer=layer,
        head=head,
        query=query,
        chosen=chosen,
        scale=read.scale,
        memo=memo,
        spines=spines,
        contents=contents,
        scores=read.scores[0],
        scaled=read.scaled[0],
        weights=read.weights[0],
        unscaled=bare.weights[0],
        parts=read.parts[0],
        mixed=read.output[0],
    )


def _telling(
    encoder: Encoder, encoding: Encoding, token: int, layer: int | None
) -> tuple[int, int]:
    """The head whose largest weight on another word is the nearest to `TELLING`."""
    other = np.array([not each.special for each in encoding.tokens], dtype=bool)
    other[token] = False
    layers = range(len(encoder.layers)) if layer is None else [layer]
    if not other.any():
        return layers[0], 0
    far = [
        np.abs(np.asarray(encoding.weights(i))[:, token, other].max(axis=-1) - TELLING)
        for i in layers
    ]
    best = int(np.argmin([heads.min() for heads in far]))
    return layers[best], int(far[best].argmin())

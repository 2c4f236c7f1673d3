"""Scenes of two things: a target that looks at its source, and the patches of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from chumoku.view.scene import Floats, Look, Row, among_words, largest

if TYPE_CHECKING:
    from chumoku.huggingface.looking import Crossed
    from chumoku.huggingface.senses import ImageModel, Seen
    from chumoku.tokens import Token


@dataclass(frozen=True)
class CrossScene:
    """Where each token of a target looks in its source.

    Attributes
    ----------
    model : str
    layers, heads : int
    layer, head : int or None
        None is the mean over all.
    source, target : str
    source_tokens, target_tokens : tuple of Token
    left_out : int
        Tokens of the source that were cut off.
    weights : (target tokens, source tokens) float64
    rows : tuple of Row
        One for each token of the target, whose index is `query`.
    """

    model: str
    layers: int
    heads: int
    layer: int | None
    head: int | None
    source: str
    target: str
    source_tokens: tuple[Token, ...]
    target_tokens: tuple[Token, ...]
    left_out: int
    weights: Floats
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Patch:
    """A patch of an image and the share of the attention that it gets."""

    row: int
    column: int
    weight: float


@dataclass(frozen=True)
class ImageScene:
    """Where a model looks in an image.

    Attributes
    ----------
    model, file : str
    size : (height, width)
    layers, heads : int
    layer, head : int or None
        None is the last layer, and the mean over its heads.
    weights : (rows, columns) float64
        Of the patches; with what the other tokens get they sum to 1.
    pixels : (rows, columns, 3) of uint8
        Mean colours.
    top : tuple of Patch
        The largest weights.
    each : tuple of float
        For each head of the layer, the share that patches get.
    """

    model: str
    file: str
    size: tuple[int, int]
    layers: int
    heads: int
    layer: int
    head: int | None
    weights: Floats
    pixels: NDArray[np.uint8]
    top: tuple[Patch, ...]
    each: tuple[float, ...]


def cross_scene(
    crossed: Crossed, *, layer: int | None = None, head: int | None = None, top: int = 3
) -> CrossScene:
    """The scene of a source and its target."""
    layers = range(len(crossed.recording))
    if layer is None:
        means = [np.asarray(crossed.weights(i), np.float64).mean(axis=0) for i in layers]
        weights: Floats = np.mean(means, axis=0)
    else:
        each = np.asarray(crossed.weights(layer), np.float64)
        weights = each.mean(axis=0) if head is None else each[head]
    special = np.array([token.special for token in crossed.source_tokens], dtype=bool)
    return CrossScene(
        model=crossed.model,
        layers=len(layers),
        heads=crossed.recording[0].shape.heads,
        layer=layer,
        head=head,
        source=crossed.source,
        target=crossed.target,
        source_tokens=crossed.source_tokens,
        target_tokens=crossed.target_tokens,
        left_out=crossed.truncated,
        weights=weights,
        rows=tuple(_seen(i, weights[i], special, top) for i in range(len(weights))),
    )


def _seen(query: int, weights: Floats, special: NDArray[np.bool_], top: int) -> Row:
    """Where a token of the target looks, raw and with the source's special tokens left out."""
    to_words = float(weights[~special].sum())
    words: tuple[Look, ...] = ()
    if to_words > 0:
        words = largest(among_words(weights, special), top, ~special)
    return Row(query, largest(weights, top, np.ones_like(special)), words, to_words)


def image_scene(
    model: ImageModel,
    seen: Seen,
    *,
    layer: int | None = None,
    head: int | None = None,
    top: int = 3,
) -> ImageScene:
    """The scene of an image: where the token of the whole image looks."""
    chosen = len(model.layers) - 1 if layer is None else layer
    each = np.asarray(seen.weights(chosen), np.float64)
    weights: Floats = each.mean(axis=0) if head is None else each[head]
    order = np.argsort(-weights, axis=None, kind="stable")[:top]
    places = np.stack(np.unravel_index(order, weights.shape), axis=1)
    return ImageScene(
        model=seen.model,
        file=seen.file,
        size=seen.size,
        layers=len(model.layers),
        heads=len(each),
        layer=chosen,
        head=head,
        weights=weights,
        pixels=seen.pixels,
        top=tuple(Patch(int(r), int(c), float(weights[r, c])) for r, c in places),
        each=tuple(each.sum(axis=(1, 2)).tolist()),
    )

"""The encoder: BERT's layers around our attention, and what they keep of a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from chumoku.checks import flag, list_of, real, shown, whole
from chumoku.errors import InvalidTypeError
from chumoku.multihead import MultiHeadAttention, Trace
from chumoku.record import Recording, label, recording
from chumoku.statistics import Watch
from chumoku.tokens import Token, Tokenizer

Floats = NDArray[np.float32]

_WATCH = Watch(top=8, entropy=True, saturation=True, distance=True)


@dataclass(frozen=True, eq=False)
class Norm:
    """Layer normalisation (Ba et al. 2016, equation 4): weight, bias of shape (width,)."""

    weight: Floats
    bias: Floats
    epsilon: float

    def __call__(self, x: Floats) -> Floats:
        """Rows of x (..., width) brought to mean 0 and deviation 1, then weight and bias."""
        centred: Floats = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        centred /= np.sqrt(variance + np.float32(self.epsilon))
        centred *= self.weight
        centred += self.bias
        return centred


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of BERT (Devlin et al. 2019): attention, then feed-forward, each added and normed.

    Attributes
    ----------
    attention : MultiHeadAttention
    attention_norm, output_norm : Norm
    inner_matrix : (feed-forward, width), inner_bias : (feed-forward,)
    outer_matrix : (width, feed-forward), outer_bias : (width,)
    """

    attention: MultiHeadAttention
    attention_norm: Norm
    inner_matrix: Floats
    inner_bias: Floats
    outer_matrix: Floats
    outer_bias: Floats
    output_norm: Norm

    def finish(self, x: Floats, attended: Floats) -> Floats:
        """What the layer makes of its input (n, width) and of what its attention gave."""
        middle = self.attention_norm(x + attended)
        inner = middle @ self.inner_matrix.T
        inner += self.inner_bias
        outer = _gelu(inner) @ self.outer_matrix.T
        outer += self.outer_bias
        outer += middle
        return self.output_norm(outer)


@dataclass(frozen=True, eq=False)
class Encoding:
    """A text seen by a model: its tokens, and everything that its attention did.

    Attributes
    ----------
    model : str
        The model's name, to be shown beside everything that is shown of it.
    tokens : tuple of Token, n of them
    truncated : int
        How many tokens were cut off at the end, because the model has no positions for them.
    embeddings : (n, width)
        The tokens' own embeddings: the word rows, before position and layer norm.
    hidden : tuple of (n, width), layers + 1 of them
        The input of each layer, then the output of the last.
    recording : Recording
        Statistics of each layer, in order; entries are named "layer 0", "layer 1", ...
    traces : tuple of Trace
        The inside of each layer's attention.
    """

    model: str
    tokens: tuple[Token, ...]
    truncated: int
    embeddings: Floats = field(repr=False)
    hidden: tuple[Floats, ...] = field(repr=False)
    recording: Recording = field(repr=False)
    traces: tuple[Trace, ...] = field(repr=False)

    @property
    def states(self) -> Floats:
        """What the last layer gave, (n, width)."""
        return self.hidden[-1]

    @property
    def pooled(self) -> Floats:
        """The text as one vector of length 1: the normed mean of all states, (width,)."""
        mean = self.states.mean(axis=0)
        return np.asarray(mean / np.linalg.norm(mean))

    def weights(self, layer: int, head: int | None = None) -> Floats:
        """Where each token looks, exactly: (heads, n, n), or (n, n) of one head; rows sum to 1.

        Raises
        ------
        InvalidArgumentError
            No such layer or head.
        """
        trace = self._trace(layer)
        if head is None:
            return trace.weights()
        heads = trace.query.shape[-3]
        return np.asarray(trace.weights()[whole("head", head, 0, heads - 1)])

    def norms(self, layer: int) -> Floats:
        """How much each head gives to each token: norms of its part of the output, (heads, n)."""
        return self._trace(layer).norms

    def _trace(self, layer: int) -> Trace:
        return self.traces[whole("layer", layer, 0, len(self.traces) - 1)]


@dataclass(frozen=True, eq=False)
class Encoder:
    """A BERT encoder. `default_model` and `load_model` make one; it computes in float32.

    Attributes
    ----------
    name : str
    tokenizer : Tokenizer
    layers : tuple of Layer
    words : callable
        Token ids (n,) to their embeddings (n, width).
    places : (positions, width)
        Embedding of each position, with that of the first token type.
    norm : Norm
        Of the embeddings.
    """

    name: str
    tokenizer: Tokenizer = field(repr=False)
    layers: tuple[Layer, ...] = field(repr=False)
    words: Callable[[NDArray[np.int64]], Floats] = field(repr=False)
    places: Floats = field(repr=False)
    norm: Norm = field(repr=False)

    @property
    def heads(self) -> int:
        """Heads of each layer."""
        return self.layers[0].attention.heads

    @property
    def width(self) -> int:
        """Width of embeddings and states."""
        return int(self.places.shape[1])

    @property
    def positions(self) -> int:
        """How many tokens the model takes, special ones included."""
        return int(self.places.shape[0])

    def encode(
        self,
        text: str,
        *,
        watch: Watch = _WATCH,
        without: Collection[tuple[int, int]] = frozenset(),
        logit_factor: float = 1.0,
        scaled: bool = True,
    ) -> Encoding:
        """Let the model read a text, and keep what its attention did.

        Parameters
        ----------
        text : str
            What is beyond `positions` tokens is cut off; `Encoding.truncated` says how many.
        watch : Watch
            Facts to record of every layer.
        without : collection of (layer, head)
            Heads to silence, counted from 0: their result is 0 before the output matrix.
        logit_factor : float
            Multiplies all logits; 1 is the model as it was trained.
        scaled : bool
            False takes 1/sqrt(head width) away from the logits.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            Not a text, or one with nothing to see; no such layer or head; not a number.
        """
        if not isinstance(watch, Watch):
            raise InvalidTypeError("watch", shown(watch), "Watch(top=8, entropy=True, ...)")
        silenced = self._silenced(without)
        scale = self._scale(logit_factor, scaled)
        tokens, truncated = self.tokenizer.encode(text, self.positions)
        embeddings = self.words(np.array([token.id for token in tokens], np.int64))
        hidden = [self.norm(embeddings + self.places[: len(tokens)])]
        traces: list[Trace] = []
        with recording(watch, inputs=True, budget=None) as seen:
            for number, layer in enumerate(self.layers):
                attention = layer.attention.without(silenced.get(number, ()))
                with label(f"layer {number}"):
                    trace = attention.trace(hidden[-1], scale=scale, watch=watch)
                traces.append(trace)
                hidden.append(layer.finish(hidden[-1], trace.output))
        return Encoding(
            self.name, tokens, truncated, embeddings, tuple(hidden), seen, tuple(traces)
        )

    def _silenced(self, without: Collection[tuple[int, int]]) -> dict[int, set[int]]:
        silenced: dict[int, set[int]] = {}
        for pair in list_of("without", without, "pairs of (layer, head)"):
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise InvalidTypeError("without", shown(pair), "pairs of (layer, head)")
            layer = whole("layer", pair[0], 0, len(self.layers) - 1)
            head = whole("head", pair[1], 0, self.heads - 1)
            silenced.setdefault(layer, set()).add(head)
        return silenced

    def _scale(self, logit_factor: float, scaled: bool) -> float:
        head_width = self.width // self.heads
        factor = real("logit_factor", logit_factor)
        return factor / (math.sqrt(head_width) if flag("scaled", scaled) else 1.0)


def build(
    name: str,
    tokenizer: Tokenizer,
    tensors: Mapping[str, Floats],
    sizes: Mapping[str, int],
    epsilon: float,
    words: Callable[[NDArray[np.int64]], Floats],
) -> Encoder:
    """An encoder of tensors under the names of `shapes`."""

    def norm(of: str) -> Norm:
        return Norm(tensors[f"{of}.w"], tensors[f"{of}.b"], epsilon)

    layers = []
    for number in range(sizes["num_hidden_layers"]):
        own = f"l{number}."
        parameters = {
            f"{part}_{kind}": tensors[f"{own}{short}.{kind[0].replace('m', 'w')}"]
            for part, short in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "ao"))
            for kind in ("matrix", "bias")
        }
        layers.append(
            Layer(
                MultiHeadAttention.from_parameters(parameters, sizes["num_attention_heads"]),
                norm(f"{own}aln"),
                tensors[f"{own}fi.w"],
                tensors[f"{own}fi.b"],
                tensors[f"{own}fo.w"],
                tensors[f"{own}fo.b"],
                norm(f"{own}oln"),
            )
        )
    places = tensors["emb.pos"] + tensors["emb.type"][0]
    return Encoder(name, tokenizer, tuple(layers), words, places, norm("emb.ln"))


def shapes(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Our names of a BERT encoder's tensors (those of the default file), and their shapes."""
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "emb.pos": (sizes["max_position_embeddings"], width),
        "emb.type": (sizes["type_vocab_size"], width),
    }
    norms = ["emb.ln"]
    for number in range(sizes["num_hidden_layers"]):
        own = f"l{number}."
        norms += [f"{own}aln", f"{own}oln"]
        for short, rows, columns in (
            *((short, width, width) for short in ("q", "k", "v", "ao")),
            ("fi", inner, width),
            ("fo", width, inner),
        ):
            shapes |= {f"{own}{short}.w": (rows, columns), f"{own}{short}.b": (rows,)}
    for name in norms:
        shapes |= {f"{name}.w": (width,), f"{name}.b": (width,)}
    return shapes


# x * Phi(x) (Hendrycks and Gimpel 2016) with the exact Phi: around the nearest of these points
# Phi is its Taylor polynomial of degree 2, whose rest is below max|Phi'''| / 6 * (1/256)^3 = 4e-9,
# less than float32 can tell from Phi. Past the last point x * Phi(x) is x or, to 1e-14, 0.
_STEPS = 128
_EDGE = 8
# So many numbers at a time that all steps of a piece happen in the cache.
_PIECE = 2**15


@cache
def _phi() -> tuple[Floats, Floats, Floats]:
    """Phi, its derivative and half of the second, at points from -_EDGE to _EDGE."""
    points = np.arange(-_EDGE * _STEPS, _EDGE * _STEPS + 1) / _STEPS
    value = np.array([math.erfc(-point / math.sqrt(2)) / 2 for point in points.tolist()])
    slope = np.exp(-np.square(points) / 2) / math.sqrt(2 * math.pi)
    return tuple(c.astype(np.float32) for c in (value, slope, -points * slope / 2))  # type: ignore[return-value]


def _gelu(x: Floats) -> Floats:
    """GELU of a contiguous array, written over it; to 2**-23 * max(1, |x|)."""
    value, slope, bend = _phi()
    flat = x.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        inside = np.clip(piece, -_EDGE, _EDGE)
        nearest = np.rint(inside * _STEPS)
        with np.errstate(invalid="ignore"):  # NaN is at no point, and stays NaN
            index = nearest.astype(np.intp) + _EDGE * _STEPS
        inside -= nearest * np.float32(1 / _STEPS)
        phi = bend.take(index, mode="clip")
        phi *= inside
        phi += slope.take(index, mode="clip")
        phi *= inside
        phi += value.take(index, mode="clip")
        piece *= phi
    return x

"""The softmax trap as numbers: logits too large, right, too small, and what still flows back.

Query and key of unit variance and width d have a dot product of variance d. Without the division
by sqrt(d) the logits grow with the width, softmax gives one key everything, and its Jacobian, the
only way back for a gradient, goes to zero (Vaswani et al. 2017, section 3.2.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chumoku.arrays import array_of
from chumoku.attention import attention, weights
from chumoku.checks import has, list_of, real, shown, whole
from chumoku.errors import InvalidArgumentError, InvalidTypeError
from chumoku.statistics import Watch

Floats = NDArray[np.float64]

WIDTHS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)

# A row is saturated when sum p^2 passes this: one key then has more than 0.9 of the row, for
# sum p^2 <= max p, and flow = 1 - sum p^2 is below 0.1, where an even row over many keys has 1.
SATURATED = 0.9

# A row is even when its entropy passes this share of ln(keys): its distance from uniform
# (Kullback-Leibler, which is ln(keys) - entropy) is then below a hundredth of ln(keys).
EVEN = 0.99

# A set of rows is called large or small when more than this share of them is saturated or even.
MAJORITY = 0.5

VERDICTS = ("large", "right", "small")
_RUNS = ("as_is", "unscaled", "multiplied")

# Keys, and queries, of the width study: more would not fit any memory.
_MOST = 2**24


@dataclass(frozen=True)
class Softmax:
    """What softmax made of a set of rows with one scale: means over the rows.

    Attributes
    ----------
    scale : float
        By which the dot products were multiplied.
    rows, keys : int
        How many rows the means are over, and how many keys each row has.
    deviation : float
        Standard deviation of a row's logits over its keys.
    entropy : float
        In nats.
    share : float
        Entropy as a share of ln(keys), its largest value: 1 = evenly spread; nan for one key.
    floor : float
        The lowest entropy, in nats, that logits of this size allow (`entropy_bound`).
    saturation : float
        sum_j p_j^2: 1 = one key has everything.
    flow : float
        sum_j p_j (1 - p_j), the trace of softmax's Jacobian: 0 = no gradient passes.
    largest : float
        The largest weight.
    saturated : float
        Share of the rows whose saturation is above `SATURATED`.
    even : float
        Share of the rows whose entropy is above `EVEN` of ln(keys).
    """

    scale: float
    rows: int
    keys: int
    deviation: float
    entropy: float
    share: float
    floor: float
    saturation: float
    flow: float
    largest: float
    saturated: float
    even: float

    @property
    def verdict(self) -> str:
        """One of "large" (most rows are saturated), "small" (most are even) and "right"."""
        if self.saturated > MAJORITY:
            return "large"
        return "small" if self.even > MAJORITY else "right"


@dataclass(frozen=True)
class TrapPoint:
    """One width, with or without the scale 1 / sqrt(width).

    Attributes
    ----------
    width : int
    scaled : bool
    theory : float
        The deviation that unit-variance query and key lead one to expect: 1 with the scale,
        sqrt(width) without.
    facts : Softmax
    gradient_logits : float
        Mean over the rows of the norm of the gradient with respect to the logits,
        p * (g - <p, g>), for a fixed upstream gradient g of unit variance.
    gradient_query : float
        The same for the query, scale * (p * (g - <p, g>)) @ key.
    median_logits, median_query : float
        The two norms, median over the rows: what a typical row gets. Without the scale the mean
        hides the trap: the few rows whose keys are nearly tied get large gradients.
    """

    width: int
    scaled: bool
    theory: float
    facts: Softmax
    gradient_logits: float
    gradient_query: float
    median_logits: float
    median_query: float


@dataclass(frozen=True)
class Row:
    """One row of logits and what softmax makes of it."""

    logits: tuple[float, ...]
    weights: tuple[float, ...]
    facts: Softmax


@dataclass(frozen=True)
class HeadTrap:
    """One head on one text: as the model is, without its scale, and with its logits multiplied.

    Query and key are those of the model's own run in all three, so only softmax's input differs.
    A saturated head of a trained model may do its work well (a head that looks at the next token
    is one); saturation says that nothing more can be learned through it.
    """

    layer: int
    head: int
    as_is: Softmax
    unscaled: Softmax
    multiplied: Softmax


@dataclass(frozen=True)
class TrapMap:
    """Every head of a model on one text.

    Attributes
    ----------
    layers, heads : int
    rows : int
        Tokens of the text: the rows of each head.
    factor : float
        By which the logits of `multiplied` were multiplied.
    entries : tuple of HeadTrap
        Layer by layer, head by head.
    """

    layers: int
    heads: int
    rows: int
    factor: float
    entries: tuple[HeadTrap, ...]

    def at(self, layer: int, head: int) -> HeadTrap:
        """The entry of one head, both numbers from 0."""
        layer = whole("layer", layer, 0, self.layers - 1)
        head = whole("head", head, 0, self.heads - 1)
        return self.entries[layer * self.heads + head]

    def having(self, verdict: str, which: str = "as_is") -> tuple[tuple[int, int], ...]:
        """The (layer, head) with one verdict ("large": the saturated heads).

        Parameters
        ----------
        verdict : {"large", "right", "small"}
        which : {"as_is", "unscaled", "multiplied"}
        """
        for name, said, known in (("verdict", verdict, VERDICTS), ("which", which, _RUNS)):
            if not isinstance(said, str) or said not in known:
                raise InvalidArgumentError(name, shown(said), " or ".join(known))
        return tuple(
            (entry.layer, entry.head)
            for entry in self.entries
            if getattr(entry, which).verdict == verdict
        )


class QueryKey(Protocol):
    """What is needed of a layer's trace."""

    @property
    def query(self) -> NDArray[Any]:
        """(heads, tokens, width of a head)."""

    @property
    def key(self) -> NDArray[Any]:
        """(kv_heads, tokens, width of a head)."""


class Traced(Protocol):
    """What is needed of an encoded text; chumoku.models.Encoding has it."""

    @property
    def traces(self) -> Sequence[QueryKey]:
        """One trace for each layer."""


def entropy_bound(norm: ArrayLike, keys: int) -> Floats:
    """The lowest entropy of a row whose logits have at most this norm.

    Zhai et al. 2023 (Stabilizing Transformer Training by Preventing Attention Entropy Collapse),
    theorem 3.1: with beta = exp(-norm sqrt(T / (T - 1))) for T keys,
    H >= ln(1 + (T - 1) beta) + norm sqrt(T (T - 1)) beta / (1 + (T - 1) beta).
    It is reached by one logit at norm sqrt((T - 1) / T) above equal others. Softmax does not
    change when a constant is added, so the norm may be that of the logits less their mean.

    Parameters
    ----------
    norm : float or array
        0 or more.
    keys : int

    Returns
    -------
    array of float64, the shape of `norm`; nats
    """
    size, count = _reals(norm), whole("keys", keys, 0, 2**63 - 1)
    if count < 2:
        return np.zeros_like(size)
    with np.errstate(over="ignore", invalid="ignore"):
        beta = np.exp(-size * sqrt(count / (count - 1)))
        total = 1.0 + (count - 1) * beta
        rest = size * sqrt(count * (count - 1)) * beta / total
    # Beyond some size beta is 0, and infinity times 0 is nothing here.
    return np.asarray(np.log(total) + np.where(beta == 0, 0.0, rest))


def _reals(norm: ArrayLike) -> Floats:
    array = array_of("norm", norm, "numbers")
    if array.dtype.kind not in "iuf":
        raise InvalidTypeError("norm", f"{array.dtype} values", "numbers")
    if (array < 0).any():
        raise InvalidArgumentError("norm", shown(float(array.min())), "norms, 0 or more")
    return array.astype(np.float64)


def width_study(
    widths: Sequence[int] = WIDTHS, *, keys: int = 64, queries: int = 256, seed: int = 0
) -> tuple[TrapPoint, ...]:
    """Logits, entropy and gradient against the width, with and without the scale.

    Query and key are standard normal, the same for both members of a pair and whatever other
    widths are asked for; the upstream gradient is the same for every width.

    Parameters
    ----------
    widths : sequence of int
        1 to 1024.
    keys, queries : int
        Keys of each row (2 or more), and rows to average over.
    seed : int

    Returns
    -------
    tuple of TrapPoint
        Two for each width, in order: without the scale, then with it.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        A width outside 1 to 1024, fewer than 2 keys, no query; not whole numbers.
    """
    listed = [whole("widths", width, 1, 1024) for width in list_of("widths", widths, "widths")]
    keys, queries = whole("keys", keys, 2, _MOST), whole("queries", queries, 1, _MOST)
    seed = whole("seed", seed, 0)
    upstream = np.random.default_rng(seed).standard_normal((queries, keys))
    points = []
    for width in listed:
        random = np.random.default_rng([seed, width])
        query = random.standard_normal((queries, width))
        key = random.standard_normal((keys, width))
        for scaled in (False, True):
            points.append(_point(query, key, upstream, scaled))
    return tuple(points)


def _point(query: Floats, key: Floats, upstream: Floats, scaled: bool) -> TrapPoint:
    width = query.shape[-1]
    scale = 1.0 / sqrt(width) if scaled else 1.0
    given = weights(query, key, scale=scale)
    gradient = _through_softmax(given, upstream)
    logits = np.linalg.norm(gradient, axis=-1)
    queries = np.linalg.norm(scale * gradient @ key, axis=-1)
    return TrapPoint(
        width=width,
        scaled=scaled,
        theory=scale * sqrt(width),
        facts=_softmax(query[None], key[None], scale)[0],
        gradient_logits=float(logits.mean()),
        gradient_query=float(queries.mean()),
        median_logits=float(np.median(logits)),
        median_query=float(np.median(queries)),
    )


def _through_softmax(given: Floats, upstream: Floats) -> Floats:
    """The gradient with respect to the logits: softmax's Jacobian times the upstream gradient."""
    mean = (given * upstream).sum(axis=-1, keepdims=True)
    return np.asarray(given * (upstream - mean))


def three_rows() -> tuple[Row, Row, Row]:
    """Logits too large [10, 20, 30], right [1, 2, 3], and too small [0.01, 0.02, 0.03].

    Their verdicts are "large", "right" and "small".
    """
    return _row((10.0, 20.0, 30.0)), _row((1.0, 2.0, 3.0)), _row((0.01, 0.02, 0.03))


def _row(logits: tuple[float, ...]) -> Row:
    """A query of 1 whose keys are the logits."""
    query, key = np.ones((1, 1)), np.array(logits)[:, None]
    given = tuple(float(weight) for weight in weights(query, key, scale=1.0)[0])
    return Row(logits, given, _softmax(query[None], key[None], 1.0)[0])


def saturated_heads(encoding: Traced, *, factor: float = 8.0) -> TrapMap:
    """Every head of a model on one text: as it is, without its scale, with larger logits.

    Parameters
    ----------
    encoding : Encoding
        Of a normal run, `encoder.encode(text)`; its traced query and key are used again, so that
        earlier layers do not change what later ones get.
    factor : float
        By which the logits of `multiplied` are multiplied; above 0. 8 goes past the
        sqrt(head width) of small models, so that `unscaled` lies between.

    Returns
    -------
    TrapMap
    """
    factor = real("factor", factor, above=0)
    if not has(encoding, "traces"):
        expected = "an encoded text, as encoder.encode(text) gives it"
        raise InvalidTypeError("encoding", shown(encoding), expected)
    if not encoding.traces:
        raise InvalidArgumentError("encoding", "no traced layer", "one or more")
    entries = []
    heads, rows = encoding.traces[0].query.shape[:2]
    for layer, trace in enumerate(encoding.traces):
        scale = 1.0 / sqrt(trace.query.shape[-1])
        as_is, unscaled, multiplied = (
            _softmax(trace.query, trace.key, by) for by in (scale, 1.0, scale * factor)
        )
        entries += [
            HeadTrap(layer, head, as_is[head], unscaled[head], multiplied[head])
            for head in range(heads)
        ]
    return TrapMap(len(encoding.traces), heads, rows, factor, tuple(entries))


def _softmax(query: NDArray[Any], key: NDArray[Any], scale: float) -> tuple[Softmax, ...]:
    """Facts of each head of query (heads, rows, width) and key (kv_heads, keys, width)."""
    watch = Watch(top=1, entropy=True, saturation=True)
    _, seen = attention(query, key, key[..., :0], scale=scale, watch=watch)
    rows, keys = query.shape[-2], key.shape[-2]
    deviation = _deviation(query, key, scale)
    floor = entropy_bound(deviation * sqrt(keys), keys)
    share = seen.entropy / np.log(keys) if keys > 1 else np.full_like(seen.entropy, np.nan)
    return tuple(
        Softmax(
            scale=scale,
            rows=rows,
            keys=keys,
            deviation=float(deviation[head].mean()),
            entropy=float(seen.entropy[head].mean()),
            share=float(share[head].mean()),
            floor=float(floor[head].mean()),
            saturation=float(seen.saturation[head].mean()),
            flow=float(seen.flow[head].mean()),
            largest=float(seen.top_weights[head, :, 0].mean()),
            saturated=float((seen.saturation[head] > SATURATED).mean()),
            even=float((share[head] > EVEN).mean()),
        )
        for head in range(query.shape[0])
    )


def _deviation(query: NDArray[Any], key: NDArray[Any], scale: float) -> Floats:
    """Standard deviation of each row's logits over the keys, (heads, rows).

    Without the matrix of logits: the variance of <q, k> over the keys is q C q with C the keys'
    covariance.
    """
    keys = key.astype(np.float64)
    keys = keys - keys.mean(axis=-2, keepdims=True)
    covariance = np.swapaxes(keys, -1, -2) @ keys / keys.shape[-2]
    covariance = np.repeat(covariance, query.shape[0] // key.shape[0], axis=0)
    queries = query.astype(np.float64)
    variance = np.einsum("hrw,hrw->hr", queries @ covariance, queries)
    return np.asarray(abs(scale) * np.sqrt(np.maximum(variance, 0.0)))

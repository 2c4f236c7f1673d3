"""merge(): what the same queries saw of disjoint keys, joined; and sinks, added once and last.

A pair (output, seen) of a call on some of the keys is all that is needed of them. With L the lse,
the weights of shard A in the whole are e^(L_A - L) times what they are in A. Sums are taken in
float64 and rounded once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chumoku.arrays import FLOATS, Guest, Wanted, guest_of
from chumoku.checks import shown
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.statistics import FACTS, Array, Statistics, check_facts, flatten, unflatten

Pair = tuple[Array, Statistics]
Reals = NDArray[Any]
Facts = dict[str, Any]

_FACT = Wanted(
    dtypes=("float64", "float32", "int64"),
    array="an array of the output's kind",
    expected="float32, float64 or int64",
    cure="Merge what attention() gave, as it is.",
)
# Sums over the queries: they need the weights, hence the final lse, of every single score.
_OVER_QUERIES = ("received", "received_share", "picture_mean", "picture_most")


class _Shard(NamedTuple):
    """A pair in NumPy: output, facts with the halves of a picture apart, and the way back."""

    guest: Guest
    output: Reals
    facts: Facts

    def back(self, output: Reals, facts: Facts) -> Pair:
        """Output and facts in the caller's kind of arrays."""
        seen = unflatten({name: self.guest.back(fact) for name, fact in facts.items()})
        return self.guest.back(output), seen


def merge(a: Pair, b: Pair, *, over: str = "keys") -> Pair:
    """Join what the same queries saw of disjoint keys, as one call on all the keys sees it.

    Parameters
    ----------
    a, b : (output, seen)
        As attention(..., watch=...) returns them, of the same shapes, dtype and watch, without
        sinks. A call on key[..., first:last, :] numbers its keys from 0: give
        (output, seen.shifted(first)), and `Causal`, `Window` and `Chunks` the offset of the whole
        less first.
    over : "keys" or "queries"
        "queries": a and b are different queries, those of a first, over the same keys.

    Returns
    -------
    (output, seen)
        Of a's kind and dtypes; equal to one call's to rounding, in any order of merging. A call
        on no keys, and a row that sees none, changes nothing, bit for bit. Lists of top keys keep
        the length of the shorter one. Over queries, rows are put behind one another, the rows of
        pictures too, and received is added up.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        Not two such pairs, shapes or facts that differ, sinks inside, a key named in both.
    UnavailableError
        received or picture over keys.
    """
    if over not in ("keys", "queries"):
        raise InvalidArgumentError("over", shown(over), "'keys' or 'queries'")
    one, other = _shard("a", a), _shard("b", b)
    if over == "keys":
        for name, shard in (("a", one), ("b", other)):
            _check_no_sinks(name, shard)
            _check_no_columns(name, shard, "A shard's weights are known only with the whole lse")
    _check_alike(one, other, over)
    if over == "queries":
        with np.errstate(all="ignore"):
            return one.back(*_stacked(one, other))
    _check_disjoint(one.facts, other.facts)
    with np.errstate(all="ignore"):
        return one.back(*_joined(one, other))


def with_sinks(pair: Pair, sinks: Array) -> Pair:
    """Add the sinks to a call made without: once, after all the merging.

    Parameters
    ----------
    pair : (output, seen)
        As attention(..., watch=...) without sinks or `merge` returns it.
    sinks : array, (heads,)
        One more logit for each head, without a value; of the output's kind and dtype.

    Returns
    -------
    (output, seen)
        What the call with sinks= gives, to rounding; seen has sink_weight.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        Not such a pair, or sinks that do not fit it, or a pair that has sinks already.
    UnavailableError
        The pair has received or picture.
    """
    shard = _shard("pair", pair)
    _check_no_sinks("pair", shard)
    _check_no_columns("pair", shard, "A sink changes every weight, and sums over queries hide them")
    lse = shard.facts["lse"]
    heads = lse.shape[-2] if lse.ndim > 1 else 1
    extra = shard.guest.array("sinks", sinks)
    if extra.dtype != shard.output.dtype:
        expected = f"{shard.output.dtype}, as the output has"
        raise InvalidTypeError("sinks", str(extra.dtype), expected)
    if extra.shape != (heads,):
        raise InvalidArgumentError("sinks", f"shape {extra.shape}", f"({heads},), one per head")
    with np.errstate(all="ignore"):
        return shard.back(*_sunk(shard, extra.astype(np.float64)))


# Over the keys


class _Mix(NamedTuple):
    """The weights of two parts in the whole, their logarithms, and the whole's lse."""

    one: Reals
    other: Reals
    ln_one: Reals
    ln_other: Reals
    lse: Reals


def _mix(one: Reals, other: Reals) -> _Mix:
    """Two parts by their lse, in float64; where neither sees anything, all weight is the first's.

    Logarithms are of the weights themselves and not differences from the sum, which would lose a
    part that is nearly all.
    """
    high = np.maximum(one, other)
    gap = np.where(np.isneginf(high), -np.inf, -abs(one - other))
    rest = np.exp(gap)
    large, small = 1 / (1 + rest), rest / (1 + rest)
    ln_large = -np.log1p(rest)
    ln_small = gap + ln_large
    turned = one < other
    return _Mix(
        one=np.where(turned, small, large),
        other=np.where(turned, large, small),
        ln_one=np.where(turned, ln_small, ln_large),
        ln_other=np.where(turned, ln_large, ln_small),
        lse=high - ln_large,
    )


def _joined(a: _Shard, b: _Shard) -> tuple[Reals, Facts]:
    """Output and facts over all keys."""
    mix = _mix(*(shard.facts["lse"].astype(np.float64) for shard in (a, b)))
    facts: Facts = {}
    for name in a.facts:
        if name in ("top_keys", "top_weights"):
            continue
        ours, theirs = _same_columns(a.facts[name], b.facts[name])
        merged = _fact(name, mix, a.facts, b.facts)
        facts[name] = _kept(ours, theirs, merged.astype(ours.dtype), a.facts, b.facts)
    if "top_keys" in a.facts:
        short = _same_top(a.facts, b.facts)
        for name, merged in _top(mix, *short).items():
            ours, theirs = (lists[name] for lists in short)
            facts[name] = _kept(ours, theirs, merged.astype(ours.dtype), a.facts, b.facts)
    wide = [shard.output.astype(np.float64) for shard in (a, b)]
    output = _rounded(mix.one[..., None] * wide[0] + mix.other[..., None] * wide[1], a.output.dtype)
    # Nothing times NaN is NaN: what is not finite is felt even by a row without weights.
    for kept, gone in ((a, b), (b, a)):
        blind = np.asarray(np.isneginf(gone.facts["lse"]))
        alone = blind[..., None] & np.isfinite(gone.output)
        output = np.where(alone, kept.output, output)
    return output, {name: facts[name] for name in a.facts}


def _fact(name: str, mix: _Mix, a: Facts, b: Facts) -> Reals:
    """One fact of the whole, in float64."""
    if name == "lse":
        return mix.lse
    ours, theirs = (x.astype(np.float64) for x in _same_columns(a[name], b[name]))
    if name == "max_logit":
        return np.maximum(ours, theirs)
    if name == "entropy":
        # Each weight p becomes w p, and -ln(w p) is -ln p - ln w.
        parts = (mix.one, ours - mix.ln_one), (mix.other, theirs - mix.ln_other)
        one, other = (np.where(w == 0, 0, w * bits) for w, bits in parts)
        return np.asarray(one + other)
    if name == "saturation":
        return np.asarray(mix.one**2 * ours + mix.other**2 * theirs)
    if name == "flow":
        # 1 - w p = (1 - p) + (1 - w) p: every term is positive, so nothing cancels.
        squares = a["saturation"].astype(np.float64) + b["saturation"]
        return np.asarray(mix.one * ours + mix.other * theirs + mix.one * mix.other * squares)
    # Distance and group mass are sums of weights.
    one, other = (w if ours.ndim == w.ndim else w[..., None] for w in (mix.one, mix.other))
    return np.asarray(one * ours + other * theirs)


def _kept(ours: Reals, theirs: Reals, merged: Reals, a: Facts, b: Facts) -> Reals:
    """Bit for bit the fact of the one, wherever the other sees nothing."""
    more = (1,) * (merged.ndim - a["lse"].ndim)
    empty_a, empty_b = (np.isneginf(f["lse"]).reshape(f["lse"].shape + more) for f in (a, b))
    return np.where(empty_b, ours, np.where(empty_a, theirs, merged))


def _same_columns(ours: Reals, theirs: Reals) -> tuple[Reals, Reals]:
    """Masses of the same groups: a shard without the last groups has 0 of them."""
    if ours.shape == theirs.shape:
        return ours, theirs
    columns = max(ours.shape[-1], theirs.shape[-1])
    one, other = (
        np.concatenate((f, np.zeros((*f.shape[:-1], columns - f.shape[-1]), f.dtype)), axis=-1)
        for f in (ours, theirs)
    )
    return one, other


# The top keys


def _same_top(a: Facts, b: Facts) -> tuple[Facts, Facts]:
    """Facts with lists of one length: what a shorter list left out cannot be told."""
    k = min(facts["top_keys"].shape[-1] for facts in (a, b))
    names = ("top_keys", "top_weights")
    ours, theirs = (f | {name: f[name][..., :k] for name in names} for f in (a, b))
    return ours, theirs


def _logits(facts: Facts) -> Reals:
    """The logits of the top keys as well as their weights tell them, in float64.

    The first has max_logit exactly; the others lie below it by the ratio of the weights, in which
    whatever the lse was rounded by cancels. A weight of 0 tells nothing but that it is below all
    others. In a row with NaN every weight is NaN, and the first key has a NaN or infinite logit.
    """
    p = facts["top_weights"].astype(np.float64)
    below = np.log(p / p[..., :1])
    logits = facts["max_logit"].astype(np.float64)[..., None] + below
    return np.where(np.isnan(facts["lse"])[..., None], np.inf, logits)


def _top(mix: _Mix, a: Facts, b: Facts) -> Facts:
    """The first k of two lists; each stays in its own order.

    Logits known through rounded weights alone count as equal up to a few units of rounding; then
    the lower key comes first, as it does among equal logits of one call.
    """
    shape = a["top_keys"].shape
    lists = [
        (f["top_keys"], _logits(f), f["top_weights"] * w[..., None])
        for f, w in ((a, mix.one), (b, mix.other))
    ]
    size = 4.0 + abs(a["lse"].astype(np.float64)) + abs(b["lse"])
    unit = np.finfo(a["lse"].dtype).eps
    keys, shares = np.full(shape, -1, np.int64), np.zeros(shape)
    # How many of a's list are taken; of b's it is the rest.
    taken = np.zeros((*shape[:-1], 1), np.int64)
    for step in range(shape[-1]):
        (key_a, s, p), (key_b, t, q) = (
            [np.take_along_axis(column, place, axis=-1)[..., 0] for column in columns]
            for columns, place in zip(lists, (taken, step - taken), strict=True)
        )
        near = abs(s - t) <= unit * (size + abs(s) + abs(t))
        tie = (s == t) | (near & np.isfinite(s) & np.isfinite(t))
        first = (key_b < 0) | ((key_a >= 0) & np.where(tie, key_a < key_b, s > t))
        keys[..., step] = np.where(first, key_a, key_b)
        shares[..., step] = np.where(first, p, q)
        taken += first[..., None]
    return {"top_keys": keys, "top_weights": np.where(keys < 0, 0, shares)}


# Sinks


def _sunk(shard: _Shard, sinks: Reals) -> tuple[Reals, Facts]:
    """Output and facts with one more logit in each row: every weight p becomes w p."""
    given = shard.facts
    lse = given["lse"].astype(np.float64)
    logit = np.broadcast_to(sinks if lse.ndim == 1 else sinks[:, None], lse.shape)
    mix = _mix(lse, logit)
    blind = np.isneginf(lse)
    wide = {name: fact.astype(np.float64) for name, fact in given.items() if name != "top_keys"}
    new: Facts = {"lse": mix.lse, "sink_weight": mix.other}
    if "entropy" in wide:
        grown = mix.one * (wide["entropy"] - mix.ln_one)
        new["entropy"] = np.where(mix.one == 0, 0, grown)
    if "saturation" in wide:
        new["saturation"] = mix.one**2 * wide["saturation"]
        # 1 - w p = (1 - p) + (1 - w) p
        new["flow"] = mix.one * (wide["flow"] + mix.other * wide["saturation"])
    if "distance" in wide:
        new["distance"] = mix.one * wide["distance"]
    if "group_mass" in wide:
        new["group_mass"] = mix.one[..., None] * wide["group_mass"]
    if "top_keys" in given:
        share = mix.one[..., None] * wide["top_weights"]
        new["top_weights"] = np.where(given["top_keys"] < 0, 0, share)
    facts: Facts = {}
    for name in (*given, "sink_weight"):
        fact = new[name] if name in new else given[name]
        if name not in ("lse", "sink_weight"):
            none = blind.reshape(blind.shape + (1,) * (fact.ndim - blind.ndim))
            fact = np.where(none, given[name], fact)
        facts[name] = fact if name == "top_keys" else fact.astype(given["lse"].dtype)
    output = _rounded(mix.one[..., None] * shard.output.astype(np.float64), shard.output.dtype)
    kept = blind[..., None] & np.isfinite(shard.output)
    return np.where(kept, shard.output, output), facts


# Over the queries


def _stacked(a: _Shard, b: _Shard) -> tuple[Reals, Facts]:
    """Output and facts of the queries of a, and those of b behind them."""
    facts: Facts = {}
    for name, fact in a.facts.items():
        pair = fact, b.facts[name]
        if name == "received":
            facts[name] = (pair[0].astype(np.float64) + pair[1]).astype(fact.dtype)
        elif name == "received_share":
            facts[name] = _share(a.facts, b.facts)
        else:
            two = ("top_keys", "top_weights", "group_mass", "picture_mean", "picture_most")
            facts[name] = np.concatenate(pair, axis=-2 if name in two else -1)
    return np.concatenate((a.output, b.output), axis=-2), facts


def _share(a: Facts, b: Facts) -> Reals:
    """Received by the number of queries that can see the key, which the two facts tell.

    The number is what received was divided by. Where every weight of a shard rounds to 0 it
    cannot be told from none.
    """
    dtype = a["received"].dtype
    received, seeing = np.zeros(a["received"].shape), np.zeros(a["received"].shape)
    for facts in (a, b):
        mass, share = (facts[n].astype(np.float64) for n in ("received", "received_share"))
        told = ~(share < np.finfo(dtype).tiny)
        seeing += np.rint(np.divide(mass, share, out=np.zeros(mass.shape), where=told))
        received += mass
    return np.asarray(received / np.maximum(seeing, 1)).astype(dtype)


# Checking


def _shard(name: str, pair: Any) -> _Shard:
    """A pair in NumPy, checked in itself."""
    expected = "(output, seen), as attention(..., watch=...) returns it"
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InvalidTypeError(name, type(pair).__name__, expected)
    output, seen = pair
    if not isinstance(seen, Statistics):
        raise InvalidTypeError(f"{name}[1]", type(seen).__name__, f"Statistics, in {expected}")
    try:
        guest = guest_of(output)
    except InvalidTypeError as error:
        raise InvalidTypeError(f"{name}[0]", error.got, f"an array, in {expected}") from None
    mixed = guest.array(f"{name}[0]", output, FLOATS)
    facts = {fact: guest.array(fact, value, _FACT) for fact, value in flatten(seen).items()}
    check_facts(facts)
    lse = facts["lse"]
    real = np.float64 if mixed.dtype == np.float64 else np.float32
    if lse.shape != mixed.shape[:-1] or lse.dtype != real:
        shapes = f"{mixed.dtype} {mixed.shape} beside {lse.dtype} {lse.shape}"
        raise InvalidArgumentError(
            name, f"output and lse of {shapes}", "output and statistics of one call"
        )
    return _Shard(guest, mixed, facts)


def _check_alike(a: _Shard, b: _Shard, over: str) -> None:
    """Refuse two pairs that cannot be of one call."""
    if a.guest.what != b.guest.what:
        raise InvalidTypeError("b", b.guest.what, f"{a.guest.what}, as in a")
    if a.output.dtype != b.output.dtype:
        raise InvalidTypeError("b", f"{b.output.dtype}", f"{a.output.dtype}, as a has")
    apart = over == "queries"
    shapes = [list(shard.output.shape) for shard in (a, b)]
    if apart:
        for shape in shapes:
            del shape[-2]
    if shapes[0] != shapes[1]:
        got, expected = (f"an output of shape {shard.output.shape}" for shard in (b, a))
        cure = "" if apart else "merge(a, b, over='queries') joins different queries."
        raise InvalidArgumentError("b", got, f"{expected}, as a has", cure)
    for fact in {**a.facts, **b.facts}:
        if (fact in a.facts) != (fact in b.facts):
            alone, name = ("a", "b") if fact in a.facts else ("b", "a")
            option = FACTS["picture" if fact.startswith("picture") else fact]
            cure = f"Call both with {option}, or neither."
            raise InvalidArgumentError(name, f"no {fact}", f"{fact}, which {alone} has", cure)
        ours, theirs = a.facts[fact].shape, b.facts[fact].shape
        wide = len(ours) > a.facts["lse"].ndim or fact.startswith("received")
        if apart and wide and ours[-1] != theirs[-1]:
            got = f"{fact} of shape {theirs}"
            raise InvalidArgumentError("b", got, f"{ours[-1]} in the last axis, as a has")


def _check_no_sinks(name: str, shard: _Shard) -> None:
    if "sink_weight" in shard.facts:
        raise InvalidArgumentError(
            name,
            got="a call with sinks",
            expected="one without",
            cure="Each shard would add them once more. Call without sinks=, merge, and add them"
            " last, with with_sinks(pair, sinks).",
        )


def _check_no_columns(name: str, shard: _Shard, reason: str) -> None:
    """Refuse sums over the queries, which no shard of the keys can have."""
    for fact in _OVER_QUERIES:
        if fact in shard.facts:
            raise UnavailableError(
                name,
                got=f"{fact.split('_mean')[0]}, a sum over the queries",
                expected="facts of single queries",
                cure=f"{reason}. Call without it; weights(query, key, rows=..., lse=seen.lse) gives"
                " its parts afterwards.",
            )


def _check_disjoint(a: Facts, b: Facts) -> None:
    """Refuse shards that name the same key for a query, as unshifted ones soon do."""
    if "top_keys" not in a:
        return
    keys = np.sort(np.concatenate((a["top_keys"], b["top_keys"]), axis=-1), axis=-1)
    twice = (keys[..., 1:] == keys[..., :-1]) & (keys[..., 1:] >= 0)
    if twice.any():
        raise InvalidArgumentError(
            "b",
            got=f"top_keys with key {keys[..., 1:][twice][0]}, which a has for the same query",
            expected="keys that a has not",
            cure="A shard's keys are numbered from 0; (output, seen.shifted(first)) moves them.",
        )


def _rounded(wide: Reals, dtype: np.dtype[Any]) -> Reals:
    """float64 in the output's dtype, rounded once."""
    if dtype.name != "bfloat16":
        return wide.astype(dtype)
    # bfloat16 is made of float32. Rounding there to odd keeps on which side of a tie it was.
    near = wide.astype(np.float32)
    even = (near.view(np.uint32) & 1) == 0
    toward = np.where(wide > near, np.inf, -np.inf).astype(np.float32)
    odd = np.isfinite(near) & even & (near != wide)
    return np.where(odd, np.nextafter(near, toward), near).astype(dtype)

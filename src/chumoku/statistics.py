"""What is known of each row of weights: what to watch for, and what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError

Array = Any  # an array of the caller's kind: NumPy in, NumPy out; torch in, torch out


@dataclass(frozen=True)
class Watch:
    """Which facts an attention call reports besides lse and max logit, which are always there.

    Parameters
    ----------
    top : int
        So many keys with the largest weights, for every query.
    entropy : bool
        Entropy of the weights in nats.
    saturation : bool
        Sum of the squared weights (1 = one key has everything), and flow, the trace of softmax's
        Jacobian (0 = no gradient passes).
    distance : bool
        Mean distance between a query and the keys it looks at.
    received : bool
        Attention that each key receives, summed over the queries.
    groups : array of int, shape (keys,), optional
        Group of each key, from 0; the mass of each group is reported.
    picture : (int, int), optional
        Rows and columns of a small image of the weights, mean and max pooled.
    """

    top: int = 0
    entropy: bool = False
    saturation: bool = False
    distance: bool = False
    received: bool = False
    groups: NDArray[np.int64] | None = None
    picture: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.top, (int, np.integer)) or isinstance(self.top, bool):
            raise InvalidTypeError("top", repr(self.top), "a whole number of keys")
        if self.top < 0:
            raise InvalidArgumentError("top", str(self.top), "0 or more keys")
        for name in ("entropy", "saturation", "distance", "received"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise InvalidTypeError(name, repr(getattr(self, name)), "True or False")
        if self.groups is not None:
            groups = np.asarray(self.groups)
            if groups.dtype.kind not in "iu" or groups.ndim != 1:
                got = f"{groups.dtype} of shape {groups.shape}"
                raise InvalidTypeError("groups", got, "one whole number for each key")
            if groups.size and groups.min() < 0:
                raise InvalidArgumentError("groups", f"group {groups.min()}", "groups from 0")
            frozen = groups.astype(np.int64)
            frozen.setflags(write=False)
            object.__setattr__(self, "groups", frozen)
        if self.picture is not None:
            size = tuple(np.atleast_1d(np.asarray(self.picture, dtype=object)))
            if len(size) != 2 or not all(isinstance(n, (int, np.integer)) and n > 0 for n in size):
                raise InvalidArgumentError(
                    "picture", repr(self.picture), "(rows, columns), both 1 or more"
                )
            object.__setattr__(self, "picture", (int(size[0]), int(size[1])))

    def __or__(self, other: Watch) -> Watch:
        """Everything that either of the two asks for."""
        for name in ("groups", "picture"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is not None and theirs is not None and not np.array_equal(mine, theirs):
                raise InvalidArgumentError(
                    name,
                    got="two different requests for the same call",
                    expected="one",
                    cure=f"Ask for the same {name} in watch= and in recording().",
                )
        return Watch(
            top=max(self.top, other.top),
            entropy=self.entropy or other.entropy,
            saturation=self.saturation or other.saturation,
            distance=self.distance or other.distance,
            received=self.received or other.received,
            groups=other.groups if self.groups is None else self.groups,
            picture=other.picture if self.picture is None else self.picture,
        )


# Each fact, and the option of Watch (or of attention) that brings it.
FACTS = {
    "lse": "",
    "max_logit": "",
    "entropy": "Watch(entropy=True)",
    "saturation": "Watch(saturation=True)",
    "flow": "Watch(saturation=True)",
    "top_keys": "Watch(top=8)",
    "top_weights": "Watch(top=8)",
    "distance": "Watch(distance=True)",
    "received": "Watch(received=True)",
    "group_mass": "Watch(groups=...)",
    "picture": "Watch(picture=(64, 64))",
    "sink_weight": "attention(sinks=...)",
}


class Statistics:
    """The facts of one attention call, frozen. Asking for what was not watched raises.

    Attributes
    ----------
    lse, max_logit : (..., heads, queries)
        ln sum_j exp(s_j) and max_j s_j over the visible keys; -inf where a row sees none.
    entropy : (..., heads, queries), nats
    saturation, flow : (..., heads, queries)
        sum_j p_j^2, and sum_j p_j (1 - p_j).
    top_keys, top_weights : (..., heads, queries, k)
        The k largest weights, largest first; equal logits go to the lower key. -1 and 0 where a
        row sees fewer keys.
    distance : (..., heads, queries)
        sum_j p_j |i + offset - j|.
    received : (..., heads, keys)
    group_mass : (..., heads, queries, groups)
    picture : two arrays (..., heads, rows, columns)
        Mean and largest weight in each cell.
    sink_weight : (..., heads, queries)
    """

    lse: Array
    max_logit: Array
    entropy: Array
    saturation: Array
    flow: Array
    top_keys: Array
    top_weights: Array
    distance: Array
    received: Array
    group_mass: Array
    picture: tuple[Array, Array]
    sink_weight: Array

    def __init__(self, **facts: Any) -> None:
        unknown = set(facts) - set(FACTS)
        if unknown:
            raise InvalidArgumentError("facts", ", ".join(sorted(unknown)), ", ".join(FACTS))
        self.__dict__.update(facts)

    def __getattr__(self, name: str) -> NoReturn:
        if name in FACTS:
            raise UnavailableError(
                name,
                got="a call that did not watch it",
                expected=f"one with {FACTS[name]}",
                cure="Ask for it when calling attention() or recording().",
            )
        raise AttributeError(f"Statistics has no fact {name!r}; it knows {', '.join(FACTS)}")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Statistics are frozen: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"Statistics are frozen: {name} cannot be deleted")

    def __dir__(self) -> list[str]:
        return sorted(set(super().__dir__()))

    def __repr__(self) -> str:
        return f"Statistics({', '.join(self.__dict__)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _thaw, (dict(self.__dict__),)

    def facts(self) -> dict[str, Array]:
        """The watched facts by name, in the order of the table above."""
        return {name: self.__dict__[name] for name in FACTS if name in self.__dict__}


def _thaw(facts: dict[str, Array]) -> Statistics:
    return Statistics(**facts)

"""What is known of each row of weights: what to watch for, and what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from chumoku.archive import check_version, read_arrays, write_arrays
from chumoku.checks import flag, is_whole, shown, whole
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError

Array = Any  # an array of the caller's kind: NumPy in, NumPy out; torch in, torch out

# What a fact costs is queries x top, queries x groups, rows x columns: beyond these a mistaken
# number would ask for more memory than there is, and `weights` gives any block exactly.
MOST_TOP = 2**20
MOST_GROUPS = 2**20
MOST_CELLS = 4096  # rows, and columns, of a picture: more than any screen has

# The first array of a saved file: what it is, and in which version of its form.
_FORMAT = "chumoku_statistics"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Watch:
    """Which facts an attention call reports besides lse and max logit, which are always there.

    Parameters
    ----------
    top : int
        So many keys with the largest weights, for every query; up to 2**20. Where there are
        fewer keys, the rest is -1.
    entropy : bool
        Entropy of the weights in nats.
    saturation : bool
        Sum of the squared weights (1 = one key has everything), and flow, the trace of softmax's
        Jacobian (0 = no gradient passes).
    distance : bool
        Mean distance between a query and the keys it looks at.
    received : bool
        Attention that each key receives, summed over the queries, and the same divided by the
        number of queries that can see the key.
    groups : array of int, shape (keys,), optional
        Group of each key, from 0 and below 2**20; the mass of each group is reported.
    picture : (int, int), optional
        Rows and columns of a small image of the weights, mean and max pooled; each up to 4096.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        A number out of these bounds, or something that is no number.
    """

    top: int = 0
    entropy: bool = False
    saturation: bool = False
    distance: bool = False
    received: bool = False
    groups: NDArray[np.int64] | None = None
    picture: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        top = whole("top", self.top, 0, MOST_TOP, of="keys", cure="weights() gives whole rows.")
        object.__setattr__(self, "top", top)
        for name in ("entropy", "saturation", "distance", "received"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        if self.groups is not None:
            object.__setattr__(self, "groups", _groups(self.groups))
        if self.picture is not None:
            object.__setattr__(self, "picture", _picture(self.picture))

    def _identity(self) -> tuple[object, ...]:
        """What two equal watches have in common."""
        groups = None if self.groups is None else self.groups.tobytes()
        flags = (self.entropy, self.saturation, self.distance, self.received)
        return (self.top, *flags, groups, self.picture)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Watch):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __or__(self, other: Watch) -> Watch:
        """Everything that either of the two asks for."""
        if not isinstance(other, Watch):
            return NotImplemented
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


def _groups(given: object) -> NDArray[np.int64]:
    """The group of each key, checked, as an array of its own that cannot be written."""
    expected = "one whole number for each key"
    if isinstance(given, np.ma.MaskedArray):
        raise InvalidTypeError("groups", "a masked array", expected)
    try:
        groups = np.asarray(given)
    except (TypeError, ValueError, OverflowError, RuntimeError, AttributeError) as error:
        got = f"{shown(given)}, which makes no array ({str(error)[:80]})"
        raise InvalidTypeError("groups", got, expected) from None
    nothing = groups.shape == (0,)
    if groups.ndim != 1 or (groups.dtype.kind not in "iu" and not nothing):
        got = f"{groups.dtype} of shape {groups.shape}"
        raise InvalidTypeError("groups", got, expected)
    if not nothing and groups.min() < 0:
        raise InvalidArgumentError("groups", f"group {groups.min()}", "groups from 0")
    if not nothing and groups.max() >= MOST_GROUPS:
        raise InvalidArgumentError(
            "groups",
            got=f"group {groups.max()}",
            expected=f"groups below {MOST_GROUPS:,}",
            cure="Every query has one number for each group: count the groups from 0 without gaps,"
            " as np.unique(groups, return_inverse=True)[1] does.",
        )
    frozen = groups.astype(np.int64)
    frozen.setflags(write=False)
    return frozen


def _picture(given: object) -> tuple[int, int]:
    """Rows and columns, checked."""
    size = given.tolist() if isinstance(given, np.ndarray) else given
    if isinstance(size, (tuple, list)) and len(size) == 2 and all(is_whole(n) for n in size):
        rows, columns = size
        if 1 <= rows <= MOST_CELLS and 1 <= columns <= MOST_CELLS:
            return int(rows), int(columns)
    got = shown(given)
    if isinstance(size, (tuple, list)) and len(size) <= 4:
        got = f"({', '.join(map(shown, size))})"
    raise InvalidArgumentError("picture", got, f"(rows, columns), both from 1 to {MOST_CELLS}")


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
    "received_share": "Watch(received=True)",
    "group_mass": "Watch(groups=...)",
    "picture": "Watch(picture=(64, 64))",
    "sink_weight": "attention(sinks=...)",
}


class Statistics:
    """The facts of one attention call, frozen. Asking for what was not watched raises.

    Attributes
    ----------
    lse, max_logit : (..., heads, queries)
        ln sum_j exp(s_j) and max_j s_j over the visible keys; -inf where a row sees none. A row
        with NaN or inf among its logits has NaN everywhere; its max_logit is inf if it has one.
    entropy : (..., heads, queries), nats
    saturation, flow : (..., heads, queries)
        sum_j p_j^2, and sum_j p_j (1 - p_j).
    top_keys, top_weights : (..., heads, queries, k)
        The k largest weights, largest first; equal logits go to the lower key. -1 and 0 where a
        row sees fewer keys.
    distance : (..., heads, queries)
        sum_j p_j |i + offset - j|.
    received, received_share : (..., heads, keys)
        sum_i p_ij, and the same divided by the number of queries that can see key j; 0 where none
        can.
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
    received_share: Array
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

    def shifted(self, first: int) -> Statistics:
        """The same facts of keys that begin at key `first`: top_keys is moved, -1 stays.

        A call on key[..., first:last, :] counts its keys from 0. `merge` needs the keys' numbers
        in the whole.
        """
        facts = self.facts()
        low, high = 2**63 - 1, 0
        if "top_keys" in facts:
            keys = facts["top_keys"]
            places = as_numpy("top_keys", keys)
            places = places[places >= 0]
            low, high = int(places.min(initial=low)), int(places.max(initial=high))
        shift = whole("first", first, -low, 2**63 - 1 - high)
        if "top_keys" in facts:
            # keys >> 63 is -1 for the -1 of no key, and 0 for every other: no kind of array is
            # asked for more than whole numbers.
            facts["top_keys"] = keys + shift * (1 + (keys >> 63))
        return Statistics(**facts)

    def save(self, path: str | PathLike[str]) -> None:
        """Write every fact, bit for bit, into an .npz file without pickle.

        Parameters
        ----------
        path : str or path
            In a folder that exists. A file of that name is replaced, at once and whole; no suffix
            is added.

        Raises
        ------
        InvalidArgumentError, InvalidTypeError
            The file cannot be written there, or facts put together by hand do not fit together.
        """
        arrays = {name: as_numpy(name, fact) for name, fact in flatten(self).items()}
        check_facts(arrays)
        write_arrays(path, {_FORMAT: np.array(_VERSION, np.int64), **arrays})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Statistics:
        """What `save` wrote, as NumPy arrays.

        Parameters
        ----------
        path : str or path

        Returns
        -------
        Statistics

        Raises
        ------
        InvalidArgumentError, InvalidTypeError
            The file is missing, damaged, of another kind or of a later version.
        """
        arrays = read_arrays(path)
        version = arrays.pop(_FORMAT, None)
        number = None if version is None else version.tolist()
        check_version(path, number, _VERSION, "statistics that Statistics.save wrote")
        check_facts(arrays)
        return unflatten(arrays)


def _thaw(facts: dict[str, Array]) -> Statistics:
    return Statistics(**facts)


# Facts as plain arrays, one a name


_HALVES = ("picture_mean", "picture_most")
_BY_ROW = ("top_keys", "top_weights", "group_mass")  # one axis more than a row has
_TOGETHER = (
    ("saturation", "flow"),
    ("top_keys", "top_weights"),
    ("received", "received_share"),
    _HALVES,
)


def flatten(seen: Statistics) -> dict[str, Array]:
    """The facts, with the two halves of a picture as two."""
    facts = seen.facts()
    if "picture" in facts:
        picture = facts.pop("picture")
        if not isinstance(picture, tuple) or len(picture) != 2:
            raise InvalidTypeError("picture", shown(picture), "a pair of arrays, mean and largest")
        facts |= dict(zip(_HALVES, picture, strict=True))
    return facts


def unflatten(facts: dict[str, Array]) -> Statistics:
    """What `flatten` gave, as Statistics again."""
    rest = {name: fact for name, fact in facts.items() if name not in _HALVES}
    if _HALVES[0] in facts:
        rest["picture"] = tuple(facts[half] for half in _HALVES)
    return Statistics(**rest)


def row_facts(facts: dict[str, Array]) -> list[str]:
    """Those of them that are told of each row, and not of a key or of the whole."""
    return [name for name in facts if not name.startswith(("received", "picture"))]


def of_rows(seen: Statistics, places: slice) -> Statistics:
    """The facts of some rows, in memory of their own; facts of keys and pictures as they are."""
    facts = seen.facts()
    for name in row_facts(facts):
        rest = (slice(None),) if name in _BY_ROW else ()
        # A product is a copy for arrays of every kind, and 1 changes no bit.
        facts[name] = facts[name][(..., places, *rest)] * 1
    return Statistics(**facts)


def of_heads(seen: Statistics, heads: Sequence[int]) -> Statistics:
    """The facts of some heads, in memory of their own."""

    def chosen(fact: Array, tail: int) -> Array:
        return fact[(..., list(heads), *(slice(None),) * tail)]

    facts = seen.facts()
    for name, fact in facts.items():
        if name == "picture":
            facts[name] = tuple(chosen(half, 2) for half in fact)
        else:
            facts[name] = chosen(fact, 2 if name in _BY_ROW else 1)
    return Statistics(**facts)


def as_numpy(name: str, fact: Array) -> NDArray[Any]:
    """A fact of any kind of array, on any device, as a NumPy array."""
    try:
        return np.asarray(fact.detach().cpu() if hasattr(fact, "detach") else fact)
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{type(fact).__name__}, which NumPy cannot read ({str(error)[:80]})"
        raise InvalidTypeError(name, got, "an array") from None


def check_facts(facts: dict[str, NDArray[Any]]) -> None:
    """Refuse facts (as `flatten` names them) whose names, dtypes or shapes do not fit together."""
    if "lse" not in facts:
        raise InvalidArgumentError("lse", "facts without it", "lse, which is always there")
    lse = facts["lse"]
    if lse.ndim < 1 or lse.dtype not in (np.float32, np.float64):
        got = f"{lse.dtype} of shape {lse.shape}"
        raise InvalidArgumentError("lse", got, "float32 or float64 of shape (..., heads, queries)")
    for name, fact in facts.items():
        if name not in (*FACTS, *_HALVES) or name == "picture":
            raise InvalidArgumentError("facts", repr(name[:80]), ", ".join(FACTS))
        dtype = np.dtype(np.int64) if name == "top_keys" else lse.dtype
        if fact.dtype != dtype:
            raise InvalidArgumentError(name, f"dtype {fact.dtype}", f"{dtype}, beside such an lse")
        places, free = lse.shape, 0
        if name in _BY_ROW:
            free = 1
        elif name in ("received", "received_share", *_HALVES):
            places, free = lse.shape[:-1], 2 if name in _HALVES else 1
        if fact.ndim != len(places) + free or fact.shape[: len(places)] != places:
            expected = f"{(*places, *('n' * free))}, beside an lse of shape {lse.shape}"
            raise InvalidArgumentError(name, f"shape {fact.shape}", expected.replace("'", ""))
    for one, other in _TOGETHER:
        if (one in facts) != (other in facts):
            missing, there = (one, other) if other in facts else (other, one)
            raise InvalidArgumentError(missing, f"{there} without it", "both")
        if one in facts and facts[one].shape != facts[other].shape:
            got = f"shape {facts[other].shape}"
            raise InvalidArgumentError(other, got, f"{facts[one].shape}, as {one} has")

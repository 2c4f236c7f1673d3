"""MultiHeadAttention and its cache: every wrong use raises one of the library's errors."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strange import anything, outcome
from test_multihead import draw

from chumoku import Cache, Causal, MultiHeadAttention
from chumoku.errors import ChumokuError, InvalidArgumentError

X = draw(5, 8)
NARROW = MultiHeadAttention(8, 4, key_width=5, value_width=6)
BARE = MultiHeadAttention(8, 4, bias=False).parameters


def wide(query: int = 4, key: int = 4, value: int = 4) -> MultiHeadAttention:
    """One head of these widths."""
    shapes = {"query": (query, 2), "key": (key, 2), "value": (value, 2), "output": (3, value)}
    parameters = {f"{part}_matrix": draw(*shape) for part, shape in shapes.items()}
    return MultiHeadAttention.from_parameters(parameters, 1)


def of(heads: Any = 4, **changes: Any) -> MultiHeadAttention:
    return MultiHeadAttention.from_parameters({**BARE, **changes}, heads)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("heads: got 4, expected a divisor of", lambda _: MultiHeadAttention(10, 4)),
        ("width: got 0", lambda _: MultiHeadAttention(0)),
        ("heads: got 2.0", lambda _: MultiHeadAttention(8, 2.0)),
        ("heads: got True", lambda _: MultiHeadAttention(8, True)),
        ("kv_heads: got 3, expected a divisor of 8", lambda _: MultiHeadAttention(kv_heads=3)),
        ("key_width: got -1", lambda _: MultiHeadAttention(key_width=-1)),
        ("dtype: got float16", lambda _: MultiHeadAttention(dtype=np.float16)),
        (
            "dtype: got 'nope', expected float32 or float64",
            lambda _: MultiHeadAttention(dtype="nope"),
        ),
        ("dtype: got None", lambda _: MultiHeadAttention(dtype=None)),
        ("dtype: got >f4", lambda _: MultiHeadAttention(dtype=">f4")),
        ("seed: got -1", lambda _: MultiHeadAttention(seed=-1)),
        ("width: got 10+, expected a whole number from 1 to", lambda _: MultiHeadAttention(10**12)),
        ("heads: got 2 for a width of 4096, expected more", lambda _: MultiHeadAttention(4096, 2)),
        ("bias: got 1, expected True or False", lambda _: MultiHeadAttention(bias=1)),
        ("parameters: got None", lambda _: MultiHeadAttention.from_parameters(None, 4)),
        (
            "parameters: got 3, expected a name",
            lambda _: MultiHeadAttention.from_parameters({3: 4}, 4),
        ),
        ("prefix: got None", lambda _: MultiHeadAttention.from_parameters({}, 4, prefix=None)),
        (r"silenced: got \[\['a'\], 1\]", lambda _: of(silenced=[["a"], 1])),
        ("heads: got 1.0", lambda _: of(silenced=[1.0])),
        ("query_matrix: got shape .* at most 1024 rows", lambda _: wide(query=1025, key=1025)),
        ("value_matrix: got shape .* at most 1024 a head", lambda _: wide(value=1025)),
        ("path: got None", lambda _: MultiHeadAttention.load(None)),
        ("path: got '.'", lambda m: m.save("")),
        ("parameters: got nothing for query_matrix", lambda _: of(query_matrix=None)),
        ("parameters: got also extra", lambda _: of(extra=np.ones(3))),
        ("parameters: got query_matrix twice", lambda _: of(in_proj_weight=draw(24, 8))),
        ("bias_k: got one more learned key", lambda _: of(bias_k=draw(1, 1, 8))),
        (r"in_proj_bias: got shape \(25,\)", lambda _: of(in_proj_bias=draw(25))),
        ("query_matrix: got shape", lambda _: of(query_matrix=draw(0, 8))),
        ("key_matrix: got shape", lambda _: of(key_matrix=draw(8, 8, 8))),
        ("key_matrix: got shape", lambda _: of(key_matrix=draw(8))),
        ("key_matrix: got shape", lambda _: of(key_matrix=draw(6, 8))),
        ("key_matrix: got shape", lambda _: of(key_matrix=draw(3, 8))),
        ("value_matrix: got shape", lambda _: of(value_matrix=draw(9, 8))),
        ("output_matrix: got shape", lambda _: of(output_matrix=draw(8, 7))),
        ("query_bias: got shape", lambda _: of(query_bias=draw(7))),
        ("key_matrix: got float64", lambda _: of(key_matrix=draw(8, 8, dtype=np.float64))),
        ("key_matrix: got float16", lambda _: of(key_matrix=draw(8, 8, dtype=np.float16))),
        (r"key_matrix: got \[\[1.0\]", lambda _: of(key_matrix=[[1.0], [1.0, 2.0]])),
        ("query_matrix: .* Is heads=3 right", lambda _: of(3)),
        ("query_matrix: .* Is heads=16 right", lambda _: of(16)),
        ("heads: got None, expected the number of heads. Give heads=", lambda _: of(None)),
        ("heads: got 0", lambda _: of(0)),
        ("heads: got 4", lambda _: of(silenced=np.array([4]))),
        (r"x: got shape \(5, 7\), expected \(..., length, 8\)", lambda m: m(X[:, :7])),
        ("x: got shape", lambda m: m(X[0])),
        ("x: got float64, expected float32", lambda m: m(X.astype(np.float64))),
        ("x: got builtins.list, expected a NumPy array", lambda m: m(X.tolist())),
        ("memory: got shape", lambda m: m(X, X[:, :7])),
        ("memory: got shape .* Give value= too", lambda _: NARROW(X, X[:, :5])),
        ("value: got shape", lambda m: m(X, X, X[:, :7])),
        ("value: got 4 positions, expected 5 positions", lambda m: m(X, X, X[:4])),
        ("value: got values alone", lambda m: m(X, None, X)),
        (r"memory: got leading axes \(3,\)", lambda m: m(draw(2, 5, 8), draw(3, 5, 8))),
        ("mask: got", lambda m: m(X, mask=np.ones((4, 4), bool))),
        ("mask: got", lambda m: m(X, mask=np.ones((5, 5)))),
        ("bias: got", lambda m: m(X, bias=X)),
        ("scale: got", lambda m: m(X, scale="1")),
        ("watch: got", lambda m: m(X, watch=True)),
        ("heads: got 7, expected a whole number from 0 to 3", lambda m: m.without({0, 7})),
        ("heads: got -1", lambda m: m.without({-1})),
        ("heads: got '0'", lambda m: m.without("0")),
        ("heads: got 0, expected several heads. One head is", lambda m: m.without(0)),
        (r"x: got shape \(1, .*, length, 8\)", lambda m: m(X[(None,) * 40])),
        ("x: got numpy.ma.MaskedArray", lambda m: m(np.ma.MaskedArray(X))),
        ("length: got None", lambda _: Cache().truncate(None)),
    ],
)
def test_wrong_arguments(message: str, call: Any) -> None:
    with pytest.raises(ChumokuError, match=f"^{message}"):
        call(MultiHeadAttention(8, 4))


@pytest.mark.parametrize(
    "other",
    [
        lambda mha: MultiHeadAttention(16, 2),
        lambda mha: MultiHeadAttention(16, 4, dtype=np.float64),
        lambda mha: changed(mha, lambda name, array: array.astype(np.float64)),
        lambda mha: changed(mha, lambda name, array: array + (name == "key_bias")),
        lambda mha: changed(mha, lambda name, array: None if name == "value_bias" else array),
    ],
    ids=["heads", "dtype", "equal numbers of another dtype", "bias", "no bias"],
)
def test_a_cache_serves_the_module_that_filled_it(other: Any) -> None:
    mha = MultiHeadAttention(16, 4)
    stranger = other(mha)
    cache = Cache()
    mha(draw(3, 16), mask=Causal(), cache=cache)
    with pytest.raises(InvalidArgumentError, match="^cache: got one that another module filled"):
        stranger(draw(3, 16).astype(stranger.dtype), cache=cache)
    assert len(cache) == 3
    twin = changed(mha, lambda name, array: array.copy())
    twin(draw(3, 16), mask=Causal(), cache=cache)
    assert len(cache) == 6


def changed(mha: MultiHeadAttention, change: Any) -> MultiHeadAttention:
    parameters = {name: change(name, array) for name, array in mha.parameters.items()}
    return MultiHeadAttention.from_parameters(parameters, mha.heads)


def test_only_the_library_s_errors_come_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(6)
    options = ("kv_heads", "bias", "key_width", "value_width", "dtype", "seed")
    mha = MultiHeadAttention(8, 4)
    made = 0
    for _ in range(1500):
        width, heads = rng.choice([(8, 4), (12, 3), (anything(rng), anything(rng))])
        named = {name: anything(rng) for name in options if rng.random() < 0.2}
        made += not isinstance(outcome(MultiHeadAttention, width, heads, **named), type)
        outcome(mha.without, anything(rng))
        outcome(mha.save, anything(rng))
        outcome(MultiHeadAttention.load, anything(rng))
        parameters = {**BARE, rng.choice([*BARE, "heads", "silenced", "query_bias"]): anything(rng)}
        parameters = rng.choice([parameters, anything(rng)])
        heads, prefix = rng.choice([4, anything(rng)]), rng.choice(["", anything(rng)])
        outcome(MultiHeadAttention.from_parameters, parameters, heads, prefix=prefix)
    assert made > 50


def test_only_the_library_s_errors_come_out_of_a_call() -> None:
    rng = random.Random(7)
    mha, cache = MultiHeadAttention(8, 4), Cache()
    answered = 0
    for _ in range(1500):
        x = rng.choice([X, X, anything(rng)])
        given = [anything(rng) for _ in range(rng.choice([0, 0, 1, 2]))]
        named = {name: anything(rng) for name in ("mask", "bias") if rng.random() < 0.1}
        named["cache"] = rng.choice([None, cache, anything(rng)])
        answered += not isinstance(outcome(mha, x, *given, **named), type)
        outcome(cache.truncate, rng.choice([0, anything(rng)]))
    assert answered > 50

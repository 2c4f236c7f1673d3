"""Calls at the edge, in every dtype. benchmarks/edges.py has them, and runs them on peers too."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import poisoned_memory

import chumoku
from benchmarks import edges
from chumoku import Watch, attention

EVERYTHING = Watch(top=3, entropy=True, saturation=True, distance=True, received=True)

everywhere = pytest.mark.parametrize(
    ("edge", "name"),
    [pytest.param(e, n, id=f"{e}, {n}") for e in edges.EDGES for n in edges.DTYPES],
)


@everywhere
def test_output(edge, name):
    with poisoned_memory():
        assert edges.outcome(edge, name, "chumoku") == "pass"


@everywhere
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_statistics(edge, name):
    if edge.senseless:
        pytest.skip("there is nothing to see")
    given = edge.make(edges.DTYPES[name])
    inputs = given.query, given.key, given.value
    groups = np.arange(given.key.shape[-2]) * 5 % 3
    watch = replace(EVERYTHING, groups=groups, picture=(2, 3))
    with poisoned_memory():
        output, seen = attention(*inputs, **given.options, watch=watch)
    assert np.array_equal(output, attention(*inputs, **given.options), equal_nan=True)
    _, facts = edges.definition(given, watch)
    assert set(facts) <= set(seen.facts())
    # Sums are in float32 (float64 for float64) whatever the dtype. A bias of -65504 leaves float32
    # scores eight bits after the point.
    allowed = {"float64": 1e-12, "float16": 2e-3}.get(name, 2e-5)
    for fact, wanted in facts.items():
        if fact.startswith("top_"):
            continue
        got = np.asarray(getattr(seen, fact)).astype(np.longdouble)
        wanted = np.asarray(wanted)
        there = np.isfinite(wanted)
        assert got.shape == wanted.shape, fact
        assert np.array_equal(got[~there], wanted[~there], equal_nan=True), fact
        off = np.abs(got[there] - wanted[there]) / (1 + np.abs(wanted[there]))
        assert off.max(initial=0) <= allowed, fact


@everywhere
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_weights(edge, name):
    """The block as it is asked for afterwards: rows add up to 1, less what a sink takes."""
    if edge.senseless:
        pytest.skip("there is nothing to see")
    given = edge.make(edges.DTYPES[name])
    _, seen = attention(given.query, given.key, given.value, **given.options, watch=EVERYTHING)
    with poisoned_memory():
        block = chumoku.weights(given.query, given.key, **given.options)
        known = chumoku.weights(given.query, given.key, **given.options, lse=seen.lse)
    sums = np.where(np.isneginf(seen.max_logit), 0.0, 1.0)
    if "sinks" in given.options:
        sums = sums * (1 - seen.sink_weight)
    # Beyond this size the lse is no finer than the logarithm of the number of keys.
    tame = np.isneginf(seen.lse) | (np.abs(seen.lse) < 1e6)
    assert np.abs(block.sum(axis=-1) - sums)[tame].max(initial=0) <= 1e-5
    near = np.isfinite(seen.lse) & tame
    size = 1 + np.abs(seen.lse[near]).max(initial=0)
    assert np.abs(block - known)[near].max(initial=0) <= 1e-6 * size
    assert np.isnan(block).any(axis=-1)[np.isnan(seen.lse)].all()


def test_the_table_goes_on_after_a_crash(tmp_path):
    """A contender that dies is a row of the table, not its end."""
    script = tmp_path / "edges.py"
    source = Path(edges.__file__).read_text(encoding="utf-8")
    script.write_text(
        source.replace(
            "    given = edge.make(DTYPES[name])\n    with warnings",
            "    if edge.name == 'width 3':\n        import os\n        os.abort()\n"
            "    return 'pass'\n    with warnings",
        )
    )
    done = subprocess.run(
        [sys.executable, script, "--dtypes", "float32"], capture_output=True, text=True, check=False
    )
    lines = {line[:36].strip(): line[36:] for line in done.stdout.splitlines()}
    assert lines["width 3"].split() == ["crash:", "signal", "6"] * 3, done.stderr
    assert lines["width 5"].split() == ["pass"] * 3
    assert done.returncode == 1

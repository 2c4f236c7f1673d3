"""The benchmark: it times what is right, and says so when something is not."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import chumoku
from benchmarks import peers, workloads

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def threads_as_they_were():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)
    chumoku.set_threads(None)


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / "run.py", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_case_beside_a_peer():
    done = bench("--cases", "tiny", "--peers", "chumoku,numpy,torch", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    for name in ("chumoku", "numpy", "torch"):
        assert any(
            line.split()[0] == name and line.endswith(" MB")
            for line in done.stdout.splitlines()
            if line.startswith("  ")
        ), done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would time everything")
def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = bench("--device", "cuda")
    assert done.returncode == 1
    assert done.stdout.startswith("PyTorch finds no CUDA GPU here; ")


def test_the_script_for_a_gpu_runs_to_its_end(monkeypatch):
    """In Triton's interpreter, where there is none: its figures mean nothing there."""
    pytest.importorskip("triton", reason="the kernel of a GPU's tensors is written in Triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    sizes = ("--widths", "512", "--lengths", "16", "--tokens", "16", "--rounds", "1")
    parts = ("--parts", "forward,seeing", "--peers", "flash")
    done = bench("--device", "cuda", *parts, *sizes)
    assert done.returncode == 1, done.stderr
    assert "failed: chumoku: kernel: got a call that no kernel takes" in done.stdout
    done = bench("--device", "cuda", *parts, "--widths", "256", *sizes[2:])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("failed: nothing\n")
    for part in ("ceiling", "forward", "seeing"):
        assert f"\n{part} " in done.stdout


def test_a_peer_that_cannot_do_a_case_says_why():
    done = bench("--cases", "tiny", "--peers", "torch folded", "--rounds", "1")
    assert "torch folded       nothing to fold" in done.stdout


@pytest.mark.parametrize("option", ["--cases", "--peers", "--dtypes"])
def test_unknown_names(option):
    done = bench(option, "nope")
    assert done.returncode == 2
    assert f"unknown {option[2:]}: nope; there are " in done.stderr


def small(case):
    """The case at lengths that take no time."""
    keys = 40 if case.keys != case.queries else min(case.queries, 33)
    heads = 4 if case.kv_heads != case.heads else 2
    return replace(
        case,
        batch=min(case.batch, 2),
        heads=heads,
        kv_heads=2,
        queries=min(case.queries, 33),
        keys=keys,
    )


@pytest.mark.parametrize("case", workloads.CASES, ids=[case.name for case in workloads.CASES])
def test_every_case_is_the_same_for_everyone(case):
    case = small(case)
    for name in ("chumoku", "chumoku tensors", "torch", "torch weights", "numpy"):
        timed = peers.CONTENDERS[name](case, 1)
        error = case.error(timed.output(timed.run()))
        assert error < workloads.WORST_ERROR[case.dtype], name


def test_a_wrong_output_is_found():
    case = small(workloads.CASES[0])
    output = np.array(peers.CONTENDERS["chumoku"](case, 1).run())
    output[0, 0, 0] = output[0, 0, 1]
    assert case.error(output) > workloads.WORST_ERROR["float32"]


def test_the_results_that_are_kept_can_be_read():
    for path in (BENCHMARKS / "results").glob("*.json"):
        assert json.loads(path.read_text(encoding="utf-8"))

"""Time chumoku beside its peers: interleaved, medians, as ratios of one run.

    python benchmarks/run.py                     # every case
    python benchmarks/run.py --cases long,short  # some of them
    python benchmarks/run.py --save NAME         # also benchmarks/results/NAME.json

Each contender runs in a process of its own (another library's idle threads would disturb the
rest) and they take turns, round by round. A case is reported only when chumoku's output of that
very case agrees with sums in float64; rows in which we lose stay in the table.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SECONDS_A_TURN = 0.08
WORST_ERROR = 2e-6  # relative, in norm, float32 against float64


@dataclass(frozen=True)
class Case:
    """One shape to time: query (batch, heads, queries, width) against `keys` keys."""

    name: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    width: int
    causal: bool = False

    @property
    def flop(self) -> float:
        """Floating point operations; a causal case is counted without its hidden half."""
        full = 4.0 * self.batch * self.heads * self.queries * self.keys * self.width
        return full / 2 if self.causal else full

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same numbers for every contender."""
        rng = np.random.default_rng(0)
        shape = (self.batch, self.kv_heads, self.keys, self.width)
        query = rng.standard_normal(
            (self.batch, self.heads, self.queries, self.width), dtype=np.float32
        )
        key = rng.standard_normal(shape, dtype=np.float32)
        return query, key, rng.standard_normal(shape, dtype=np.float32)


CASES = (
    Case("long", 1, 8, 8, 2048, 2048, 64),
    Case("long-causal", 1, 8, 8, 2048, 2048, 64, causal=True),
    Case("short", 8, 12, 12, 128, 128, 64),
    Case("short-causal", 8, 12, 12, 128, 128, 64, causal=True),
    Case("middle", 1, 8, 8, 512, 512, 64),
    Case("middle-causal", 1, 8, 8, 512, 512, 64, causal=True),
    Case("training", 32, 12, 12, 384, 384, 64),
    Case("wide", 1, 16, 16, 4096, 4096, 128),
    Case("decode", 1, 32, 32, 1, 4096, 128),
    Case("decode-grouped", 1, 32, 8, 1, 16384, 128),
)


# Contenders: each makes, of a case, the call to be timed


def _chumoku(case: Case, **watch: Any) -> Callable[[], Any]:
    import chumoku

    query, key, value = case.arrays()
    mask = chumoku.Causal() if case.causal else None
    asked = chumoku.Watch(**watch) if watch else None
    return lambda: chumoku.attention(query, key, value, mask=mask, watch=asked, kernel="native")


def _torch(case: Case, threads: int) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(threads)
    query, key, value = (torch.from_numpy(array) for array in case.arrays())
    call = torch.nn.functional.scaled_dot_product_attention
    grouped = case.heads != case.kv_heads
    return lambda: call(query, key, value, is_causal=case.causal, enable_gqa=grouped)


def _torch_folded(case: Case, threads: int) -> Callable[[], Any]:
    """Grouped heads folded into the queries by hand, where that is the same calculation."""
    import torch

    torch.set_num_threads(threads)
    query, key, value = (torch.from_numpy(array) for array in case.arrays())
    call = torch.nn.functional.scaled_dot_product_attention
    folded = query.reshape(case.batch, case.kv_heads, -1, case.width)
    return lambda: call(folded, key, value)


def contenders(case: Case, threads: int) -> dict[str, Callable[[], Callable[[], Any]]]:
    """What is timed for this case, by name."""
    found: dict[str, Callable[[], Callable[[], Any]]] = {
        "chumoku": lambda: _chumoku(case),
        "chumoku, watching": lambda: _chumoku(case, entropy=True, saturation=True),
        "chumoku, top 8 too": lambda: _chumoku(case, entropy=True, saturation=True, top=8),
        "torch": lambda: _torch(case, threads),
    }
    if case.heads != case.kv_heads and case.queries == 1:
        found["torch, folded"] = lambda: _torch_folded(case, threads)
    return found


def worker(case: Case, name: str, threads: int) -> None:
    """Answer each line on standard input with the seconds that some calls took."""
    if name.startswith("chumoku"):
        from chumoku import _native

        _native.set_threads(threads)
    call = contenders(case, threads)[name]()
    call()
    print("ready", flush=True)
    for _ in sys.stdin:
        call()
        times: list[float] = []
        while sum(times) < SECONDS_A_TURN:
            begun = time.perf_counter()
            call()
            times.append(time.perf_counter() - begun)
        print(json.dumps(statistics.median(times)), flush=True)


# The run


def error_of(case: Case) -> float:
    """Relative error, in norm, of some rows of chumoku's output against float64."""
    output = _chumoku(case)()
    query, key, value = (array.astype(np.float64) for array in case.arrays())
    rows = np.unique(np.linspace(0, case.queries - 1, 16).astype(int))
    group = case.heads // case.kv_heads
    scores = query[..., rows, :] @ np.repeat(key, group, 1).swapaxes(-1, -2) / case.width**0.5
    if case.causal:
        scores[..., np.arange(case.keys) > rows[:, None] + case.keys - case.queries] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = weights @ np.repeat(value, group, 1) / weights.sum(-1, keepdims=True)
    return float(np.linalg.norm(output[..., rows, :] - exact) / np.linalg.norm(exact))


def time_case(case: Case, rounds: int, threads: int) -> dict[str, list[float]]:
    """Seconds of each contender's call, one median for each round."""
    names = list(contenders(case, threads))
    command = [sys.executable, __file__, "--threads", str(threads), "--worker", case.name]
    running = {
        name: subprocess.Popen(
            [*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in names
    }
    try:
        for process in running.values():
            if _answer(process) != "ready":
                raise SystemExit(f"{case.name}: a contender did not start")
        times: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds):
            for name in names if turn % 2 == 0 else reversed(names):
                process = running[name]
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
                times[name].append(float(_answer(process)))
        return times
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def _answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def report(case: Case, times: dict[str, list[float]], error: float) -> dict[str, Any]:
    """One case as a row: milliseconds, and each round's ratio to torch's call."""
    row: dict[str, Any] = {"case": case.name, "error": error}
    shape = f"{case.batch}x{case.heads}x{case.queries}x{case.width}"
    print(f"\n{case.name}: {shape}, {case.keys} keys{', causal' if case.causal else ''}")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        ratio = statistics.median(t / s for t, s in zip(times["torch"], seconds, strict=True))
        row[name] = {"ms": 1e3 * median, "times torch": ratio}
        speed = case.flop / median / 1e9
        print(f"  {name:<20} {1e3 * median:9.3f} ms {speed:7.1f} GFLOP/s {ratio:6.2f} x torch")
    return row


def main() -> int:
    """Run the benchmark as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", help="names, separated by commas")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    by_name = {case.name: case for case in CASES}
    if options.worker:
        worker(by_name[options.worker[0]], options.worker[1], options.threads)
        return 0
    names = options.cases.split(",") if options.cases else list(by_name)
    if unknown := [name for name in names if name not in by_name]:
        parser.error(f"unknown case {', '.join(unknown)}; there are {', '.join(by_name)}")
    from chumoku import _native

    machine = f"{platform.processor() or platform.machine()}, {_native.instruction_set()}"
    print(f"{machine}, {options.threads} threads, float32, medians of {options.rounds} rounds")
    rows = []
    for name in names:
        error = error_of(by_name[name])
        if not error < WORST_ERROR:
            print(f"\n{name}: not timed: its error against float64 is {error:.1e}")
            continue
        rows.append(
            report(by_name[name], time_case(by_name[name], options.rounds, options.threads), error)
        )
    if options.save:
        path = Path(__file__).parent / "results" / f"{options.save}.json"
        path.parent.mkdir(exist_ok=True)
        record = {"machine": machine, "threads": options.threads, "cases": rows}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if len(rows) == len(names) else 1


if __name__ == "__main__":
    raise SystemExit(main())

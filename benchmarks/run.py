"""Time chumoku beside its peers: interleaved, medians, as ratios of one run.

    python benchmarks/run.py                              # every case, every peer that is installed
    python benchmarks/run.py --cases decode,bias          # some cases
    python benchmarks/run.py --peers chumoku,torch,numpy  # some peers
    python benchmarks/run.py --dtypes bfloat16,float16    # in other dtypes than float32
    python benchmarks/run.py --base HEAD~3                # beside another commit of our own
    python benchmarks/run.py --save NAME                  # also benchmarks/results/NAME.json
    python benchmarks/run.py --device cuda                # on a GPU: benchmarks/cuda.py

Each contender runs in a process of its own (another library's idle threads would disturb the
rest), and they take turns, round by round, with a probe of what the machine can do at that moment.
A contender whose output does not agree with float64 is named and not timed; when it is chumoku, the
whole case is not reported. Rows in which we lose stay in the table.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SECONDS_A_TURN = 0.08
sys.path.insert(0, str(ROOT))  # run as a file, or by run.py


# In a process of its own


def worker(case: Any, name: str, threads: int) -> None:
    """Say how the first call went; then answer each line with the seconds that calls took."""
    from benchmarks.peers import CONTENDERS, Unfit
    from benchmarks.workloads import WORST_ERROR, peak_of

    try:
        timed = CONTENDERS[name.split("@")[0]](case, threads)
        result, peak = peak_of(timed.run)
        error = case.error(timed.output(result))
        del result
    except (Unfit, ImportError) as reason:
        print(json.dumps({"unfit": str(reason)}), flush=True)
        return
    except Exception as failure:  # a peer's own errors are of every kind
        text = str(failure).strip().split("\n")[0] or type(failure).__name__
        print(json.dumps({"unfit": text[:100], "wrong": True}), flush=True)
        return
    if not error < WORST_ERROR[case.dtype]:
        words = f"its error against float64 is {error:.1e}"
        print(json.dumps({"unfit": words, "wrong": True}), flush=True)
        return
    print(json.dumps({"error": error, "MB": peak}), flush=True)
    for _ in sys.stdin:
        timed.run()
        times: list[float] = []
        while sum(times) < SECONDS_A_TURN:
            begun = time.perf_counter()
            timed.run()
            times.append(time.perf_counter() - begun)
        print(json.dumps(statistics.median(times)), flush=True)


def probe(library: str, threads: int) -> None:
    """Answer each line with GFLOP/s and GB/s of this moment."""
    functions = ctypes.CDLL(library)
    for function in (functions.multiply_adds, functions.reading):
        function.restype = ctypes.c_double
    functions.reading(threads)
    print(json.dumps({}), flush=True)
    for _ in sys.stdin:
        rates = functions.multiply_adds(threads), functions.reading(threads)
        print(json.dumps(rates), flush=True)


# The run


class Process:
    """A worker, or the probe."""

    def __init__(self, *words: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )
        self.said = self.answer()
        self.process.send_signal(signal.SIGSTOP)

    def answer(self) -> Any:
        """The next line; of a process that died, why nothing more comes."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        return {"unfit": f"ended with {self.process.wait()}", "wrong": True}

    def turn(self) -> Any:
        """One more answer. Between its turns a process is stopped: idle threads may spin."""
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer = self.answer()
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def end(self) -> None:
        """Whatever it is doing."""
        self.process.kill()
        self.process.wait()


@contextmanager
def compiled_probe() -> Iterator[str]:
    """probe.cc as a library."""
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder) / "probe.so")
        compiler = os.environ.get("CXX", "g++")
        flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *flags, HERE / "probe.cc", "-o", library], check=True)
        yield library


@contextmanager
def built(revision: str | None) -> Iterator[str]:
    """A folder in which Python finds another commit's chumoku before ours."""
    if revision is None:
        yield ""
        return
    with tempfile.TemporaryDirectory() as folder:
        tree, stage = Path(folder) / "tree", Path(folder) / "stage"
        add = ["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", tree, revision]
        subprocess.run(add, check=True)
        try:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation"]
            subprocess.run([*pip, "--no-deps", "--target", stage, tree], check=True)
        finally:
            shutil.rmtree(tree, ignore_errors=True)
            subprocess.run(["git", "-C", ROOT, "worktree", "prune"], check=True)
        # The editable install's finder comes before every path; here it must not.
        (stage / "sitecustomize.py").write_text(
            "import sys\n"
            "sys.meta_path[:] = [f for f in sys.meta_path if 'chumoku' not in type(f).__module__]\n"
        )
        yield str(stage)


def time_case(case: Any, names: list[str], options: Any, library: str, stage: str) -> Any:
    """What each contender said at first, its seconds round by round, and the probe's rates."""
    common = ["--threads", str(options.threads), "--dtypes", case.dtype]
    running = {}
    try:
        for name in names:
            path = {"PYTHONPATH": stage} if "@" in name else {}
            running[name] = Process(*common, "--worker", case.name, name, **path)
        meter = running["probe"] = Process(*common, "--probe", library)
        said = {name: running[name].said for name in names}
        able = [name for name in names if "unfit" not in said[name]]
        times: dict[str, list[float]] = {name: [] for name in able}
        rates: list[tuple[float, float]] = []
        for turn in range(options.rounds):
            for name in able if turn % 2 == 0 else reversed(able):
                times[name].append(float(running[name].turn()))
            rates.append(tuple(meter.turn()))
        return said, times, rates
    finally:
        for process in running.values():
            process.end()


def report(case: Any, said: Any, times: Any, rates: Any) -> dict[str, Any]:
    """One case: medians, each round's ratio to torch, and the share of that round's probe.

    Training, which counts as the work of its forward pass, is compared with PyTorch's training.
    """
    decoding = case.queries == 1
    probed = [rate[decoding] for rate in rates]
    work = (case.memory if decoding else case.flop) / 1e9
    unit = "GB/s" if decoding else "GFLOP/s"
    print(f"\n{case.name}: {case}; probe {statistics.median(probed):.0f} {unit}")
    row: dict[str, Any] = {"case": case.name, "dtype": case.dtype, "what": str(case)}
    row["probe"] = {"rate": statistics.median(probed), "unit": unit}
    for name, first in said.items():
        if name not in times:
            print(f"  {name:<18} {first['unfit']}")
            row[name] = {"not timed": first["unfit"]}
            continue
        seconds = times[name]
        median = statistics.median(seconds)
        share = statistics.median(work / s / p for s, p in zip(seconds, probed, strict=True))
        found = {"ms": 1e3 * median, "share of probe": share, "MB": first["MB"]}
        line = f"  {name:<18} {1e3 * median:10.3f} ms {work / median:8.1f} {unit} {share:5.0%}"
        base = times.get("torch training" if name.endswith("training") else "torch")
        if base:
            found["times torch"] = statistics.median(
                t / s for t, s in zip(base, seconds, strict=True)
            )
            line += f" {found['times torch']:7.2f} x torch"
        row[name] = {**found, "error": first["error"]}
        print(f"{line} {first['MB']:8.1f} MB")
    return row


def parse() -> argparse.Namespace:
    """The command line, checked against the cases and contenders that there are."""
    from benchmarks.peers import CONTENDERS
    from benchmarks.workloads import CASES, WORST_ERROR

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", help="names, separated by commas")
    parser.add_argument("--peers", help="names, separated by commas")
    parser.add_argument("--dtypes", default="float32", help="names, separated by commas")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--base", metavar="REV", help="also another commit of chumoku")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = {
        "cases": [case.name for case in CASES],
        "peers": list(CONTENDERS),
        "dtypes": list(WORST_ERROR),
    }
    for what, names in known.items():
        given = getattr(options, what)
        asked = given.split(",") if given else names
        if unknown := [name for name in asked if name not in names]:
            parser.error(f"unknown {what}: {', '.join(unknown)}; there are {', '.join(names)}")
        setattr(options, what, asked)
    return options


def main() -> int:
    """Run the benchmark as the command line asks; 1 when a case of ours is wrong."""
    if sys.argv[1:3] == ["--device", "cuda"]:
        from benchmarks.cuda import main as on_gpu

        return on_gpu(sys.argv[3:])
    options = parse()
    if options.probe:
        probe(options.probe, options.threads)
        return 0
    from benchmarks.workloads import CASES

    by_name = {case.name: case for case in CASES}
    if options.worker:
        case, name = options.worker
        worker(by_name[case].given(options.dtypes[0]), name, options.threads)
        return 0
    from chumoku import _native

    machine = f"{platform.processor() or platform.machine()}, {_native.instruction_set()}"
    print(f"{machine}, {options.threads} threads, medians of {options.rounds} rounds")
    rows, wrong = [], 0
    with compiled_probe() as library, built(options.base) as stage:
        names = options.peers + [f"chumoku@{options.base}"] * bool(options.base)
        for dtype in options.dtypes:
            for name in options.cases:
                case = by_name[name].given(dtype)
                said, times, rates = time_case(case, names, options, library, stage)
                bad = [n for n, s in said.items() if n.startswith("chumoku") and "wrong" in s]
                if bad:
                    print(f"\n{name}, {dtype}: not reported: {bad[0]}: {said[bad[0]]['unfit']}")
                    wrong += 1
                    continue
                rows.append(report(case, said, times, rates))
    if options.save:
        path = HERE / "results" / f"{options.save}.json"
        record = {"machine": machine, "threads": options.threads, "cases": rows}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

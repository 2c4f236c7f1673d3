"""Cost against length, 512 to 131,072 keys, and a million keys in a window: time and peak memory.

    python benchmarks/scale.py [--threads 1]

Writes benchmarks/results/scale.json, and the pictures into docs/performance. Each contender walks
up the lengths, a process for each, until it dies: of memory (20 GiB), of time (two minutes), or of
an error of its own. One head of width 64, as many queries as keys, float32. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))  # run as a file

LENGTHS = [512 * 2**i for i in range(9)]
CONTENDERS = ("chumoku", "chumoku all", "torch", "torch seeing", "onnxruntime", "numpy")
MEMORY = 20 * 2**30
SECONDS = 120

# One call of so many seconds needs no repetition.
LONG = 2.0


def measure(name: str, length: int, mask: str, threads: int) -> dict[str, Any]:
    """Median seconds and peak memory of one contender at one length, in this process."""
    from benchmarks.peers import CONTENDERS as makers
    from benchmarks.workloads import WORST_ERROR, Case, peak_of

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    case = Case(name, 1, 1, 1, length, length, 64, mask)
    timed = makers[name](case, threads)
    begun = time.perf_counter()
    result, peak = peak_of(timed.run)
    times = [time.perf_counter() - begun]
    error = case.error(timed.output(result))
    if not error < WORST_ERROR["float32"]:
        raise ValueError(f"its error against float64 is {error:.1e}")
    while sum(times) < LONG and len(times) < 200:
        begun = time.perf_counter()
        timed.run()
        times.append(time.perf_counter() - begun)
    return {"seconds": statistics.median(times), "MB": peak, "error": error}


def attempt(name: str, length: int, mask: str, threads: int) -> dict[str, Any]:
    """`measure` in a process of its own; what it died of, when it did."""
    words = ["--one", name, str(length), mask, "--threads", str(threads)]
    try:
        done = subprocess.run(
            [sys.executable, __file__, *words], capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"died": f"of time: more than {SECONDS} s"}
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    short = any(word in done.stderr for word in ("allocate", "MemoryError", "bad_alloc"))
    return {"died": f"of memory: {MEMORY >> 30} GiB" if short else lines[-1][:120]}


def walk(threads: int) -> dict[str, Any]:
    """Every contender over the lengths."""
    lines: dict[str, Any] = {}
    for name in CONTENDERS:
        lines[name] = {}
        for length in LENGTHS:
            found = lines[name][length] = attempt(name, length, "", threads)
            print(f"{name:<14} {length:>9,} {_said(found, length * length)}", flush=True)
            if "died" in found:
                break
    return lines


def window(threads: int) -> dict[str, Any]:
    """A million keys, of which each query sees 4,096."""
    length, found = 2**20, {}
    for name in ("chumoku", "chumoku facts"):
        found[name] = attempt(name, length, "window 4096", threads)
        print(f"{name:<14} {length:>9,} {_said(found[name], length * 4096)}, window", flush=True)
    return found


def _said(found: dict[str, Any], scores: int) -> str:
    if "died" in found:
        return f"died {found['died']}"
    ns = 1e9 * found["seconds"] / scores
    return f"{found['seconds']:10.4f} s {ns:8.3f} ns a score {found['MB']:10.1f} MB"


def draw(record: dict[str, Any], folder: Path) -> None:
    """Two pictures: nanoseconds for each score, and peak memory, against length."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "chumoku"
    from matplotlib import pyplot

    units = {
        "time": "nanoseconds for each score",
        "memory": "peak memory of the call, MB",
    }
    for name, label in units.items():
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        for contender, line in record["lines"].items():
            points = [
                (
                    int(n),
                    1e9 * one["seconds"] / int(n) ** 2 if name == "time" else max(one["MB"], 0.1),
                )
                for n, one in line.items()
                if "died" not in one
            ]
            ours = contender.startswith("chumoku")
            style = {"linewidth": 2.5 if ours else 1.2, "marker": "o", "markersize": 4}
            (drawn,) = axes.plot(*zip(*points, strict=True), label=contender, **style)
            if len(points) < len(LENGTHS):  # where it died
                axes.plot(*points[-1], "x", markersize=11, color=drawn.get_color())
        axes.set(xscale="log", yscale="log", xlabel="queries and keys", ylabel=label)
        axes.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS], rotation=30)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)


def main() -> int:
    """Measure, save and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, length, mask = options.one
        print(json.dumps(measure(name, int(length), mask, options.threads)))
        return 0
    record = {
        "threads": options.threads,
        "lines": walk(options.threads),
        "window": window(options.threads),
    }
    path = HERE / "results" / "scale.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    folder = ROOT / "docs" / "performance"
    folder.mkdir(exist_ok=True)
    draw(record, folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

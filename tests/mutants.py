"""Mutation of the native kernel: tests must find the faults of mutants.toml, planted one by one.

    python tests/mutants.py                 # every mutant; exit code 1 below 95 % killed
    python tests/mutants.py --only sink     # those whose name contains a word
    python tests/mutants.py --list

A mutant is the kernel with one place changed, for the instruction set named beside it; the other
sets stay whole. It must fail a native test, or else a test of SUITE. A place that is no longer
found ends the run: the list cannot rot. Changes that no caller could notice are not listed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"

LEAST_SCORE = 0.95

# Flags of each instruction set, as in CMakeLists.txt.
ISAS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"],
}
# What is compiled again when a file changes; every other file is part of each ISA's tile.
OBJECTS = {
    "mask.cc": "mask",
    "mask.h": "mask",
    "attention.cc": "attention",
    "backward.cc": "backward",
}
# What tests and binding are linked with; the rest of native/ is tiles, tests and the binding.
CORE = sorted(
    path.stem
    for path in NATIVE.glob("*.cc")
    if not path.stem.endswith("_test") and path.stem not in ("tile", "bindings")
)
# The fastest first. lanes_test is compiled for one instruction set.
NATIVE_TESTS = ("lanes_test", "mask_test", "attention_test")
SUITE = (
    "test_promises.py",
    "test_edges.py",
    "test_native.py",
    "test_backward.py",
    "test_kernels.py",
)
# Long, about other things, or in a process of their own that would see the installed kernel.
NOT_IN_SUITE = "not pytorch and not memory and not interrupt and not fork and not crash"


@dataclass(frozen=True)
class Mutant:
    """`old` stands once in the file and becomes `new`. `by`: a test that is tried first."""

    name: str
    file: str
    old: str
    new: str
    why: str
    isa: str = "avx2"
    by: str = ""


def mutants() -> list[Mutant]:
    """All of the list."""
    text = (ROOT / "tests" / "mutants.toml").read_text(encoding="utf-8")
    return [Mutant(**fields) for fields in tomllib.loads(text)["mutant"]]


class Workshop:
    """Objects of the whole kernel, and mutants built beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.compiler = os.environ.get("CXX", "g++")
        base = folder / "base"
        base.mkdir()
        for name in (*CORE, *(test for test in NATIVE_TESTS if test != "lanes_test")):
            self.compile(NATIVE / f"{name}.cc", base / f"{name}.o", "-O2")
        for isa in ISAS:
            self.compile(NATIVE / "tile.cc", base / f"tile_{isa}.o", "-O1", isa)
        self.bindings()

    def compile(self, source: Path, to: Path, level: str, isa: str = "", *more: str) -> None:
        """One object, as CMakeLists.txt would have it, faster made."""
        flags = ["-std=c++20", level, "-fPIC", "-ffp-contract=off", "-fno-math-errno"]
        if isa:
            flags += [f"-DCHUMOKU_ISA={isa}", *ISAS[isa]]
        command = [self.compiler, *flags, *more, f"-I{source.parent}", "-c", source, "-o", to]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{source} does not compile:\n{done.stderr}")

    def bindings(self) -> None:
        """bindings.cc and nanobind itself, which no mutant touches."""
        import nanobind

        here = Path(nanobind.include_dir())
        paths = [here, here.parent / "ext" / "robin_map" / "include", sysconfig.get_path("include")]
        more = [f"-I{path}" for path in paths] + ["-fvisibility=hidden", "-DNDEBUG"]
        for source in (NATIVE / "bindings.cc", here.parent / "src" / "nb_combined.cpp"):
            self.compile(source, self.folder / "base" / f"{source.stem}.o", "-O1", "", *more)

    def changed(self, mutant: Mutant, folder: Path) -> Path:
        """A copy of native/ with the mutant's place changed."""
        copy = folder / "native"
        shutil.copytree(NATIVE, copy, dirs_exist_ok=True)
        text = (copy / mutant.file).read_text(encoding="utf-8")
        (copy / mutant.file).write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        return copy

    def build(self, mutant: Mutant | None, folder: Path, level: str) -> None:
        """The objects in `folder` are the base's, but for those that the mutant changes."""
        for path in (self.folder / "base").iterdir():
            if not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
        if mutant is None:
            return
        copy = self.changed(mutant, folder)
        name = OBJECTS.get(mutant.file)
        target = folder / (f"{name}.o" if name else f"tile_{mutant.isa}.o")
        target.unlink()
        source = copy / f"{name or 'tile'}.cc"
        self.compile(source, target, level, "" if name else mutant.isa)

    def link(self, folder: Path, to: Path, names: list[str], *flags: str) -> Path:
        """A program or a library of the folder's objects."""
        objects = [folder / f"{name}.o" for name in (*names, *(f"tile_{isa}" for isa in ISAS))]
        command = [self.compiler, *flags, *objects, "-o", to, "-pthread", "-ldl"]
        subprocess.run(command, check=True)
        return to

    def natively(self, folder: Path, isa: str) -> str:
        """Who among the native tests notices; empty: none."""
        for name in NATIVE_TESTS:
            if name == "lanes_test":
                source = (folder if (folder / "native").exists() else ROOT) / "native"
                self.compile(source / f"{name}.cc", folder / f"{name}.o", "-O0", isa)
            program = self.link(folder, folder / name, [name, *CORE])
            if said := first_complaint(program, isa):
                return f"{name}: {said}"
        return ""

    def by_python(self, folder: Path, isa: str, by: str) -> str:
        """Which test of the suite notices; empty: none."""
        package = folder / "stage" / "chumoku"
        if not package.exists():
            package.mkdir(parents=True)
            for path in (ROOT / "src" / "chumoku").iterdir():
                if not path.name.startswith("_native"):
                    (package / path.name).symlink_to(path)
        self.link(folder, package / "_native.so", ["bindings", "nb_combined", *CORE], "-shared")
        for files in ([by] if by else []), list(SUITE):
            if files and (said := failing_test(folder / "stage", isa, files)):
                return said
        return ""


def first_complaint(program: Path, isa: str) -> str:
    """The first check that fails, at which the program is ended."""
    environment = {**os.environ, "CHUMOKU_ISA": isa}
    process = subprocess.Popen(
        [program],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert process.stderr is not None
    with ThreadPoolExecutor(1) as reader:
        line = reader.submit(process.stderr.readline)
        try:
            said = line.result(120)
        except TimeoutError:
            said = "hangs"
        finally:
            # A program that says nothing more is waited for; one that complained is ended.
            if line.done() and not line.result():
                process.wait(120)
            process.kill()
            code = process.wait()
    if said:
        return said.strip().rpartition(f"native{os.sep}")[2]
    return "" if code == 0 else f"exit code {code}"


def failing_test(stage: Path, isa: str, files: list[str]) -> str:
    """The first test that fails on the package in `stage`."""
    packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(stage), *packages]),
        "CHUMOKU_ISA": isa,
        "CHUMOKU_NUM_THREADS": "2",
        "CI": "1",  # the same examples each time
    }
    paths = [str(ROOT / "tests" / file) for file in files]
    # -S: no installed chumoku comes before the one in `stage`.
    command = [sys.executable, "-S", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    chosen = ["-k", NOT_IN_SUITE, "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    try:
        done = subprocess.run(
            [*command, *chosen, *paths],
            env=environment,
            cwd=stage,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode == 0:
        return ""
    if done.returncode not in (0, 1) and done.returncode > 0:
        raise SystemExit(f"pytest cannot run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    if failed:
        return failed[0].split("tests/")[-1].split(" - ")[0]
    return f"pytest dies of signal {-done.returncode}" if done.returncode < 0 else "an error"


def noticed_by(workshop: Workshop, mutant: Mutant | None) -> str:
    """What notices a mutant, or the whole kernel; empty: nothing."""
    isa = mutant.isa if mutant else "avx2"
    by = mutant.by if mutant else ""
    with tempfile.TemporaryDirectory(dir=workshop.folder) as made:
        folder = Path(made)
        if not by:
            # Compiled in a third of the time, and most mutants go no further.
            workshop.build(mutant, folder, "-O0")
            if said := workshop.natively(folder, isa):
                return said
        workshop.build(mutant, folder, "-O1")
        if said := workshop.by_python(folder, isa, by):
            return said
        return workshop.natively(folder, isa) if by else ""


def check_places(mutants: list[Mutant]) -> None:
    """Stop when a mutant's place is not there, or not the only one."""
    lost = []
    for mutant in mutants:
        times = (NATIVE / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        if times != 1 or mutant.old == mutant.new:
            lost.append(f"{mutant.name}: {times} times in {mutant.file}: {mutant.old!r}")
    if lost:
        raise SystemExit("These mutants must be written anew:\n  " + "\n  ".join(lost))


def main() -> int:
    """Run the mutants as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="name the mutants and end")
    parser.add_argument("--places", action="store_true", help="look for every place and end")
    options = parser.parse_args()
    check_places(mutants())
    chosen = [mutant for mutant in mutants() if options.only in mutant.name]
    if options.list or options.places:
        for mutant in chosen if options.list else ():
            print(f"{mutant.name:<28}{mutant.file:<14}{mutant.why}")
        return 0
    begin, survivors = time.monotonic(), []
    with tempfile.TemporaryDirectory() as made:
        workshop = Workshop(Path(made))
        if said := noticed_by(workshop, None):
            raise SystemExit(f"The kernel as it is fails: {said}")
        with ThreadPoolExecutor(options.jobs) as pool:
            found = pool.map(lambda mutant: noticed_by(workshop, mutant), chosen)
            for mutant, said in zip(chosen, found, strict=True):
                seconds = time.monotonic() - begin
                verdict = f"killed by {said}" if said else f"SURVIVED: {mutant.why}"
                print(f"{seconds:6.0f} s  {mutant.name:<28}{verdict}", flush=True)
                survivors += [] if said else [mutant.name]
    score = 1 - len(survivors) / max(1, len(chosen))
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed, {score:.1%}")
    return 0 if score >= LEAST_SCORE else 1


if __name__ == "__main__":
    raise SystemExit(main())

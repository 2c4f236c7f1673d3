"""run.py's own logic. Steps are recorded instead of executed: nothing is downloaded here."""

import ast
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import run

SOURCE = Path(run.__file__)

PYPROJECT = """
[build-system]
requires = ["scikit-build-core"]
[project]
dependencies = ["numpy"]
[project.optional-dependencies]
look = ["rich"]
dev = ["pytest"]
[dependency-groups]
model-files = ["model"]
"""


class House:
    """A project folder in which every step takes no time and leaves what the real one leaves."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.titles: list[str] = []
        self.cut = ""  # the title at which the person presses Ctrl-C
        self.patch = monkeypatch
        (root / "native").mkdir(parents=True)
        (root / "src" / "chumoku").mkdir(parents=True)
        self.write("CMakeLists.txt", "")
        self.write("pyproject.toml", PYPROJECT)
        self.write("native/tile.cc", "int x;")
        self.write("src/chumoku/mask.py", "")
        self.live_in(root)
        monkeypatch.setattr(run, "step", self.step)
        monkeypatch.setattr(run, "build_tools", lambda: ["ninja"])
        monkeypatch.setattr(run, "check_machine", lambda: None)
        monkeypatch.setattr(run, "check_disk", lambda extras: None)

    def live_in(self, root: Path) -> None:
        self.root = root
        self.patch.setattr(run, "ROOT", root)
        self.patch.setattr(run, "VENV", root / ".venv")
        self.patch.setattr(run, "TRASH", root / ".venv.trash")

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text, encoding="utf-8")

    def step(self, title: str, command: list, held: tuple = ()) -> tuple[int, str]:
        self.titles.append(title)
        venv = self.root / ".venv"
        packages = venv / "lib" / "python3.11" / "site-packages"
        if title == "python environment":
            (venv / "bin").mkdir()
            packages.mkdir(parents=True)
            (venv / "bin" / "python").symlink_to(sys.executable)
        elif title == "native code":
            (packages / "~humoku").mkdir()
        if title == self.cut:
            raise KeyboardInterrupt
        if title == "packages":
            (packages / "numpy").mkdir(exist_ok=True)
        elif title == "native code":
            (packages / "~humoku").rmdir()
            (packages / "chumoku").mkdir()
        return 0, ""

    def prepare(self, *extras: str) -> list[str]:
        """Titles of the steps that this call needed."""
        self.titles = []
        run.prepare(list(extras) or ["look"])
        return self.titles


FIRST = ["python environment", "packages", "build tools", "native code"]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return House(tmp_path / "猫 の家", monkeypatch)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH on which only apt-get is found; more can be put there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    program(folder, "apt-get")
    return folder


def program(folder: Path, name: str, code: int = 0) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\nexit {code}\n")
    path.chmod(0o755)


def test_an_old_python_can_read_the_file() -> None:
    ast.parse(SOURCE.read_text(encoding="utf-8"), feature_version=(3, 7))


def test_only_the_standard_library_is_imported() -> None:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    assert names <= sys.stdlib_module_names


def test_an_old_python_is_told_the_cure(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "look", "a cat"])
    with pytest.raises(run.Stop, match=r"Python 3\.9.*\n.*apt-get install -y python3\.11 "):
        run.check_python((3, 9))
    program(bare, "python3.12")
    with pytest.raises(run.Stop, match=r"\n  python3\.12 run\.py look 'a cat'$"):
        run.check_python((3, 9))
    run.check_python((3, 11))


def test_all_that_is_missing_is_one_command(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(run.Stop, match=r"lacks g\+\+\.\n  sudo apt-get install -y g\+\+$"):
        run.check_machine()
    monkeypatch.setattr(run.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    version = f"python3.{sys.version_info.minor}"
    with pytest.raises(run.Stop) as stop:
        run.check_machine()
    first, last = str(stop.value).splitlines()
    assert first == "This machine lacks the venv module and Python.h and g++."
    assert last == f"  sudo apt-get install -y {version}-venv {version}-dev g++"


def test_other_package_managers_have_other_names(bare: Path) -> None:
    (bare / "apt-get").rename(bare / "dnf")
    assert run.cure(["python3.12-venv", "python3.12-dev", "g++"]) == (
        "sudo dnf install -y python3.12-devel gcc-c++"
    )


def test_an_old_compiler_is_told_the_cure(bare: Path) -> None:
    program(bare, "g++", code=1)
    with pytest.raises(run.Stop, match=r"g\+\+ cannot compile C\+\+20.*\n.*CXX=g\+\+-12$"):
        run.check_machine()


def test_cxx_is_the_compiler_when_it_is_set(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.compiler() is None
    program(bare, "ccache")
    monkeypatch.setenv("CXX", "ccache g++-13")
    assert run.compiler() == ["ccache", "g++-13"]


def test_a_small_disk_stops_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(run.Stop, match=r"0\.0 GB are free.*needs 5\.2 GB"):
        run.check_disk(["look", "dev"])


@pytest.mark.parametrize(
    ("log", "cure"),
    [
        ("WARNING: Retrying: NewConnectionError('<...>')\nERROR: No matching", "HTTPS_PROXY"),
        ("ERROR: [Errno 28] No space left on device", "Free some space"),
        ("first\n" * 50 + "tile.cc:3: error: no", "tile.cc:3: error: no\n\nStopped at 'native'"),
    ],
)
def test_a_failure_is_explained(log: str, cure: str) -> None:
    text = run.explain_failure("native", log)
    assert cure in text
    assert len(text.splitlines()) <= 42


def test_the_second_call_does_nothing(house: House) -> None:
    assert house.prepare() == FIRST
    assert house.prepare() == []


def test_only_what_changed_is_done_again(house: House) -> None:
    house.prepare()
    house.write("src/chumoku/mask.py", "x = 1")
    house.write("native/mask_test.cc", "int main() {}")
    assert house.prepare() == []
    house.write("native/tile.cc", "int y;")
    assert house.prepare() == ["native code"]
    house.write("src/chumoku/words.py", "")
    assert house.prepare() == ["native code"]
    more = ["packages", "models for the tests", "build tools", "native code"]
    assert house.prepare("look", "dev") == more
    assert house.prepare("look") == []
    house.write("pyproject.toml", PYPROJECT.replace("rich", "rich>=14"))
    assert house.prepare("look") == more


@pytest.mark.parametrize("title", FIRST)
def test_an_interrupted_set_up_is_repaired(house: House, title: str) -> None:
    house.cut = title
    with pytest.raises(KeyboardInterrupt):
        house.prepare()
    house.cut = ""
    assert house.prepare() == (["native code"] if title == "native code" else FIRST)
    assert house.prepare() == []
    assert "~humoku" not in run.installed()


def test_an_interrupted_removal_is_repaired(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.prepare()
    shutil.rmtree(house.root / ".venv" / "lib")

    def interrupted(path: Path) -> None:
        (path / "chumoku.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            house.prepare()
    assert house.prepare() == FIRST
    assert not (house.root / ".venv.trash").exists()


@pytest.mark.parametrize("harm", ["package", "python", "state"])
def test_a_broken_venv_is_made_anew(house: House, harm: str) -> None:
    house.prepare()
    venv = house.root / ".venv"
    if harm == "package":
        shutil.rmtree(run.site_packages() / "numpy")
    elif harm == "python":
        (venv / "bin" / "python").unlink()
        (venv / "bin" / "python").symlink_to("/nowhere/python3.11")
    else:
        (venv / "chumoku.json").write_text("{")
    assert house.prepare() == FIRST


def test_a_moved_folder_is_set_up_again(house: House) -> None:
    house.prepare()
    house.live_in(house.root.rename(house.root.parent / "elsewhere"))
    assert house.prepare() == FIRST


def test_what_a_person_adds_to_the_venv_does_not_matter(house: House) -> None:
    house.prepare()
    (run.site_packages() / "ipython").mkdir()
    assert house.prepare() == []


def test_a_venv_made_by_somebody_else_is_left_alone(house: House) -> None:
    mine = house.root / ".venv" / "mine"
    mine.mkdir(parents=True)
    with pytest.raises(run.Stop, match=r"not made by run\.py"):
        house.prepare()
    assert mine.exists()


def test_the_lock_holds_while_a_child_lives(house: House) -> None:
    folder = os.open(house.root, os.O_RDONLY)
    with run.lock() as held:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(held,))
    with pytest.raises(BlockingIOError):
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    child.communicate()
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(folder)


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ([], ["every check", "extended"]),
        (["neon", "fuzz"], ["extended neon fuzz"]),
    ],
)
def test_extended_parts_come_after_every_check_or_alone(
    house: House, monkeypatch: pytest.MonkeyPatch, words: list[str], steps: list[str]
) -> None:
    done: list[str] = []
    real = run.test

    def every_check(options: list[str]) -> int:
        if options:
            return real(options)
        done.append("every check")
        return 1

    def attach(command: list[object]) -> int:
        assert command[:2] == [run.python(), house.root / "tests" / "extended.py"]
        done.append(" ".join(["extended", *map(str, command[2:])]))
        return 0

    monkeypatch.setattr(run, "test", every_check)
    monkeypatch.setattr(run, "attach", attach)
    failed = run.test(["--extended", *words])
    assert done == steps
    assert failed == (0 if words else 1)  # what failed before is not forgotten


COMMANDS = """
import json, os, sys
def main():
    if sys.argv[1:2] == ["trap"]:
        raise KeyboardInterrupt
    print(json.dumps([sys.argv, os.getcwd()]))
    return 7
"""


@pytest.fixture
def lodge(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """A house with a real .venv, in which chumoku is a stub."""
    house.prepare()
    venv = house.root / ".venv"
    (venv / "bin" / "python").unlink()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    stub = run.site_packages() / "chumoku"
    (stub / "__init__.py").write_text("")
    (stub / "cli.py").write_text(COMMANDS)
    shutil.copy(SOURCE, house.root)
    monkeypatch.delenv("CXX", raising=False)
    state = {"identity": run.identity(), "installed": run.installed(), "sources": run.sources()}
    run.save_state({**run.load_state(), **state})
    return house


def call(house: House, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, house.root / "run.py", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_words_folder_and_exit_code_pass_through(lodge: House, tmp_path: Path) -> None:
    words = ["look", "その猫は 可愛い", "--layer", "3", ""]
    done = call(lodge, *words, cwd=tmp_path)
    assert json.loads(done.stdout) == [["chumoku", *words], str(tmp_path)]
    assert (done.returncode, done.stderr) == (7, "")


def test_ctrl_c_gives_no_traceback(lodge: House) -> None:
    done = call(lodge, "trap")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_unknown_command_names_the_known_ones(lodge: House) -> None:
    done = call(lodge, "lok")
    assert done.returncode == 1
    assert "There is no command 'lok'. There are: look," in done.stderr
    assert "Traceback" not in done.stderr


def test_help_needs_no_set_up(tmp_path: Path) -> None:
    shutil.copy(SOURCE, tmp_path)
    command = [sys.executable, tmp_path / "run.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "python3 run.py look" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["run.py"]

"""The wheel as a stranger gets it: in an empty environment, away from the source tree."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import run

SENTENCE = "その猫は可愛い"

ATTENTION = """
import numpy as np
import chumoku
x = np.linspace(-1, 1, 2 * 5 * 8, dtype=np.float32).reshape(2, 5, 8)
output, seen = chumoku.attention(x, x, x, watch=chumoku.Watch(entropy=True))
print(chumoku.__file__)
print(output.shape, seen.entropy.shape)
"""


def away(command: list, folder: Path) -> subprocess.CompletedProcess:
    """Run a command as a person would whose environment knows nothing of this project."""
    known = ("PYTHONPATH", "VIRTUAL_ENV")
    values = {name: value for name, value in os.environ.items() if name not in known}
    return subprocess.run(
        command, cwd=folder, env=values, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder]
    if Path(sys.prefix) == run.VENV:
        # The objects that run.py compiled from these sources are good for the wheel too.
        command += ["--no-build-isolation", f"-Cbuild-dir={run.VENV / 'build' / 'release'}"]
    with run.lock():
        done = subprocess.run(
            [*command, run.ROOT],
            env=run.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def home(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel and what it pulls in."""
    folder = tmp_path_factory.mktemp("別 の家")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install(folder, str(wheel))
    return folder


def install(home: Path, wanted: str) -> None:
    command = [home / "bin" / "python", "-m", "pip", "install", "--no-compile", wanted]
    done = away(command, home)
    assert done.returncode == 0, done.stdout + done.stderr


def packages(home: Path) -> set[str]:
    listing = away([home / "bin" / "python", "-m", "pip", "list", "--format=freeze"], home)
    names = {line.partition("==")[0].replace("_", "-") for line in listing.stdout.split()}
    return names - {"pip", "setuptools"}


def test_one_wheel_serves_every_python_from_3_11(wheel: Path) -> None:
    assert re.fullmatch(r"chumoku-[\d.]+-cp311-abi3-\w+\.whl", wheel.name)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    source = run.ROOT / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected.add("chumoku/_native.abi3.so")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert "chumoku/py.typed" in expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_attention_needs_numpy_and_the_backend_only(home: Path) -> None:
    assert packages(home) == {"chumoku", "numpy", "nanobind-backend"}
    done = away([home / "bin" / "python", "-c", ATTENTION], home)
    assert done.returncode == 0, done.stderr
    file, shapes = done.stdout.splitlines()
    assert Path(file).is_relative_to(home)
    assert shapes == "(2, 5, 8) (2, 5)"


def test_look_without_its_extra_names_the_cure(home: Path) -> None:
    done = away([home / "bin" / "chumoku", "look", SENTENCE], home)
    assert done.returncode != 0
    assert "chumoku[look]" in done.stderr
    assert "Traceback" not in done.stderr


def test_look_runs_from_the_wheel(home: Path, wheel: Path) -> None:
    install(home, f"{wheel}[look]")
    done = away([home / "bin" / "chumoku", "look", SENTENCE, "--no-color"], home)
    assert done.returncode == 0, done.stderr
    for token in ("その", "猫", "可愛い"):
        assert token in done.stdout

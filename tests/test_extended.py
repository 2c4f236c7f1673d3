"""tests/extended.py's own logic. Steps are recorded instead of executed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import extended
import pytest

import run


class Machine:
    """A machine on which every step succeeds but those named in `broken`."""

    def __init__(self, programs: set[str], root: bool, patch: pytest.MonkeyPatch) -> None:
        self.programs = programs
        self.broken = ""
        self.steps: list[str] = []
        patch.setattr(extended.shutil, "which", lambda name: name if name in programs else None)
        patch.setattr(os, "geteuid", lambda: 0 if root else 1000)
        patch.setattr(extended.platform, "machine", lambda: "x86_64")
        patch.setattr(run, "step", self.step)

    def step(self, title: str, command: list[str], held: tuple[int, ...] = ()) -> tuple[int, str]:
        self.steps.append(" ".join(str(word) for word in command))
        processor = title.split()[0]
        chosen = extended.PROCESSORS.get(processor, "")
        return (1 if title == self.broken else 0), f"{chosen}: 6 passed, 0 failed"


def table(text: str) -> dict[str, str]:
    """Result and note of each part, as the table tells them."""
    rows = re.findall(r"^(\w+) +(passed|failed|skipped) +\d+ s *(.*)$", text, re.MULTILINE)
    return {name: f"{result} {note}".strip() for name, result, note in rows}


def test_a_part_whose_programs_are_missing_is_skipped_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine({"apt-get", "qemu-x86_64"}, False, monkeypatch)
    assert extended.main(["neon", "x86"]) == 0
    line = "sudo apt-get install -y g++-aarch64-linux-gnu qemu-user"
    missing = "aarch64-linux-gnu-g++ and qemu-aarch64 not found"
    assert table(capsys.readouterr().out) == {
        "neon": f"skipped {missing}: {line}",
        "x86": "passed",
    }
    assert not any("apt-get" in step for step in machine.steps)


def test_root_installs_what_is_missing_and_says_so_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine({"apt-get"}, True, monkeypatch)
    said: list[int] = []
    monkeypatch.setattr(run, "say", lambda text: said.append(len(machine.steps)))
    assert extended.main(["neon"]) == 0
    assert said == [0]
    assert machine.steps[0].endswith("apt-get -y --no-install-recommends update")
    assert machine.steps[1].endswith("install g++-aarch64-linux-gnu qemu-user")
    wanted = {"neon": "passed installed g++-aarch64-linux-gnu qemu-user"}
    assert table(capsys.readouterr().out) == wanted


def test_an_installation_that_fails_skips_the_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine({"apt-get"}, True, monkeypatch)
    machine.broken = "apt-get install"
    assert extended.main(["x86"]) == 0
    text = table(capsys.readouterr().out)["x86"]
    assert text.startswith("skipped apt-get install failed; qemu-x86_64 not found: ")
    assert text.endswith("apt-get install -y qemu-user")


def test_a_failing_step_ends_its_part_and_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = {*extended.CROSS, *extended.QEMU}
    machine = Machine(everything, False, monkeypatch)
    machine.broken = "neon tests"
    assert extended.main(["neon", "x86"]) == 1
    assert table(capsys.readouterr().out) == {"neon": "failed at 'neon tests'", "x86": "passed"}


def test_another_choice_than_the_processor_s_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Machine({*extended.QEMU}, False, monkeypatch)
    answer = run.step
    monkeypatch.setattr(
        run, "step", lambda title, *words: (0, answer(title, *words)[1].replace("avx2", "baseline"))
    )
    assert extended.main(["x86"]) == 1
    assert "Haswell chose another instruction set than avx2" in capsys.readouterr().out


def test_parts_that_other_machines_cannot_run_are_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine({*extended.CROSS, *extended.QEMU}, False, monkeypatch)
    monkeypatch.setattr(extended.platform, "machine", lambda: "aarch64")
    assert extended.main(["neon", "x86"]) == 0
    rows = table(capsys.readouterr().out)
    assert all(row.startswith("skipped ") for row in rows.values())
    assert machine.steps == []


def test_an_unknown_part_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        extended.main(["neno"])
    assert "no part 'neno'; there are neon, x86, sanitize, mutants, fuzz" in capsys.readouterr().err


def test_ci_names_parts_that_there_are() -> None:
    line = (run.ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    words = line.partition("--extended ")[2].split()
    assert words
    assert set(words) <= set(extended.PARTS)


def test_the_staged_package_comes_before_the_installed_one(tmp_path: Path) -> None:
    module = tmp_path / "_native.so"
    module.write_bytes(b"")
    code = "import importlib.util as u; print(u.find_spec('chumoku').origin)"
    with extended.staged(module) as stage:
        assert (stage / "chumoku" / "_native.so").exists()
        environment = {**os.environ, "PYTHONPATH": str(stage)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(stage / "chumoku" / "__init__.py")
    assert not stage.exists()

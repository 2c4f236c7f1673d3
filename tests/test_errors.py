"""The three errors, and every message that the library can raise.

docs/reference.md shows one table of wrong inputs and their messages. It is made of WRONG:
`python tests/test_errors.py` prints it, and with --write puts it in its place.
"""

import ast
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import array_api_strict
import numpy as np
import pytest
import torch

import chumoku
from chumoku import Watch, heads
from chumoku.errors import (
    LONGEST,
    ChumokuError,
    InvalidArgumentError,
    InvalidTypeError,
    UnavailableError,
)

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference.md"

KINDS = {
    InvalidArgumentError: ValueError,
    InvalidTypeError: TypeError,
    UnavailableError: RuntimeError,
}

SPACE = {
    "np": np,
    "torch": torch,
    "xp": array_api_strict,
    **{name: getattr(chumoku, name) for name in chumoku.__all__},
    "query": np.ones((2, 4, 5, 8), np.float32),
    "key": np.ones((2, 2, 7, 8), np.float32),
    "value": np.ones((2, 2, 7, 6), np.float32),
}
SPACE["x"] = SPACE["query"][0, 0]
SPACE["pair"] = chumoku.attention(*(SPACE[n] for n in ("query", "key", "value")), watch=Watch())
SPACE["output"], SPACE["lse"] = SPACE["pair"][0], SPACE["pair"][1].lse
SPACE["heads"] = heads
SPACE["mha"] = chumoku.MultiHeadAttention(8, 2)

WRONG = """
attention([[1.0, 2.0]], key, value)
attention(memoryview(query), key, value)
attention(query, None, value)
attention(query, torch.from_numpy(key), value)
attention(query, xp.asarray(key), value)
attention(np.ma.masked_array(query), key, value)
attention(query.astype(int), key, value)
attention(query + 1j, key, value)
attention(query.astype(">f4"), key, value)
attention(query, key.astype(np.float64), value)
attention(query, key, value.astype(np.float16))
attention(query[0, 0, 0], key, value)
attention(query[(None,) * 29], key, value)
attention(query[..., :0], key[..., :0], value)
attention(np.ones((5, 1025)), np.ones((7, 1025)), np.ones((7, 8)))
attention(query, key[..., :7], value)
attention(x, x, np.ones((5, 1025), np.float32))
attention(query, key, value[:, :, :6])
attention(query, key, value[:, :1])
attention(query, key[:, :1].repeat(3, axis=1), value[:, :1].repeat(3, axis=1))
attention(query, key[:, :0], value[:, :0])
attention(query, key[:1].repeat(3, axis=0), value)
attention(query, key, value[:1].repeat(3, axis=0))
attention(np.broadcast_to(x, (2**40, 1, 1, 5, 8)), np.broadcast_to(x, (2**40, 1, 5, 8)), x)
attention(torch.ones(5, 8, requires_grad=True), torch.ones(7, 8), torch.ones(7, 8))
attention(torch.ones(5, 8, device="meta"), torch.ones(7, 8), torch.ones(7, 8))
attention(torch.ones(5, 8).to_sparse(), torch.ones(7, 8), torch.ones(7, 8))
torch.vmap(lambda x: attention(x, x, x))(torch.ones(3, 5, 8))
attention(query, key, value, mask=[[True]])
attention(query, key, value, mask=np.zeros((5, 7)))
attention(query, key, value, mask=np.ones((7, 5), bool))
attention(query, key, value, mask=Causal([1, 2, 3]))
attention(query, key, value, mask=Lengths(8))
attention(query, key, value, mask=Documents([0, 0, 1]))
attention(query, key, value, mask=Custom(lambda b, h, i, j: i - j))
attention(query, key, value, bias=1.0)
attention(query, key, value, bias=np.zeros((5, 7)))
attention(query, key, value, bias=np.zeros((7, 5), np.float32))
attention(query, key, value, scale="0.5")
attention(query, key, value, scale=float("nan"))
attention(query, key, value, softcap=0)
attention(query, key, value, sinks=np.zeros(4))
attention(query, key, value, sinks=np.zeros(2, np.float32))
attention(query, key, value, dropout=0.1)
attention(query, key, value, watch=True)
attention(query, key, value, watch=Watch(groups=[0, 1]))
attention(query, key, value, watch=Watch(top=2**60))
attention(query, key, value, kernel="fast")
attention(query, key, value, kernel=3)
attention(query, key, value, watch=Watch())[1].entropy
weights(query, key, rows=5)
weights(query, key, rows=0.5)
weights(query, key, keys=np.ones(7, bool))
weights(query, key, keys=[[0, 1]])
weights(query, key, keys=slice(None, None, 0))
weights(query, key, lse=np.zeros((4, 5), np.float32))
weights(query, key, lse=np.zeros((2, 4, 5)))
attention_backward(output[..., :5], query, key, value)
attention_backward(output.astype(np.float64), query, key, value)
attention_backward(output, query, key, value, output=output[:1])
attention_backward(output, query, key, value, lse=lse[:1])
attention_backward(output, query, key, value, lse_gradient=lse.astype(np.float64))
attention_backward(output, query, key, value, entropy_gradient=lse[..., :3])
merge(pair, pair[0])
merge(pair, attention(x, x, x, watch=Watch()))
merge(pair, attention(query, key, value, watch=Watch(top=2)))
merge(pair, attention(query, key, value, sinks=np.zeros(4, np.float32), watch=Watch()))
merge(*2 * [attention(query, key, value, watch=Watch(top=2))])
merge(*2 * [attention(query, key, value, watch=Watch(received=True))])
merge(pair, pair, over="heads")
with_sinks(pair, np.zeros(2, np.float32))
Statistics.load("missing.npz")
Causal(0.5)
Causal(2**62)
Window(-1, 0)
Window("3", 0)
Lengths(3, side="middle")
Chunks(0)
Custom(3)
Causal() & [True]
Watch(top=-1)
Watch(top=1.5)
Watch(entropy=1)
Watch(groups=[0.5])
Watch(groups=[-1])
Watch(picture=(0, 8))
Watch(picture=(8, 8)) | Watch(picture=(4, 4))
Dropout(1.0, 0)
Dropout("half", 0)
Dropout(0.1, 0.5)
Dropout(0.1, -1)
steps([[1.0, 2.0], [3.0]], [[1.0]], [[1.0]])
steps(np.ones((2048, 1)), np.ones((2048, 1)), np.ones((2048, 1)))
with recording("everything"): pass
recording(budget=0).__enter__()
recording().__enter__()["layer 0"]
MultiHeadAttention(width=10, heads=4)
MultiHeadAttention(width=8, heads=2, dtype=np.float16)
mha([[1.0] * 8])
mha(np.ones((5, 8)))
mha(np.ones((5, 7), np.float32))
mha.without({2})
mha(x, cache=Cache)
MultiHeadAttention.load("missing.safetensors", heads=2)
set_threads(0)
set_threads("all")
heads.read_treebank("missing.conllu")
heads.parse_treebank("The cat sat.")
heads.treebank("model", [])
"""
WRONG = tuple(WRONG.strip().splitlines())
HEAD = "| wrong input | error | message |\n|---|---|---|\n"


def raised(code: str) -> ChumokuError:
    """What a line of WRONG raises."""
    try:
        exec(code, dict(SPACE))
    except ChumokuError as error:
        return error
    raise AssertionError(f"{code} raises nothing")


def row(code: str) -> str:
    error = raised(code)
    cells = (f"`{code}`", type(error).__name__, f"`{error}`")
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"


def table() -> str:
    return HEAD + "".join(map(row, WRONG))


def rows_of_the_page() -> list[str]:
    page = PAGE.read_text(encoding="utf-8")
    _, found, rest = page.partition(HEAD)
    assert found, f"no table headed {HEAD!r} in {PAGE.name}"
    return rest.partition("\n\n")[0].rstrip("\n").split("\n")


@pytest.mark.parametrize("code", WRONG)
def test_the_page_shows_the_message(code):
    shown_there = [
        line for line in rows_of_the_page() if line.startswith(row(code).split(" | ")[0])
    ]
    assert row(code).rstrip("\n") in shown_there


def test_the_page_shows_nothing_else():
    assert len(rows_of_the_page()) == len(WRONG) == len(set(WRONG))


@pytest.mark.parametrize("code", WRONG)
def test_each_message_says_what_came_and_what_was_expected(code):
    error = raised(code)
    assert isinstance(error, tuple(KINDS.values()))
    assert str(error).startswith(f"{error.argument}: got {error.got}, expected {error.expected}.")
    assert error.argument
    assert error.got
    assert error.expected
    assert len(str(error)) <= 320
    assert "\n" not in str(error)
    assert "array(" not in error.got, "an array is named by its shape or dtype"


# Every message in the source


def text_of(node: ast.expr) -> str:
    """An expression as far as it stands in the source; … stands for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return "…"


def assigned(function: ast.AST) -> dict[str, list[ast.expr]]:
    """What the names of a function are set to, `a, b = x, y` taken apart."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                names = target.elts if several else [target]
                values = node.value.elts if several else [node.value]
                for name, value in zip(names, values, strict=True):
                    if isinstance(name, ast.Name):
                        found.setdefault(name.id, []).append(value)
    return found


def messages() -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Each error made in the source: its place, and what its four parts can say."""
    names = {kind.__name__ for kind in KINDS}
    fields = ("argument", "got", "expected", "cure")
    for path in sorted((ROOT / "src" / "chumoku").glob("**/*.py")):
        functions = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for function in (node for node in functions if isinstance(node, ast.FunctionDef)):
            values = assigned(function)
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names:
                    given = dict(zip(fields, node.args, strict=False))
                    given.update({word.arg: word.value for word in node.keywords})
                    said = {}
                    for field, value in given.items():
                        ways = values.get(value.id, []) if isinstance(value, ast.Name) else [value]
                        said[field] = [text_of(one) for way in ways for one in branches(way)]
                    yield f"{path.name}:{node.lineno}", said


def branches(node: ast.expr) -> list[ast.expr]:
    """Both sides of `a if c else b`, and theirs."""
    if isinstance(node, ast.IfExp):
        return branches(node.body) + branches(node.orelse)
    return [node]


MESSAGES = list(messages())


def test_the_messages_are_found():
    assert len(MESSAGES) > 100
    texts = [text for _, said in MESSAGES for ways in said.values() for text in ways]
    assert sum(text != "…" for text in texts) > 400


@pytest.mark.parametrize(("place", "said"), MESSAGES, ids=[place for place, _ in MESSAGES])
def test_every_message_of_the_source(place, said):
    assert {"argument", "got", "expected"} <= said.keys() <= {"argument", "got", "expected", "cure"}
    for name in ("argument", "got", "expected"):
        for text in said[name]:
            assert text, f"{name} is empty"
            # The sentence around it ends with a full stop already.
            assert not re.search(r"(?<!\.\.)\.$|\s$", text), f"{name}: {text}"
            assert not re.match(r"(got|expected) ", text), f"{name}: {text}"
    for text in said.get("cure", []):
        # A sentence, or a command which can be copied.
        assert not text or re.search(r"[.?…]$|pip install [^ ]", text), f"cure: {text}"
    assert not re.search(r"  |\n|\t", "".join(text for ways in said.values() for text in ways))


# The errors themselves


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_also_what_a_caller_would_catch(kind):
    error = kind("key", got="width 32", expected="width 64", cure="Give it 64.")
    assert isinstance(error, ChumokuError)
    assert isinstance(error, KINDS[kind])
    others = set(KINDS.values()) - {KINDS[kind]}
    assert not isinstance(error, tuple(others))


@pytest.mark.parametrize("kind", KINDS)
def test_message(kind):
    error = kind("key", got="width 32", expected="width 64", cure="Give it 64.")
    assert str(error) == "key: got width 32, expected width 64. Give it 64."
    assert str(kind("key", "one", "two")) == "key: got one, expected two."
    assert (error.argument, error.got, error.expected, error.cure) == (
        "key",
        "width 32",
        "width 64",
        "Give it 64.",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_pickled_and_back(kind):
    error = pickle.loads(pickle.dumps(kind("key", "one", "two", "three")))
    assert type(error) is kind
    assert str(error) == "key: got one, expected two. three"
    assert error.cure == "three"
    long = kind("key", "one\ntwo " * 1000, "two")
    assert str(pickle.loads(pickle.dumps(long))) == str(long)


def test_what_came_is_told_in_one_short_line():
    error = InvalidTypeError("key", repr(np.ones((9, 9))), "a number")
    assert "\n" not in str(error)
    assert error.got.startswith("array([[1., 1., ")
    long = InvalidTypeError("key", "x" * 10**6 + "end", "a number")
    assert len(long.got) <= LONGEST
    assert long.got.startswith("xxx")
    assert long.got.endswith("end")


if __name__ == "__main__":
    if "--write" in sys.argv:
        page = PAGE.read_text(encoding="utf-8")
        old = HEAD + "\n".join(rows_of_the_page()) + "\n"
        PAGE.write_text(page.replace(old, table()), encoding="utf-8")
    else:
        print(table(), end="")

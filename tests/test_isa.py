"""CHUMOKU_ISA: what it says when it names no instruction set that this machine can run."""

import os
import subprocess
import sys

import pytest

from chumoku import _native

FIRST_CALLS = {
    "attention": "chumoku.attention(x, x, x)",
    "weights": "chumoku.weights(x, x)",
    "the name in use": "chumoku._native.instruction_set()",
}

CODE = """
import pickle
import numpy as np
import chumoku
x = np.ones((2, 3), np.float32)
for _ in range(2):  # the first call's failure spares the second nothing
    try:
        {call}
    except chumoku.UnavailableError as error:
        assert error.argument == "CHUMOKU_ISA"
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        print(error)
"""


def run_python(code: str, isa: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CHUMOKU_ISA": isa}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("call", FIRST_CALLS.values(), ids=FIRST_CALLS.keys())
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(call):
    done = run_python(CODE.format(call=call), "abacus")
    here = ", ".join(_native.instruction_sets())
    line = (
        "CHUMOKU_ISA: got the instruction set abacus, expected one that this machine can run: "
        f"{here}. Unset it, and the best one is chosen."
    )
    assert done.stdout.splitlines() == [line, line], done.stderr


def test_a_command_says_the_same_without_a_traceback():
    code = "import sys; from chumoku.cli import main; sys.exit(main(['info', '--lang', 'en']))"
    done = run_python(code, "abacus")
    assert done.returncode == 1
    assert "CHUMOKU_ISA" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_name_leaves_the_choice_to_the_library():
    done = run_python("import chumoku; print(chumoku._native.instruction_set())", "")
    assert done.stdout.split() == [_native.instruction_sets()[0]], done.stderr

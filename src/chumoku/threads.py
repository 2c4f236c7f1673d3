"""How many threads a call may use: by hand, from the environment, or what the machine leaves."""

from __future__ import annotations

import os
import re
import sys
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from chumoku import _native
from chumoku.checks import whole
from chumoku.errors import UnavailableError

MOST = 256
OWN = "CHUMOKU_NUM_THREADS"


def set_threads(count: int | None) -> None:
    """Choose how many threads a call may use, in the whole process.

    The caller's own thread counts. No number changes a bit of any result.

    Parameters
    ----------
    count : int or None
        1 to 256. None goes back to the automatic choice of `get_threads`.

    Raises
    ------
    InvalidTypeError
        When count is not a whole number.
    InvalidArgumentError
        When it is not between 1 and 256.
    """
    if count is None:
        _native.set_threads(0)
        return
    _native.set_threads(whole("count", count, 1, MOST, cure="None chooses automatically."))


def get_threads() -> int:
    """Threads that a call may use now.

    Returns
    -------
    int
        What `set_threads` was given; else CHUMOKU_NUM_THREADS; else OMP_NUM_THREADS, or without it
        the fewest of the CPUs in the calling thread's affinity and the cgroup's quota of CPU time.
        The last two are never more than PyTorch uses, once PyTorch is imported. The environment and
        the quota are read on import, affinity and PyTorch's number at each call.
    """
    return _native.threads()


def register() -> None:
    """Let threadpoolctl see these threads and limit them, as user API "chumoku".

    Done by itself when threadpoolctl is imported before chumoku.

    Raises
    ------
    UnavailableError
        When threadpoolctl is missing, or too old to take new libraries.
    """
    cure = "pip install 'threadpoolctl>=3.2'"
    try:
        threadpoolctl = import_module("threadpoolctl")
    except ImportError:
        got = "no such package"
        raise UnavailableError("threadpoolctl", got, "version 3.2 or newer", cure) from None
    if not hasattr(threadpoolctl, "register"):
        got = f"version {threadpoolctl.__version__}"
        raise UnavailableError("threadpoolctl", got, "version 3.2 or newer", cure)
    _tell(threadpoolctl)


@cache
def _tell(threadpoolctl: Any) -> None:
    """Once: it speaks to the native module, which it finds by the file's name, through a class."""

    class ChumokuController(threadpoolctl.LibController):  # type: ignore[misc]
        user_api = internal_api = "chumoku"
        filename_prefixes = ("_native",)
        check_symbols = ("chumoku_get_num_threads", "chumoku_set_num_threads")

        def get_num_threads(self) -> int:
            return int(self.dynlib.chumoku_get_num_threads())

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.chumoku_set_num_threads(num_threads)

        def get_version(self) -> str:
            return str(import_module("chumoku").__version__)

    threadpoolctl.register(ChumokuController)


def _own(text: str) -> int:
    """CHUMOKU_NUM_THREADS, or 0 with a warning when it is no number of threads."""
    if re.fullmatch(r"[0-9]{1,9}", text.strip()) and 1 <= int(text) <= MOST:
        return int(text)
    if text.strip():
        warnings.warn(
            f"{OWN}: got {text!r:.60}, expected a whole number from 1 to {MOST}. It is ignored.",
            RuntimeWarning,
            stacklevel=2,
        )
    return 0


def _openmp(text: str) -> int:
    """OMP_NUM_THREADS: a number, or one for each level of nesting, of which the first counts."""
    match = re.fullmatch(r"\s*0*([0-9]{1,9})\s*(,.*)?", text)
    return min(int(match[1]), MOST) if match else 0


def _quota(root: Path) -> int:
    """CPUs that the cgroup's quota is worth, at least 1; 0 without a quota."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    cpus = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if not controllers:
            hierarchies, read = ("", "unified"), _second
        elif "cpu" in controllers.split(","):
            hierarchies, read = ("cpu", controllers), _first
        else:
            continue
        # The path is the host's where the container's own group is mounted as the root: then
        # nothing is found on the way there but the root.
        group = Path(path.lstrip("/"))
        for hierarchy in hierarchies:
            for place in (group, *group.parents):
                cpus += read(root / "sys/fs/cgroup" / hierarchy / place)
    return max(1, int(min(cpus) + 0.5)) if cpus else 0


def _second(group: Path) -> list[float]:
    """The quota of one group, in CPUs, as cgroup v2 writes it."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return [int(quota) / int(period)]
    except (OSError, ValueError, ZeroDivisionError):
        return []  # no such file, or "max"


def _first(group: Path) -> list[float]:
    """The same of cgroup v1."""
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        period = int((group / "cpu.cfs_period_us").read_text())
        return [quota / period] if quota > 0 else []
    except (OSError, ValueError, ZeroDivisionError):
        return []


_native.set_automatic(
    _own(os.environ.get(OWN, "")), _openmp(os.environ.get("OMP_NUM_THREADS", "")), _quota(Path("/"))
)
if hasattr(sys.modules.get("threadpoolctl"), "register"):
    register()

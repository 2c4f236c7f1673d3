"""How many threads a call may use, and who may say so."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import chumoku
from chumoku import InvalidArgumentError, InvalidTypeError, get_threads, set_threads, threads


@pytest.fixture(autouse=True)
def automatic():
    set_threads(None)
    yield
    set_threads(None)


def run_python(code: str, **environment: str | None) -> str:
    """What a new interpreter prints, errors and warnings too."""
    names = ("CHUMOKU_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {name: value for name, value in environment.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_number_is_kept_until_none():
    machine = get_threads()
    for count in (1, 3, np.int64(5), 256):
        set_threads(count)
        assert get_threads() == count and type(get_threads()) is int
    set_threads(None)
    assert get_threads() == machine


@pytest.mark.parametrize(
    "count", [0, -1, 257, 2**31, 2**64, pytest.param(10**5000, id="long"), np.int64(-3)]
)
def test_numbers_that_no_machine_has_are_refused(count):
    set_threads(2)
    with pytest.raises(InvalidArgumentError, match="count: got .*expected a whole number from 1"):
        set_threads(count)
    assert get_threads() == 2


@pytest.mark.parametrize(
    "count", [True, "2", 2.0, [10**5000], np.ones(1, int), np.bool_(True), b"2"]
)
def test_other_kinds_are_refused(count):
    set_threads(2)
    with pytest.raises(InvalidTypeError, match="count: got .*expected a whole number from 1"):
        set_threads(count)
    assert get_threads() == 2


@pytest.mark.parametrize(
    ("own", "openmp", "expected"),
    [
        ("3", None, 3),
        ("3", "5", 3),
        (" 7 ", None, 7),
        (None, "5", 5),
        (None, "4,2", 4),
        ("", " 6 , 1", 6),
    ],
)
def test_the_environment_chooses(own, openmp, expected):
    code = "import chumoku; print(chumoku.get_threads())"
    said = run_python(code, CHUMOKU_NUM_THREADS=own, OMP_NUM_THREADS=openmp)
    assert said == f"{expected}\n"


def test_the_hand_goes_before_the_environment_and_none_back_to_it():
    code = """
import chumoku
chumoku.set_threads(2)
print(chumoku.get_threads())
chumoku.set_threads(None)
print(chumoku.get_threads())
"""
    assert run_python(code, CHUMOKU_NUM_THREADS="3").split() == ["2", "3"]


@pytest.mark.parametrize("text", ["abc", "0", "-2", "1.5", "257", "9" * 5000, "2,1"])
def test_what_is_no_number_is_ignored_aloud(text):
    with pytest.warns(RuntimeWarning, match="CHUMOKU_NUM_THREADS: got .* It is ignored"):
        assert threads._own(text) == 0


def test_the_warning_is_heard_once():
    said = run_python("import chumoku, chumoku.threads", CHUMOKU_NUM_THREADS="many")
    assert said.count("CHUMOKU_NUM_THREADS: got 'many'") == 1


@pytest.mark.parametrize("text", ["", "abc", "0", "-1", "2.5", ",4", "9" * 5000, "٣"])
def test_openmp_may_say_what_it_likes(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert threads._openmp(text) == 0
    assert threads._openmp("1000") == 256


V2 = "0::/outer/inner\n"
V1 = "9:name=systemd:/\n4:cpu,cpuacct:/job\n1:memory:/else\n"
HERE = "sys/fs/cgroup/"


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        (V2, {}, 0),
        (V2, {"outer/inner/cpu.max": "max 100000"}, 0),
        (V2, {"outer/inner/cpu.max": "300000 100000"}, 3),
        (V2, {"outer/inner/cpu.max": "max 100000", "outer/cpu.max": "200000 100000"}, 2),
        (V2, {"outer/inner/cpu.max": "400000 100000", "outer/cpu.max": "150000 100000"}, 2),
        (V2, {"outer/inner/cpu.max": "10000 100000"}, 1),
        (V2, {"cpu.max": "500000 100000"}, 5),
        (V2, {"unified/outer/cpu.max": "500000 100000"}, 5),
        (V2, {"outer/cpu.max": "junk", "cpu.max": "100000 0"}, 0),
        (V2, {"elsewhere/cpu.max": "100000 100000"}, 0),
        (V1, {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, 0),
        (V1, {"cpu/job/cpu.cfs_quota_us": "250000", "cpu/job/cpu.cfs_period_us": "100000"}, 3),
        (
            V1,
            {"cpu,cpuacct/cpu.cfs_quota_us": "400000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            4,
        ),
        (V1, {"cpu/job/cpu.cfs_quota_us": "250000"}, 0),
        ("no colons\n0::\n", {}, 0),
    ],
)
def test_the_quota_is_the_least_on_the_way_to_the_root(tmp_path: Path, group, files, expected):
    for name, text in {
        "proc/self/cgroup": group,
        **{HERE + k: v for k, v in files.items()},
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert threads._quota(tmp_path) == expected


def test_no_cgroup_is_no_quota(tmp_path):
    assert threads._quota(tmp_path) == 0


needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system has no affinity"
)


@needs_affinity
def test_affinity_counts_and_may_change_after_import():
    code = """
import os, chumoku
cpus = os.sched_getaffinity(0)
print(chumoku.get_threads() <= len(cpus))
os.sched_setaffinity(0, {min(cpus)})
print(chumoku.get_threads())
chumoku.set_threads(2)
print(chumoku.get_threads())
chumoku.set_threads(None)
os.sched_setaffinity(0, cpus)
print(chumoku.get_threads() == len(cpus) or "a quota leaves fewer")
"""
    said = run_python(code).splitlines()
    assert said[:3] == ["True", "1", "2"] and said[3] in ("True", "a quota leaves fewer")


def test_pytorch_is_not_outnumbered():
    """Nor in a call that was not told: the number is that of the calling thread."""
    pytest.importorskip("torch")
    code = """
import chumoku, torch
torch.set_num_threads(1)
print(chumoku.get_threads())
torch.set_num_threads(2)
print(chumoku.get_threads())
"""
    assert run_python(code, OMP_NUM_THREADS="3").split() == ["1", "2"]
    assert run_python(code, CHUMOKU_NUM_THREADS="3").split() == ["3", "3"]


LIMITS = """
from threadpoolctl import threadpool_info, threadpool_limits
def seen():
    return [(one["num_threads"], one["version"]) for one in threadpool_info()
            if one["user_api"] == "chumoku"]
print(seen() == [(chumoku.get_threads(), chumoku.__version__)], chumoku.get_threads())
with threadpool_limits(1, user_api="chumoku"):
    print(seen()[0][0], chumoku.get_threads())
    with threadpool_limits(4):
        print(chumoku.get_threads())
    print(chumoku.get_threads())
print(chumoku.get_threads())
"""


@pytest.mark.parametrize(
    "start",
    [
        "import threadpoolctl, chumoku",
        "import chumoku, chumoku.threads\nfor _ in range(3): chumoku.threads.register()",
    ],
)
def test_threadpoolctl_sees_and_limits_the_threads(start):
    pytest.importorskip("threadpoolctl")
    said = run_python(f"{start}\n{LIMITS}", CHUMOKU_NUM_THREADS="3").splitlines()
    assert said == ["True 3", "1 1", "4", "1", "3"]


@needs_affinity
def test_a_limit_that_ends_leaves_the_choice_automatic():
    pytest.importorskip("threadpoolctl")
    code = """
import os, threadpoolctl, chumoku
with threadpoolctl.threadpool_limits(7):
    assert chumoku.get_threads() == 7
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(chumoku.get_threads())
"""
    assert run_python(code).split() == ["1"]


def test_threadpoolctl_is_not_imported_unasked():
    assert run_python("import sys, chumoku; print('threadpoolctl' in sys.modules)") == "False\n"


@pytest.mark.parametrize(("module", "got"), [("None", "no such package"), ("Old()", "version 2.1")])
def test_a_missing_or_old_threadpoolctl_is_named(module, got):
    code = f"""
import sys
class Old: __version__ = "2.1"
sys.modules["threadpoolctl"] = {module}
import chumoku, chumoku.threads
try:
    chumoku.threads.register()
except chumoku.UnavailableError as error:
    print(error)
"""
    said = run_python(code)
    assert said.startswith(f"threadpoolctl: got {got}, expected version 3.2 or newer. pip install")


def test_the_numbers_are_public():
    assert {"get_threads", "set_threads"} <= set(chumoku.__all__)

"""What a call leaves unharmed: signals, forks, the exit, other threads, PyTorch's pool.

Every case runs in an interpreter of its own, which must be quiet and end by itself.
"""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

START = """
import os, signal, sys, threading, time
import numpy as np
import chumoku
from chumoku import _native

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it

def filled(*shape, dtype=np.float32):
    "As large as wished, in the memory of one number."
    return np.broadcast_to(np.asarray(0.5, dtype), shape)

x = np.random.default_rng(0).standard_normal((4, 300, 32), dtype=np.float32)
chumoku.set_threads(1)
expected = chumoku.attention(x, x, x)
chumoku.set_threads(3)

def right():
    return bool(np.array_equal(chumoku.attention(x, x, x), expected))

def endless():
    chumoku.attention(filled(4, 20000, 64), filled(1, 10**6, 64), filled(1, 10**6, 64))

def begin(function, daemon=False):
    thread = threading.Thread(target=function, daemon=daemon)
    thread.start()
    return thread

def kill_soon(after=0.15):
    def kill():
        time.sleep(after)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)
    sent = []
    begin(kill)
    return sent

def child(work):
    "What a forked child answers within 8 seconds."
    pid = os.fork()
    if pid == 0:
        signal.alarm(8)
        answer = False
        try:
            answer = work()
        finally:
            os._exit(0 if answer else 1)
    return os.waitpid(pid, 0)[1] == 0

def helpers():
    names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
    return names.count("chumoku\\n")
"""


def run_python(code: str, exit_code: int = 0, start: str = START) -> list[str]:
    """The lines that a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", start + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (exit_code, "")
    return done.stdout.splitlines()


# Each would take minutes or hours. The last two begin a new item, or a new call, all the time.
LONG_CALLS = {
    "long": "endless()",
    "decode": """chumoku.attention(
            filled(2, 1, 64), filled(2, 10**8, 64), filled(2, 10**8, 64), watch=chumoku.Watch(top=9)
        )""",
    "masked": """chumoku.attention(
            filled(4, 30000, 64), filled(1, 10**6, 64), filled(1, 10**6, 64),
            mask=chumoku.Window(400_000, 9) & chumoku.Prefix(900_000),
        )""",
    "double": """chumoku.attention(
            *(filled(1, length, 64, dtype=float) for length in (30000, 10**6, 10**6))
        )""",
    "weights": """while True: chumoku.weights(
            filled(4, 1000, 64), filled(4, 10**5, 64),
            rows=np.arange(0, 1000, 2), keys=np.arange(10**5),
        )""",
    "backward": """chumoku.attention_backward(
            filled(4, 20000, 64), filled(4, 20000, 64), *[filled(1, 10**5, 64)] * 2,
            output=filled(4, 20000, 64), lse=filled(4, 20000),
        )""",
    "items": "while True: chumoku.attention(*[filled(300_000, 1, 1, 8)] * 3)",
    "calls": "while True: chumoku.attention(x, x, x)",
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", LONG_CALLS.values(), ids=LONG_CALLS.keys())
def test_ctrl_c_ends_a_call_within_a_tenth_of_a_second(call, threads):
    """The quickest of five counts: a busy machine may keep any one waiting."""
    code = f"""
chumoku.set_threads({threads})
took = []
while len(took) < 5 and min(took, default=1) > 0.1:
    sent = kill_soon()
    try:
        {call}
    except KeyboardInterrupt:
        took.append(time.perf_counter() - sent[0])
    assert right()
print(min(took) < 0.1 or took)
"""
    assert run_python(code) == ["True"]


def test_a_handlers_own_error_comes_out():
    code = """
class Enough(Exception): pass
def handler(*_): raise Enough("now")
signal.signal(signal.SIGINT, handler)
kill_soon()
try:
    endless()
except Enough as error:
    print(error, error.__cause__, right())
"""
    assert run_python(code) == ["now None True"]


# A call of a second or more, in which the alarm rings every few milliseconds.
RINGING = """
y = np.random.default_rng(1).standard_normal((2, 6000, 64), dtype=np.float32)
quiet = chumoku.attention(y, y, y)
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
heard = chumoku.attention(y, y, y)
signal.setitimer(signal.ITIMER_REAL, 0, 0)
print(np.array_equal(quiet, heard), rang > 1, right())
"""


def test_a_handler_that_returns_lets_the_call_go_on():
    code = """
rang = 0
def handler(*_):
    global rang
    rang += 1
"""
    assert run_python(code + RINGING) == ["True True True"]


def test_a_handler_may_call_again():
    code = """
rang = 0
def handler(*_):
    global rang
    rang += right()
"""
    assert run_python(code + RINGING) == ["True True True"]


def test_a_handler_may_end_its_own_call_and_go_on():
    code = """
rang = 0
def handler(*_):
    global rang
    signal.setitimer(signal.ITIMER_REAL, 0, 0)
    for _ in range(2):
        kill_soon(0.02)
        try:
            endless()
        except KeyboardInterrupt:
            rang += 1
"""
    assert run_python(code + RINGING) == ["True True True"]


def test_signals_are_for_the_main_thread():
    """A call elsewhere goes on while the main thread hears the signal at once."""
    code = """
y = np.random.default_rng(1).standard_normal((2, 8000, 64), dtype=np.float32)
quiet, heard = chumoku.attention(y, y, y), []
worker = begin(lambda: heard.append(chumoku.attention(y, y, y)))
sent = kill_soon(0.05)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print(time.perf_counter() - sent[0] < 1)
worker.join()
print(np.array_equal(heard[0], quiet))
"""
    assert run_python(code) == ["True", "True"]


def test_eight_threads_ten_times_with_few_helpers():
    code = """
y = np.random.default_rng(1).standard_normal((2, 2, 1, 32), dtype=np.float32)
cache = np.random.default_rng(2).standard_normal((2, 2, 5000, 32), dtype=np.float32)
mask, watch = chumoku.Causal(), chumoku.Watch(top=3, entropy=True)
decoded, seen = chumoku.attention(y, cache, cache, mask=mask, watch=watch)
together, good = threading.Barrier(8), []
def work(number):
    together.wait()
    for _ in range(10):
        again, facts = chumoku.attention(y, cache, cache, mask=mask, watch=watch)
        same = np.array_equal(again, decoded) and right()
        good.append(same and np.array_equal(facts.entropy, seen.entropy))
workers = [begin(lambda number=number: work(number)) for number in range(8)]
for worker in workers: worker.join()
print(sum(good), helpers())
"""
    assert run_python(code) == ["80 2"]


@pytest.mark.parametrize("ends", ["print('end')", "print('end'); sys.exit(3)"])
@pytest.mark.parametrize("call", ["endless()", "while True: right()"])
def test_the_interpreter_exits_while_a_daemon_thread_calls(call, ends):
    code = f"""
def forever():
    {call}
for _ in range(3): begin(forever, daemon=True)
time.sleep(0.1)
{ends}
"""
    assert run_python(code, exit_code=3 if "exit" in ends else 0) == ["end"]


def test_exit_waits_for_other_threads_and_calls_still_work():
    code = """
import atexit
atexit.register(lambda: print("last", right()))
def work():
    time.sleep(0.1)
    print("other", all(right() for _ in range(20)))
begin(work)
sys.exit()
"""
    # Registered before chumoku's own function, so that it runs after that one.
    early = 'import atexit\natexit.register(lambda: print("very last", right()))\n'
    assert run_python(code, start=early + START) == ["other True", "last True", "very last True"]


def test_exit_in_a_forked_child():
    code = """
pid = os.fork()
if pid == 0:
    signal.alarm(8)
    begin(endless, daemon=True)
    time.sleep(0.05)
    sys.exit(0 if right() else 1)
print(os.waitpid(pid, 0)[1], right())
"""
    assert run_python(code) == ["0 True"]


def test_forked_children_work():
    code = """
print(child(right))
print(child(lambda: child(right)))
with chumoku.recording() as seen:
    print(child(right), right())
def once():
    chumoku.set_threads(1)
    return right() and chumoku.set_threads(4) is None and right()
print(child(once), right(), chumoku.get_threads())
"""
    assert run_python(code) == ["True", "True", "True True", "True True 3"]


def test_a_child_forked_while_others_call_works():
    code = """
for _ in range(3): begin(endless, daemon=True)
for _ in range(3): begin(lambda: [right() for _ in iter(int, 1)], daemon=True)
print([child(right) for _ in range(10)].count(True))
"""
    assert run_python(code) == ["10"]


def test_a_child_forked_from_another_thread_hears_signals():
    """There it is the main thread, whatever it was."""
    code = """
def interrupted():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kill_soon(0.1)
    try:
        endless()
    except KeyboardInterrupt:
        return True
answers = []
begin(lambda: answers.append(child(interrupted))).join()
print(answers)
"""
    assert run_python(code) == ["[True]"]


FORK_INSIDE = """
def handler(*_):
    global pid
    pid = os.fork()
    if pid == 0: signal.alarm(8)
    else: raise KeyboardInterrupt
signal.signal(signal.SIGINT, handler)
kill_soon(0.1)
try:
    endless()
except KeyboardInterrupt:
    print(os.waitpid(pid, 0)[1] == 0, right())
except RuntimeError as error:
    os._exit(0 if pid == 0 and "forked inside this call" in str(error) and right() else 1)
"""


def test_a_child_forked_inside_a_call_says_that_it_cannot_end_it():
    assert run_python(FORK_INSIDE) == ["True True"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing_work(tmp_path, method):
    script = tmp_path / "work.py"
    script.write_text(
        f"""
import multiprocessing, sys
import numpy as np
import chumoku

def work(number):
    x = np.full((2, 400, 32), number, np.float32)
    return float(chumoku.attention(x, x, x).max())

if __name__ == "__main__":
    chumoku.set_threads(3)
    work(0)
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        print(pool.map_async(work, range(5)).get(timeout=30))
"""
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("[0.0, 1.0, 2.0, 3.0, 4.0]\n", "")


def test_a_subinterpreter_is_refused():
    pytest.importorskip("_xxsubinterpreters")
    code = """
import sys, _xxsubinterpreters as interpreters
if "before" in sys.argv: import chumoku
refused = '''
try:
    import chumoku
except ImportError as error:
    print(error, flush=True)
'''
one = interpreters.create()
interpreters.run_string(one, refused)
interpreters.run_string(one, refused)
interpreters.destroy(one)
import chumoku, numpy as np
x = np.ones((2, 3, 4), np.float32)
print(chumoku.attention(x, x, x).sum())
"""
    for before in ("", "import chumoku"):
        first, second, result = run_python(code, start=before)
        assert first == second
        assert first.startswith("chumoku cannot be imported in a subinterpreter")
        assert result == "24.0"


def test_too_little_memory_inside_a_call_is_a_memory_error():
    code = """
import resource
q, k = filled(1, 4, 1024), filled(1, 200_000, 1024)
def virtual():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
def short():
    resource.setrlimit(resource.RLIMIT_AS, (virtual() + (1 << 18), -1))
    try:
        chumoku.attention(q, k, k)
    except MemoryError as error:
        return str(error) == "std::bad_alloc"
print(child(short), right())
"""
    assert run_python(code) == ["True True"]


# As many threads as PyTorch has, straight after its own work, which has started them.
BESIDE = """
import torch
torch.set_num_threads(3)
torch.ones(1 << 20).add_(1)

def tensors(*arrays):
    return [torch.as_tensor(array) for array in arrays]

def right():
    return bool(np.array_equal(chumoku.attention(*tensors(x, x, x)), expected))

def endless():
    one = torch.tensor(0.5)
    keys = one.expand(1, 10**6, 64)
    chumoku.attention(one.expand(4, 20000, 64), keys, keys)
"""


def test_calls_beside_pytorch_use_its_threads():
    pytest.importorskip("torch")
    code = """
print(all(right() for _ in range(20)), helpers())
begin(lambda: print(right(), helpers())).join()
print(child(lambda: right() and helpers() == 2))
torch.set_num_threads(2)
print(right(), helpers())
"""
    # Other threads and children have helpers of their own, and so have calls of another number.
    assert run_python(BESIDE + code) == ["True 0", "True 2", "True", "True 2"]


@pytest.mark.parametrize(
    ("call", "there"),
    [
        ("chumoku.attention(*tensors(x, x, x))", 0),
        ("chumoku.attention(*tensors(x, x, x), watch=chumoku.Watch(entropy=True))", 0),
        ("chumoku.weights(*tensors(x, x))", 0),
        ("chumoku.torch.attention(*leaves()).sum().backward()", 0),
        ("chumoku.torch.attention(*leaves(), scale=0.3).sum().backward()", 0),
        ("chumoku.attention(x, x, x)", 2),
    ],
)
def test_who_brings_tensors_brings_the_threads(call, there):
    pytest.importorskip("torch")
    code = f"""
import chumoku.torch

def leaves():
    return [tensor.clone().requires_grad_() for tensor in tensors(x, x, x)]

{call}
print(helpers())
"""
    assert run_python(BESIDE + code) == [str(there)]


def test_calls_beside_pytorch_are_interrupted():
    pytest.importorskip("torch")
    code = """
took = []
while len(took) < 5 and min(took, default=1) > 0.1:
    sent = kill_soon()
    try:
        endless()
    except KeyboardInterrupt:
        took.append(time.perf_counter() - sent[0])
    assert right()
print(min(took) < 0.1 or took, helpers(), float(torch.ones(1 << 20).sum()))
"""
    assert run_python(BESIDE + code) == ["True 0 1048576.0"]


def test_a_child_forked_inside_a_call_beside_pytorch_says_so_too():
    pytest.importorskip("torch")
    assert run_python(BESIDE + FORK_INSIDE) == ["True True"]

"""What the native kernel alone promises: the same bits, few threads, interrupts, linear memory."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from cases import DTYPES

import chumoku
from chumoku import Causal, Watch, _native, attention
from chumoku.kernels.native import plain

WATCH = Watch(top=4, entropy=True, saturation=True, distance=True)


@pytest.fixture(autouse=True)
def as_it_was():
    """Threads and instruction set are the process's own."""
    threads, isa = _native.threads(), _native.instruction_set()
    yield
    _native.set_threads(threads)
    _native.set_instruction_set(isa)


def arrays(heads=4, kv_heads=2, queries=70, keys=2300, width=48, seed=0):
    rng = np.random.default_rng(seed)
    query = 3 * rng.standard_normal((2, heads, queries, width), dtype=np.float32)
    key = rng.standard_normal((2, kv_heads, keys, width), dtype=np.float32)
    return query, key, rng.standard_normal((2, kv_heads, keys, 40), dtype=np.float32)


def native(*inputs, **options):
    return attention(*inputs, kernel="native", **options)


@pytest.mark.parametrize("isa", _native.instruction_sets())
def test_same_bits_for_any_number_of_threads(isa):
    assert _native.set_instruction_set(isa)
    inputs = arrays()
    _native.set_threads(1)
    output, seen = native(*inputs, mask=Causal(), watch=WATCH)
    for threads in (2, 3, 8, 8):
        _native.set_threads(threads)
        again, facts = native(*inputs, mask=Causal(), watch=WATCH)
        assert np.array_equal(output, again)
        for name, fact in seen.facts().items():
            assert np.array_equal(fact, facts.facts()[name]), name


@pytest.mark.parametrize("isa", _native.instruction_sets())
def test_same_bits_for_a_row_alone_and_in_company(isa):
    assert _native.set_instruction_set(isa)
    query, key, value = arrays()
    whole = native(query, key, value, mask=Causal())
    for i in (0, 1, 33, 69):
        length = key.shape[-2] - query.shape[-2] + i + 1
        alone = query[:, :, i : i + 1]
        decoded = native(alone, key[:, :, :length], value[:, :, :length], mask=Causal())
        assert np.array_equal(decoded[:, :, 0], whole[:, :, i])
        sliced = native(alone, key, value, mask=Causal(length - 1))
        assert np.array_equal(sliced[:, :, 0], whole[:, :, i])
        one_entry = native(alone[1], key[1], value[1], mask=Causal(length - 1))
        assert np.array_equal(one_entry[:, 0], whole[1, :, i])


def test_hidden_keys_and_their_tiles_change_no_bit():
    query, key, value = arrays(keys=700)
    output = native(query, key[:, :, :500], value[:, :, :500])
    visible = np.arange(700) < 500
    assert np.array_equal(output, native(query, key, value, mask=visible))
    assert np.array_equal(output, native(query, key, value, mask=chumoku.Lengths(500)))


def test_instruction_sets_agree():
    inputs = arrays()
    outputs = []
    for isa in _native.instruction_sets():
        assert _native.set_instruction_set(isa)
        assert _native.instruction_set() == isa
        outputs.append(native(*inputs))
    for output in outputs[1:]:
        assert np.abs(output - outputs[0]).max() < 5e-6
    assert not _native.set_instruction_set("abacus")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_environment_chooses():
    code = "from chumoku import _native as n; print(n.instruction_set(), n.threads())"
    for isa in _native.instruction_sets():
        done = run_python(code, CHUMOKU_ISA=isa, CHUMOKU_NUM_THREADS="3")
        assert done.stdout.split() == [isa, "3"], done.stderr


# Ten thousand queries over a million keys would take minutes: the call is begun, never finished.
LONG_CALL = """
import numpy as np, signal, threading, chumoku
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
key = np.broadcast_to(np.float32(0.5), (1_000_000, 64))
query = np.ones((10_000, 64), np.float32)
"""


def test_an_interrupt_ends_a_long_call():
    done = run_python(
        LONG_CALL
        + """
import os, time
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    chumoku.attention(query, key, key)
except KeyboardInterrupt:
    print("interrupted")
output = chumoku.attention(query[:5], key[:5], key[:5])
print(output[0, 0])
"""
    )
    assert done.stdout.split() == ["interrupted", "0.5"], done.stderr


def test_other_python_threads_run_during_a_call():
    query, key, value = arrays(queries=800, keys=4000)
    done = threading.Event()
    ticks = 0

    def call():
        native(query, key, value)
        done.set()

    worker = threading.Thread(target=call)
    worker.start()
    while not done.wait(0.0005):
        ticks += 1
    worker.join()
    assert ticks > 0


def test_calls_from_many_threads_at_once():
    inputs = arrays(queries=40, keys=300)
    wanted = native(*inputs)
    outputs = []
    workers = [
        threading.Thread(target=lambda: outputs.extend(native(*inputs) for _ in range(20)))
        for _ in range(6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(outputs) == 120
    assert all(np.array_equal(output, wanted) for output in outputs)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_works_on():
    inputs = arrays()
    _native.set_threads(3)
    wanted = native(*inputs)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(native(*inputs), wanted) else 1)
    signal.alarm(60)  # a hang must not hold up the tests
    _, status = os.waitpid(child, 0)
    signal.alarm(0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_memory_grows_with_the_length_not_with_its_square():
    done = run_python(
        """
import numpy as np, resource, chumoku
rng = np.random.default_rng(0)
query, key, value = rng.standard_normal((3, 16384, 8), dtype=np.float32)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
watch = chumoku.Watch(top=2, entropy=True, saturation=True)
chumoku.attention(query[:256], key[:256], value[:256], watch=watch)
before = peak()
chumoku.attention(query, key, value, mask=chumoku.Window(700, 0), watch=watch)
print(peak() - before)
""",
        CHUMOKU_NUM_THREADS="2",
    )
    assert float(done.stdout) < 32, done.stderr  # MiB; one matrix of scores would be 1024


def test_a_window_leaves_far_keys_alone():
    """Hidden tiles are not even read: most of these keys lie in memory that may not be touched."""
    done = run_python(
        """
import ctypes, mmap, numpy as np, chumoku
length, width = 1 << 14, 64
memory = mmap.mmap(-1, length * width * 4)
key = np.frombuffer(memory, np.float32).reshape(length, width)
key[:] = 1
libc = ctypes.CDLL(None, use_errno=True)
address = ctypes.c_void_p(key.ctypes.data)
half = ctypes.c_size_t(key.nbytes // 2)
assert libc.mprotect(address, half, 0) == 0  # PROT_NONE
query = np.ones((64, width), np.float32)
print(chumoku.attention(query, key, key, mask=chumoku.Window(100, 0)).sum())
"""
    )
    assert float(done.stdout) == 64 * 64, done.stderr


def test_top_keys_hold_any_number():
    query, key, value = arrays(queries=3, keys=1500)
    for top in (1, 2, 3, 4, 7, 8, 9, 33):
        _, seen = native(query, key, value, watch=Watch(top=top))
        weights = chumoku.weights(query, key)
        order = np.argsort(-weights, axis=-1, kind="stable")[..., :top]
        assert np.array_equal(seen.top_keys, order)


@pytest.mark.parametrize("width", [64, 129, 512, 1024])
def test_error_stays_below_that_of_plain_float32_sums(width):
    """One chain over 1024 products would be three times as far off."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((n, width), dtype=np.float32) for n in (64, 300, 300))
    wanted = attention(*(a.astype(np.float64) for a in (5 * query, key, value)))

    def plain(q, k, v):
        scores = q @ k.T / np.float32(width**0.5)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True) @ v

    error = np.linalg.norm(native(5 * query, key, value) - wanted)
    assert error < 2 * np.linalg.norm(plain(5 * query, key, value) - wanted)


def test_any_true_byte_of_a_boolean_mask_counts():
    query, key, value = arrays(queries=5, keys=70)
    cells = np.random.default_rng(0).integers(0, 256, (5, 70)).astype(np.uint8)
    cells[cells < 128] = 0
    wanted = native(query, key, value, mask=cells != 0)
    assert np.array_equal(native(query, key, value, mask=cells.view(np.bool_)), wanted)


def test_a_nan_logit_comes_first_in_the_top_keys():
    key = np.ones((3, 4), np.float32)
    key[1, 0] = np.nan
    _, seen = native(np.ones((2, 4), np.float32), key, key, watch=Watch(top=3))
    assert seen.top_keys.tolist() == [[1, 0, 2], [1, 0, 2]]
    assert np.isnan(seen.top_weights).all()


def test_recorded_weights_have_the_batch_that_only_the_values_bring():
    query, key = np.ones((1, 2, 5, 8), np.float32), np.ones((1, 2, 6, 8), np.float32)
    with chumoku.recording(inputs=True) as seen:
        attention(query, key, np.ones((3, 2, 6, 8), np.float32), mask=chumoku.Lengths([1, 2, 3]))
    assert np.array_equal((seen[0].weights()[:, 0, 0] > 0).sum(-1), [1, 2, 3])


@pytest.mark.parametrize("isa", _native.instruction_sets())
def test_a_reference_that_moves_takes_everything_with_it(isa):
    """Scores that grow from tile to tile: what was summed before is scaled down each time."""
    assert _native.set_instruction_set(isa)
    query, key, value = arrays(queries=9, keys=700, width=8)
    key = key + np.linspace(0, 6, 700, dtype=np.float32)[:, None] * np.sign(query[:1, :2, :1])
    output, seen = native(query, key, value, watch=WATCH)
    wanted, facts = attention(query, key, value, watch=WATCH, kernel="reference")
    assert np.abs(output - wanted).max() < 2e-5
    for name in ("lse", "entropy", "saturation", "flow", "top_weights"):
        assert np.abs(getattr(seen, name) - getattr(facts, name)).max() < 1e-4, name
    assert np.abs(seen.distance / facts.distance - 1).max() < 1e-4


def test_answers_of_a_custom_mask_are_held_in_parts(monkeypatch):
    """Rows are gone through in slabs, which change no bit of what belongs to a row."""
    query, key, value = arrays(queries=200, keys=500)
    mask = chumoku.Custom(lambda b, h, i, j: (i * 5 + j * 3 + h) % 7 != 0)
    watch = Watch(*(3, True, True, True, True), groups=np.arange(500) % 4, picture=(9, 11))
    wanted, facts = native(query, key, value, mask=mask, watch=watch)
    block = chumoku.weights(query, key, mask=mask, keys=[3, 99])
    assert wanted.tobytes() == native(query, key, value, mask=cells(mask)).tobytes()
    monkeypatch.setattr("chumoku.kernels.native.HELD_SCORES", 1)
    output, seen = native(query, key, value, mask=mask, watch=watch)
    assert output.tobytes() == wanted.tobytes()
    for name, fact in facts.facts().items():
        if name.startswith(("received", "picture")):  # sums over the rows are rounded anew
            assert np.allclose(getattr(seen, name), fact, rtol=1e-6, atol=1e-8), name
        else:
            assert np.array_equal(getattr(seen, name), fact), name
    assert np.array_equal(chumoku.weights(query, key, mask=mask, keys=[3, 99]), block)


def cells(mask):
    """The mask's answers for two entries, four heads, 200 queries and 500 keys."""
    index = np.ix_(range(2), range(4), range(200), range(500))
    return mask.function(*index)


@pytest.mark.parametrize("isa", _native.instruction_sets())
def test_sums_over_the_rows_have_the_same_bits_for_any_number_of_threads(isa):
    assert _native.set_instruction_set(isa)
    query, key, value = arrays(queries=400, keys=1500)
    watch = Watch(received=True, picture=(7, 13))
    seen = []
    for threads in (1, 2, 3, 8):
        _native.set_threads(threads)
        seen.append(native(query, key, value, mask=Causal(), watch=watch)[1])
    for other in seen[1:]:
        for name in ("received", "received_share", "picture"):
            assert np.array_equal(getattr(other, name), getattr(seen[0], name)), name


def test_dropped_weights_are_the_same_in_any_slice_of_queries():
    query, key, value = arrays(queries=40, keys=1100)
    dropout = chumoku.Dropout(0.3, seed=2**40 + 7)
    rows, keys = np.arange(40), np.arange(1100)
    kept = dropout.kept((2,), 4, rows, keys)
    scores = np.einsum("bhgid,bhjd->bhgij", query.reshape(2, 2, 2, 40, -1), key).reshape(kept.shape)
    weights = np.exp(scores / 48**0.5)
    weights /= weights.sum(-1, keepdims=True)
    wanted = (kept / 0.7 * weights) @ np.repeat(value, 2, axis=1)
    assert np.abs(native(query, key, value, dropout=dropout) - wanted).max() < 1e-4


def test_rows_of_nan_have_the_same_bits():
    query, key, value = arrays()
    query[:, :, 5] = -np.inf
    output = native(query, key, value)
    assert set(output[:, :, 5].ravel().view(np.uint32)) == {0x7FC00000}


@pytest.mark.parametrize("flush", ["True", "False"])
def test_subnormal_numbers_survive_whatever_the_hosts_thread_does(flush):
    """PyTorch can set the calling thread to flush them; helpers are started by that thread."""
    code = f"""
import numpy as np, torch, chumoku
torch.set_flush_denormal({flush})
chumoku.set_threads(3)
query = np.full((2, 70, 8), 1e-22, np.float32)
key, value = np.full((2, 50, 8), 1e-21, np.float32), np.full((2, 50, 3), 1e-40, np.float32)
output, seen = chumoku.attention(query, key, value, scale=1.0, watch=chumoku.Watch())
flushed = bool(torch.tensor(1e-40) * 1.0 == 0)
torch.set_flush_denormal(False)  # NumPy too compares as the thread is set
print((output == value[0, 0, 0]).all(), (seen.max_logit > 0).all(), flushed)
"""
    assert run_python(code).stdout.split() == ["True", "True", flush]


PLAIN_SHAPES = [
    ((8, 16, 64), (8, 16, 64), (8, 16, 64)),
    ((2, 3, 4, 5, 9), (2, 3, 2, 7, 9), (2, 3, 2, 7, 3)),
    ((2, 1, 1, 128), (2, 1, 300, 128), (2, 1, 300, 1)),
]


@pytest.mark.parametrize("shapes", PLAIN_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_plain_call_gives_what_the_long_way_gives(shapes, dtype):
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    for views in (inputs, [np.asfortranarray(a) for a in inputs], [a[..., ::-1] for a in inputs]):
        output = plain(*views)
        assert output is not None
        assert output.tobytes() == attention(*views, kernel="native").tobytes()


@pytest.mark.parametrize(
    "shapes",
    [
        ((4, 8), (4, 8), (4, 8)),  # one head
        ((2, 1, 4, 8), (1, 4, 8), (1, 4, 8)),  # leading axes are to be broadcast
        ((3, 4, 8), (2, 4, 8), (2, 4, 8)),
        ((2, 4, 8), (2, 4, 7), (2, 4, 8)),
        ((2, 4, 8), (2, 5, 8), (2, 6, 8)),
        ((2, 4, 8), (2, 6, 8), (2, 5, 8)),
        ((2, 4, 8), (2, 4, 8), (1, 4, 8)),
        ((2, 4, 8), (2, 0, 8), (2, 0, 8)),
        ((2, 4, 1025), (2, 4, 1025), (2, 4, 8)),
        ((2, 4, 8), (2, 4, 8), (2, 4, 1025)),
        ((1,) * 33 + (4, 8), (1,) * 33 + (4, 8), (1,) * 33 + (4, 8)),
        ((), (), ()),
    ],
    ids=lambda shapes: "-".join(map(str, shapes))[:60],
)
def test_what_is_not_plain_goes_the_long_way(shapes):
    assert plain(*(np.ones(shape, np.float32) for shape in shapes)) is None


@pytest.mark.parametrize("isa", _native.instruction_sets())
@pytest.mark.parametrize("top", [1, 2, 7, 8, 9, 16, 17, 40, 300])
def test_lists_of_any_length_hold_the_largest_scores(isa, top):
    """Whole numbers: ties everywhere, and no score is rounded."""
    assert _native.set_instruction_set(isa)
    rng = np.random.default_rng(top)
    query = rng.integers(-3, 4, (3, 50, 4)).astype(np.float32)
    key = rng.integers(-3, 4, (3, 1300, 4)).astype(np.float32)
    key[1] *= np.arange(1300)[:, None] // 8 / 4  # larger and larger
    key[2, 700, 0] = np.nan
    value = rng.standard_normal((3, 1300, 2), dtype=np.float32)
    query[2, ::3] = 0  # 0 * NaN is NaN as well
    mask = chumoku.Lengths(1290) & chumoku.Custom(lambda b, h, i, j: (i + j) % 9 != 0)
    _, seen = native(query, key, value, scale=0.5, mask=mask, watch=Watch(top=top))
    allowed = (np.arange(50)[:, None] + np.arange(1300)) % 9 != 0
    scores = query.astype(np.float64) @ key.swapaxes(-1, -2).astype(np.float64)
    scores[np.isnan(scores)] = np.inf
    scores[..., ~(allowed & (np.arange(1300) < 1290))] = -np.inf
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :top]
    assert np.array_equal(seen.top_keys, order)


FAR = 215_000  # keys of which no weights can be kept, in vectors of 256 bits or more


@pytest.mark.parametrize("keys", [700, 3000, 45_000, FAR])
def test_received_where_references_move(keys):
    rng = np.random.default_rng(keys)
    query, key, value = (rng.standard_normal((2, n, 8), dtype=np.float32) for n in (60, keys, keys))
    query = np.abs(query)
    key += np.arange(keys, dtype=np.float32)[:, None] * (60 / keys)  # scores grow from key to key
    watch = Watch(received=True, picture=(5, 40))
    mask = Causal() | chumoku.Prefix(keys // 2)
    _, seen = native(query, key, value, mask=mask, watch=watch)
    wide = (array.astype(np.float64) for array in (query, key, value))
    _, exact = attention(*wide, mask=mask, watch=watch, kernel="reference")
    assert np.allclose(seen.received, exact.received, rtol=1e-4, atol=1e-6)
    assert np.allclose(seen.received_share, exact.received_share, rtol=1e-4, atol=1e-7)
    for half, wanted in zip(seen.picture, exact.picture, strict=True):
        assert np.allclose(half, wanted, rtol=1e-4, atol=1e-7)


def received_everywhere(query, key, value, mask):
    """What keys receive, against the reference and for several numbers of threads."""
    watch = Watch(received=True, picture=(7, 30))
    wide = (array.astype(np.float64) for array in (query, key, value))
    _, exact = attention(*wide, mask=mask, watch=watch, kernel="reference")
    first = None
    for threads in (1, 2, 5):
        _native.set_threads(threads)
        _, seen = native(query, key, value, mask=mask, watch=watch)
        assert np.allclose(seen.received, exact.received, rtol=2e-5, atol=1e-6)
        assert np.allclose(seen.received_share, exact.received_share, rtol=2e-5, atol=1e-7)
        for half, wanted in zip(seen.picture, exact.picture, strict=True):
            assert np.allclose(half, wanted, rtol=2e-5, atol=1e-7)
        first = first or seen
        assert np.array_equal(seen.received, first.received)
        assert np.array_equal(seen.picture[0], first.picture[0])


@pytest.mark.parametrize("isa", _native.instruction_sets())
@pytest.mark.parametrize(
    "mask",
    [
        Causal(),
        chumoku.Window(90, 0),
        chumoku.Window(70, 200),
        chumoku.Chunks(130) & Causal(),
        chumoku.Documents(np.repeat([0, 1, 2, 3, 4], [3, 700, 5, 1200, 292])),
        chumoku.Custom(lambda b, h, i, j: (j // 128 + i // 200 + h) % 3 == 0),
    ],
    ids=repr,
)
def test_received_of_panels_that_follow_one_another(isa, mask):
    """The weights of a panel lie where those of the one before it lay."""
    assert _native.set_instruction_set(isa)
    rng = np.random.default_rng(3)
    query, key, value = (rng.standard_normal((3, 2200, 6), dtype=np.float32) for _ in range(3))
    received_everywhere(2 * query, key, value, mask)


def test_received_of_panels_of_which_some_cannot_be_kept():
    rng = np.random.default_rng(4)
    query, key, value = (
        rng.standard_normal((n, 4), dtype=np.float32) for n in (160, FAR + 450, FAR + 450)
    )
    rows, keys = np.repeat([0, 1], [100, 60]), np.repeat([0, 1], [450, FAR])
    received_everywhere(query, key, value, chumoku.Documents(rows, keys))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_output_lies_as_the_query_does(dtype):
    query, key, value = (array.astype(dtype) for array in arrays(queries=30, keys=90))
    inside = np.ascontiguousarray(query.swapaxes(1, 2)).swapaxes(1, 2)
    wanted = native(query, key, value, mask=Causal())
    plainly = native(query, key, value)
    for output, same in (
        (native(inside, key, value, mask=Causal()), wanted),
        (attention(inside, key, value), plainly),
    ):
        assert output.swapaxes(1, 2).flags.c_contiguous
        assert np.ascontiguousarray(output).tobytes() == same.tobytes()
    assert wanted.flags.c_contiguous


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long_keys_inside_their_rows_are_packed(dtype):
    """Of 4,096 rows and keys or more: the same bits as of keys that lie heads first."""
    rng = np.random.default_rng(0)
    shapes = (2, 2, 4100, 5), (2, 2, 4200, 5), (2, 2, 4200, 3)
    query, key, value = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    options = {"mask": Causal(), "watch": Watch(top=3, entropy=True, received=True)}
    wanted, facts = native(query, key, value, **options)
    inside = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (key, value)]
    output, seen = native(query, *inside, **options)
    assert output.tobytes() == wanted.tobytes()
    for name, fact in seen.facts().items():
        assert np.array_equal(fact, facts.facts()[name]), name


# Memory of results


def address(array):
    return array.__array_interface__["data"][0]


def large(number):
    return np.full((2, 4, 512, 64), number, np.float32)


def test_a_result_gets_the_memory_of_one_that_is_gone():
    first = chumoku.attention(large(1), large(1), large(1))
    place = address(first)
    second = chumoku.attention(large(2), large(2), large(2))
    assert address(second) != place
    view = first[0, 1:2, ::-1]
    del first
    third = chumoku.attention(large(3), large(3), large(3))
    assert address(third) != place  # a view is left
    del view
    fourth = chumoku.attention(large(4), large(4), large(4))
    assert address(fourth) == place
    for number, output in enumerate((second, third, fourth), 2):
        assert np.allclose(output, number)


def test_a_tensor_keeps_the_memory_of_its_result():
    output = chumoku.attention(*(torch.from_numpy(large(1)) for _ in range(3)))
    place = output.data_ptr()
    kept = output[1:].detach()
    del output
    other = chumoku.attention(*(torch.from_numpy(large(2)) for _ in range(3)))
    assert other.data_ptr() != place
    assert torch.allclose(kept, torch.ones(()))


def test_a_result_that_no_memory_holds_is_a_memory_error():
    few = np.ones((1, 1, 4), np.float32)
    query = np.broadcast_to(few, (2**40, 1, 4))
    with pytest.raises(MemoryError):
        chumoku.attention(query, few, np.broadcast_to(few[..., :1], (1, 1, 2**10)))

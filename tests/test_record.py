"""recording(): what is collected, under which name, and what leaves no trace."""

import json
import threading
import warnings
from dataclasses import replace
from types import SimpleNamespace

import array_api_strict
import numpy as np
import pytest
import torch
from cases import HOST_KERNELS, Case

from chumoku import Causal, Watch, attention, label, record, recording, weights
from chumoku.archive import read_arrays, write_arrays
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.mask import Shape
from chumoku.record import BUDGET, Recording, open_recordings, opened, silent
from chumoku.statistics import Statistics

Q, K, V = Case((2, 4, 5, 8), (2, 2, 7, 8), 6).arrays()


def test_every_call_is_collected_in_order():
    with recording(Watch(entropy=True, top=2)) as seen:
        first, second = attention(Q, K, V), attention(Q[:, :2, :1], K, V)
    attention(Q, K, V)
    assert len(seen) == len(seen.entries) == 2
    assert [entry.name for entry in seen] == ["attention 0", "attention 1"]
    assert [entry.shape for entry in seen] == [Shape((2,), 4, 5, 7), Shape((2,), 2, 1, 7)]
    assert isinstance(first, np.ndarray)
    assert isinstance(second, np.ndarray)
    _, alone = attention(Q, K, V, watch=Watch(entropy=True, top=2))
    found = seen[0].statistics
    assert list(found.facts()) == ["lse", "max_logit", "entropy", "top_keys", "top_weights"]
    for name, fact in found.facts().items():
        assert np.array_equal(fact, getattr(alone, name))


def test_recording_changes_no_bit_and_no_answer():
    plain = attention(Q, K, V, mask=Causal())
    with recording(Watch(top=3, entropy=True, saturation=True)):
        assert np.array_equal(attention(Q, K, V, mask=Causal()), plain)
        output, seen = attention(Q, K, V, mask=Causal(), watch=Watch(distance=True))
    assert np.array_equal(output, plain)
    assert list(seen.facts()) == ["lse", "max_logit", "distance"]


def test_names():
    with recording() as seen:
        with label("layer 0"):
            attention(Q, K, V)
            with label("inner"):
                attention(Q, K, V)
            attention(Q, K, V)
        attention(Q, K, V)
        with label("layer 1"):
            attention(Q, K, V)
    names = ["layer 0", "inner", "layer 0", "attention 3", "layer 1"]
    assert [entry.name for entry in seen] == names
    assert seen["layer 1"] is seen[4] is seen[-1]
    with pytest.raises(InvalidArgumentError) as raised:
        seen["layer 0"]
    assert str(raised.value) == (
        "name: got 'layer 0', 2 entries, "
        "expected one entry of: layer 0, inner, attention 3, layer 1."
    )
    with pytest.raises(
        InvalidArgumentError, match="name: got 'x', 0 entries.*one entry of: nothing"
    ):
        Recording()["x"]
    with pytest.raises(IndexError):
        seen[5]


def test_wrong_arguments_raise_before_the_block_runs():
    for options, words in [
        ({"watch": 3}, "watch: got 3, expected Watch"),
        ({"watch": Watch}, "watch: got type"),
        ({"inputs": 1}, "inputs: got 1, expected True or False"),
        ({"inputs": Watch()}, "inputs: got Watch"),
        ({"budget": "1 GB"}, "budget: got '1 GB', expected a whole number of bytes from 1"),
        ({"budget": 1.5}, "budget: got 1.5"),
    ]:
        with pytest.raises(InvalidTypeError, match=words), recording(**options):
            raise AssertionError("the block ran")
    with pytest.raises(InvalidTypeError, match="name: got 3, expected a str"), label(3):
        raise AssertionError("the block ran")
    assert open_recordings() == ()


def test_nested_recordings_each_get_what_they_asked_for():
    with recording(Watch(entropy=True)) as outer:
        attention(Q, K, V)
        with recording(Watch(top=4)) as inner:
            attention(Q, K, V, watch=Watch(saturation=True))
        attention(Q, K, V)
    assert (len(outer), len(inner)) == (3, 1)
    assert all(list(e.statistics.facts()) == ["lse", "max_logit", "entropy"] for e in outer)
    assert list(inner[0].statistics.facts()) == ["lse", "max_logit", "top_keys", "top_weights"]
    assert inner[0].statistics.top_keys.shape == (2, 4, 5, 4)


def test_an_exception_inside_leaves_no_trace():
    with pytest.raises(ZeroDivisionError), recording() as seen, label("layer 0"):
        attention(Q, K, V)
        raise ZeroDivisionError
    assert open_recordings() == ()
    attention(Q, K, V)
    assert [entry.name for entry in seen] == ["layer 0"]
    with recording() as after:
        attention(Q, K, V)
    assert [entry.name for entry in after] == ["attention 0"]


def test_a_call_that_fails_is_not_collected():
    with recording() as seen:
        with pytest.raises(InvalidArgumentError):
            attention(Q, K[..., :3], V)
        attention(Q, K, V)
    assert [entry.name for entry in seen] == ["attention 0"]


def test_weights_of_a_recording_with_inputs():
    options = {"mask": Causal(-1), "scale": 0.4}
    with recording(inputs=True) as seen:
        attention(Q, K, V, **options)
    whole = weights(Q, K, **options)
    entry = seen[0]
    assert np.array_equal(entry.weights(), whole)
    assert np.array_equal(
        entry.weights(rows=3, keys=slice(2, 5)), weights(Q, K, rows=3, keys=slice(2, 5), **options)
    )
    assert entry.weights(rows=[0, 4]).shape == (2, 4, 2, 7)


def test_weights_know_every_option_of_the_call():
    options = {
        "bias": np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32),
        "softcap": 1.5,
        "sinks": np.ones(4, np.float32),
        "kernel": "reference",
    }
    with recording(inputs=True) as seen:
        attention(Q, K, V, **options)
    p = seen[0].weights()
    assert np.array_equal(p, weights(Q, K, **options))
    total = p.sum(axis=-1) + seen[0].statistics.sink_weight
    assert total == pytest.approx(np.ones((2, 4, 5)), abs=1e-6)


def test_weights_come_from_the_kernel_of_the_call():
    with recording(inputs=True) as seen:
        for kernel in HOST_KERNELS:
            attention(Q, K, V, kernel=kernel.name)
    for entry, kernel in zip(seen, HOST_KERNELS, strict=True):
        assert np.array_equal(entry.weights(), weights(Q, K, kernel=kernel.name))


def test_weights_without_inputs_say_how_to_get_them():
    with recording() as seen:
        attention(Q, K, V)
    with pytest.raises(
        UnavailableError, match=r"weights: .* expected recording\(watch, inputs=True\)"
    ):
        seen[0].weights()


def test_nothing_is_kept_without_inputs():
    with recording() as seen, recording(inputs=True) as keeping:
        attention(Q, K, V)
    assert seen[0]._weights is None
    assert keeping[0].weights().shape == (2, 4, 5, 7)


def test_tensors_are_recorded_as_tensors():
    q, k, v = map(torch.from_numpy, (Q, K, V))
    with recording(Watch(top=1), inputs=True) as seen:
        attention(q, k, v)
    assert isinstance(seen[0].statistics.top_keys, torch.Tensor)
    assert torch.equal(seen[0].weights(rows=2), weights(q, k, rows=2))


def test_two_dimensions_stay_two():
    with recording(Watch(entropy=True), inputs=True) as seen:
        attention(Q[0, 0], K[0, 0], V[0, 0])
    assert seen[0].shape == Shape((), 1, 5, 7)
    assert seen[0].statistics.entropy.shape == (5,)
    assert seen[0].weights().shape == (5, 7)


def test_threads_do_not_hear_one_another():
    """Each thread of four has its own recording; the recording around them hears none."""
    together, found = threading.Barrier(4), {}

    def work(number):
        with recording() as mine, label(f"thread {number}"):
            for _ in range(number + 1):
                together.wait()
                attention(Q, K, V)
            found[number] = [entry.name for entry in mine]
            for _ in range(3 - number):
                together.wait()

    with recording() as around:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {number: [f"thread {number}"] * (number + 1) for number in range(4)}
    assert len(around) == 0


def test_a_recording_can_be_read_while_it_is_open():
    with recording() as seen:
        assert len(seen) == 0
        attention(Q, K, V)
        assert len(seen) == 1
        assert open_recordings() == (seen,)


# A budget of bytes

EVERYTHING = Watch(
    top=2,
    entropy=True,
    saturation=True,
    distance=True,
    received=True,
    groups=np.arange(64) % 3,
    picture=(4, 4),
)
LONG = np.random.default_rng(1).standard_normal((2, 4, 64, 8)).astype(np.float32)


def filled(budget, calls=6, watch=EVERYTHING, inputs=False, arrays=LONG):
    """A recording of equal calls, and the sentences it said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with recording(watch, inputs=inputs, budget=budget) as run:
            for _ in range(calls):
                attention(arrays, arrays, arrays)
    return run, [str(one.message) for one in said]


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, array_api_strict.asarray])
def test_rows_are_sampled_beyond_the_budget_and_what_is_left_is_exact(kind):
    arrays = kind(LONG)
    _, alone = attention(arrays, arrays, arrays, watch=EVERYTHING)
    whole, silence = filled(None, arrays=arrays)
    assert not silence
    run, said = filled(whole.nbytes // 2, arrays=arrays)
    assert run.stride > 1
    assert run.nbytes <= run.budget
    assert len(said) == 1
    assert "1 query kept of 2" in said[0]
    assert "Give recording() a larger budget" in said[0]
    assert [entry.name for entry in run] == [f"attention {i}" for i in range(6)]
    for entry in run:
        assert entry.rows.tolist() == list(range(run.stride - 1, 64, run.stride))
        assert entry.rows[-1] == 63
        for name, fact in entry.statistics.facts().items():
            expected = getattr(alone, name)
            if name == "picture" or name.startswith("received"):
                pairs = (
                    zip(fact, expected, strict=True) if name == "picture" else [(fact, expected)]
                )
            elif name in ("top_keys", "top_weights", "group_mass"):
                pairs = [(fact, expected[..., run.stride - 1 :: run.stride, :])]
            else:
                pairs = [(fact, expected[..., run.stride - 1 :: run.stride])]
            for one, other in pairs:
                assert type(one) is type(other)
                assert np.array_equal(np.asarray(one), np.asarray(other))


def test_the_memory_of_rows_that_were_given_up_is_free():
    run, _ = filled(60_000, calls=2)
    assert run.stride > 1
    lse = run[0].statistics.lse
    assert lse.base is None
    assert lse.nbytes == 2 * 4 * len(run[0].rows) * 4


def test_inputs_are_given_up_first_and_the_newest_of_them():
    run, said = filled(200_000, inputs=True, watch=Watch())
    assert [entry._weights is not None for entry in run] == [True] * 2 + [False] * 4
    assert run.stride == 1
    assert run.without_inputs == 4
    assert run[0].weights(rows=0).shape == (2, 4, 1, 64)
    with pytest.raises(UnavailableError, match="without the inputs of this call"):
        run[5].weights()
    assert len(said) == 1
    assert "inputs of 1 call given up" in said[0]


def test_calls_that_find_no_room_are_counted():
    run, said = filled(100_000)
    assert len(run) + run.missed == 6
    assert run.missed > 0
    assert len(said) == 2
    assert "no room for 1 call." in said[1]
    assert str(run).startswith(f"Recording: {len(run)} calls, ")
    assert f"no room for {run.missed} calls" in str(run)
    nothing, said = filled(1)
    assert (len(nothing), nothing.missed, nothing.nbytes) == (0, 6, 0)


def test_a_call_that_can_never_fit_leaves_the_others_whole():
    few = LONG[:1, :1]
    many = np.zeros((1, 1, 100_000, 8), np.float32)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with recording(Watch(received=True), inputs=True, budget=400_000) as run:
            for _ in range(5):
                attention(few, few, few)
            attention(few[:, :, :1], many, many)
            attention(few, few, few)
    assert [entry.name for entry in run] == [f"attention {i}" for i in (0, 1, 2, 3, 4, 6)]
    assert (run.stride, run.without_inputs, run.missed) == (1, 0, 1)
    assert len(said) == 1
    assert said[0].filename == __file__


def test_what_is_kept_is_counted():
    with recording(Watch(top=1), inputs=True) as run, recording(Watch(top=64)):
        attention(LONG, LONG, LONG, mask=Causal() | np.ones((64, 64), bool))
    assert run[0].statistics.top_keys.base is None
    assert run[0].nbytes == 2 * LONG.nbytes + 64 * 64 + 2 * 4 * 64 * (4 + 4 + 8 + 4)


def test_a_recording_in_its_budget_says_nothing_and_gives_nothing_up():
    run, said = filled(BUDGET, inputs=True)
    assert not said
    assert (run.stride, run.without_inputs, run.missed) == (1, 0, 0)
    assert run.nbytes > 6 * sum(np.asarray(f).nbytes for f in (run[0].statistics.lse, LONG, LONG))
    assert str(run) == f"Recording: 6 calls, {run.nbytes:,} bytes of {BUDGET:,}"


def test_calls_of_different_lengths_keep_their_last_query():
    with pytest.warns(RuntimeWarning), recording(Watch(top=30), budget=110_000) as run:
        for queries in (64, 7, 1, 0, 63):
            attention(LONG[:, :, 64 - queries :], LONG, LONG)
    assert run.stride > 1
    for entry, queries in zip(run, (64, 7, 1, 0, 63), strict=True):
        assert entry.shape.queries == queries
        assert entry.statistics.lse.shape[-1] == len(entry.rows)
        assert entry.rows[-1:].tolist() == ([queries - 1] if queries else [])


# Saved and loaded


@pytest.mark.parametrize("budget", [None, 100_000])
def test_saved_and_loaded_bit_for_bit(tmp_path, budget):
    run, _ = filled(budget, inputs=True)
    run.save(tmp_path / "run.npz")
    back = Recording.load(tmp_path / "run.npz")
    told = ("watch", "budget", "stride", "without_inputs", "missed")
    assert [getattr(back, name) for name in told] == [getattr(run, name) for name in told]
    assert len(back) == len(run)
    for one, other in zip(back, run, strict=True):
        assert (one.name, one.shape, one.stride) == (other.name, other.shape, other.stride)
        assert list(one.statistics.facts()) == list(other.statistics.facts())
        for mine, theirs in zip(
            one.statistics.facts().values(), other.statistics.facts().values(), strict=True
        ):
            assert np.array_equal(mine, theirs)
    with pytest.raises(UnavailableError, match="a saved file has none"):
        back[0].weights()


def test_names_in_any_script_tensors_and_two_axes_are_saved(tmp_path):
    with recording(Watch(entropy=True)) as run:
        with label("層 0/注目"):
            attention(Q[0, 0], K[0, 0], V[0, 0])
        attention(*map(torch.from_numpy, (Q, K, V)))
    run.save(tmp_path / "run.npz")
    back = Recording.load(tmp_path / "run.npz")
    assert back["層 0/注目"].statistics.entropy.shape == (5,)
    assert isinstance(back[1].statistics.lse, np.ndarray)
    with np.load(tmp_path / "run.npz", allow_pickle=False) as plain:
        assert json.loads(plain["chumoku_recording"].tobytes())["entries"][0]["name"] == "層 0/注目"


def spoilt(change, arrays=None):
    """A saved recording whose JSON was changed by a function, and whose arrays are others."""

    def write(path):
        filled(None, calls=2)[0].save(path)
        found = read_arrays(path)
        about = json.loads(found["chumoku_recording"].tobytes())
        text = json.dumps(change(about) or about).encode()
        found["chumoku_recording"] = np.frombuffer(text, np.uint8)
        write_arrays(path, found | (arrays or {}))

    return write


def entry_with(**changes):
    return lambda about: about["entries"][0].update(changes)


DAMAGED = {
    "no JSON": lambda path: write_arrays(path, {"chumoku_recording": np.zeros(3, np.uint8)}),
    "a list": spoilt(lambda about: [about]),
    "no version": spoilt(lambda about: about.pop("version") and None),
    "no entries": spoilt(lambda about: about.pop("entries") and None),
    "one entry more": spoilt(lambda about: about["entries"].append(about["entries"][0])),
    "one entry less": spoilt(lambda about: about["entries"].pop() and None),
    "heads": spoilt(entry_with(shape=[[2], 3, 64, 64])),
    "batch": spoilt(entry_with(shape=[[10**15], 4, 64, 64])),
    "queries": spoilt(entry_with(shape=[[2], 4, 10**30, 64])),
    "keys": spoilt(entry_with(shape=[[2], 4, 64, 63])),
    "a size that is none": spoilt(entry_with(shape=[[2], 4, -64, 64])),
    "too few sizes": spoilt(entry_with(shape=[[2], 4])),
    "stride": spoilt(entry_with(stride=2)),
    "no stride": spoilt(entry_with(stride=0)),
    "watch": spoilt(lambda about: about["watch"].update(top=-1)),
    "unknown watch": spoilt(lambda about: about["watch"].update(mood=True)),
    "unknown fact": spoilt(lambda about: None, {"0/mood": np.zeros(3, np.float32)}),
    "dtype of a fact": spoilt(lambda about: None, {"0/lse": np.zeros((2, 4, 64), np.int64)}),
    "facts of no call": spoilt(lambda about: None, {"7/lse": np.zeros((2, 4, 64), np.float32)}),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused(tmp_path, damage):
    DAMAGED[damage](tmp_path / "run.npz")
    with pytest.raises(InvalidArgumentError, match=r"path: got .*run.npz.* do not fit together"):
        Recording.load(tmp_path / "run.npz")


def test_files_of_another_kind_and_version_are_refused(tmp_path):
    path = tmp_path / "run.npz"
    attention(Q, K, V, watch=Watch())[1].save(path)
    with pytest.raises(InvalidArgumentError, match="of another kind, expected a recording that"):
        Recording.load(path)
    spoilt(lambda about: about.update(version=2))(path)
    with pytest.raises(
        InvalidArgumentError, match=r"of another version, .*A later version of chumoku"
    ):
        Recording.load(path)
    with pytest.raises(InvalidArgumentError, match="No such file"):
        Recording.load(tmp_path / "nothing")


def test_facts_put_together_by_hand_are_checked_before_a_file_is_written(tmp_path):
    run, _ = filled(None, calls=1)
    run.entries[0] = replace(run[0], statistics=type(run[0].statistics)(lse=np.zeros(3, np.int64)))
    with pytest.raises(InvalidArgumentError, match="lse: got int64"):
        run.save(tmp_path / "run.npz")
    assert not (tmp_path / "run.npz").exists()


def test_malloc_is_told_when_much_lies_free_after_large_calls(monkeypatch):
    told, heaps = [], SimpleNamespace(fordblks=2**28)
    malloc = record._Malloc(lambda: heaps, told.append)
    monkeypatch.setattr(record, "_malloc", lambda: malloc)
    run = Recording()

    def add(rows, free, times):
        heaps.fordblks = free
        seen = Statistics(lse=np.zeros((1, rows), np.float32))
        run.add(Shape((), 1, rows, 1), seen, None)
        assert told == [0] * times

    add(2**20 - 1, 2**28, 0)  # a small call
    add(2**20, 2**28 - 1, 0)
    add(2**20, 2**28, 1)
    add(2**20, 2**29 - 1, 1)  # what was given back still counts as free
    add(2**20, 2**29, 2)
    add(2**20, 2**10, 2)  # the model is gone
    add(2**20, 2**28 + 2**10, 3)
    monkeypatch.setattr(record, "_malloc", lambda: None)
    add(2**20, 2**30, 3)
    assert len(run) == 8


def test_what_malloc_holds_free_is_known():
    malloc = record._malloc()
    if malloc is None:
        pytest.skip("this C library does not tell what it holds free")
    assert 0 < malloc.heaps().fordblks < malloc.heaps().arena
    malloc.give_back(0)


def test_calls_of_some_names_only():
    run = Recording(names=frozenset({"second"}))
    query = np.ones((1, 2, 4), np.float32)
    with opened(run):
        for name in ("first", "second"):
            with label(name):
                attention(query, query, query)
        with silent(), label("second"):
            attention(query, query, query)
    assert [entry.name for entry in run] == ["second"]


def test_facts_of_some_heads():
    random = np.random.default_rng(0)
    query, key, value = random.standard_normal((3, 2, 4, 5, 8))
    watch = Watch(top=2, received=True, picture=(2, 2), groups=np.arange(5) % 2)
    run = Recording(watch, heads=(3, 1))
    with opened(run):
        _, whole = attention(query, key, value, watch=watch)
    for name, fact in run[0].statistics.facts().items():
        expected = getattr(whole, name)
        pairs = zip(fact, expected, strict=True) if name == "picture" else [(fact, expected)]
        for mine, all_heads in pairs:
            assert np.array_equal(mine, all_heads[:, [3, 1]])
    with (
        opened(Recording(heads=(4,))),
        pytest.raises(InvalidArgumentError, match=r"heads: got head 4, expected heads from 0 to 3"),
    ):
        attention(query, key, value)

"""recording(): what is collected, under which name, and what leaves no trace."""

import threading

import numpy as np
import pytest
import torch
from cases import Case

from chumoku import Causal, Watch, attention, label, recording, weights
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.kernels import KERNELS
from chumoku.mask import Shape
from chumoku.record import Recording, open_recordings

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
        for kernel in KERNELS:
            attention(Q, K, V, kernel=kernel.name)
    for entry, kernel in zip(seen, KERNELS, strict=True):
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

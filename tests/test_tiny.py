"""The smallest sanity path: one look through every door."""

import numpy as np
import pytest

import chumoku


def test_softmax_in_percent():
    assert chumoku.weights(
        np.ones((1, 1)), np.array([[1.0], [2.0], [3.0]]), scale=1.0
    ) == pytest.approx(np.array([[0.090031, 0.244728, 0.665241]]), abs=1e-6)


@pytest.mark.parametrize("kernel", [None, "native", "reference"])
def test_attention_by_hand(kernel):
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 6, 4)).astype(np.float32)
    scores = q.astype(float) @ k.astype(float).swapaxes(-1, -2) / 2
    scores[:, ~np.tri(6, dtype=bool)] = -np.inf
    p = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    output, seen = chumoku.attention(
        q, k, v, mask=chumoku.Causal(), watch=chumoku.Watch(top=2, entropy=True), kernel=kernel
    )
    assert output.dtype == np.float32
    assert output == pytest.approx(p @ v, abs=1e-6)
    assert np.array_equal(seen.top_keys[..., 0], p.argmax(axis=-1))
    assert seen.entropy[:, 0] == pytest.approx([0, 0], abs=1e-6)


def test_steps_recording_module():
    x = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    with chumoku.recording(chumoku.Watch(entropy=True), inputs=True) as seen:
        with chumoku.label("layer 0"):
            chumoku.attention(x, x, x)
        chumoku.MultiHeadAttention(8, 2)(x)
    assert len(seen) == 2
    p = seen["layer 0"].weights()
    assert p.sum(axis=-1) == pytest.approx(np.ones(5), abs=1e-6)
    assert chumoku.steps(x, x, x).weights == pytest.approx(p, abs=1e-6)
    assert seen[0].statistics.entropy == pytest.approx(-(p * np.log(p)).sum(axis=-1), abs=1e-5)

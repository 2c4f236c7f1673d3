"""The examples run, from the command line and on few steps, and do what their texts say."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import chumoku
import chumoku.torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def beside_the_examples(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def run(name, out, *options):
    """The lines that an example prints, and the picture that it names last."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--out", str(out), *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert Path(lines[-1]).read_bytes().startswith(b"\x89PNG")
    return lines


def test_same_curve(tmp_path):
    lines = run("same_curve", tmp_path, "--steps", "12", "--seeds", "2")
    for seed, line in enumerate(lines[1:3]):
        number, theirs, ours, difference, largest = map(float, line.split())
        assert number == seed
        assert 2 < theirs < 6
        assert abs(difference) < 1e-3
        assert abs(ours - theirs) < 1e-3
        assert largest < 1e-3
    assert lines[3].startswith("ms a step: PyTorch ")
    assert "of a step" in lines[4]


def test_without_scale(tmp_path):
    lines = run("without_scale", tmp_path, "--steps", "2", "--widths", "16,256", "--init", "unit")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert [row[:2] for row in rows] == [
        ["16", "1/√width"],
        ["16", "none"],
        ["256", "1/√width"],
        ["256", "none"],
    ]
    saturation = [float(row[4].split()[0]) for row in rows]
    assert saturation[0] == pytest.approx(saturation[2], rel=0.2)  # the scale: width is no matter
    assert saturation[0] < saturation[1] < saturation[3]
    flow = [float(row[5].split()[0]) for row in rows]
    assert flow[0] > flow[1] > flow[3]


def test_qk_clip(tmp_path):
    lines = run("qk_clip", tmp_path, "--steps", "12", "--most", "5")
    none, clipped = (line.split() for line in lines[1:3])
    assert none[0] == "none"
    assert none[3] == "0"
    assert clipped[0] == "5"
    assert int(clipped[3]) > 0
    assert float(clipped[2]) < float(none[2])


def test_clip_brings_the_largest_logit_to_the_bound():
    from qk_clip import clip, largest_logits
    from transformer import Transformer, batches, corpus

    attend = partial(chumoku.torch.attention, mask=chumoku.Causal(), scale=1.0)
    model = Transformer(attend, layers=1, heads=4, head_width=64)
    batch = next(batches(corpus()[0], seed=0))[:, :-1]

    def logits():
        with torch.no_grad(), chumoku.torch.recording(model) as seen:
            model(batch)
        return largest_logits(seen)[0]

    before = logits()
    most = float(before.median())
    assert clip(model, before[None], most) == int((before > most).sum()) > 0
    assert torch.allclose(logits(), before.clamp(max=most), rtol=1e-4)


def test_what_is_recorded_is_what_the_matrix_says():
    from same_curve import ENTROPY, OURS, heads_of
    from transformer import Transformer, batches, corpus

    model = Transformer(OURS)
    batch = next(batches(corpus()[0], seed=0))
    taken = []
    hooks = [
        matrix.register_forward_hook(lambda _, x, y: taken.append(y))
        for layer in model.layers
        for matrix in (layer.attention.query, layer.attention.key)
    ]
    with chumoku.torch.recording(model, ENTROPY) as seen:
        model.loss(batch).backward()
    for hook in hooks:
        hook.remove()
    assert [entry.name for entry in seen] == ["layers.0.attention", "layers.1.attention"]
    for (query, key), entropy, largest in zip(
        zip(taken[::2], taken[1::2], strict=True), *heads_of(seen), strict=True
    ):
        q, k = (x.detach().double().unflatten(-1, (8, 16)).transpose(1, 2) for x in (query, key))
        scores = q @ k.transpose(-1, -2) / 4
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
        weights = F.softmax(scores, -1)
        expected = torch.special.entr(weights).sum(-1).mean((0, 2))
        assert torch.allclose(entropy.double(), expected, atol=1e-5)
        assert torch.allclose(largest.double(), scores.amax((0, 2, 3)), atol=1e-5)


def test_texts_are_repeatable_and_apart():
    from transformer import LENGTH, batches, corpus

    learned, held = corpus()
    assert len(learned) > 8 * len(held) > 8 * 20_000
    first, second = (next(batches(learned, seed=3)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (16, LENGTH + 1)
    assert not torch.equal(first, next(batches(learned, seed=4)))

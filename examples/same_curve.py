"""Trains one Transformer with PyTorch's attention and with chumoku's, and shows both curves.

    python examples/same_curve.py [--steps 1000] [--seeds 3] [--out build/examples]

Prints the final losses of each seed and what it costs to record entropy and max logit of every
head at each step, and writes same_curve.png.
"""

import argparse
import copy
import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.nn import functional as F
from transformer import Transformer, batches, corpus, judged, learn, optimizer

import chumoku
import chumoku.torch

THEIRS = partial(F.scaled_dot_product_attention, is_causal=True)
OURS = partial(chumoku.torch.attention, mask=chumoku.Causal())
ENTROPY = chumoku.Watch(entropy=True)


def heads_of(run: chumoku.Recording) -> tuple[list[Any], list[Any]]:
    """Mean entropy and largest logit of each head, layer by layer."""
    seen = [entry.statistics for entry in run]
    entropy = [facts.entropy.mean((0, 2)) for facts in seen]
    return entropy, [facts.max_logit.amax((0, 2)) for facts in seen]


def trained(attend: Any, seed: int, steps: int, watch: bool) -> tuple[Any, ...]:
    """A model after so many steps, its losses, and what was recorded."""
    model = Transformer(attend, seed=seed)
    update, text = optimizer(model), batches(corpus()[0], seed)
    losses, entropies, logits = [], [], []
    for _ in range(steps):
        if not watch:
            losses.append(learn(model, update, next(text)))
            continue
        with chumoku.torch.recording(model, ENTROPY) as run:
            losses.append(learn(model, update, next(text)))
        entropy, logit = heads_of(run)
        entropies.append(torch.cat(entropy))
        logits.append(torch.cat(logit))
    if watch:
        return model, losses, torch.stack(entropies), torch.stack(logits)
    return model, losses


def cost(model: Transformer, rounds: int) -> tuple[float, float, float]:
    """Median milliseconds of a step: with PyTorch's attention, with ours, and recorded too."""
    text = batches(corpus()[0], seed=0)
    models = [copy.deepcopy(model) for _ in range(3)]
    for layer in models[0].layers:
        layer.attention.attend = THEIRS
    updates = [optimizer(one) for one in models]
    times: list[list[float]] = [[], [], []]
    for turn in range(rounds + 3):
        batch = next(text)
        for place in sorted(range(3), key=lambda place: (place + turn) % 3):
            begun = time.perf_counter()
            context: AbstractContextManager[Any] = nullcontext()
            if place == 2:
                context = chumoku.torch.recording(models[2], ENTROPY)
            with context as run:
                learn(models[place], updates[place], batch)
            if run is not None:
                heads_of(run)
            if turn >= 3:  # the first steps are for warming up
                times[place].append(time.perf_counter() - begun)
    theirs, ours, recorded = (median(one) * 1e3 for one in times)
    return theirs, ours, recorded


def draw(
    curves: list[tuple[list[float], list[float]]], entropy: Any, logit: Any, path: Path
) -> None:
    """The curves, one over the other, and what the heads did meanwhile."""
    figure = Figure(figsize=(14, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for number, (theirs, ours) in enumerate(curves):
        first = number == 0
        left.plot(theirs, color="tab:orange", lw=3, alpha=0.5, label="PyTorch" if first else None)
        left.plot(ours, color="black", lw=0.7, label="chumoku" if first else None)
    left.set(xlabel="step", ylabel="loss (nats a byte)", title="Loss, one pair of curves a seed")
    left.legend()
    for layer, colour in enumerate(("tab:blue", "tab:red")):
        part = slice(8 * layer, 8 * layer + 8)
        middle.plot(entropy[:, part], color=colour, lw=0.7)
        right.plot(logit[:, part], color=colour, lw=0.7)
        middle.plot([], color=colour, label=f"layer {layer}")
    middle.set(xlabel="step", ylabel="entropy (nats)", title="Mean entropy of each head")
    middle.legend()
    right.set(xlabel="step", ylabel="logit", title="Largest logit of each head")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, measure, draw."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--out", type=Path, default=Path("build/examples"))
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    held = corpus()[1]
    curves = []
    print("seed   PyTorch   chumoku   difference   largest difference of a step's loss")
    for seed in range(given.seeds):
        model, theirs = trained(THEIRS, seed, given.steps, watch=False)
        mine, ours, entropy, logit = trained(OURS, seed, given.steps, watch=True)
        a, b = judged(model, held), judged(mine, held)
        apart = max(abs(one - other) for one, other in zip(theirs, ours, strict=True))
        print(f"{seed:4} {a:9.4f} {b:9.4f} {b - a:+12.1e} {apart:20.1e}", flush=True)
        curves.append((theirs, ours))
    theirs, ours, recorded = cost(mine, rounds=max(5, min(60, given.steps)))
    print(f"ms a step: PyTorch {theirs:.1f}, chumoku {ours:.1f}, recorded {recorded:.1f}")
    print(f"recording entropy and max logit costs {recorded / ours - 1:+.1%} of a step")
    draw(curves, entropy, logit, given.out / "same_curve.png")
    print(given.out / "same_curve.png")


if __name__ == "__main__":
    main()

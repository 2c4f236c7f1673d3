"""QK-Clip: query and key matrices are shrunk where a head's largest logit grows beyond a bound.

    python examples/qk_clip.py [--steps 300] [--most 30] [--out build/examples]

After each step, head by head: gamma = min(1, most / largest logit), and the head's query and key
matrices take a factor of sqrt(gamma) each (Kimi K2 technical report, 2025, which takes 100). The
largest logit comes out of the attention that was computed anyway. The model has no scale and a high
learning rate, so that its logits do grow. Prints both losses and writes qk_clip.png.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from transformer import Transformer, batches, corpus, judged, learn, optimizer

import chumoku
import chumoku.torch


def largest_logits(run: chumoku.Recording) -> Tensor:
    """The largest logit of each head: (layers, heads)."""
    return torch.stack([entry.statistics.max_logit.amax((0, 2)) for entry in run])


@torch.no_grad()
def clip(model: Transformer, logits: Tensor, most: float) -> int:
    """Shrink the heads whose largest logit is beyond `most`; how many they were."""
    shrink = torch.where(logits > most, (most / logits.clamp(min=most)).sqrt(), 1.0)
    for layer, factors in zip(model.layers, shrink, strict=True):
        for matrix in (layer.attention.query, layer.attention.key):
            matrix.weight.unflatten(0, (len(factors), -1)).mul_(factors[:, None, None])
    return int((shrink < 1).sum())


def trained(most: float | None, steps: int) -> tuple[float, list[float], Tensor, int]:
    """Held-out loss, losses, largest logits (steps, layers, heads), and heads that were shrunk."""
    attend = partial(chumoku.torch.attention, mask=chumoku.Causal(), scale=1.0)
    model = Transformer(attend, heads=4, head_width=64)
    update, text = optimizer(model, rate=1e-2), batches(corpus()[0], seed=0)
    losses, logits, clipped = [], [], 0
    for _ in range(steps):
        with chumoku.torch.recording(model) as run:
            losses.append(learn(model, update, next(text)))
        logits.append(largest_logits(run))
        if most is not None:
            clipped += clip(model, logits[-1], most)
    return judged(model, corpus()[1]), losses, torch.stack(logits), clipped


def main() -> None:
    """Train with and without, print, draw."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--most", type=float, default=30.0)
    options.add_argument("--out", type=Path, default=Path("build/examples"))
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    print("clip   held-out loss   largest logit   heads shrunk")
    for most, colour in ((None, "tab:red"), (given.most, "black")):
        held, losses, logits, clipped = trained(most, given.steps)
        name = "none" if most is None else f"{most:g}"
        print(f"{name:5} {held:14.4f} {logits.max():15.1f} {clipped:14}", flush=True)
        left.plot(losses, color=colour, lw=0.8, label=f"clip: {name}")
        right.plot(logits.flatten(1).amax(1), color=colour, lw=0.8, label=f"clip: {name}")
    left.set(xlabel="step", ylabel="loss (nats a byte)", title="Loss")
    right.axhline(given.most, color="grey", lw=0.8, ls=":")
    right.set(xlabel="step", ylabel="logit", yscale="log", title="Largest logit of any head")
    right.legend()
    figure.savefig(given.out / "qk_clip.png", dpi=110)
    print(given.out / "qk_clip.png")


if __name__ == "__main__":
    main()

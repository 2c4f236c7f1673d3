"""Trains the same Transformer with the scale 1/sqrt(width) and without it, and records both.

    python examples/without_scale.py [--steps 300] [--widths 16,32,64,128,256,512]
        [--init default|unit] [--out build/examples]

For every width of a head: what entropy, saturation, flow and the gradients of the query and key
matrices do. `--init unit` gives queries and keys of variance 1, as the argument for the scale
assumes (Vaswani et al. 2017, section 3.2.1); PyTorch's default gives them a third of it. Prints a
table and writes without_scale_<init>.png.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from transformer import LENGTH, Transformer, batches, corpus, judged, learn, optimizer

import chumoku
import chumoku.torch

WATCH = chumoku.Watch(entropy=True, saturation=True)
FACTS = ("loss", "entropy", "saturation", "flow", "gradient of query", "gradient of key")


class Run(NamedTuple):
    """One training: the loss of a text it did not see, and FACTS of each step."""

    held: float
    facts: Tensor  # (steps, FACTS)


def gradient(model: Transformer, name: str) -> float:
    """Norm of the gradient of the query or key matrices, over all layers."""
    parts = [getattr(layer.attention, name).weight.grad for layer in model.layers]
    return float(torch.stack([part.norm() for part in parts]).norm())


def trained(head_width: int, scaled: bool, init: str, steps: int) -> Run:
    """Two layers of two heads; everything but the scale is the same for both."""
    scale = head_width**-0.5 if scaled else 1.0
    attend = partial(chumoku.torch.attention, mask=chumoku.Causal(), scale=scale)
    model = Transformer(attend, heads=2, head_width=head_width)
    if init == "unit":
        for layer in model.layers:
            for matrix in (layer.attention.query, layer.attention.key):
                torch.nn.init.normal_(matrix.weight, std=matrix.in_features**-0.5)
    update, text = optimizer(model), batches(corpus()[0], seed=0)
    rows = []
    for _ in range(steps):
        with chumoku.torch.recording(model, WATCH) as run:
            loss = learn(model, update, next(text))
        seen = [entry.statistics for entry in run]
        means = [
            torch.stack([getattr(facts, name).mean() for facts in seen]).mean().item()
            for name in ("entropy", "saturation", "flow")
        ]
        rows.append([loss, *means, gradient(model, "query"), gradient(model, "key")])
    return Run(judged(model, corpus()[1]), torch.tensor(rows))


def table(runs: dict[tuple[int, bool], Run]) -> str:
    """First step and mean of the last tenth, with the scale and without."""
    lines = [
        "| width | scale | held-out loss | entropy | saturation | flow | gradient of query"
        " | gradient of key |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (width, scaled), run in runs.items():
        last = run.facts[-max(1, len(run.facts) // 10) :].mean(0)
        cells = [f"{a:.3g} → {b:.3g}" for a, b in zip(run.facts[0], last, strict=True)][1:]
        name = "1/√width" if scaled else "none"
        lines.append(f"| {width} | {name} | {run.held:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(runs: dict[tuple[int, bool], Run], path: Path) -> None:
    """A row for each fact, a column for each width."""
    widths = sorted({width for width, _ in runs})
    figure = Figure(figsize=(2.4 * len(widths) + 1, 11), layout="constrained")
    axes = figure.subplots(len(FACTS), len(widths), sharex=True, sharey="row", squeeze=False)
    for column, width in enumerate(widths):
        axes[0][column].set_title(f"width {width}")
        for row, name in enumerate(FACTS):
            plot = axes[row][column]
            for scaled, colour in ((True, "black"), (False, "tab:red")):
                label = "1/√width" if scaled else "no scale"
                plot.plot(runs[width, scaled].facts[:, row], color=colour, lw=0.8, label=label)
            if name.startswith("gradient"):
                plot.set_yscale("log")
            if column == 0:
                plot.set_ylabel(name)
    axes[0][0].legend()
    figure.supxlabel("step")
    figure.savefig(path, dpi=90)


def main() -> None:
    """Train all widths, print the table, draw."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--widths", default="16,32,64,128,256,512")
    options.add_argument("--init", choices=("default", "unit"), default="default")
    options.add_argument("--out", type=Path, default=Path("build/examples"))
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    runs = {
        (width, scaled): trained(width, scaled, given.init, given.steps)
        for width in map(int, given.widths.split(","))
        for scaled in (True, False)
    }
    uniform = sum(torch.arange(1, LENGTH + 1).log()).item() / LENGTH
    print(table(runs))
    print(f"\nfirst step → mean of the last tenth; entropy of uniform weights: {uniform:.2f} nats")
    path = given.out / f"without_scale_{given.init}.png"
    draw(runs, path)
    print(path)


if __name__ == "__main__":
    main()

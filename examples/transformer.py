"""What the examples train: a small decoder, on a text that comes with every Python.

The text is Python's language reference as `help()` shows it (pydoc_data.topics), byte by byte.
"""

from collections.abc import Callable, Iterator
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# query, key and value, (batch, heads, length, head width), to what is seen of value.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

SYMBOLS = 256  # bytes
LENGTH = 128


class Attention(nn.Module):
    """Four matrices around `attend`; the heads of value are always as wide as width / heads."""

    def __init__(self, width: int, heads: int, head_width: int, attend: Attend) -> None:
        super().__init__()
        self.heads, self.attend = heads, attend
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key = nn.Linear(width, heads * head_width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.join = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) to the same."""
        parts = (matrix(x) for matrix in (self.query, self.key, self.value))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.join(self.attend(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention, then a feed-forward network, each added to what came in."""

    def __init__(self, width: int, heads: int, head_width: int, attend: Attend) -> None:
        super().__init__()
        self.attention = Attention(width, heads, head_width, attend)
        self.mix = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) to the same."""
        x = x + self.attention(self.norm(x))
        return x + self.mix(x)


class Transformer(nn.Module):
    """Bytes in, the logits of the next byte out; PyTorch's own initialisation, from a seed."""

    def __init__(
        self,
        attend: Attend,
        *,
        layers: int = 2,
        width: int = 128,
        heads: int = 8,
        head_width: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.symbols = nn.Embedding(SYMBOLS, width)
        self.places = nn.Embedding(LENGTH, width)
        self.layers = nn.ModuleList(Layer(width, heads, head_width, attend) for _ in range(layers))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, SYMBOLS))

    def forward(self, text: Tensor) -> Tensor:
        """(batch, length) whole numbers to (batch, length, symbols)."""
        x = self.symbols(text) + self.places.weight[: text.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.last(x)

    def loss(self, text: Tensor) -> Tensor:
        """Mean nats for each next byte."""
        return F.cross_entropy(self(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def corpus() -> tuple[Tensor, Tensor]:
    """The text as whole numbers: nine tenths to learn from, the last tenth to judge by."""
    text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    symbols = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    cut = len(symbols) * 9 // 10
    return symbols[:cut], symbols[cut:]


def batches(text: Tensor, seed: int, size: int = 16) -> Iterator[Tensor]:
    """Pieces of LENGTH + 1 bytes from random places, for ever; equal seeds give equal pieces."""
    random = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - LENGTH, (size,), generator=random)
        yield text[starts[:, None] + torch.arange(LENGTH + 1)]


def optimizer(model: nn.Module, rate: float = 1e-3) -> Any:
    """Adam, without decay."""
    return torch.optim.Adam(model.parameters(), lr=rate)


def learn(model: Transformer, update: Any, batch: Tensor) -> float:
    """One step: forward, backward, update. Gradients stay until the next step."""
    update.zero_grad()
    loss = model.loss(batch)
    loss.backward()
    update.step()
    return loss.item()


@torch.no_grad()
def judged(model: Transformer, text: Tensor, size: int = 16) -> float:
    """Mean nats a byte over a text that was not learned from."""
    pieces = text[: len(text) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    losses = [model.loss(part) * len(part) for part in pieces.split(size)]
    return float(sum(losses) / len(pieces))

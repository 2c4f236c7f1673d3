"""Masks and dropout as operators take them: text, tensors and numbers."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import chumoku.mask
from chumoku.dropout import Dropout
from chumoku.errors import UnavailableError
from chumoku.mask import Custom, Mask, as_mask


@dataclass(frozen=True)
class Form:
    """A mask whose numbers are tensors, as masks inside a compiled graph must be."""

    text: str
    tables: tuple[Tensor, ...]


def form_of(mask: Mask | Form | Tensor | None, tables: list[Tensor]) -> str:
    """The text of a mask; its arrays are put into `tables`. torch.compile traces it."""
    if mask is None:
        return ""
    if isinstance(mask, Form):
        tables.extend(mask.tables)
        return mask.text
    if isinstance(mask, Tensor):
        tables.append(mask)
        return "{'mask': 'Cells', 'array': {'table': 0}}"
    return _text(as_mask(mask), tables)


def mask_of(form: str, tables: list[Tensor]) -> Mask | None:
    """The mask again."""
    mask: Mask | None = _rebuilt(ast.literal_eval(form), tables) if form else None
    return mask


# A seed that is the last of the tables.
IN_TABLES = -1


class Drawn(NamedTuple):
    """Dropout whose seed is drawn inside a compiled graph, where it is no number yet."""

    rate: float
    seed: Tensor


def drawn(rate: float, number: bool = False) -> Any:
    """Dropout with a seed of PyTorch's own generator, so that torch.manual_seed decides.

    A `Drawn` while compiling, unless the seed must be a number; None for a rate of 0.
    """
    if not rate:
        return None
    seed = torch.randint(2**63 - 1, (), dtype=torch.int64)
    if torch.compiler.is_compiling() and not number:
        return Drawn(rate, seed)
    return Dropout(rate, int(seed))


def dropout_of(rate: float, seed: int, tables: list[Tensor]) -> Dropout | None:
    """The dropout again."""
    if not rate:
        return None
    return Dropout(rate, int(tables[-1]) if seed == IN_TABLES else seed)


def _text(given: Any, tables: list[Tensor]) -> str:
    if isinstance(given, Custom):
        raise UnavailableError(
            "mask",
            got="a Custom mask, whose function has no text, for an operator",
            expected="a mask without a function",
            cure="Give a boolean tensor; gradients of first order need none.",
        )
    if isinstance(given, Mask):
        parts = [f"'mask': '{type(given).__name__}'"]
        for name, value in vars(given).items():
            if not name.startswith("_"):
                parts.append(f"'{name}': {_text(value, tables)}")
        return "{" + ", ".join(parts) + "}"
    if isinstance(given, tuple):
        return "[" + ", ".join([_text(part, tables) for part in given]) + "]"
    if isinstance(given, (np.ndarray, Tensor)):
        tables.append(given if isinstance(given, Tensor) else torch.from_numpy(np.array(given)))
        return f"{{'table': {len(tables) - 1}}}"
    if isinstance(given, str):
        return f"'{given}'"
    return str(given)


def _rebuilt(described: Any, tables: list[Tensor]) -> Any:
    if isinstance(described, list):
        return tuple(_rebuilt(part, tables) for part in described)
    if not isinstance(described, dict):
        return described
    if "table" in described:
        table = tables[described["table"]]
        return table.numpy() if table.device.type == "cpu" else table
    fields = {name: _rebuilt(part, tables) for name, part in described.items() if name != "mask"}
    return getattr(chumoku.mask, described["mask"])(**fields)

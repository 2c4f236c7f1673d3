"""recording() of a model: each attention call under the name of the module that makes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from chumoku.checks import shown
from chumoku.errors import InvalidTypeError
from chumoku.record import BUDGET, Recording, label
from chumoku.record import recording as plain_recording
from chumoku.statistics import Watch


@contextmanager
def recording(
    model: torch.nn.Module,
    watch: Watch | None = None,
    *,
    inputs: bool = False,
    budget: int | None = BUDGET,
) -> Iterator[Recording]:
    """chumoku.recording, with calls named after the innermost module of `model` around them.

    Parameters
    ----------
    model : Module
        Its attention must be chumoku's: by `use`, `replace` or `chumoku.torch.attention`. Of what
        torch.compile has compiled the modules are not seen: calls are "attention N" there.
    watch, inputs, budget
        As `chumoku.recording`.

    Yields
    ------
    Recording
        A call outside the model is "attention N". Facts hold no gradients.
    """
    if not isinstance(model, torch.nn.Module):
        raise InvalidTypeError("model", shown(model), "a torch.nn.Module")
    model = getattr(model, "_orig_mod", model)
    modules = {name: module for name, module in model.named_modules() if name}
    with named(modules), plain_recording(watch, inputs=inputs, budget=budget) as run:
        yield run


@contextmanager
def named(modules: dict[str, torch.nn.Module]) -> Iterator[None]:
    """Inside the block calls are labelled with the innermost of these modules around them."""
    inside: list[tuple[str, AbstractContextManager[None]]] = []

    # Compilers trace the hooks, one of which may then run without the other.
    def enter(name: str) -> Any:
        def hook(*_: Any) -> None:
            if not torch.compiler.is_compiling():
                inside.append((name, label(name)))
                inside[-1][1].__enter__()

        return hook

    def leave(name: str) -> Any:
        def hook(*_: Any) -> None:
            if not torch.compiler.is_compiling() and inside and inside[-1][0] == name:
                inside.pop()[1].__exit__(None, None, None)

        return hook

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(module.register_forward_pre_hook(enter(name)))
            stack.enter_context(module.register_forward_hook(leave(name), always_call=True))
        yield

"""watch(): a model of transformers on chumoku's attention, and what each layer saw."""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from threading import Lock
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from chumoku.checks import list_of, shown, whole
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.huggingface.bias import IMPLEMENTATION, computed_bias
from chumoku.huggingface.function import NAME, SILENCED
from chumoku.record import BUDGET, Recording, checked, opened
from chumoku.statistics import Watch
from chumoku.torch import replace, restore
from chumoku.torch.record import named

_EAGER = (
    'For these, load the model with attn_implementation="eager" and pass output_attentions=True.'
)


@contextmanager
def watch(
    model: torch.nn.Module,
    watch: Watch | None = None,
    *,
    layers: int | str | Iterable[int | str] | None = None,
    heads: int | Iterable[int] | None = None,
    without: Iterable[tuple[int | str, int]] = (),
    inputs: bool = False,
    budget: int | None = BUDGET,
) -> Iterator[Recording]:
    """Run a model of transformers on chumoku's attention and see every layer and head.

    Parameters
    ----------
    model : Module
        A model of transformers, compiled or wrapped or not. Its parts (text, vision, audio) are
        switched too. After the block all of them have the implementation that they had before.
    watch : Watch, optional
        Facts to collect besides lse and max logit.
    layers : int, str or several, optional
        Which attention layers to record; all when not given. A number is the layer's, counted
        from 0, in every stack; text is the name of a module, with * for any part of it. The
        others run on chumoku too.
    heads : int or several, optional
        Which heads to keep.
    without : pairs of (layer, head), optional
        Heads to silence: their result is 0 before the output matrix.
    inputs, budget
        As `chumoku.recording`.

    Yields
    ------
    Recording
        An entry for each call of each layer, under the name of its module (inside another block,
        under the name that it has there).

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        It is no model of transformers, or has no such layer or head.
    UnavailableError
        None of its attention layers can be reached.

    Warns
    -----
    RuntimeWarning
        Some layers cannot be reached; they are named.
    """
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, torch.nn.Module) or not _parts(model):
        cure = "Models of other libraries: chumoku.torch.recording with chumoku.torch.use()."
        raise InvalidTypeError("model", shown(model), "a model of transformers", cure)
    run = checked(watch, inputs, budget)
    reached, missed = attention_layers(model)
    numbers = _numbers(model, reached)
    wanted = None if layers is None else _chosen("layers", layers, numbers)
    run.heads = None if heads is None else _heads(heads)
    with ExitStack() as stack:
        stack.enter_context(_switched(model))
        missed |= _unswitched(model)
        _tell(model, {n: m for n, m in reached.items() if n not in missed}, missed)
        for name, module in reached.items():
            stack.enter_context(_holds(module, NAME, name))
        # A block around this one may have named them differently.
        if wanted is not None:
            run.names = frozenset(vars(reached[name])[NAME] for name in wanted)
        kind: type[torch.nn.Module] = torch.nn.MultiheadAttention
        plain = {name: module for name, module in reached.items() if type(module) is kind}
        apart = {name: number for name, number in numbers.items() if name not in plain}
        for name, heads_of in _silenced(without, apart).items():
            stack.enter_context(_silent(reached[name], heads_of))
        stack.enter_context(_replaced(plain))
        stack.enter_context(computed_bias(reached.values()))
        stack.enter_context(opened(run))
        yield run


# Layers


def attention_layers(
    model: torch.nn.Module,
) -> tuple[dict[str, torch.nn.Module], dict[str, torch.nn.Module]]:
    """Attention layers by name: those that can be switched, and those that cannot.

    Those that ask AttentionInterface can, and PyTorch's own, which have a drop-in.
    """
    reached, others = {}, {}
    for name, module in model.named_modules():
        if _calls_interface(type(module)) or type(module) is torch.nn.MultiheadAttention:
            reached[name] = module
        elif _is_attention(module):
            others[name] = module
    return reached, others


def _calls_interface(kind: type) -> bool:
    """Whether a forward method asks AttentionInterface for its attention."""
    forward = inspect.unwrap(getattr(kind, "forward", object))
    code = getattr(forward, "__code__", None)
    return code is not None and "get_interface" in code.co_names


def _is_attention(module: torch.nn.Module) -> bool:
    """Whether a layer is attention that computes by itself: no other attention is inside it."""
    if not _called_attention(module):
        return False
    inside = list(module.modules())[1:]
    return any(True for _ in module.parameters()) and not any(
        _called_attention(part) or _calls_interface(type(part)) for part in inside
    )


def _called_attention(module: torch.nn.Module) -> bool:
    return re.search(r"Attention|Attn", type(module).__name__) is not None


def _numbers(model: torch.nn.Module, names: Iterable[str]) -> dict[str, int | None]:
    """Which layer of its stack each is: the first number in its name inside the nearest model."""
    parts = [name for name, m in model.named_modules() if isinstance(m, PreTrainedModel)]
    found: dict[str, int | None] = {}
    for name in names:
        around = max(
            (part for part in parts if f"{name}.".startswith(f"{part}.") or not part), key=len
        )
        own = name.removeprefix(around).split(".")
        found[name] = next((int(word) for word in own if word.isdecimal()), None)
    return found


# How many blocks hold a layer's name or a configuration's implementation, and what was before.
_held: dict[tuple[int, str], tuple[int, Any]] = {}
_MISSING: Any = object()
_holding = Lock()


@contextmanager
def _holds(thing: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute until the last of the blocks that hold it ends, in whatever order."""
    key = id(thing), name
    with _holding:
        count, before = _held.get(key, (0, vars(thing).get(name, _MISSING)))
        _held[key] = count + 1, before
        if not count and value is not _MISSING:
            vars(thing)[name] = value
    try:
        yield
    finally:
        with _holding:
            count, before = _held.pop(key)
            if count > 1:
                _held[key] = count - 1, before
            elif before is _MISSING:
                vars(thing).pop(name, None)
            else:
                vars(thing)[name] = before


@contextmanager
def _silent(module: torch.nn.Module, heads: set[int]) -> Iterator[None]:
    """A layer silences these heads, beside those that it silences already."""
    before = vars(module).get(SILENCED, frozenset())
    vars(module)[SILENCED] = before | heads
    try:
        yield
    finally:
        if before:
            vars(module)[SILENCED] = before
        else:
            vars(module).pop(SILENCED, None)


def _silenced(
    pairs: Iterable[tuple[int | str, int]], numbers: dict[str, int | None]
) -> dict[str, set[int]]:
    """The heads to silence in each layer."""
    found: dict[str, set[int]] = {}
    for pair in list_of("without", pairs, "pairs of (layer, head)"):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise InvalidTypeError("without", shown(pair), "pairs of (layer, head)")
        for name in _chosen("without", pair[0], numbers):
            found.setdefault(name, set()).add(whole("without", pair[1], 0))
    return found


@contextmanager
def _replaced(modules: dict[str, torch.nn.Module]) -> Iterator[None]:
    """Inside the block PyTorch's own attention layers are chumoku's."""
    for module in modules.values():
        replace(module)
    try:
        with named(modules):
            yield
    finally:
        for module in modules.values():
            restore(module)


def _chosen(
    argument: str,
    layers: int | str | Iterable[int | str],
    numbers: dict[str, int | None],
) -> frozenset[str]:
    """The names of the layers meant."""
    several = [layers] if _is_one(layers) else list_of(argument, layers, "numbers or names")
    found: set[str] = set()
    for one in several:
        if not _is_one(one):
            raise InvalidTypeError(argument, shown(one), "numbers or names of layers")
        if isinstance(one, str):
            meant = [name for name in numbers if fnmatchcase(name, one)]
        else:
            meant = [name for name, number in numbers.items() if number == one]
        if not meant:
            raise InvalidArgumentError(argument, shown(one), f"one of: {', '.join(numbers)}")
        found.update(meant)
    if not found:
        raise InvalidArgumentError(argument, "no layer", "one at least, or None for all")
    return frozenset(found)


def _is_one(layer: object) -> bool:
    return isinstance(layer, (int, np.integer, str)) and not isinstance(layer, bool)


def _heads(heads: int | Iterable[int]) -> tuple[int, ...]:
    one = isinstance(heads, (int, np.integer))
    several = [heads] if one else list_of("heads", heads, "one number or several")
    found = tuple(whole("heads", head, 0) for head in several)
    if not found or len(set(found)) < len(found):
        raise InvalidArgumentError("heads", shown(several), "different heads, one at least")
    return found


# The switch


def _parts(model: torch.nn.Module) -> list[PreTrainedModel]:
    """The models of transformers that a module is or holds."""
    return [module for module in model.modules() if isinstance(module, PreTrainedModel)]


def _configs(model: torch.nn.Module) -> list[Any]:
    """The configurations of a model and of all of its parts, each once."""
    found: dict[int, Any] = {}

    def add(config: Any) -> None:
        if id(config) not in found:
            found[id(config)] = config
            for name in getattr(config, "sub_configs", {}):
                if getattr(config, name, None) is not None:
                    add(getattr(config, name))

    for part in _parts(model):
        add(part.config)
    return list(found.values())


@contextmanager
def _switched(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block every part that can be is on chumoku's attention."""
    with ExitStack() as stack:
        for config in _configs(model):
            # The public name would switch a configuration's parts with it.
            stack.enter_context(_holds(config, "_attn_implementation_internal", _MISSING))
        told = logging.getLogger("transformers.modeling_utils")
        disabled, told.disabled = told.disabled, True  # what it warns of is told by _tell
        try:
            for part in _parts(model):
                part.set_attn_implementation(IMPLEMENTATION)
        finally:
            told.disabled = disabled
        yield


def _unswitched(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Layers whose model stayed on its own implementation."""
    found: dict[str, torch.nn.Module] = {}
    for name, module in model.named_modules():
        if not isinstance(module, PreTrainedModel):
            continue
        if module.config._attn_implementation != IMPLEMENTATION:
            reached, _ = attention_layers(module)
            found |= {f"{name}.{inner}" if name else inner: m for inner, m in reached.items()}
    return found


def _tell(model: torch.nn.Module, reached: dict[str, Any], missed: dict[str, Any]) -> None:
    """Name the layers that stay unseen."""
    if not missed and reached:
        return
    kinds = sorted({type(module).__name__ for module in missed.values()})
    names = list(missed)
    listed = ", ".join(names[:4]) + (f", ... {len(names) - 4} more" if len(names) > 4 else "")
    what = f"{type(model).__name__}: {listed or 'no layer'} ({', '.join(kinds) or 'no attention'})"
    if not reached:
        raise UnavailableError(
            "model",
            got=f"{what}, outside of transformers' attention interface",
            expected="attention layers that can be reached",
            cure=_EAGER,
        )
    warnings.warn(
        f"chumoku does not reach these attention layers of {what}: they are outside of"
        f" transformers' attention interface and run as before, unseen. {_EAGER}",
        RuntimeWarning,
        stacklevel=4,
    )

from collections.abc import Sequence
from typing import Any

def attention(
    query: object,
    key: object,
    value: object,
    output: object,
    scale: float,
    mask: tuple[Any, ...] | None,
    queries: int,
    row_index: object | None,
    position: object | None,
    facts: dict[str, Any],
    top: int,
) -> None: ...
def weights(
    query: object,
    key: object,
    lse: object,
    output: object,
    scale: float,
    mask: tuple[Any, ...] | None,
    queries: int,
    row_index: object | None,
    key_index: object | None,
) -> None: ...
def threads() -> int: ...
def set_threads(count: int) -> None: ...
def set_automatic(asked: int, openmp: int, quota: int) -> None: ...
def beside_host(now: bool) -> None: ...
def instruction_set() -> str: ...
def instruction_sets() -> Sequence[str]: ...
def set_instruction_set(name: str) -> bool: ...

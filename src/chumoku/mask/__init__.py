"""Masks: immutable values that say which keys a query may look at.

Each mask can be read in two ways that share no code. `Mask.allowed` is the definition, index
arithmetic on whole blocks; `Mask.lower` gives the compact forms that kernels walk. True always
means "may look".
"""

from chumoku.mask.base import MAX_NEST, All, Any_, Cells, Mask, as_mask
from chumoku.mask.lowered import (
    MAX_RUNS,
    Asked,
    Band,
    Boolean,
    Equal,
    Joined,
    Lowered,
    Runs,
)
from chumoku.mask.shape import FARTHEST, Shape, broadcast
from chumoku.mask.values import (
    Causal,
    Chunks,
    Custom,
    Documents,
    Lengths,
    Prefix,
    Window,
    position_offset,
)

__all__ = [
    "FARTHEST",
    "MAX_NEST",
    "MAX_RUNS",
    "All",
    "Any_",
    "Asked",
    "Band",
    "Boolean",
    "Causal",
    "Cells",
    "Chunks",
    "Custom",
    "Documents",
    "Equal",
    "Joined",
    "Lengths",
    "Lowered",
    "Mask",
    "Prefix",
    "Runs",
    "Shape",
    "Window",
    "as_mask",
    "broadcast",
    "position_offset",
]

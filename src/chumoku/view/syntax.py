"""The scene of heads that were measured with gold syntax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chumoku.view.scene import Model

if TYPE_CHECKING:
    from chumoku.heads import SyntaxMap


@dataclass(frozen=True)
class SyntaxScene:
    """Which heads look along the relations of a treebank.

    Attributes
    ----------
    model : Model
    treebank : str
        The file, as it was given.
    syntax : chumoku.heads.SyntaxMap
    """

    model: Model
    treebank: str
    syntax: SyntaxMap

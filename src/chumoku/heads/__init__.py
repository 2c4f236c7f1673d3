"""Viewpoints: what each head of an encoder looks at, how sure that is, over how many tokens.

A role is claimed when its measure passes a bar, not when it is the largest of several. Every
measure comes with an interval, with what a head would give that looks at all tokens alike, and
with the number of rows it rests on.
"""

from chumoku.heads.roles import BROAD, ROLES, Role
from chumoku.heads.sentences import Sentence, parse_treebank, read_treebank
from chumoku.heads.syntax import DIRECTIONS, Relation, Score, SyntaxMap, treebank
from chumoku.heads.text import Encoded, Word
from chumoku.heads.viewpoints import ENOUGH, MIXED, HeadMap, HeadRole, Measure, viewpoints

__all__ = [
    "BROAD",
    "DIRECTIONS",
    "ENOUGH",
    "MIXED",
    "ROLES",
    "Encoded",
    "HeadMap",
    "HeadRole",
    "Measure",
    "Relation",
    "Role",
    "Score",
    "Sentence",
    "SyntaxMap",
    "Word",
    "parse_treebank",
    "read_treebank",
    "treebank",
    "viewpoints",
]

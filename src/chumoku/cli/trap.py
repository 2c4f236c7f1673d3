"""chumoku trap: the softmax trap, in numbers and in a model."""

from __future__ import annotations

from collections.abc import Sequence

from chumoku.cli import given
from chumoku.cli.opening import encoder as encoder_of
from chumoku.cli.parser import Parser, factor
from chumoku.cli.shown import show
from chumoku.trap import saturated_heads, three_rows, width_study
from chumoku.view.scene import TrapScene, model_of
from chumoku.view.terminal import trap

EXAMPLES = (
    "chumoku trap",
    "chumoku trap 'その猫は可愛い'",
    "chumoku trap 'その猫は可愛い' --factor 4",
)
FACTOR = 8.0


def run(arguments: Sequence[str], lang: str) -> int:
    """Show the trap; with a text, in a model's heads too."""
    parser = Parser("trap", lang, examples=EXAMPLES)
    parser.text("text_trap")
    parser.option("--factor", type=factor(lang), default=FACTOR, metavar="X", key="factor")
    parser.common()
    options = parser.read(arguments)
    model, text, left_out, heads = None, None, 0, None
    if options.text:
        text = given.text(options.text, "trap", lang)
        encoder = encoder_of(options.model, lang)
        encoding = encoder.encode(text)
        model, left_out = model_of(encoder), encoding.truncated
        heads = saturated_heads(encoding, factor=options.factor)
    study = width_study()
    scene = TrapScene(three_rows(), study, study[0].facts.keys, model, text, left_out, heads)
    show("trap", scene, lambda page: trap(scene, page), options, arguments, lang)
    return 0

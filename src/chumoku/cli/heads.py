"""chumoku heads: what each head of a model looks at."""

from __future__ import annotations

from collections.abc import Sequence

from chumoku.cli import given
from chumoku.cli.parser import Parser
from chumoku.cli.shown import show
from chumoku.heads import viewpoints
from chumoku.view.scene import HeadsScene, model_of
from chumoku.view.terminal import heads

EXAMPLES = (
    "chumoku heads 'その猫は可愛い' 'The cat sat on the mat'",
    "echo 'The cat sat on the mat' | chumoku heads -",
)


def run(arguments: Sequence[str], lang: str) -> int:
    """Map the roles of all heads over the texts."""
    parser = Parser("heads", lang, examples=EXAMPLES)
    parser.text("texts")
    parser.common()
    options = parser.read(arguments)
    texts = given.texts(options.text, "heads", lang)
    encoder = given.model(options.model)
    encodings = [encoder.encode(text) for text in texts]
    scene = HeadsScene(
        model=model_of(encoder),
        texts=tuple(texts),
        left_out=sum(encoding.truncated for encoding in encodings),
        raw=viewpoints(encodings),
        words=viewpoints(encodings, special=False),
    )
    show("heads", scene, lambda page: heads(scene, page), options, arguments, lang)
    return 0

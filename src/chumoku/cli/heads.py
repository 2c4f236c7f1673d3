"""chumoku heads: what each head of a model looks at."""

from __future__ import annotations

from collections.abc import Sequence

from chumoku.cli import given
from chumoku.cli.parser import Parser
from chumoku.cli.shown import progress, show
from chumoku.heads import viewpoints
from chumoku.view.scene import HeadsScene, model_of
from chumoku.view.terminal import heads
from chumoku.words import say

EXAMPLES = (
    "chumoku heads 'その猫は可愛い' 'The cat sat on the mat'",
    "echo 'The cat sat on the mat' | chumoku heads -",
)
# Texts that are read unless all are asked for: each keeps some 4 MB of the default model's numbers.
TEXTS = 100


def run(arguments: Sequence[str], lang: str) -> int:
    """Map the roles of all heads over the texts."""
    parser = Parser("heads", lang, examples=EXAMPLES)
    parser.text("texts")
    parser.option("--all", action="store_true", key="all_texts", fields={"most": TEXTS})
    parser.common()
    options = parser.read(arguments)
    every = given.texts(options.text, "heads", lang)
    texts = every if options.all else every[:TEXTS]
    encoder = given.model(options.model)
    encodings = []
    for place, text in enumerate(texts):
        progress(say("heads.reading", lang, place=place + 1, all=len(texts)))
        encodings.append(encoder.encode(text))
    progress("")
    scene = HeadsScene(
        model=model_of(encoder),
        texts=tuple(texts),
        unread=len(every) - len(texts),
        left_out=sum(encoding.truncated for encoding in encodings),
        raw=viewpoints(encodings),
        words=viewpoints(encodings, special=False),
    )
    show("heads", scene, lambda page: heads(scene, page), options, arguments, lang)
    return 0

"""chumoku heads: what each head of a model looks at."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence

from chumoku.cli import given
from chumoku.cli.opening import text_model
from chumoku.cli.parser import Parser, Usage
from chumoku.cli.shown import progress, show
from chumoku.heads import Sentence, parse_treebank, treebank, viewpoints
from chumoku.view.scene import HeadsScene, model_of
from chumoku.view.syntax import SyntaxScene
from chumoku.view.terminal import heads, syntax
from chumoku.words import say

EXAMPLES = (
    "chumoku heads 'その猫は可愛い' 'The cat sat on the mat'",
    "echo 'The cat sat on the mat' | chumoku heads -",
    "chumoku heads --treebank en_ewt-ud-dev.conllu",
)
# Texts that are read unless all are asked for: each keeps some 4 MB of the default model's numbers.
TEXTS = 100


def run(arguments: Sequence[str], lang: str) -> int:
    """Map the roles of all heads over the texts."""
    parser = Parser("heads", lang, examples=EXAMPLES)
    parser.text("texts")
    parser.option("--all", action="store_true", key="all_texts", fields={"most": TEXTS})
    parser.option("--treebank", metavar="FILE", key="treebank")
    parser.common()
    options = parser.read(arguments)
    if options.treebank is not None:
        return _treebank(options, arguments, lang)
    every = given.texts(options.text, "heads", lang)
    texts = every if options.all else every[:TEXTS]
    encoder = text_model(options.model, lang)
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


def _treebank(options: Namespace, arguments: Sequence[str], lang: str) -> int:
    """Measure all heads with gold syntax."""
    if options.text or options.all:
        hint = say("usage.try", lang, command="heads")
        raise Usage(f"{say('usage.treebank_alone', lang)} {hint}")
    sentences = parse_treebank(given.treebank(options.treebank, lang))
    encoder = text_model(options.model, lang)
    found = treebank(encoder, _told(sentences, lang))
    progress("")
    scene = SyntaxScene(model_of(encoder), options.treebank, found)
    show("heads", scene, lambda page: syntax(scene, page), options, arguments, lang)
    return 0


def _told(sentences: Sequence[Sentence], lang: str) -> Iterator[Sentence]:
    """The sentences, while a person is told how far the work is."""
    for place, sentence in enumerate(sentences):
        progress(say("heads.reading", lang, place=place + 1, all=len(sentences)))
        yield sentence

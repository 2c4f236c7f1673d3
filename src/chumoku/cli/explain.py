"""chumoku explain: the four steps of attention for one token."""

from __future__ import annotations

from collections.abc import Sequence

from chumoku.cli import given
from chumoku.cli.opening import encoder as encoder_of
from chumoku.cli.parser import Parser, whole
from chumoku.cli.shown import show
from chumoku.view.explanation import explanation
from chumoku.view.scene import model_of
from chumoku.view.terminal import explain

EXAMPLES = (
    "chumoku explain 'その猫は可愛い' --query その",
    "chumoku explain 'その猫は可愛い' --query 猫 --layer 2 --head 6",
)


def run(arguments: Sequence[str], lang: str) -> int:
    """Explain one head's look from one token."""
    parser = Parser("explain", lang, examples=EXAMPLES)
    parser.text()
    parser.option("--query", metavar="TOKEN", key="query")
    parser.option("--layer", type=whole(lang), metavar="L", key="layer")
    parser.option("--head", type=whole(lang), metavar="H", key="head")
    parser.option("--all", action="store_true", key="all")
    parser.common()
    options = parser.read(arguments)
    given.check_pair(options.layer, options.head, lang)
    text = given.text(options.text, "explain", lang)
    encoder = encoder_of(options.model, lang)
    given.check_head(model_of(encoder), options.layer, options.head, lang)
    encoding = encoder.encode(text)
    if options.query is None:
        query = next((i for i, token in enumerate(encoding.tokens) if not token.special), 0)
    else:
        query = given.token(encoding.tokens, options.query, lang)
    told = explanation(encoder, text, encoding, query, options.layer, options.head)
    show(
        "explain",
        told,
        lambda page: explain(told, page, every=options.all),
        options,
        arguments,
        lang,
    )
    return 0

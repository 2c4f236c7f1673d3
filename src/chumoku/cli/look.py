"""chumoku look: where each token of a text looks."""

from __future__ import annotations

from collections.abc import Sequence

from chumoku.cli import given
from chumoku.cli.parser import TOP, Parser, Usage, pair, whole
from chumoku.cli.shown import show
from chumoku.view.scene import scene
from chumoku.view.terminal import look
from chumoku.words import say

EXAMPLES = (
    "chumoku look 'その猫は可愛い'",
    "chumoku look 'The cat sat on the mat' --layer 2 --head 6",
    "chumoku look 'その猫は可愛い' --query 猫 --layer 2",
    "chumoku look 'その猫は可愛い' --without 2:6 --without 1:7",
    "echo 'その猫は可愛い' | chumoku look - --json",
)


def run(arguments: Sequence[str], lang: str) -> int:
    """Look at a text."""
    parser = Parser("look", lang, examples=EXAMPLES)
    parser.text()
    parser.option("--layer", type=whole(lang), metavar="L", key="layer")
    parser.option("--head", type=whole(lang), metavar="H", key="head")
    parser.option("--query", metavar="TOKEN", key="query_look")
    parser.option(
        "--without", type=pair(lang), action="append", default=[], metavar="L:H", key="without"
    )
    parser.option("--top", type=whole(lang, "positive", 1), default=TOP, metavar="N", key="top")
    parser.option("--all", action="store_true", key="all")
    parser.common()
    options = parser.read(arguments)
    given.check_pair(options.layer, options.head, lang)
    if options.query is not None and options.head is not None:
        raise Usage(say("usage.query_or_head", lang))
    text = given.text(options.text, "look", lang)
    encoder = given.model(options.model)
    given.check_head(encoder, options.layer, options.head, lang)
    for layer, head in options.without:
        given.check_head(encoder, layer, head, lang)
    silenced = frozenset(options.without)
    encoding = encoder.encode(text, without=silenced)
    query = None
    if options.query is not None:
        query = given.token(encoding.tokens, options.query, lang)
    seen = scene(
        encoder,
        text,
        encoding,
        layer=options.layer,
        head=options.head,
        query=query,
        top=options.top,
        before=encoder.encode(text) if silenced else None,
        silenced=silenced,
    )
    show("look", seen, lambda page: look(seen, page, every=options.all), options, arguments, lang)
    return 0

"""chumoku look: where each token of a text looks."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chumoku.cli import given
from chumoku.cli.opening import opened
from chumoku.cli.parser import TOP, Parser, Usage, pair, whole
from chumoku.cli.shown import Draw, show
from chumoku.models import DEFAULT_NAME
from chumoku.view.crossed import cross_scene, image_scene
from chumoku.view.scene import Model, model_of, scene
from chumoku.view.terminal import cross, image, look, speech
from chumoku.words import say

if TYPE_CHECKING:
    from chumoku.huggingface.looking import PairModel
    from chumoku.huggingface.senses import ImageModel, SpeechModel

EXAMPLES = (
    "chumoku look 'その猫は可愛い'",
    "chumoku look 'The cat sat on the mat' --layer 2 --head 6",
    "chumoku look 'その猫は可愛い' --query 猫 --layer 2",
    "chumoku look 'その猫は可愛い' --without 2:6 --without 1:7",
    "echo 'その猫は可愛い' | chumoku look - --json",
    "chumoku look --model ./SmolLM2-135M 'The cat sat on' --generate 8",
    "chumoku look --model ./whisper-tiny.en speech.wav",
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
    parser.option("--generate", type=whole(lang, "positive", 1), metavar="N", key="generate")
    parser.option("--target", metavar="TEXT", key="target")
    parser.option("--all", action="store_true", key="all")
    parser.common()
    options = parser.read(arguments)
    given.check_pair(options.layer, options.head, lang)
    if options.query is not None and options.head is not None:
        raise Usage(say("usage.query_or_head", lang))
    if options.generate and options.without:
        raise Usage(say("usage.generate_or_without", lang))
    # What a model of transformers is given depends on its kind.
    model = None if options.model is None else opened(options.model, lang)
    kind = getattr(model, "kind", "text")
    _check_options(options, kind, model, lang)
    if kind == "text":
        return _text(model, options, arguments, lang)
    seen, draw = _OTHERS[kind](model, options, lang)
    show("look", seen, draw, options, arguments, lang)
    return 0


def _text(model: Any, options: Namespace, arguments: Sequence[str], lang: str) -> int:
    text = given.text(options.text, "look", lang)
    model = opened(None, lang) if model is None else model
    sizes = model_of(model)
    for layer, head in ((options.layer, options.head), *options.without):
        given.check_head(sizes, layer, head, lang)
    silenced = frozenset(options.without)
    writes = {"generate": options.generate} if options.generate else {}
    encoding = model.encode(text, without=silenced, **writes)
    query = None
    if options.query is not None:
        query = given.token(encoding.tokens, options.query, lang)
    seen = scene(
        model,
        getattr(encoding, "text", text),
        encoding,
        layer=options.layer,
        head=options.head,
        query=query,
        top=options.top,
        before=model.encode(text) if silenced else None,
        silenced=silenced,
    )
    show("look", seen, lambda page: look(seen, page, every=options.all), options, arguments, lang)
    return 0


def _pair(model: PairModel, options: Namespace, lang: str) -> tuple[Any, Draw]:
    text = given.text(options.text, "look", lang)
    writes = {"generate": options.generate} if options.generate else {}
    crossed = model.read(text, options.target, **writes)
    _check_head(model, crossed.recording[0].shape.heads, len(crossed.recording), options, lang)
    seen = cross_scene(crossed, layer=options.layer, head=options.head, top=options.top)
    return seen, lambda page: cross(seen, page, every=options.all)


def _speech(model: SpeechModel, options: Namespace, lang: str) -> tuple[Any, Draw]:
    seen = model.read(given.medium(options.text, "error.no_sound", model.name, lang))
    return seen, lambda page: speech(seen, page)


def _image(model: ImageModel, options: Namespace, lang: str) -> tuple[Any, Draw]:
    _check_head(model, model.heads, len(model.layers), options, lang)
    found = model.read(given.medium(options.text, "error.no_image", model.name, lang))
    seen = image_scene(model, found, layer=options.layer, head=options.head, top=options.top)
    return seen, lambda page: image(seen, page)


_OTHERS: dict[str, Any] = {"pair": _pair, "speech": _speech, "image": _image}
# Which options go with which kind of model.
_TAKEN = {
    "text": {"layer", "head", "query", "without", "generate"},
    "pair": {"layer", "head", "generate", "target"},
    "speech": set(),
    "image": {"layer", "head"},
}


def _check_options(options: Namespace, kind: str, model: Any, lang: str) -> None:
    """Refuse what this kind of model does not have, rather than pass over it."""
    for name in ("layer", "head", "query", "without", "generate", "target"):
        value = getattr(options, name)
        unable = name == "generate" and kind == "text" and not getattr(model, "writes", False)
        if value is None or value == [] or (name in _TAKEN[kind] and not unable):
            continue
        title = DEFAULT_NAME if model is None else model.name
        needs = say(f"usage.needs.{name}", lang)
        told = say("usage.not_for_model", lang, option=f"--{name}", model=title, needs=needs)
        raise Usage(told)


def _check_head(model: Any, heads: int, layers: int, options: Namespace, lang: str) -> None:
    sizes = Model(model.name, layers, heads, 0, 0)
    given.check_head(sizes, options.layer, options.head, lang)

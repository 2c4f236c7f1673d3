"""The model that the user named: our own encoder, or one of transformers."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any

from chumoku.cli.parser import Problem
from chumoku.cli.shown import progress
from chumoku.words import say

if TYPE_CHECKING:
    from chumoku.huggingface.looking import TextModel
    from chumoku.models import Encoder


def opened(name: str | None, lang: str) -> Any:
    """An Encoder, or a TextModel, PairModel, SpeechModel or ImageModel of transformers."""
    if name is None or not _of_transformers(name):
        from chumoku.models import load_model

        return load_model(name)
    try:
        from chumoku.huggingface import loading, looking, senses
    except ImportError as error:
        package = error.name or "transformers"
        raise Problem(say("error.no_transformers", lang, model=name, package=package)) from error
    import transformers

    told: Any = transformers.utils.logging
    told.set_verbosity_error()
    # It tells of every try to fetch; the error at the end says enough.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    progress(say("model.loading", lang))
    loaded = loading.load(name)
    progress("")
    kinds = {
        "encoder-decoder": looking.PairModel,
        "speech": senses.SpeechModel,
        "image": senses.ImageModel,
    }
    return kinds.get(loaded.kind, looking.TextModel)(loaded)


def text_model(name: str | None, lang: str) -> Encoder | TextModel:
    """A model that looks at a text alone, with whole rows of weights."""
    found = opened(name, lang)
    if not hasattr(found, "encode"):
        raise Problem(say("error.model_kind", lang, model=found.name))
    return found  # type: ignore[no-any-return]


def encoder(name: str | None, lang: str) -> Encoder:
    """A model whose inside can be explained: the default, or that of a BERT folder."""
    found = opened(name, lang)
    if not hasattr(found, "words"):
        raise Problem(say("error.model_inside", lang, model=found.name))
    return found  # type: ignore[no-any-return]


def _of_transformers(name: str) -> bool:
    """Whether a name is for transformers: no BERT folder, and nothing that looks like a path."""
    if not os.path.isdir(name):
        return not (os.path.isabs(name) or name[:1] in (".", "~") or os.path.exists(name))
    try:
        with open(os.path.join(name, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError, RecursionError):
        return False  # what is wrong with the folder is said by load_model
    return not isinstance(config, dict) or config.get("model_type") != "bert"

"""Models of transformers by folder or name, loaded without running code of their own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import transformers
from transformers.models.auto import modeling_auto

from chumoku.checks import shown
from chumoku.errors import InvalidArgumentError, InvalidTypeError, UnavailableError

Kind = Literal["encoder", "decoder", "encoder-decoder", "speech", "image"]

_CLASSES = {
    "encoder": "AutoModel",
    "decoder": "AutoModelForCausalLM",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
    "speech": "AutoModelForSpeechSeq2Seq",
    "image": "AutoModel",
}
_READERS = {"speech": "AutoProcessor", "image": "AutoImageProcessor"}
_EXPECTED = (
    "a folder that save_pretrained wrote (weights in safetensors), or the name of a model that"
    " transformers has or can fetch"
)
_NO_FOLDER = (
    "There is no folder of that name here; on the hub most names have an owner (owner/name), and"
    " fetching needs the network."
)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model of transformers, and what turns texts, sounds or images into its inputs.

    Attributes
    ----------
    name : str
        The folder's, or the name as it was given.
    kind : {"encoder", "decoder", "encoder-decoder", "speech", "image"}
    model : PreTrainedModel
        In float32, for inference.
    reader : tokenizer, processor or image processor
    """

    name: str
    kind: Kind
    model: Any
    reader: Any


def load(name: str | os.PathLike[str]) -> Loaded:
    """A model from a folder, from transformers' cache, or from where transformers fetches it.

    Code that comes with a model is never run, and weights are read from safetensors alone.

    Parameters
    ----------
    name : str or path
        A folder that save_pretrained wrote, or a name such as "HuggingFaceTB/SmolLM2-135M".

    Raises
    ------
    InvalidArgumentError
        There is no such model, or files of it are missing or damaged.
    UnavailableError
        It is of a kind that cannot be shown, or needs a package that is not installed.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise InvalidTypeError("model", shown(name), "a folder or a name")
    place = os.fspath(name)
    local = os.path.isdir(place)
    if not local and (os.path.isabs(place) or place[:1] in (".", "~") or os.path.exists(place)):
        raise InvalidArgumentError("model", f"{shown(place)}, no folder", _EXPECTED)
    config = _asked("config.json", place, "AutoConfig")
    kind = kind_of(config)
    if kind is None:
        raise UnavailableError(
            "model",
            got=f"{shown(place)}, of type {config.model_type!r}",
            expected="a text encoder, a decoder, an encoder-decoder, Whisper or an image encoder",
            cure="Any model can be watched in Python: chumoku.huggingface.watch(model).",
        )
    reader = _asked("tokenizer or processor", place, _READERS.get(kind, "AutoTokenizer"))
    model = _asked(
        "weights", place, _CLASSES[kind], use_safetensors=True, dtype="float32", config=config
    )
    title = os.path.basename(os.path.realpath(place)) if local else os.fspath(name)
    return Loaded(title, kind, model.eval(), reader)


def kind_of(config: Any) -> Kind | None:
    """What a configuration is of; None where it is of something else."""
    kind = config.model_type
    names = " ".join(getattr(config, "architectures", None) or ())
    if kind in modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES and hasattr(
        config, "num_mel_bins"
    ):
        return "speech"
    if config.is_encoder_decoder:
        known = kind in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
        return "encoder-decoder" if known else None
    if not hasattr(config, "vocab_size"):
        known = kind in modeling_auto.MODEL_FOR_IMAGE_MAPPING_NAMES
        return "image" if known and hasattr(config, "patch_size") else None
    both = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and (
        not both or "CausalLM" in names or "LMHead" in names
    ):
        return "decoder"
    return "encoder" if kind in modeling_auto.MODEL_MAPPING_NAMES else None


def _asked(what: str, place: str, kind: str, **options: Any) -> Any:
    """One part of a model; what transformers says of failing, in one sentence."""
    told: Any = transformers.utils.logging
    bars = told.is_progress_bar_enabled()
    told.disable_progress_bar()
    options |= {"trust_remote_code": False}
    get = getattr(transformers, kind).from_pretrained
    try:
        try:
            # What is there already needs no network.
            return get(place, local_files_only=True, **options)
        except OSError:
            if os.path.isdir(place):
                raise
            return get(place, **options)
    except ImportError as error:
        raise UnavailableError(
            "model",
            got=f"{shown(place)}, whose {what} needs more ({_first(error)})",
            expected="its packages installed",
            cure="Install what the message names.",
        ) from error
    except Exception as error:  # transformers and its parts raise errors of many kinds
        if "trust_remote_code" in str(error):
            raise UnavailableError(
                "model",
                got=f"{shown(place)}, which brings code of its own",
                expected="a model that transformers itself knows: code of models is never run",
                cure="Load it yourself, and watch it with chumoku.huggingface.watch(model).",
            ) from error
        raise InvalidArgumentError(
            "model",
            got=f"{shown(place)}, of which transformers cannot load the {what} ({_first(error)})",
            expected=_EXPECTED,
            cure="" if os.path.isdir(place) else _NO_FOLDER,
        ) from error
    finally:
        if bars:
            told.enable_progress_bar()


def _first(error: Exception) -> str:
    """The first sentence of what an error says."""
    text = " ".join(str(error).split())
    return text.split(". ")[0][:200].rstrip(".") or type(error).__name__

"""An encoder from a folder as Hugging Face's transformers saves BERT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chumoku.checks import path_of, shown
from chumoku.errors import InvalidArgumentError
from chumoku.models.default import default_model
from chumoku.models.encoder import Encoder, Floats, build, shapes
from chumoku.tensors import read_tensors
from chumoku.tokens import JsonTokenizer

_BERT = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln": "embeddings.LayerNorm",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "vocab_size",
)
# What the config may say of these; the first is meant where it says nothing.
_ONLY: dict[str, tuple[object, ...]] = {
    "model_type": ("bert",),
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
}


def load_model(path: str | PathLike[str] | None = None) -> Encoder:
    """The encoder in a folder as Hugging Face's transformers saves BERT; the default without one.

    Parameters
    ----------
    path : str or path, optional
        A folder with config.json, model.safetensors (float32, float16 or bfloat16; names with or
        without "bert.") and tokenizer.json.

    Raises
    ------
    InvalidArgumentError
        No such folder, a file is missing or damaged, a tensor is missing or of another shape, or
        the model is no BERT with learned positions and exact GELU.
    UnavailableError
        The package `tokenizers` is not installed.
    """
    if path is None:
        return default_model()
    folder = path_of("model", path)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not isfile(folder / name):
            raise InvalidArgumentError(
                "model",
                got=f"{shown(str(folder))}, {'without ' + name if isdir(folder) else 'no folder'}",
                expected="a folder with config.json, model.safetensors and tokenizer.json",
                cure="save_pretrained of a model and of its fast tokenizer writes all three.",
            )
    sizes, epsilon = _sizes(folder / "config.json")
    tokenizer = JsonTokenizer(folder / "tokenizer.json")
    tensors = _tensors(read_tensors(folder / "model.safetensors"), sizes)
    if len(tokenizer) > sizes["vocab_size"]:
        got = f"{len(tokenizer)} pieces"
        raise InvalidArgumentError(
            "tokenizer.json", got, f"at most the {sizes['vocab_size']} of config.json"
        )
    table = tensors["emb.word"]

    def words(ids: NDArray[np.int64]) -> Floats:
        if ids.max(initial=0) >= len(table):  # pieces may be numbered with gaps
            got, expected = f"a piece numbered {ids.max()}", f"numbers below {len(table)}"
            cure = "Do config.json and tokenizer.json belong together?"
            raise InvalidArgumentError("tokenizer.json", got, expected, cure)
        return np.asarray(table[ids])

    return build(folder.resolve().name, tokenizer, tensors, sizes, epsilon, words)


def _sizes(file: Path) -> tuple[dict[str, int], float]:
    """Sizes and layer-norm epsilon of a config.json, or a sentence why it is not for us."""
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidArgumentError("config.json", f"no JSON ({error})", "a JSON object") from error
    if not isinstance(config, dict):
        raise InvalidArgumentError("config.json", f"a {type(config).__name__}", "a JSON object")
    for name, allowed in _ONLY.items():
        said = config.get(name, None if name == "model_type" else allowed[0])
        if said not in allowed:
            raise InvalidArgumentError(
                "config.json",
                got=f"{name} {said!r}",
                expected=f"{allowed[0]!r}",
                cure="This encoder computes BERT with learned positions and exact GELU only.",
            )
    sizes: dict[str, int] = {}
    for name in _SIZES:
        size = config.get(name)
        if type(size) is not int or size < 1:
            raise InvalidArgumentError("config.json", f"{name} {size!r}", "a whole number from 1")
        sizes[name] = size
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if width % heads:
        got = f"hidden_size {width} with num_attention_heads {heads}"
        raise InvalidArgumentError("config.json", got, "a width that the heads divide")
    epsilon = config.get("layer_norm_eps", 1e-12)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise InvalidArgumentError("config.json", f"layer_norm_eps {epsilon!r}", "0 to 1")
    return sizes, epsilon


def _tensors(arrays: Mapping[str, NDArray[Any]], sizes: Mapping[str, int]) -> dict[str, Floats]:
    """The tensors of a BERT file under our names, in float32, of the shapes that sizes ask for."""
    ending = _BERT["emb.word"]
    prefixes = [name.removesuffix(ending) for name in arrays if name.endswith(ending)]
    prefix = min(prefixes, key=len, default="")
    if sizes["num_hidden_layers"] > len(arrays):
        got = f"num_hidden_layers {sizes['num_hidden_layers']}"
        expected = f"as many as model.safetensors has with its {len(arrays)} tensors"
        raise InvalidArgumentError("config.json", got, expected)
    wanted = {"emb.word": (sizes["vocab_size"], sizes["hidden_size"]), **shapes(sizes)}
    return {name: _tensor(arrays, prefix, name, shape) for name, shape in wanted.items()}


def _tensor(
    arrays: Mapping[str, NDArray[Any]], prefix: str, name: str, shape: tuple[int, ...]
) -> Floats:
    own, _, short = name.partition(".") if name.startswith("l") else ("", "", name)
    layer = f"encoder.layer.{own[1:]}." if own else ""
    if short in _BERT:
        asked = [f"{prefix}{_BERT[short]}"]
    else:
        stem, _, kind = short.rpartition(".")
        long, old = ("weight", "gamma") if kind == "w" else ("bias", "beta")
        stem = f"{prefix}{layer}{_BERT[stem]}"
        asked = [f"{stem}.{long}", f"{stem}.{old}"]
    found = next((arrays[name] for name in asked if name in arrays), None)
    if found is None:
        raise InvalidArgumentError(
            "model.safetensors",
            got=f"no tensor {asked[0]}",
            expected="all that config.json asks for",
            cure="Do config.json and model.safetensors belong together?",
        )
    if found.shape != shape or found.dtype.name not in ("float32", "float16"):
        raise InvalidArgumentError(
            "model.safetensors",
            got=f"{asked[0]} of {found.dtype}, shape {found.shape}",
            expected=f"float32, float16 or bfloat16 of shape {shape}",
        )
    return found.astype(np.float32, copy=False)

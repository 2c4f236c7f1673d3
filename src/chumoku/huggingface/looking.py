"""Texts, and pairs of texts, as models of transformers look at them: what views draw."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chumoku.checks import whole
from chumoku.errors import UnavailableError
from chumoku.huggingface.loading import Loaded
from chumoku.huggingface.watching import watch
from chumoku.record import Entry, Recording
from chumoku.statistics import Watch
from chumoku.tokens import JsonTokenizer, Token, joined, readable

Floats = NDArray[np.float32]

# Tokens that are looked at: every head's weights are drawn, which grow with the square.
LONGEST = 1024

_WATCH = Watch(top=8, entropy=True, saturation=True, distance=True)
_CROSS = ("encoder_attn", "EncDecAttention", "crossattention", "cross_attn", "cross_attention")


@dataclass(frozen=True, eq=False)
class Looked:
    """A text seen by a model: tokens, and where each of them looks.

    Attributes
    ----------
    model : str
    tokens : tuple of Token, n of them
        Those that share characters (the bytes of one) are one. The first of a decoder counts as
        special: it sees itself alone, and the others rest on it.
    truncated : int
        How many were cut off at the end.
    generated : int
        How many of the last tokens the model wrote itself.
    text : str
        With what the model wrote.
    causal : bool
        Whether tokens see only what stands before them.
    embeddings, states : (n, width)
        What the tokens are embedded as, and what the last layer gave.
    recording : Recording
        An entry for each layer.
    """

    model: str
    tokens: tuple[Token, ...]
    truncated: int
    generated: int
    text: str
    causal: bool
    embeddings: Floats = field(repr=False)
    states: Floats = field(repr=False)
    recording: Recording = field(repr=False)
    _groups: list[list[int]] = field(repr=False)

    def weights(self, layer: int, head: int | None = None) -> Floats:
        """Where each token looks: (heads, n, n), or (n, n) of one head; rows sum to 1.

        What is looked at is summed over the pieces of a token, what looks is their mean.
        """
        entry = self.recording.entries[whole("layer", layer, 0, len(self.recording) - 1)]
        weights = _numbers(entry, self._groups, self._groups)
        return weights if head is None else weights[whole("head", head, 0, len(weights) - 1)]


@dataclass(frozen=True, eq=False)
class Crossed:
    """A source and a target: where each token of the target looks in the source.

    Attributes
    ----------
    model : str
    source, target : str
    source_tokens, target_tokens : tuple of Token
    truncated : int
        Tokens of the source that were cut off.
    recording : Recording
        An entry for each layer's cross attention.
    """

    model: str
    source: str
    target: str
    source_tokens: tuple[Token, ...]
    target_tokens: tuple[Token, ...]
    truncated: int
    recording: Recording = field(repr=False)
    _groups: tuple[list[list[int]], list[list[int]]] = field(repr=False)

    def weights(self, layer: int, head: int | None = None) -> Floats:
        """(heads, target, source), or (target, source) of one head."""
        entry = self.recording.entries[whole("layer", layer, 0, len(self.recording) - 1)]
        weights = _numbers(entry, *self._groups)
        return weights if head is None else weights[whole("head", head, 0, len(weights) - 1)]


class TextModel:
    """An encoder or decoder of transformers that looks at texts.

    Attributes
    ----------
    name : str
    layers : range
    heads, width, positions : int
        positions is how many tokens are looked at, `LONGEST` at most.
    writes : bool
        Whether it is a decoder, which can go on with a text.
    """

    kind = "text"

    def __init__(self, loaded: Loaded) -> None:
        self.name, self.writes = loaded.name, loaded.kind == "decoder"
        self._model, self._reader = loaded.model, loaded.reader
        self._tokenizer = tokenizer_of(loaded)
        config = loaded.model.config
        self.layers = range(config.num_hidden_layers)
        self.heads, self.width = config.num_attention_heads, config.hidden_size
        positions = getattr(config, "max_position_embeddings", None) or LONGEST
        offset = getattr(loaded.model.base_model, "embeddings", None)
        # RoBERTa numbers its positions from behind the padding token.
        shift = getattr(offset, "padding_idx", None) if "roberta" in config.model_type else None
        self.positions = min(LONGEST, positions - (0 if shift is None else shift + 1))

    def encode(
        self,
        text: str,
        *,
        without: Collection[tuple[int, int]] = frozenset(),
        generate: int = 0,
    ) -> Looked:
        """Let the model read a text, and write on.

        Parameters
        ----------
        text : str
            What is beyond `positions` tokens is cut off.
        without : collection of (layer, head)
            Heads to silence.
        generate : int
            Tokens to write, the most likely one each time; a decoder may end earlier.

        Raises
        ------
        InvalidArgumentError
            Nothing to see in the text; no such layer or head.
        UnavailableError
            The model is no decoder and cannot write.
        """
        if generate and not self.writes:
            raise UnavailableError(
                "generate", f"{self.name}, an encoder", "a decoder", "Leave --generate out."
            )
        room = self.positions - whole("generate", generate, 0, self.positions - 2)
        tokens, truncated = self._tokenizer.encode(text, room)
        ids = torch.tensor([[token.id for token in tokens]])
        with watch(self._model, _WATCH, without=without, inputs=True, budget=None) as seen:
            if generate:
                pad = self._reader.pad_token_id
                pad = self._reader.eos_token_id if pad is None else pad
                ids = self._model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=generate,
                    do_sample=False,
                    num_beams=1,
                    pad_token_id=pad,
                )
                seen.entries.clear()
            with torch.inference_mode():
                found = self._model.base_model(
                    input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
                )
                embeddings = self._model.get_input_embeddings()(ids)[0]
        written = ids[0, len(tokens) :].tolist()
        text, everything = _written(self._reader, text, tokens, written)
        merged, groups = joined(text, everything)
        if self.writes:
            merged = (replace(merged[0], special=True), *merged[1:])
        own = len(merged) - sum(group[0] < len(tokens) for group in groups)
        states = found.last_hidden_state[0]
        return Looked(
            self.name,
            merged,
            truncated,
            own,
            text,
            self.writes,
            _means(embeddings, groups),
            _means(states, groups),
            seen,
            groups,
        )


class PairModel:
    """An encoder-decoder of transformers: a source, and the target that it writes."""

    kind = "pair"

    def __init__(self, loaded: Loaded) -> None:
        self.name = loaded.name
        self._model, self._reader = loaded.model, loaded.reader
        self._tokenizer = tokenizer_of(loaded)

    def read(self, text: str, target: str | None = None, generate: int = 64) -> Crossed:
        """Where each token of the target looks in the source; the model writes a target itself."""
        tokens, truncated = self._tokenizer.encode(text, LONGEST)
        ids = torch.tensor([[token.id for token in tokens]])
        if target is None:
            found = self._model.generate(ids, max_new_tokens=generate, do_sample=False, num_beams=1)
            written = found[0].tolist()
        else:
            start = self._model.config.decoder_start_token_id
            written = [start, *(t.id for t in self._tokenizer.encode(target, LONGEST)[0])]
        # Each token is written where the one before it is read.
        with _crossing(self._model) as seen, torch.inference_mode():
            self._model(input_ids=ids, decoder_input_ids=torch.tensor([written[:-1]]))
        target, tokens_written = _decoded(self._reader, written[1:])
        source_tokens, source_groups = joined(text, tokens)
        target_tokens, target_groups = joined(target, tokens_written)
        groups = target_groups, source_groups
        return Crossed(
            self.name, text, target, source_tokens, target_tokens, truncated, seen, groups
        )


def _crossing(model: Any) -> Any:
    """A recording of the layers that look from the target at the source."""
    names = [f"*{part}*" for part in _CROSS if any(part in n for n, _ in model.named_modules())]
    if not names:
        raise UnavailableError(
            "model",
            got=f"{type(model).__name__}, without cross attention that is known",
            expected="an encoder-decoder whose decoder looks at its encoder",
        )
    return watch(model, _WATCH, layers=names, inputs=True, budget=None)


def tokenizer_of(loaded: Loaded) -> JsonTokenizer:
    """The tokenizer that knows where in the text its tokens stand."""
    reader = getattr(loaded.reader, "tokenizer", loaded.reader)
    inner = getattr(reader, "backend_tokenizer", None)
    if inner is None:
        raise UnavailableError(
            "model",
            got=f"{loaded.name}, whose tokenizer is {type(reader).__name__}",
            expected="a fast tokenizer, which tells where its tokens stand in the text",
            cure="Save it with AutoTokenizer, which makes a tokenizer.json.",
        )
    return JsonTokenizer.of(inner)


def _numbers(entry: Entry, rows: list[list[int]], keys: list[list[int]]) -> Floats:
    """Weights of a call with its pieces joined: mean over those that look, sum over the others."""
    weights = entry.weights()[0].float().numpy()
    if len(keys) < weights.shape[-1]:
        weights = np.add.reduceat(weights, [group[0] for group in keys], axis=-1)
    if len(rows) < weights.shape[-2]:
        weights = np.add.reduceat(weights, [group[0] for group in rows], axis=-2)
        weights /= np.array([[len(group)] for group in rows], np.float32)
    return np.asarray(weights)


def _means(vectors: torch.Tensor, groups: list[list[int]]) -> Floats:
    return np.stack([vectors[group].mean(0).float().numpy() for group in groups])


def _written(
    reader: Any, text: str, tokens: Sequence[Token], written: list[int]
) -> tuple[str, list[Token]]:
    """The text with what was written behind it, and all tokens."""
    if not written:
        return text, list(tokens)
    text = text[: max((token.end for token in tokens), default=0)]
    # A decoder may leave the space before the first word out, where nothing stands before it.
    before = [token.id for token in tokens]
    start = len(reader.decode(before, **_PLAINLY))
    added, more = _decoded(reader, written, before, start)
    shift = len(text)
    moved = [
        one if one.special else replace(one, start=one.start + shift, end=one.end + shift)
        for one in more
    ]
    return text + added, [*tokens, *moved]


_PLAINLY = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}


def _decoded(
    reader: Any,
    ids: Sequence[int],
    before: Sequence[int] = (),
    start: int = 0,
) -> tuple[str, list[Token]]:
    """Text and tokens of ids that a model wrote; bytes of one character share its place."""
    reader = getattr(reader, "tokenizer", reader)
    special = set(reader.all_special_ids)
    tokens: list[Token] = []
    plain: list[int] = list(before)
    text, open_ = "", 0
    for id in ids:
        piece = reader.convert_ids_to_tokens(id)
        if id in special:
            tokens.append(Token(piece, id, -1, -1, special=True, piece=piece))
            continue
        plain.append(id)
        whole_text = reader.decode(plain, **_PLAINLY)[start:]
        complete = not whole_text.endswith("\ufffd")
        end = len(whole_text) if complete else open_ + 1
        tokens.append(Token("", id, open_, end, False, piece))
        if complete:
            text, open_ = whole_text, end
    text = reader.decode(plain, **_PLAINLY)[start:] if tokens else ""
    return text, [one if one.special else _named(text, one) for one in tokens]


def _named(text: str, token: Token) -> Token:
    """A token with the characters that a person reads."""
    inside = text[token.start : token.end]
    kept = inside.strip()
    if not kept:
        return replace(token, text=readable(inside))
    start = token.start + inside.index(kept)
    return replace(token, text=readable(kept), start=start, end=start + len(kept))

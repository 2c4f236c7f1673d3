"""Models of transformers, each as small as its architecture allows, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

# Of the text: some entries are padded, and there is more of it than any window holds.
LENGTH = 24
PADDING = 5
WORDS = 96
IMAGE_TOKEN = 95

SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
WINDOW = 8
LAYERS = ["sliding_attention", "full_attention"]
MOE = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
BART = {
    "vocab_size": WORDS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
T5 = {
    "vocab_size": WORDS,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 4,
}


DEEPSEEK = {
    **SIZES,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 10,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}


@dataclass(frozen=True)
class Architecture:
    """A kind of model: its class, its configuration, and what it is given."""

    name: str
    model: str
    config: dict[str, Any]
    inputs: str = "text"
    what: str = ""
    # Parts of the configuration whose loss must be noticed.
    settings: dict[str, Any] = field(default_factory=dict)
    scale: float = 8.0

    def build(self, dtype: torch.dtype = torch.float32) -> Any:
        """The model with random weights, attentive enough for its masks to matter."""
        kind = getattr(transformers, self.model)
        config = kind.config_class(**self.config)
        torch.manual_seed(0)
        model = kind(config).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() == 2 and any(part in name for part in ("q_", "query", "k_", "key")):
                    weight.mul_(self.scale)
                if name.endswith("sinks"):
                    weight.normal_()
        return model.to(dtype)

    def given(self, side: str = "right") -> dict[str, Any]:
        """What the model is called with."""
        return _INPUTS[self.inputs](side)

    def real(self, side: str = "right") -> torch.Tensor:
        """Which positions of the outputs are no padding."""
        given = self.given(side)
        mask = given.get("decoder_attention_mask", given.get("attention_mask"))
        if mask is None or self.inputs in ("seq2seq", "speech"):
            return torch.ones((2, 1), dtype=torch.bool)
        return mask.bool()


def _mask(side: str) -> torch.Tensor:
    mask = torch.ones((2, LENGTH), dtype=torch.int64)
    if side == "right":
        mask[1, -PADDING:] = 0
    elif side == "left":
        mask[1, :PADDING] = 0
    return mask


def _text(side: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 90, (2, LENGTH), generator=generator)
    mask = _mask(side)
    return {"input_ids": ids * mask, "attention_mask": mask}


def _seq2seq(side: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    given = _text(side)
    given["decoder_input_ids"] = torch.randint(3, 90, (2, 9), generator=generator)
    return given


def _image(side: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {"pixel_values": torch.randn((2, 3, 24, 24), generator=generator)}


def _both(side: str) -> dict[str, Any]:
    return {**_text(side), **_image(side)}


def _image_in_text(side: str) -> dict[str, Any]:
    given = _both(side)
    ids = given["input_ids"]
    ids[:, 6:15] = IMAGE_TOKEN
    given["pixel_values"] = given["pixel_values"][:, :, :12, :12]
    return given


def _qwen_image(side: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    given = _text(side)
    given["input_ids"][:, 5] = 93
    given["input_ids"][:, 6:10] = IMAGE_TOKEN
    given["pixel_values"] = torch.randn((2 * 16, 3 * 2 * 4 * 4), generator=generator)
    given["image_grid_thw"] = torch.tensor([[1, 4, 4], [1, 4, 4]])
    types = torch.zeros_like(given["input_ids"])
    types[:, 6:10] = 1
    given["mm_token_type_ids"] = types
    return given


def _speech(side: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(4)
    return {
        "input_features": torch.randn((2, 8, 60), generator=generator),
        "decoder_input_ids": torch.randint(3, 90, (2, 9), generator=generator),
    }


def _wave(side: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    return {"input_values": torch.randn((2, 800), generator=generator)}


_INPUTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "text": _text,
    "seq2seq": _seq2seq,
    "image": _image,
    "both": _both,
    "image in text": _image_in_text,
    "qwen image": _qwen_image,
    "speech": _speech,
    "wave": _wave,
}

_CLIP = {
    "text_config": SIZES,
    "vision_config": VISION,
    "projection_dim": 16,
}
_LLAVA = {
    "vision_config": {**VISION, "image_size": 12, "model_type": "clip_vision_model"},
    "text_config": {**GROUPED, "model_type": "llama"},
    "image_token_index": IMAGE_TOKEN,
    "vision_feature_layer": -1,
}
_QWEN_VISION = {
    "depth": 2,
    "embed_dim": 32,
    "hidden_size": 32,
    "num_heads": 4,
    "mlp_ratio": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_QWEN_TEXT = {
    **GROUPED,
    "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
}
_PALI = {
    "vision_config": {**VISION, "image_size": 12, "projection_dim": 32},
    "text_config": {**GROUPED, "head_dim": 8},
    "image_token_index": IMAGE_TOKEN,
    "image_token_id": IMAGE_TOKEN,
    "projection_dim": 32,
    "hidden_size": 32,
}

ARCHITECTURES = (
    # Decoders
    Architecture("llama", "LlamaForCausalLM", GROUPED, what="grouped heads"),
    Architecture("qwen2", "Qwen2ForCausalLM", GROUPED),
    Architecture(
        "qwen2, window",
        "Qwen2ForCausalLM",
        {**GROUPED, "use_sliding_window": True, "sliding_window": WINDOW, "layer_types": LAYERS},
        what="window",
        settings={"sliding_window": 64},
    ),
    Architecture("qwen3", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 8}),
    Architecture("qwen3-moe", "Qwen3MoeForCausalLM", {**GROUPED, **MOE}, what="experts"),
    Architecture(
        "mistral",
        "MistralForCausalLM",
        {**GROUPED, "sliding_window": WINDOW},
        what="window",
        settings={"sliding_window": 64},
    ),
    Architecture(
        "mixtral",
        "MixtralForCausalLM",
        {**GROUPED, "sliding_window": WINDOW, "num_local_experts": 4},
        what="window, experts",
        settings={"sliding_window": 64},
    ),
    Architecture("gemma", "GemmaForCausalLM", {**GROUPED, "head_dim": 8}),
    Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        {**GROUPED, "head_dim": 8, "sliding_window": WINDOW, "attn_logit_softcapping": 2.0},
        what="softcap, window",
        settings={"sliding_window": 64, "attn_logit_softcapping": None},
    ),
    Architecture(
        "gemma3",
        "Gemma3ForCausalLM",
        {**GROUPED, "head_dim": 8, "sliding_window": WINDOW, "layer_types": LAYERS},
        what="window",
        settings={"sliding_window": 64},
    ),
    Architecture("phi3", "Phi3ForCausalLM", {**GROUPED, "sliding_window": WINDOW}, what="window"),
    Architecture("phi", "PhiForCausalLM", GROUPED),
    Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    Architecture("gpt-neox", "GPTNeoXForCausalLM", SIZES),
    Architecture(
        "gpt-oss",
        "GptOssForCausalLM",
        {
            **GROUPED,
            "head_dim": 8,
            "sliding_window": WINDOW,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": LAYERS,
        },
        what="sinks, window, experts",
        settings={"sliding_window": 64},
    ),
    Architecture("olmo2", "Olmo2ForCausalLM", GROUPED),
    Architecture(
        "deepseek-v3",
        "DeepseekV3ForCausalLM",
        DEEPSEEK,
        what="values narrower than keys, experts",
    ),
    Architecture(
        "deepseek-v3.2",
        "DeepseekV32ForCausalLM",
        {
            **DEEPSEEK,
            "index_topk": 6,
            "index_head_dim": 8,
            "index_n_heads": 2,
        },
        what="keys chosen for each query",
    ),
    Architecture("granite", "GraniteForCausalLM", GROUPED, what="a scale of its own"),
    Architecture("smollm3", "SmolLM3ForCausalLM", GROUPED),
    Architecture(
        "cohere2",
        "Cohere2ForCausalLM",
        {**GROUPED, "sliding_window": WINDOW, "layer_types": LAYERS},
        what="window",
        settings={"sliding_window": 64},
    ),
    Architecture(
        "llama4",
        "Llama4ForCausalLM",
        {
            **GROUPED,
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "attention_chunk_size": WINDOW,
            "layer_types": ["chunked_attention", "full_attention"],
        },
        what="chunks, experts",
        settings={"attention_chunk_size": 64},
    ),
    Architecture("starcoder2", "Starcoder2ForCausalLM", {**GROUPED, "sliding_window": WINDOW}),
    Architecture("glm4", "Glm4ForCausalLM", {**GROUPED, "head_dim": 8}),
    Architecture("stablelm", "StableLmForCausalLM", GROUPED),
    Architecture("diffllama", "DiffLlamaForCausalLM", GROUPED),
    # Encoders
    Architecture("bert", "BertModel", SIZES),
    Architecture("roberta", "RobertaModel", SIZES),
    Architecture(
        "distilbert",
        "DistilBertModel",
        {"vocab_size": WORDS, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    ),
    Architecture("electra", "ElectraModel", {**SIZES, "embedding_size": 16}),
    Architecture("albert", "AlbertModel", {**SIZES, "embedding_size": 16}, what="shared layers"),
    Architecture("xlm-roberta", "XLMRobertaModel", SIZES),
    Architecture("camembert", "CamembertModel", SIZES),
    Architecture(
        "modernbert",
        "ModernBertModel",
        {**SIZES, "local_attention": WINDOW, "layer_types": LAYERS, "cls_token_id": 1}
        | {"sep_token_id": 2},
        what="window on both sides",
        settings={"local_attention": 128},
    ),
    Architecture("eurobert", "EuroBertModel", GROUPED),
    # Encoder and decoder
    Architecture("t5", "T5Model", T5, "seq2seq", "relative bias"),
    Architecture("mt5", "MT5Model", T5, "seq2seq", "relative bias"),
    Architecture("umt5", "UMT5Model", T5, "seq2seq", "relative bias in each layer"),
    Architecture("bart", "BartModel", BART, "seq2seq"),
    Architecture("mbart", "MBartModel", BART, "seq2seq"),
    Architecture("marian", "MarianModel", BART, "seq2seq"),
    Architecture("pegasus", "PegasusModel", BART, "seq2seq"),
    Architecture("m2m100", "M2M100Model", BART, "seq2seq"),
    Architecture(
        "whisper",
        "WhisperModel",
        {**BART, "num_mel_bins": 8, "max_source_positions": 30, "max_target_positions": 32},
        "speech",
    ),
    Architecture(
        "t5gemma",
        "T5GemmaModel",
        {
            "encoder": {**GROUPED, "head_dim": 8, "sliding_window": WINDOW},
            "decoder": {**GROUPED, "head_dim": 8, "sliding_window": WINDOW},
        },
        "seq2seq",
        "softcap, window",
    ),
    # Images and speech
    Architecture("vit", "ViTModel", VISION, "image"),
    Architecture("deit", "DeiTModel", VISION, "image"),
    Architecture("dinov2", "Dinov2Model", {**VISION, "mlp_ratio": 2}, "image"),
    Architecture("dinov3", "DINOv3ViTModel", VISION, "image"),
    Architecture("clip", "CLIPModel", _CLIP, "both", "text and images"),
    Architecture("siglip", "SiglipModel", _CLIP, "both", "text and images"),
    Architecture("llava", "LlavaModel", _LLAVA, "image in text", "images in text"),
    Architecture(
        "paligemma",
        "PaliGemmaModel",
        _PALI,
        "image in text",
        "images in text, a prefix that sees itself",
    ),
    Architecture(
        "qwen2-vl",
        "Qwen2VLModel",
        {
            "text_config": _QWEN_TEXT,
            "vision_config": _QWEN_VISION,
            "image_token_id": IMAGE_TOKEN,
            "vision_start_token_id": 93,
            "video_token_id": 94,
        },
        "qwen image",
        "images in text, in chunks",
    ),
    Architecture(
        "wav2vec2",
        "Wav2Vec2Model",
        {**SIZES, "conv_dim": [8, 8], "conv_stride": [5, 4], "conv_kernel": [10, 8]}
        | {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4}
        | {"num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0},
        "wave",
    ),
)

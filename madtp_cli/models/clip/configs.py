"""CLIP's configuration: what its tensors' shapes say, what they cannot, and a CLIP of any size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.models.clip.configuration_clip import CLIPConfig

from madtp_cli.models.clip.model import ACTIVATIONS
from madtp_cli.models.configs import COMMON, ShapeReader, tower
from madtp_cli.models.family import Configuration, Sections
from madtp_cli.models.layouts import Found


def read_sections(sizes: ShapeReader, found: Found, task: str) -> Sections:
    """Describe tensors under HF's names."""
    return _sections(sizes)


def published_sections(task: str) -> Sections:
    """Describe ViT-L/14@336."""
    sections: Sections = {
        "vision_config": tower(24, 1024, 4096, 16) | {"patch_size": 14, "image_size": 336},
        "text_config": tower(12, 768, 3072, 12) | {"vocab_size": 49408, "max_position_embeddings": 77},
        "projection_dim": 768,
    }
    return _with_details(sections)


def small_clip_config(
    *,
    image_size: int,
    vocab_size: int,
    eos_token_id: int,
    vision_layers: int = 12,
    vision_width: int = 96,
    vision_heads: int = 3,
    patch_size: int = 8,
    text_layers: int = 3,
    text_width: int = 96,
    text_heads: int = 3,
    mlp_ratio: int = 4,
    projection_dim: int = 64,
    text_positions: int = 64,
    activation: str = "quick_gelu",
) -> CLIPConfig:
    """Describe a CLIP of any size from plain numbers."""
    common = {"projection_dim": projection_dim, "hidden_act": activation, "layer_norm_eps": 1e-5}
    return CLIPConfig(
        projection_dim=projection_dim,
        vision_config={
            **common,
            "hidden_size": vision_width,
            "intermediate_size": mlp_ratio * vision_width,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_heads,
            "image_size": image_size,
            "patch_size": patch_size,
        },
        text_config={
            **common,
            "hidden_size": text_width,
            "intermediate_size": mlp_ratio * text_width,
            "num_hidden_layers": text_layers,
            "num_attention_heads": text_heads,
            "vocab_size": vocab_size,
            "max_position_embeddings": text_positions,
            "bos_token_id": None,
            "eos_token_id": eos_token_id,
            "pad_token_id": None,
        },
    )


def from_words(shape: Mapping[str, Any], image_size: int, words: Mapping[str, int]) -> CLIPConfig:
    """Describe a CLIP over a vocabulary of whole words, of a shape as recipes give it."""
    sizes = {key: value for key, value in shape.items() if key != "merge_from"}
    return small_clip_config(
        projection_dim=sizes.pop("projection"),
        **sizes,
        image_size=image_size,
        vocab_size=len(words),
        eos_token_id=words["[SEP]"],
    )


def _sections(sizes: ShapeReader) -> Sections:
    vocabulary, width = sizes.of("text_model.embeddings.token_embedding.weight", dims=2)
    layer = "text_model.encoder.layers."
    text = tower(sizes.layers(layer), width, sizes.of(f"{layer}0.mlp.fc1.weight", dims=2)[0], 0) | {
        "vocab_size": vocabulary,
        "max_position_embeddings": sizes.of("text_model.embeddings.position_embedding.weight", dims=2)[0],
    }
    return _with_details(
        {
            "vision_config": sizes.vision(positions_dims=2),
            "text_config": text,
            "projection_dim": sizes.of("visual_projection.weight", dims=2)[0],
        }
    )


def _with_details(sections: Sections) -> Sections:
    for section in ("vision_config", "text_config"):
        sections[section] |= {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    last = sections["text_config"]["vocab_size"] - 1  # CLIP's vocabulary ends with its start and end tokens
    sections["text_config"] |= {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
    return sections


CONFIGURATION = Configuration(
    kind=CLIPConfig,
    settings={**COMMON, "eos_token_id": (("text_config", "eos_token_id"),)},
    activations=tuple(ACTIVATIONS),
    read=read_sections,
    published=published_sections,
    small=from_words,
)

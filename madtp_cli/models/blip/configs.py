"""BLIP's configuration: what its tensors' shapes say, what they cannot, and a BLIP of any size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.models.blip.configuration_blip import BlipConfig

from madtp_cli.models.configs import COMMON, ShapeReader, tower
from madtp_cli.models.family import Configuration, Sections
from madtp_cli.models.layouts import Found

MERGE_FROM = 6  # BLIP's NLVR2 joins the two images by a merge layer from this text layer on
SPECIAL_IDS = {
    "pad_token_id": 0,
    "cls_token_id": 101,
    "sep_token_id": 102,
    "bos_token_id": 30522,
    "enc_token_id": 30523,
}
"""BLIP's, in bert-base-uncased with [DEC] (as bos) and [ENC] added."""
IMAGE_SIZES = {"nlvr2": 384, "caption": 384, "retrieval": 384, "vqa": 480}

SETTINGS = {
    **COMMON,
    "merge_from": (("text_config", "merge_from"),),
    "cls_token_id": (("text_config", "cls_token_id"),),
    "sep_token_id": (("text_config", "sep_token_id"),),
    "dec_token_id": (("text_config", "bos_token_id"),),
    "enc_token_id": (("text_config", "enc_token_id"),),
}
_MOST_LAYERS = 1000


def read_sections(sizes: ShapeReader, found: Found, task: str) -> Sections:
    """Describe tensors under HF's names for a task."""
    sections = _sections(sizes)
    if found.layout == "hf":
        sections["vision_config"]["layer_norm_eps"] = 1e-5  # HF's default, which its conversions of BLIP kept
    if task == "nlvr2":
        merged = [n for n in range(_MOST_LAYERS) if _merge_layer(n) in sizes.state]
        twin = "text_encoder.encoder.layer.0.crossattention.self0.key.weight" in sizes.state
        depth = sections["text_config"]["num_hidden_layers"]
        sections["text_config"]["merge_from"] = min(merged, default=depth) if twin else MERGE_FROM
    return sections


def published_sections(task: str) -> Sections:
    """Describe BLIP-B with ViT-B/16 at the task's image size."""
    sections: Sections = {
        "vision_config": tower(12, 768, 3072, 12) | {"patch_size": 16, "image_size": IMAGE_SIZES[task]},
        "text_config": tower(12, 768, 3072, 12)
        | {"vocab_size": 30524, "max_position_embeddings": 512, "encoder_hidden_size": 768},
        "image_text_hidden_size": 256,
    }
    if task == "nlvr2":
        sections["text_config"]["merge_from"] = MERGE_FROM
    return _with_details(sections)


def complete(sections: Sections) -> None:
    """Name the special ids that sections leave open."""
    text = sections["text_config"]
    for name, number in SPECIAL_IDS.items():
        # Ids that a small vocabulary does not have are unknown rather than wrong.
        text.setdefault(name, number if number < text["vocab_size"] else None)


def small_config(
    *,
    image_size: int,
    vocab_size: int,
    vision_layers: int = 12,
    vision_width: int = 96,
    vision_heads: int = 3,
    patch_size: int = 8,
    text_layers: int = 3,
    text_width: int = 96,
    text_heads: int = 3,
    mlp_ratio: int = 4,
    merge_from: int = MERGE_FROM,
    projection_width: int = 64,
    dec_token_id: int | None = None,
    enc_token_id: int | None = None,
    sep_token_id: int | None = None,
    pad_token_id: int = 0,
) -> BlipConfig:
    """Describe a BLIP of any size and task from plain numbers.

    merge_from matters to nlvr2, projection_width to retrieval; dec, sep and pad to what writes text, enc to retrieval.
    """
    return BlipConfig(
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": mlp_ratio * vision_width,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_heads,
            "image_size": image_size,
            "patch_size": patch_size,
            "layer_norm_eps": 1e-6,
        },
        text_config={
            "hidden_size": text_width,
            "encoder_hidden_size": vision_width,
            "intermediate_size": mlp_ratio * text_width,
            "num_hidden_layers": text_layers,
            "num_attention_heads": text_heads,
            "vocab_size": vocab_size,
            "max_position_embeddings": 64,
            "bos_token_id": dec_token_id,
            "enc_token_id": enc_token_id,
            "sep_token_id": sep_token_id,
            "pad_token_id": pad_token_id,
            "layer_norm_eps": 1e-12,
            "merge_from": merge_from,
        },
        image_text_hidden_size=projection_width,
    )


def from_words(shape: Mapping[str, Any], image_size: int, words: Mapping[str, int]) -> BlipConfig:
    """Describe a BLIP over a vocabulary of whole words, of a shape as recipes give it."""
    sizes = dict(shape)
    return small_config(
        projection_width=sizes.pop("projection"),
        **sizes,
        image_size=image_size,
        vocab_size=len(words),
        dec_token_id=words["[DEC]"],
        enc_token_id=words["[ENC]"],
        sep_token_id=words["[SEP]"],
        pad_token_id=words["[PAD]"],
    )


def _sections(sizes: ShapeReader) -> Sections:
    part = "text_encoder" if "text_encoder.embeddings.word_embeddings.weight" in sizes.state else "text_decoder.bert"
    vocabulary, width = sizes.of(f"{part}.embeddings.word_embeddings.weight", dims=2)
    layer = f"{part}.encoder.layer."
    twin = "self0" if f"{layer}0.crossattention.self0.key.weight" in sizes.state else "self"
    text = tower(sizes.layers(layer), width, sizes.of(f"{layer}0.intermediate.dense.weight", dims=2)[0], 0) | {
        "vocab_size": vocabulary,
        "max_position_embeddings": sizes.of(f"{part}.embeddings.position_embeddings.weight", dims=2)[0],
        "encoder_hidden_size": sizes.of(f"{layer}0.crossattention.{twin}.key.weight", dims=2)[1],
    }
    sections: Sections = {"vision_config": sizes.vision(positions_dims=3), "text_config": text}
    if "vision_proj.weight" in sizes.state:
        sections["image_text_hidden_size"] = sizes.of("vision_proj.weight", dims=2)[0]
    return _with_details(sections)


def _with_details(sections: Sections) -> Sections:
    sections["vision_config"] |= {"hidden_act": "gelu", "layer_norm_eps": 1e-6}
    sections["text_config"] |= {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
    return sections


def _merge_layer(number: int) -> str:
    return f"text_encoder.encoder.layer.{number}.crossattention.output.merge_layer.weight"


CONFIGURATION = Configuration(
    kind=BlipConfig,
    settings=SETTINGS,
    activations=("gelu",),  # which has never been another
    read=read_sections,
    published=published_sections,
    complete=complete,
    small=from_words,
)

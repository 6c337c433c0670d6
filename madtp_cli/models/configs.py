"""Configurations of HF for a model: read off its tensors' shapes, adjusted by overrides, or as published.

What shapes cannot tell is heads (one per 64 channels unless given), the activation, norms' epsilons and special ids.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.models.blip.configuration_blip import BlipConfig
from transformers.models.clip.configuration_clip import CLIPConfig

from madtp_cli.errors import SourceError
from madtp_cli.models.clip.model import ACTIVATIONS
from madtp_cli.models.layouts import Found, position_key

HEAD_WIDTH = 64
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

# An override -> where HF's configuration keeps it.
_BOTH = {
    "vision_heads": (("vision_config", "num_attention_heads"),),
    "text_heads": (("text_config", "num_attention_heads"),),
    "activation": (("vision_config", "hidden_act"), ("text_config", "hidden_act")),
    "image_size": (("vision_config", "image_size"),),
    "pad_token_id": (("text_config", "pad_token_id"),),
    "vision_layer_norm_eps": (("vision_config", "layer_norm_eps"),),
    "text_layer_norm_eps": (("text_config", "layer_norm_eps"),),
}
OVERRIDES: Mapping[str, Mapping[str, tuple[tuple[str, str], ...]]] = {
    "blip": {
        **_BOTH,
        "merge_from": (("text_config", "merge_from"),),
        "cls_token_id": (("text_config", "cls_token_id"),),
        "sep_token_id": (("text_config", "sep_token_id"),),
        "dec_token_id": (("text_config", "bos_token_id"),),
        "enc_token_id": (("text_config", "enc_token_id"),),
    },
    "clip": {**_BOTH, "eos_token_id": (("text_config", "eos_token_id"),)},
}
COMPUTED = {"blip": ("gelu",), "clip": tuple(ACTIVATIONS)}
"""The activations that each family's towers compute: BLIP's has never been another."""
_MOST_LAYERS = 1000

Sections = dict[str, Any]


def read_config(state: Mapping[str, Tensor], found: Found, task: str, overrides: Mapping[str, Any], where: str) -> Any:
    """Describe tensors under HF's names for a task; raises SourceError for sizes that make no model."""
    sections = (_clip_sections if found.family == "clip" else _blip_sections)(Sizes(state, where))
    if found.layout == "hf" and found.family == "blip":
        sections["vision_config"]["layer_norm_eps"] = 1e-5  # HF's default, which its conversions of BLIP kept
    if task == "nlvr2":
        merged = [n for n in range(_MOST_LAYERS) if _merge_layer(n) in state]
        twin = "text_encoder.encoder.layer.0.crossattention.self0.key.weight" in state
        depth = sections["text_config"]["num_hidden_layers"]
        sections["text_config"]["merge_from"] = min(merged, default=depth) if twin else MERGE_FROM
    return _make(found.family, sections, overrides, where)


def adjust(config: Any, family: str, overrides: Mapping[str, Any], where: str) -> Any:
    """Return a configuration with overrides applied and BLIP's special ids named; raises SourceError for bad ones."""
    return _make(family, config.to_dict(), overrides, where)


def check_config(config: Any, family: str, where: str) -> None:
    """Refuse a configuration that no model here computes; raises SourceError."""
    _check_sections(config.to_dict(), family, where)


def default_config(
    family: str, task: str, overrides: Mapping[str, Any] | None = None, image_size: int | None = None
) -> Any:
    """Describe the published model: BLIP-B with ViT-B/16 at the task's image size, or CLIP ViT-L/14@336."""
    overrides = dict(overrides or {})
    if image_size is not None:
        overrides["image_size"] = image_size
    where = f"{family} {task}"
    if family == "clip":
        sections: Sections = {
            "vision_config": _tower(24, 1024, 4096, 16) | {"patch_size": 14, "image_size": 336},
            "text_config": _tower(12, 768, 3072, 12) | {"vocab_size": 49408, "max_position_embeddings": 77},
            "projection_dim": 768,
        }
        return _make("clip", _with_clip_details(sections), overrides, where)
    sections = {
        "vision_config": _tower(12, 768, 3072, 12) | {"patch_size": 16, "image_size": IMAGE_SIZES[task]},
        "text_config": _tower(12, 768, 3072, 12)
        | {"vocab_size": 30524, "max_position_embeddings": 512, "encoder_hidden_size": 768},
        "image_text_hidden_size": 256,
    }
    if task == "nlvr2":
        sections["text_config"]["merge_from"] = MERGE_FROM
    return _make("blip", _with_blip_details(sections), overrides, where)


class Sizes:
    """Reads sizes off a state dict under HF's names."""

    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        self.state = state
        self.where = where

    def of(self, key: str, *, dims: int) -> list[int]:
        """Return a tensor's shape; raises SourceError if it is missing or has another number of dimensions."""
        if key not in self.state:
            raise SourceError(f"{self.where}: has no tensor {key}, from which its sizes are read; is it complete?")
        shape = list(self.state[key].shape)
        if len(shape) != dims:
            raise SourceError(f"{self.where}: {key} has shape {shape}, expected {dims} dimensions")
        return shape

    def layers(self, prefix: str) -> int:
        """Count layers `prefix`0, `prefix`1, ..."""
        numbers = {key.removeprefix(prefix).partition(".")[0] for key in self.state if key.startswith(prefix)}
        return next(n for n in range(_MOST_LAYERS) if str(n) not in numbers)

    def vision(self, *, positions_dims: int) -> Sections:
        """Read the image tower, alike in both families."""
        width, _, patch, _ = self.of("vision_model.embeddings.patch_embedding.weight", dims=4)
        positions = self.of(position_key(self.state), dims=positions_dims)[-2]
        side = round((positions - 1) ** 0.5)
        if side * side != positions - 1:
            raise SourceError(
                f"{self.where}: {position_key(self.state)} has {positions} positions, expected a class token and a "
                "square of patches"
            )
        prefix = "vision_model.encoder.layers."
        mlp = self.of(f"{prefix}0.mlp.fc1.weight", dims=2)[0]
        return _tower(self.layers(prefix), width, mlp, 0) | {"patch_size": patch, "image_size": patch * side}


def _blip_sections(sizes: Sizes) -> Sections:
    part = "text_encoder" if "text_encoder.embeddings.word_embeddings.weight" in sizes.state else "text_decoder.bert"
    vocabulary, width = sizes.of(f"{part}.embeddings.word_embeddings.weight", dims=2)
    layer = f"{part}.encoder.layer."
    twin = "self0" if f"{layer}0.crossattention.self0.key.weight" in sizes.state else "self"
    text = _tower(sizes.layers(layer), width, sizes.of(f"{layer}0.intermediate.dense.weight", dims=2)[0], 0) | {
        "vocab_size": vocabulary,
        "max_position_embeddings": sizes.of(f"{part}.embeddings.position_embeddings.weight", dims=2)[0],
        "encoder_hidden_size": sizes.of(f"{layer}0.crossattention.{twin}.key.weight", dims=2)[1],
    }
    sections: Sections = {"vision_config": sizes.vision(positions_dims=3), "text_config": text}
    if "vision_proj.weight" in sizes.state:
        sections["image_text_hidden_size"] = sizes.of("vision_proj.weight", dims=2)[0]
    return _with_blip_details(sections)


def _clip_sections(sizes: Sizes) -> Sections:
    vocabulary, width = sizes.of("text_model.embeddings.token_embedding.weight", dims=2)
    layer = "text_model.encoder.layers."
    text = _tower(sizes.layers(layer), width, sizes.of(f"{layer}0.mlp.fc1.weight", dims=2)[0], 0) | {
        "vocab_size": vocabulary,
        "max_position_embeddings": sizes.of("text_model.embeddings.position_embedding.weight", dims=2)[0],
    }
    return _with_clip_details(
        {
            "vision_config": sizes.vision(positions_dims=2),
            "text_config": text,
            "projection_dim": sizes.of("visual_projection.weight", dims=2)[0],
        }
    )


def _tower(layers: int, width: int, mlp: int, heads: int) -> Sections:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_attention_heads": heads or max(1, width // HEAD_WIDTH),
    }


def _with_blip_details(sections: Sections) -> Sections:
    sections["vision_config"] |= {"hidden_act": "gelu", "layer_norm_eps": 1e-6}
    sections["text_config"] |= {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
    return sections


def _with_clip_details(sections: Sections) -> Sections:
    for section in ("vision_config", "text_config"):
        sections[section] |= {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    last = sections["text_config"]["vocab_size"] - 1  # CLIP's vocabulary ends with its start and end tokens
    sections["text_config"] |= {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
    return sections


def _make(family: str, sections: Sections, overrides: Mapping[str, Any], where: str) -> Any:
    text = sections["text_config"]
    if family == "blip":
        for name, number in SPECIAL_IDS.items():
            # Ids that a small vocabulary does not have are unknown rather than wrong.
            text.setdefault(name, number if number < text["vocab_size"] else None)
    places = OVERRIDES[family]
    for name, value in overrides.items():
        if name not in places:
            close = difflib.get_close_matches(name, places, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(places)}"
            raise SourceError(f"{where}: model.config.{name} is no setting of a {family} model; {hint}")
        _check(name, value, family, where)
        _check_beside(name, value, sections, where)
        for section, key in places[name]:
            sections[section][key] = value
    _check_sections(sections, family, where)
    return (CLIPConfig if family == "clip" else BlipConfig).from_dict(sections)


def _check_sections(sections: Mapping[str, Any], family: str, where: str) -> None:
    vision, text = sections["vision_config"], sections["text_config"]
    for section, tower in (("vision", vision), ("text", text)):
        if tower["hidden_size"] % tower["num_attention_heads"]:
            raise SourceError(
                f"{where}: its {section} tower is {tower['hidden_size']} wide, which {tower['num_attention_heads']} "
                f"heads do not divide; give model.config.{section}_heads"
            )
        if tower["hidden_act"] not in COMPUTED[family]:
            raise SourceError(
                f"{where}: the {section} tower's activation is {tower['hidden_act']}; {family} models here compute "
                f"{' or '.join(COMPUTED[family])}"
            )
    if vision["image_size"] % vision["patch_size"]:
        raise SourceError(
            f"{where}: images of {vision['image_size']} pixels cannot be cut into patches of {vision['patch_size']}; "
            f"give data.image_size, {_multiples(vision['image_size'], vision['patch_size'])}"
        )


def _check(name: str, value: Any, family: str, where: str) -> None:
    if name == "activation":
        good = value in COMPUTED[family]
        wanted = " or ".join(COMPUTED[family]) + f", which is what {family} models here compute"
    elif name.endswith("eps"):
        good, wanted = isinstance(value, (int, float)) and 0 < value < 1, "a number between 0 and 1"
    else:
        least = 0 if name.endswith("_id") or name == "merge_from" else 1
        good, wanted = type(value) is int and value >= least, f"an integer of at least {least}"
    if not good:
        raise SourceError(f"{where}: model.config.{name} is {value!r}; give {wanted}")


def _check_beside(name: str, value: int, sections: Mapping[str, Any], where: str) -> None:
    """Refuse an override that does not fit the model's sizes; raises SourceError."""
    words, patch = sections["text_config"]["vocab_size"], sections["vision_config"]["patch_size"]
    if name.endswith("_token_id") and value >= words:
        raise SourceError(
            f"{where}: model.config.{name} is {value}, and the model's vocabulary has {words} words; give an id below "
            f"{words}, or is model.tokenizer another model's?"
        )
    # A recipe's model.config has no image_size: it comes from data.
    if name == "image_size" and value % patch:
        raise SourceError(
            f"{where}: data.image_size {value} is not a multiple of the patch size {patch}; try "
            f"{_multiples(value, patch)}"
        )


def _multiples(size: int, patch: int) -> str:
    """Name the multiples of a patch on both sides of a size."""
    below = size // patch * patch
    return f"{below} or {below + patch}" if below else str(patch)


def _merge_layer(number: int) -> str:
    return f"text_encoder.encoder.layer.{number}.crossattention.output.merge_layer.weight"


def special_id(config: Any, name: str) -> int:
    """Return the id of a special token; raises SourceError if the text configuration does not say it."""
    found = getattr(config, name, None)
    if not isinstance(found, int):
        key = {"bos_token_id": "dec_token_id"}.get(name, name)
        raise SourceError(
            f"the checkpoint's text configuration: {name} is {found}; try model.config: {{{key}: the token's id}}"
        )
    return found

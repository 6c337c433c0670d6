"""Configurations of HF for a model: read off its tensors' shapes, adjusted by overrides, or as published.

What shapes cannot tell is heads (one per 64 channels unless given), the activation, norms' epsilons and special ids.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from madtp_cli.errors import SourceError
from madtp_cli.models.family import Family, Sections, family_of
from madtp_cli.models.layouts import Found, position_key

HEAD_WIDTH = 64
COMMON: Mapping[str, tuple[tuple[str, str], ...]] = {
    "vision_heads": (("vision_config", "num_attention_heads"),),
    "text_heads": (("text_config", "num_attention_heads"),),
    "activation": (("vision_config", "hidden_act"), ("text_config", "hidden_act")),
    "image_size": (("vision_config", "image_size"),),
    "pad_token_id": (("text_config", "pad_token_id"),),
    "vision_layer_norm_eps": (("vision_config", "layer_norm_eps"),),
    "text_layer_norm_eps": (("text_config", "layer_norm_eps"),),
}
"""Settings of every family, and where transformers' configuration keeps them."""
_MOST_LAYERS = 1000


def read_config(state: Mapping[str, Tensor], found: Found, task: str, overrides: Mapping[str, Any], where: str) -> Any:
    """Describe tensors under HF's names for a task; raises SourceError for sizes that make no model."""
    family = family_of(found.family)
    return _make(family, family.configuration.read(ShapeReader(state, where), found, task), overrides, where)


def adjust(config: Any, family: str, overrides: Mapping[str, Any], where: str) -> Any:
    """Return a configuration with overrides applied and what it leaves open; raises SourceError for bad ones."""
    return _make(family_of(family), config.to_dict(), overrides, where)


def check_config(config: Any, family: str, where: str) -> None:
    """Refuse a configuration that no model here computes; raises SourceError."""
    _check_sections(config.to_dict(), family_of(family), where)


def default_config(
    family: str, task: str, overrides: Mapping[str, Any] | None = None, image_size: int | None = None
) -> Any:
    """Describe the published model of a task, at an image size or the published one."""
    overrides = dict(overrides or {})
    if image_size is not None:
        overrides["image_size"] = image_size
    chosen = family_of(family)
    return _make(chosen, chosen.configuration.published(task), overrides, f"{family} {task}")


class ShapeReader:
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

    def vision(self, *, positions_dims: int, prefix: int = 1) -> Sections:
        """Read the image tower, alike in all families but for the tokens before the patches, `prefix` of them."""
        width, _, patch, _ = self.of("vision_model.embeddings.patch_embedding.weight", dims=4)
        positions = self.of(position_key(self.state), dims=positions_dims)[-2]
        side = round((positions - prefix) ** 0.5)
        if side * side != positions - prefix:
            raise SourceError(
                f"{self.where}: {position_key(self.state)} has {positions} positions, expected "
                f"{'a class token and ' if prefix else ''}a square of patches"
            )
        stack = "vision_model.encoder.layers."
        mlp = self.of(f"{stack}0.mlp.fc1.weight", dims=2)[0]
        return tower(self.layers(stack), width, mlp, 0) | {"patch_size": patch, "image_size": patch * side}


def tower(layers: int, width: int, mlp: int, heads: int) -> Sections:
    """Describe a tower; no heads are as many as there are 64 channels."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_attention_heads": heads or max(1, width // HEAD_WIDTH),
    }


def _make(family: Family, sections: Sections, overrides: Mapping[str, Any], where: str) -> Any:
    family.configuration.complete(sections)
    places = family.configuration.settings
    for name, value in overrides.items():
        if name not in places:
            close = difflib.get_close_matches(name, places, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(places)}"
            raise SourceError(f"{where}: model.config.{name} is no setting of a {family.name} model; {hint}")
        _check(name, value, family, where)
        _check_beside(name, value, sections, where)
        for section, key in places[name]:
            sections[section][key] = value
    _check_sections(sections, family, where)
    return family.configuration.kind.from_dict(sections)


def _check_sections(sections: Mapping[str, Any], family: Family, where: str) -> None:
    vision, text = sections["vision_config"], sections["text_config"]
    for section, tower in (("vision", vision), ("text", text)):
        if tower["hidden_size"] % tower["num_attention_heads"]:
            raise SourceError(
                f"{where}: its {section} tower is {tower['hidden_size']} wide, which {tower['num_attention_heads']} "
                f"heads do not divide; give model.config.{section}_heads"
            )
        if tower["hidden_act"] not in family.configuration.activations:
            raise SourceError(
                f"{where}: the {section} tower's activation is {tower['hidden_act']}; {family.name} models here "
                f"compute {' or '.join(family.configuration.activations)}"
            )
    if vision["image_size"] % vision["patch_size"]:
        raise SourceError(
            f"{where}: images of {vision['image_size']} pixels cannot be cut into patches of {vision['patch_size']}; "
            f"give data.image_size, {_multiples(vision['image_size'], vision['patch_size'])}"
        )


def _check(name: str, value: Any, family: Family, where: str) -> None:
    if name == "activation":
        good = value in family.configuration.activations
        wanted = " or ".join(family.configuration.activations) + f", which is what {family.name} models here compute"
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


def special_id(config: Any, name: str) -> int:
    """Return the id of a special token; raises SourceError if the text configuration does not say it."""
    found = getattr(config, name, None)
    if not isinstance(found, int):
        key = {"bos_token_id": "dec_token_id"}.get(name, name)
        raise SourceError(
            f"the checkpoint's text configuration: {name} is {found}; try model.config: {{{key}: the token's id}}"
        )
    return found

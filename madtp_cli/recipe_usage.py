"""Which settings a recipe's task, family and data read: one that changes nothing is a mistake, and told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from madtp_cli.recipe_yaml import KeyPath


def _data(*names: str) -> Callable[[Any], bool]:
    return lambda recipe: recipe.data.name in names


def _task(*names: str) -> Callable[[Any], bool]:
    return lambda recipe: recipe.task in names


def _family(name: str) -> Callable[[Any], bool]:
    return lambda recipe: recipe.model.family == name


def _files(recipe: Any) -> bool:
    return bool(recipe.data.name != "shapes")


def _ranks(recipe: Any) -> bool:
    if recipe.task == "retrieval":
        return bool(recipe.model.family == "blip")
    return bool(recipe.task == "vqa" and recipe.inference.answers == "rank")


def _writes(recipe: Any) -> bool:
    return bool(recipe.task == "caption" or (recipe.task == "vqa" and recipe.inference.answers == "generate"))


def _opens(recipe: Any) -> bool:
    return recipe.model.checkpoint is not None


_CUSTOM = _data("custom")
READ_BY: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "data.images": ("data sets of files", _files),
    "data.annotations": ("the published data sets", lambda recipe: _files(recipe) and not _CUSTOM(recipe)),
    "data.max_broken": ("data sets of files", _files),
    "data.validation_share": ("data sets of files", _files),
    "data.train_samples": ("data.name shapes", _data("shapes")),
    "data.validation_samples": ("data.name shapes", _data("shapes")),
    "data.test_samples": ("data.name shapes", _data("shapes")),
    "data.questions": ("data.name vqav2", _data("vqav2")),
    "data.genome_images": ("data.name vqav2", _data("vqav2")),
    **{
        f"data.{key}": ("data.name custom", _CUSTOM)
        for key in ("source", "config", "columns", "splits", "streaming", "stream_samples")
    },
    "inference.k_test": ("ranked answers and BLIP's retrieval", _ranks),
    "inference.answers": ("task vqa", _task("vqa")),
    "inference.answer_list": ("ranked answers of task vqa", lambda recipe: recipe.task == "vqa" and _ranks(recipe)),
    "inference.beams": ("captions and written answers", _writes),
    "inference.min_length": ("captions and written answers", _writes),
    "inference.max_length": ("captions and written answers", _writes),
    "inference.prompt": ("captions of files", lambda recipe: recipe.task == "caption" and _files(recipe)),
    "distillation.cache": ("runs with training.teacher", lambda recipe: recipe.training.teacher),
    "training.label_smoothing": ("tasks vqa and caption", _task("vqa", "caption")),
    "model.tokenizer": ("checkpoints", _opens),
    "model.config.merge_from": ("task nlvr2", _task("nlvr2")),
    "model.config.eos_token_id": ("family clip", _family("clip")),
    **{
        f"model.config.{name}_token_id": ("family blip", _family("blip"))
        for name in ("pad", "cls", "sep", "dec", "enc")
    },
}
"""From a key to who reads it, in words and as a test of a recipe."""


def unread(recipe: Any) -> list[tuple[KeyPath, str]]:
    """Return a fault for every setting that differs from its default and that nothing in this recipe reads."""
    faults: list[tuple[KeyPath, str]] = []
    for key, (reader, reads) in READ_BY.items():
        path = key.split(".")
        section = recipe
        for part in path[:-1]:
            section = None if section is None else getattr(section, part)
        if section is None or reads(recipe):
            continue
        field = type(section).model_fields[path[-1]]
        if getattr(section, path[-1]) != field.get_default(call_default_factory=True):
            faults.append((tuple(path), f"{key} is read by {reader} only, so it does nothing here; remove it"))
    layers = recipe.pruning.layers.text
    if recipe.task == "caption" and not isinstance(layers, str):
        faults.append(
            (("pruning", "layers", "text"), "pruning.layers.text: a caption's decoder never prunes; remove it")
        )
    return faults

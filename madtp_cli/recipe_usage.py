"""Which settings a recipe's task, family and data read: one that changes nothing is a mistake, and told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from madtp_cli.families import FAMILIES
from madtp_cli.recipe_yaml import KeyPath


def _data(*names: str) -> Callable[[Any], bool]:
    return lambda recipe: recipe.data.name in names


def _task(*names: str) -> Callable[[Any], bool]:
    return lambda recipe: recipe.task in names


def _families(setting: str) -> tuple[str, Callable[[Any], bool]]:
    """Name the families that read a key of model.config."""
    names = [name for name, entry in FAMILIES.items() if setting in entry.settings]
    return f"family {' or '.join(names)}", lambda recipe: recipe.model.family in names


def _files(recipe: Any) -> bool:
    return bool(recipe.data.name != "shapes")


def _ranks(recipe: Any) -> bool:
    if recipe.task == "retrieval":
        return FAMILIES[recipe.model.family].reranks
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
    **{
        f"model.config.{setting}": _families(setting)
        for setting in dict.fromkeys(key for entry in FAMILIES.values() for key in entry.settings)
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
    return faults + list(_unpruned(recipe))


def _unpruned(recipe: Any) -> Iterator[tuple[KeyPath, str]]:
    """Yield a fault for layers of a site where nothing prunes."""
    sites = FAMILIES[recipe.model.family].sites[recipe.task]
    for site in type(recipe.pruning.layers).model_fields:
        reason = sites.get(site, f"{recipe.model.family} models for {recipe.task} have no such site")
        if reason and not isinstance(recipe.pruning.layers.of(site), str):
            yield ("pruning", "layers", site), f"pruning.layers.{site}: {reason}; remove it"

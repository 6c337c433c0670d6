"""Open checkpoints of every kind as one record, and save our own folders."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madtp_cli.errors import SourceError
from madtp_cli.families import FAMILIES, OLDEST
from madtp_cli.models import layouts
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.configs import adjust, check_config, read_config
from madtp_cli.models.family import families, family_of, model_class
from madtp_cli.models.fetch import SUFFIXES, Fetched, fetch
from madtp_cli.models.filling import fill
from madtp_cli.models.layouts import Layout
from madtp_cli.models.limits import Limits, limits_of
from madtp_cli.models.sites import Site
from madtp_cli.models.spec import PruningSpec
from madtp_cli.models.starting import start
from madtp_cli.models.weights import WEIGHTS as WEIGHTS
from madtp_cli.models.weights import one_line, read_file, read_folder, read_json, save

BUILTIN = "builtin:"
CONFIG = "config.json"
# How the weights of a folder are called, in one file or in shards.
_OF_FOLDER = re.compile(r"^(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)$")
TEMPERATURE = "pruning_temperature"  # the override that is no setting of a model
RELEASED_STRENGTH = 0.5  # whose threshold is the published one


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint, whatever it came as: configuration, task, how it prunes, and tensors under HF's names.

    `folder` is None for a file, whose neighbours are none of its own; `source` is what the user called it. `fresh`
    names tensors that it does not hold and that start anew because another task was asked for, and `started_from` the
    task that the tensors were for then ("pretrained": before finetuning); `notes` say what was done to the rest.
    """

    folder: Path | None
    config: Any
    task: str
    spec: PruningSpec
    budget: Mapping[str, Any]
    state: Mapping[str, Tensor] = field(repr=False)
    family: str = OLDEST
    source: str = ""
    fresh: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    started_from: str | None = None

    @property
    def sites(self) -> tuple[Site, ...]:
        """The places of its model where tokens may go."""
        return model_class(self.family, self.task).sites_of(self.config)

    @property
    def limits(self) -> Limits:
        """What its model can read."""
        return limits_of(self.config)

    @property
    def tied(self) -> Mapping[str, str]:
        """Tensors of its model that are copies of others, by the name of the copy."""
        return model_class(self.family, self.task).tied

    @property
    def size_mib(self) -> float:
        """Size of the tensors, with no file's header."""
        return sum(tensor.nbytes for tensor in self.state.values()) / 2**20

    def build(self, spec: PruningSpec | None = None, *, merge_gradient: bool = False) -> PrunedModel:
        """Build the model with its weights, in eval mode.

        `spec` replaces the checkpoint's own pruning; its alignment module keeps the stored weights where they fit and
        is fresh otherwise. Raises WeightsError naming the tensors that are missing, unexpected, of the wrong shape or
        not finite.
        """
        chosen = self.spec if spec is None else spec
        model = chosen.model(self.family, self.task, self.config, merge_gradient=merge_gradient)
        fresh = set(self.fresh)
        fill(model, self.state, self.source, fresh_alignment=spec is not None, fresh=fresh, tied=model.tied)
        return model.eval()


def builtin_folder(name: str) -> Path:
    """Return the folder of a checkpoint that ships with the package; raises SourceError with the names there are."""
    root = Path(__file__).parents[1] / "builtin"
    folder = root / name
    if not (folder / CONFIG).is_file():
        names = sorted(path.parent.name for path in root.glob(f"*/{CONFIG}"))
        raise SourceError(f"{BUILTIN}{name}: no such built-in checkpoint; there are: {', '.join(names) or 'none'}")
    return folder


def open_checkpoint(
    source: str | Path, *, config: Mapping[str, Any] | None = None, task: str | None = None
) -> Checkpoint:
    """Open `builtin:NAME`, our folder, HF's folder or hub id, or a file or https address of a state dict.

    The weights of a folder that has a config.json stand for their folder.
    State dicts are recognised by their keys (HF, Salesforce's BLIP, OpenAI's CLIP, each also as released MADTP saves
    it) and sized by their shapes. `config` gives what shapes cannot tell (the recipe's `model.config`, see
    configs.OVERRIDES, and pruning_temperature); `task` starts another task than the one the tensors are for. Raises
    SourceError for what is missing, unreadable, not recognised, or only online while offline.
    """
    name = str(source)
    builtin = name.startswith(BUILTIN)
    fetched = Fetched(builtin_folder(name.removeprefix(BUILTIN))) if builtin else fetch(name)
    path, notes = fetched.path, fetched.notes
    overrides = dict(config or {})
    temperature = overrides.pop(TEMPERATURE, None)
    if path.is_file() and _OF_FOLDER.match(path.name) and (path.parent / CONFIG).is_file():
        notes += (f"{name} lies beside a {CONFIG}: opened with it, as the folder {path.parent}",)
        path, name = path.parent, str(path.parent)
    if path.is_dir():
        opened = _open_folder(path, name, overrides, task)
    elif path.suffix in SUFFIXES:
        opened = _open_file(path, name, overrides, task)
    else:
        raise SourceError(
            f"{source}: is a file that does not end with {', '.join(SUFFIXES)}; a checkpoint is such a file, or a "
            f"folder that holds {CONFIG} and {WEIGHTS}"
        )
    if temperature is not None:
        opened = _at_temperature(opened, temperature)
    elif opened.spec.method != "none" and opened.spec.temperature == 0:
        notes += (f"no pruning temperature is stored: opened dense; give model.config.{TEMPERATURE} to prune",)
    return replace(opened, notes=notes + opened.notes)


def _open_folder(folder: Path, source: str, overrides: Mapping[str, Any], task: str | None) -> Checkpoint:
    path = folder / CONFIG
    data = read_json(path)
    ours = "madtp" in data
    block = data.pop("madtp", {})
    if not isinstance(block, dict):
        raise SourceError(f"{path}: madtp must be a JSON object, got {type(block).__name__}")
    family, own, budget = block.pop("family", OLDEST), block.pop("task", "nlvr2"), block.pop("budget", {})
    if not ours:
        family, own = _architecture(data, path)
    if family not in FAMILIES or (own and own not in FAMILIES[family].sites):
        known = ", ".join(f"{task} ({name})" for name, entry in FAMILIES.items() for task in entry.sites)
        raise SourceError(f"{path}: is for {own} ({family}); this madtp knows {known}, try upgrading")
    kind = family_of(family)
    try:
        config = kind.configuration.kind.from_dict(data)
    except Exception as error:  # transformers validates with errors of several libraries
        raise SourceError(f"{path}: is no configuration of {kind.title}: {one_line(error)}") from error
    spec = PruningSpec.from_dict(block, str(path))
    state = read_folder(folder)
    notes: tuple[str, ...] = ()
    if not ours:
        found = layouts.recognise(state, source)
        if family != found.family or (own and own != found.task):
            raise SourceError(
                f"{path}: says {', '.join(data.get('architectures') or ())}, but the tensors beside it are those of "
                f"{family_of(found.family).title} for {found.task}; are both files of one checkpoint?"
            )
        state, extras = layouts.to_hf(state, source)
        state, noted = _completed(state, found, task)
        own, notes = found.task, _left_out(extras) + noted
        spec = _released_spec(state, family, found.task, config, None, source)
    if ours and not overrides:
        check_config(config, family, str(path))
    else:
        config = adjust(config, family, overrides, source if overrides else str(path))
    begun = start(state, family, own, task, config.text_config.to_dict(), source)
    kept, resized = _at_size(begun.state, config, overrides, model_class(family, begun.task).image_prefix)
    return Checkpoint(
        folder=folder,
        config=config,
        task=begun.task,
        spec=spec,
        budget=budget,
        state=kept,
        family=family,
        source=source,
        fresh=begun.fresh,
        notes=notes + begun.notes + resized,
        started_from=begun.started_from,
    )


def _open_file(path: Path, source: str, overrides: Mapping[str, Any], task: str | None) -> Checkpoint:
    weights = read_file(path)
    if weights.ours:
        raise SourceError(
            f"{source}: is the weights of a folder that madtp wrote, without the {CONFIG} that says how the model is "
            f"built and how it prunes; put both into one folder, the weights as {WEIGHTS}, and name the folder"
        )
    found = layouts.recognise(weights.tensors, source)
    tensors, extras = layouts.to_hf(weights.tensors, source)
    tensors, noted = _completed(tensors, found, task)
    begun = start(tensors, found.family, found.task, task, overrides, source)
    config = read_config(begun.state, found, begun.task, overrides, source)
    spec = _released_spec(begun.state, found.family, begun.task, config, weights.temperature, source)
    kept, resized = _at_size(begun.state, config, overrides, model_class(found.family, begun.task).image_prefix)
    return Checkpoint(
        folder=None,
        config=config,
        task=begun.task,
        spec=spec,
        budget={},
        state=kept,
        family=found.family,
        source=source,
        fresh=begun.fresh,
        notes=_left_out(extras) + noted + begun.notes + resized,
        started_from=begun.started_from,
    )


def _architecture(data: Mapping[str, Any], path: Path) -> tuple[str, str | None]:
    """Read family and task off HF's config.json, the task None where it does not say."""
    known = list(families())
    names = {name: (family.name, task) for family in known for name, task in family.architectures.items()}
    ours = {model.__name__: (family.name, task) for family in known for task, model in family.models.items()}
    named = data.get("architectures") or []
    if isinstance(named, list) and len(named) == 1 and named[0] in (both := names | ours):
        return both[named[0]]
    kind = data.get("model_type", OLDEST)
    if named or kind not in FAMILIES:
        raise SourceError(
            f"{path}: is the configuration of {named or kind}; the checkpoints of HF that madtp opens are "
            f"{', '.join(names | ours)}"
        )
    return kind, None


def _released_spec(
    state: Mapping[str, Tensor], family: str, task: str, config: Any, temperature: float | None, where: str
) -> PruningSpec:
    """Describe how the released code prunes with the alignment tokens it saved; dense where there are none."""
    if (tokens := state.get("alignment.tokens")) is None:
        return PruningSpec()
    model = model_class(family, task)
    sites = model.sites_of(config)
    dim, mapped = tokens.shape[-1], any(key.startswith("alignment.maps.") for key in state)
    if not mapped and (unlike := [f"{site.name} {site.width}" for site in sites if site.width != dim]):
        raise SourceError(
            f"{where}: has alignment tokens {dim} wide and no maps to them, but towers of other widths: "
            f"{', '.join(unlike)}; is it complete?"
        )
    return PruningSpec(
        method="madtp",
        variant="released",
        temperature=temperature or 0.0,
        strength=RELEASED_STRENGTH,
        layers={site.name: tuple(range(site.layers)) for site in sites if model.released_prunes(site)},
        alignment_tokens=len(tokens),
        alignment_dim=dim,
        projection="per_layer" if mapped else "none",
    )


def _at_temperature(opened: Checkpoint, temperature: Any) -> Checkpoint:
    if opened.spec.method == "none":
        raise SourceError(f"{opened.source}: is dense; model.config.{TEMPERATURE} is for checkpoints that prune")
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or temperature < 0:
        raise SourceError(
            f"{opened.source}: model.config.{TEMPERATURE} is {temperature!r}; give a number of at least 0"
        )
    return replace(opened, spec=replace(opened.spec, temperature=float(temperature)))


def _at_size(
    state: Mapping[str, Tensor], config: Any, overrides: Mapping[str, Any], prefix: int
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Interpolate positions if another image size was asked for; what does not fit otherwise is refused by `fill`."""
    positions = state.get(layouts.position_key(state))
    if "image_size" not in overrides or positions is None:
        return state, ()
    vision = config.vision_config
    old, new = isqrt(positions.shape[-2] - prefix), vision.image_size // vision.patch_size
    if old == new or old * old != positions.shape[-2] - prefix:
        return state, ()
    note = f"image positions interpolated from {old}x{old} to {new}x{new} patches ({vision.image_size} pixels)"
    return layouts.resize_positions(state, new, prefix), (note,)


def _left_out(extras: Mapping[str, Tensor]) -> tuple[str, ...]:
    count = sum(map(layouts.is_training_state, extras))
    return (f"left out {count} tensors that only training used: momentum copies, queues",) if count else ()


def _completed(
    state: dict[str, Tensor], found: layouts.Found, task: str | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Add what files of a layout leave out, and say so, if they are opened for their own task."""
    return family_of(found.family).complete(state, found) if task in (None, found.task) else (state, ())


def export_state(source: PrunedModel | Checkpoint, layout: Layout) -> dict[str, Tensor]:
    """Write a model's or checkpoint's tensors back under HF's, Salesforce's or OpenAI's names.

    Salesforce's also get the tied copies and position ids that its code expects; HF's leave the copies out. No two
    tensors share memory. Raises SourceError for tensors that the layout has no place for.
    """
    state = source.state if isinstance(source, Checkpoint) else source.state_dict()
    exported = layouts.from_hf({key: value for key, value in state.items() if key not in source.tied}, {}, layout)
    return layouts.finished(exported, layout)


def save_weights(
    folder: Path,
    model: PrunedModel,
    spec: PruningSpec,
    task: str,
    budget: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write config.json and model.safetensors (no tied copies) into an existing folder."""
    data = model.config.to_dict()
    data["architectures"] = [type(model).__name__]
    data["madtp"] = {"family": model.family, "task": task, **spec.to_dict(), "budget": dict(budget)}
    (folder / CONFIG).write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    own = {key: value for key, value in model.state_dict().items() if key not in model.tied}
    state = {key: value.detach().to("cpu", dtype).contiguous() for key, value in own.items()}
    save(state, folder / WEIGHTS)
    # safetensors lets nobody else read its files; whoever may read the configuration may read the weights.
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)

"""Open and save checkpoint folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.blip.configuration_blip import BlipConfig

from madtp_cli.errors import SourceError
from madtp_cli.models.nlvr import BlipForNlvr
from madtp_cli.models.spec import PruningSpec

BUILTIN = "builtin:"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
MOST_FAULTS = 8  # tensors named when weights do not fit; a wrong width touches all of them


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder: where it is, its configuration, its task, how it prunes and its tensors."""

    folder: Path
    config: BlipConfig
    task: str
    spec: PruningSpec
    budget: Mapping[str, Any]
    state: Mapping[str, Tensor]

    @property
    def towers(self) -> dict[str, tuple[int, int]]:
        """Name every tower with its number of layers and width."""
        return towers_of(self.config)

    def build(self, spec: PruningSpec | None = None, *, merge_gradient: bool = False) -> BlipForNlvr:
        """Build the model with its weights, in eval mode.

        `spec` replaces the checkpoint's own pruning; its alignment module keeps the stored weights where they fit and
        is fresh otherwise. Raises SourceError naming every tensor that is missing, unexpected or of the wrong shape.
        """
        chosen = self.spec if spec is None else spec
        model = BlipForNlvr(
            self.config,
            alignment=chosen.alignment(self.towers),
            plan=chosen.plan(merge_gradient=merge_gradient),
            strength=chosen.strength,
        )
        fill(model, self.state, str(self.folder), fresh_alignment=spec is not None)
        return model.eval()


def towers_of(config: BlipConfig) -> dict[str, tuple[int, int]]:
    """Name every tower with its number of layers and width."""
    vision, text = config.vision_config, config.text_config
    return {
        "vision": (vision.num_hidden_layers, vision.hidden_size),
        "text": (text.num_hidden_layers, text.hidden_size),
    }


def builtin_folder(name: str) -> Path:
    """Return the folder of a checkpoint that ships with the package; raises SourceError with the names there are."""
    root = Path(__file__).parents[1] / "builtin"
    folder = root / name
    if not (folder / CONFIG).is_file():
        names = sorted(path.parent.name for path in root.glob(f"*/{CONFIG}"))
        raise SourceError(f"{BUILTIN}{name}: no such built-in checkpoint; there are: {', '.join(names) or 'none'}")
    return folder


def open_checkpoint(source: str) -> Checkpoint:
    """Open a local checkpoint folder or `builtin:NAME`.

    Raises SourceError when it is missing, not a checkpoint folder, or unreadable.
    """
    folder = builtin_folder(source.removeprefix(BUILTIN)) if source.startswith(BUILTIN) else Path(source)
    if folder.is_file():
        raise SourceError(f"{source}: is a file; a checkpoint is a folder that holds {CONFIG} and {WEIGHTS}")
    if not folder.is_dir():
        raise SourceError(f"{source}: no such checkpoint folder; give a folder that holds {CONFIG} and {WEIGHTS}")
    data = _read_json(folder / CONFIG)
    block = data.pop("madtp", {})
    if not isinstance(block, dict):
        raise SourceError(f"{folder / CONFIG}: madtp must be a JSON object, got {type(block).__name__}")
    task, budget = block.pop("task", "nlvr2"), block.pop("budget", {})
    try:
        config = BlipConfig.from_dict(data)
    except Exception as error:  # transformers validates with errors of several libraries
        raise SourceError(f"{folder / CONFIG}: is no configuration of BLIP: {_one_line(error)}") from error
    try:
        state = load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise SourceError(f"{folder / WEIGHTS}: no such file; the checkpoint folder is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{folder / WEIGHTS}: cannot be read as safetensors: {_one_line(error)}") from error
    return Checkpoint(folder, config, task, PruningSpec.from_dict(block, str(folder / CONFIG)), budget, state)


def fill(model: BlipForNlvr, state: Mapping[str, Tensor], where: str, *, fresh_alignment: bool = False) -> None:
    """Load tensors into a model, refusing anything that does not match.

    With `fresh_alignment`, alignment tensors may be absent or of another shape (the module is then trained anew).
    """
    own = model.state_dict()
    state = dict(state)
    if fresh_alignment:
        for key in [key for key in {*own, *state} if key.startswith("alignment.")]:
            if key not in own or key not in state or own[key].shape != state[key].shape:
                state.pop(key, None)
                own.pop(key, None)
    faults = [f"missing {key}" for key in own if key not in state]
    faults += [f"unexpected {key}" for key in state if key not in own]
    faults += [
        f"{key} has shape {list(state[key].shape)}, expected {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if faults:
        shown = "; ".join(faults[:MOST_FAULTS]) + (
            f"; and {len(faults) - MOST_FAULTS} more" * (len(faults) > MOST_FAULTS)
        )
        raise SourceError(f"{where}: {len(faults)} tensors do not match the model: {shown}")
    model.load_state_dict(state, strict=not fresh_alignment)


def save_weights(folder: Path, model: BlipForNlvr, spec: PruningSpec, task: str, budget: Mapping[str, Any]) -> None:
    """Write config.json and model.safetensors (float32) into an existing folder."""
    data = model.config.to_dict()
    data["architectures"] = [type(model).__name__]
    data["madtp"] = {"task": task, **spec.to_dict(), "budget": dict(budget)}
    (folder / CONFIG).write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    state = {key: value.detach().to("cpu", torch.float32).contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    # safetensors lets nobody else read its files; whoever may read the configuration may read the weights.
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file; is {path.parent} a checkpoint folder?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as JSON: {_one_line(error)}") from error
    if not isinstance(data, dict):
        raise SourceError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

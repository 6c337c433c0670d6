"""Read tensors from the files that checkpoints come in, without ever running code that a file holds."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from madtp_cli.errors import SourceError

WEIGHTS, PICKLED = "model.safetensors", "pytorch_model.bin"
_UNDER = ("model", "state_dict")  # keys that training scripts save the tensors under
_WRAPPED = "module."  # what DistributedDataParallel puts before every key
# Where a pruning temperature may lie beside the tensors; the last is that of old released runs.
_TEMPERATURES = ("temperature", "p")
METADATA = {"format": "pt", "madtp": "1"}
"""What our own safetensors say about themselves: they need the config.json that was written with them."""
_ZIP, _PICKLE = b"PK", b"\x80"  # what files of torch begin with, new and old


@dataclass(frozen=True)
class Weights:
    """Tensors by key, the pruning temperature saved beside them, if any, and whether madtp wrote the file."""

    tensors: dict[str, Tensor] = field(repr=False)
    temperature: float | None = None
    ours: bool = False


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint folder: safetensors or pickled, in one file or in shards listed by an index."""
    for name in (WEIGHTS, PICKLED):
        if (folder / name).is_file():
            return read_file(folder / name).tensors
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder, folder / f"{name}.index.json")
    raise SourceError(f"{folder / WEIGHTS}: no such file; the checkpoint folder is incomplete")


def read_file(path: Path) -> Weights:
    """Read a .safetensors file or a pickled state dict, also one saved under `model` or `state_dict`.

    Raises SourceError for a file that is none, or that needs arbitrary code to be read.
    """
    head = _head(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                said = file.metadata() or {}
            return Weights(load_file(path), ours="madtp" in said)
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{path}: cannot be read as safetensors: {one_line(error)}; {_cut_off(path)}") from error
    data = _unpickle(path, head)
    if not isinstance(data, Mapping):
        raise SourceError(f"{path}: holds a {type(data).__name__}, expected a dictionary of tensors")
    found = next((data[key] for key in _UNDER if isinstance(data.get(key), Mapping)), data)
    temperature = _temperature(data)
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)}
    if found is data and temperature is not None:
        found = {key: value for key, value in data.items() if key not in _TEMPERATURES or _number(value) is None}
        tensors = {key: value for key, value in tensors.items() if key in found}
    if not tensors or len(tensors) < len(found):
        others = [str(key) for key in found if key not in tensors]
        raise SourceError(
            f"{path}: {'is empty' if not others else 'holds more than tensors: ' + ', '.join(others[:4])}; expected a "
            f"state dict at the top or under {' or '.join(_UNDER)}"
        )
    if all(key.startswith(_WRAPPED) for key in tensors):
        tensors = {key.removeprefix(_WRAPPED): value for key, value in tensors.items()}
    return Weights(tensors, temperature)


def save(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors of ours, the same bytes for the same tensors."""
    save_file(dict(state), path, metadata=METADATA)
    # The order of metadata is that of a randomly seeded hash map; either order takes as many bytes.
    ordered, swapped = (
        json.dumps(dict(items), separators=(",", ":")).encode()
        for items in (METADATA.items(), reversed(METADATA.items()))
    )
    with path.open("r+b") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        file.seek(8)
        file.write(header.replace(swapped, ordered))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises SourceError if it cannot be."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file; is {path.parent} a checkpoint folder?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as JSON: {one_line(error)}") from error
    if not isinstance(data, dict):
        raise SourceError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def one_line(error: Exception) -> str:
    """Return an error's message without line breaks."""
    return " ".join(str(error).split())


def _read_shards(folder: Path, index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise SourceError(f"{index}: weight_map must be an object from tensors to files")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        # A name that leads out of the folder would read files that are no part of the checkpoint.
        if Path(name).name != name or not (folder / name).is_file():
            raise SourceError(f"{folder / name}: no such file, but {index.name} lists it; the folder is incomplete")
        tensors |= read_file(folder / name).tensors
    if missing := [key for key in places if key not in tensors]:
        raise SourceError(f"{index}: lists {missing[0]}, which {places[missing[0]]} does not hold")
    return tensors


def _head(path: Path) -> bytes:
    """Return how a file begins; raises SourceError for an empty one, or one that may not be read."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from error
    if not head:
        raise SourceError(f"{path}: is empty; fetch it again")
    return head


def _cut_off(path: Path) -> str:
    return f"cut off? it has {path.stat().st_size} bytes; fetch it again"


def _unpickle(path: Path, head: bytes) -> Any:
    archive = zipfile.is_zipfile(path)
    if head.startswith(_ZIP) and not archive:
        raise SourceError(f"{path}: cannot be read as a PyTorch checkpoint: its end is missing; {_cut_off(path)}")
    if not archive and not head.startswith(_PICKLE):
        raise SourceError(f"{path}: is no PyTorch checkpoint, it begins with {head!r}; fetch it again")
    if archive and _is_program(path):
        raise SourceError(
            f"{path}: is a TorchScript program (OpenAI's CLIP comes so), which would run its own code; convert it once "
            f"where you trust it: torch.save(torch.jit.load({path.name!r}, 'cpu').state_dict(), 'clip.pth')"
        )
    try:
        # Mapped files are not read before their tensors are; the old format cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        reason = one_line(error)
        if "weights_only" not in reason and "Unsupported" not in reason:
            raise SourceError(
                f"{path}: cannot be read as a PyTorch checkpoint: {reason[:200]}; {_cut_off(path)}"
            ) from error
        raise SourceError(
            f"{path}: holds Python objects, and reading them would run code that the file brings; only plain tensors "
            "are read. If you trust it, convert it once: torch.save(torch.load(FILE, weights_only=False)['model'], "
            f"'plain.pth') ({_global(reason)})"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError) as error:
        reason = one_line(error)[:200] or "it ends too early"
        raise SourceError(f"{path}: cannot be read as a PyTorch checkpoint: {reason}; {_cut_off(path)}") from error


def _is_program(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _global(reason: str) -> str:
    """Name what a refused pickle wanted to call."""
    words = reason.partition("GLOBAL ")[2].split()
    return f"it wants {words[0]}" if words else "torch.load refused it"


def _temperature(data: Mapping[Any, Any]) -> float | None:
    return next((value for key in _TEMPERATURES if (value := _number(data.get(key))) is not None), None)


def _number(value: Any) -> float | None:
    """Return a number or a tensor of one as a temperature, if it can be one."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    return float(value) if good else None

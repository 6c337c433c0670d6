"""Files of weights: each format is read, and none runs code."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from madtp_cli.errors import SourceError
from madtp_cli.models.weights import METADATA, read_file, read_folder, save

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(7)}


class Custom:
    """Something that only its own code can unpickle."""


def _same(found: dict[str, Tensor]) -> bool:
    return set(found) == set(STATE) and all(torch.equal(found[key], STATE[key]) for key in STATE)


def _refused(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        read_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("wrap", [dict, OrderedDict, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_pickled_state_dicts_are_read(tmp_path: Path, wrap: Any, zipped: bool, prefix: str) -> None:
    """Flat or under a key, in both formats of torch, and with what DistributedDataParallel puts before keys."""
    data = wrap({prefix + key: value for key, value in STATE.items()})
    torch.save(data, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert _same(read_file(tmp_path / "x.pth").tensors)


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({}, None),
        ({"temperature": 1.5}, 1.5),
        ({"p": 2}, 2.0),
        ({"temperature": torch.tensor(0.5)}, 0.5),
        ({"temperature": "high", "p": True}, None),
        ({"temperature": -1.0}, None),
    ],
)
def test_a_pruning_temperature_beside_the_tensors_is_read(
    tmp_path: Path, beside: dict[str, Any], expected: float | None
) -> None:
    """A number that can be one."""
    torch.save({"model": STATE, **beside}, tmp_path / "x.pth")
    assert read_file(tmp_path / "x.pth").temperature == expected


@pytest.mark.parametrize("beside", [{"temperature": 2.0}, {"p": 2}, {"p": torch.tensor(2.0)}], ids=repr)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_pruning_temperature_among_the_tensors_is_read(tmp_path: Path, prefix: str, beside: dict[str, Any]) -> None:
    """A number or a tensor of one; it is then none of the model's tensors."""
    torch.save({**beside, **{prefix + key: value for key, value in STATE.items()}}, tmp_path / "x.pth")
    found = read_file(tmp_path / "x.pth")
    assert _same(found.tensors)
    assert found.temperature == 2.0


@pytest.mark.parametrize(("metadata", "ours"), [(METADATA, True), ({"format": "pt"}, False), (None, False)])
def test_our_own_safetensors_are_told(tmp_path: Path, metadata: dict[str, str] | None, ours: bool) -> None:
    """By what they say about themselves."""
    save_file(STATE, tmp_path / "x.safetensors", metadata=metadata)
    assert read_file(tmp_path / "x.safetensors").ours is ours


def test_our_safetensors_have_the_same_bytes_every_time(tmp_path: Path) -> None:
    """The order of what they say about themselves is fixed; safetensors' own reader finds all of it."""
    written = set()
    for row in range(8):
        save(STATE, tmp_path / f"{row}.safetensors")
        written.add((tmp_path / f"{row}.safetensors").read_bytes())
    assert len(written) == 1
    assert _same(load_file(tmp_path / "0.safetensors"))
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert file.metadata() == METADATA


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    """The message says what it wants, that nothing ran, and how to convert the file."""
    torch.save({"model": STATE, "args": Custom()}, tmp_path / "x.pth")
    message = _refused(tmp_path / "x.pth")
    assert message.startswith("holds Python objects, and reading them would run code that the file brings")
    assert "convert it once: torch.save(torch.load(FILE, weights_only=False)['model'], 'plain.pth')" in message
    assert message.endswith("Custom)")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    """The message says how to convert it."""
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "ViT-B-16.pt")
    message = _refused(tmp_path / "ViT-B-16.pt")
    assert message.startswith("is a TorchScript program (OpenAI's CLIP comes so)")
    assert "torch.save(torch.jit.load('ViT-B-16.pt', 'cpu').state_dict(), 'clip.pth')" in message


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half an archive", b"\x80\x02}q\x00."])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """Empty, text, broken and empty-dictionary files give one line, never a traceback."""
    (tmp_path / name).write_bytes(content)
    message = _refused(tmp_path / name)
    assert message.endswith("fetch it again")
    if not content:
        assert message == "is empty; fetch it again"


def test_a_page_in_the_place_of_a_checkpoint_is_shown(tmp_path: Path) -> None:
    """What a failed download often is."""
    (tmp_path / "x.pth").write_bytes(b"<html>not found</html>")
    assert _refused(tmp_path / "x.pth") == (
        "is no PyTorch checkpoint, it begins with b'<html>not found</html>'; fetch it again"
    )


@pytest.mark.parametrize("kind", ["zipped", "old", "safetensors"])
def test_a_file_that_was_cut_off_is_told_by_its_size(tmp_path: Path, kind: str) -> None:
    """At every length, in every format: one line with the bytes there are."""
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    state = {"a": torch.randn(40, 40), "b": torch.randn(9)}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zipped")
    whole = path.read_bytes()
    for length in (3, 10, 100, 600, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        assert _refused(path).endswith(f"; cut off? it has {length} bytes; fetch it again")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(2), "holds a Tensor, expected a dictionary of tensors"),
        ({}, "is empty; expected a state dict at the top or under model or state_dict"),
        ({**STATE, "lr": 0.1}, "holds more than tensors: lr; expected a state dict at the top or under model or"),
        ({"model": {**STATE, "deep": {}}}, "holds more than tensors: deep; "),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, data: Any, message: str) -> None:
    """The message says what the file holds."""
    torch.save(data, tmp_path / "x.pt")
    assert _refused(tmp_path / "x.pt").startswith(message)


def test_folders_are_read_in_every_form(tmp_path: Path) -> None:
    """One file or shards, safetensors or pickled; safetensors first where both are there."""
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    assert _same(read_folder(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    save_file({"a.weight": STATE["a.weight"]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": STATE["b"]}, tmp_path / "model-00002-of-00002.safetensors")
    index = {"a.weight": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    (tmp_path / "pytorch_model.bin").unlink()
    assert _same(read_folder(tmp_path))
    save_file(STATE, tmp_path / "model.safetensors")
    assert _same(read_folder(tmp_path))


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([], "model.safetensors.index.json: weight_map must be an object from tensors to files"),
        ({"a": 1}, "model.safetensors.index.json: weight_map must be an object from tensors to files"),
        ({"a": "gone.safetensors"}, "gone.safetensors: no such file, but model.safetensors.index.json lists it; "),
        ({"a": "../x.safetensors"}, "../x.safetensors: no such file, but model.safetensors.index.json lists it; "),
        ({"c": "here.safetensors"}, "model.safetensors.index.json: lists c, which here.safetensors does not hold"),
    ],
)
def test_a_broken_index_is_named(tmp_path: Path, places: Any, message: str) -> None:
    """The message names the file; nothing outside the folder is read."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (tmp_path / "x.safetensors", folder / "here.safetensors"):
        save_file(STATE, path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    with pytest.raises(SourceError) as caught:
        read_folder(folder)
    assert str(caught.value).startswith(f"{folder}/{message}")

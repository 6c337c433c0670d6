"""Checkpoint folders: what was saved comes back bit by bit, and every way they can be broken is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from madtp_cli.errors import SourceError
from madtp_cli.models.checkpoints import CONFIG, WEIGHTS, builtin_folder, open_checkpoint, save_weights
from madtp_cli.models.nlvr import BlipForNlvr
from madtp_cli.models.spec import PruningSpec

Make = Callable[[PruningSpec], BlipForNlvr]
BUDGET = {"target_reduction": 0.8, "reached_reduction": 0.79, "met": False}


@pytest.fixture
def folder(tmp_path: Path, make: Make, spec: PruningSpec) -> Path:
    """Save the tiny model."""
    save_weights(tmp_path, make(spec), spec, "nlvr2", BUDGET)
    return tmp_path


def _edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    change(data)
    (folder / CONFIG).write_text(json.dumps(data), encoding="utf-8")


def _edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    data = load_file(folder / WEIGHTS)
    change(data)
    save_file(data, folder / WEIGHTS)


def test_a_checkpoint_comes_back_bit_by_bit(
    folder: Path, make: Make, spec: PruningSpec, inputs: dict[str, Any], state: dict[str, Tensor]
) -> None:
    """Tensors, configuration, spec, task, budget and logits are equal, and the model is in eval mode."""
    model, opened = make(spec), open_checkpoint(str(folder))
    assert (opened.spec, opened.task, opened.budget, opened.folder) == (spec, "nlvr2", BUDGET, folder)
    assert opened.towers == {"vision": (3, 24), "text": (3, 32)}
    again = opened.build()
    assert not again.training
    assert again.strength == 0.5
    assert {key: value.tolist() for key, value in again.state_dict().items()} == {
        key: value.tolist() for key, value in state.items()
    }
    for part in ("vision_config", "text_config"):
        assert getattr(again.config, part).to_dict() == getattr(model.config, part).to_dict()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_saving_twice_writes_the_same_bytes(folder: Path, make: Make, spec: PruningSpec, tmp_path: Path) -> None:
    """Byte equality of both files after a round trip."""
    second = tmp_path / "second"
    second.mkdir()
    opened = open_checkpoint(str(folder))
    save_weights(second, opened.build(), opened.spec, opened.task, opened.budget)
    for name in (CONFIG, WEIGHTS):
        assert (second / name).read_bytes() == (folder / name).read_bytes()


def test_half_precision_weights_are_saved_in_full(tmp_path: Path, make: Make, spec: PruningSpec) -> None:
    """float32 tensors equal to the rounded ones."""
    model = make(spec).bfloat16()
    save_weights(tmp_path, model, spec, "nlvr2", {})
    for key, value in load_file(tmp_path / WEIGHTS).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[key].float())


def test_another_spec_keeps_the_alignment_that_fits(folder: Path, spec: PruningSpec, state: dict[str, Tensor]) -> None:
    """Same sizes: the stored tensors; more tokens: fresh ones beside the stored maps; none: no module."""
    opened = open_checkpoint(str(folder))
    same = opened.build(replace(spec, strength=0.1, tokens="scheduled"))
    assert same.strength == 0.1
    assert same.alignment is not None
    assert torch.equal(same.alignment.tokens, state["alignment.tokens"])
    wider = opened.build(replace(spec, alignment_tokens=9))
    assert wider.alignment is not None
    assert tuple(wider.alignment.tokens.shape) == (9, 16)
    assert torch.equal(wider.state_dict()["alignment.maps.text.0.weight"], state["alignment.maps.text.0.weight"])
    dense = opened.build(PruningSpec())
    assert dense.alignment is None
    assert dense.plan is None
    assert torch.equal(dense.state_dict()["cls_head.0.weight"], state["cls_head.0.weight"])


def test_a_dense_checkpoint_takes_a_new_alignment_module(tmp_path: Path, make: Make, spec: PruningSpec) -> None:
    """Pruning can start from weights that never had one; without a spec of its own nothing is made up."""
    dense = PruningSpec()
    save_weights(tmp_path, make(dense), dense, "nlvr2", {})
    opened = open_checkpoint(str(tmp_path))
    assert opened.build().alignment is None
    assert opened.build(spec).alignment is not None


def _broken(source: str | Path) -> str:
    with pytest.raises(SourceError) as caught:
        open_checkpoint(str(source)).build()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """The message gives the path and what a checkpoint folder holds."""
    missing = tmp_path / "nowhere"
    assert _broken(missing) == (
        f"{missing}: no such checkpoint folder; give a folder that holds config.json and model.safetensors"
    )


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    """The message gives the file and the folder's state."""
    (folder / name).unlink()
    assert _broken(folder).startswith(f"{folder / name}: no such file; ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{,}", "cannot be read as JSON: Expecting property name"),
        (b"\xff\xfe", "cannot be read as JSON: 'utf-8' codec"),
        (b"[1]", "expected a JSON object, got list"),
        (b'{"madtp": [1]}', "madtp must be a JSON object, got list"),
        (b'{"vision_config": 5}', "is no configuration of BLIP: "),
    ],
)
def test_an_unreadable_configuration_is_named(folder: Path, text: bytes, message: str) -> None:
    """The message opens with the file and says what is wrong in it."""
    (folder / CONFIG).write_bytes(text)
    assert _broken(folder).startswith(f"{folder / CONFIG}: {message}")


def test_an_unknown_madtp_key_is_named(folder: Path) -> None:
    """The message gives the file, the key and the way out."""
    _edit_config(folder, lambda data: data["madtp"].update(nucleus=0.9))
    assert _broken(folder) == (
        f"{folder / CONFIG}: the madtp block has unknown keys nucleus; it was written by a newer madtp, try upgrading"
    )


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_corrupt_weights_are_named(folder: Path, damage: str) -> None:
    """The message opens with the file."""
    path = folder / WEIGHTS
    path.write_bytes({"truncated": path.read_bytes()[:1000], "text": b"not a checkpoint", "empty": b""}[damage])
    assert _broken(folder).startswith(f"{path}: cannot be read as safetensors: ")


def test_tensors_that_do_not_match_are_all_named(folder: Path) -> None:
    """One missing, one unexpected and one of the wrong shape, in one message with both shapes."""

    def change(state: dict[str, Tensor]) -> None:
        state["cls_head.3.bias"] = state.pop("cls_head.2.bias")
        state["cls_head.0.bias"] = torch.zeros(3)

    _edit_weights(folder, change)
    assert _broken(folder) == (
        f"{folder}: 3 tensors do not match the model: missing cls_head.2.bias; unexpected cls_head.3.bias; "
        "cls_head.0.bias has shape [3], expected [32]"
    )


def test_a_checkpoints_own_alignment_must_be_whole(folder: Path) -> None:
    """Without a spec that replaces it, a missing alignment tensor is a fault; with one it is made anew."""
    _edit_weights(folder, lambda state: state.pop("alignment.tokens"))
    assert _broken(folder).endswith("missing alignment.tokens")
    opened = open_checkpoint(str(folder))
    assert opened.build(opened.spec).alignment is not None


def test_an_unknown_builtin_is_named_with_those_there_are() -> None:
    """The message gives the name asked for and a list."""
    with pytest.raises(SourceError, match=re.escape("builtin:nothing: no such built-in checkpoint; there are: ")):
        builtin_folder("nothing")
    assert _broken("builtin:nothing").startswith("builtin:nothing: ")

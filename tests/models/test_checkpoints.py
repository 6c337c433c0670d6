"""Checkpoints: what was saved, by us or others, comes back bit by bit, and every way they can be broken is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from madtp_cli.errors import SourceError
from madtp_cli.models.blip.nlvr import BlipForNlvr
from madtp_cli.models.checkpoints import (
    CONFIG,
    WEIGHTS,
    builtin_folder,
    export_state,
    open_checkpoint,
    save_weights,
)
from madtp_cli.models.filling import WeightsError
from madtp_cli.models.spec import PruningSpec
from tests.models.released_states import released

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
    assert [(site.name, site.layers, site.width) for site in opened.sites] == [("vision", 3, 24), ("text", 3, 32)]
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
    fault = "is empty" if damage == "empty" else "cannot be read as safetensors: "
    assert _broken(folder).startswith(f"{path}: {fault}")


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


Kind = tuple[str, str]
KINDS: dict[str, Kind] = {kind: ("blip", kind) for kind in ("nlvr2", "vqa", "caption", "retrieval")} | {
    "clip": ("clip", "retrieval")
}


def _saved(folder: Path, kind: str, *, madtp: bool = True, **beside: Any) -> tuple[Path, dict[str, Tensor]]:
    state = released(kind, madtp=madtp)
    torch.save({"model": state, **beside}, folder / f"{kind}.pth")
    return folder / f"{kind}.pth", state


@pytest.mark.parametrize("kind", KINDS)
def test_a_released_state_dict_opens(tmp_path: Path, kind: str) -> None:
    """Family, task, towers and the released pruning; the built model holds every tensor, bit by bit."""
    path, state = _saved(tmp_path, kind, temperature=2.0)
    opened = open_checkpoint(path)
    assert (opened.family, opened.task, opened.folder, opened.source) == (*KINDS[kind], None, str(path))
    sites = [(site.name, site.layers, site.width) for site in opened.sites]
    assert sites == [("vision", 2, 48 if kind == "clip" else 32), ("text", 3, 32)]
    spec = opened.spec
    assert (spec.method, spec.variant, spec.tokens) == ("madtp", "released", "adaptive")
    assert (spec.temperature, spec.strength, spec.alignment_tokens) == (2.0, 0.5, 5)
    assert (spec.projection, spec.alignment_dim) == (("per_layer", 24) if kind == "clip" else ("none", 32))
    assert spec.layers == {"vision": (0, 1)} | ({} if kind in ("clip", "caption") else {"text": (0, 1, 2)})
    model = opened.build()
    assert (model.family, model.task, model.training) == (*KINDS[kind], False)
    assert model.plan is not None
    exported = export_state(model, "openai" if kind == "clip" else "salesforce")
    for key, value in exported.items():
        assert torch.equal(value, state[key])
    gone = re.compile(r"^\w+_m(\.|$)|_queue$")  # momentum copies and queues
    assert set(state) - set(exported) == {key for key in state if gone.search(key)}
    training = any("queue" in key for key in state)
    assert bool(opened.notes) == training
    if training:
        assert opened.notes[0].startswith(f"left out {len(state) - len(exported)} tensors that only training used")


@pytest.mark.parametrize("kind", KINDS)
def test_a_dense_state_dict_opens(tmp_path: Path, kind: str) -> None:
    """Without what MADTP adds there is nothing to prune with; overrides reach the configuration."""
    path, _ = _saved(tmp_path, kind, madtp=False)
    opened = open_checkpoint(path, config={"vision_heads": 2, "text_heads": 4})
    assert opened.spec == PruningSpec()
    assert opened.config.vision_config.num_attention_heads == 2
    assert opened.config.text_config.num_attention_heads == 4
    assert opened.build().alignment is None


@pytest.mark.parametrize("kind", KINDS)
def test_our_folder_of_a_real_checkpoint_opens_again(tmp_path: Path, kind: str) -> None:
    """Saved, opened, saved: the same bytes, the same family and task, and the tensors of the file it came from."""
    path, state = _saved(tmp_path, kind, temperature=2.0)
    opened = open_checkpoint(path)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        save_weights(tmp_path / name, opened.build(), opened.spec, opened.task, {})
        opened = open_checkpoint(tmp_path / name)
        assert (opened.family, opened.task) == KINDS[kind]
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    exported = export_state(opened, "openai" if kind == "clip" else "salesforce")
    assert all(torch.equal(exported[key], state[key]) for key in exported)


def test_a_missing_temperature_is_said_and_can_be_given(tmp_path: Path) -> None:
    """Zero prunes nothing; the override sets it, and is refused where nothing prunes or it is no temperature."""
    path, _ = _saved(tmp_path, "vqa")
    opened = open_checkpoint(path)
    assert opened.spec.temperature == 0
    assert opened.build().plan is None
    assert opened.notes == (
        "no pruning temperature is stored: opened dense; give model.config.pruning_temperature to prune",
    )
    given = open_checkpoint(path, config={"pruning_temperature": 3})
    assert (given.spec.temperature, given.notes) == (3.0, ())
    assert given.build().plan is not None
    for bad in (-1, "3", True):
        with pytest.raises(SourceError, match=r"pruning_temperature is .*; give a number of at least 0$"):
            open_checkpoint(path, config={"pruning_temperature": bad})
    dense, _ = _saved(tmp_path, "caption", madtp=False)
    with pytest.raises(SourceError, match=r"caption\.pth: is dense; model\.config\.pruning_temperature is for"):
        open_checkpoint(dense, config={"pruning_temperature": 3})


def test_alignment_tokens_that_fit_no_tower_are_refused(tmp_path: Path) -> None:
    """Without maps, the tokens are as wide as the towers."""
    state = released("vqa") | {"space_dict": torch.zeros(4, 30)}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(SourceError, match=r"x\.pth: has alignment tokens 30 wide and no maps .* vision 32, text 32"):
        open_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("kind", ["nlvr2", "clip"])
def test_another_image_size_interpolates_positions(tmp_path: Path, kind: str) -> None:
    """The note says so; the model takes such images; the size it has changes nothing."""
    path, state = _saved(tmp_path, kind)
    opened = open_checkpoint(path, config={"image_size": 48})
    assert "image positions interpolated from 4x4 to 6x6 patches (48 pixels)" in opened.notes
    model: Any = opened.build()
    assert model.image_tokens == 37
    assert model.vision_model.embeddings(torch.zeros(1, 3, 48, 48)).spans.lengths == (37,)
    same = open_checkpoint(path, config={"image_size": 32})
    exported = export_state(same, "openai" if kind == "clip" else "salesforce")
    assert all(torch.equal(exported[key], state[key]) for key in exported)


def test_another_task_starts_with_what_fits(tmp_path: Path) -> None:
    """NLVR2 from pretrained BLIP: the heads are drawn at random, all else is the file's, and a folder is complete."""
    path, state = _saved(tmp_path, "pretrained", madtp=False)
    with pytest.raises(SourceError, match=r"pretrained\.pth: is BLIP before finetuning, .*; say which: task nlvr2"):
        open_checkpoint(path)
    opened = open_checkpoint(path, task="nlvr2", config={"merge_from": 2})
    assert (opened.task, opened.config.text_config.merge_from) == ("nlvr2", 2)
    merge = "text_encoder.encoder.layer.2.crossattention.output.merge_layer"
    heads = [f"cls_head.{n}.{name}" for n in (0, 2) for name in ("weight", "bias")]
    assert opened.fresh == (*heads, f"{merge}.weight", f"{merge}.bias")
    assert opened.started_from == "pretrained"
    model = opened.build()
    word = "text_encoder.embeddings.word_embeddings.weight"
    assert torch.equal(model.state_dict()[word], state[word])
    (tmp_path / "out").mkdir()
    save_weights(tmp_path / "out", model, opened.spec, opened.task, {})
    again = open_checkpoint(tmp_path / "out")
    assert (again.task, again.fresh, again.started_from) == ("nlvr2", (), None)
    assert torch.equal(again.build().state_dict()["cls_head.0.weight"], model.state_dict()["cls_head.0.weight"])


@pytest.mark.parametrize(("own", "task"), [("vqa", "retrieval"), ("retrieval", "nlvr2"), ("vqa", "vqa")])
def test_what_a_task_started_from_is_told(tmp_path: Path, own: str, task: str) -> None:
    """The task of the tensors, where another was asked for; of a file as of a folder of ours."""
    path, _ = _saved(tmp_path, own, madtp=False)
    opened = open_checkpoint(path, task=task)
    expected = None if own == task else own
    assert opened.started_from == expected
    (tmp_path / "out").mkdir()
    dense = open_checkpoint(path)
    assert dense.started_from is None
    save_weights(tmp_path / "out", dense.build(), dense.spec, dense.task, {})
    assert open_checkpoint(tmp_path / "out", task=task).started_from == expected


def test_weights_that_are_no_numbers_are_refused(folder: Path) -> None:
    """As a training that diverged leaves them; the message counts and names them."""

    def change(state: dict[str, Tensor]) -> None:
        state["cls_head.0.bias"][1] = float("nan")
        state["cls_head.2.bias"][0] = float("inf")

    count = len(load_file(folder / WEIGHTS))
    _edit_weights(folder, change)
    assert _broken(folder) == (
        f"{folder}: NaN or infinite weights in 2 of {count} tensors: cls_head.0.bias; cls_head.2.bias; fetch it again, "
        "or take one saved before its training diverged"
    )


def test_a_size_that_patches_do_not_fill_names_the_checkpoint_and_the_key_of_data() -> None:
    """Not the installed config.json; the sizes it names are taken."""
    with pytest.raises(SourceError) as caught:
        open_checkpoint("builtin:shapes_nlvr", config={"image_size": 97})
    side = open_checkpoint("builtin:shapes_nlvr").config.vision_config.patch_size
    below = 97 // side * side
    assert str(caught.value) == (
        f"builtin:shapes_nlvr: data.image_size 97 is not a multiple of the patch size {side}; try {below} or "
        f"{below + side}"
    )
    for size in (below, below + side):
        open_checkpoint("builtin:shapes_nlvr", config={"image_size": size}).build()


def test_every_fault_is_kept(tmp_path: Path) -> None:
    """The message counts them, names eight, and the error holds them all."""
    path, state = _saved(tmp_path, "caption", madtp=False)
    for layer in ("attention.self.query", "crossattention.self.query", "output.dense"):
        for number in range(3):
            state.pop(f"text_decoder.bert.encoder.layer.{number}.{layer}.weight")
    torch.save(state, path)
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(path).build()
    assert len(caught.value.faults) == 9
    assert str(caught.value).startswith(f"{path}: 9 tensors do not match the model: missing text_decoder.bert.")
    assert str(caught.value).endswith("; and 1 more")
    assert str(caught.value.__cause__).splitlines() == list(caught.value.faults)


def test_a_head_that_is_not_the_embeddings_is_refused(tmp_path: Path) -> None:
    """The model ties them, so another head would be lost."""
    path, state = _saved(tmp_path, "caption", madtp=False)
    state["text_decoder.cls.predictions.decoder.weight"] = state["text_decoder.cls.predictions.decoder.weight"] + 1
    torch.save(state, path)
    message = "decoder.weight differs from text_decoder.bert.embeddings.word_embeddings.weight, which the model ties it"
    with pytest.raises(SourceError, match=re.escape(message)):
        open_checkpoint(path).build()


def test_a_file_of_another_kind_is_refused(folder: Path) -> None:
    """The message says what a checkpoint is."""
    assert _broken(folder / CONFIG).startswith(
        f"{folder / CONFIG}: is a file that does not end with .safetensors, .pth, .pt, .bin; a checkpoint is such a"
    )


CONTRAST_NOTE = "no temperature of the contrastive loss (temp) is stored, as in all of Hugging Face's: 0.07 is taken"
HF = {
    "vqa": "BlipForQuestionAnswering",
    "caption": "BlipForConditionalGeneration",
    "retrieval": "BlipForImageTextRetrieval",
    "clip": "CLIPModel",
}


@pytest.fixture(scope="module", params=HF)
def hf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    """Save a tiny random model of HF: its kind, the model, its folder."""
    import transformers

    folder = tmp_path_factory.mktemp("hf")
    config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "layer_norm_eps": 1e-4,
    }
    vision = {**config, "image_size": 32, "patch_size": 8}
    text = {**config, "vocab_size": 50, "max_position_embeddings": 20, "bos_token_id": 48, "eos_token_id": 49}
    sizes = {"vision_config": vision, "text_config": text | {"sep_token_id": 2}}
    torch.manual_seed(3)
    if request.param == "clip":
        model = transformers.CLIPModel(transformers.CLIPConfig(**sizes, projection_dim=16))
    else:
        model = getattr(transformers, HF[request.param])(transformers.BlipConfig(**sizes, image_text_hidden_size=16))
    model.save_pretrained(folder)
    return request.param, model, folder


def test_a_folder_of_hf_opens(hf: tuple[str, Any, Path], tmp_path: Path) -> None:
    """Family, task and configuration as HF says; back to HF through our own folder, every tensor is the same."""
    kind, _, folder = hf
    opened = open_checkpoint(folder)
    assert (opened.family, opened.task, opened.folder, opened.fresh) == (*KINDS[kind], folder, ())
    assert opened.notes == ((CONTRAST_NOTE,) if kind == "retrieval" else ())
    vision, text = opened.config.vision_config, opened.config.text_config
    assert (vision.num_attention_heads, vision.layer_norm_eps, text.layer_norm_eps) == (4, 1e-4, 1e-4)
    assert text.bos_token_id == 48
    save_weights(tmp_path, opened.build(), opened.spec, opened.task, {})
    theirs = load_file(folder / WEIGHTS)
    exported = export_state(open_checkpoint(tmp_path), "hf")
    if kind == "retrieval":
        assert exported.pop("temp").item() == pytest.approx(0.07)
    assert set(exported) == set(theirs)
    assert all(torch.equal(exported[key], theirs[key]) for key in theirs)


def test_hfs_tensors_are_found_in_every_form(hf: tuple[str, Any, Path], tmp_path: Path) -> None:
    """Shards, and pickled with the tied copies: the same model as from one file."""
    kind, model, folder = hf
    expected = open_checkpoint(folder).build().state_dict()
    shards, pickled = tmp_path / "shards", tmp_path / "pickled"
    model.save_pretrained(shards, max_shard_size="50KB")
    assert (shards / f"{WEIGHTS}.index.json").is_file()
    pickled.mkdir()
    (pickled / CONFIG).write_bytes((folder / CONFIG).read_bytes())
    text = {"clip": "text_model", "caption": "text_decoder.bert"}.get(kind, "text_encoder")
    buffers = {f"{text}.embeddings.position_ids": torch.arange(20)[None]}
    torch.save({**model.state_dict(), **buffers}, pickled / "pytorch_model.bin")
    for other in (shards, pickled):
        found = open_checkpoint(other).build().state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_file_of_hfs_tensors_opens(hf: tuple[str, Any, Path], tmp_path: Path) -> None:
    """Without its configuration, heads and epsilons are given."""
    kind, _, folder = hf
    overrides = {"vision_heads": 4, "text_heads": 4, "vision_layer_norm_eps": 1e-4, "text_layer_norm_eps": 1e-4}
    opened = open_checkpoint(shutil.copy(folder / WEIGHTS, tmp_path), config=overrides)
    assert (opened.family, opened.task) == KINDS[kind]
    assert opened.notes == ((CONTRAST_NOTE,) if kind == "retrieval" else ())
    with_config = open_checkpoint(folder)
    for section in ("vision_config", "text_config"):
        one, other = getattr(opened.config, section).to_dict(), getattr(with_config.config, section).to_dict()
        assert {key: one[key] for key in ("num_attention_heads", "layer_norm_eps", "hidden_act", "hidden_size")} == {
            key: other[key] for key in ("num_attention_heads", "layer_norm_eps", "hidden_act", "hidden_size")
        }
    assert opened.build().state_dict().keys() == with_config.build().state_dict().keys()


@pytest.mark.parametrize("file", [WEIGHTS, "pytorch_model.bin", "model-00001-of-00002.safetensors"])
def test_the_weights_of_a_folder_stand_for_it(hf: tuple[str, Any, Path], tmp_path: Path, file: str) -> None:
    """With the heads and epsilons of its configuration rather than those of a file, and a note."""
    _, model, folder = hf
    shutil.copy(folder / CONFIG, tmp_path)
    if file == "pytorch_model.bin":
        torch.save(model.state_dict(), tmp_path / file)
    else:
        model.save_pretrained(tmp_path, max_shard_size="50KB" if "00001" in file else "1GB")
        if "00001" in file:
            file = min(path.name for path in tmp_path.glob("model-00001-of-*"))
    expected, found = open_checkpoint(folder), open_checkpoint(tmp_path / file)
    assert found.notes[0] == (f"{tmp_path / file} lies beside a config.json: opened with it, as the folder {tmp_path}")
    assert (found.folder, found.source, found.task) == (tmp_path, str(tmp_path), expected.task)
    assert found.config.vision_config.to_dict() == expected.config.vision_config.to_dict()
    assert found.config.vision_config.num_attention_heads == 4
    assert found.notes[1:] == expected.notes
    state = expected.build().state_dict()
    assert all(torch.equal(value, state[key]) for key, value in found.build().state_dict().items())


def test_a_file_beside_a_configuration_that_is_not_a_folders_weights_is_a_file(
    hf: tuple[str, Any, Path], tmp_path: Path
) -> None:
    """Its name tells: the configuration may be anyone's."""
    _, _, folder = hf
    shutil.copy(folder / CONFIG, tmp_path)
    opened = open_checkpoint(shutil.copy(folder / WEIGHTS, tmp_path / "mine.safetensors"))
    assert opened.folder is None
    assert opened.config.vision_config.num_attention_heads == 1


def test_our_own_weights_stand_for_their_folder_or_for_nothing(folder: Path, spec: PruningSpec) -> None:
    """Beside their configuration they prune as it says; alone they would open as another model, and are refused."""
    opened = open_checkpoint(folder / WEIGHTS)
    assert (opened.spec, opened.folder, opened.budget) == (spec, folder, BUDGET)
    moved = folder / "mine.safetensors"
    shutil.copy(folder / WEIGHTS, moved)
    (folder / CONFIG).unlink()
    for alone in (moved, folder / WEIGHTS):
        assert _broken(alone) == (
            f"{alone}: is the weights of a folder that madtp wrote, without the config.json that says how the model is "
            "built and how it prunes; put both into one folder, the weights as model.safetensors, and name the folder"
        )


def test_a_missing_contrastive_temperature_is_no_secret(tmp_path: Path) -> None:
    """Salesforce's file and our own folder must have it; for another task nobody needs it."""
    path, state = _saved(tmp_path, "retrieval", madtp=False)
    ours = tmp_path / "ours"
    ours.mkdir()
    opened = open_checkpoint(path)
    save_weights(ours, opened.build(), opened.spec, opened.task, {})
    _edit_weights(ours, lambda tensors: tensors.pop("temp"))
    torch.save({key: value for key, value in state.items() if key != "temp"}, path)
    for source in (path, ours):
        assert _broken(source) == f"{source}: 1 tensors do not match the model: missing temp"
    hf = {key: value for key, value in export_state(opened, "hf").items() if key != "temp"}
    torch.save(hf, tmp_path / "hf.pth")
    assert open_checkpoint(tmp_path / "hf.pth").state["temp"].item() == pytest.approx(0.07)
    other = open_checkpoint(tmp_path / "hf.pth", task="nlvr2", config={"merge_from": 2})
    assert CONTRAST_NOTE not in other.notes
    assert "temp" not in other.build().state_dict()


def test_an_activation_of_our_own_folder_is_not_ignored(folder: Path) -> None:
    """BLIP's towers compute gelu, whatever a configuration says."""
    _edit_config(folder, lambda data: data["vision_config"].update(hidden_act="quick_gelu"))
    assert _broken(folder) == (
        f"{folder / CONFIG}: the vision tower's activation is quick_gelu; blip models here compute gelu"
    )


def test_a_configuration_that_is_not_the_tensors_is_refused(hf: tuple[str, Any, Path], tmp_path: Path) -> None:
    """Another model's name, and the name of one that madtp does not know."""
    kind, _, folder = hf
    (tmp_path / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    (tmp_path / CONFIG).write_bytes((folder / CONFIG).read_bytes())
    other = HF["caption" if kind in ("vqa", "retrieval") else "vqa"]
    _edit_config(tmp_path, lambda data: data.update(architectures=[other], model_type="blip"))
    found = "CLIP for retrieval" if kind == "clip" else f"BLIP for {kind}"
    assert _broken(tmp_path) == (
        f"{tmp_path / CONFIG}: says {other}, but the tensors beside it are those of {found}; are both files of one "
        "checkpoint?"
    )
    _edit_config(tmp_path, lambda data: data.update(architectures=["BertModel"], model_type="bert"))
    assert _broken(tmp_path).startswith(
        f"{tmp_path / CONFIG}: is the configuration of ['BertModel']; the checkpoints of HF that madtp opens are Blip"
    )


def test_a_family_or_task_of_a_newer_madtp_is_named(folder: Path) -> None:
    """The message gives what the file says and what there is."""
    _edit_config(folder, lambda data: data["madtp"].update(task="referring"))
    assert _broken(folder).startswith(f"{folder / CONFIG}: is for referring (blip); this madtp knows nlvr2 (blip), ")

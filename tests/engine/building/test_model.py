"""From a recipe to plain objects: what each setting becomes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.engine.building.device import choose_device, choose_precision
from madtp_cli.engine.building.model import check_fits, fresh_model, fresh_processor, pruning_spec, starting_checkpoint
from madtp_cli.engine.building.training import auxiliary_heads, fit_settings, identity_of, loss_weights
from madtp_cli.engine.training.settings import LossWeights
from madtp_cli.errors import RecipeError, SourceError, UsageError
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.blip.nlvr import BlipForNlvr
from madtp_cli.models.blip.retrieval import BlipForRetrieval
from madtp_cli.models.checkpoints import open_checkpoint, save_weights
from madtp_cli.models.family import model_class
from madtp_cli.models.spec import PruningSpec
from tests.models.kinds import kinds
from tests.tiny_runs import DENSE, PRUNE, same, tiny

CPU = torch.device("cpu")
CONFIG = small_config(image_size=96, vocab_size=61, vision_layers=3, vision_width=32, text_layers=2, text_width=32)


# Models ------------------------------------------------------------------------------------------------------


def test_a_fresh_model_is_made_of_the_architecture_and_the_seed(tmp_path: Path) -> None:
    first, again = (fresh_model(tiny(tmp_path, DENSE)) for _ in range(2))
    other = fresh_model(tiny(tmp_path, DENSE, "training.seed=1"))
    assert same(first.state_dict(), again.state_dict())
    assert not same(first.state_dict(), other.state_dict())
    vision, text = first.config.vision_config, first.config.text_config
    assert (vision.num_hidden_layers, vision.hidden_size, vision.patch_size, vision.image_size) == (3, 32, 16, 96)
    assert (text.num_hidden_layers, text.hidden_size, text.vocab_size) == (2, 32, len(VOCABULARY))
    assert first.plan is None
    assert first.alignment is None


def test_patches_that_do_not_fill_an_image_are_refused(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, DENSE, "model.architecture.patch_size=7")
    with pytest.raises(RecipeError) as caught:
        fresh_model(recipe)
    assert str(caught.value) == (
        "--set model.architecture.patch_size=7: images of 96 pixels are not a multiple of patch_size 7"
    )


@pytest.mark.parametrize(("family", "task"), sorted(kinds()))
def test_a_fresh_model_of_every_task(family: str, task: str, tmp_path: Path) -> None:
    """Of the architecture, the generated data's words and their special ids; its processor reads the same words."""
    changes = [f"model.family={family}", f"task={task}", "model.architecture.projection=10"]
    recipe = tiny(tmp_path, DENSE, *changes)
    model = fresh_model(recipe)
    assert isinstance(model, model_class(family, task))
    vision, text = model.config.vision_config, model.config.text_config
    assert (vision.num_hidden_layers, vision.hidden_size, vision.patch_size, vision.image_size) == (3, 32, 16, 96)
    assert (text.num_hidden_layers, text.hidden_size, text.vocab_size) == (2, 32, len(VOCABULARY))
    words = list(VOCABULARY)
    if family == "clip":
        assert (text.eos_token_id, model.config.projection_dim) == (words.index("[SEP]"), 10)
    else:
        ids = (text.bos_token_id, text.enc_token_id, text.sep_token_id, text.pad_token_id)
        assert ids == tuple(words.index(f"[{name}]") for name in ("DEC", "ENC", "SEP", "PAD"))
        assert model.config.image_text_hidden_size == 10
    processor = fresh_processor(recipe)
    assert (processor.family, processor.task) == (family, task)
    assert processor.words("red")[1:] == [words.index("red"), words.index("[SEP]")]


def test_a_fresh_model_may_take_the_vision_tower_of_another(dense: Path, tmp_path: Path) -> None:
    """Its tensors bit by bit, the rest from the seed; a tower of other sizes is refused."""
    changes = ["task=vqa", f"model.vision_from={dense}"]
    taken, own = (
        fresh_model(tiny(tmp_path, DENSE, *changes)),
        fresh_model(tiny(tmp_path, DENSE, "task=vqa")),
    )
    source = open_checkpoint(str(dense)).state
    for key, value in taken.state_dict().items():
        assert value.equal(source[key] if key.startswith("vision_model.") else own.state_dict()[key])
    other = tiny(tmp_path, DENSE, *changes, "model.architecture.vision_layers=2")
    with pytest.raises(SourceError) as caught:
        fresh_model(other)
    message = (
        f"{dense}: its vision tower is not that of model.architecture: 12 tensors differ, the first is vision_model."
    )
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("; give the architecture the same vision settings")


def test_a_checkpoint_of_another_family_is_refused(tmp_path: Path) -> None:
    config = small_config(image_size=96, vocab_size=61, vision_layers=1, text_layers=1, patch_size=16)
    save_weights(tmp_path, BlipForRetrieval(config), PruningSpec(), "retrieval", {})
    recipe = tiny(tmp_path, PRUNE, "model.family=clip", "task=retrieval", checkpoint=tmp_path)
    with pytest.raises(RecipeError) as caught:
        starting_checkpoint(recipe)
    assert str(caught.value) == (
        f"--set model.family=clip: model.family is clip, but {tmp_path} is a checkpoint of blip; set it to blip"
    )


def test_a_tower_that_cannot_prune_is_left_out_of_the_spec(tmp_path: Path) -> None:
    """A caption's decoder."""
    spec = pruning_spec(tiny(tmp_path, PRUNE, "task=caption"), CONFIG)
    assert spec.layers == {"vision": (0, 1, 2)}


@pytest.mark.parametrize(("words", "size"), [(len(VOCABULARY) - 1, 96), (len(VOCABULARY), 32)])
def test_a_model_of_other_data_is_refused(words: int, size: int, tmp_path: Path) -> None:
    config = small_config(image_size=size, vocab_size=words, vision_layers=1, text_layers=1, patch_size=16)
    save_weights(tmp_path, BlipForNlvr(config), PruningSpec(), "nlvr2", {})
    message = (
        rf"out: its model reads {words} words and images of {size} pixels, but shapes has {len(VOCABULARY)} words and "
        "96 pixels: it was made for other data, try another checkpoint or --recipe"
    )
    with pytest.raises(SourceError, match=message.replace("out", tmp_path.name)):
        check_fits(open_checkpoint(str(tmp_path)), tiny(tmp_path, DENSE))


def test_a_model_of_the_same_data_fits(dense: Path, tmp_path: Path) -> None:
    check_fits(open_checkpoint(str(dense)), tiny(tmp_path, DENSE))


# Pruning -----------------------------------------------------------------------------------------------------


def test_method_none_describes_a_dense_model(tmp_path: Path) -> None:
    assert pruning_spec(tiny(tmp_path, DENSE), CONFIG) == PruningSpec()


def test_the_spec_has_every_setting_and_the_layers_by_number(tmp_path: Path) -> None:
    recipe = tiny(
        tmp_path,
        PRUNE,
        *("pruning.variant=paper", "pruning.tokens=scheduled", "pruning.temperature=0.5", "pruning.strength=0.25"),
        *("pruning.layers.vision=1-2", "pruning.layers.text=none"),
    )
    assert pruning_spec(recipe, CONFIG) == PruningSpec(
        method="madtp",
        variant="paper",
        tokens="scheduled",
        temperature=0.5,
        strength=0.25,
        layers={"vision": (1, 2), "text": ()},
        alignment_tokens=4,
        alignment_dim=16,
        projection="per_layer",
    )


def test_a_strength_that_the_budget_finds_starts_at_zero(tmp_path: Path) -> None:
    spec = pruning_spec(tiny(tmp_path, PRUNE), CONFIG)
    assert spec.strength == 0
    assert spec.layers == {"vision": (0, 1, 2), "text": (0, 1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pruning.layers.vision=[3]", "pruning.layers.vision names layer 3, but the model has layers 0 to 2"),
        (
            "alignment.projection=none",
            "tiny.yaml:6: alignment.dim is 16 but the vision tower is 32 wide; with projection none they must be equal",
        ),
    ],
)
def test_pruning_that_does_not_fit_the_model_is_refused(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        pruning_spec(tiny(tmp_path, PRUNE, change), CONFIG)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Losses ------------------------------------------------------------------------------------------------------


def test_the_weights_of_the_losses(tmp_path: Path) -> None:
    changes = ["alignment.weight=0.2", "distillation={logits: 2.0, temperature: 3.0, guidance: 0.5, features: 0.1}"]
    weights = loss_weights(tiny(tmp_path, PRUNE, *changes))
    assert weights == LossWeights(alignment=0.2, logits=2.0, temperature=3.0, guidance=0.5, features=0.1)


def test_heads_are_built_for_the_losses_that_count(tmp_path: Path) -> None:
    model = fresh_model(tiny(tmp_path, DENSE))
    assert auxiliary_heads(tiny(tmp_path, DENSE), model) is None
    heads = auxiliary_heads(tiny(tmp_path, DENSE, "training.auxiliary.text_counts=0.5"), model)
    assert heads is not None
    assert heads.weights == {"text_counts": 0.5}


def test_patch_labels_need_patches_of_their_size(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, DENSE, "training.auxiliary.patches=1")
    with pytest.raises(RecipeError) as caught:
        auxiliary_heads(recipe, fresh_model(recipe))
    assert str(caught.value) == (
        "--set training.auxiliary.patches=1: training.auxiliary.patches cannot be used: shapes labels patches of 8 "
        "pixels, and the model's have 16; set it to 0"
    )


def test_patch_labels_need_all_the_patches(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, PRUNE, "training.auxiliary.patches=1", "training.auxiliary.image_counts=1")
    plan = PruningSpec(method="random", strength=0.5, layers={"vision": (0,), "text": ()}).plan()
    config = small_config(image_size=96, vocab_size=len(VOCABULARY), vision_layers=1, text_layers=1)
    with pytest.raises(RecipeError, match=r"patches that were pruned have no state to label.*; set it to 0"):
        auxiliary_heads(recipe, BlipForNlvr(config, plan=plan))
    assert auxiliary_heads(recipe, BlipForNlvr(config)) is not None


# Training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "steps", "every"),
    [("steps=7", 7, 1), ("steps=100", 100, 20), ("epochs=2", 32, 6), ("epochs=0.01", 1, 1), ("steps=0", 0, 1)],
)
def test_how_long_training_takes(length: str, steps: int, every: int, tmp_path: Path) -> None:
    """An epoch of 256 samples is 16 steps of 16; five validations and saved states unless the recipe says."""
    settings = fit_settings(tiny(tmp_path, DENSE, f"training.{length}"), CPU, 256)
    assert (settings.steps, settings.validate_every, settings.save_every) == (steps, every, every)


def test_the_learning_rates_follow_the_first_unless_given(tmp_path: Path) -> None:
    plain = fit_settings(tiny(tmp_path, PRUNE), CPU, 256)
    assert (plain.learning_rate, plain.alignment_learning_rate, plain.matrix_learning_rate) == (1e-3, 1e-3, 1e-3)
    changes = ["alignment.learning_rate=2e-3", "training.matrix_learning_rate=3e-3", "training.save_every=4"]
    given = fit_settings(tiny(tmp_path, PRUNE, *changes), CPU, 256)
    assert (given.alignment_learning_rate, given.matrix_learning_rate) == (2e-3, 3e-3)
    assert (given.validate_every, given.save_every) == (5, 4)


def test_a_cache_is_refused_where_no_sample_comes_again(tmp_path: Path) -> None:
    """16 steps of 16 read 256 samples once; with one step more, some of them twice."""
    changes = ["distillation.cache=true", "training.steps=16"]
    with pytest.raises(RecipeError) as caught:
        fit_settings(tiny(tmp_path, PRUNE, *changes), CPU, 256)
    assert str(caught.value) == (
        "--set distillation.cache=true: distillation.cache keeps what the dense model says of a sample for the next "
        "epoch, but 16 steps of 16 samples read none of the 256 training samples twice; train longer, or set it to "
        "false"
    )
    assert fit_settings(tiny(tmp_path, PRUNE, *changes[:1], "training.steps=17"), CPU, 256).steps == 17


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "training.batch_size=257",
            "--set training.batch_size=257: training.batch_size 257 is more than the 256 training samples; lower it or "
            "raise data.train_samples",
        ),
        (
            "training.precision=fp16",
            "--set training.precision=fp16: training.precision fp16 needs a GPU, got cpu; try bf16 or fp32",
        ),
    ],
)
def test_training_that_cannot_be_is_refused(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        fit_settings(tiny(tmp_path, DENSE, change), CPU, 256)
    assert str(caught.value) == message


# Device and precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("there", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_a_gpu_where_there_is_one(there: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device("auto").type == device
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda:99", "mps", "nonsense"])
def test_a_device_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_device(name)
    message = str(caught.value)
    assert message.startswith(f"--device {name} cannot be used here: ")
    assert message.endswith("; try --device cpu")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("device", "able", "precision"),
    [("cpu", True, "bf16"), ("cpu", False, "fp32"), ("cuda", True, "bf16"), ("cuda", False, "fp32")],
)
def test_auto_precision_is_bf16_where_the_hardware_multiplies_in_it(
    device: str, able: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: able)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: able)
    assert choose_precision("auto", torch.device(device)) == precision
    assert choose_precision("fp16", torch.device(device)) == "fp16"


# Identity ----------------------------------------------------------------------------------------------------


def identities(folder: Path, *changes: str) -> tuple[str, str]:
    recipe: Any = tiny(folder, PRUNE, *changes)
    return identity_of(recipe, "prune"), identity_of(recipe, "finetune")


def test_a_run_is_the_same_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert identities(tmp_path) == identities(tmp_path / "other")


def test_any_other_setting_makes_another_run(tmp_path: Path) -> None:
    known = {*identities(tmp_path)}
    assert len(known) == 2
    for change in ("training.steps=11", "training.seed=1", "pruning.layers.text=none", "data.seed=1"):
        assert known.isdisjoint(identities(tmp_path, change))


def test_the_budget_is_no_setting_of_finetune(tmp_path: Path) -> None:
    before, after = identities(tmp_path), identities(tmp_path, "budget.reduction=0.4")
    assert before[0] != after[0]
    assert before[1] == after[1]

"""`profile` on tiny models with random weights: costs add up, counters agree, dense and baseline stand beside."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from madtp_cli.attention import backend
from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.engine import profile
from madtp_cli.engine.profile import profile_checkpoint, short_names
from madtp_cli.engine.profiling import time as profile_time
from madtp_cli.engine.profiling.costs import at_strength, module_costs
from madtp_cli.errors import SourceError, UsageError
from madtp_cli.models.base import initialise, prunes
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.blip.nlvr import BlipForNlvr
from madtp_cli.models.checkpoints import open_checkpoint, save_weights
from madtp_cli.models.processor import Processor
from madtp_cli.models.spec import PruningSpec
from madtp_cli.recipe import load_recipe
from madtp_cli.results import ProfileResult, Speed

SIZES: dict[str, int] = {
    "vision_layers": 3,
    "vision_width": 32,
    "vision_heads": 2,
    "text_layers": 2,
    "text_width": 32,
    "text_heads": 2,
}
RECIPE = """
version: 1
task: nlvr2
model:
  family: blip
  architecture: {vision_layers: 2, vision_width: 32, vision_heads: 2, text_layers: 1, text_width: 32, text_heads: 2}
data: {name: shapes}
pruning: {method: random, strength: 0.5, layers: {vision: all, text: none}}
training: {steps: 1, teacher: false, seed: 3}
"""


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on few samples and briefly."""
    monkeypatch.setattr(profile, "SAMPLES", 6)
    monkeypatch.setattr(profile, "SECONDS", 0.01)
    monkeypatch.setattr(profile_time, "SHARE_SECONDS", 0.01)


def save(folder: Path, *, image_size: int = 48, words: int = len(VOCABULARY), **pruning: Any) -> str:
    """Write a checkpoint with random weights and return its name."""
    torch.manual_seed(0)
    config = small_config(image_size=image_size, vocab_size=words, **SIZES)
    spec = PruningSpec(layers={"vision": (0, 1, 2), "text": (1,)}, **pruning)
    model = BlipForNlvr(
        config, alignment=spec.alignment(BlipForNlvr.sites_of(config)), plan=spec.plan(), strength=spec.strength
    )
    initialise(model)
    folder.mkdir()
    save_weights(folder, model, spec, "nlvr2", {})
    Processor.from_words(VOCABULARY, image_size).save(folder)
    return str(folder)


@pytest.fixture
def pruned(tmp_path: Path) -> str:
    return save(tmp_path / "pruned", method="madtp", strength=0.48, alignment_tokens=5, alignment_dim=16)


def run(checkpoint: str | None, **changes: Any) -> ProfileResult:
    """Call as the command does, with its defaults."""
    options: dict[str, Any] = {
        "recipe": None,
        "random_init": False,
        "baseline": None,
        "counter": "analytic",
        "batch_sizes": (),
        "text_tokens": None,
        "latency": False,
        "device": "cpu",
        "precision": None,
        "seed": None,
        "console": Console(file=io.StringIO()),
        "verbosity": 0,
    }
    return profile_checkpoint(checkpoint, **{**options, **changes})


def test_modules_add_up_to_the_model(pruned: str) -> None:
    """The modules' cost is the pruned cost, their parameters all parameters, and every layer has its tokens."""
    found = run(pruned)
    assert sum(module.gmacs for module in found.modules) == pytest.approx(found.gmacs.pruned, rel=1e-9)
    assert sum(module.params for module in found.modules) == found.params
    assert found.params == sum(parameter.numel() for parameter in open_checkpoint(pruned).build().parameters())
    assert 0 < found.gmacs.pruned < found.gmacs.dense
    assert found.gmacs.reduction == pytest.approx(1 - found.gmacs.pruned / found.gmacs.dense)
    assert [(layer.tower, layer.layer) for layer in found.layers] == [
        *[("vision", layer) for layer in range(3)],
        *[("text", layer) for layer in range(2)],
    ]
    assert all(layer.tokens_min <= layer.tokens_mean <= layer.tokens_max for layer in found.layers)
    assert found.layers[0].tokens_max <= 37
    assert "softmax" in found.uncounted
    assert found.latency_ms == {}
    assert found.batch_size is None
    assert ProfileResult.from_json(found.to_json()) == found


@pytest.mark.parametrize("counter", ["fvcore", "torch"])
def test_second_opinions_agree_and_say_so(pruned: str, counter: str) -> None:
    """Both counters find what the analytic count finds on the same samples; pruning is the part outside modules."""
    out = io.StringIO()
    found = run(pruned, counter=counter, console=Console(file=out, width=200))
    opened = open_checkpoint(pruned).build()
    assert prunes(opened)
    assert found.counter == counter
    deviation = float(out.getvalue().rpartition("(")[2].partition("%")[0])
    assert abs(deviation) < 0.5
    assert found.modules[0].name == "vision_model.embeddings"
    assert "pruning" in {module.name for module in found.modules}
    assert sum(module.gmacs for module in found.modules) == pytest.approx(found.gmacs.pruned, rel=1e-9)
    assert sum(module.params for module in found.modules) == found.params
    assert "gelu" in found.uncounted
    assert not [name for name in found.uncounted if "unknown" in name]


def test_latency_is_measured_beside_dense_and_baseline(pruned: str, tmp_path: Path) -> None:
    """Batch 1 and the chosen sizes, for the model, itself unpruned, and the baseline, which may be of another size."""
    baseline = save(tmp_path / "baseline", image_size=32)
    found = run(pruned, latency=True, batch_sizes=[3, 2], baseline=baseline)
    assert list(found.latency_ms) == list(found.latency_p90_ms) == list(found.dense_latency_ms) == ["1", "2", "3"]
    assert all(found.latency_p90_ms[size] >= found.latency_ms[size] > 0 for size in ("1", "3"))
    assert found.latency_ms != found.dense_latency_ms
    assert found.baseline is not None
    assert set(found.baseline.latency_ms) == {"1", "2", "3"}
    assert found.baseline.gmacs < found.gmacs.dense
    assert found.baseline.size_mib is not None
    assert (found.batch_size, found.device, found.dtype, found.attention_backend) == (3, "cpu", "fp32", "auto")
    assert found.threads == torch.get_num_threads()


def test_time_saved_stands_beside_what_was_saved(pruned: str, tmp_path: Path) -> None:
    """Ratios are to the model unpruned, whose own figures are there; all follow from others in the document."""
    baseline = save(tmp_path / "baseline", image_size=32)
    found = run(pruned, latency=True, batch_sizes=[3], baseline=baseline)
    dense, other = found.dense, found.baseline
    assert dense is not None
    assert other is not None
    assert dense.latency_ms == found.dense_latency_ms
    guiding = sum(module.params for module in found.modules if module.name.startswith("alignment"))
    assert guiding > 0
    assert (dense.gmacs, dense.params) == (found.gmacs.dense, found.params - guiding)
    assert (dense.macs_ratio, dense.time_ratio, dense.efficiency) == ({}, {}, {})
    assert found.macs_ratio["1"] == pytest.approx(1 - found.gmacs.reduction)
    assert other.macs_ratio["1"] == pytest.approx(other.gmacs / found.gmacs.dense)
    speeds: list[Speed] = [found, other]
    for speed in speeds:
        for size, ratio in speed.time_ratio.items():
            assert ratio == pytest.approx(speed.latency_ms[size] / dense.latency_ms[size])
            assert speed.efficiency[size] == pytest.approx((1 - ratio) / (1 - speed.macs_ratio[size]))
        assert set(speed.efficiency) == set(speed.peak_mib) == set(speed.latency_runs) == {"1", "3"}
    assert found.samples_per_second["3"] == pytest.approx(3e3 / found.latency_ms["3"])
    assert dense.peak_mib["3"] > dense.peak_mib["1"]


def test_the_backend_in_force_goes_with_the_figures(pruned: str) -> None:
    """Forced for the whole process, as --attention does."""
    with backend("padded"):
        assert run(pruned, latency=True, batch_sizes=[1]).attention_backend == "padded"


def test_ratios_are_of_the_samples_that_were_timed(pruned: str) -> None:
    """A second opinion sees four of six samples; the ratio beside the times is still that of all six."""
    found = run(pruned, latency=True, batch_sizes=[1], counter="torch")
    assert found.macs_ratio == {"1": pytest.approx(1 - run(pruned).gmacs.reduction)}


def test_costs_do_not_depend_on_the_batch_size(pruned: str) -> None:
    """A batch of nine needs more samples than the six that are counted; the cost stays that of the six."""
    wanted = run(pruned)
    found = run(pruned, latency=True, batch_sizes=[9])
    assert (found.gmacs, found.layers, found.tokens_kept) == (wanted.gmacs, wanted.layers, wanted.tokens_kept)
    assert tuple(replace(module, time_share=None) for module in found.modules) == wanted.modules
    assert found.macs_ratio["9"] != pytest.approx(1 - wanted.gmacs.reduction, abs=1e-6)


def test_tokens_kept_are_the_mean_over_layers(pruned: str) -> None:
    """37 tokens of an image enter every layer of the dense model; with --no-latency nothing is timed."""
    found = run(pruned)
    vision = [layer.tokens_mean for layer in found.layers if layer.tower == "vision"]
    assert found.tokens_kept["vision"] == pytest.approx(sum(vision) / len(vision) / 37)
    assert 0 < found.tokens_kept["text"] < 1
    assert found.dense is None
    assert (found.efficiency, found.peak_mib) == ({}, {})


def test_a_dense_model_is_its_own_dense_model(tmp_path: Path) -> None:
    """Nothing pruned: one cost, one time, no part named pruning, every token kept."""
    found = run(save(tmp_path / "dense"), latency=True, batch_sizes=[1])
    assert found.gmacs.dense == found.gmacs.pruned
    assert found.gmacs.reduction == 0
    assert found.latency_ms == found.dense_latency_ms
    assert found.tokens_kept == {"vision": 1.0, "text": 1.0}
    assert (found.macs_ratio, found.time_ratio, found.efficiency) == ({}, {}, {})
    assert found.dense is not None
    assert found.peak_mib == found.dense.peak_mib
    assert not [module for module in found.modules if "pruning" in module.name]
    assert {layer.tokens_mean for layer in found.layers if layer.tower == "vision"} == {37}


def test_text_tokens_set_the_length_of_sentences(tmp_path: Path) -> None:
    """With N tokens per sentence the text tower is entered by N, cut or repeated; more than it can read is refused."""
    checkpoint = save(tmp_path / "dense")
    for tokens in (4, 30):
        text = [layer for layer in run(checkpoint, text_tokens=tokens).layers if layer.tower == "text"]
        assert {(layer.tokens_min, layer.tokens_max) for layer in text} == {(tokens, tokens)}
    with pytest.raises(UsageError, match=r"--text-tokens 65: the model reads at most 64 tokens"):
        run(checkpoint, text_tokens=65)


def test_a_model_of_other_words_is_refused(tmp_path: Path) -> None:
    """A vocabulary too small for the data's sentences is named before anything is computed."""
    with pytest.raises(SourceError, match="the model has 10: it was made for other data"):
        run(save(tmp_path / "small", words=10))


def test_a_recipe_with_random_weights(tmp_path: Path) -> None:
    """--random-init builds the architecture and prunes as the recipe says; the seed decides the weights."""
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    recipe = load_recipe(path)
    found = run(None, recipe=recipe, random_init=True)
    assert found.checkpoint is None
    assert found.seed == 3
    assert 0.2 < found.gmacs.reduction < 0.8
    assert run(None, recipe=recipe, random_init=True, seed=5).seed == 5
    with pytest.raises(UsageError, match="tiny trains a model from scratch and names no checkpoint"):
        run(None, recipe=recipe)


def test_a_recipe_with_a_checkpoint(pruned: str, tmp_path: Path) -> None:
    """Without --random-init the checkpoint's weights are pruned as the recipe says; a strength left open is said."""
    path = tmp_path / "other.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    changes = [f"model.checkpoint={pruned}", "pruning.method=madtp", "pruning.strength=0.5"]
    found = run(None, recipe=load_recipe(path, changes))
    assert found.gmacs.reduction > 0
    out = io.StringIO()
    open_strength = load_recipe(path, [*changes[:2], "pruning.strength=null"])
    found = run(None, recipe=open_strength, random_init=True, console=Console(file=out, width=200))
    assert found.gmacs.reduction == 0
    assert "leaves pruning.strength to its budget" in out.getvalue()


def test_the_own_recipe_of_a_checkpoint_names_its_data(pruned: str) -> None:
    """With a recipe.yaml in the folder nothing is guessed; without one the data are said."""
    out = io.StringIO()
    run(pruned, console=Console(file=out, width=200))
    assert "no recipe.yaml: measured on samples of shapes" in out.getvalue()
    Path(pruned, "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    out = io.StringIO()
    run(pruned, console=Console(file=out, width=200))
    assert out.getvalue() == ""


def test_a_twin_shares_weights_and_leaves_the_model_alone(pruned: str) -> None:
    """The dense twin prunes nothing while the model itself goes on pruning."""
    model = open_checkpoint(pruned).build()
    twin = at_strength(model, 0)
    assert not prunes(twin)
    assert prunes(model)
    assert next(twin.parameters()) is next(model.parameters())


def test_parameters_of_parts_without_cost_are_listed(pruned: str) -> None:
    """Norms, embeddings and the alignment module have lines of their own, so that parameters add up."""
    model = open_checkpoint(pruned).build()
    parts = {part.name: part for part in module_costs(model, {"cls_head": 2e9})}
    assert parts["cls_head"].gmacs == 2
    assert parts["alignment"].gmacs == 0
    assert parts["alignment"].params == 5 * 16 + 2 * (32 * 16 + 16)
    assert sum(part.params for part in parts.values()) == sum(p.numel() for p in model.parameters())


def test_every_sample_has_its_cost(pruned: str) -> None:
    """Their mean is the profile's; what enters and leaves is told of each image and the text, layer by layer."""
    found = run(pruned)
    costs = [sample.gmacs for sample in found.samples]
    assert len(costs) == 6
    assert sum(cost.pruned for cost in costs) / 6 == pytest.approx(found.gmacs.pruned)
    assert sum(cost.dense for cost in costs) / 6 == pytest.approx(found.gmacs.dense)
    for sample in found.samples:
        assert {name: len(kept) for name, kept in sample.tokens_kept.items()} == {
            **{"vision_left": 3, "vision_right": 3, "text": 2}
        }
        assert sample.tokens_entered["vision_left"] == 37
        assert sample.gmacs.reduction == pytest.approx(1 - sample.gmacs.pruned / sample.gmacs.dense)
    means = [layer.tokens_mean for layer in found.layers if layer.tower == "vision"]
    images = [sample.tokens_kept[side] for sample in found.samples for side in ("vision_left", "vision_right")]
    assert [sum(column) / 12 for column in zip(*images, strict=True)] == pytest.approx(means)


def test_a_dense_models_samples_keep_all(tmp_path: Path) -> None:
    """By arithmetic: nothing is saved, every token leaves every layer."""
    for sample in run(save(tmp_path / "dense")).samples:
        assert sample.gmacs.dense == sample.gmacs.pruned
        assert sample.gmacs.reduction == 0
        assert sample.tokens_kept["vision_right"] == (37, 37, 37)
        assert set(sample.tokens_kept["text"]) == {sample.tokens_entered["text"]}


def test_parts_share_the_time_of_batch_1(pruned: str) -> None:
    """What runs has a share, together less than all; what only prunes has none, and without latency nothing has."""
    found = run(pruned, latency=True, batch_sizes=[2])
    shares = {module.name: module.time_share for module in found.modules}
    assert sum(share for share in shares.values() if share is not None) < 1
    for name in ("self_attn", "mlp", "layer_norm1"):
        assert shares[f"vision_model.encoder.layers.2.{name}"] is not None
    assert shares["vision_model.encoder.layers.2.pruning"] is None
    assert {module.time_share for module in run(pruned).modules} == {None}


def test_several_checkpoints_are_measured_in_one_run(pruned: str, tmp_path: Path) -> None:
    """On the same samples, each beside itself unpruned; what costs the same unpruned was timed once."""
    dense, small = save(tmp_path / "dense"), save(tmp_path / "small", image_size=32)
    found = run(pruned, others=[dense, small], latency=True, batch_sizes=[2])
    alone = run(pruned)
    assert (found.gmacs, found.layers, found.samples) == (alone.gmacs, alone.layers, alone.samples)
    assert [(other.name, other.checkpoint) for other in found.others] == [("dense", dense), ("small", small)]
    same, other = found.others
    assert (same.gmacs.dense, same.gmacs.reduction) == (found.gmacs.dense, 0)
    assert found.dense is not None
    assert same.latency_ms == found.dense.latency_ms
    assert found.dense.params == same.params < found.params  # of which the alignment is the rest
    assert other.dense is not None
    assert other.latency_ms == other.dense.latency_ms != found.dense.latency_ms
    assert [sample.id for sample in other.samples] == [sample.id for sample in found.samples]
    assert (same.efficiency, set(found.efficiency)) == ({}, {"1", "2"})
    assert same.size_mib == pytest.approx(open_checkpoint(dense).size_mib)
    assert same.uncounted == found.uncounted
    assert ProfileResult.from_json(found.to_json()) == found


def test_models_of_other_tasks_are_not_compared(pruned: str) -> None:
    """They do not read the same samples; the same holds for a baseline."""
    for options in ({"others": ["builtin:shapes_vqa"]}, {"baseline": "builtin:shapes_vqa"}):
        with pytest.raises(UsageError, match=r"builtin:shapes_vqa: is a blip model for vqa, and the first is a blip"):
            run(pruned, **options)


@pytest.mark.parametrize(
    ("checkpoints", "names"),
    [
        (["runs/a"], ["a"]),
        (["runs/a/", "runs/b"], ["a", "b"]),
        (["runs/a", "old/a", "c"], ["runs/a", "old/a", "c"]),
        (["builtin:shapes_nlvr", "x.pth"], ["builtin:shapes_nlvr", "x.pth"]),
        (["", "runs/b"], ["", "b"]),
    ],
)
def test_checkpoints_have_short_names(checkpoints: list[str], names: list[str]) -> None:
    """As much of the end of a path as tells them apart."""
    assert [name.replace("\\", "/") for name in short_names(checkpoints)] == names


def test_a_recipe_names_the_checkpoint_that_it_starts_from(pruned: str, tmp_path: Path) -> None:
    """Its weights are not random, and the document says where they are from."""
    path = tmp_path / "other.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    found = run(None, recipe=load_recipe(path, [f"model.checkpoint={pruned}"]))
    assert (found.checkpoint, found.recipe, found.name) == (pruned, "other", "pruned")
    drawn = run(None, recipe=load_recipe(path), random_init=True)
    assert (drawn.checkpoint, drawn.recipe, drawn.name) == (None, "other", None)


@pytest.mark.parametrize(
    ("content", "asked"),
    [
        ({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}, False),
        ({}, True),
        ({"image_mean": [0.5], "image_std": [0.5]}, True),
        ({"image_mean": 1, "image_std": "a"}, True),
    ],
)
def test_generated_data_need_a_processor_only_where_the_folder_does_not_say_how_to_normalise(
    pruned: str, content: dict[str, Any], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening one takes as long as half of a profile."""
    Path(pruned, "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    Path(pruned, "preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")

    def refuse(*_: Any) -> Any:
        raise SourceError("a processor was asked")

    monkeypatch.setattr("madtp_cli.engine.profiling.subject.processor_of", refuse)
    if asked:
        with pytest.raises(SourceError, match="a processor was asked"):
            run(pruned)
    else:
        assert run(pruned).gmacs.reduction > 0

"""`profile` of the published models: without weights or data, the papers' constants, data that are not there."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.engine import profile
from madtp_cli.engine.profile import profile_checkpoint
from madtp_cli.engine.profiling import subject as profile_subject
from madtp_cli.errors import SourceError, UsageError
from madtp_cli.models.base import initialise
from madtp_cli.models.checkpoints import save_weights
from madtp_cli.models.family import model_class
from madtp_cli.models.processor import Processor
from madtp_cli.models.spec import PruningSpec
from madtp_cli.recipe import Recipe, load_recipe
from madtp_cli.results import ProfileResult
from tests.engine.tiny_tasks import IDS, KINDS, config_of

FULL = {
    "blip_nlvr2": 132.54,
    "blip_caption_coco": 65.72,
    "blip_vqav2": 186.12,
    "blip_retrieval_coco": 153.24,
    "blip_retrieval_flickr30k": 153.24,
    "clip_retrieval_coco": 395.70,
    "clip_retrieval_flickr30k": 395.70,
}
ABSENT = """
version: 1
task: nlvr2
model: {family: blip, checkpoint: CHECKPOINT, tokenizer: CHECKPOINT}
data: {name: nlvr2, annotations: {train: no/a, validation: no/b, test: no/c}, images: no, image_size: 64}
pruning: {method: random, strength: 0.5}
training: {steps: 1, seed: 3}
"""


def run(checkpoint: str | None = None, **changes: Any) -> ProfileResult:
    """Call as the command does, without latency."""
    options: dict[str, Any] = {
        "recipe": None,
        "random_init": False,
        "baseline": None,
        "counter": "analytic",
        "convention": "sample",
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


@pytest.fixture
def nothing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whoever asks for data, a tokenizer or weights fail."""

    def refuse(*_args: Any, **_options: Any) -> Any:
        raise AssertionError("nothing of this is needed")

    monkeypatch.setattr(profile_subject, "open_splits", refuse)
    monkeypatch.setattr(profile_subject, "open_checkpoint", refuse)
    monkeypatch.setattr(profile_subject, "initialise", refuse)
    monkeypatch.setattr(Processor, "from_folder", refuse)


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on few samples and briefly."""
    monkeypatch.setattr(profile, "SAMPLES", 4)
    monkeypatch.setattr(profile, "SECONDS", 0.01)


def save(folder: Path, kind: tuple[str, str], strength: float = 0.0) -> str:
    """Write a tiny checkpoint of a task with random weights, that prunes at random, and return its name."""
    config = config_of(kind, len(VOCABULARY))
    # Those of the tokenizer beside it.
    names = {"enc": "[ENC]", "bos": "[DEC]", "sep": "[SEP]"} if kind[0] == "blip" else {"eos": "[SEP]"}
    for name, token in names.items():
        setattr(config.text_config, f"{name}_token_id", VOCABULARY.index(token))
    spec = PruningSpec()
    if strength:
        layers = {site.name: (0, 1, 2) for site in model_class(*kind).sites_of(config) if site.prunes}
        spec = PruningSpec(method="random", strength=strength, layers=layers)
    torch.manual_seed(0)
    model = model_class(*kind)(
        config, alignment=spec.alignment(model_class(*kind).sites_of(config)), plan=spec.plan(), strength=strength
    )
    initialise(model)
    folder.mkdir()
    save_weights(folder, model, spec, kind[1], {})
    Processor.from_words(VOCABULARY, 64, family=kind[0], task=kind[1]).save(folder)
    return str(folder)


def absent(tmp_path: Path, checkpoint: str, *changes: str) -> Recipe:
    """Load a recipe whose data are not there."""
    path = tmp_path / "absent.yaml"
    path.write_text(ABSENT.replace("CHECKPOINT", checkpoint), encoding="utf-8")
    return load_recipe(path, list(changes))


@pytest.mark.usefixtures("nothing_there")
@pytest.mark.parametrize(("name", "gmacs"), FULL.items())
def test_the_published_constants_come_out(name: str, gmacs: float) -> None:
    """All seven recipes: the composition adds up to the paper's constant, module by module and pass by pass."""
    found = run(recipe=load_recipe(name), random_init=True, convention="published")
    assert found.gmacs.dense == pytest.approx(gmacs, rel=1e-4)
    assert (found.published_gmacs, found.convention) == (gmacs, "published")
    assert sum(part.times * part.gmacs.dense for part in found.composition) == pytest.approx(found.gmacs.dense)
    assert sum(module.gmacs for module in found.modules) == pytest.approx(found.gmacs.dense)
    assert "layer norm" not in found.uncounted
    assert "layer norms" in {module.name for module in found.modules}
    assert found.passes == ()
    assert ProfileResult.from_json(found.to_json()) == found


@pytest.mark.usefixtures("nothing_there")
@pytest.mark.parametrize(
    ("name", "gmacs", "tokens", "on_top"),
    [
        ("blip_nlvr2", 132.5, 36, None),
        ("blip_caption_coco", 65.7, 15, None),
        ("blip_vqav2", 105.9, 9, 0.62),
        ("blip_retrieval_coco", 58.5, 35, 12.0),
        ("clip_retrieval_coco", 191.0 + 6.65, 77, None),
    ],
)
def test_a_sample_at_full_size(name: str, gmacs: float, tokens: int, on_top: float | None) -> None:
    """What one sample costs at the published lengths, said in the result; what comes on top stands apart."""
    found = run(recipe=load_recipe(name), random_init=True)
    assert found.gmacs.dense == found.gmacs.pruned == pytest.approx(gmacs, rel=1e-3)
    assert found.text_tokens == tokens
    assert [part.gmacs.dense for part in found.passes] == ([] if on_top is None else [pytest.approx(on_top, rel=0.01)])
    assert (found.device, found.dtype, found.attention_backend) == (None, None, None)
    assert sum(module.params for module in found.modules) == found.params > 1.5e8
    vision = sum(module.gmacs for module in found.modules if module.name.startswith("vision_model"))
    images = {"blip_nlvr2": 2 * 55.5, "blip_vqav2": 92.0, "clip_retrieval_coco": 191.0}
    assert vision == pytest.approx(images.get(name, 55.5), rel=1e-3)


@pytest.mark.usefixtures("nothing_there")
def test_text_tokens_set_the_length() -> None:
    """--text-tokens is taken as given, in both conventions, and refused beyond what the model reads."""
    recipe = load_recipe("blip_caption_coco")
    costs = {n: run(recipe=recipe, random_init=True, text_tokens=n) for n in (15, 16)}
    assert costs[16].text_tokens == 16
    assert costs[16].gmacs.dense - costs[15].gmacs.dense == pytest.approx(0.134, abs=0.001)
    longer = run(recipe=recipe, random_init=True, text_tokens=16, convention="published")
    assert longer.gmacs.dense > costs[16].gmacs.dense
    with pytest.raises(UsageError, match=r"--text-tokens 513: the model reads at most 512 tokens; give fewer"):
        run(recipe=recipe, random_init=True, text_tokens=513)


@pytest.mark.usefixtures("nothing_there")
def test_another_size_has_no_published_constant() -> None:
    """The same composition with the costs of images of 224 pixels, compared with nothing."""
    recipe = load_recipe("blip_nlvr2", ["data.image_size=224"])
    found = run(recipe=recipe, random_init=True, convention="published")
    assert found.published_gmacs is None
    assert found.gmacs.dense < 50


def test_a_published_cost_is_not_counted_by_running() -> None:
    """A second opinion has nothing to say about a composition."""
    with pytest.raises(UsageError, match="--convention published is put together by arithmetic, not by torch; remove"):
        run("x", convention="published", counter="torch")


@pytest.mark.usefixtures("few_samples")
@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_a_pruned_checkpoint_in_both_conventions(kind: tuple[str, str], tmp_path: Path) -> None:
    """Its own costs in the task's composition: cheaper than dense pass by pass, no constant to compare with; the
    baseline is counted alike.
    """
    checkpoint, dense = save(tmp_path / "pruned", kind, 0.5), save(tmp_path / "dense", kind)
    found = run(checkpoint, convention="published", baseline=dense)
    assert 0.1 < found.gmacs.reduction < 0.8
    assert sum(part.times * part.gmacs.pruned for part in found.composition) == pytest.approx(found.gmacs.pruned)
    assert sum(part.times * part.gmacs.dense for part in found.composition) == pytest.approx(found.gmacs.dense)
    assert found.published_gmacs is None
    assert found.baseline is not None
    assert found.baseline.gmacs == pytest.approx(found.gmacs.dense)
    sample = run(checkpoint)
    assert 0.1 < sample.gmacs.reduction < 0.8
    assert sum(module.gmacs for module in sample.modules) == pytest.approx(sample.gmacs.pruned)
    assert len(sample.passes) == (kind[1] in ("vqa", "retrieval") and kind[0] == "blip")
    assert all(0 < part.gmacs.pruned < part.gmacs.dense for part in sample.passes)


@pytest.mark.usefixtures("few_samples")
@pytest.mark.parametrize("random_init", [True, False])
def test_generated_images_stand_in_for_data_that_are_not_there(random_init: bool, tmp_path: Path) -> None:
    """What has to run runs on shapes and texts of the published length, and says why."""
    recipe, out = absent(tmp_path, save(tmp_path / "tiny", KINDS[0])), io.StringIO()
    found = run(
        recipe=recipe, random_init=random_init, latency=True, batch_sizes=[1], console=Console(file=out, width=400)
    )
    assert "measured on generated images of shapes" in out.getvalue()
    assert f"no{os.sep}b" in out.getvalue()
    assert found.text_tokens == 36
    assert 0.1 < found.gmacs.reduction < 0.8
    assert found.latency_ms["1"] > 0
    assert found.device == "cpu"


def test_missing_generated_data_is_no_excuse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Shapes are always there: what goes wrong with them is told."""

    def fail(*_args: Any) -> Any:
        raise SourceError("broken")

    monkeypatch.setattr(profile_subject, "open_splits", fail)
    recipe = absent(tmp_path, save(tmp_path / "tiny", KINDS[0]), "data={name: shapes}")
    with pytest.raises(SourceError, match="broken"):
        run(recipe=recipe)


def test_the_command_is_quick_and_small() -> None:
    """As users run it: ten seconds of a processor, a gibibyte, one JSON document, and a threshold that is hit."""
    arguments = ["profile", "--recipe", "blip_vqav2", "--random-init", "--no-latency", "--convention", "published"]
    command = [sys.executable, "-m", "madtp_cli", *arguments, "--json", "--fail-if", "gmacs>186"]
    # A process's peak begins with that of the one it was started from, and a test run grows large: a small one between.
    between = (
        "import os, sys; pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)\n"
        "_, status, used = os.wait4(pid, 0)\n"
        "print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)"
    )
    process = subprocess.run([sys.executable, "-c", between, *command], capture_output=True, text=True, check=True)
    document = json.loads(process.stdout)
    code, seconds, peak = process.stderr.splitlines()[-1].split()
    assert int(code) == 6
    assert document["gmacs"]["dense"] == pytest.approx(186.12, rel=1e-4)
    assert document["convention"] == "published"
    assert [part["times"] for part in document["composition"]] == [1, 1, 32, 1, 47]
    assert float(seconds) < 10
    assert int(peak) < 2**20  # KiB on Linux, bytes (and so never less) on macOS

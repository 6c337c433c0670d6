"""`madtp_cli.load`: one line from a folder to a model and a processor that do what the engine does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image

import madtp_cli
from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.data.shapes import ShapesPairs, accuracy
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.errors import SourceError, UsageError
from madtp_cli.models.checkpoints import open_checkpoint
from tests.tiny_published import go_offline, typed

DATA = ShapesPairs("test", 24)


def inputs(processor: Any) -> dict[str, Any]:
    """Prepare the first samples of the test split as a user would."""
    samples = [DATA.sample(row) for row in range(len(DATA))]
    pairs = [(Image.fromarray(sample.left), Image.fromarray(sample.right)) for sample in samples]
    arguments: dict[str, Any] = processor(pairs, [sample.sentence for sample in samples])
    return arguments


@pytest.mark.parametrize("name", ["dense", "pruned"])
def test_the_model_and_its_processor_give_the_logits_of_the_engine(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    model, processor = madtp_cli.load(folder)
    assert not model.training
    with torch.inference_mode():
        output = model(**inputs(processor))
        expected = Nlvr2(accuracy).forward(
            open_checkpoint(str(folder)).build(), DATA.batch(0, len(DATA)), torch.device("cpu")
        )
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-4, rtol=0)
    pairs = DATA.batch(0, len(DATA)).image_index.tolist()
    for found, wanted in zip(output.traces["vision"], expected.traces["vision"], strict=True):
        assert list(found.leaving) == [wanted.leaving[image] for pair in pairs for image in pair]
    assert [layer.leaving for layer in output.traces["text"]] == [layer.leaving for layer in expected.traces["text"]]


def test_a_pruned_checkpoint_loads_pruned(pruned: Path) -> None:
    model, processor = madtp_cli.load(str(pruned))
    with torch.inference_mode():
        output = model(**inputs(processor))
    assert model.strength > 0
    assert sum(output.traces["vision"][-1].leaving) < 37 * 2 * len(DATA)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_another_dtype_takes_the_same_inputs(dtype: torch.dtype, dense: Path) -> None:
    model, processor = madtp_cli.load(dense, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    plain, _ = madtp_cli.load(dense)
    with torch.inference_mode():
        arguments = inputs(processor)
        torch.testing.assert_close(model(**arguments).logits, plain(**arguments).logits, atol=0.1, rtol=0)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("float64", torch.float64)])
def test_a_dtype_may_be_named(name: str, dtype: torch.dtype, dense: Path) -> None:
    assert {parameter.dtype for parameter in madtp_cli.load(dense, dtype=name)[0].parameters()} == {dtype}


@pytest.mark.parametrize("dtype", ["int8", torch.int64, "half-size", 16], ids=str)
def test_a_dtype_that_is_none_is_refused(dtype: Any, dense: Path) -> None:
    with pytest.raises(UsageError, match=r"is no floating-point type; give torch.bfloat16, or a name such as 'bf16'"):
        madtp_cli.load(dense, dtype=dtype)


# The hub -----------------------------------------------------------------------------------------------------

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.fixture
def hub(pruned: Path, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave no network, and a cache in which `me/tiny` lies as it was downloaded: pruned, and dense at revision v1."""
    go_offline(monkeypatch, tmp_path)
    cache = tmp_path / "hub"
    for revision, folder in (("main", pruned), ("v1", dense)):
        shutil.copytree(folder, cache / "models--me--tiny" / "snapshots" / COMMITS[revision])
        (cache / "models--me--tiny" / "refs").mkdir(exist_ok=True)
        (cache / "models--me--tiny" / "refs" / revision).write_text(COMMITS[revision], encoding="utf-8")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    return cache


@pytest.mark.parametrize(("source", "folder"), [("me/tiny", "pruned"), ("me/tiny@v1", "dense")])
def test_a_folder_of_ours_loads_from_the_hub(
    source: str, folder: str, hub: Path, request: pytest.FixtureRequest
) -> None:
    """What huggingface_hub itself finds in its cache gives the logits of the folder that was pushed."""
    model, processor = madtp_cli.load(source)
    own, _ = madtp_cli.load(request.getfixturevalue(folder))
    assert model.strength == own.strength
    with torch.inference_mode():
        arguments = inputs(processor)
        assert torch.equal(model(**arguments).logits, own(**arguments).logits)


def test_everything_a_command_reads_is_fetched(
    hub: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downloaded by its patterns alone, the repository is evaluated on the data of its own recipe."""
    whole = hub / "models--me--tiny" / "snapshots" / COMMITS["main"]

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert (name, revision) == ("me/fresh", None)
        for pattern in allow_patterns:
            for file in whole.glob(pattern):
                (tmp_path / "fetched").mkdir(exist_ok=True)
                shutil.copy(file, tmp_path / "fetched")
        return str(tmp_path / "fetched")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    result = typed("madtp evaluate me/fresh --limit 8 --json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["gmacs"]["reduction"] > 0


def test_what_the_hub_does_not_have_is_told(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, it may be online; online, it is not there, or not for everybody."""
    with pytest.raises(SourceError, match=r"me/other: no such folder, and it cannot be fetched .*download me/other"):
        madtp_cli.load("me/other")
    with pytest.raises(SourceError, match=r"me/tiny@v2: no such folder, and it cannot be fetched .*--revision v2"):
        madtp_cli.load("me/tiny@v2")

    def missing(name: str, **_: object) -> str:
        raise RepositoryNotFoundError("404", response=MagicMock(status_code=404))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
    with pytest.raises(SourceError, match=r"me/other: no such folder, and no such model .*; a private one needs: hf"):
        madtp_cli.load("me/other")


def test_the_built_in_model_answers() -> None:
    """Of 24 sentences about 3 pairs of images it may miss a few, a coin would miss twelve."""
    model, processor = madtp_cli.load("builtin:shapes_nlvr")
    with torch.inference_mode():
        answers = model(**inputs(processor)).logits.argmax(-1)
    assert (answers == DATA.batch(0, len(DATA)).labels).sum() >= 20


def test_a_folder_may_be_moved(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(dense, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert madtp_cli.load("moved")[0].config.to_dict() == madtp_cli.load(dense)[0].config.to_dict()


def test_what_cannot_be_loaded_is_told(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such checkpoint folder"):
        madtp_cli.load(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="builtin:nothing: no such built-in checkpoint"):
        madtp_cli.load("builtin:nothing")
    with pytest.raises(UsageError, match="--device cuda:99 cannot be used here"):
        madtp_cli.load(dense, device="cuda:99")
    shutil.copytree(dense, tmp_path / "half")
    (tmp_path / "half" / "preprocessor_config.json").unlink()
    with pytest.raises(SourceError, match=r"preprocessor_config.json: no such file"):
        madtp_cli.load(tmp_path / "half")


def test_a_tokenizer_that_is_not_the_models_is_refused(dense: Path, tmp_path: Path) -> None:
    """Its sentences would be noise; what the configuration does not say, as of older folders, is not asked."""
    folder = tmp_path / "mixed"
    shutil.copytree(dense, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["enc_token_id"] = 9
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    number = VOCABULARY.index("[ENC]")
    fault = rf"mixed: the tokenizer .*mixed is not the one of the model: \[ENC\] is {number} and in the model 9 \(model"
    with pytest.raises(SourceError, match=fault):
        madtp_cli.load(folder)
    config["text_config"]["enc_token_id"] = None
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    madtp_cli.load(folder)


@pytest.mark.parametrize("name", sorted(path.name for path in (Path(madtp_cli.__file__).parent / "builtin").iterdir()))
def test_every_built_in_model_has_its_own_tokenizer(name: str) -> None:
    model, processor = madtp_cli.load(f"builtin:{name}")
    assert (model.family, model.task) == (processor.family, processor.task)

"""`export` on tiny models with random weights: files that agree come out, with all that belongs to them, or nothing."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.engine import export
from madtp_cli.engine.export import Options, export_checkpoint
from madtp_cli.engine.exporting import job as export_job
from madtp_cli.errors import ExportError, SourceError, UsageError
from madtp_cli.export import formats, onnx, torch_export
from madtp_cli.models.base import initialise
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.blip.nlvr import BlipForNlvr
from madtp_cli.models.checkpoints import save_weights
from madtp_cli.models.processor import Processor
from madtp_cli.models.spec import PruningSpec
from madtp_cli.results_export import ExportResult

SPEC: dict[str, Any] = {"method": "madtp", "strength": 0.48, "alignment_tokens": 5, "alignment_dim": 16}


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_job, "SECONDS", 0.0)


def save(folder: Path, **pruning: Any) -> str:
    """Write a checkpoint with random weights, two vision layers, one of which prunes, and a text layer."""
    torch.manual_seed(0)
    config = small_config(
        image_size=32,
        vocab_size=len(VOCABULARY),
        vision_layers=2,
        vision_width=32,
        vision_heads=2,
        text_layers=1,
        text_width=32,
        text_heads=2,
    )
    spec = PruningSpec(layers={"vision": (0,)}, **pruning)
    model = BlipForNlvr(
        config, alignment=spec.alignment(BlipForNlvr.sites_of(config)), plan=spec.plan(), strength=spec.strength
    )
    initialise(model)
    folder.mkdir()
    save_weights(folder, model, spec, "nlvr2", {})
    Processor.from_words(VOCABULARY, 32).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("checkpoints") / "adaptive", **SPEC)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("checkpoints") / "dense")


def run(checkpoint: str, folder: Path, **changes: Any) -> tuple[ExportResult, str]:
    """Export into a folder; return the result and what was said meanwhile."""
    out = io.StringIO()
    settings: dict[str, Any] = {"format": "torch", "output": str(folder), "samples": 9, "latency": False, **changes}
    console = Console(file=out, width=200)
    return export_checkpoint(checkpoint, Options(**settings), seed=None, console=console), out.getvalue()


def test_an_onnx_file_prunes_as_pytorch_does(adaptive: str, tmp_path: Path) -> None:
    """Alone and in company; its folder says what it is, and nothing else is left behind."""
    found, _ = run(adaptive, tmp_path / "onnx", format="onnx")
    assert (found.format, found.runtime, found.opset, found.mode) == ("onnx", "onnxruntime", 20, "dynamic")
    assert (found.check.samples, found.check.same_kept, found.check.same_answers) == (9, 1, 1)
    assert (found.check.against, found.check.cost_ratio) == ("pytorch", None)
    assert found.check.max_difference <= 1e-4 < found.check.atol == 1e-3
    assert found.check.score == "accuracy"
    assert found.check.scores["exported"] == found.check.scores["pytorch"]
    assert 0 < found.gmacs.pruned < found.gmacs.dense
    assert {tower: len(layers) for tower, layers in found.tokens_kept.items()} == {"vision": 2, "text": 1}
    names = {file.name for file in found.files}
    assert {"model.onnx", "inference.json", "example.py", "README.md"} <= names
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
    about = json.loads((tmp_path / "onnx" / "inference.json").read_text())
    assert about["checkpoint"] == Path(adaptive).name  # where it lies is nobody else's
    (graph,) = about["graphs"].values()
    assert graph["file"] == "model.onnx"
    assert {port["name"]: port["shape"] for port in graph["inputs"]} == {
        "images": ["batch", 2, 3, 32, 32],
        "text": ["batch", "text"],
        "text_lengths": ["batch"],
    }
    assert graph["outputs"][3] == {
        "name": "vision_positions",
        "dtype": "int64",
        "shape": ["batch", 2, "vision_tokens"],
    }
    assert not found.latency_ms
    assert ExportResult.from_json(found.to_json()) == found


def test_static_counts_are_calibrated_and_shapes_fixed(adaptive: str, tmp_path: Path) -> None:
    """Two samples a call, texts as long as the longest: no axis of any size is left, and every sample keeps as many.

    It is timed beside itself unpruned, at the one size that it takes.
    """
    found, said = run(adaptive, tmp_path / "static", mode="static", batch_size=2, latency=True, max_loss=100)
    assert "beside the same model unpruned" in said
    assert found.latency_ms.keys() == {"dense", "pruned"}
    assert found.speedup == {
        size: found.latency_ms["dense"][size] / ms for size, ms in found.latency_ms["pruned"].items()
    }
    assert list(found.speedup) == ["2"]
    assert (found.opset, found.batch_size, found.check.samples) == (None, 2, 10)
    assert found.check.max_difference < 1e-5
    assert "of the mean cost that it has by the content of 10 samples" in said
    assert found.check.against == "pytorch_fixed"
    assert found.check.cost_ratio is not None
    assert f"a fixed number of tokens, at {found.check.cost_ratio:.4f} of" in said
    assert f"texts have {found.text_tokens} places, as the longest of 10 samples" in said
    about = json.loads((tmp_path / "static" / "inference.json").read_text())
    (graph,) = about["graphs"].values()
    shapes = {port["name"]: port["shape"] for port in (*graph["inputs"], *graph["outputs"])}
    assert all(isinstance(size, int) for shape in shapes.values() for size in shape)
    assert shapes["text"] == [2, found.text_tokens] == [2, about["text"]["longest"]]
    assert all(kept == int(kept) for kept in found.tokens_kept["vision"])


def test_a_dense_checkpoint_is_timed_alone(dense: str, tmp_path: Path) -> None:
    found, said = run(dense, tmp_path / "out", mode="static", latency=True, samples=4)
    assert "prunes nothing" in said
    assert found.latency_ms.keys() == {"dense"}
    assert found.speedup == {}
    assert found.gmacs.reduction == 0


def test_half_precision_keeps_its_inputs_and_outputs(adaptive: str, tmp_path: Path) -> None:
    """Numbers agree to what fp16 can, not better; other tokens may be kept, and are counted."""
    found, _ = run(adaptive, tmp_path / "half", mode="static", samples=4, precision="fp16", max_loss=100)
    assert 1e-5 < found.check.max_difference < found.check.atol == 5e-2
    assert 0 <= found.check.same_kept <= 1
    about = json.loads((tmp_path / "half" / "inference.json").read_text())
    ports = [*about["graphs"]["model"]["inputs"], *about["graphs"]["model"]["outputs"]]
    assert {port["dtype"] for port in ports} == {"float32", "int64"}
    weights = torch.export.load(tmp_path / "half" / "model.pt2").state_dict.values()
    assert {weight.dtype for weight in weights} == {torch.float16}


def test_a_program_runs_where_gradients_are_asked_for(adaptive: str, tmp_path: Path) -> None:
    """PyTorch's default: nothing in the graph is written in place. Outputs are those of inference, with a gradient."""
    run(adaptive, tmp_path / "out", samples=2)
    program = torch.export.load(tmp_path / "out" / "model.pt2")
    assert program.example_inputs is not None
    args, named = program.example_inputs
    found = program.module()(*args, **named)[0]
    assert found.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(found.detach(), program.module()(*args, **named)[0])


def test_files_that_disagree_are_not_handed_over(
    adaptive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = torch_export.Session.__call__

    def lying(self: torch_export.Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = honest(self, inputs)
        return {**found, "logits": found["logits"] + 0.5}

    monkeypatch.setattr(torch_export.Session, "__call__", lying)
    with pytest.raises(ExportError) as caught:
        run(adaptive, tmp_path / "out", mode="static", samples=2)
    assert str(caught.value) == (
        "the torch files do not agree with PyTorch on 2 samples: numbers differ by up to 0.5, at most 0.001 is allowed "
        "(--atol); nothing was written; try --format onnx"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("precision", "spoil", "fault"),
    [
        ("fp16", torch.zeros_like, "no sample keeps the same tokens, so that no numbers could be compared"),
        ("fp16", lambda value: value * math.nan, "logits has numbers not finite"),
        ("fp32", torch.zeros_like, "0.0% of the samples keep the same tokens"),
    ],
    ids=["zeros", "nan", "zeros in fp32"],
)
def test_what_cannot_be_compared_is_refused(
    precision: str, spoil: Any, fault: str, adaptive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that keep other tokens of every sample: there is no sample left on which numbers could agree."""
    honest = torch_export.Session.__call__

    def lying(self: torch_export.Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = honest(self, inputs)
        return {**found, "logits": spoil(found["logits"]), "vision_kept": found["vision_kept"] + 1}

    monkeypatch.setattr(torch_export.Session, "__call__", lying)
    with pytest.raises(ExportError) as caught:
        run(adaptive, tmp_path / "out", mode="static", samples=2, precision=precision, max_loss=100)
    assert fault in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_less_accurate_is_not_handed_over(
    adaptive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score of the files is the second one that is asked for; more may be lost where that is said."""
    found = iter([0.98, 0.95, 0.98, 0.95])
    monkeypatch.setattr(export_job.Job, "score", lambda self, outputs: next(found))
    with pytest.raises(ExportError) as caught:
        run(adaptive, tmp_path / "out", samples=2)
    assert "accuracy is 95% instead of 98%, 3 points less, at most 1 allowed (--max-loss" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    check = run(adaptive, tmp_path / "out", samples=2, max_loss=3)[0].check
    assert (check.max_loss, check.scores) == (3, {"pytorch": 0.98, "exported": 0.95})


def test_files_that_agree_stay_where_they_cannot_be_timed(
    adaptive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_job.Job, "time", full)
    found, said = run(adaptive, tmp_path / "out", samples=2, latency=True)
    assert (found.latency_ms, found.speedup) == ({}, {})
    assert (tmp_path / "out" / "model.pt2").is_file()
    assert "could not be timed: [Errno 28] No space left on device" in " ".join(said.split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opset": 20}, "--opset is of ONNX files, and --format torch writes none; leave it out"),
        ({"format": "onnx", "opset": 17}, "--opset 17: files are written in opsets 18 to 25; try 20"),
        ({"text_tokens": 20}, "--text-tokens fixes the length of texts, which --mode dynamic leaves open; remove it"),
        ({"mode": "static", "text_tokens": 3}, "--text-tokens 3: texts of the data have up to"),
        ({"mode": "static", "text_tokens": 65}, "--text-tokens 65: the model reads at most 64 tokens"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, adaptive: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        run(adaptive, tmp_path / "out", **changes)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(adaptive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name.startswith("onnx") else object())
    with pytest.raises(SourceError) as caught:
        run(adaptive, tmp_path / "out", format="onnx")
    assert str(caught.value) == (
        "--format onnx needs onnx, onnxscript, onnxruntime, which are not installed; run: pip install 'madtp[onnx]'"
    )


def test_only_an_export_is_replaced_and_only_if_asked(dense: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="is no export folder, which is all that --overwrite replaces"):
        run(dense, folder, overwrite=True)
    (folder / "mine.txt").rename(folder / "inference.json")
    with pytest.raises(UsageError, match="it exists; choose another --output, or replace it with --overwrite"):
        run(dense, folder)
    run(dense, folder, mode="static", overwrite=True, samples=2)
    assert (folder / "model.pt2").is_file()


@pytest.mark.parametrize(
    ("checkpoint", "changes", "place"),
    [
        ("builtin:shapes_nlvr", {}, "shapes_nlvr-onnx"),
        ("owner/name", {"mode": "static"}, "name-onnx-static"),
        ("owner/name", {"format": "openvino", "precision": "fp16"}, "name-openvino-fp16"),
    ],
)
def test_a_folder_is_named_after_the_checkpoint(checkpoint: str, changes: dict[str, Any], place: str) -> None:
    assert export._place(checkpoint, Options(**{"format": "onnx", **changes})) == Path(place)


def test_it_lies_beside_a_checkpoint_that_is_here(adaptive: str) -> None:
    assert export._place(adaptive, Options(format="torch")) == Path(f"{adaptive}-torch")
    weights = Path(adaptive) / "model.safetensors"
    assert export._place(str(weights), Options(format="onnx")) == weights.parent / "model-onnx"


def test_opsets_are_those_that_were_tried() -> None:
    for opset in (18, 20, 25):
        onnx.check_opset(opset)
    for opset in (17, 26):
        with pytest.raises(UsageError):
            onnx.check_opset(opset)

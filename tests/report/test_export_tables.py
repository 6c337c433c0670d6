"""What `export` prints, word for word."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from madtp_cli.report.terminal import show
from madtp_cli.results import Gmacs
from madtp_cli.results_export import ExportCheck, ExportFile, ExportResult

RESULT = ExportResult(
    command="export",
    device="cpu",
    dtype="fp32",
    seed=3,
    checkpoint="runs/mine",
    output="runs/mine-onnx",
    format="onnx",
    runtime="onnxruntime",
    mode="dynamic",
    precision="fp32",
    opset=20,
    text_tokens=None,
    batch_size=None,
    files=(
        ExportFile(name="model.onnx", bytes=8_925_788),
        ExportFile(name="example.py", bytes=699),
        ExportFile(name="inference.json", bytes=2643),
    ),
    check=ExportCheck(
        samples=1000,
        same_kept=1.0,
        same_answers=0.999,
        max_difference=3.8e-6,
        atol=1e-3,
        score="accuracy",
        scores={"pytorch": 0.981, "exported": 0.98},
        max_loss=1.0,
    ),
    gmacs=Gmacs(dense=0.51, pruned=0.1032, reduction=1 - 0.1032 / 0.51),
    latency_ms={"dense": {"1": 9.0, "8": 80.0}, "pruned": {"1": 3.0, "8": 20.0}},
    speedup={"1": 3.0, "8": 4.0},
    threads=2,
    seconds=75.0,
)


def shown(result: ExportResult) -> list[str]:
    """Print as on a wide console, without the empty lines."""
    out = io.StringIO()
    show(result, Console(file=out, width=200))
    return [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]


def test_an_export_says_what_was_written_checked_and_timed() -> None:
    assert shown(RESULT) == [
        "runs/mine as onnx opset 20, dynamic, fp32.",
        "Agrees with PyTorch on 1,000 samples: the same tokens kept on all, the same answers on 99.9%, "
        "numbers within 3.8e-06 (at most 0.001).",
        "Accuracy 98.0%, in PyTorch 98.1%; 1 point less is allowed.",
        "0.1032 gmacs per sample, 0.5100 without pruning (-79.8%).",
        "batch 1: 3.00 ms in onnxruntime, unpruned 9.00 ms: 3.00 times as fast",
        "batch 8: 20.0 ms in onnxruntime, unpruned 80.0 ms: 4.00 times as fast",
        "files       model.onnx (8.51 MiB) and 2 small ones",
        "folder      runs/mine-onnx",
        "run         1 min 15 s on cpu, fp32, seed 3, 2 threads",
        "next        python runs/mine-onnx/example.py",
    ]


def test_what_was_not_measured_is_not_printed() -> None:
    """A dense program of torch.export without a score: no opset, one time, nothing pruned."""
    dense = replace(
        RESULT,
        format="torch",
        opset=None,
        check=replace(RESULT.check, same_answers=None, score=None, scores={}),
        gmacs=Gmacs(dense=0.51, pruned=0.51, reduction=0.0),
        latency_ms={"dense": {"1": 9.0}},
        speedup={},
    )
    lines = shown(dense)
    assert lines[0] == "runs/mine as torch, dynamic, fp32."
    assert "answers" not in lines[1]
    assert lines[2:4] == ["0.5100 gmacs per sample, nothing pruned.", "batch 1: 9.00 ms in onnxruntime"]


def test_fixed_counts_are_held_against_the_same_ones() -> None:
    """The accuracy is that of the model as it adapts; embeddings are said where there are any."""
    check = replace(RESULT.check, against="pytorch_fixed", cost_ratio=1.004, same_answers=None, same_embeds=0.995)
    lines = shown(replace(RESULT, mode="static", check=check))
    assert lines[1:4] == [
        "Agrees with the same fixed counts in PyTorch on 1,000 samples: the same tokens kept on all, close embeddings "
        "of 99.5%, numbers within 3.8e-06 (at most 0.001).",
        "Accuracy 98.0%, of the model as it adapts, in PyTorch, 98.1%; 1 point less is allowed.",
        "The fixed counts cost 1.0040 of what the model costs on average as it adapts.",
    ]
    off = shown(replace(RESULT, check=replace(check, cost_ratio=0.96)))[3]
    assert off == (
        "The fixed counts cost 0.9600 of what the model costs on average as it adapts: no closer ones were found."
    )

"""`madtp export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from madtp_cli.commands import options
from madtp_cli.commands.output import emit, open_console
from madtp_cli.errors import UsageError
from madtp_cli.results import HubResult, HubUpload
from madtp_cli.results_export import ExportResult

Model = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder, or builtin:NAME.")]
Format = Annotated[
    Literal["onnx", "torch", "openvino"] | None,
    typer.Option("--format", help="onnx (the default), a program of torch.export (.pt2), or OpenVINO's files."),
]
Mode = Annotated[
    Literal["dynamic", "static"],
    typer.Option(help="Keep tokens by what is in each sample, or a fixed number in every layer, with constant shapes."),
]
Precision = Annotated[
    Literal["fp32", "fp16"], typer.Option(help="Of weights and arithmetic; inputs and outputs stay float32.")
]
Opset = Annotated[
    int | None,
    typer.Option(metavar="N", help="ONNX operator set, 18 to 25, for openvino in passing; 20 by default."),
]
Atol = Annotated[
    float | None,
    typer.Option(min=0, metavar="X", help="Largest difference from PyTorch; 0.001 by default, in fp16 0.05."),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(
        min=0, metavar="POINTS", help="How much lower than PyTorch's the accuracy may be; 1 by default, in fp16 2."
    ),
]
Output = Annotated[
    str | None, typer.Option(metavar="DIR", help="Write here; by default beside the checkpoint, as NAME-onnx.")
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Fix the samples per call; any number by default, 1 in static mode."),
]
TextTokens = Annotated[
    int | None,
    typer.Option(min=2, metavar="N", help="Places of a text in static mode; by default as the longest sample's."),
]
Samples = Annotated[
    int, typer.Option(min=1, metavar="N", help="Check on N samples of the checkpoint's validation split.")
]
Latency = Annotated[bool, typer.Option(help="Time the files beside those of the same model unpruned.")]
Hub = Annotated[
    str | None,
    typer.Option(
        metavar="OWNER/NAME",
        help="Put the checkpoint folder on the Hugging Face hub; with --format, what was exported as well.",
    ),
]
Private = Annotated[bool, typer.Option("--private", help="With --hub: a repository that not everybody sees.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="With --hub: check and list what would be uploaded, and upload nothing.")
]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="cpu or auto, which is the same here: files are written and checked there.")
]

# Options that only exported files have: by the names that the engine has for them.
_OF_FILES = (
    *("mode", "precision", "opset", "atol", "max_loss", "output", "overwrite", "batch_size", "text_tokens", "samples"),
    "latency",
)


def export(
    context: typer.Context,
    checkpoint: Model,
    file_format: Format = None,
    mode: Mode = "dynamic",
    precision: Precision = "fp32",
    opset: Opset = None,
    atol: Atol = None,
    max_loss: MaxLoss = None,
    output: Output = None,
    overwrite: options.Overwrite = False,
    batch_size: BatchSize = None,
    text_tokens: TextTokens = None,
    samples: Samples = 200,
    latency: Latency = True,
    hub: Hub = None,
    private: Private = False,
    dry_run: DryRun = False,
    device: Device = "auto",
    seed: options.Seed = None,
    json_output: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write a checkpoint as files that run without madtp.

    They are run on real samples beside PyTorch: where the tokens kept, the answers or the numbers differ beyond the
    tolerance, nothing is handed over. The folder runs on its own and has an example.py: docs/export.md.
    """
    level = options.verbosity(verbose, quiet)
    _check(device, hub, {"--dry-run": dry_run, "--private": private})
    if hub is not None and file_format is None:
        _check_unused(context)
    exported: ExportResult | None = None
    try:
        with open_console(json_output, level) as console:
            if hub is not None:
                from madtp_cli.engine.exporting.hub import check_upload

                check_upload(checkpoint, hub, dry_run=dry_run)  # before minutes of work
            if hub is None or file_format is not None:
                from madtp_cli.engine.export import Options, export_checkpoint

                asked = Options(format=file_format or "onnx", **{name: context.params[name] for name in _OF_FILES})
                exported = export_checkpoint(checkpoint, asked, seed=seed, console=console)
            sent = None if hub is None else _send(checkpoint, hub, exported, private, dry_run, console)
    except BaseException:
        if exported is not None:  # written, and not uploaded
            emit(exported, json_output, console)
        raise
    if exported is not None:
        emit(replace(exported, hub=sent), json_output, console)
    elif sent is not None:
        emit(HubResult(command="export", checkpoint=checkpoint, hub=sent), json_output, console)


def _check(device: str, hub: str | None, uploads: Mapping[str, bool]) -> None:
    """Refuse a device that does nothing here, and what is for an upload without one."""
    if device not in ("auto", "cpu"):
        raise UsageError(f"--device {device}: files are written and checked on the CPU; give cpu, or leave it out")
    for flag, given in uploads.items():
        if hub is None and given:
            raise UsageError(f"{flag} is for --hub OWNER/NAME; give that, or leave it out")


def _check_unused(context: typer.Context) -> None:
    """Refuse what is said of exported files where none are asked for, so that an upload is what was meant."""
    for name in _OF_FILES:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            flag = f"--{'no-' * (name == 'latency')}{name.replace('_', '-')}"
            raise UsageError(
                f"{flag} is for exported files, and --hub alone uploads the checkpoint; add --format, or leave it out"
            )


def _send(
    checkpoint: str, hub: str, exported: ExportResult | None, private: bool, dry_run: bool, console: Console
) -> HubUpload:
    """Upload a checkpoint, and what was exported from it in a folder named as its format is."""
    from madtp_cli.engine.exporting.hub import upload

    folders = {} if exported is None else {exported.format: Path(exported.output)}
    return upload(checkpoint, hub, private=private, dry_run=dry_run, console=console, exported=folders)

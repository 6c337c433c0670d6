"""`madtp export`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from madtp_cli.commands import options
from madtp_cli.commands.output import emit, open_console

Model = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder, or builtin:NAME.")]
Format = Annotated[
    Literal["onnx", "torch", "openvino"],
    typer.Option("--format", help="onnx, a program of torch.export (.pt2), or OpenVINO's files."),
]
Mode = Annotated[
    Literal["dynamic", "static"],
    typer.Option(help="Keep tokens by what is in each sample, or a fixed number in every layer, with constant shapes."),
]
Precision = Annotated[
    Literal["fp32", "fp16"], typer.Option(help="Of weights and arithmetic; inputs and outputs stay float32.")
]
Opset = Annotated[
    int | None, typer.Option(metavar="N", help="ONNX operator set, 18 to 25; 20 by default, the first with Gelu.")
]
Atol = Annotated[
    float | None,
    typer.Option(min=0, metavar="X", help="Largest difference from PyTorch; 0.001 by default, in fp16 0.05."),
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
    typer.Option(min=2, metavar="N", help="Places of a text in static mode; by default as the data's longest."),
]
Samples = Annotated[
    int, typer.Option(min=1, metavar="N", help="Check on N samples of the checkpoint's validation split.")
]
Latency = Annotated[bool, typer.Option(help="Time the files beside those of the same model unpruned.")]


def export(
    checkpoint: Model,
    file_format: Format = "onnx",
    mode: Mode = "dynamic",
    precision: Precision = "fp32",
    opset: Opset = None,
    atol: Atol = None,
    output: Output = None,
    overwrite: options.Overwrite = False,
    batch_size: BatchSize = None,
    text_tokens: TextTokens = None,
    samples: Samples = 200,
    latency: Latency = True,
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
    with open_console(json_output, level) as console:
        from madtp_cli.engine.export import Options, export_checkpoint

        asked = Options(
            format=file_format,
            mode=mode,
            precision=precision,
            opset=opset,
            atol=atol,
            output=output,
            overwrite=overwrite,
            batch_size=batch_size,
            text_tokens=text_tokens,
            samples=samples,
            latency=latency,
        )
        result = export_checkpoint(checkpoint, asked, seed=seed, console=console)
    emit(result, json_output, console)

"""OpenVINO's files (`.xml` and `.bin`) by its own converter, from ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from madtp_cli.export import onnx
from madtp_cli.export.graphs import Graph


def write(program: ExportedProgram, graph: Graph, path: Path, opset: int = onnx.OPSET, *, half: bool = False) -> None:
    """Write a traced graph by way of an ONNX file of an opset, which is deleted; `half` stores its weights in fp16."""
    import openvino

    passing = path.with_suffix(".onnx")
    try:
        onnx.write(program, graph, passing, opset)
        openvino.save_model(openvino.convert_model(passing), path, compress_to_fp16=half)
    finally:
        for file in (passing, passing.with_name(f"{passing.name}.data")):
            file.unlink(missing_ok=True)


class Session:
    """A file compiled for the CPU; a call takes and returns tensors by name."""

    def __init__(self, path: Path, graph: Graph, threads: int) -> None:
        import openvino

        # In float32 whatever the CPU has: what is checked is the file, not what a CPU makes of it.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._compiled = openvino.Core().compile_model(path, "CPU", settings)
        self._outputs = graph.outputs

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the file."""
        found = self._compiled({name: value.numpy() for name, value in inputs.items()})
        # Copied, because the next call writes into the same memory.
        return {name: torch.from_numpy(found[name].copy()) for name in self._outputs}

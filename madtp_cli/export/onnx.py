"""ONNX files by torch's exporter, and onnxruntime that runs them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from madtp_cli.errors import UsageError
from madtp_cli.export.graphs import Graph

# 18 is the oldest that the exporter writes, 25 the newest that it and onnxruntime agree on. 20 is the first with Gelu
# as one operator; what came later these graphs do not use, so that older runtimes may read them.
OPSETS = range(18, 26)
OPSET = 20
# A file of the format ends at 2 GiB; beyond, weights lie in a file beside it.
MOST_BYTES = 1.9e9


def check_opset(opset: int) -> None:
    """Refuse an opset that cannot be written; raises UsageError."""
    if opset not in OPSETS:
        raise UsageError(f"--opset {opset}: files are written in opsets {OPSETS[0]} to {OPSETS[-1]}; try {OPSET}")


def write(program: ExportedProgram, graph: Graph, path: Path, opset: int = OPSET) -> None:
    """Write a traced graph as an ONNX file of standard operators, with the names of its inputs and outputs."""
    size = sum(
        each.nbytes for each in (*program.state_dict.values(), *program.constants.values()) if torch.is_tensor(each)
    )
    exported: Any = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        input_names=list(graph.example),
        output_names=list(graph.outputs),
        custom_translation_table={torch.ops.aten.sort.stable: _sort},
        verbose=False,
    )
    written = exported.model.opset_imports[""]
    if written != opset:
        raise UsageError(f"--opset {opset}: torch's exporter wrote opset {written} instead; try {OPSET}")
    exported.save(str(path), external_data=size > MOST_BYTES)


def _sort(values: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """Sort as aten::sort.stable does: ONNX's TopK breaks ties by place, the first one first."""
    import onnxscript

    op: Any = onnxscript.opset18
    length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
    return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)


class Session:
    """An ONNX file in onnxruntime on the CPU; a call takes and returns tensors by name."""

    def __init__(self, path: Path, graph: Graph, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._outputs = graph.outputs

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the file."""
        found = self._session.run(list(self._outputs), {name: value.numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in zip(self._outputs, found, strict=True)}

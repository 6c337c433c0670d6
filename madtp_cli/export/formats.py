"""The formats that models are exported to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from torch import Tensor
from torch.export import ExportedProgram

from madtp_cli.errors import SourceError
from madtp_cli.export import onnx, openvino, torch_export
from madtp_cli.export.graphs import Graph

Precision = Literal["fp32", "fp16"]
Session = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
Writer = Callable[[ExportedProgram, Graph, Path], None]


@dataclass(frozen=True)
class Format:
    """How a graph becomes a file of this format, and how that is run.

    runtime: what runs it, as figures name it; needs: packages beside madtp's own, which the extra of the format's name
    brings. `writer` is given the opset and the precision. halves: whether the weights are stored in half precision by
    the converter, from a model in float32, instead of being so in the graph.
    """

    suffix: str
    runtime: str
    needs: tuple[str, ...]
    writer: Callable[[int, Precision], Writer]
    session: Callable[[Path, Graph, int], Session]
    halves: bool = False


def _write_onnx(opset: int, precision: Precision) -> Writer:
    return lambda program, graph, path: onnx.write(program, graph, path, opset)


def _write_openvino(opset: int, precision: Precision) -> Writer:
    return lambda program, graph, path: openvino.write(program, graph, path, opset, half=precision == "fp16")


def _write_torch(opset: int, precision: Precision) -> Writer:
    return torch_export.write


_ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", "onnxruntime", _ONNX, _write_onnx, onnx.Session),
    "torch": Format(".pt2", "torch", (), _write_torch, torch_export.Session),
    "openvino": Format(".xml", "openvino", (*_ONNX, "openvino"), _write_openvino, openvino.Session, halves=True),
}


def check_installed(name: str) -> None:
    """Refuse a format whose packages are not here; raises SourceError."""
    missing = [package for package in FORMATS[name].needs if find_spec(package) is None]
    if missing:
        raise SourceError(
            f"--format {name} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
            f"run: pip install 'madtp[{name}]'"
        )

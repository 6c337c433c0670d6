"""Files of torch.export (`.pt2`), which PyTorch alone loads and compiles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from madtp_cli.export.graphs import Graph


def write(program: ExportedProgram, graph: Graph, path: Path) -> None:
    """Write a traced graph."""
    torch.export.save(program, path)


class Session:
    """A loaded program; a call takes and returns tensors by name."""

    def __init__(self, path: Path, graph: Graph, threads: int) -> None:
        self._run: Any = torch.export.load(path).module()
        self._outputs = graph.outputs

    @torch.inference_mode()
    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the program."""
        return dict(zip(self._outputs, self._run(**inputs), strict=True))

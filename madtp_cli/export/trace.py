"""A graph as torch.export sees it: what every format is written from."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import torch
from torch.export import Dim, ExportedProgram

from madtp_cli.export.graphs import Graph

_TALKATIVE = ("torch.__trace", "torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")


def ports(program: ExportedProgram, graph: Graph) -> dict[str, tuple[torch.dtype, tuple[int | str, ...]]]:
    """Return type and shape of every input and output, by name; an axis that varies has a name in place of its size.

    Axes that a graph counts as it runs are named after what they hold: `vision_tokens` of vision_positions.
    """
    nodes = list(program.graph.nodes)
    values = {node.name: node.meta["val"] for node in nodes if node.op == "placeholder"}
    names: dict[str, str] = {}
    for name, varying in graph.varying.items():
        names |= {str(values[name].shape[place]): axis.name for place, axis in varying.items()}
    returned = [node.meta["val"] for node in nodes[-1].args[0]]
    found = [(name, values[name]) for name in graph.example] + list(zip(graph.outputs, returned, strict=True))
    return {
        name: (
            value.dtype,
            tuple(
                size if isinstance(size, int) else names.get(str(size), f"{name.partition('_')[0]}_tokens")
                for size in value.shape
            ),
        )
        for name, value in found
    }


def trace(graph: Graph) -> ExportedProgram:
    """Trace a graph for every size that its varying dimensions may have."""
    axes = {axis.name: axis for varying in graph.varying.values() for axis in varying.values()}
    sizes = {name: Dim(name, max=axis.most) for name, axis in axes.items()}
    shapes = {
        name: {place: sizes[axis.name] for place, axis in graph.varying.get(name, {}).items()} for name in graph.example
    }
    with torch.no_grad():
        return torch.export.export(graph.module, (), kwargs=dict(graph.example), dynamic_shapes=shapes, strict=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters from talking to people who did not ask them: advice on their own insides, and progress."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

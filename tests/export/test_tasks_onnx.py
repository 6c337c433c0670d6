"""Retrieval, VQA and captions as ONNX files in onnxruntime against the packed models: one model of one layer each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from madtp_cli.export import onnx
from madtp_cli.export.graphs import Tensors, is_kept
from madtp_cli.export.schedule import Form
from madtp_cli.export.trace import quiet, trace
from tests.export.test_tasks import TASKS, texts
from tests.export.tiny_exports import SPEC, build


def shallow(family: str, name: str, **change: Any) -> Any:
    """Build a model that prunes in its one layer of each tower: exporters take their time for every layer."""
    towers = ("vision",) if name == "caption" else ("vision", "text")
    model = build(family, name, replace(SPEC, layers=dict.fromkeys(towers, (0,)), **change))
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == 3:
            del module[1:]
    return model


@pytest.mark.parametrize("task", TASKS)
def test_a_file_is_the_packed_model(task: str, tmp_path: Path) -> None:
    """One sample and three of unequal lengths through one file of any size: the same tokens, numbers to 1e-4."""
    family, name, export = TASKS[task]
    model = shallow(family, name)
    sessions = {}
    for graph in export.graphs(model, Form()):
        path = tmp_path / f"{graph.name}.onnx"
        with quiet():
            onnx.write(trace(graph), graph, path)
        sessions[graph.name] = onnx.Session(path, graph, 1)

    def call(which: str, inputs: Tensors) -> dict[str, torch.Tensor]:
        return sessions[which](inputs)

    for lengths in ([7], [9, 2, 5]):
        batch = texts(lengths)
        expected = export.expect(model, batch)
        found = export.run(call, batch, Form())
        assert bool((expected["vision_kept"] < 17).all())
        for key, value in expected.items():
            if is_kept(key):
                assert torch.equal(found[key], value), key
            else:
                torch.testing.assert_close(found[key], value, atol=1e-4, rtol=1e-4, msg=key)

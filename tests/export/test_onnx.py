"""What madtp adds to torch's ONNX exporter, on a graph of two operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx as reader
import pytest
import torch
from torch import Tensor, nn

from madtp_cli.export import onnx
from madtp_cli.export.formats import FORMATS
from madtp_cli.export.graphs import Axis, Graph
from madtp_cli.export.trace import ports, quiet, trace


class Toy(nn.Module):
    """Where scores come in their order, and their linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 2)

    def forward(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        return scores.sort(dim=1, descending=True, stable=True).indices, self.map(scores)


GRAPH = Graph("toy", Toy().eval(), {"scores": torch.zeros(2, 4)}, ("order", "mapped"), {"scores": {0: Axis("batch")}})
TIED = torch.tensor([[1.0, 3.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 5.0, 0.0]])


@pytest.mark.parametrize("beside", [False, True], ids=["one file", "weights beside"])
def test_equals_keep_their_order(beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, for more samples than it was traced with; weights that are too large for one file lie beside it."""
    if beside:
        monkeypatch.setattr(onnx, "MOST_BYTES", 0)
    path = tmp_path / "toy.onnx"
    with quiet():
        onnx.write(trace(GRAPH), GRAPH, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["toy.onnx", *(["toy.onnx.data"] if beside else [])]
    found = onnx.Session(path, GRAPH, 1)({"scores": TIED})
    assert found["order"].tolist() == [[1, 3, 0, 2], [0, 1, 2, 3], [2, 0, 1, 3]]
    torch.testing.assert_close(found["mapped"], GRAPH({"scores": TIED})["mapped"].detach())


def test_the_opset_is_the_one_asked_for(tmp_path: Path) -> None:
    """The newest, and standard operators only."""
    path = tmp_path / "toy.onnx"
    with quiet():
        onnx.write(trace(GRAPH), GRAPH, path, onnx.OPSETS[-1])
    assert [(each.domain, each.version) for each in reader.load(path).opset_import] == [("", 25)]


def test_ports_name_the_axes_that_vary() -> None:
    assert ports(trace(GRAPH), GRAPH) == {
        "scores": (torch.float32, ("batch", 4)),
        "order": (torch.int64, ("batch", 4)),
        "mapped": (torch.float32, ("batch", 2)),
    }


def test_openvino_passes_through_the_opset_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    asked: list[int] = []

    def write(program: Any, graph: Any, path: Path, opset: int) -> None:
        asked.append(opset)
        raise InterruptedError

    monkeypatch.setattr(onnx, "write", write)
    for opset in (18, 21):
        with pytest.raises(InterruptedError):
            FORMATS["openvino"].writer(opset, "fp32")(None, None, tmp_path / "model.xml")  # type: ignore[arg-type]
    assert asked == [18, 21]

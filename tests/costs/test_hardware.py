"""What figures were taken on is named as the system names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from madtp_cli.costs import hardware
from madtp_cli.costs.hardware import processor_name

CPU = torch.device("cpu")


def test_linux_tells_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: A  Processor (R) 9000\n\nmodel name\t: another\n", encoding="utf-8")
    monkeypatch.setattr(hardware, "CPUINFO", file)
    assert processor_name(CPU) == "A Processor (R) 9000"


@pytest.mark.parametrize("text", [None, "processor: 0\nBogoMIPS: 50\n"], ids=["no such file", "an ARM without a name"])
def test_elsewhere_its_kind_has_to_do(text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(hardware, "CPUINFO", file)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert processor_name(CPU) == "arm64"


def test_a_gpu_is_named_by_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert processor_name(torch.device("cuda:1")) == "GPU 1"

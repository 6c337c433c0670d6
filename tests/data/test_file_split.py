"""Splits whose samples are listed in files: what is left out of them with an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from image_files import draw, spoil
from plain import Plain

from madtp_cli.data.order import Shuffled
from madtp_cli.data.vqav2 import VqaQuestions


def test_samples_of_missing_and_broken_images_are_counted_once(tmp_path: Path) -> None:
    """Oracle: three questions about a whole image, two about one that is missing, four about one cut short."""
    draw(tmp_path / "whole.png", 1)
    draw(tmp_path / "short.png", 2)
    spoil(tmp_path / "short.png")
    asked = ["whole.png"] * 3 + ["gone.png"] * 2 + ["short.png"] * 4
    listed = [
        {"image": image, "question": "what?", "answer": ["dog"], "question_id": number, "dataset": "vqa"}
        for number, image in enumerate(asked)
    ]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(listed), encoding="utf-8")
    data: Any = VqaQuestions(path, None, tmp_path, Plain(), max_broken=2)
    assert (len(data), data.left_out) == (7, 2)
    for _ in range(2):
        assert data.batch(0, 7).samples == 3
        assert data.left_out == Shuffled[Any](data, 0).left_out == 6
    assert len(data.broken) == 2

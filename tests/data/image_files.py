"""Image files for tests: one colour each, so that an image can be told by a pixel."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def draw(path: Path, red: int) -> str:
    """Write an image whose pixels are (red, 0, 0)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (red, 0, 0)).save(path)
    return str(path)


def spoil(path: Path) -> None:
    """Cut an image file short, as a download that stopped."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])

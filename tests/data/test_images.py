"""Images: found by one listing per folder, decoded as RGB, and counted by name when they are missing or broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_files import draw, spoil
from PIL import Image
from plain import Plain

from madtp_cli.data.images import ImageFolder, ImageReader, stem
from madtp_cli.errors import SourceError


def test_the_first_place_that_holds_a_file_is_taken(tmp_path: Path) -> None:
    draw(tmp_path / "b" / "x.png", 1)
    draw(tmp_path / "c" / "x.png", 2)
    folder = ImageFolder(tmp_path)
    assert folder.find(["x.png", "a/x.png", "b/x.png", "c/x.png"]) == "b/x.png"
    assert folder.find(["a/x.png"]) is None
    assert folder.path("b/x.png") == tmp_path / "b" / "x.png"


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such folder of images; give the folder in data\.images"):
        ImageFolder(tmp_path / "images")


@pytest.mark.parametrize("workers", [1, 4])
def test_images_of_every_mode_are_read_as_rgb_under_their_names(tmp_path: Path, workers: int) -> None:
    for number, mode in enumerate(("RGB", "L", "RGBA", "P", "CMYK")):
        Image.new(mode, (5, 5)).save(tmp_path / f"{number}.{'tif' if mode == 'CMYK' else 'png'}")
    paths = {path.name: path for path in tmp_path.iterdir()}
    read = ImageReader(Plain(), workers=workers).read(paths)
    assert set(read) == set(paths)
    assert all(image.shape == (8, 8, 3) and image.dtype == "uint8" for image in read.values())


def test_bytes_and_opened_images_are_read_like_files(tmp_path: Path) -> None:
    path = Path(draw(tmp_path / "a.png", 70))
    with Image.open(path) as opened:
        read = ImageReader(Plain()).read({"path": path, "bytes": path.read_bytes(), "image": opened.copy()})
    assert all(int(image[0, 0, 0]) == 70 for image in read.values())
    assert len(read) == 3


def test_nothing_is_tolerated_by_default_and_the_message_names_what_is_wrong(tmp_path: Path) -> None:
    path = Path(draw(tmp_path / "a.png", 1))
    spoil(path)
    with pytest.raises(SourceError) as caught:
        ImageReader(Plain()).read({"a.png": path})
    assert "1 image is missing or unreadable: a.png (" in str(caught.value)
    assert "data.max_broken is 0: fetch them again, or raise it to leave their samples out" in str(caught.value)


def test_broken_images_are_counted_once_up_to_the_limit(tmp_path: Path) -> None:
    """Oracle: two broken files and one missing one, limit three; the fourth stops."""
    paths = {name: Path(draw(tmp_path / name, 1)) for name in ("a.png", "b.png", "c.png", "d.png")}
    for name in ("a.png", "b.png", "d.png"):
        spoil(paths[name])
    reader = ImageReader(Plain(), max_broken=3)
    reader.report_missing(["gone.png"])
    for _ in range(2):
        assert set(reader.read({name: paths[name] for name in ("a.png", "b.png", "c.png")})) == {"c.png"}
    assert [text.partition(" ")[0] for text in reader.broken] == ["gone.png", "a.png", "b.png"]
    assert reader.broken[0] == "gone.png (no such file)"
    with pytest.raises(SourceError, match=r"4 images are missing or unreadable: gone\.png .*a\.png .*b\.png .*d\.png"):
        reader.read({"d.png": paths["d.png"]})


def test_many_are_counted_and_the_first_five_named() -> None:
    with pytest.raises(SourceError) as caught:
        ImageReader(Plain()).report_missing(f"{n}.png" for n in range(9))
    assert "9 images are missing" in str(caught.value)
    assert "4.png (no such file), ...;" in str(caught.value)
    assert "5.png" not in str(caught.value)


def test_a_fault_of_the_preparation_is_no_broken_image(tmp_path: Path) -> None:
    class Faulty(Plain):
        def image(self, image: Image.Image) -> None:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        ImageReader(Faulty(), max_broken=9).read({"a": Path(draw(tmp_path / "a.png", 1))})


def test_a_stem_has_no_folders() -> None:
    assert stem("dev/0/dev-1-2-img0.png") == "dev-1-2-img0"

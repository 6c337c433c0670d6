"""`profile --visualize`: pictures of a pruned checkpoint's data or of a user's own sample, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from madtp_cli.engine.profiling import pictures as profile_pictures
from madtp_cli.engine.profiling.pictures import open_gallery
from madtp_cli.errors import SourceError, UsageError
from madtp_cli.models.checkpoints import open_checkpoint
from madtp_cli.recipe import load_recipe


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Write two images of unequal size, one of them grey."""
    random = np.random.default_rng(0)
    paths = [tmp_path / "left one.png", tmp_path / "right.jpg"]
    Image.fromarray(random.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(paths[0])
    Image.fromarray(random.integers(0, 255, (90, 50), dtype=np.uint8)).save(paths[1])
    return paths


def test_samples_of_the_checkpoints_data_are_drawn(
    pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spread over its validation split, a picture each, with what was answered, what is right, and what it cost."""
    monkeypatch.setattr(profile_pictures, "SAMPLES", 2)
    pictures = open_gallery(str(pruned), None).draw(tmp_path / "new" / "folder")
    assert [picture.id for picture in pictures] == ["shapes/validation/0", "shapes/validation/32"]
    for number, picture in enumerate(pictures, 1):
        name = f"survivors-{number}-{picture.id.replace('/', '_')}.png"
        assert Path(picture.file) == tmp_path / "new" / "folder" / name
        with Image.open(picture.file) as image:
            assert min(image.size) > 200
        assert {picture.answer, picture.reference} <= {"true", "false"}
        assert picture.gmacs.reduction == pytest.approx(1 - picture.gmacs.pruned / picture.gmacs.dense)
        assert picture.gmacs.reduction > 0


def test_a_pair_of_a_users_own_is_drawn(pruned: Path, photos: list[Path], tmp_path: Path) -> None:
    """Named after its files; nobody knows what is right."""
    (picture,) = open_gallery(str(pruned), None, images=photos, text="there is a red circle").draw(tmp_path)
    assert Path(picture.file).name == "survivors-1-left_one_right.png"
    assert picture.reference is None
    assert picture.answer in ("true", "false")


def test_a_picture_replaces_no_image_of_a_users(pruned: Path, photos: list[Path], tmp_path: Path) -> None:
    """Written beside the images, under a name of its own whatever they are called."""
    for name in ("left.png", "ü.png", "survivors-1-left.png"):
        image = photos[0].rename(tmp_path / name)
        before = image.read_bytes()
        (picture,) = open_gallery(str(pruned), None, images=[image, image], text="a").draw(tmp_path)
        assert Path(picture.file).is_file()
        assert image.read_bytes() == before
        image.rename(photos[0])


def test_a_checkpoint_without_a_recipe_is_drawn_on_a_users_own(
    pruned: Path, photos: list[Path], tmp_path: Path
) -> None:
    """A folder does not need its recipe.yaml for that."""
    opened = open_checkpoint(str(pruned))
    assert opened.folder is not None
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in opened.folder.iterdir():
        if file.name != "recipe.yaml":
            (bare / file.name).write_bytes(file.read_bytes())
    (picture,) = open_gallery(str(bare), None, images=photos, text="a red circle").draw(tmp_path)
    assert picture.gmacs.reduction > 0


def test_one_image_for_a_task_of_one(photos: list[Path], tmp_path: Path) -> None:
    """A recipe's model, pruned as the recipe says; a question instead of a sentence."""
    recipe = load_recipe("shapes_vqa", ["pruning.strength=0.5", "budget=null"])
    (picture,) = open_gallery(None, recipe, images=photos[:1], text="what colour is the circle").draw(tmp_path)
    assert picture.answer
    assert picture.gmacs.reduction > 0.5


def test_a_dense_model_has_nothing_to_show(dense: Path) -> None:
    with pytest.raises(UsageError, match=r"prunes nothing as it is, so that every patch and every word is kept"):
        open_gallery(str(dense), None)


def test_what_the_model_does_not_take_is_refused(pruned: Path, photos: list[Path]) -> None:
    """A number of images, or more words than it reads."""
    with pytest.raises(UsageError) as error:
        open_gallery(str(pruned), None, images=photos[:1], text="a")
    assert str(error.value) == "--image: a model for nlvr2 takes 2 images with a text, got 1"
    with pytest.raises(UsageError) as error:
        open_gallery(str(pruned), None, images=photos, text="red " * 90)
    assert str(error.value) == "--text has 92 tokens, and the model reads at most 64; shorten it"


def test_an_image_that_cannot_be_read_is_named(pruned: Path, photos: list[Path], tmp_path: Path) -> None:
    """A file that is none, one that is cut off, and one that is not there."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(photos[0].read_bytes()[:200])
    words = tmp_path / "words.png"
    words.write_text("no image", encoding="utf-8")
    for path, reason in ((broken, "truncated"), (words, "cannot identify image file")):
        with pytest.raises(SourceError) as error:
            open_gallery(str(pruned), None, images=[photos[0], path], text="a")
        assert str(error.value).startswith(f"--image {path}: cannot be read as an image (")
        assert reason in str(error.value)
    with pytest.raises(SourceError) as error:
        open_gallery(str(pruned), None, images=[photos[0], tmp_path / "no.png"], text="a")
    assert str(error.value) == f"--image {tmp_path / 'no.png'}: no such file"


def test_a_folder_that_cannot_be_made_is_named(pruned: Path, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    gallery = open_gallery(str(pruned), None, images=photos, text="a")
    with pytest.raises(UsageError, match=r"--visualize .*file.x: survivors-1-left_one_right.png cannot be written"):
        gallery.draw(tmp_path / "file" / "x")

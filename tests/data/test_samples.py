"""Generated samples in official formats: what writes them, the readers of the real data sets read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plain import Plain

from madtp_cli.data.karpathy import KarpathyCaptions, KarpathyRetrieval
from madtp_cli.data.nlvr2 import Nlvr2Pairs
from madtp_cli.data.nlvr_v1 import NlvrV1Pairs
from madtp_cli.data.samples import write_samples
from madtp_cli.data.vqav2 import VqaQuestions

SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("count", [1, 2, 8])
def test_each_data_set_reads_its_samples(tmp_path: Path, count: int) -> None:
    prepare = Plain()
    for split in SPLITS:
        keys = write_samples("nlvr2", "nlvr2", tmp_path / "nlvr2", count)
        assert keys["name"] == "nlvr2"
        pairs = Nlvr2Pairs(Path(keys["annotations"][split]), Path(keys["images"]), prepare)
        assert pairs.batch(0, count).samples == len(pairs) == count
        keys = write_samples("nlvr_v1", "nlvr2", tmp_path / "nlvr_v1", count)
        drawn = NlvrV1Pairs(Path(keys["annotations"][split]), Path(keys["images"]), prepare)
        assert drawn.batch(0, count).samples == len(drawn) == count
        keys = write_samples("vqav2", "vqa", tmp_path / "vqav2", count)
        files = Path(keys["questions"][split]), Path(keys["annotations"][split])
        questions = VqaQuestions(*files, Path(keys["images"]), prepare)
        assert questions.batch(0, count).samples == len(questions) == count
        assert all(len(given) == 10 for given in questions.batch(0, count).references)


@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_karpathy_samples_are_read_for_both_tasks(tmp_path: Path, name: str) -> None:
    keys = write_samples(name, "caption", tmp_path, 2)
    for split in SPLITS:
        for kind in (KarpathyCaptions, KarpathyRetrieval):
            data: Any = kind(Path(keys["annotations"]), Path(keys["images"]), split, Plain())
            assert data.batch(0, len(data)).images.shape[0] == 2


def test_splits_share_no_image(tmp_path: Path) -> None:
    keys = write_samples("nlvr2", "nlvr2", tmp_path, 2)
    contents = [path.read_bytes() for path in Path(keys["images"]).rglob("*.png")]
    assert len(set(contents)) == len(contents) == 6


def test_only_a_few_are_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="from 1 to 8 samples can be written, got 9"):
        write_samples("coco", "caption", tmp_path, 9)

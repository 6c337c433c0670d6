"""A few generated samples in the official file format of each data set, to try a recipe before any download."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from madtp_cli.data.descriptions import QUESTIONS_PER_IMAGE, Question, write_captions, write_questions
from madtp_cli.data.scenes import sample_scenes
from madtp_cli.data.sentences import SENTENCES_PER_PAIR, write_sentences

# As each data set calls its splits in identifiers, files and folders.
NLVR2_SPLITS = {"train": "train", "validation": "dev", "test": "test1"}
NLVR_V1_SPLITS = {"train": "train", "validation": "dev", "test": "test"}
VQA_SPLITS = {"train": "train2014", "validation": "val2014", "test": "test2015"}
KARPATHY_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_PAIRS, _ANNOTATORS = 32, 10


@dataclass(frozen=True)
class _Scenes:
    """Hold the images of one split and what is said about them."""

    images: NDArray[Any]  # [64, 96, 96, 3] uint8
    sentences: list[str]  # 8 of each pair
    labels: list[bool]
    questions: list[list[Question]]
    captions: list[tuple[str, ...]]


def write_samples(name: str, task: str, folder: Path, count: int = 2) -> dict[str, Any]:
    """Write `count` samples (1 to 8) of a data set for each split below a folder.

    Returns the keys that a recipe's data section needs to read them: files, and the folder of images. The test split
    of vqav2 has answers too, unlike the published one, so that it can be scored.
    """
    if not 1 <= count <= 8:
        raise ValueError(f"from 1 to 8 samples can be written, got {count}")
    folder.mkdir(parents=True, exist_ok=True)
    made = {split: _make(seed) for seed, split in enumerate(("train", "validation", "test"))}
    return {"name": name} | _WRITERS[name](folder, made, count)


def _make(seed: int) -> _Scenes:
    rng = np.random.default_rng([2024, seed])
    scenes = sample_scenes(rng, 2 * _PAIRS)
    sentences = write_sentences(rng, scenes)
    return _Scenes(
        images=scenes.render(range(len(scenes))),
        sentences=list(sentences.texts),
        labels=[bool(label) for label in sentences.labels],
        questions=write_questions(rng, scenes),
        captions=[write_captions(rng, scenes, image) for image in range(len(scenes))],
    )


def _nlvr2(folder: Path, made: Mapping[str, _Scenes], count: int) -> dict[str, Any]:
    """Write two sentences about each pair of images, as the official set has at most."""
    annotations = {}
    for split, scenes in made.items():
        lines = []
        for sample in range(count):
            pair, sentence = divmod(sample, 2)
            key = f"{NLVR2_SPLITS[split]}-{pair}-0"
            for side in (0, 1):
                _save(folder / "images" / NLVR2_SPLITS[split] / f"{key}-img{side}.png", scenes.images[2 * pair + side])
            place = pair * SENTENCES_PER_PAIR + sentence
            lines.append(
                {
                    "sentence": scenes.sentences[place].capitalize() + ".",
                    "label": str(scenes.labels[place]),
                    "identifier": f"{key}-{sentence}",
                    "left_url": "",
                    "right_url": "",
                }
            )
        annotations[split] = _lines(folder / f"{NLVR2_SPLITS[split]}.json", lines)
    return {"annotations": annotations, "images": str(folder / "images")}


def _nlvr_v1(folder: Path, made: Mapping[str, _Scenes], count: int) -> dict[str, Any]:
    """Write one image per example, on which two scenes lie side by side, in the place of its six permutations."""
    annotations = {}
    for split, scenes in made.items():
        name, lines = NLVR_V1_SPLITS[split], []
        for pair in range(count):
            place = pair * SENTENCES_PER_PAIR
            both = np.concatenate([scenes.images[2 * pair], scenes.images[2 * pair + 1]], axis=1)
            _save(folder / name / "images" / "0" / f"{name}-{pair}-0-0.png", both)
            label = str(scenes.labels[place]).lower()
            lines.append(
                {"sentence": scenes.sentences[place], "label": label, "identifier": f"{pair}-0", "directory": "0"}
            )
        annotations[split] = _lines(folder / name / f"{name}.json", lines)
    return {"annotations": annotations, "images": str(folder)}


def _vqav2(folder: Path, made: Mapping[str, _Scenes], count: int) -> dict[str, Any]:
    questions, annotations = {}, {}
    for number, (split, scenes) in enumerate(made.items(), start=1):
        year, asked, answered = VQA_SPLITS[split], [], []
        for sample in range(count):
            image, place = divmod(sample, QUESTIONS_PER_IMAGE)
            question = scenes.questions[image][place]
            ids = {"question_id": number * 1000 + sample, "image_id": number * 100 + image}
            _save(folder / "images" / year / f"COCO_{year}_{ids['image_id']:012d}.jpg", scenes.images[image])
            asked.append(ids | {"question": question.text.capitalize() + "?"})
            kind = {"exists": "yes/no", "count": "number"}.get(question.kind, "other")
            answers = [
                {"answer": question.answers[0], "answer_confidence": "yes", "answer_id": k + 1}
                for k in range(_ANNOTATORS)
            ]
            answered.append(
                ids
                | {
                    "question_type": " ".join(question.text.split()[:2]),
                    "answer_type": kind,
                    "multiple_choice_answer": question.answers[0],
                    "answers": answers,
                }
            )
        head = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": year}
        questions[split] = _json(
            folder / f"v2_OpenEnded_mscoco_{year}_questions.json",
            head | {"task_type": "Open-Ended", "questions": asked},
        )
        annotations[split] = _json(folder / f"v2_mscoco_{year}_annotations.json", head | {"annotations": answered})
    return {"questions": questions, "annotations": annotations, "images": str(folder / "images")}


def _karpathy(folder: Path, made: Mapping[str, _Scenes], count: int, *, coco: bool) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    for split, scenes in made.items():
        for image in range(count):
            number = len(images)
            place = {"filepath": "val2014", "cocoid": number} if coco else {}
            name = f"COCO_val2014_{number:012d}.jpg" if coco else f"{1000 + number}.jpg"
            _save(folder / "images" / ("val2014" if coco else "flickr30k-images") / name, scenes.images[image])
            sentences = [
                {"raw": text.capitalize() + ".", "tokens": text.split(), "imgid": number, "sentid": 10 * number + k}
                for k, text in enumerate(scenes.captions[image])
            ]
            images.append(
                place
                | {
                    "filename": name,
                    "imgid": number,
                    "split": KARPATHY_SPLITS[split],
                    "sentids": [sentence["sentid"] for sentence in sentences],
                    "sentences": sentences,
                }
            )
    name = "coco" if coco else "flickr30k"
    annotations = _json(folder / f"dataset_{name}.json", {"images": images, "dataset": name})
    return {"annotations": annotations, "images": str(folder / "images")}


def _coco(folder: Path, made: Mapping[str, _Scenes], count: int) -> dict[str, Any]:
    return _karpathy(folder, made, count, coco=True)


def _flickr30k(folder: Path, made: Mapping[str, _Scenes], count: int) -> dict[str, Any]:
    return _karpathy(folder, made, count, coco=False)


_WRITERS: dict[str, Callable[[Path, Mapping[str, _Scenes], int], dict[str, Any]]] = {
    "nlvr2": _nlvr2,
    "nlvr_v1": _nlvr_v1,
    "vqav2": _vqav2,
    "coco": _coco,
    "flickr30k": _flickr30k,
}


def _save(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _lines(path: Path, entries: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return str(path)


def _json(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)

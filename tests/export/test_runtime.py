"""What surrounds a graph in an export folder: images and words go in as they should, and answers are what they say.

The oracles are the toy graphs' own rules (toy_graphs.py) and arithmetic on their table by hand.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from madtp_cli.export import runtime
from tests.export.toy_graphs import CIRCLE, DEC, RED, SEP, SIZE, TABLE, A, read, write_folder

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def plain(*colour: int) -> Image.Image:
    return Image.new("RGB", (20, 30), colour)


def log_share(words: list[int], smoothing: float = 0.1) -> float:
    """Return the smoothed log-probability of what follows [DEC], by the table."""
    total = 0.0
    for here, then in zip([DEC, *words], [*words, SEP], strict=True):
        logs = TABLE[here].astype(float) - np.log(np.exp(TABLE[here].astype(float)).sum())
        total += (1 - smoothing) * logs[then] + smoothing * logs.mean()
    return total


def test_a_pair_is_judged_with_what_was_kept(tmp_path: Path) -> None:
    """Normalised black and white are known; so are the two logits, and the share of the larger."""
    write_folder(tmp_path / "out", "nlvr2")
    model = runtime.load(tmp_path / "out", threads=1)
    answer = model.answer(plain(0, 0, 0), plain(255, 255, 255), "a red circle")
    dark, light = (np.mean([(value - m) / s for m, s in zip(MEAN, STD, strict=True)]) for value in (0, 1))
    assert answer.text == "true"
    assert answer.probability == pytest.approx(1 / (1 + np.exp(dark - light)), rel=1e-5)
    assert answer.tokens_kept == {"left": [5, 4, 3], "right": [5, 4, 3], "text": [5]}
    assert answer.positions == {"left": [0, -1], "right": [0, -1], "text": model.text_ids("a red circle")}
    assert model.answer(plain(255, 255, 255), plain(0, 0, 0), "a red circle").text == "false"


def test_fixed_shapes_are_filled_up_and_cut_to(tmp_path: Path) -> None:
    """The same answer from a graph that takes 3 pairs and 8 ids; what is longer is cut, its end kept."""
    write_folder(tmp_path / "any", "nlvr2")
    write_folder(tmp_path / "fixed", "nlvr2", batch=3, length=8)
    pair = plain(0, 0, 0), plain(9, 9, 9)
    free, fixed = (runtime.load(tmp_path / name) for name in ("any", "fixed"))
    expected, found = (model.answer(*pair, "a red circle") for model in (free, fixed))
    assert found.probability == expected.probability
    assert found.tokens_kept == expected.tokens_kept
    with pytest.warns(UserWarning, match="a text has 22 tokens and is cut: this model reads at most 8"):
        long = fixed.answer(*pair, "red " * 20)
    assert long.positions["text"] == [6, *[RED] * 6, SEP]
    with pytest.raises(ValueError, match=r"text is \[1, 9\], and the graph takes \[3, 8\]"):
        fixed.graphs["model"]({"images": np.zeros((1, 2, 3, SIZE, SIZE), np.float32), **fixed._text([RED] * 9)})


@pytest.mark.parametrize("candidates", [None, 1, 2])
def test_the_best_of_the_listed_answers_is_found(candidates: int | None, tmp_path: Path) -> None:
    """ "red" and "green" are the two compared: "green" opens likelier, but ends badly. A fixed decoder fills up."""
    answers = ("blue", "red", "green")
    write_folder(tmp_path / "out", "vqa", answers=answers, candidates=candidates, length=candidates and 16)
    answer = runtime.load(tmp_path / "out").answer(plain(1, 2, 3), "red")
    scores = {name: log_share([word]) for name, word in (("red", RED), ("green", RED + 1))}
    assert scores["red"] > scores["green"]
    assert answer.text == "red"
    assert answer.probability == pytest.approx(1 / (1 + np.exp(scores["green"] - scores["red"])), rel=1e-6)


def test_answers_of_several_words_count_all_of_them(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", "vqa", answers=("a circle", "a red", "blue"))
    model = runtime.load(tmp_path / "out")
    # Both open with the likeliest first word; the words after it decide.
    scores = {"a circle": log_share([A, CIRCLE]), "a red": log_share([A, RED])}
    expected = max(scores, key=lambda answer: scores[answer])
    assert model.answer(plain(1, 2, 3), "red").text == expected


@pytest.mark.parametrize(
    ("min_length", "max_length", "words"),
    [(1, 6, "a circle"), (1, 2, "a"), (4, 5, "a circle a circle"), (1, 1, "")],
)
def test_text_is_written_word_by_word(min_length: int, max_length: int, words: str, tmp_path: Path) -> None:
    """After [DEC] the table says: a circle, the end; what must be longer goes on with "a". Lengths count [DEC]."""
    for task in ("caption", "vqa"):
        write_folder(tmp_path / task, task, min_length=min_length, max_length=max_length)
        model = runtime.load(tmp_path / task)
        answer = model.caption(plain(1, 2, 3)) if task == "caption" else model.answer(plain(1, 2, 3), "red")
        assert answer.text == words
        assert answer.probability is None


def test_a_graph_of_fixed_shape_ends_a_text(tmp_path: Path) -> None:
    """The decoder has three places: after three ids one more can follow, whatever is asked for."""
    write_folder(tmp_path / "out", "caption", min_length=9, max_length=12, candidates=1, length=3)
    assert runtime.load(tmp_path / "out").caption(plain(1, 2, 3)).text == "a circle a"


def test_images_and_texts_are_compared_and_matched(tmp_path: Path) -> None:
    """Vectors by hand; the second look reads the text and the image's states."""
    write_folder(tmp_path / "out", "retrieval")
    model = runtime.load(tmp_path / "out")
    images = [model.embed_image(plain(255, 0, 0)), model.embed_image(plain(0, 0, 255))]
    texts = [model.embed_text("a red circle"), model.embed_text("blue red")]
    red, blue = (
        np.array([(value - m) / s for value, m, s in zip(colour, MEAN, STD, strict=True)])
        for colour in ((1, 0, 0), (0, 0, 1))
    )
    expected = [[unit(image) @ unit(np.array(text)) for text in ([1, 0, 0], [1, 0, 1])] for image in (red, blue)]
    np.testing.assert_allclose(model.similarity(images, texts), expected, atol=1e-5)
    assert texts[0].reads["text"].tolist() == [[2, A, RED, CIRCLE, SEP]]
    assert model.match(images[0], texts[0]) == pytest.approx(1 / (1 + np.exp(red[0] - 2)), rel=1e-5)


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


def test_a_model_without_a_second_look_says_so(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", "retrieval", match=False)
    model = runtime.load(tmp_path / "out")
    with pytest.raises(ValueError, match="compares by similarity alone; there is no graph to match"):
        model.match(model.embed_image(plain(1, 2, 3)), model.embed_text("red"))


def test_what_is_prepared_is_taken_as_it_is(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", "nlvr2")
    model = runtime.load(tmp_path / "out")
    left, right = plain(0, 50, 0), plain(9, 90, 9)
    prepared = model.images.pixels(left), model.images.pixels(right), model.text_ids("a red circle")
    assert model.answer(*prepared) == model.answer(left, right, "a red circle")


def test_openvino_answers_as_onnxruntime_does(tmp_path: Path) -> None:
    """OpenVINO reads ONNX files too. A second call does not change what the first one gave."""
    pytest.importorskip("openvino")
    write_folder(tmp_path / "onnx", "retrieval")
    write_folder(tmp_path / "openvino", "retrieval", kind="openvino")
    ours, theirs = (runtime.load(tmp_path / name, threads=1) for name in ("onnx", "openvino"))
    first, expected = theirs.embed_image(plain(255, 0, 0)), ours.embed_image(plain(255, 0, 0))
    theirs.embed_image(plain(0, 0, 255))
    np.testing.assert_allclose(first.vector, expected.vector, atol=1e-6)
    assert theirs.match(first, theirs.embed_text("red")) == pytest.approx(ours.match(expected, ours.embed_text("red")))


def test_programs_of_torch_run_too(tmp_path: Path) -> None:
    """A program that judges as the toy graph does, traced with inputs by name."""

    class Judge(torch.nn.Module):
        def forward(self, images: torch.Tensor, text: torch.Tensor, text_lengths: torch.Tensor) -> Any:
            kept = torch.stack([text_lengths, text_lengths - 1], 1)
            return images.mean((2, 3, 4)), kept[:, None].expand(-1, 2, -1), kept, text[:, None].expand(-1, 2, -1), text

    write_folder(tmp_path / "out", "nlvr2", batch=1, length=6, kind="torch")
    given = {
        "images": torch.zeros(1, 2, 3, SIZE, SIZE),
        "text": torch.zeros(1, 6, dtype=torch.int64),
        "text_lengths": torch.tensor([3]),
    }
    torch.export.save(torch.export.export(Judge(), (), kwargs=given), tmp_path / "out" / "model.pt2")
    (tmp_path / "out" / "model.pt2").rename(tmp_path / "out" / "model.onnx")
    answer = runtime.load(tmp_path / "out").answer(plain(0, 0, 0), plain(255, 255, 255), "red")
    assert answer.text == "true"
    assert answer.tokens_kept == {"left": [3, 2], "right": [3, 2], "text": [3, 2]}


def test_a_newer_folder_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", "caption")
    path = tmp_path / "out" / "inference.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2', 1))
    assert read(tmp_path / "out")["schema_version"] == 2
    with pytest.raises(ValueError, match="schema_version is 2, and this module reads 1"):
        runtime.load(tmp_path / "out")


def test_a_text_that_is_too_long_says_how_long_it_may_be(tmp_path: Path) -> None:
    """Ids are not cut. A folder of constant shapes may be made again with more places."""
    write_folder(tmp_path / "out", "nlvr2", length=8)
    path = tmp_path / "out" / "inference.json"
    path.write_text(path.read_text().replace('"mode": "dynamic"', '"mode": "static"', 1))
    pair = plain(0, 0, 0), plain(9, 9, 9)
    model = runtime.load(tmp_path / "out")
    message = "this model reads at most 8; madtp export --text-tokens makes more"
    with pytest.raises(ValueError, match=f"a text has 9 ids, and {message}"):
        model.answer(*pair, [RED] * 9)
    for wrong in (b"red", None):
        with pytest.raises(ValueError, match="for a text; give a string, or its ids"):
            model.answer(*pair, wrong)
    with pytest.warns(UserWarning, match=message) as told:
        model.answer(*pair, "red " * 7)
    assert "test_runtime" in str(told[0].filename)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.answer(*pair, "red " * 6)
        model.answer(*pair, [RED] * 8)


def test_a_graph_is_taken_from_the_folder_alone(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", "caption")
    (tmp_path / "out" / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    path = tmp_path / "out" / "inference.json"
    for outside in ("../elsewhere.onnx", str(tmp_path / "elsewhere.onnx")):
        path.write_text(json.dumps({**read(tmp_path / "out"), "graphs": {"model": _graph(outside)}}))
        with pytest.raises(Exception, match=re.escape(str(tmp_path / "out" / "elsewhere.onnx"))):
            runtime.load(tmp_path / "out")


def _graph(file: str) -> dict[str, Any]:
    return {"file": file, "inputs": [], "outputs": []}

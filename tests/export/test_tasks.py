"""The graphs of retrieval, VQA and captions in PyTorch against the packed models: the same tokens, the same answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from madtp_cli.data.batch import Batch, RetrievalBatch
from madtp_cli.export.graphs import Call, Graph, TaskExport, Tensors, is_kept
from madtp_cli.export.schedule import Form
from madtp_cli.models.blip.export import caption, retrieval, vqa
from madtp_cli.models.clip import export as clip
from tests.export.tiny_exports import SPEC, WORDS, build, singles

TASKS: dict[str, tuple[str, str, TaskExport]] = {
    "blip-retrieval": ("blip", "retrieval", retrieval.EXPORT),
    "clip-retrieval": ("clip", "retrieval", clip.EXPORTS["retrieval"]),
    "vqa": ("blip", "vqa", vqa.EXPORT),
    "caption": ("blip", "caption", caption.EXPORT),
}
METHODS: list[dict[str, Any]] = [
    {"tokens": "adaptive"},
    {"tokens": "scheduled", "strength": 0.4},
    {"variant": "released", "strength": 0.6},
    {"projection": "per_layer"},
    {"method": "random", "strength": 0.4},
    {"method": "none"},
]


def of_all(graphs: tuple[Graph, ...]) -> Call:
    """Call a model's graphs in PyTorch; what has a fixed shape in the example must come in that shape."""
    by_name = {graph.name: graph for graph in graphs}

    def call(name: str, inputs: Tensors) -> dict[str, Any]:
        graph = by_name[name]
        assert list(inputs) == list(graph.example)
        for key, value in inputs.items():
            for axis, (found, traced) in enumerate(zip(value.shape, graph.example[key].shape, strict=True)):
                assert found == traced or axis in graph.varying.get(key, {}), (name, key, axis)
        return graph(inputs)

    return call


def texts(lengths: list[int]) -> Batch:
    """Draw texts, each with its end-of-text token, as CLIP's have one."""
    batch = singles(lengths)
    ends = torch.tensor(lengths).cumsum(0) - 1
    return replace(batch, text=batch.text.index_fill(0, ends, WORDS - 1))


def spec_of(task: str, change: dict[str, Any]) -> Any:
    layers = {"vision": (0, 1, 2)} if task == "caption" else SPEC.layers
    return replace(SPEC, **{"layers": layers, **change})


@pytest.mark.parametrize("lengths", [[7], [9, 2, 4]], ids=["one", "three"])
@pytest.mark.parametrize("change", METHODS, ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_the_graphs_are_the_packed_model(task: str, change: dict[str, Any], lengths: list[int]) -> None:
    """Counts and places of every token equal the packed model's, what is computed from them to 1e-5."""
    family, name, export = TASKS[task]
    model, batch = build(family, name, spec_of(task, change)), texts(lengths)
    expected = export.expect(model, batch)
    fixed = change.get("tokens") == "scheduled" or change.get("method") in ("random", "none")
    for form in (Form(), Form("static", batch=len(lengths), text_tokens=12))[: 2 if fixed else 1]:
        found = export.run(of_all(export.graphs(model, form)), batch, form)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if is_kept(key):
                width = value.shape[-1]
                assert torch.equal(found[key][..., :width], value), key
                assert bool((found[key][..., width:] == -2).all())
            else:
                torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-5, msg=key)


@pytest.mark.parametrize("task", TASKS)
def test_tokens_are_dropped_and_answers_differ(task: str) -> None:
    """What would make the comparison an empty one: towers prune, and no two samples give the same numbers."""
    family, name, export = TASKS[task]
    expected = export.expect(build(family, name, spec_of(task, {})), texts([9, 12, 12]))
    assert bool((expected["vision_kept"][:, -1] < 17).all())
    for key in ("text_kept", "match_kept"):
        if key in expected:
            assert bool((expected[key][:, -1] < torch.tensor([9, 12, 12])).all())
    for key, value in expected.items():
        if not is_kept(key):
            assert (value - value[:1]).abs().amax(1)[1:].min() > 1e-3, key


def test_a_match_reads_the_text_as_the_other_graph_does() -> None:
    """Whatever a text opens with, the second look reads [ENC] there."""
    graphs = retrieval.EXPORT.graphs(build("blip", "retrieval"), Form())
    match = graphs[2]
    assert match.name == "match"
    other = {**match.example, "text": match.example["text"].clone()}
    other["text"][:, 0] = 7
    assert torch.equal(match(match.example)["match_logits"], match(other)["match_logits"])
    other["text"][:, 1] = 7
    assert not torch.equal(match(match.example)["match_logits"], match(other)["match_logits"])


@pytest.mark.parametrize("task", ["vqa", "caption"])
def test_what_stands_behind_a_text_changes_nothing_before_it(task: str) -> None:
    family, name, export = TASKS[task]
    graph = export.graphs(build(family, name, spec_of(task, {})), Form())[1]
    inputs = {**graph.example, "ids": torch.tensor([[28, 5, 6, 7]])}
    longer = {**inputs, "ids": torch.tensor([[28, 5, 6, 7, 0, 9], [28, 5, 6, 7, 4, 4]])}
    expected, found = graph(inputs)["logits"], graph(longer)["logits"]
    torch.testing.assert_close(found[:, :4], expected.expand(2, -1, -1), atol=1e-5, rtol=1e-5)


# How right exports are -----------------------------------------------------------------------------------------


def test_retrieval_is_scored_by_the_most_similar_image() -> None:
    """Of three texts the first finds its image, the second another sample's copy of it, the third a wrong one."""
    fields = {**vars(singles([3])), "auxiliary": {}}
    samples = [RetrievalBatch(**fields, image_ids=(name,)) for name in ("a", "b", "b", "c")]
    image = torch.eye(4)
    text = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0]])
    assert retrieval.EXPORT.score is not None
    name, score = retrieval.EXPORT.score
    assert (name, score(samples, {"image_embeds": image, "text_embeds": text})) == ("image recall@1", 0.75)

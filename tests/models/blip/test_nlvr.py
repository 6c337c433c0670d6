"""BLIP for NLVR2: the dense model against a plain one, and pruned samples against themselves in other company."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear, relu
from transformers.models.blip.configuration_blip import BlipConfig

from madtp_cli import attention
from madtp_cli.costs.analytic import total
from madtp_cli.models.base import Output, initialise
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.blip.nlvr import BlipForNlvr
from madtp_cli.models.spec import PruningSpec

State = dict[str, Tensor]
Make = Callable[[PruningSpec], BlipForNlvr]


@dataclass
class Plain:
    """BLIP-NLVR for one sentence and two images, written straight from its formulas: no packing, no modules."""

    state: State
    config: BlipConfig

    def map(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        q, k, v = (t.view(len(t), heads, -1).transpose(0, 1) for t in (q, k, v))
        p = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        return (p @ v).transpose(0, 1).flatten(1), p

    def image(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode [3, H, W]; also return every block's input."""
        s, c, e = self.state, self.config.vision_config, "vision_model.embeddings"
        patches = conv2d(
            pixels[None], s[f"{e}.patch_embedding.weight"], s[f"{e}.patch_embedding.bias"], stride=c.patch_size
        )
        x = torch.cat([s[f"{e}.class_embedding"][0], patches[0].flatten(1).T]) + s[f"{e}.position_embedding"][0]
        seen = []
        for i in range(c.num_hidden_layers):
            seen.append(x)
            b = f"vision_model.encoder.layers.{i}"
            q, k, v = self.map(f"{b}.self_attn.qkv", self.norm(f"{b}.layer_norm1", x, 1e-6)).chunk(3, -1)
            x = x + self.map(f"{b}.self_attn.projection", self.attention(q, k, v, c.num_attention_heads)[0])
            hidden = gelu(self.map(f"{b}.mlp.fc1", self.norm(f"{b}.layer_norm2", x, 1e-6)))
            x = x + self.map(f"{b}.mlp.fc2", hidden)
        return self.norm("vision_model.post_layernorm", x, 1e-6), seen

    def text(self, ids: Tensor, sides: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[list[Tensor]]]:
        """Read a sentence over two images; also return every block's input and [ENC]'s attention to both sides."""
        c, e = self.config.text_config, "text_encoder.embeddings"
        x = self.state[f"{e}.word_embeddings.weight"][ids] + self.state[f"{e}.position_embeddings.weight"][: len(ids)]
        x = self.norm(f"{e}.LayerNorm", x, 1e-12)
        seen, probes = [], []
        for i in range(c.num_hidden_layers):
            seen.append(x)
            b = f"text_encoder.encoder.layer.{i}"
            q, k, v = (self.map(f"{b}.attention.self.{part}", x) for part in ("query", "key", "value"))
            out = self.map(f"{b}.attention.output.dense", self.attention(q, k, v, c.num_attention_heads)[0])
            x = self.norm(f"{b}.attention.output.LayerNorm", out + x, 1e-12)
            outs, probe = [], []
            for side, image in enumerate(sides):
                a = f"{b}.crossattention.self{side}"
                q, k, v = self.map(f"{a}.query", x), self.map(f"{a}.key", image), self.map(f"{a}.value", image)
                out, p = self.attention(q, k, v, c.num_attention_heads)
                outs.append(self.map(f"{b}.crossattention.output.dense{side}", out))
                probe.append(p[:, 0])
            probes.append(probe)
            merged = (outs[0] + outs[1]) / 2
            if i >= c.merge_from:
                merged = self.map(f"{b}.crossattention.output.merge_layer", torch.cat(outs, -1))
            x = self.norm(f"{b}.crossattention.output.LayerNorm", merged + x, 1e-12)
            hidden = gelu(self.map(f"{b}.intermediate.dense", x))
            x = self.norm(f"{b}.output.LayerNorm", self.map(f"{b}.output.dense", hidden) + x, 1e-12)
        return x, seen, probes

    def logits(self, encoded: Tensor) -> Tensor:
        return self.map("cls_head.2", relu(self.map("cls_head.0", encoded)))

    def aligned(self, tower: str, seen: Sequence[Tensor]) -> Tensor:
        """Pool every block's input without its class token and add the layers up (method.md section 2)."""
        tokens = self.state["alignment.tokens"]
        features = torch.zeros_like(tokens)
        for x in seen:
            q = self.map(f"alignment.maps.{tower}.0", x[1:])
            features = features + (q @ tokens.T / tokens.shape[1] ** 0.5).softmax(0).T @ q
        return features


def _ids(inputs: dict[str, Any], row: int) -> Tensor:
    return list(inputs["text"].split(inputs["text_lengths"]))[row]


def _alone(inputs: dict[str, Any], row: int) -> dict[str, Any]:
    """Cut out one sentence with copies of its two images."""
    return {
        "images": inputs["images"][list(inputs["image_index"][row])],
        "text": _ids(inputs, row),
        "text_lengths": [inputs["text_lengths"][row]],
        "image_index": [(0, 1)],
    }


def _kept(output: Output, vision: Sequence[int], text: int) -> list[list[int]]:
    """List the positions that left every layer, for the images and the sentence named."""
    found = []
    for trace, rows in ((output.traces["vision"], vision), (output.traces["text"], [text])):
        for layer in trace:
            parts = layer.kept.split(list(layer.leaving))
            found += [parts[row].tolist() for row in rows]
    return found


DENSE = [
    {"strength": 0.0},
    {"temperature": 0.0},
    {"method": "none"},
    {"layers": {}},
    {"method": "none", "alignment_tokens": 0, "alignment_dim": 0},
]


@pytest.mark.parametrize("change", DENSE, ids=str)
def test_the_dense_model_is_the_plain_one(
    change: dict[str, Any],
    make: Make,
    spec: PruningSpec,
    state: State,
    config: BlipConfig,
    inputs: dict[str, Any],
) -> None:
    """Logits, states, images and [ENC]'s attention equal an independent forward pass per sentence, to 1e-5."""
    plain = Plain(state, config)
    with torch.no_grad():
        output = make(replace(spec, **change))(**inputs, probe=True)
        assert output.logits.shape == (5, 2)
        images = [plain.image(pixels)[0] for pixels in inputs["images"]]
        torch.testing.assert_close(output.images.x, torch.cat(images), atol=1e-5, rtol=1e-5)
        for row, pair in enumerate(inputs["image_index"]):
            x, _, probes = plain.text(_ids(inputs, row), [images[side] for side in pair])
            torch.testing.assert_close(output.encoded[row], x[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(output.logits[row], plain.logits(x[0]), atol=1e-5, rtol=1e-5)
            # Layer by layer, first the left image's and then the right one's.
            theirs = [probability for layer in probes for probability in layer]
            for side, (ours, expected) in enumerate(zip(output.probes, theirs, strict=True)):
                assert ours.image[row] == pair[side % 2]
                torch.testing.assert_close(ours.probability[row], expected, atol=1e-5, rtol=1e-5)
    assert output.logits.std() > 0.1


@pytest.mark.parametrize("learn", [False, True])
def test_aligned_features_are_sums_over_layers(
    learn: bool, make: Make, spec: PruningSpec, state: State, config: BlipConfig, inputs: dict[str, Any]
) -> None:
    """The plain model's block inputs pooled layer by layer; absent unless asked for, and logits do not depend on it."""
    plain, rows = Plain(state, config), 4  # the last sentence has no token to pool
    model = make(replace(spec, strength=0.0))
    with torch.no_grad():
        output = model(**inputs, learn=learn)
        assert torch.equal(output.logits, model(**inputs, learn=not learn).logits)
        if not learn:
            assert output.aligned is None
            return
        images = [plain.image(pixels) for pixels in inputs["images"]]
        of_images = torch.stack([plain.aligned("vision", seen) for _, seen in images])
        expected = torch.stack([(of_images[left] + of_images[right]) / 2 for left, right in inputs["image_index"]])
        assert output.aligned is not None
        torch.testing.assert_close(output.aligned[0], expected, atol=1e-4, rtol=1e-4)
        for row, pair in enumerate(inputs["image_index"][:rows]):
            _, seen, _ = plain.text(_ids(inputs, row), [images[side][0] for side in pair])
            torch.testing.assert_close(output.aligned[1][row], plain.aligned("text", seen), atol=1e-4, rtol=1e-4)


METHODS = [
    {"tokens": "adaptive", "strength": 0.55},
    {"tokens": "scheduled", "strength": 0.4},
    {"variant": "paper"},
    {"method": "random", "strength": 0.4},
]


@pytest.mark.parametrize("backend", ["segments", "padded", "auto"])
@pytest.mark.parametrize("change", METHODS, ids=str)
@pytest.mark.parametrize("learn", [False, True], ids=["inference", "training"])
def test_a_pruned_sample_does_not_depend_on_its_batch_mates(
    change: dict[str, Any],
    backend: attention.Backend,
    learn: bool,
    make: Make,
    spec: PruningSpec,
    inputs: dict[str, Any],
) -> None:
    """The sample alone, with copies of its images: the same tokens in every layer, the same cost, logits to 1e-4."""
    model = make(replace(spec, **change))
    with attention.backend(backend), torch.set_grad_enabled(learn):
        together = model(**inputs, learn=learn)
        costs = model.macs(together)
        for row, pair in enumerate(inputs["image_index"]):
            one = _alone(inputs, row)
            alone = model(**one, learn=learn)
            assert _kept(together, pair, row) == _kept(alone, (0, 1), 0)
            torch.testing.assert_close(together.logits[row], alone.logits[0], atol=1e-4, rtol=1e-4)
            own = model.macs(alone)
            assert {path: cost[row].item() for path, cost in costs.items()} == {p: c.item() for p, c in own.items()}
    assert together.logits.isfinite().all()
    for trace in together.traces.values():
        assert sum(trace[-1].leaving) < 0.8 * trace[0].spans.total


def test_batches_are_ragged_where_pruning_adapts(make: Make, spec: PruningSpec, inputs: dict[str, Any]) -> None:
    """Images of one batch keep different counts: the test above is not one of equal lengths."""
    output = make(spec)(**inputs)
    assert len(set(output.traces["vision"][0].leaving)) > 1


def test_released_variant_couples_the_batch(make: Make, spec: PruningSpec, inputs: dict[str, Any]) -> None:
    """All images keep the most that one keeps under `paper` (method.md section 6, 1)."""
    released = make(replace(spec, variant="released"))(**inputs).traces["vision"][0].leaving
    paper = make(replace(spec, variant="paper"))(**inputs).traces["vision"][0].leaving
    assert set(released) == {max(paper)}
    assert len(set(paper)) > 1


@pytest.mark.parametrize("change", [{"strength": 0.0}, *METHODS], ids=str)
def test_sharing_images_equals_copying_them(
    change: dict[str, Any], make: Make, spec: PruningSpec, inputs: dict[str, Any]
) -> None:
    """Every sentence with its own two copies, in one batch."""
    model = make(replace(spec, **change))
    flat = [image for pair in inputs["image_index"] for image in pair]
    copied = {**inputs, "images": inputs["images"][flat], "image_index": [(2 * s, 2 * s + 1) for s in range(5)]}
    with torch.no_grad():
        shared, apart = model(**inputs), model(**copied)
    torch.testing.assert_close(shared.logits, apart.logits, atol=1e-4, rtol=1e-4)
    for row, pair in enumerate(inputs["image_index"]):
        assert _kept(shared, pair, row) == _kept(apart, (2 * row, 2 * row + 1), row)


def test_an_image_that_no_sentence_reads_changes_nothing(make: Make, spec: PruningSpec, inputs: dict[str, Any]) -> None:
    """The batch without it."""
    model = make(spec)
    some = {**inputs, "text": inputs["text"][:11], "text_lengths": [7, 4], "image_index": [(0, 1), (1, 0)]}
    with torch.no_grad():
        expected = model(**{**some, "images": inputs["images"][:2]})
        torch.testing.assert_close(model(**some).logits, expected.logits, atol=1e-5, rtol=1e-5)


def test_every_parameter_learns(make: Make, spec: PruningSpec, inputs: dict[str, Any]) -> None:
    """A dense step with aligned features gives every one a gradient."""
    model = make(replace(spec, strength=0.0)).train()
    few = {**inputs, "text": inputs["text"][:-1], "text_lengths": inputs["text_lengths"][:-1]}
    output = model(**{**few, "image_index": inputs["image_index"][:-1]}, learn=True)
    assert output.aligned is not None
    (output.logits.square().sum() + output.aligned[0].square().sum() + output.aligned[1].square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("change", METHODS, ids=str)
def test_a_pruned_step_in_bf16_gives_numbers(
    change: dict[str, Any], make: Make, spec: PruningSpec, inputs: dict[str, Any]
) -> None:
    """Under autocast logits stay float32, fewer tokens come out, and every gradient is finite."""
    model = make(replace(spec, **change)).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs, learn=True)
    assert output.logits.dtype == torch.float32
    assert output.images.spans.total < 4 * 17
    output.logits.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_dense_cost_is_that_of_a_forward_pass_without_pruning(
    make: Make, spec: PruningSpec, inputs: dict[str, Any]
) -> None:
    """Module by module, macs of a strength-0 pass and dense_macs are equal integers."""
    model = make(replace(spec, strength=0.0))
    with torch.no_grad():
        spent = model.macs(model(**inputs))
    dense = model.dense_macs(inputs["text_lengths"])
    assert {path: cost.tolist() for path, cost in spent.items()} == {p: c.tolist() for p, c in dense.items()}


def test_pruned_cost_follows_from_the_trace(make: Make, spec: PruningSpec, inputs: dict[str, Any]) -> None:
    """The formulas of method.md section 7 added up over the token counts of a sentence and its two images."""
    model = make(spec)
    with torch.no_grad():
        output = model(**inputs)
    c, k = 24, 6  # vision width, alignment tokens
    images = []
    for image in range(4):
        cost = 16 * (3 * 8 * 8) * c
        for layer in output.traces["vision"]:
            a, b = layer.spans.lengths[image], layer.leaving[image]
            cost += 4 * a * c**2 + 2 * a**2 * c + 8 * b * c**2 + a * c * k + (a - b + 1) * c * (a > b)
        images.append(cost)
    expected = []
    for row, pair in enumerate(inputs["image_index"]):
        c, seen = 32, [output.images.spans.lengths[image] for image in pair]
        cost = sum(images[image] for image in pair) + c**2 + 2 * c
        for index, layer in enumerate(output.traces["text"]):
            a, b = layer.spans.lengths[row], layer.leaving[row]
            cost += 4 * a * c**2 + 2 * a**2 * c + 8 * b * c**2 + a * c * k + (a - b + 1) * c * (a > b)
            cost += sum(2 * b * c**2 + 2 * n * 24 * c + 2 * b * n * c for n in seen) + 2 * b * c**2 * (index >= 2)
        expected.append(cost)
    assert total(model.macs(output)).tolist() == expected
    assert len(set(output.images.spans.lengths)) > 1


def test_method_none_and_random_pay_for_no_guidance(make: Make, spec: PruningSpec, inputs: dict[str, Any]) -> None:
    """Random pruning's `pruning` rows hold the merges alone, and a dense pass has none."""
    model = make(replace(spec, method="random", strength=0.4))
    with torch.no_grad():
        output = model(**inputs)
    macs = model.macs(output)
    layer = output.traces["vision"][0]
    gone = [a - b for a, b in zip(layer.spans.lengths, layer.leaving, strict=True)]
    expected = [sum((gone[image] + 1) * 24 for image in pair) for pair in inputs["image_index"]]
    assert macs["vision_model.encoder.layers.0.pruning"].tolist() == expected
    assert not [path for path in model.dense_macs([3]) if "pruning" in path]


def test_what_pruning_cannot_touch_is_small_in_the_default_size() -> None:
    """Patch embedding, both towers' first attention and the head are at most 8 % of the dense cost."""
    macs = BlipForNlvr(small_config(image_size=96, vocab_size=60)).dense_macs([14])
    untouched = (
        "vision_model.embeddings",
        "vision_model.encoder.layers.0.self_attn",
        "text_encoder.encoder.layer.0.attention",
        "cls_head",
    )
    assert 0.02 < sum(macs[path].item() for path in untouched) / total(macs).item() <= 0.08


def test_initialise_scales_maps_by_fan_in_and_keeps_embeddings_small() -> None:
    """Standard deviations of large drawn tensors, to 5 %; biases zero."""
    model = BlipForNlvr(small_config(image_size=32, vocab_size=4000))
    initialise(model)
    layer = model.text_encoder.encoder.layer[0].get_parameter("intermediate.dense.weight")
    # trunc_normal_ cuts at an absolute 2, far outside: the standard deviation is the one asked for.
    torch.testing.assert_close(layer.std().item(), 0.8 * 96**-0.5, rtol=0.05, atol=0)
    words = model.text_encoder.embeddings.word_embeddings.weight
    torch.testing.assert_close(words.std().item(), 0.02, rtol=0.05, atol=0)
    assert not model.text_encoder.encoder.layer[0].get_parameter("intermediate.dense.bias").any()

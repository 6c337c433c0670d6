"""CLIP: HF's own model where nothing is pruned, the published formulas where images are, and the text's EOT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear
from transformers.models.clip.configuration_clip import CLIPConfig

from madtp_cli.alignment import alignment_loss
from madtp_cli.costs.analytic import total
from madtp_cli.costs.counters import fvcore_macs, torch_macs
from madtp_cli.errors import SourceError
from madtp_cli.models.activations import quick_gelu
from madtp_cli.models.base import initialise
from madtp_cli.models.clip.configs import small_clip_config
from madtp_cli.models.clip.model import ClipForRetrieval, ClipOutput, pack_text
from madtp_cli.models.spec import PruningSpec

START, EOT, POSITIONS = 28, 29, 14
LENGTHS = [7, 14, 3, 11, 2]
IMAGE_INDEX = [0, 0, 2, 1, 2]
LAYERS = {"vision": (0, 1, 2), "text": (0, 1, 2)}
DENSE = PruningSpec()
PRUNED = PruningSpec(
    method="madtp", strength=0.5, layers=LAYERS, alignment_tokens=6, alignment_dim=16, projection="per_layer"
)


def _config(activation: str = "quick_gelu", eos_token_id: int = EOT) -> CLIPConfig:
    """Three vision layers over 16 patches and three text layers of another width."""
    return small_clip_config(
        image_size=32,
        vocab_size=30,
        eos_token_id=eos_token_id,
        vision_layers=3,
        vision_width=24,
        vision_heads=3,
        text_layers=3,
        text_width=32,
        text_heads=4,
        projection_dim=20,
        text_positions=POSITIONS,
        activation=activation,
    )


def _theirs(config: CLIPConfig) -> Any:
    """HF's model with weights that leave no part idle."""
    from transformers.models.clip.modeling_clip import CLIPModel

    torch.manual_seed(0)
    model: Any = CLIPModel._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def _ours(theirs: Any, spec: PruningSpec = DENSE) -> ClipForRetrieval:
    """Our model with HF's tensors, all of them by name, and alignment weights of its own."""
    torch.manual_seed(1)
    config = theirs.config
    model = ClipForRetrieval(
        config, alignment=spec.alignment(ClipForRetrieval.sites_of(config)), plan=spec.plan(), strength=spec.strength
    )
    alignment = {key: value for key, value in model.state_dict().items() if key.startswith("alignment.")}
    model.load_state_dict({**theirs.state_dict(), **alignment}, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def theirs() -> Any:
    """HF's model, eager, so that it shows its attention."""
    return _theirs(_config())


@pytest.fixture(scope="module")
def padded() -> Tensor:
    """Five texts of different lengths, padded with EOT as CLIP's tokenizer does: [5, 14]."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, START, (len(LENGTHS), POSITIONS), generator=generator)
    ids[:, 0] = START
    for row, length in enumerate(LENGTHS):
        ids[row, length - 1 :] = EOT
    return ids


@pytest.fixture(scope="module")
def inputs(padded: Tensor) -> dict[str, Any]:
    """The texts packed, about three images."""
    text, lengths = pack_text(padded, EOT)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return {"images": images, "text": text, "text_lengths": lengths, "image_index": IMAGE_INDEX}


def _run(model: ClipForRetrieval, inputs: dict[str, Any], **options: bool) -> ClipOutput:
    with torch.no_grad():
        output: ClipOutput = model(**inputs, **options)
    return output


def _kept(output: ClipOutput, tower: str) -> list[list[list[int]]]:
    """List the positions that left every layer, by sample."""
    return [[part.tolist() for part in layer.kept.split(list(layer.leaving))] for layer in output.traces[tower]]


@pytest.mark.parametrize("eos_token_id", [EOT, 2], ids=["eos", "legacy eos"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_dense_model_is_transformers_own(
    activation: str, eos_token_id: int, padded: Tensor, inputs: dict[str, Any]
) -> None:
    """HF's CLIPModel on padded texts: states, embeddings and logits to 1e-5, with norms of unusual eps."""
    config: Any = _config(activation, eos_token_id)
    config.vision_config.layer_norm_eps, config.text_config.layer_norm_eps = 1e-2, 1e-3
    theirs = _theirs(config)
    with torch.no_grad():
        expected = theirs(input_ids=padded, pixel_values=inputs["images"])
    text, lengths = pack_text(padded, eos_token_id)
    assert lengths == LENGTHS
    output = _run(_ours(theirs), {**inputs, "text": text})
    close: Any = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(output.image_embeds, expected.image_embeds, **close)
    torch.testing.assert_close(output.text_embeds, expected.text_embeds, **close)
    torch.testing.assert_close(output.logits, expected.logits_per_text, atol=1e-4, rtol=1e-4)
    states = expected.text_model_output.last_hidden_state
    ends = torch.tensor(LENGTHS) - 1
    torch.testing.assert_close(output.encoded, states[torch.arange(len(ends)), ends], **close)


@pytest.mark.parametrize(
    "spec", [replace(PRUNED, strength=0.0), replace(PRUNED, temperature=0.0)], ids=["strength", "temperature"]
)
def test_without_strength_or_temperature_the_model_is_dense(
    spec: PruningSpec, theirs: Any, inputs: dict[str, Any]
) -> None:
    """The model without a plan, to the bit."""
    dense, output = _run(_ours(theirs), inputs), _run(_ours(theirs, spec), inputs)
    assert torch.equal(output.logits, dense.logits)
    assert output.images.spans.lengths == (17, 17, 17)


@pytest.mark.parametrize("method", ["madtp", "random"])
@pytest.mark.parametrize("strength", [0.4, 0.5, 0.8])
def test_a_pruned_sample_does_not_depend_on_its_company(
    method: str, strength: float, theirs: Any, inputs: dict[str, Any]
) -> None:
    """The sample alone: its embeddings to 1e-5, its kept tokens exactly."""
    model = _ours(theirs, replace(PRUNED, method=method, strength=strength))
    together = _run(model, inputs)
    assert together.images.spans.total < 3 * 17
    for row, ids in enumerate(inputs["text"].split(LENGTHS)):
        image = IMAGE_INDEX[row]
        alone = _run(
            model,
            {
                "images": inputs["images"][image : image + 1],
                "text": ids,
                "text_lengths": [len(ids)],
                "image_index": [0],
            },
        )
        torch.testing.assert_close(alone.text_embeds[0], together.text_embeds[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.image_embeds[0], together.image_embeds[image], atol=1e-5, rtol=1e-5)
        for tower, sample in (("vision", image), ("text", row)):
            assert [layer[0] for layer in _kept(alone, tower)] == [layer[sample] for layer in _kept(together, tower)]


@pytest.mark.parametrize("method", ["madtp", "random"])
def test_start_and_eot_survive_and_the_eot_stays_last(method: str, theirs: Any, inputs: dict[str, Any]) -> None:
    """At nine tenths pruned every layer of every text begins with position 0 and ends with its last position."""
    output = _run(_ours(theirs, replace(PRUNED, method=method, strength=0.9)), inputs)
    for layer in _kept(output, "text"):
        assert [part[0] for part in layer] == [0] * len(LENGTHS)
        assert [part[-1] for part in layer] == [length - 1 for length in LENGTHS]
    assert output.traces["text"][-1].leaving[1] < LENGTHS[1]
    assert output.traces["text"][-1].leaving[-1] == 2


@pytest.mark.parametrize("pruned", [(), (0,)], ids=["dense", "pruned"])
def test_earlier_states_do_not_see_a_later_token(pruned: tuple[int, ...], theirs: Any, inputs: dict[str, Any]) -> None:
    """Changing any one token of a text leaves the states of those before it as they were, merged token or not.

    The random method chooses by position alone, so that the choice is the same before and after.
    """
    model = _ours(theirs, PruningSpec(method="random", strength=0.5, layers={"text": pruned}))
    ids = inputs["text"].split(LENGTHS)[1]
    with torch.no_grad():
        before, words = model.encode_text(ids, [len(ids)])
        assert (-1 in words.tokens.position) == bool(pruned)
        for changed in range(1, len(ids)):
            other = ids.clone()
            other[changed] = 1
            after, _ = model.encode_text(other, [len(ids)])
            assert torch.equal(after.position, before.position)
            earlier = (before.position >= 0) & (before.position < changed)
            torch.testing.assert_close(after.x[earlier], before.x[earlier], atol=0, rtol=0)
            assert not torch.equal(after.last(), before.last())


def test_aligned_features_leave_out_the_first_token_and_are_summed_over_layers(
    theirs: Any, inputs: dict[str, Any], padded: Tensor
) -> None:
    """The formulas of method.md section 2 on HF's hidden states, which enter the blocks un-normed; texts whole."""
    model = _ours(theirs, PRUNED)
    model.strength = 0.0
    output = _run(model, inputs, learn=True)
    assert output.aligned is not None
    with torch.no_grad():
        states = theirs(input_ids=padded, pixel_values=inputs["images"], output_hidden_states=True)
        images = states.vision_model_output.hidden_states[:-1]
        texts = states.text_model_output.hidden_states[:-1]
        for row, length in enumerate(LENGTHS):
            image = _aligned(model, "vision", [x[IMAGE_INDEX[row], 1:] for x in images])
            text = _aligned(model, "text", [x[row, 1:length] for x in texts])
            for found, feature in zip(output.aligned, (image, text), strict=True):
                torch.testing.assert_close(found[row], feature, atol=1e-4, rtol=1e-4)
    assert alignment_loss(*output.aligned) > 0


def _aligned(model: ClipForRetrieval, tower: str, inputs: list[Tensor]) -> Tensor:
    """Pool each block's input [N, C] by its logits and add up: [K, d]."""
    state = model.state_dict()
    tokens = state["alignment.tokens"]
    features = torch.zeros_like(tokens)
    for layer, x in enumerate(inputs):
        q = linear(x, state[f"alignment.maps.{tower}.{layer}.weight"], state[f"alignment.maps.{tower}.{layer}.bias"])
        features += (q @ tokens.T / tokens.shape[1] ** 0.5).softmax(0).T @ q
    return features


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_released_variant_follows_the_published_formulas(
    temperature: float, theirs: Any, inputs: dict[str, Any]
) -> None:
    """A second implementation of method.md sections 2 to 4 for a whole batch: kept tokens exactly, features to 1e-4."""
    spec = replace(PRUNED, variant="released", temperature=temperature, layers={"vision": (0, 1, 2)})
    model = _ours(theirs, spec)
    output = _run(model, inputs)
    with torch.no_grad():
        expected, kept = _released(model, inputs["images"], temperature)
    assert [[sorted(part) for part in layer] for layer in _kept(output, "vision")] == kept
    assert output.traces["vision"][-1].leaving[0] < 17
    torch.testing.assert_close(output.images.first(), expected, atol=1e-4, rtol=1e-4)


def _released(model: ClipForRetrieval, images: Tensor, temperature: float) -> tuple[Tensor, list[list[list[int]]]]:
    """Run the vision tower as published, every sample keeping as many tokens as the most demanding one.

    Returns the class states [I, C] and the sorted positions that left every layer.
    """
    state, config = model.state_dict(), model.config.vision_config
    tokens, heads = state["alignment.tokens"], config.num_attention_heads

    def norm(name: str, x: Tensor) -> Tensor:
        name = f"vision_model.{name}"
        return layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], config.layer_norm_eps)

    def project(name: str, x: Tensor) -> Tensor:
        return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    embedded = model.vision_model.embeddings(images)
    x = norm("pre_layrnorm", embedded.x.unflatten(0, (len(images), -1)))  # [I, N, C]
    position = embedded.position.unflatten(0, (len(images), -1))
    kept = []
    for layer in range(config.num_hidden_layers):
        block = f"vision_model.encoder.layers.{layer}"
        z = project(f"alignment.maps.vision.{layer}", x[:, 1:]) @ tokens.T  # [I, N - 1, K]
        y = norm(f"encoder.layers.{layer}.layer_norm1", x)
        q, k, v = (
            project(f"{block}.self_attn.{name}_proj", y).unflatten(-1, (heads, -1)).transpose(1, 2) for name in "qkv"
        )
        p = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)  # [I, H, N, N]
        o = p @ v
        x = x + project(f"{block}.self_attn.out_proj", o.transpose(1, 2).flatten(2))
        share = o.norm(dim=-1) / o.norm(dim=-1).sum(1, keepdim=True)  # [I, H, N]
        received = p[:, :, 1:, 1:].amax(1).sum(1)
        best = z.amax(-1)
        tis = (p[:, :, 0, 1:] * share[:, :, 1:]).sum(1) + received / received.sum(1, keepdim=True)
        tis = (tis + best / best.sum(1, keepdim=True)) / 3  # [I, N - 1]
        theta = ((z / temperature).softmax(1).transpose(1, 2) @ tis[..., None]).amin((1, 2))
        count = int((tis > theta[:, None]).sum(1).max())
        if count > 0 and tis.shape[1] - count > 1:
            order = tis.argsort(1, descending=True)
            rest, weight = order[:, count:], tis.gather(1, order[:, count:])
            merged = (weight / weight.sum(1, keepdim=True))[:, None] @ x[:, 1:].gather(1, _wide(rest, x))
            x = torch.cat([x[:, :1], x[:, 1:].gather(1, _wide(order[:, :count], x)), merged], 1)
            here = position[:, 1:].gather(1, order[:, :count])
            position = torch.cat([position[:, :1], here, torch.full_like(here[:, :1], -1)], 1)
        kept.append([sorted(row) for row in position.tolist()])
        y = project(f"{block}.mlp.fc1", norm(f"encoder.layers.{layer}.layer_norm2", x))
        x = x + project(f"{block}.mlp.fc2", quick_gelu(y))
    return norm("post_layernorm", x[:, 0]), kept


def _wide(index: Tensor, x: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, x.shape[-1])


def test_probes_are_the_class_rows_of_the_last_third(theirs: Any, inputs: dict[str, Any]) -> None:
    """HF's eager attention in the last of three layers; without asking there are none, and nothing else changes."""
    model = _ours(theirs)
    plain, output = _run(model, inputs), _run(model, inputs, probe=True)
    assert plain.probes == ()
    assert torch.equal(plain.logits, output.logits)
    (probe,) = output.probes
    with torch.no_grad():
        expected = theirs.vision_model(pixel_values=inputs["images"], output_attentions=True).attentions[-1][:, :, 0]
    torch.testing.assert_close(probe.probability, expected, atol=1e-5, rtol=1e-5)
    assert probe.image.tolist() == [0, 1, 2]


@pytest.mark.parametrize("counter", [fvcore_macs, torch_macs])
@pytest.mark.parametrize("spec", [DENSE, replace(PRUNED, strength=0.6)], ids=["dense", "pruned"])
def test_costs_agree_with_the_counters(counter: Any, spec: PruningSpec, theirs: Any, inputs: dict[str, Any]) -> None:
    """One image and one text: module by module, the total to 0.5 %, and no operator that nobody knows."""
    model = _ours(theirs, spec)
    args = (inputs["images"][:1], inputs["text"].split(LENGTHS)[1], [LENGTHS[1]], [0])
    with torch.no_grad():
        macs = {name: int(cost) for name, cost in model.macs(model(*args)).items()}
    dense = int(total(model.dense_macs([LENGTHS[1]])))
    assert sum(macs.values()) == dense if spec is DENSE else sum(macs.values()) < 0.9 * dense
    count = counter(model, *args)
    assert count.unknown == {}
    assert count.macs == pytest.approx(sum(macs.values()), rel=0.005)
    for name, value in macs.items():
        if not name.endswith(".pruning"):
            assert count.modules[name] == value


def test_the_largest_published_clip_costs_what_is_published() -> None:
    """ViT-L/14 at 336: 191.0 gmacs an image and 6.65 for 77 tokens (method.md section 7), to 0.2 %."""
    config = small_clip_config(
        image_size=336, vocab_size=49408, eos_token_id=49407, vision_layers=24, vision_width=1024, vision_heads=16,
        patch_size=14, text_layers=12, text_width=768, text_heads=12, projection_dim=768, text_positions=77,
    )  # fmt: skip
    with torch.device("meta"):
        model = ClipForRetrieval(config)
    with torch.device("cpu"):
        macs = model.dense_macs([77])
    gmacs = {side: sum(int(v) for k, v in macs.items() if k.startswith(side)) / 1e9 for side in ("vis", "text")}
    assert gmacs["vis"] == pytest.approx(191.0, rel=0.002)
    assert gmacs["text"] == pytest.approx(6.65, rel=0.002)


def test_padded_texts_are_cut_after_their_first_eot() -> None:
    """By hand, with both conventions of HF's configurations, and a text without any."""
    ids = torch.tensor([[7, 1, 9, 9], [7, 9, 0, 0], [7, 2, 3, 9]])
    expected = [7, 1, 9, 7, 9, 7, 2, 3, 9]
    for eos_token_id in (9, 2):
        text, lengths = pack_text(ids, eos_token_id)
        assert (text.tolist(), lengths) == (expected, [3, 2, 4])
    with pytest.raises(ValueError, match="a text has no end-of-text token 5"):
        pack_text(ids, 5)


def test_an_activation_nobody_knows_is_refused() -> None:
    """The message names it, those there are, and the setting."""
    with pytest.raises(SourceError, match=r"hidden_act is silu; .* one of gelu, quick_gelu, try model.config"):
        ClipForRetrieval(_config("silu"))


def test_a_fresh_model_learns_something_everywhere(inputs: dict[str, Any]) -> None:
    """A pruned training pass from scratch gives every parameter a finite gradient; few texts have anything to prune."""
    torch.manual_seed(4)
    config = _config()
    spec = replace(PRUNED, strength=0.4)
    model = ClipForRetrieval(
        config, alignment=spec.alignment(ClipForRetrieval.sites_of(config)), plan=spec.plan(), strength=0.4
    )
    initialise(model)
    output = model(**inputs, learn=True)
    assert output.aligned is not None
    (output.logits.log_softmax(-1)[0, 0] - alignment_loss(*output.aligned)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_bf16_stays_close(theirs: Any, inputs: dict[str, Any]) -> None:
    """Dense embeddings under autocast within 0.05 of float32's; the residual streams run in the compute type."""
    model = _ours(theirs)
    expected = _run(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = _run(model, inputs)
        streams = [tower.tokens.x.dtype for tower in _towers(model, inputs)]
    assert streams == [torch.bfloat16, torch.bfloat16]
    assert output.logits.dtype == output.image_embeds.dtype == torch.float32
    torch.testing.assert_close(output.image_embeds, expected.image_embeds, atol=0.05, rtol=0)
    torch.testing.assert_close(output.text_embeds, expected.text_embeds, atol=0.05, rtol=0)


def _towers(model: ClipForRetrieval, inputs: dict[str, Any]) -> list[Any]:
    with torch.no_grad():
        return [model.encode_images(inputs["images"])[1], model.encode_text(inputs["text"], inputs["text_lengths"])[1]]

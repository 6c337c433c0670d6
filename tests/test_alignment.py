"""Alignment guidance: folded maps against unfolded ones, pooled features against plain loops."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from madtp_cli.alignment import Alignment, Projection, alignment_loss, strongest
from madtp_cli.tokens import Spans, Tokens

K, DIM = 5, 8
TOWERS = {"vision": (3, 12), "text": (2, 6)}
PROJECTED = pytest.mark.parametrize("projection", ["shared", "per_layer"])


def _module(projection: Projection = "shared") -> Alignment:
    torch.manual_seed(0)
    towers = {name: (layers, DIM) for name, (layers, _) in TOWERS.items()} if projection == "none" else TOWERS
    return Alignment(K, DIM, towers, projection)


def _unfolded(module: Alignment, x: Tensor, tower: str, layer: int) -> Tensor:
    """Return E (W x + b) in two steps."""
    maps = module.maps[tower]
    assert isinstance(maps, nn.ModuleList)
    index = {"shared": 0, "per_layer": layer}.get(module.projection)
    return (x if index is None else maps[index](x)) @ module.tokens.T


def _assert_fresh(module: Alignment) -> None:
    """Check the logits of every layer against the unfolded ones, with and without gradient."""
    for tower, (layers, width) in TOWERS.items():
        dtype = module.tokens.dtype
        x = torch.randn(4, DIM if module.projection == "none" else width, dtype=dtype)
        for layer in range(layers):
            for grad in (False, True):
                with torch.set_grad_enabled(grad):
                    torch.testing.assert_close(
                        module.logits(x, tower, layer), _unfolded(module, x, tower, layer), atol=1e-5, rtol=1e-5
                    )


@pytest.mark.parametrize("projection", ["shared", "per_layer", "none"])
def test_logits_compare_projected_tokens_with_alignment_tokens(projection: Projection) -> None:
    """E (W x + b) computed in two steps, in both modes."""
    module = _module(projection)
    _assert_fresh(module)
    _assert_fresh(module.eval())
    _assert_fresh(module.train())


def test_projections_have_one_map_per_tower_or_layer() -> None:
    """Counts of parameters: E alone, one map per modality, one map per layer."""
    maps: dict[Projection, list[int]] = {"none": [], "shared": [1, 1], "per_layer": [3, 2]}
    for projection, counts in maps.items():
        module = _module(projection)
        expected = K * DIM + sum(n * DIM * (w + 1) for n, (_, w) in zip(counts, TOWERS.values(), strict=False))
        assert sum(p.numel() for p in module.parameters()) == expected


def test_without_maps_the_widths_must_be_equal() -> None:
    """The message names the tower, both widths and the way out."""
    with pytest.raises(ValueError, match=r"alignment.dim is 8 but the vision tower is 12 wide; use projection: shared"):
        Alignment(K, DIM, TOWERS, "none")


@PROJECTED
def test_entering_eval_mode_folds_the_weights_of_that_moment(projection: Projection) -> None:
    """Unfolded logits after a step of training between two evaluations."""
    module = _module(projection).eval()
    _assert_fresh(module)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module.logits(torch.randn(4, 12), "vision", 0).sum().backward()
    optimizer.step()
    _assert_fresh(module)
    _assert_fresh(module.eval())


@PROJECTED
@pytest.mark.parametrize("nested", [False, True], ids=["itself", "its model"])
def test_loading_weights_in_eval_mode_folds_them(projection: Projection, nested: bool) -> None:
    """Unfolded logits after load_state_dict without a change of mode, of the module or of the model around it."""
    module, other = _module(projection).eval(), _module(projection)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    if nested:
        nn.ModuleDict({"alignment": module}).load_state_dict(nn.ModuleDict({"alignment": other}).state_dict())
    else:
        module.load_state_dict(other.state_dict())
    assert torch.equal(module.tokens, other.tokens)
    _assert_fresh(module)


@PROJECTED
def test_casting_and_copying_in_eval_mode_fold_again(projection: Projection) -> None:
    """Unfolded logits in the new type; a copy goes on alone."""
    module = _module(projection).eval()
    other = copy.deepcopy(module)
    nn.ModuleList([other]).double()
    _assert_fresh(other)
    _assert_fresh(module)


@PROJECTED
def test_weights_written_by_hand_are_seen_with_gradient_at_once_and_else_after_fold(projection: Projection) -> None:
    """Unfolded logits; this is the one case in which somebody has to ask."""
    module = _module(projection).eval()
    with torch.no_grad():
        module.tokens.mul_(-2)
    x = torch.randn(4, 12)
    torch.testing.assert_close(module.logits(x, "vision", 1), _unfolded(module, x, "vision", 1), atol=1e-5, rtol=1e-5)
    module.fold()
    _assert_fresh(module)


def test_folded_tokens_are_no_part_of_the_state() -> None:
    """The keys of the state dict are those of the parameters in either mode."""
    module = _module()
    names = {name for name, _ in module.named_parameters()}
    assert set(module.state_dict()) == set(module.eval().state_dict()) == names


@PROJECTED
def test_logits_teach_tokens_and_maps(projection: Projection) -> None:
    """Gradients equal those of the unfolded logits."""
    module = _module(projection)
    x = torch.randn(4, 12)
    parameters = [p for n, p in module.named_parameters() if "text" not in n and ".1." not in n and ".2." not in n]
    ours = torch.autograd.grad(module.logits(x, "vision", 0).square().sum(), parameters)
    theirs = torch.autograd.grad(_unfolded(module, x, "vision", 0).square().sum(), parameters)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("projection", ["shared", "per_layer", "none"])
@pytest.mark.parametrize("lengths", [[4, 4], [3, 6, 2]], ids=["uniform", "ragged"])
def test_aligned_features_pool_projected_tokens_without_the_class_token(
    projection: Projection, lengths: list[int]
) -> None:
    """softmax over a sample's other tokens of Z^T / sqrt(d), times W x + b (method.md section 2), per sample."""
    module = _module(projection)
    width = DIM if projection == "none" else 12
    tokens = Tokens.pack(torch.randn(sum(lengths), width), Spans.of(lengths))
    out = module.aligned(tokens, module.logits(tokens.x, "vision", 2), "vision", 2)
    assert out.shape == (len(lengths), K, DIM)
    maps = module.maps["vision"]
    assert isinstance(maps, nn.ModuleList)
    for row, x in enumerate(tokens.x.split(lengths)):
        q = x[1:] if projection == "none" else maps[2 if projection == "per_layer" else 0](x[1:])
        share = (q @ module.tokens.T / DIM**0.5).softmax(0).T  # [K, N]
        torch.testing.assert_close(out[row], share @ q, atol=1e-5, rtol=1e-5)


def test_a_protected_last_token_has_its_say_in_the_aligned_features() -> None:
    """CLIP's end of text: features as without any protection but the first token's place."""
    module, spans = _module(), Spans.of([4, 3])
    x = torch.randn(7, 12)
    ends = torch.tensor([True, False, False, True, True, False, True])
    found = [
        module.aligned(tokens, module.logits(x, "vision", 0), "vision", 0)
        for tokens in (Tokens.pack(x, spans), Tokens.pack(x, spans, ends, causal=True))
    ]
    assert torch.equal(*found)


def test_guidance_of_a_token_is_its_best_match() -> None:
    """Read off by eye."""
    assert strongest(torch.tensor([[1.0, 3.0, 2.0], [-5.0, -4.0, -6.0]])).tolist() == [3, -4]


def test_alignment_loss_is_one_minus_the_cosine() -> None:
    """0 for equal features at any scale, 2 for opposite ones, and the mean of 0 and 1 by hand."""
    x = torch.randn(2, K, DIM)
    torch.testing.assert_close(alignment_loss(x, 3 * x), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(alignment_loss(x, -x), torch.tensor(2.0))
    image = torch.tensor([[[1.0, 0.0], [2.0, 0.0]]])
    text = torch.tensor([[[5.0, 0.0], [0.0, 1.0]]])
    torch.testing.assert_close(alignment_loss(image, text), torch.tensor(0.5))

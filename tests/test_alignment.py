"""Alignment guidance: folded maps against unfolded ones, pooled features against plain loops."""

from __future__ import annotations

import copy
from collections.abc import Sequence

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


def _features(module: Alignment, layers: Sequence[Tokens]) -> Tensor:
    """Return the aligned features of some layers of the vision tower, the first ones."""
    guide = module.site("vision")
    each = [guide.pooled(tokens, guide.logits(tokens.x, row)) for row, tokens in enumerate(layers)]
    return guide.aligned(each)


def _plain_features(module: Alignment, layers: Sequence[Tokens]) -> Tensor:
    """Return the same by a loop over layers and samples."""
    maps = module.maps["vision"]
    assert isinstance(maps, nn.ModuleList)
    total = []
    for layer, tokens in enumerate(layers):
        rows = []
        for x in tokens.x.split(list(tokens.spans.lengths)):
            q = x[1:] if module.projection == "none" else maps[layer if module.projection == "per_layer" else 0](x[1:])
            share = (q @ module.tokens.T / DIM**0.5).softmax(0).T  # [K, N]
            rows.append(share @ q)
        total.append(torch.stack(rows))
    return torch.stack(total).sum(0).float()


def _assert_fresh(module: Alignment) -> None:
    """Check the logits of every layer against the unfolded ones, with and without gradient."""
    for tower, (layers, width) in TOWERS.items():
        dtype = module.tokens.dtype
        x = torch.randn(4, DIM if module.projection == "none" else width, dtype=dtype)
        for layer in range(layers):
            for grad in (False, True):
                with torch.set_grad_enabled(grad):
                    torch.testing.assert_close(
                        module.site(tower).logits(x, layer), _unfolded(module, x, tower, layer), atol=1e-5, rtol=1e-5
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
    module.site("vision").logits(torch.randn(4, 12), 0).sum().backward()
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
    logits = module.site("vision").logits(x, 1)
    torch.testing.assert_close(logits, _unfolded(module, x, "vision", 1), atol=1e-5, rtol=1e-5)
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
    ours = torch.autograd.grad(module.site("vision").logits(x, 0).square().sum(), parameters)
    theirs = torch.autograd.grad(_unfolded(module, x, "vision", 0).square().sum(), parameters)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("projection", ["shared", "per_layer", "none"])
@pytest.mark.parametrize("lengths", [[4, 4], [3, 6, 2]], ids=["uniform", "ragged"])
def test_aligned_features_pool_projected_tokens_without_the_class_token(
    projection: Projection, lengths: list[int]
) -> None:
    """softmax over a sample's other tokens of Z^T / sqrt(d), times W x + b (method.md section 2), layers summed."""
    module = _module(projection)
    width = DIM if projection == "none" else 12
    tokens = Tokens.pack(torch.randn(sum(lengths), width), Spans.of(lengths), prefix=1)
    layers = [tokens, tokens.with_x(-tokens.x)]
    out = _features(module, layers)
    assert out.shape == (len(lengths), K, DIM)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, _plain_features(module, layers), atol=1e-5, rtol=1e-5)


def test_a_protected_last_token_has_its_say_in_the_aligned_features() -> None:
    """CLIP's end of text: features as without any protection but the first token's place."""
    module, spans = _module(), Spans.of([4, 3])
    x = torch.randn(7, 12)
    ends = torch.tensor([True, False, False, True, True, False, True])
    found = [
        _features(module, [tokens])
        for tokens in (Tokens.pack(x, spans, prefix=1), Tokens.pack(x, spans, ends, causal=True, prefix=1))
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("projection", ["shared", "per_layer", "none"])
@pytest.mark.parametrize("lengths", [[4, 4], [3, 6, 2]], ids=["uniform", "ragged"])
def test_aligned_features_teach_tokens_maps_and_states(projection: Projection, lengths: list[int]) -> None:
    """Gradients of every parameter and of the tokens equal those of the plain loops, in float64."""
    module = _module(projection).double()
    width = DIM if projection == "none" else 12
    states = [torch.randn(sum(lengths), width, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    layers = [Tokens.pack(x, Spans.of(lengths), prefix=1) for x in states]
    taught = [*states, *(p for name, p in module.named_parameters() if "text" not in name and ".2." not in name)]
    weight = torch.randn(len(lengths), K, DIM)
    ours = torch.autograd.grad((weight * _features(module, layers)).sum(), taught)
    theirs = torch.autograd.grad((weight * _plain_features(module, layers)).sum(), taught)
    assert any(gradient.abs().max() > 0.1 for gradient in ours)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_pooling_is_that_of_finite_differences() -> None:
    """torch's gradcheck in float64, of tokens and logits that do not depend on each other."""
    x, logits = (torch.randn(9, n, dtype=torch.float64, requires_grad=True) for n in (3, 2))
    pooled = _module().site("vision").pooled
    for spans in (Spans.of([3, 3, 3]), Spans.of([2, 5, 2])):
        assert torch.autograd.gradcheck(
            lambda a, b, spans=spans: pooled(Tokens.pack(a, spans, prefix=1), b), (x, logits)
        )


def test_pooling_keeps_samples_apart_and_a_lone_class_token_pools_to_nothing() -> None:
    """Infinite states beside a shorter sample: its features and gradients stay its own. One token has no features."""
    pooled = _module().site("vision").pooled
    x, logits = torch.randn(7, 3), torch.randn(7, 2)
    x[:4] = float("inf")
    x, logits = x.requires_grad_(), logits.requires_grad_()
    found = pooled(Tokens.pack(x, Spans.of([4, 2, 1]), prefix=1), logits)
    alone = pooled(Tokens.pack(x.detach()[4:6], Spans.of([2]), prefix=1), logits.detach()[4:6])
    torch.testing.assert_close(found[1], alone[0])
    assert torch.equal(found[2], torch.zeros_like(found[2]))
    found[1:].sum().backward()
    for gradient in (x.grad, logits.grad):
        assert gradient is not None
        assert gradient[4:].isfinite().all()


@pytest.mark.parametrize(("projection", "folds"), [("shared", 1), ("per_layer", 3), ("none", 0)])
def test_one_pass_folds_each_map_once_and_the_next_one_again(
    projection: Projection, folds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, in training: three layers through one map fold it once, and so does the next pass."""
    module, counted = _module(projection), []
    fold = module._fold

    def count(tower: str, layer: int) -> tuple[Tensor, Tensor | None]:
        counted.append(module.map_of(tower, layer))
        return fold(tower, layer)

    monkeypatch.setattr(module, "_fold", count)
    x = torch.randn(4, DIM if projection == "none" else 12)
    for passes in (1, 2):
        guide = module.site("vision")
        for layer in range(3):
            guide.logits(x, layer)
        assert sum(each is not None for each in counted) == passes * folds


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


def test_without_a_prefix_every_token_has_its_say() -> None:
    """By hand: the softmax-weighted mean over all of a sample's tokens, of which the first is no class token."""
    x, logits = torch.randn(5, 3), torch.randn(5, 2)
    found = _module().site("vision").pooled(Tokens.pack(x, Spans.of([2, 3])), logits)
    for row, own in enumerate((slice(0, 2), slice(2, 5))):
        share = (logits[own] * DIM**-0.5).softmax(0)
        torch.testing.assert_close(found[row], share.T @ x[own])

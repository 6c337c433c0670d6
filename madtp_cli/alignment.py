"""Multimodal alignment guidance: learnable tokens shared by image and text, their logits and the alignment loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cosine_similarity, linear

from madtp_cli.tokens import Spans, Tokens

Projection = Literal["shared", "per_layer", "none"]


class Alignment(nn.Module):
    """K learnable tokens E [K, d] that both modalities are compared with (the paper's MAG).

    The logits of a token x are E (W x + b) with W the modality's linear map. W is folded into E, so that a token costs
    K * C multiply-adds instead of C * d + K * d; passes in eval mode without gradient use tokens folded once (`fold`).
    """

    def __init__(
        self, tokens: int, dim: int, sites: Mapping[str, tuple[int, int]], projection: Projection = "shared"
    ) -> None:
        """Build for sites {name: (layers, width)}.

        Raises ValueError if `projection` is none and a width is not `dim`.
        """
        super().__init__()
        self.dim = dim
        self.projection = projection
        self.tokens = nn.Parameter(torch.randn(tokens, dim))
        self.maps = nn.ModuleDict()
        for site, (layers, width) in sites.items():
            if projection == "none" and width != dim:
                raise ValueError(f"alignment.dim is {dim} but the {site} tower is {width} wide; use projection: shared")
            count = {"shared": 1, "per_layer": layers, "none": 0}[projection]
            self.maps[site] = nn.ModuleList(nn.Linear(width, dim) for _ in range(count))
        self._folded: dict[tuple[str, int], tuple[Tensor, Tensor | None]] = {}
        self.register_load_state_dict_post_hook(_fold_again)

    @torch.no_grad()
    def fold(self) -> None:
        """Fold the maps into the tokens if in eval mode, else forget what was folded.

        Changing mode, loading a state dict, moving and casting do it by themselves; only whoever writes to the weights
        by hand in eval mode has to call it.
        """
        self._folded = {}
        if not self.training:
            for site, maps in self.maps.items():
                assert isinstance(maps, nn.ModuleList)
                for index in range(len(maps)):
                    self._folded[site, index] = self._fold(site, index)

    def train(self, mode: bool = True) -> Alignment:
        """Switch mode and fold anew."""
        super().train(mode)
        self.fold()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Alignment:
        super()._apply(fn, recurse)
        self.fold()
        return self

    def site(self, name: str) -> SiteAlignment:
        """Return what one pass through a site compares its tokens with."""
        return SiteAlignment(self, name)

    def map_of(self, site: str, layer: int) -> nn.Linear | None:
        """Return the map of a layer's tokens into the alignment space, None where there is none."""
        maps = self.maps[site]
        assert isinstance(maps, nn.ModuleList)
        if not len(maps):
            return None
        chosen = maps[self.index_of(layer)]
        assert isinstance(chosen, nn.Linear)
        return chosen

    def index_of(self, layer: int) -> int:
        """Return which of a site's maps is a layer's."""
        return layer if self.projection == "per_layer" else 0

    def folded(self, site: str, layer: int) -> tuple[Tensor, Tensor | None]:
        """Return E W [K, C] and E b [K]: those at hand where no gradient is asked for."""
        kept = None if torch.is_grad_enabled() else self._folded.get((site, self.index_of(layer)))
        return kept or self._fold(site, layer)

    def _fold(self, site: str, layer: int) -> tuple[Tensor, Tensor | None]:
        linear_map = self.map_of(site, layer)
        if linear_map is None:
            return self.tokens, None
        return self.tokens @ linear_map.weight, self.tokens @ linear_map.bias


class SiteAlignment:
    """One pass through a site: maps that its layers share are folded once, and their features are mapped once."""

    def __init__(self, alignment: Alignment, site: str) -> None:
        self._alignment = alignment
        self._site = site
        self._folded: dict[int, tuple[Tensor, Tensor | None]] = {}

    def logits(self, x: Tensor, layer: int) -> Tensor:
        """Compare a layer's tokens x [T, C] with every alignment token: raw logits [T, K]."""
        index = self._alignment.index_of(layer)
        if index not in self._folded:
            self._folded[index] = self._alignment.folded(self._site, layer)
        return linear(x, *self._folded[index])

    def pooled(self, tokens: Tokens, logits: Tensor) -> Tensor:
        """Pool each sample's tokens but its prefix by their logits [T, K]: [B, K, C] in float32 or better.

        The prefix alone is left out, as published; a protected end of text has its say.
        """
        found: Tensor = _Pool.apply(tokens.x, logits, tokens.spans, tokens.prefix, self._alignment.dim**-0.5)
        return found

    def aligned(self, pooled: Sequence[Tensor]) -> Tensor:
        """Map what was pooled in every layer, from the first one on, and sum it: aligned features F [B, K, d]."""
        if self._alignment.projection == "per_layer":
            return _sum([self._mapped(each, layer) for layer, each in enumerate(pooled)])
        # Layers share their map, if there is one: their sum goes through it, and its bias counts once per layer.
        return self._mapped(_sum(pooled), 0, times=len(pooled))

    def _mapped(self, pooled: Tensor, layer: int, times: int = 1) -> Tensor:
        linear_map = self._alignment.map_of(self._site, layer)
        if linear_map is None:
            return pooled
        return linear(pooled.to(linear_map.weight.dtype), linear_map.weight, times * linear_map.bias).float()


def _sum(layers: Sequence[Tensor]) -> Tensor:
    """Add up one by one: a stack of them all would be new memory the size of all."""
    return sum(layers[1:], start=layers[0])


class _Pool(torch.autograd.Function):
    """Sum tokens x [T, C] weighted by the softmax, over each sample's tokens but its prefix, of scaled logits [T, K].

    By hand, because step by step every layer would write and keep several more tensors of the tokens' size.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor, spans: Spans, prefix: int, scale: float) -> Tensor:
        """Return [B, K, C] in float32 or better, in which the softmax is computed; products are in the tokens' type."""
        ctx.spans, ctx.scale, ctx.dtype = spans, scale, logits.dtype
        exact = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            scores = spans.pad(logits.to(exact) * scale, float("-inf"))  # [B, N, K]
            scores[:, :prefix] = float("-inf")
            share = scores.softmax(1).to(x.dtype)
            if min(spans.lengths) <= prefix:
                share = share.nan_to_num(0.0)  # nothing is left to pool where there is nothing but the prefix
            ctx.save_for_backward(x, share)
            return (share.transpose(1, 2) @ spans.pad(x)).to(exact)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Return the gradients of x and logits."""
        x, share = ctx.saved_tensors
        gradient = gradients[0].to(x.dtype)
        by_share = (ctx.spans.pad(x) @ gradient.transpose(1, 2)).to(torch.promote_types(x.dtype, torch.float32))
        by_share = by_share.mul_(share)  # [B, N, K]
        by_scores = by_share.sub_(share * by_share.sum(1, keepdim=True)).mul_(ctx.scale)
        by_x = share @ gradient  # [B, N, C]
        return ctx.spans.unpad(by_x), ctx.spans.unpad(by_scores.to(ctx.dtype)), None, None, None


def _fold_again(module: nn.Module, _: object) -> None:
    assert isinstance(module, Alignment)
    module.fold()


def strongest(logits: Tensor) -> Tensor:
    """Return each token's best match over the alignment tokens, logits [T, K] -> [T]: the guidance of a token."""
    return logits.amax(-1)


def alignment_loss(image: Tensor, text: Tensor) -> Tensor:
    """Return the mean of 1 - cos between aligned features [B, K, d] of the two modalities (the paper's L_sim)."""
    return (1 - cosine_similarity(image, text, dim=-1)).mean()

"""Multimodal alignment guidance: learnable tokens shared by image and text, their logits and the alignment loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, linear

from madtp_cli.tokens import Tokens

Projection = Literal["shared", "per_layer", "none"]


class Alignment(nn.Module):
    """K learnable tokens E [K, d] that both modalities are compared with (the paper's MAG).

    The logits of a token x are E (W x + b) with W the modality's linear map. W is folded into E, so that a token costs
    K * C multiply-adds instead of C * d + K * d; passes in eval mode without gradient use tokens folded once (`fold`).
    """

    def __init__(
        self, tokens: int, dim: int, towers: Mapping[str, tuple[int, int]], projection: Projection = "shared"
    ) -> None:
        """Build for towers {name: (layers, width)}.

        Raises ValueError if `projection` is none and a width is not `dim`.
        """
        super().__init__()
        self.dim = dim
        self.projection = projection
        self.tokens = nn.Parameter(torch.randn(tokens, dim))
        self.maps = nn.ModuleDict()
        for tower, (layers, width) in towers.items():
            if projection == "none" and width != dim:
                raise ValueError(
                    f"alignment.dim is {dim} but the {tower} tower is {width} wide; use projection: shared"
                )
            count = {"shared": 1, "per_layer": layers, "none": 0}[projection]
            self.maps[tower] = nn.ModuleList(nn.Linear(width, dim) for _ in range(count))
        self._folded: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self.register_load_state_dict_post_hook(_fold_again)

    @torch.no_grad()
    def fold(self) -> None:
        """Fold the maps into the tokens if in eval mode, else forget what was folded.

        Changing mode, loading a state dict, moving and casting do it by themselves; only whoever writes to the weights
        by hand in eval mode has to call it.
        """
        self._folded = {}
        if not self.training:
            for tower, maps in self.maps.items():
                assert isinstance(maps, nn.ModuleList)
                for index in range(len(maps)):
                    self._folded[tower, index] = self._fold(tower, index)

    def train(self, mode: bool = True) -> Alignment:
        """Switch mode and fold anew."""
        super().train(mode)
        self.fold()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Alignment:
        super()._apply(fn, recurse)
        self.fold()
        return self

    def logits(self, x: Tensor, tower: str, layer: int) -> Tensor:
        """Compare tokens x [T, C] with every alignment token: raw logits [T, K]."""
        if self.projection == "none":
            return linear(x, self.tokens)
        folded = None if torch.is_grad_enabled() else self._folded.get((tower, self._index(layer)))
        return linear(x, *(folded or self._fold(tower, layer)))

    def aligned(self, tokens: Tokens, logits: Tensor, tower: str, layer: int) -> Tensor:
        """Pool each sample's tokens but its first by their logits [T, K]: aligned features F [B, K, d].

        The first one alone is left out, as published; CLIP's protected end of text has its say.
        """
        spans = tokens.spans
        logits = logits.float().masked_fill((tokens.position == 0)[:, None], float("-inf"))
        share = spans.softmax(logits / self.dim**0.5)  # [T, K]
        pooled = spans.pad(share).transpose(1, 2) @ spans.pad(tokens.x).float()  # [B, K, C]
        linear_map = self._map(tower, layer)
        return pooled if linear_map is None else linear_map(pooled.to(linear_map.weight.dtype)).float()

    def _map(self, tower: str, layer: int) -> nn.Linear | None:
        maps = self.maps[tower]
        assert isinstance(maps, nn.ModuleList)
        if not len(maps):
            return None
        chosen = maps[self._index(layer)]
        assert isinstance(chosen, nn.Linear)
        return chosen

    def _index(self, layer: int) -> int:
        return layer if self.projection == "per_layer" else 0

    def _fold(self, tower: str, layer: int) -> tuple[Tensor, Tensor]:
        """Return E W [K, C] and E b [K]."""
        linear_map = self._map(tower, layer)
        assert linear_map is not None
        return self.tokens @ linear_map.weight, self.tokens @ linear_map.bias


def _fold_again(module: nn.Module, _: object) -> None:
    assert isinstance(module, Alignment)
    module.fold()


def strongest(logits: Tensor) -> Tensor:
    """Return each token's best match over the alignment tokens, logits [T, K] -> [T]: the guidance of a token."""
    return logits.amax(-1)


def alignment_loss(image: Tensor, text: Tensor) -> Tensor:
    """Return the mean of 1 - cos between aligned features [B, K, d] of the two modalities (the paper's L_sim)."""
    return (1 - cosine_similarity(image, text, dim=-1)).mean()

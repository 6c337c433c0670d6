"""The released method once more, by its published formulas, for the tests to compare with.

Plain float64 torch over batches [B, N, C] whose samples are equally long, on state dicts in the released layout, tokens
in the order of their scores. The first of the N tokens is the class token; scores are about the N - 1 others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm

Attended = tuple[Tensor, Tensor, Tensor]  # states [B, N, C], probabilities [B, H, N, N], per-head outputs [B, H, N, D]


@dataclass(frozen=True)
class Layer:
    """What one layer thought of the tokens that entered it, by position (-1 once merged), and which left it."""

    position: Tensor  # [B, N - 1]
    best: Tensor  # [B, N - 1]
    tis: Tensor  # [B, N - 1]
    theta: Tensor  # [B]
    kept: list[list[int]]

    @property
    def margin(self) -> float:
        """How far the score closest to its threshold is from it."""
        return (self.tis - self.theta[:, None]).abs().min().item()


@dataclass(frozen=True)
class Block:
    """A transformer block cut where it prunes."""

    attend: Callable[[Tensor], Attended]
    finish: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tower:
    """What a tower made: states x [B, N, C], position [B, N], aligned features [B, K, d], and its pruned layers."""

    x: Tensor
    position: Tensor
    aligned: Tensor
    layers: list[Layer]


class Reference:
    """A released model; temperature 0 prunes nothing, and a layer keeps all where it would keep less than `least`."""

    def __init__(
        self, state: dict[str, Tensor], temperature: float, vision_heads: int, text_heads: int, least: int = 1
    ) -> None:
        self.state = {key: value.double() for key, value in state.items()}
        self.temperature = temperature
        self.vision_heads = vision_heads
        self.text_heads = text_heads
        self.least = least

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Multiply by a weight and add its bias."""
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        """Apply a layer norm."""
        return layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def layers(self, prefix: str) -> int:
        """Count the layers whose keys begin with a prefix."""
        return len({key.removeprefix(prefix).split(".")[0] for key in self.state if key.startswith(prefix)})

    def run(self, x: Tensor, blocks: Sequence[Block], *, prunes: bool = True, maps: str = "") -> Tower:
        """Run blocks over embedded tokens; `maps` names each layer's linear map to the alignment tokens, if any."""
        tokens = self.state["space_dict"]  # [K, d]
        position = torch.arange(x.shape[1]).repeat(len(x), 1)
        aligned = torch.zeros(len(x), *tokens.shape, dtype=x.dtype)
        layers = []
        for number, block in enumerate(blocks):
            q = self.linear(maps.format(number), x[:, 1:]) if maps else x[:, 1:]  # [B, N - 1, d]
            z = q @ tokens.T  # [B, N - 1, K]
            aligned = aligned + (z / tokens.shape[1] ** 0.5).softmax(1).transpose(1, 2) @ q
            x, p, o = block.attend(x)
            if prunes and self.temperature:
                layer, x, position = self.prune(x, position, z, p, o)
                layers.append(layer)
            x = block.finish(x)
        return Tower(x, position, aligned, layers)

    def prune(self, x: Tensor, position: Tensor, z: Tensor, p: Tensor, o: Tensor) -> tuple[Layer, Tensor, Tensor]:
        """Score the tokens, and keep in every sample as many as the sample that would keep most."""
        norm = o.norm(dim=-1)  # [B, H, N]
        share = norm / norm.sum(1, keepdim=True)
        s_cls = (p[:, :, 0, 1:] * share[:, :, 1:]).sum(1)
        received = p[:, :, 1:, 1:].amax(1).sum(1)
        best = z.amax(2)
        s_self, s_token = (s / s.sum(1, keepdim=True) for s in (received, best))
        tis = (s_cls + s_self + s_token) / 3  # [B, N - 1]
        w = (z / self.temperature).softmax(1)  # [B, N - 1, K]
        theta = (w * tis[:, :, None]).sum(1).amin(1)  # [B]
        count = int((tis > theta[:, None]).sum(1).max())
        entered, free = position[:, 1:], tis.shape[1]
        if count >= self.least and free - count > 1:
            states, places = [], []
            for row in range(len(x)):
                order = tis[row].argsort(descending=True)
                keep, drop = order[:count], order[count:]
                weight = tis[row, drop] / tis[row, drop].sum()
                merged = (weight[:, None] * x[row, 1 + drop]).sum(0)
                states.append(torch.cat([x[row, :1], x[row, 1 + keep], merged[None]]))
                places.append(torch.cat([position[row, :1], entered[row, keep], torch.tensor([-1])]))
            x, position = torch.stack(states), torch.stack(places)
        return Layer(entered, best, tis, theta, [sorted(row) for row in position.tolist()]), x, position

    def attention(self, qkv: Sequence[Tensor], heads: int, *, causal: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Attend with q, k and v [B, N, C]: output [B, N, C], probabilities and per-head outputs."""
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))
        p = scores.softmax(-1)
        o = p @ v
        return o.transpose(1, 2).flatten(2), p, o

    def blip_vision(self, images: Tensor) -> Tower:
        """Encode images [B, 3, H, W] with BLIP's image encoder, its last norm included."""
        name = "visual_encoder"
        patch = self.state[f"{name}.patch_embed.proj.weight"]
        bias = self.state[f"{name}.patch_embed.proj.bias"]
        x = conv2d(images.double(), patch, bias, stride=patch.shape[-1]).flatten(2).transpose(1, 2)
        x = torch.cat([self.state[f"{name}.cls_token"].expand(len(x), -1, -1), x], 1) + self.state[f"{name}.pos_embed"]
        blocks = [self._blip_block(f"{name}.blocks.{layer}") for layer in range(self.layers(f"{name}.blocks."))]
        tower = self.run(x, blocks)
        return Tower(self.norm(f"{name}.norm", tower.x, 1e-6), tower.position, tower.aligned, tower.layers)

    def _blip_block(self, name: str) -> Block:
        def attend(x: Tensor) -> Attended:
            qkv = self.linear(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x, 1e-6)).chunk(3, -1)
            out, p, o = self.attention(qkv, self.vision_heads)
            return x + self.linear(f"{name}.attn.proj", out), p, o

        def finish(x: Tensor) -> Tensor:
            hidden = gelu(self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x, 1e-6)))
            return x + self.linear(f"{name}.mlp.fc2", hidden)

        return Block(attend, finish)

    def clip_vision(self, images: Tensor) -> Tower:
        """Encode images [B, 3, H, W] with CLIP's image encoder, its last norm included."""
        name = "visual"
        patch = self.state[f"{name}.conv1.weight"]
        x = conv2d(images.double(), patch, stride=patch.shape[-1]).flatten(2).transpose(1, 2)
        x = torch.cat([self.state[f"{name}.class_embedding"].expand(len(x), 1, -1), x], 1)
        x = self.norm(f"{name}.ln_pre", x + self.state[f"{name}.positional_embedding"], 1e-5)
        prefix = f"{name}.transformer.resblocks."
        blocks = [self._clip_block(f"{prefix}{layer}") for layer in range(self.layers(prefix))]
        tower = self.run(x, blocks, maps=f"{prefix}{{}}.query_model.q_map.0")
        return Tower(self.norm(f"{name}.ln_post", tower.x, 1e-5), tower.position, tower.aligned, tower.layers)

    def _clip_block(self, name: str) -> Block:
        def attend(x: Tensor) -> Attended:
            y = self.norm(f"{name}.ln_1", x, 1e-5)
            qkv = y @ self.state[f"{name}.attn.in_proj_weight"].T + self.state[f"{name}.attn.in_proj_bias"]
            out, p, o = self.attention(qkv.chunk(3, -1), self.vision_heads)
            return x + self.linear(f"{name}.attn.out_proj", out), p, o

        def finish(x: Tensor) -> Tensor:
            y = self.linear(f"{name}.mlp.c_fc", self.norm(f"{name}.ln_2", x, 1e-5))
            return x + self.linear(f"{name}.mlp.c_proj", y * torch.sigmoid(1.702 * y))

        return Block(attend, finish)

    def bert(
        self, name: str, ids: Tensor, images: Sequence[Tensor] = (), *, prunes: bool = True, causal: bool = False
    ) -> Tower:
        """Read ids [B, N] with a BERT over no image, one, or two: states [B, Ni, C] each."""
        x = self.state[f"{name}.embeddings.word_embeddings.weight"][ids]
        x = x + self.state[f"{name}.embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self.norm(f"{name}.embeddings.LayerNorm", x, 1e-12)
        prefix = f"{name}.encoder.layer."
        blocks = [self._bert_block(f"{prefix}{n}", images, causal=causal) for n in range(self.layers(prefix))]
        return self.run(x, blocks, prunes=prunes)

    def _bert_block(self, name: str, images: Sequence[Tensor], *, causal: bool) -> Block:
        def attend(x: Tensor) -> Attended:
            part = f"{name}.attention"
            qkv = [self.linear(f"{part}.self.{role}", x) for role in ("query", "key", "value")]
            out, p, o = self.attention(qkv, self.text_heads, causal=causal)
            return self.norm(f"{part}.output.LayerNorm", self.linear(f"{part}.output.dense", out) + x, 1e-12), p, o

        def finish(x: Tensor) -> Tensor:
            if images:
                x = self._read(f"{name}.crossattention", x, images)
            hidden = gelu(self.linear(f"{name}.intermediate.dense", x))
            return self.norm(f"{name}.output.LayerNorm", self.linear(f"{name}.output.dense", hidden) + x, 1e-12)

        return Block(attend, finish)

    def _read(self, name: str, x: Tensor, images: Sequence[Tensor]) -> Tensor:
        """Cross-attend; two images are joined by a merge layer where there is one, else by their mean."""
        read = []
        for image, side in zip(images, ("",) if len(images) == 1 else ("0", "1"), strict=True):
            part = f"{name}.self{side}"
            qkv = [self.linear(f"{part}.{role}", t) for role, t in (("query", x), ("key", image), ("value", image))]
            read.append(self.linear(f"{name}.output.dense{side}", self.attention(qkv, self.text_heads)[0]))
        merge = f"{name}.output.merge_layer"
        joined = self.linear(merge, torch.cat(read, -1)) if f"{merge}.weight" in self.state else sum(read) / len(read)
        return self.norm(f"{name}.output.LayerNorm", joined + x, 1e-12)

    def words(self, states: Tensor) -> Tensor:
        """Return the decoder's next-word logits of states [B, N, C]."""
        head = "text_decoder.cls.predictions"
        hidden = gelu(self.linear(f"{head}.transform.dense", states))
        return self.linear(f"{head}.decoder", self.norm(f"{head}.transform.LayerNorm", hidden, 1e-12))


def similarity_loss(image: Tensor, text: Tensor) -> Tensor:
    """Return L_sim of aligned features [B, K, d]: the mean of 1 - cos."""
    cosine = (image * text).sum(-1) / (image.norm(dim=-1) * text.norm(dim=-1))
    return (1 - cosine).mean()

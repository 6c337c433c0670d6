"""CLIP for retrieval over packed tokens, with the parameter names of HF transformers' CLIPModel.

HF pools a text at the index its end-of-text token (EOT) has in the ids, which is wrong once tokens are pruned. Here a
text ends with its EOT: it is protected, and whatever follows it never enters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers.models.clip.configuration_clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from madtp_cli.attention import Statistics, Summary, attend, attend_with_statistics, probabilities
from madtp_cli.costs import analytic
from madtp_cli.errors import SourceError
from madtp_cli.models.activations import gelu, quick_gelu
from madtp_cli.models.base import Inputs, Output, Probe
from madtp_cli.models.image_text import TEXT, VISION, ImageTextModel, passed
from madtp_cli.models.sites import Site
from madtp_cli.models.tower import TowerOutput
from madtp_cli.tokens import Spans, Tokens, gather

Config: TypeAlias = "CLIPVisionConfig | CLIPTextConfig"

LEGACY_EOS = 2  # what HF's oldest CLIP configurations say; the EOT is then the largest id of a text

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "quick_gelu": quick_gelu}


class Attention(nn.Module):
    """Query, key, value and output projections."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, tokens: Tokens, *, statistics: bool) -> tuple[Tensor, Statistics | None]:
        """Self-attend normalised states x [T, C] inside the tokens' spans, each looking back only in a causal tower."""
        q, k, v = (self._split(linear(x)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        found: Statistics | None = None
        if statistics:
            # What stands for a causal span is the token that sees all of it.
            summary: Summary = "last" if tokens.causal else "first"
            out, found = attend_with_statistics(q, k, v, tokens.spans, causal=tokens.causal, summary=summary)
        else:
            out = attend(q, k, v, tokens.spans, tokens.spans, causal=tokens.causal)
        return self.out_proj(out.flatten(1)), found

    def of_first(self, x: Tensor, spans: Spans) -> Tensor:
        """Return what the first token of every span attends to: [B, H, longest]."""
        q = self._split(self.q_proj(gather(x, spans.start_index(x.device))))
        return probabilities(q, self._split(self.k_proj(x)), Spans.of([1] * len(q)), spans)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class Mlp(nn.Module):
    """A block's MLP."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.hidden_act not in ACTIVATIONS:
            raise SourceError(
                f"config.json: hidden_act is {config.hidden_act}; CLIP towers have one of {', '.join(ACTIVATIONS)}, "
                "try model.config.activation"
            )
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map [T, C] -> [T, C]."""
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block, the same for images and texts."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def attend(self, tokens: Tokens, *, statistics: bool) -> tuple[Tokens, Statistics | None]:
        """Run x + attention(norm(x))."""
        out, found = self.self_attn(self.layer_norm1(tokens.x), tokens, statistics=statistics)
        return tokens.with_x(tokens.x + out), found

    def finish(self, tokens: Tokens, context: None) -> Tokens:
        """Run x + mlp(norm(x))."""
        return tokens.with_x(tokens.x + self.mlp(self.layer_norm2(tokens.x)))


@dataclass(frozen=True)
class Probed:
    """A block that also notes what its class tokens attend to."""

    block: Block
    found: list[Tensor]

    def attend(self, tokens: Tokens, *, statistics: bool) -> tuple[Tokens, Statistics | None]:
        """Run the block's self-attention."""
        self.found.append(self.block.self_attn.of_first(self.block.layer_norm1(tokens.x), tokens.spans))
        return self.block.attend(tokens, statistics=statistics)

    def finish(self, tokens: Tokens, context: None) -> Tokens:
        """Run the block's MLP."""
        return self.block.finish(tokens, context)


class Encoder(nn.Module):
    """Only the list of blocks; it gives the parameters their names."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))


class VisionEmbeddings(nn.Module):
    """Patches, class token and positions."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)

    def forward(self, images: Tensor) -> Tokens:
        """Embed normalised images [I, 3, H, W] as I samples of N + 1 tokens."""
        patches = self.patch_embedding(images.to(self.patch_embedding.weight.dtype))
        patches = patches.flatten(2).transpose(1, 2)  # [I, N, C]
        x = torch.cat([self.class_embedding.expand(len(images), 1, -1), patches], 1) + self.position_embedding.weight
        # The residual stream runs in the compute type, so that autocast casts weights only, never activations.
        return Tokens.pack(x.to(patches.dtype).flatten(0, 1), Spans.of([x.shape[1]] * len(images)), prefix=1)


class VisionModel(nn.Module):
    """CLIP's image encoder (parameters; models/tower.py runs the blocks)."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # spelled as in the checkpoints
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class TextEmbeddings(nn.Module):
    """Words and positions."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor, spans: Spans, dtype: torch.dtype) -> Tokens:
        """Embed packed ids [T], each text opening with its start token and ending with its EOT, both protected."""
        here, position = spans.here(ids.device), spans.place(ids.device)
        x = self.token_embedding(ids) + self.position_embedding(position)
        protected = (position == 0) | (here == spans.spread(spans.end_index(ids.device)))
        return Tokens.pack(x.to(dtype), spans, protected, causal=True, prefix=1)


class TextModel(nn.Module):
    """CLIP's text encoder (parameters; models/tower.py runs the blocks)."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


@dataclass(frozen=True, kw_only=True)
class ClipOutput(Output):
    """What a forward pass gives: logits [S, I] are the scaled similarities of all texts and images.

    image_embeds [I, d] and text_embeds [S, d] have length one; encoded [S, C] are the EOT states.
    """

    image_embeds: Tensor
    text_embeds: Tensor


class ClipForRetrieval(ImageTextModel):
    """Two encoders into one space, where an image and its texts lie close together."""

    family = "clip"
    task = "retrieval"
    text_protected = 2  # start token and EOT
    released_least = 2

    @classmethod
    def released_prunes(cls, site: Site) -> bool:
        """Leave texts out: they are pruned only until the batch's last EOT would move, which ours follows instead."""
        return site.name == VISION

    def __init__(self, config: CLIPConfig, **pruning: Any) -> None:
        super().__init__(config, **pruning)
        text: Any = config.text_config
        vision: Any = config.vision_config
        self.text_model = TextModel(text)
        self.vision_model = VisionModel(vision)
        self.visual_projection = nn.Linear(vision.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(text.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value or 0.0)))

    def run(self, inputs: Inputs) -> ClipOutput:
        """Compare texts, each from its start token to its EOT (`pack_text`), with images.

        Probes are the attention of the class tokens in the last third of the vision layers.
        """
        found: list[Tensor] | None = [] if inputs.probe else None
        seen, vision = self.encode_images(inputs.images, learn=inputs.learn, found=found)
        read, words = self.encode_text(inputs.text, inputs.text_lengths, learn=inputs.learn)
        image_embeds, text_embeds = self.image_embeds(seen), self.text_embeds(read)
        rows = torch.arange(len(inputs.images), device=inputs.images.device)
        return ClipOutput(
            logits=self._similarity(text_embeds, image_embeds),
            encoded=read.last(),
            **passed(seen, vision, words, inputs),
            probes=tuple(Probe(probability, rows) for probability in found or ()),
            image_embeds=image_embeds,
            text_embeds=text_embeds,
        )

    def encode_images(
        self, images: Tensor, *, learn: bool = False, found: list[Tensor] | None = None
    ) -> tuple[Tokens, TowerOutput]:
        """Encode normalised images [I, 3, H, W]: the tokens after the last norm, and what the tower did.

        `found` collects what the class tokens attend to, [I, H, N] for each layer of the last third.
        """
        model = self.vision_model
        tokens = model.embeddings(images)
        tokens = tokens.with_x(model.pre_layrnorm(tokens.x).to(tokens.x.dtype))
        blocks: list[Any] = list(model.encoder.layers)
        if found is not None:
            shallow = len(blocks) - max(1, len(blocks) // 3)
            blocks[shallow:] = [Probed(block, found) for block in blocks[shallow:]]
        vision = self.run_tower(VISION, blocks, tokens, None, learn=learn, whole=found is not None)
        return vision.tokens.with_x(model.post_layernorm(vision.tokens.x)), vision

    def encode_text(
        self, text: Tensor, text_lengths: Sequence[int], *, learn: bool = False
    ) -> tuple[Tokens, TowerOutput]:
        """Encode texts, packed as in `forward`: the tokens after the last norm, and what the tower did."""
        model = self.text_model
        tokens = model.embeddings(text, Spans.of(text_lengths), _compute_type(model.embeddings.token_embedding.weight))
        words = self.run_tower(TEXT, model.encoder.layers, tokens, None, learn=learn)
        return words.tokens.with_x(model.final_layer_norm(words.tokens.x)), words

    def image_embeds(self, images: Tokens) -> Tensor:
        """Project encoded images into the common space: [I, d] of length one."""
        return normalize(self.visual_projection(images.first()).float(), dim=-1)

    def text_embeds(self, text: Tokens) -> Tensor:
        """Project the EOT states of encoded texts into the common space: [S, d] of length one."""
        return normalize(self.text_projection(text.last()).float(), dim=-1)

    def _similarity(self, text_embeds: Tensor, image_embeds: Tensor) -> Tensor:
        # Similarities lie close together and are scaled up to a hundredfold: half precision would blur them.
        with torch.autocast(image_embeds.device.type, enabled=False):
            return self.logit_scale.float().exp() * text_embeds @ image_embeds.t()  # [S, I]

    def _text_macs(
        self, counts: Sequence[analytic.LayerCounts], image_tokens: Tensor, text_lengths: Tensor
    ) -> analytic.Macs:
        config = self.config
        text = config.text_config
        # CLIP's text blocks are built as its vision blocks are; half of a causal map is masked, but all is computed.
        shape = analytic.TowerShape("text_model.encoder.layers", text.hidden_size, text.intermediate_size)
        macs = analytic.vision_layers(shape, counts, self.alignment_tokens)
        for name, tower in (("visual", config.vision_config), ("text", text)):
            macs[f"{name}_projection"] = torch.full_like(text_lengths, tower.hidden_size * config.projection_dim)
        return macs


def _compute_type(weight: Tensor) -> torch.dtype:
    """Return the type that linear maps give: autocast's, else that of the weights."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def pack_text(ids: Tensor, eos_token_id: int) -> tuple[Tensor, list[int]]:
    """Cut every row of padded ids [S, N] after its first EOT and lay them end to end: (text [T], lengths).

    An eos_token_id of 2 means the largest id of a row, as in HF's oldest configurations. Raises ValueError where a row
    has no EOT.
    """
    ends = ids == (ids.amax(1, keepdim=True) if eos_token_id == LEGACY_EOS else eos_token_id)
    if not bool(ends.any(1).all()):
        raise ValueError(f"a text has no end-of-text token {eos_token_id}; give the ids as CLIP's tokenizer makes them")
    lengths = ends.int().argmax(1) + 1  # [S]
    inside = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    return ids[inside], lengths.tolist()

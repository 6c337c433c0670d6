"""What every model is to the rest of madtp: sites where tokens may go, a pass over inputs, and what that pass cost.

Shapes: I images, S samples (texts), T packed tokens, N tokens of one image, K alignment tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from madtp_cli.alignment import Alignment
from madtp_cli.costs import analytic
from madtp_cli.models.limits import Limits, limits_of
from madtp_cli.models.sites import Site
from madtp_cli.models.tower import LayerTrace, PruningPlan, TowerOutput, run_tower
from madtp_cli.tokens import Tokens

ImageIndex = Sequence[int] | Sequence[Sequence[int]]  # the image of every text, or its images


@dataclass(frozen=True)
class Inputs:
    """What a pass reads, and what it keeps beside its answers; tasks that read more have a record that adds to it.

    images [I, 3, H, W], normalised; text [T], the ids of S texts, end to end; image_index names every text's image(s).
    learn: compute what the alignment losses need. probe: keep the attention that text pays to images.
    """

    images: Tensor
    text: Tensor
    text_lengths: Sequence[int]
    image_index: Any  # an ImageIndex of one kind, which every task knows
    learn: bool = field(default=False, kw_only=True)
    probe: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Probe:
    """The attention that Q queries pay to one image each: probability [Q, H, N] (`prefix` tokens, then the patches) and
    the image's row [Q].
    """

    probability: Tensor
    image: Tensor
    prefix: int = 1


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a pass gives for S texts over I images, whatever the task.

    logits [R, n]: R distributions that a pruned model is compared with its dense self on; encoded [S, C] the states
    that logits come from; images the image encoder's tokens after its last norm; traces what happened at every site;
    text_lengths [S] as given; image_index the image(s) of every text; aligned (images, text), each [S, K, d], where
    asked for; probes the attention from text to image, where asked for.
    """

    logits: Tensor
    encoded: Tensor
    images: Tokens
    traces: Mapping[str, tuple[LayerTrace, ...]]
    text_lengths: Sequence[int]
    image_index: ImageIndex
    aligned: tuple[Tensor, Tensor] | None = None
    probes: tuple[Probe, ...] = ()


class PrunedModel(nn.Module):
    """Hold what all models share: how they prune (`plan`, `strength`; zero is the dense model) and what they cost.

    A subclass lists its sites, runs a pass in `run`, and prices it in `macs_of_counts`.
    """

    family: ClassVar[str]
    task: ClassVar[str]
    images_per_text: ClassVar[int] = 1
    image_prefix: ClassVar[int] = 1
    """Tokens before an image's patches: a class token, or none."""
    takes: ClassVar[type[Inputs]] = Inputs
    """The record of what `run` reads."""
    tied: ClassVar[Mapping[str, str]] = {}
    """Tensors that are copies of others, by the name of the copy: files may leave them out."""
    image_encoder: ClassVar[str] = "vision_model"
    """The module that encodes images, which a model from scratch can take from another checkpoint."""
    released_least: ClassVar[int] = 1
    """The fewest tokens of a sample, prefix apart, that the released code prunes a layer to."""

    def __init__(
        self, config: Any, *, alignment: Alignment | None = None, plan: PruningPlan | None = None, strength: float = 0.0
    ) -> None:
        super().__init__()
        self.config = config
        self.plan = plan
        self.strength = strength
        self.alignment = alignment

    @classmethod
    def sites_of(cls, config: Any) -> tuple[Site, ...]:
        """List the sites of a model of this configuration, in the order in which tokens meet them."""
        raise NotImplementedError

    @classmethod
    def released_prunes(cls, site: Site) -> bool:
        """Tell whether the released code prunes at a site."""
        return site.prunes

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of this model."""
        return self.sites_of(self.config)

    @property
    def limits(self) -> Limits:
        """What this model can read."""
        return limits_of(self.config)

    @property
    def image_tokens(self) -> int:
        """Tokens of one image before any pruning."""
        raise NotImplementedError

    def dense_tokens(self, site: Site, text_lengths: Sequence[int]) -> Sequence[int]:
        """Return how many tokens each text has at a site before any pruning; images are all alike, and count once."""
        return [self.image_tokens] if site.reads == "image" else text_lengths

    def forward(self, images: Tensor | Inputs, *fields: Any, **named: Any) -> Any:
        """Run a pass over an `Inputs` record, or over its fields, as in `model(**processor(images, texts))`."""
        if isinstance(images, self.takes):
            return self.run(images)
        return self.run(
            self.takes(**vars(images)) if isinstance(images, Inputs) else self.takes(images, *fields, **named)
        )

    def run(self, inputs: Any) -> Output:
        """Run a pass over what the model takes."""
        raise NotImplementedError

    def run_tower(
        self,
        site: str,
        blocks: Any,
        tokens: Tokens,
        context: Any,
        *,
        learn: bool = False,
        prunes: bool = True,
        whole: bool = False,
    ) -> TowerOutput:
        """Run the blocks of a site as this model prunes."""
        return run_tower(
            site,
            blocks,
            tokens,
            context,
            plan=self.plan if prunes else None,
            strength=self.strength,
            alignment=self.alignment,
            learn=learn,
            whole=whole,
        )

    def macs(self, output: Output) -> analytic.Macs:
        """Return the exact inference MACs of every sample with its own images, by module path: int64 [S] each."""
        return self.macs_of_counts(
            {site: self.counts(trace) for site, trace in output.traces.items()},
            output.images.spans.lengths,
            output.image_index,
            output.text_lengths,
        )

    def dense_macs(self, text_lengths: Sequence[int]) -> analytic.Macs:
        """Return what the unpruned model costs for texts of these lengths, by module path: int64 [S] each."""
        counts = {}
        for site in self.sites:
            tokens = self.dense_tokens(site, text_lengths)
            counts[site.name] = [analytic.layer_counts(tokens, tokens)] * site.layers
        index = [[0] * self.images_per_text] * len(text_lengths)
        return self.macs_of_counts(counts, [self.image_tokens], index, text_lengths)

    def dense_gmacs(self, text_lengths: Sequence[int]) -> float:
        """Return the unpruned model's mean cost for texts of these lengths, in 1e9 multiply-adds."""
        return analytic.total(self.dense_macs(text_lengths)).double().mean().item() / 1e9

    def macs_of_counts(
        self,
        counts: Mapping[str, Sequence[analytic.LayerCounts]],
        image_tokens: Sequence[int],
        image_index: ImageIndex,
        text_lengths: Sequence[int],
    ) -> analytic.Macs:
        """Count S samples by the tokens that entered and left every layer of every site.

        image_tokens are those that left an image's last layer; int64 [S] each, by module path. The paths of what a
        site's layers cost begin with the site's name.
        """
        raise NotImplementedError

    def counts(self, trace: Sequence[LayerTrace]) -> list[analytic.LayerCounts]:
        """Return what the cost model reads of a trace."""
        guided = self.plan is not None and "guidance" in self.plan.pruner.needs
        return [
            analytic.layer_counts(t.spans.lengths, t.leaving, prunes=t.prunes, guided=t.prunes and guided)
            for t in trace
        ]

    @property
    def alignment_tokens(self) -> int:
        """How many alignment tokens guide the pruning."""
        return len(self.alignment.tokens) if self.alignment is not None else 0


def prunes(model: PrunedModel) -> bool:
    """Tell whether a model drops any tokens as it is set."""
    return model.plan is not None and model.strength > 0


def initialise(model: nn.Module) -> None:
    """Give a model that trains from scratch its random weights: maps scaled by fan-in, small embeddings."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.8 * module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

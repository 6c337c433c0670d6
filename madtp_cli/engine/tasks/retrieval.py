"""Which image does a caption describe, and which caption an image?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from madtp_cli.data.batch import Batch, RetrievalBatch
from madtp_cli.engine.tasks.base import Asked, Normalisation, PlainTask, Scores
from madtp_cli.models.base import Inputs
from madtp_cli.tokens import Spans, Tokens

Metric = Callable[[Tensor, Tensor, Sequence[int]], Mapping[str, float]]
# Pairs that go through the matching head at once while a gallery is re-ranked.
PAIRS = 256


class Retrieval(PlainTask):
    """Contrastive learning of images and captions, scored by `metric(scores [I, S], scores [I, S], image of text)`: the
    first ranks texts by image, the second images by text.

    Models that match pairs (BLIP) learn to, with the hardest wrong partners of the batch, and re-rank each query's
    best `k`; others (CLIP) rank by similarity alone.
    """

    name = "retrieval"
    score = "mean"

    def __init__(self, metric: Metric, normalise: Normalisation | None = None, *, k: int = 0) -> None:
        super().__init__(normalise)
        self.metric = metric
        self.k = k

    def inputs(self, model: Any, batch: RetrievalBatch, read: Inputs, asked: Asked) -> Inputs:
        """In training, match true and hard wrong pairs too, the student's in a teacher."""
        if not (asked.training and hasattr(model, "match")):
            return read
        pairs = partial(_pairs, read.image_index) if asked.like is None else asked.like.itm.pairs
        matched: Inputs = model.takes(**vars(read), itm_pairs=pairs)
        return matched

    def losses(self, output: Any, batch: RetrievalBatch) -> dict[str, Tensor]:
        """Return the contrastive loss, both ways, and the matching loss where pairs were matched."""
        truth = torch.zeros_like(output.logits)  # [S, I]
        truth[torch.arange(len(truth)), torch.tensor(output.image_index)] = 1
        by_image = truth.T / truth.T.sum(1, keepdim=True).clamp_min(1)
        losses = {"task": (cross_entropy(output.logits, truth) + cross_entropy(output.logits.T, by_image)) / 2}
        if (matching := getattr(output, "itm", None)) is not None:
            true = torch.tensor([int(output.image_index[text] == image) for text, image in matching.pairs])
            losses["matching"] = cross_entropy(matching.logits, true.to(truth.device))
        return losses

    def compared(self, output: Any) -> list[Tensor]:
        """Return similarities both ways, and how pairs match."""
        matching = getattr(output, "itm", None)
        return [output.logits, output.logits.T] + ([] if matching is None else [matching.logits])

    def answers(self, model: Any, batch: Batch, output: Any) -> list[str]:
        """Say how similar each text and its own image are (cosine), and whether they match where the model can tell."""
        cosine = output.text_embeds.float() @ output.image_embeds.float().T  # [S, I]
        index = batch.image_index.tolist()
        said = [f"similarity {cosine[text, image].item():.2f}" for text, image in enumerate(index)]
        if not hasattr(model, "match"):
            return said
        ids = batch.text.to(cosine.device)
        match = model.match(output.images, ids, batch.text_lengths, list(enumerate(index))).softmax(-1)[:, 1]
        return [f"{text}, match {value:.0%}" for text, value in zip(said, match.tolist(), strict=True)]

    def references(self, batch: RetrievalBatch) -> list[str]:
        """Name each text's image."""
        return [batch.image_ids[image] for image in batch.image_index.tolist()]

    def scorer(self, model: Any, *, final: bool = False) -> _Scorer:
        """Start scoring a split."""
        return _Scorer(model, self.metric, self.k if hasattr(model, "match") else 0)


def _pairs(image_index: Sequence[int], logits: Tensor) -> list[tuple[int, int]]:
    """Choose the pairs to match: the true ones, and a hard wrong partner of each text and image."""
    return [*enumerate(image_index), *hard_negatives(logits, image_index)]


class _Scorer:
    """Holds a whole gallery; image tokens, which re-ranking needs, on the CPU."""

    def __init__(self, model: Any, metric: Metric, k: int) -> None:
        self.model = model
        self.metric = metric
        self.k = k
        self.image_rows: dict[str, int] = {}
        self.image_embeds: list[Tensor] = []
        self.image_states: list[Tensor] = []
        self.text_embeds: list[Tensor] = []
        self.texts: list[Tensor] = []
        self.image_of_text: list[int] = []

    def add(self, batch: RetrievalBatch, output: Any) -> None:
        """Keep what is new."""
        spans = output.images.spans
        for row, name in enumerate(batch.image_ids):
            if name in self.image_rows:
                continue
            self.image_rows[name] = len(self.image_rows)
            self.image_embeds.append(output.image_embeds[row])
            if self.k:
                start = spans.starts[row]
                self.image_states.append(output.images.x[start : start + spans.lengths[row]].cpu())
        self.text_embeds.append(output.text_embeds)
        self.texts += batch.text.split(batch.text_lengths)
        self.image_of_text += [self.image_rows[batch.image_ids[row]] for row in output.image_index]

    def scores(self) -> Scores:
        """Rank the gallery both ways."""
        similarity = torch.stack(self.image_embeds).float() @ torch.cat(self.text_embeds).float().T  # [I, S]
        by_image = self._reranked(similarity)
        by_text = self._reranked(similarity.T, texts_first=True).T
        names, best = list(self.image_rows), by_text.argmax(0).tolist()
        return Scores(
            dict(self.metric(by_image, by_text, self.image_of_text)),
            [names[row] for row in best],
            [[value] for value in by_text.amax(0).tolist()],
            right=[row == image for row, image in zip(best, self.image_of_text, strict=True)],
        )

    def _reranked(self, similarity: Tensor, texts_first: bool = False) -> Tensor:
        """Put each query's k most similar partners on top, in order of similarity plus how well they match."""
        k = min(self.k, similarity.shape[1])
        if not k:
            return similarity.cpu()
        value, partner = similarity.topk(k, dim=1)  # [Q, k]
        queries = torch.arange(len(similarity)).repeat_interleave(k).tolist()
        partners = partner.flatten().tolist()
        pairs = list(zip(queries, partners, strict=True) if texts_first else zip(partners, queries, strict=True))
        matched = torch.cat([self._match(pairs[row : row + PAIRS]) for row in range(0, len(pairs), PAIRS)])
        # Partners that are not compared keep their order below all that are: in float64, where none tie by rounding.
        ranked = similarity.cpu().double() - 1e4
        return ranked.scatter(1, partner.cpu(), (value + matched.view(-1, k).to(value)).cpu().double())

    def _match(self, pairs: Sequence[tuple[int, int]]) -> Tensor:
        """Return how well (text, image) pairs match, the logit of true: [P]."""
        device = self.text_embeds[0].device
        rows = {image: row for row, image in enumerate(dict.fromkeys(image for _, image in pairs))}
        states = [self.image_states[image] for image in rows]
        images = Tokens.pack(torch.cat(states).to(device), Spans.of([len(state) for state in states]))
        numbers = {text: row for row, text in enumerate(dict.fromkeys(text for text, _ in pairs))}
        texts = [self.texts[text] for text in numbers]
        matched: Tensor = self.model.match(
            images,
            torch.cat(texts).to(device),
            [len(text) for text in texts],
            [(numbers[text], rows[image]) for text, image in pairs],
        )
        return matched[:, 1].float()


@torch.no_grad()
def hard_negatives(
    logits: Tensor, image_index: Sequence[int], generator: torch.Generator | None = None
) -> list[tuple[int, int]]:
    """Draw a wrong image for every text, then a wrong text for every image, by similarity (as ALBEF and BLIP do).

    logits [S, I] are `RetrievalOutput.logits`. A text (image) that has no other image (text) in the batch goes without.
    """
    texts, images = logits.shape
    index = torch.tensor(image_index)
    true = index[:, None] == torch.arange(images)  # [S, I]
    # A step whose similarities are no numbers is reported by its loss; drawing must get there.
    hidden = logits.float().cpu().nan_to_num().masked_fill(true, float("-inf"))
    pairs = []
    for row in range(texts):
        if not true[row].all():
            pairs.append((row, int(hidden[row].softmax(0).multinomial(1, generator=generator))))
    for image in range(images):
        if not true[:, image].all():
            pairs.append((int(hidden[:, image].softmax(0).multinomial(1, generator=generator)), image))
    return pairs

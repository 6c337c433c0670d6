"""Training-only heads that teach a model from scratch what a pretrained one knows: see docs/shapes.md.

Without them a small model stays at chance on counting sentences for minutes, and nothing trains the class token. They
are thrown away when training ends.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from madtp_cli.models.base import Output

COUNTS = 7  # none to six objects
ATTRIBUTES = 9  # six colours, three shapes
PATCH_CLASSES = 19  # no object, or one of three shapes in six colours


class AuxiliaryHeads(nn.Module):
    """Predict counts from [ENC] and from the class token, and what lies under every patch."""

    def __init__(self, width: int, text_width: int, weights: Mapping[str, float]) -> None:
        """Build the heads whose weight is not zero: text_counts, patches, image_counts."""
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight}
        sizes = {
            "text_counts": (text_width, 2 * COUNTS),
            "patches": (width, PATCH_CLASSES),
            "image_counts": (width, ATTRIBUTES * COUNTS),
        }
        self.heads = nn.ModuleDict({name: nn.Linear(*sizes[name]) for name in self.weights})

    def forward(self, output: Output, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted losses of a dense forward pass."""
        tokens = output.images
        states = {
            "text_counts": lambda: output.encoded,
            "patches": lambda: tokens.x.unflatten(0, (len(tokens.spans), -1))[:, tokens.prefix :],
            "image_counts": lambda: tokens.first(),
        }
        losses = {}
        for name, weight in self.weights.items():
            classes = PATCH_CLASSES if name == "patches" else COUNTS
            scores = self.heads[name](states[name]()).float()
            losses[name] = weight * cross_entropy(
                scores.reshape(-1, classes), labels[name].reshape(-1).clamp_max(classes - 1), ignore_index=-1
            )
        return losses

"""Whether exported files are handed over: what may differ from PyTorch, and how far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from madtp_cli.errors import ExportError
from madtp_cli.export.check import CLOSE, Comparison
from madtp_cli.results_export import ExportCheck

# The largest difference of numbers, the points of accuracy that may be lost, and the least shares of samples that keep
# the same tokens and say the same. Scores that tie with a threshold to the last bit may fall on either side of it; in
# fp16, to the third decimal.
ATOL: Mapping[str, float] = {"fp32": 1e-3, "fp16": 5e-2}
MAX_LOSS: Mapping[str, float] = {"fp32": 1.0, "fp16": 2.0}
LEAST_KEPT: Mapping[str, float] = {"fp32": 0.99, "fp16": 0.5}
LEAST_ANSWERS: Mapping[str, float] = {"fp32": 0.99, "fp16": 0.95}
_ROUNDING = 1e-9  # points: 0.98 - 0.97 is a little more than 0.01


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What files of a format and a precision may differ by; None for what is usual there."""

    format: str
    precision: str
    atol: float | None = None
    max_loss: float | None = None

    @property
    def most(self) -> float:
        """The largest difference of numbers."""
        return ATOL[self.precision] if self.atol is None else self.atol

    @property
    def points(self) -> float:
        """How much lower the score may be, in hundredths."""
        return MAX_LOSS[self.precision] if self.max_loss is None else self.max_loss

    @property
    def hint(self) -> str:
        """What to try where files differ by more."""
        other = "another --opset, or --format torch" if self.format != "torch" else "--format onnx"
        return "try --precision fp32" if self.precision == "fp16" else f"try {other}"


def judged(found: Comparison, tolerance: Tolerance, against: str = "pytorch") -> ExportCheck:
    """Accept what agrees with PyTorch; raises ExportError with the numbers for what does not."""
    if faults := list(_faults(found, tolerance)):
        raise ExportError(
            f"the {tolerance.format} files do not agree with PyTorch on {found.samples} samples: {'; '.join(faults)}; "
            f"nothing was written; {tolerance.hint}"
        )
    assert found.max_difference is not None
    return ExportCheck(
        samples=found.samples,
        same_kept=found.same_kept,
        same_answers=found.same_answers,
        same_embeds=found.same_embeds,
        max_difference=found.max_difference,
        atol=tolerance.most,
        max_loss=tolerance.points,
        against=against,
    )


def _faults(found: Comparison, tolerance: Tolerance) -> Iterator[str]:
    precision = tolerance.precision
    if found.not_finite:
        yield f"{', '.join(found.not_finite)} {'have' if len(found.not_finite) > 1 else 'has'} numbers not finite"
    if found.max_difference is None:
        yield "no sample keeps the same tokens, so that no numbers could be compared"
    elif not found.max_difference <= tolerance.most:
        yield f"numbers differ by up to {found.max_difference:.2g}, at most {tolerance.most:g} is allowed (--atol)"
    for what, share, least in (
        ("keep the same tokens", found.same_kept, LEAST_KEPT[precision]),
        ("give the same answers", found.same_answers, LEAST_ANSWERS[precision]),
        (f"have embeddings within a cosine of {CLOSE}", found.same_embeds, LEAST_ANSWERS[precision]),
    ):
        if share is not None and share < least:
            yield f"{share:.1%} of the samples {what}, at least {least:.0%} must"


def check_loss(check: ExportCheck, samples: int, tolerance: Tolerance) -> None:
    """Refuse files whose answers to `samples` samples are less right than PyTorch's; raises ExportError."""
    if check.score is None:
        return
    own, exported = check.scores["pytorch"], check.scores["exported"]
    lost = 100 * (own - exported)
    if lost <= check.max_loss + _ROUNDING:
        return
    fixed = check.against != "pytorch"
    hint = "try --mode dynamic, which keeps tokens as the checkpoint does" if fixed else tolerance.hint
    raise ExportError(
        f"the {tolerance.format} files are less accurate than PyTorch on {samples} samples: {check.score} is "
        f"{100 * exported:.4g}% instead of {100 * own:.4g}%, {lost:.3g} points less, at most {check.max_loss:g} "
        f"allowed (--max-loss; one sample is {100 / samples:.2g}); nothing was written; {hint}"
    )

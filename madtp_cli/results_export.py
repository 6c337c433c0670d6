"""What `export` reports: a record like those of results.py, which has no room for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from madtp_cli.results import Gmacs, HubUpload, Result


@dataclass(frozen=True, kw_only=True)
class ExportFile:
    """One file of an export folder."""

    name: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ExportCheck:
    """Exported files beside PyTorch on real samples.

    same_kept, same_answers, same_embeds: shares of the samples that keep the same tokens, give the same answers, and
    have embeddings that point the same way (cosine of 0.95 or more); the latter two null for models without.
    max_difference: of all numbers, over samples that kept the same tokens; atol is what it may be. scores: `score` of
    PyTorch as it prunes (`pytorch`) and of the files (`exported`), which may be max_loss points (hundredths) lower.
    against: what tokens, answers and numbers are held against, PyTorch as it prunes (`pytorch`) or with the same fixed
    counts (`pytorch_fixed`); cost_ratio: the mean cost of those over that of the counts of its own, on the samples.
    """

    samples: int
    same_kept: float
    same_answers: float | None
    max_difference: float
    atol: float
    score: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    same_embeds: float | None = None
    max_loss: float = 0.0
    against: str = "pytorch"
    cost_ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class ExportResult(Result):
    """What `export` wrote, how it was checked, and how fast it is.

    format is onnx, torch or openvino, and runtime what ran it; text_tokens and batch_size are null where a file takes
    any number. tokens_kept: mean tokens leaving each layer, by tower. latency_ms: the p50 of `dense` and `pruned`, by
    batch size, in that runtime; speedup is their ratio. `hub` is what went along to the Hugging Face hub.
    """

    checkpoint: str
    output: str
    format: str
    runtime: str
    mode: str
    precision: str
    opset: int | None
    text_tokens: int | None
    batch_size: int | None
    files: tuple[ExportFile, ...]
    check: ExportCheck
    gmacs: Gmacs
    tokens_kept: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    latency_ms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    speedup: Mapping[str, float] = field(default_factory=dict)
    threads: int | None = None
    seconds: float = 0.0
    hub: HubUpload | None = None

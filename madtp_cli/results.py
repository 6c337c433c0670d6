"""What commands report: frozen records and their JSON documents, defined here and nowhere else.

A document grows, its names never change. `schema_version` rises when a reader has to know. Costs are in 1e9
multiply-adds of inference for one sample (`gmacs`), reductions are shares in 0..1, names carry their units.
Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any, TypeVar

from madtp_cli import __version__

SCHEMA_VERSION = 1
_HEADER = ("schema_version", "command", "versions", "device", "dtype", "seed")
_PACKAGES = ("torch", "transformers", "accelerate", "numpy")


def versions() -> dict[str, str]:
    """Return the versions that results depend on, without importing what they belong to."""
    found = {"madtp": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


AnyResult = TypeVar("AnyResult", bound="Result")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What every document says: who made it, with what, on what."""

    command: str
    device: str | None = None
    dtype: str | None = None
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=versions)
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, what every document has first."""
        data = asdict(self)
        return {**{name: data[name] for name in _HEADER}, **data}

    def to_json(self) -> str:
        """Return one JSON document; raises ValueError naming a value that is not a finite number."""
        return _dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls: type[AnyResult], text: str | bytes) -> AnyResult:
        """Read a document back; keys of a newer madtp are skipped, a missing or wrong one raises ValueError."""
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_json(text)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What was asked of the cost and what was reached on the test split."""

    target_reduction: float
    reached_reduction: float
    met: bool
    tolerance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a model is, by batch size: the p50 and p90 of a batch's runs, mean over the batches that were timed,
    `latency_runs` calls in all; samples per second at the p50; the most memory a call holds beside weights and inputs.

    `macs_ratio` (of exactly these batches) and `time_ratio` are to the dense model of the same run, `efficiency` is
    the share of its time saved over the share of its multiply-adds saved. The dense model has none of them.
    """

    latency_ms: Mapping[str, float] = field(default_factory=dict)
    latency_p90_ms: Mapping[str, float] = field(default_factory=dict)
    latency_runs: Mapping[str, int] = field(default_factory=dict)
    samples_per_second: Mapping[str, float] = field(default_factory=dict)
    peak_mib: Mapping[str, float] = field(default_factory=dict)
    macs_ratio: Mapping[str, float] = field(default_factory=dict)
    time_ratio: Mapping[str, float] = field(default_factory=dict)
    efficiency: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Side(Speed):
    """One of the models of a comparison; `tokens_kept` is the share of tokens that leave a layer, by tower."""

    metrics: Mapping[str, float]
    gmacs: float
    params: int
    tokens_kept: Mapping[str, float] = field(default_factory=dict)
    size_mib: float | None = None


@dataclass(frozen=True, kw_only=True)
class Gmacs:
    """Mean cost of a sample, without and with pruning."""

    dense: float
    pruned: float
    reduction: float


@dataclass(frozen=True, kw_only=True)
class LayerTokens:
    """Tokens that leave one layer, over the samples seen; images count one by one. `tokens_entered` is the most that
    entered the tower.
    """

    tower: str
    layer: int
    tokens_mean: float
    tokens_min: int
    tokens_max: int
    tokens_entered: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModuleCost:
    """Cost and parameters of one part of the model, and its share (0..1) of the time of batch 1, where it was measured.

    What the shares leave to 1 is time between the parts: choosing tokens, moving them together, residuals.
    """

    name: str
    gmacs: float
    params: int
    time_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class SampleCost:
    """What one sample cost; tokens that entered each of its towers, and that left every layer.

    A pair of images is two towers, `vision_left` and `vision_right`.
    """

    id: str
    gmacs: Gmacs
    tokens_entered: Mapping[str, int]
    tokens_kept: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """Cost of one pass through a part of the model, and how often a cost that is put together counts it."""

    name: str
    gmacs: Gmacs
    times: int = 1


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """One `--fail-if`: what was asked, what was measured and whether it was hit; with several checkpoints, of which."""

    expression: str
    value: float
    hit: bool
    name: str | None = None
    limit: float | None = None
    checkpoint: str | None = None


@dataclass(frozen=True, kw_only=True)
class PruneResult(Result):
    """What `prune` and `finetune` did; `checkpoint` is null for a dry run, `smoke` means two samples and one step.
    `broken_images` names, by split, images that were missing or unreadable and left out.

    `dtype`, `threads`, `processor` and `attention_backend` are what metrics and latency were taken with,
    `training_precision` what the steps ran in; `samples` counts those of the test split that were measured. `report` is
    the page to read, null where it could not be made.
    """

    checkpoint: str | None
    report: str | None = None
    samples: int | None = None
    budget: Budget | None = None
    dense: Side | None = None
    pruned: Side | None = None
    layers: tuple[LayerTokens, ...] = ()
    seconds: float = 0.0
    training_precision: str | None = None
    processor: str | None = None
    threads: int | None = None
    attention_backend: str | None = None
    dry_run: bool = False
    smoke: bool = False
    broken_images: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvaluateResult(Result):
    """How good and how costly a checkpoint is on a split; `threads` and `attention_backend` are what it ran with."""

    checkpoint: str
    split: str
    samples: int
    metrics: Mapping[str, float]
    gmacs: Gmacs
    predictions: str | None = None
    threads: int | None = None
    attention_backend: str | None = None
    broken_images: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of `profile --visualize`: its file, the sample, what was answered, what was right, what it cost."""

    file: str
    id: str
    answer: str | None
    reference: str | None
    gmacs: Gmacs


@dataclass(frozen=True, kw_only=True)
class Profiled(Speed):
    """What one model costs, part by part, layer by layer and sample by sample, and how fast it is.

    `dense` is the same model without pruning, where it was timed; of several checkpoints that cost the same without
    pruning, one was.
    """

    gmacs: Gmacs
    params: int
    size_mib: float | None = None
    modules: tuple[ModuleCost, ...] = ()
    layers: tuple[LayerTokens, ...] = ()
    samples: tuple[SampleCost, ...] = ()
    tokens_kept: Mapping[str, float] = field(default_factory=dict)
    dense: Side | None = None
    uncounted: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NamedProfile(Profiled):
    """One more checkpoint that was measured in the same run, on the samples of the first."""

    name: str
    checkpoint: str


@dataclass(frozen=True, kw_only=True)
class ProfileResult(Result, Profiled):
    """What a checkpoint costs and how fast it is; `others` are further ones, where several were named.

    By convention `sample`, costs are those of one sample, and `passes` are what may come on top, each. By `published`
    they are put together as in papers: `composition` adds up to gmacs, and `published_gmacs` is what is compared with.
    `recipe` is the one whose model was profiled, where it was not a checkpoint's own; `name` is short for `checkpoint`.
    """

    checkpoint: str | None
    name: str | None = None
    recipe: str | None = None
    convention: str = "sample"
    composition: tuple[PassCost, ...] = ()
    published_gmacs: float | None = None
    passes: tuple[PassCost, ...] = ()
    dense_latency_ms: Mapping[str, float] = field(default_factory=dict)
    counter: str = "analytic"
    attention_backend: str | None = None
    threads: int | None = None
    batch_size: int | None = None
    text_tokens: int | None = None
    baseline: Side | None = None
    others: tuple[NamedProfile, ...] = ()
    pictures: tuple[Picture, ...] = ()
    thresholds: tuple[Threshold, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file of an upload, by its name in the repository."""

    path: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class HubUpload:
    """What goes to a repository of the Hugging Face hub, or would; `card` is the header of its model card."""

    repository: str
    url: str
    private: bool
    files: tuple[HubFile, ...]
    card: Mapping[str, Any]
    token_found: bool
    uploaded: bool = False


@dataclass(frozen=True, kw_only=True)
class HubResult(Result):
    """A checkpoint folder that was uploaded, or would be."""

    checkpoint: str
    hub: HubUpload


@dataclass(frozen=True, kw_only=True)
class RecipeEntry:
    """One shipped recipe; `summary` is its first line."""

    name: str
    path: str
    summary: str


@dataclass(frozen=True, kw_only=True)
class RecipeListResult(Result):
    """The recipes that come with the package."""

    recipes: tuple[RecipeEntry, ...]


@dataclass(frozen=True, kw_only=True)
class RecipeResult(Result):
    """One recipe: where it is, whether it is valid, and every setting spelled out."""

    path: str
    valid: bool
    faults: tuple[str, ...] = ()
    recipe: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One line of `evaluate --predictions`; `tokens_kept` lists the tokens leaving every layer, by tower."""

    id: str
    prediction: Any
    logits: tuple[float, ...]
    gmacs: float
    tokens_kept: Mapping[str, tuple[int, ...]]

    def to_json(self) -> str:
        """Return one line of JSON; raises ValueError naming a value that is not a finite number."""
        return _dumps(asdict(self))


def _dumps(data: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(data, indent=indent, allow_nan=False, ensure_ascii=False)
    except ValueError:
        names = ", ".join(_not_finite(data, ""))
        raise ValueError(f"JSON has no place for values that are not finite numbers: {names}") from None


def _not_finite(data: Any, path: str) -> Iterator[str]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _not_finite(value, f"{path}.{key}" if path else str(key))
    elif isinstance(data, (list, tuple)):
        for index, value in enumerate(data):
            yield from _not_finite(value, f"{path}[{index}]")
    elif isinstance(data, float) and not math.isfinite(data):
        yield path

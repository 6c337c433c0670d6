"""A story that a report tells, with everything in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from madtp_cli.report.html import Story
from madtp_cli.report.kept_tokens import KeptTokens, Sample, SiteView
from madtp_cli.results import Budget, LayerTokens, PruneResult, Side

DENSE = Side(
    metrics={"accuracy": 0.974, "accuracy/<both>": 0.98},
    gmacs=0.32,
    params=1_960_000,
    latency_ms={"1": 12.0, "32": 180.0},
    latency_runs={"1": 40, "32": 12},
    size_mib=7.6,
)
PRUNED = replace(
    DENSE, metrics={"accuracy": 0.951, "accuracy/<both>": 0.95}, gmacs=0.16, latency_ms={"1": 8.0, "32": 90.0}
)
RESULT = PruneResult(
    command="prune",
    checkpoint="runs/quick & small",
    budget=Budget(target_reduction=0.5, reached_reduction=0.5, met=True, tolerance=0.01),
    dense=DENSE,
    pruned=PRUNED,
    device="cpu",
    dtype="fp32",
    processor="A processor",
    threads=2,
    samples=40,
    seed=7,
    seconds=312,
    versions={"madtp": "1.2.3", "torch": "4.5.6"},
    layers=(
        LayerTokens(tower="vision", layer=0, tokens_mean=9.0, tokens_min=8, tokens_max=12),
        LayerTokens(tower="text", layer=0, tokens_mean=5.0, tokens_min=4, tokens_max=6),
    ),
)
LOG: list[dict[str, Any]] = [
    {
        "step": step,
        "steps": 40,
        "losses": {"task": 1 / step, "alignment": 0.1 / step, "total": 1.1 / step},
        "gmacs": 0.32 - 0.004 * step,
        "target_gmacs": 0.16,
        "dense_gmacs": 0.32,
        "strength": 0.01 * step,
        "temperature": 1.0,
    }
    for step in range(2, 41, 2)
] + [
    {"step": step, "validation": {"accuracy": 0.9 + step / 1000, "reduction": 0.5}, "strength": 0.3}
    for step in (20, 40)
]
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
PATCHES = SiteView(17, (KeptTokens(0, (0, 1, 2, 3, 6), 1), KeptTokens(1, (0, 3, 6), 1)))
SAMPLE = Sample(
    id="shapes/test/<3>",
    images=(IMAGE, IMAGE),
    words=("[ENC]", "a", "red", "<circle>", "[SEP]"),
    answer="true",
    reference="false",
    right=False,
    gmacs=0.15,
    dense_gmacs=0.32,
    sites={"vision_left": PATCHES, "vision_right": PATCHES, "text": SiteView(5, (KeptTokens(0, (0, 3), 1),), "text")},
)
STORY = Story(
    result=RESULT,
    recipe="task: nlvr2  # <mine>\n",
    log=LOG,
    score="accuracy",
    gmacs=[0.15 + row / 1000 for row in range(40)],
    dense_gmacs=[0.32] * 40,
    kept={"vision": {0: [0.5 + row / 100 for row in range(40)]}},
    reads={"vision": "image", "text": "text"},
    extremes={"The cheapest samples": [SAMPLE], "The most expensive samples": []},
    examples={"Right answers": [replace(SAMPLE, right=True)], "Wrong answers": [SAMPLE]},
    setting={"data": "shapes, 40 test"},
    notes=("test: 2 images left out",),
    limits=("It knows nothing of photographs.",),
)

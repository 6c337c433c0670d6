"""One checkpoint on its way into files: written, run on samples beside PyTorch, and timed beside itself unpruned."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madtp_cli.costs.latency import Call, Setting
from madtp_cli.costs.latency import compare as time_side_by_side
from madtp_cli.data.batch import Batch
from madtp_cli.engine.evaluation.samples import join_samples
from madtp_cli.engine.exporting.folder import graph_file
from madtp_cli.export.calibration import kept_of
from madtp_cli.export.check import groups
from madtp_cli.export.folder import GraphFile
from madtp_cli.export.formats import FORMATS, Session
from madtp_cli.export.graphs import Graph, TaskExport, Tensors
from madtp_cli.export.schedule import Form
from madtp_cli.export.trace import ports, trace

TIMED_CALLS = 8
SECONDS, PATIENCE = 1.0, 60.0  # per candidate and batch size; after which large models are timed in fewer rounds
ANY_BATCH = 8  # samples of the larger batch that a file for any number is timed with

Sessions = Mapping[str, Session]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model as it prunes, in float32; how it is laid out; and samples that fit it, as `drawn` still with labels.

    cost_ratio: of an adaptive model with fixed counts, their mean cost over that of its own.
    """

    model: Any
    exporter: TaskExport
    form: Form
    drawn: Sequence[Batch]
    samples: Sequence[Batch]
    format: str
    precision: Any
    opset: int
    cost_ratio: float | None = None

    @property
    def batches(self) -> Iterator[Batch]:
        """The samples in the calls that they are checked in, made one by one: images of all would be there twice."""
        return (join_samples(some) for some in groups(self.samples, self.form.batch))

    def write(self, model: Any, folder: Path) -> tuple[dict[str, GraphFile], dict[str, Session]]:
        """Write a model's graphs into a folder and open what was written: both by the graphs' names."""
        how = FORMATS[self.format]
        if self.precision == "fp16" and not how.halves:
            model = copy.deepcopy(model).half()
        files, sessions = {}, {}
        for graph in self.exporter.graphs(model, self.form):
            path = folder / f"{graph.name}{how.suffix}"
            program = trace(graph)
            files[graph.name] = graph_file(path.name, ports(program, graph), list(graph.example), graph.outputs)
            how.writer(self.opset, self.precision)(program, graph, path)
            sessions[graph.name] = how.session(path, graph, torch.get_num_threads())
        return files, sessions

    def run(self, sessions: Sessions) -> list[dict[str, Tensor]]:
        """Run the samples through files."""
        return [
            self.exporter.run(lambda name, given: sessions[name](given), batch, self.form) for batch in self.batches
        ]

    def expect(self) -> list[dict[str, Tensor]]:
        """Run the samples through the packed model."""
        return [self.exporter.expect(self.model, batch) for batch in self.batches]

    @torch.inference_mode()
    def run_graphs(self) -> list[dict[str, Tensor]]:
        """Run the samples through the graphs in PyTorch, against which a form with counts of its own is held."""
        by_name: dict[str, Graph] = {graph.name: graph for graph in self.exporter.graphs(self.model, self.form)}
        return [self.exporter.run(lambda name, given: by_name[name](given), batch, self.form) for batch in self.batches]

    def score(self, outputs: Sequence[Tensors]) -> float:
        """Say how right outputs are, where the task has a measure of that."""
        assert self.exporter.score is not None
        names = [name for name in outputs[0] if not name.endswith(("_kept", "_positions"))]
        joined = {name: torch.cat([each[name] for each in outputs]) for name in names}
        return self.exporter.score[1](self.drawn, joined)

    def kept(self, outputs: Sequence[Tensors]) -> dict[str, Tensor]:
        """Return the tokens that left every layer, for all samples."""
        each = [kept_of(self.model, found) for found in outputs]
        return {tower: torch.cat([kept[tower] for kept in each]) for tower in each[0]}

    def time(self, models: Mapping[str, Sessions]) -> dict[str, dict[str, float]]:
        """Time files of several models in turn on the same samples: the p50 in ms by name and batch size."""
        sizes = {1, ANY_BATCH} if self.form.batch is None else {self.form.batch}
        found: dict[str, dict[str, float]] = {name: {} for name in models}
        for size in sorted(sizes):
            calls = {name: self._calls(sessions, size) for name, sessions in models.items()}
            setting = Setting(size, "cpu", self.precision, FORMATS[self.format].runtime)
            timed = time_side_by_side(calls, setting, seconds=SECONDS, patience=PATIENCE, memory=False)
            for name, latency in timed.items():
                found[name][str(size)] = latency.p50_ms
        return found

    def _calls(self, sessions: Sessions, size: int) -> list[Call]:
        """Make one call for each of some batches, which runs the graphs on inputs that are ready."""
        count = max(1, min(TIMED_CALLS // size, len(self.samples) // size))
        rows = [size * (place * (len(self.samples) // size) // count) for place in range(count)]
        return [self._call(sessions, join_samples(self._some(row, size))) for row in rows]

    def _some(self, row: int, size: int) -> list[Batch]:
        return [self.samples[(row + place) % len(self.samples)] for place in range(size)]

    def _call(self, sessions: Sessions, batch: Batch) -> Call:
        steps: list[tuple[Session, Tensors]] = []

        def note(name: str, given: Tensors) -> dict[str, Tensor]:
            steps.append((sessions[name], given))
            return sessions[name](given)

        self.exporter.run(note, batch, self.form)
        return lambda: [session(given) for session, given in steps]

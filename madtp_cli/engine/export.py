"""`export`: write a checkpoint as files for other runtimes, run them, hand over what agrees with PyTorch, time it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from madtp_cli import results
from madtp_cli.engine.building.model import processor_of
from madtp_cli.engine.evaluation.samples import check_text_tokens, fit_samples, spread_samples
from madtp_cli.engine.exporting.answers import ANSWERED, answers, scored
from madtp_cli.engine.exporting.folder import answering, task_of
from madtp_cli.engine.exporting.job import Job
from madtp_cli.engine.exporting.verdict import Tolerance, check_loss, judged
from madtp_cli.engine.profiling.costs import at_strength
from madtp_cli.engine.profiling.subject import Subject, open_subject
from madtp_cli.engine.tasks.caption import Caption
from madtp_cli.engine.tasks.vqa import Vqa
from madtp_cli.engine.training.output import OutputFolder
from madtp_cli.errors import UsageError
from madtp_cli.export import onnx
from madtp_cli.export.calibration import calibrate, macs_of
from madtp_cli.export.check import compare
from madtp_cli.export.folder import INFERENCE, GraphFile, Inference, text_input, write_companions
from madtp_cli.export.formats import FORMATS, Session, check_installed
from madtp_cli.export.graphs import export_of
from madtp_cli.export.schedule import Form, Mode, is_adaptive
from madtp_cli.export.trace import quiet
from madtp_cli.models.base import prunes
from madtp_cli.models.checkpoints import BUILTIN, open_checkpoint
from madtp_cli.models.weights import one_line
from madtp_cli.results_export import ExportCheck, ExportFile, ExportResult


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked for; None where the checkpoint or the format decides."""

    format: Any
    mode: Mode = "dynamic"
    precision: Any = "fp32"
    opset: int | None = None
    atol: float | None = None
    max_loss: float | None = None
    output: str | None = None
    overwrite: bool = False
    batch_size: int | None = None
    text_tokens: int | None = None
    samples: int = 200
    latency: bool = True

    @property
    def tolerance(self) -> Tolerance:
        """What the files may differ by."""
        return Tolerance(format=self.format, precision=self.precision, atol=self.atol, max_loss=self.max_loss)


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What running the files said, and what still runs them."""

    check: ExportCheck
    gmacs: results.Gmacs
    tokens_kept: Mapping[str, tuple[float, ...]]
    sessions: Mapping[str, Session]


def export_checkpoint(checkpoint: str, options: Options, *, seed: int | None, console: Console) -> ExportResult:
    """Export a checkpoint; a folder is there at the end only if its files agree with PyTorch.

    Raises UsageError and SourceError for what cannot be exported, ExportError for files that do not agree.
    """
    began = time.perf_counter()
    check_installed(options.format)
    if options.format != "torch":
        onnx.check_opset(_opset(options))
    elif options.opset is not None:
        raise UsageError("--opset is of ONNX files, and --format torch writes none; leave it out")
    folder = OutputFolder(Path(options.output or _place(checkpoint, options)), "export", INFERENCE)
    folder.check(resume=False, overwrite=options.overwrite)
    opened = open_checkpoint(checkpoint)
    subject = open_subject(checkpoint, None, random_init=False, runs=True, seed=seed, console=console)
    processor = processor_of(opened)
    job = _job(subject, options, console)
    measured: list[_Measured] = []

    def write(target: Path) -> None:
        files, found = _written(job, options, target, console)
        inference = Inference(
            family=opened.family,
            task=opened.task,
            checkpoint=_named(opened.source),
            format=options.format,
            mode=options.mode,
            precision=options.precision,
            opset=None if options.format == "torch" else job.opset,
            graphs=files,
            text=text_input(processor, job.form.text_tokens),
            **answering(opened, processor),
            image_size=opened.limits.image_size,
            image_tokens=job.model.image_tokens,
            pruning=opened.spec.to_dict(),
            gmacs=found.gmacs,
            tokens_kept=found.tokens_kept,
        )
        write_companions(target, inference, processor)
        if lost := [each.file for each in files.values() if not (target / each.file).is_file()]:
            raise UsageError(f"{target}: {', '.join(lost)} went away while the rest was written; keep the folder alone")
        task = task_of(opened, processor)
        measured.append(replace(found, check=_answered(target, job, found.check, task, options.tolerance, console)))

    folder.publish(write)
    found = measured[0]
    # Only now: files that agree are worth more than figures of them.
    latency = _timed(job, found.sessions, folder.final, console) if options.latency else {}
    return _result(checkpoint, folder.final, job, options, found, latency, subject.seed, time.perf_counter() - began)


def _named(source: str) -> str:
    """Return what others may know a checkpoint by: of a path, which is nobody else's, its last part."""
    return Path(source).resolve().name if Path(source).exists() else source


def _opset(options: Options) -> int:
    return onnx.OPSET if options.opset is None else options.opset


def _place(checkpoint: str, options: Options) -> Path:
    """Name the folder: beside a checkpoint that is a folder or a file here, else in this folder."""
    parts = [options.format, *([options.mode] if options.mode != "dynamic" else [])]
    suffix = "-".join([*parts, *([options.precision] if options.precision != "fp32" else [])])
    source = Path(checkpoint.removeprefix(BUILTIN))
    name = source.stem if source.is_file() else source.name
    return (source.parent if source.exists() else Path()) / f"{name or 'model'}-{suffix}"


def _job(subject: Subject, options: Options, console: Console) -> Job:
    """Draw samples, and decide how the model is laid out."""
    model: Any = subject.model.eval()
    exporter = export_of(model)
    static = options.mode == "static"
    if options.text_tokens is not None:
        if not static:
            raise UsageError("--text-tokens fixes the length of texts, which --mode dynamic leaves open; remove it")
        check_text_tokens(model, options.text_tokens)
    batch = options.batch_size or (1 if static else None)
    assert subject.data is not None
    calls = -(-options.samples // (batch or 1))
    drawn = spread_samples(subject.data, calls * (batch or 1))
    samples = fit_samples(drawn, model, subject.normalise, subject.text_tokens)
    longest = max(sample.text_lengths[0] for sample in samples)
    if options.text_tokens is not None and options.text_tokens < longest:
        raise UsageError(
            f"--text-tokens {options.text_tokens}: texts of the data have up to {longest} tokens; give at least that"
        )
    if static and options.text_tokens is None:
        console.print(
            f"texts have {longest} places, as the longest of {len(samples)} samples; --text-tokens gives more"
        )
    if not prunes(model):
        console.print("the checkpoint prunes nothing: --mode decides about the sizes of inputs alone")
    job = Job(
        model=model,
        exporter=exporter,
        form=Form(options.mode, batch, (options.text_tokens or longest) if static else None),
        drawn=drawn,
        samples=samples,
        format=options.format,
        precision=options.precision,
        opset=_opset(options),
    )
    return _calibrated(job, console) if static and is_adaptive(model) else job


def _calibrated(job: Job, console: Console) -> Job:
    """Fix what an adaptive model keeps, at the cost that it has on the samples."""
    quotas, ratio = calibrate(job.model, job.kept(job.expect()), _lengths(job))
    console.print(
        f"every layer keeps a fixed number of tokens, at {ratio:.4f} of the mean cost that it has by the content of "
        f"{len(job.samples)} samples"
    )
    return replace(job, form=replace(job.form, quotas=quotas), cost_ratio=ratio)


def _written(job: Job, options: Options, folder: Path, console: Console) -> tuple[dict[str, GraphFile], _Measured]:
    """Write the files and run them beside PyTorch; raises ExportError if they do not agree."""
    console.print(f"writing {options.format}, {options.mode}, {options.precision}")
    with quiet():
        files, sessions = job.write(job.model, folder)
        console.print(f"running it on {len(job.samples)} samples beside PyTorch")
        found, expected = job.run(sessions), job.expect()
        own_counts = job.form.mode == "static" and is_adaptive(job.model)
        comparison = compare(found, job.run_graphs() if own_counts else expected)
    against = "pytorch_fixed" if own_counts else "pytorch"
    check = replace(judged(comparison, options.tolerance, against), cost_ratio=job.cost_ratio)
    if job.exporter.score is not None:
        scores = {"pytorch": job.score(expected), "exported": job.score(found)}
        check = replace(check, score=job.exporter.score[0], scores=scores)
        check_loss(check, check.samples, options.tolerance)
    kept = job.kept(found)
    macs = macs_of(job.model, kept, _lengths(job)).double().mean().item() / 1e9
    dense = job.model.dense_gmacs(_lengths(job))
    return files, _Measured(
        check=check,
        gmacs=results.Gmacs(dense=dense, pruned=macs, reduction=1 - macs / dense),
        tokens_kept={tower: tuple(each.flatten(0, -2).double().mean(0).tolist()) for tower, each in kept.items()},
        sessions=sessions,
    )


def _timed(
    job: Job, sessions: Mapping[str, Session], folder: Path, console: Console
) -> Mapping[str, Mapping[str, float]]:
    """Time the files beside those of the same model unpruned, which are written for that and deleted.

    Where that fails there are no times, and the folder stays.
    """
    dense = not prunes(job.model)
    console.print(f"{folder} is written; timing it{'' if dense else ' beside the same model unpruned'}")
    try:
        with quiet(), TemporaryDirectory() as beside:
            if dense:
                return job.time({"dense": sessions})
            _, unpruned = job.write(at_strength(job.model, 0), Path(beside))
            return job.time({"dense": unpruned, "pruned": sessions})
    except Exception as error:  # of the disk, of an exporter, of a runtime: many kinds
        console.print(f"{folder} could not be timed: {one_line(error) or type(error).__name__}")
        return {}


def _answered(
    folder: Path, job: Job, check: ExportCheck, task: Any, tolerance: Tolerance, console: Console
) -> ExportCheck:
    """Add how right whole answers are, of tasks that write or rank them: by the folder's own code, and PyTorch's.

    Raises ExportError where the folder's are worse.
    """
    if not isinstance(task, (Vqa, Caption)):
        return check
    samples = job.samples[:ANSWERED]
    console.print(f"answering {len(samples)} samples with the folder's own code")
    said = answers(folder, samples, torch.get_num_threads())
    own, exported = scored(task, job.model, samples, said)
    check = replace(check, score=task.score, scores={"pytorch": own, "exported": exported})
    check_loss(check, len(samples), tolerance)
    return check


def _lengths(job: Job) -> list[int]:
    return [sample.text_lengths[0] for sample in job.samples]


def _result(
    checkpoint: str,
    folder: Path,
    job: Job,
    options: Options,
    found: _Measured,
    times: Mapping[str, Mapping[str, float]],
    seed: int | None,
    seconds: float,
) -> ExportResult:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return ExportResult(
        command="export",
        device="cpu",
        dtype=options.precision,
        seed=seed,
        checkpoint=checkpoint,
        output=str(folder),
        format=options.format,
        runtime=FORMATS[options.format].runtime,
        mode=options.mode,
        precision=options.precision,
        opset=None if options.format == "torch" else job.opset,
        text_tokens=job.form.text_tokens,
        batch_size=job.form.batch,
        files=tuple(ExportFile(name=str(path.relative_to(folder)), bytes=path.stat().st_size) for path in files),
        check=found.check,
        gmacs=found.gmacs,
        tokens_kept=found.tokens_kept,
        latency_ms=times,
        speedup={size: times["dense"][size] / pruned for size, pruned in times.get("pruned", {}).items()},
        threads=torch.get_num_threads(),
        seconds=seconds,
    )

"""The dense model that a student learns from, and a file of what it said, so that it is asked once about each sample.

Shapes: S samples, I images, P images of one sample, N patches of one image, R rows of logits.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from madtp_cli.data.batch import Batch, QuestionBatch
from madtp_cli.engine.tasks.base import Asked, Task
from madtp_cli.engine.training.losses import Lesson, distribution, guidance_target, squared_attention
from madtp_cli.engine.training.settings import LossWeights
from madtp_cli.errors import RecipeError
from madtp_cli.models.base import Output, PrunedModel
from madtp_cli.tokens import Spans

Entry = Mapping[str, Tensor]
"""What is kept of one sample: logits [R, n], encoded [C], attention [P, N], each only if a loss asks for it."""

FORMAT = 1
NAME = "teacher-{}.bin"
_FRAME = struct.Struct("<16sII")  # key, bytes of the payload, their CRC-32


class Teacher:
    """Run the frozen dense model on the student's batches, for what the losses ask of it."""

    def __init__(self, task: Task, model: PrunedModel, weights: LossWeights, *, guided: bool) -> None:
        """Freeze the model; `guided` says whether the student has guidance to be taught."""
        self.task = task
        self.model = model.eval().requires_grad_(False)
        self.logits = bool(weights.logits)
        self.features = bool(weights.features)
        self.guidance = guided and bool(weights.guidance)

    @property
    def asked(self) -> bool:
        """Whether any loss asks for anything."""
        return self.logits or self.features or self.guidance

    def teach(self, batch: Batch, device: torch.device, like: Output) -> Lesson:
        """Say what to learn from a batch, of which `like` is the student's pass; nothing is run if nothing is asked."""
        if not self.asked:
            return Lesson()
        dense = self.run(batch, device, like)
        return Lesson(
            self.task.compared(dense) if self.logits else (),
            dense.encoded.clone() if self.features else None,  # which backward may keep, unlike an inference tensor
            guidance_target(dense.probes, len(dense.images.spans)) if self.guidance and dense.probes else None,
        )

    @torch.inference_mode()
    def run(self, batch: Batch, device: torch.device, like: Output) -> Output:
        """Run the model; nothing is kept for a backward pass."""
        output: Output = self.task.forward(
            self.model, batch, device, Asked(training=True, probe=self.guidance, like=like)
        )
        return output


class CachedTeacher:
    """Ask a teacher once about every sample, whatever batch and epoch it comes in.

    A sample is known by its pixels and tokens, and the file by the teacher's weights and all that its answers depend on
    beside them: what was written for other data, another teacher or precision is never read.
    """

    def __init__(self, teacher: Teacher, folder: Path, precision: str, *, samples: int = 0) -> None:
        """Keep the answers in a folder that exists, about so many samples in the end; 0 leaves that open.

        Raises OSError if it cannot be written.
        """
        self.teacher = teacher
        self.samples = samples
        name = NAME.format(_identity(teacher, precision))
        for stale in folder.glob(NAME.format("*")):
            if stale.name != name:
                stale.unlink()
        self.file = EntryFile(folder / name)

    def teach(self, batch: Batch, device: torch.device, like: Output) -> Lesson:
        """Say what to learn from a batch.

        Raises RecipeError if the disk has no room for the answers to all samples, OSError if it refuses one.
        """
        if not self.teacher.asked:
            return Lesson()
        keys = sample_keys(batch)
        known = self.file.read(keys)
        if len(known) < len(set(keys)):
            said = dict(zip(keys, _by_sample(self.teacher, batch, device, like), strict=True))
            new = {key: entry for key, entry in said.items() if key not in known}
            self._check_room(new)
            self.file.write(new)
            known = said | known
        return self._lesson([known[key] for key in keys], batch, device)

    def _check_room(self, entries: Mapping[bytes, Entry]) -> None:
        """Foresee with the first answers what all will take: words over a large vocabulary are a megabyte a sample."""
        if self.file.path.stat().st_size:
            return
        each = sum(tensor.nbytes for entry in entries.values() for tensor in entry.values()) / len(entries)
        needed, free = each * self.samples, shutil.disk_usage(self.file.path.parent).free
        if needed > free:
            raise RecipeError(
                f"distillation.cache: the dense model's answers to {self.samples:,} samples take about "
                f"{needed / 2**30:,.1f} GiB ({each / 2**20:.2f} MiB each), and {self.file.path.parent} has "
                f"{free / 2**30:,.1f} GiB left; set it to false, or choose an --output with more room"
            )

    def _lesson(self, entries: Sequence[Entry], batch: Batch, device: torch.device) -> Lesson:
        teacher, target = self.teacher, None
        if "attention" in entries[0]:
            paid = torch.cat([entry["attention"] for entry in entries])  # [S * P, N]
            target = paid.new_zeros(len(batch.images), paid.shape[1])
            target.index_add_(0, batch.image_index.cpu().flatten(), paid)
            target = distribution(target).to(device)
        return Lesson(
            [torch.cat([entry["logits"] for entry in entries]).to(device)] if teacher.logits else (),
            torch.stack([entry["encoded"] for entry in entries]).to(device) if teacher.features else None,
            target,
        )


class EntryFile:
    """Entries one after the other, each with its key, length and checksum; only ever appended to.

    What an interrupted write left at the end is cut off when the file is opened; an entry that is spoilt is not found.
    """

    def __init__(self, path: Path) -> None:
        """Open a file or begin it; raises OSError if it cannot be written."""
        self.path = path
        self._places: dict[bytes, tuple[int, int, int]] = {}  # first byte, bytes and checksum of a payload
        self._end = 0
        path.touch()
        size = path.stat().st_size
        with path.open("r+b") as file:
            while self._end + _FRAME.size <= size:
                file.seek(self._end)
                key, length, checksum = _FRAME.unpack(file.read(_FRAME.size))
                start = self._end + _FRAME.size
                if start + length > size:
                    break
                self._places[key] = start, length, checksum
                self._end = start + length
            file.truncate(self._end)

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """Return the entries that are there, by key."""
        found: dict[bytes, Entry] = {}
        with self.path.open("rb") as file:
            for key in keys:
                if key in self._places and key not in found:
                    start, length, checksum = self._places[key]
                    file.seek(start)
                    payload = file.read(length)
                    if zlib.crc32(payload) == checksum:
                        found[key] = load(payload)
        return found

    def write(self, entries: Mapping[bytes, Entry]) -> None:
        """Append entries; raises OSError if the disk refuses."""
        with self.path.open("r+b") as file:
            file.seek(self._end)
            for key, entry in entries.items():
                payload = save({name: tensor.contiguous() for name, tensor in entry.items()})
                checksum = zlib.crc32(payload)
                file.write(_FRAME.pack(key, len(payload), checksum) + payload)
                self._places[key] = self._end + _FRAME.size, len(payload), checksum
                self._end += _FRAME.size + len(payload)


def sample_keys(batch: Batch) -> list[bytes]:
    """Digest all that a model reads of each sample: 16 bytes each."""
    images = [_digest(image) for image in batch.images]
    answers: list[list[Tensor]] = [[] for _ in batch.text_lengths]
    if isinstance(batch, QuestionBatch):
        parts = batch.answers.split(batch.answer_lengths)
        for question, part in zip(batch.answer_index.tolist(), parts, strict=True):
            answers[question].append(part)
    keys = []
    texts = batch.text.split(batch.text_lengths)
    for rows, text, written in zip(batch.image_index.tolist(), texts, answers, strict=True):
        seen = [images[row] for row in (rows if isinstance(rows, list) else [rows])]
        whole = b"".join([*seen, _digest(text), *map(_digest, written)])
        keys.append(hashlib.blake2b(whole, digest_size=16).digest())
    return keys


def _digest(tensor: Tensor) -> bytes:
    # Read as bytes: numpy knows no bfloat16.
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(content.data, digest_size=16).digest()


def _identity(teacher: Teacher, precision: str) -> str:
    """Digest what the answers about a sample depend on beside the sample."""
    normalise = teacher.task.normalise
    facts = [FORMAT, teacher.task.name, precision, teacher.logits, teacher.features, teacher.guidance]
    whole = hashlib.blake2b(json.dumps([*facts, normalise.mean, normalise.std]).encode(), digest_size=8)
    whole.update(teacher.model.config.to_json_string().encode())
    for name, tensor in sorted(teacher.model.state_dict().items()):
        whole.update(name.encode() + _digest(tensor))
    return whole.hexdigest()


def _by_sample(teacher: Teacher, batch: Batch, device: torch.device, like: Output) -> list[Entry]:
    """Ask about a batch and take the answer apart: one entry for each sample, on the CPU."""
    dense = teacher.run(batch, device, like)
    parts: dict[str, Sequence[Tensor]] = {}
    if teacher.logits:
        (logits,) = teacher.task.compared(dense)
        parts["logits"] = logits.cpu().split(teacher.task.rows(batch))
    if teacher.features:
        parts["encoded"] = dense.encoded.cpu().unbind()
    if teacher.guidance and dense.probes:
        parts["attention"] = _attention(dense).cpu().unbind()
    return [{name: of[row] for name, of in parts.items()} for row in range(batch.samples)]


def _attention(dense: Output) -> Tensor:
    """Add up the squared attention that every sample pays to each of its images: [S, P, N].

    Added up once more over the samples that read an image, it is what the guidance target is made of.
    """
    device, texts = dense.encoded.device, Spans.of(dense.text_lengths)
    index = torch.tensor(dense.image_index, device=device).view(len(texts), -1)  # [S, P]
    samples, each = index.shape
    first = dense.probes[0].probability
    paid = first.new_zeros(samples * each, first.shape[-1] - dense.probes[0].prefix)
    for probe in dense.probes:
        # A query for each sample, or for each of its tokens.
        single = len(probe.image) == samples
        sample = torch.arange(samples, device=device) if single else texts.sample_index(device)  # [Q]
        side = (index[sample] == probe.image[:, None]).int().argmax(1)  # [Q]; either will do for one image twice
        paid.index_add_(0, sample * each + side, squared_attention(probe))
    return paid.view(samples, each, -1)

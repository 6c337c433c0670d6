"""Print how fast `shapes` is generated on one core: python -m benchmarks.data."""

from __future__ import annotations

import time

from madtp_cli.data.scenes import noise_bank, texture_bank
from madtp_cli.data.sentences import SENTENCES_PER_PAIR
from madtp_cli.data.shapes import SAMPLES_PER_BLOCK, ShapesPairs, make_block

BLOCKS = 40


def main() -> None:
    """Time texture banks, labels with sentences, and whole batches, in CPU seconds."""
    start = time.process_time()
    texture_bank(), noise_bank()
    print(f"textures, once per process: {1e3 * (time.process_time() - start):8.1f} ms")

    pairs = BLOCKS * SAMPLES_PER_BLOCK // SENTENCES_PER_PAIR
    start = time.process_time()
    for block in range(BLOCKS):
        make_block(1, "train", block)
    seconds = time.process_time() - start
    print(f"scenes, sentences and labels: {1e6 * seconds / pairs:6.1f} us per pair of images")

    data = ShapesPairs("train", BLOCKS * SAMPLES_PER_BLOCK, seed=2)
    start = time.process_time()
    for first in range(0, len(data), SAMPLES_PER_BLOCK):
        data.batch(first, SAMPLES_PER_BLOCK)
    seconds = time.process_time() - start
    print(f"batches of {SAMPLES_PER_BLOCK}: {pairs / seconds:.0f} image pairs per second")
    print(f"            {BLOCKS * SAMPLES_PER_BLOCK / seconds:.0f} samples per second")


if __name__ == "__main__":
    main()

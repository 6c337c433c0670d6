"""Scenes: their counts and patch labels against loops over objects, and what is drawn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from madtp_cli.data.scenes import (
    CELL_SIZE,
    COLOURS,
    IMAGE_SIZE,
    PATCH_SIZE,
    RGB,
    SHAPES,
    SIZES,
    Scenes,
    noise_bank,
    sample_scenes,
    texture_bank,
)


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return sample_scenes(np.random.default_rng(5), 64)


def test_count_table_is_what_a_loop_over_objects_counts(scenes: Scenes) -> None:
    table = scenes.count_table()
    for image in range(len(scenes)):
        objects = scenes.objects(image)
        for (s, shape), (c, colour), (z, size) in itertools.product(
            enumerate((*SHAPES, None)), enumerate((*COLOURS, None)), enumerate((*SIZES, None))
        ):
            count = sum(
                shape in (None, o.shape) and colour in (None, o.colour) and size in (None, o.size) for o in objects
            )
            assert table[image, s, c, z] == count


def test_attribute_counts_are_what_a_loop_over_objects_counts(scenes: Scenes) -> None:
    counts = scenes.attribute_counts()
    for image in range(len(scenes)):
        objects = scenes.objects(image)
        colours = [sum(o.colour == colour for o in objects) for colour in COLOURS]
        shapes = [sum(o.shape == shape for o in objects) for shape in SHAPES]
        assert counts[image].tolist() == colours + shapes


def test_patch_labels_are_what_a_loop_over_patches_finds(scenes: Scenes) -> None:
    labels = scenes.patch_labels()
    for image in range(len(scenes)):
        for patch, (row, column) in enumerate(itertools.product(range(12), repeat=2)):
            left, top = column * PATCH_SIZE, row * PATCH_SIZE
            found = 0
            for o in scenes.objects(image):
                nearest_x = min(max(o.x, left), left + PATCH_SIZE)
                nearest_y = min(max(o.y, top), top + PATCH_SIZE)
                away = ((nearest_x - o.x) ** 2 + (nearest_y - o.y) ** 2) ** 0.5
                if away <= 0.85 * o.radius:
                    found = 1 + SHAPES.index(o.shape) * 6 + COLOURS.index(o.colour)
            assert labels[image, patch] == found


def test_objects_lie_in_cells_of_their_own(scenes: Scenes) -> None:
    for image in range(len(scenes)):
        objects = scenes.objects(image)
        cells = {(int(o.x // CELL_SIZE), int(o.y // CELL_SIZE)) for o in objects}
        assert len(cells) == len(objects)
        for o in objects:
            for middle in (o.x, o.y):
                assert 1.3 * o.radius <= middle % CELL_SIZE <= CELL_SIZE - 1.3 * o.radius


def test_number_of_objects_is_skewed_to_few() -> None:
    number = (sample_scenes(np.random.default_rng(1), 4000).shape >= 0).sum(1)
    assert number.min() == 1
    assert number.max() == 6
    assert 3.0 < number.mean() < 3.4


def test_drawn_objects_have_the_colour_and_area_of_their_names(scenes: Scenes) -> None:
    pixels = scenes.render(range(len(scenes))).astype(int)
    areas = {"circle": np.pi, "square": 2 * 1.25**2, "triangle": 3 * 3**0.5 / 4 * 1.3**2}
    for image, place in zip(*np.nonzero(scenes.shape >= 0), strict=True):
        o = scenes.objects(image)[place]
        middle = pixels[image, round(o.y), round(o.x)]
        assert COLOURS[np.abs(RGB - middle).sum(1).argmin()] == o.colour
        x, y = (int(v // CELL_SIZE) * CELL_SIZE for v in (o.x, o.y))
        cell = pixels[image, y : y + CELL_SIZE, x : x + CELL_SIZE]
        drawn = (np.abs(cell - scenes.rgb[image, place]).max(-1) <= 20).sum()
        # Pillow draws the outline too, which adds about half a pixel all round.
        assert drawn == pytest.approx(areas[o.shape] * (o.radius + 0.5) ** 2, rel=0.25)


def test_rendering_repeats_itself_and_stays_in_range(scenes: Scenes) -> None:
    pixels = scenes.render(range(8))
    assert pixels.shape == (8, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[5] == scenes.render([5])[0]).all()
    # Noise is added with wrap-around: an overflow would show as a jump between 0 and 255.
    extremes = scenes.render(range(len(scenes)))
    assert extremes.min() < 60
    flat = np.sort(extremes.ravel())
    assert np.diff(np.unique(flat)).max() <= 2


def test_banks_are_made_once() -> None:
    assert texture_bank() is texture_bank()
    assert noise_bank() is noise_bank()
    assert texture_bank().mean() == pytest.approx(128, abs=2)

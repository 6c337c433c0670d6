"""Scenes of coloured shapes on cluttered, textured backgrounds: sampled as arrays, drawn as pixels.

A scene is rows of arrays rather than objects, so that a block of scenes is sampled by a few numpy
calls. Everything random is decided in `sample_scenes`; `Scenes.render` is a pure function of it.
Shapes: I images, O = 6 object places per image (unused ones hold -1), N = 144 patches.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[Any]

SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue", "yellow", "pink", "cyan")
SIZES = ("small", "large")
RGB = np.array([(214, 40, 40), (46, 168, 56), (48, 76, 222), (230, 212, 48), (230, 84, 196), (56, 208, 216)])

IMAGE_SIZE = 96
PATCH_SIZE = 8
PATCHES_PER_SIDE = IMAGE_SIZE // PATCH_SIZE
CELLS_PER_SIDE = 3
CELL_SIZE = IMAGE_SIZE // CELLS_PER_SIDE  # a multiple of the patch size: a patch lies in one cell
MAX_OBJECTS = 6
NUMBER_SHARES = (0.14, 0.24, 0.23, 0.18, 0.12, 0.09)  # of scenes with 1..6 objects; mean 3.17
COPY_SHAPE, COPY_COLOUR = 0.35, 0.45  # so that counts above one are common
RADIUS = ((6.0, 7.0), (10.0, 11.0))  # pixels; range per size
REACH = 1.3  # no shape reaches further than this many radii from its centre
MAX_STROKES = 8

TEXTURES, TEXTURE_SIZE = 48, 192
NOISE_LEVELS, NOISE_SIZE = 4, 160
# Pixel noise is added in wrapping uint8 arithmetic, which is exact while values stay in between.
NOISE_LIMIT = 14
DARKEST, BRIGHTEST = NOISE_LIMIT, 255 - NOISE_LIMIT
ANY_SHAPE, ANY_COLOUR, ANY_SIZE = len(SHAPES), len(COLOURS), len(SIZES)
TABLE = (len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1)


@dataclass(frozen=True)
class SceneObject:
    """Describe one object in words; x and y are its centre in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scenes:
    """Hold I scenes as arrays; `render` makes pixels of them, the other methods labels."""

    shape: Array  # [I, O] index into SHAPES
    colour: Array  # [I, O] index into COLOURS
    size: Array  # [I, O] index into SIZES
    cell: Array  # [I, O] 0..8, row by row
    centre: Array  # [I, O, 2] x, y in pixels
    radius: Array  # [I, O] pixels
    angle: Array  # [I, O] radians
    rgb: Array  # [I, O, 3]
    clutter: Array  # [I] 0..1: drives contrast, strokes and noise
    texture: Array  # [I] index into the bank
    texture_offset: Array  # [I, 2]
    tint: Array  # [I, 3] mean background colour
    strokes: Array  # [I] how many
    stroke_ends: Array  # [I, MAX_STROKES, 4] x0, y0, x1, y1
    stroke_grey: Array  # [I, MAX_STROKES]
    noise_offset: Array  # [I, 2]

    def __len__(self) -> int:
        return len(self.shape)

    def objects(self, image: int) -> tuple[SceneObject, ...]:
        """List the objects of one scene in words."""
        places = np.flatnonzero(self.shape[image] >= 0)
        return tuple(
            SceneObject(
                shape=SHAPES[self.shape[image, place]],
                colour=COLOURS[self.colour[image, place]],
                size=SIZES[self.size[image, place]],
                x=float(self.centre[image, place, 0]),
                y=float(self.centre[image, place, 1]),
                radius=float(self.radius[image, place]),
            )
            for place in places
        )

    def count_table(self) -> Array:
        """Count objects by shape, colour and size, with `any` last on each axis: [I, 4, 7, 3]."""
        image, place = np.nonzero(self.shape >= 0)
        shape, colour, size = (a[image, place] for a in (self.shape, self.colour, self.size))
        table = np.zeros((len(self), *TABLE), dtype=np.int8)
        np.add.at(table, (image, shape, colour, size), 1)
        table[:, ANY_SHAPE] = table[:, :ANY_SHAPE].sum(1)
        table[:, :, ANY_COLOUR] = table[:, :, :ANY_COLOUR].sum(2)
        table[..., ANY_SIZE] = table[..., :ANY_SIZE].sum(3)
        return table

    def patch_labels(self) -> Array:
        """Label patches by the object on them: [I, N], 0 for none, else 1 + shape * 6 + colour.

        A patch is on an object when it comes within 0.85 radii of the object's centre.
        """
        labels = np.zeros((len(self), PATCHES_PER_SIDE, PATCHES_PER_SIDE), dtype=np.int64)
        image, place = np.nonzero(self.shape >= 0)
        per_cell = CELL_SIZE // PATCH_SIZE
        row, column = np.divmod(self.cell[image, place], CELLS_PER_SIDE)
        rows = row[:, None, None] * per_cell + np.arange(per_cell)[None, :, None]
        columns = column[:, None, None] * per_cell + np.arange(per_cell)[None, None, :]
        x, y = (self.centre[image, place, axis][:, None, None] for axis in (0, 1))
        away_x = x - np.clip(x, columns * PATCH_SIZE, (columns + 1) * PATCH_SIZE)
        away_y = y - np.clip(y, rows * PATCH_SIZE, (rows + 1) * PATCH_SIZE)
        near = np.hypot(away_x, away_y) <= 0.85 * self.radius[image, place][:, None, None]
        kind = 1 + self.shape[image, place] * len(COLOURS) + self.colour[image, place]
        labels[image[:, None, None], rows, columns] = np.where(near, kind[:, None, None], 0)
        return labels.reshape(len(self), -1)

    def attribute_counts(self) -> Array:
        """Count objects per colour, then per shape: [I, 9]."""
        table = self.count_table()
        colours = table[:, ANY_SHAPE, :ANY_COLOUR, ANY_SIZE]
        shapes = table[:, :ANY_SHAPE, ANY_COLOUR, ANY_SIZE]
        return np.concatenate([colours, shapes], axis=1).astype(np.int64)

    def render(self, images: Sequence[int]) -> Array:
        """Draw the scenes with these numbers: uint8 [len(images), 96, 96, 3]."""
        pixels = np.empty((len(images), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        for row, image in enumerate(images):
            pixels[row] = self._render_one(image)
        return pixels

    def _render_one(self, image: int) -> Array:
        textures, noises = texture_bank(), noise_bank()
        clutter = self.clutter[image]
        x, y = self.texture_offset[image]
        crop = textures[self.texture[image], y : y + IMAGE_SIZE, x : x + IMAGE_SIZE]
        contrast = 0.15 + 0.45 * clutter
        levels = contrast * np.arange(-128, 128, dtype=np.float32)[:, None] + self.tint[image]
        palette = np.clip(levels, DARKEST, BRIGHTEST).astype(np.uint8)  # [256, 3]
        canvas = Image.fromarray(palette[crop])
        draw = ImageDraw.Draw(canvas)
        for stroke in range(self.strokes[image]):
            grey = int(self.stroke_grey[image, stroke])
            draw.line(self.stroke_ends[image, stroke].tolist(), fill=(grey, grey, grey))
        for place in range(MAX_OBJECTS):
            if self.shape[image, place] >= 0:
                self._draw_object(draw, image, place)
        x, y = self.noise_offset[image]
        level = min(int(clutter * NOISE_LEVELS), NOISE_LEVELS - 1)
        noise = noises[level, y : y + IMAGE_SIZE, x : x + IMAGE_SIZE]
        return np.asarray(canvas) + noise

    def _draw_object(self, draw: ImageDraw.ImageDraw, image: int, place: int) -> None:
        x, y = self.centre[image, place].tolist()
        radius = float(self.radius[image, place])
        fill = tuple(self.rgb[image, place].tolist())
        shape = SHAPES[self.shape[image, place]]
        if shape == "circle":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
            return
        corners, reach = (4, 1.25 * radius) if shape == "square" else (3, REACH * radius)
        # A corner of a square at 45 degrees, one of a triangle at the top.
        first = self.angle[image, place] + (np.pi / 4 if corners == 4 else -np.pi / 2)
        turns = first + 2 * np.pi / corners * np.arange(corners)
        points = np.stack([x + reach * np.cos(turns), y + reach * np.sin(turns)], axis=1)
        draw.polygon(points.ravel().tolist(), fill=fill)


def sample_scenes(rng: np.random.Generator, images: int) -> Scenes:
    """Draw that many random scenes."""
    places = (images, MAX_OBJECTS)
    number = rng.choice(np.arange(1, MAX_OBJECTS + 1), p=NUMBER_SHARES, size=images)
    used = np.arange(MAX_OBJECTS) < number[:, None]  # [I, O]
    shape = _with_copies(rng, rng.integers(len(SHAPES), size=places), COPY_SHAPE)
    colour = _with_copies(rng, rng.integers(len(COLOURS), size=places), COPY_COLOUR)
    size = rng.integers(len(SIZES), size=places)
    cells = rng.random((images, CELLS_PER_SIDE**2)).argsort(1)[:, :MAX_OBJECTS]
    low, high = np.array(RADIUS).T
    radius = rng.uniform(low[size], high[size])
    room = (CELL_SIZE / 2 - 1 - REACH * radius)[..., None]
    row, column = np.divmod(cells, CELLS_PER_SIDE)
    middle = (np.stack([column, row], axis=-1) + 0.5) * CELL_SIZE
    rgb = np.clip(RGB[colour] + rng.integers(-16, 17, size=(*places, 3)), DARKEST, BRIGHTEST)
    clutter = rng.random(images)
    tint = rng.uniform(70, 160, size=(images, 1)) + rng.uniform(-18, 18, size=(images, 3))
    starts = rng.uniform(0, IMAGE_SIZE, size=(images, MAX_STROKES, 2))
    steps = rng.uniform(-32, 32, size=(images, MAX_STROKES, 2))
    return Scenes(
        shape=np.where(used, shape, -1),
        colour=np.where(used, colour, -1),
        size=np.where(used, size, -1),
        cell=np.where(used, cells, -1),
        centre=middle + rng.uniform(-1, 1, size=(*places, 2)) * room,
        radius=radius,
        angle=rng.uniform(-0.3, 0.3, size=places),
        rgb=rgb,
        clutter=clutter,
        texture=rng.integers(TEXTURES, size=images),
        texture_offset=rng.integers(TEXTURE_SIZE - IMAGE_SIZE, size=(images, 2)),
        tint=tint.astype(np.float32),
        strokes=np.floor(clutter * (MAX_STROKES + 0.999)).astype(np.int64),
        stroke_ends=np.concatenate([starts, starts + steps], axis=-1),
        stroke_grey=rng.integers(60, 190, size=(images, MAX_STROKES)),
        noise_offset=rng.integers(NOISE_SIZE - IMAGE_SIZE, size=(images, 2)),
    )


def _with_copies(rng: np.random.Generator, values: Array, share: float) -> Array:
    """Let each value repeat an earlier one of its row with this probability."""
    images, places = values.shape
    copy = rng.random(values.shape) < share
    chance = rng.random(values.shape)
    for place in range(1, places):
        earlier = (chance[:, place] * place).astype(np.int64)
        copied = values[np.arange(images), earlier]
        values[:, place] = np.where(copy[:, place], copied, values[:, place])
    return values


@functools.cache
def texture_bank() -> Array:
    """Make the background textures, the same in every process: uint8 [48, 192, 192], mean 128."""
    rng = np.random.Generator(np.random.PCG64(20240))
    bank = np.empty((TEXTURES, TEXTURE_SIZE, TEXTURE_SIZE), dtype=np.uint8)
    for index in range(TEXTURES):
        waves = _stripes(rng) if index % 3 == 2 else _octaves(rng)
        waves = (waves - waves.mean()) / waves.std()
        bank[index] = np.clip(128 + 40 * waves, 0, 255)
    return bank


def _octaves(rng: np.random.Generator) -> Array:
    """Sum smooth noise of several wavelengths."""
    total = np.zeros((TEXTURE_SIZE, TEXTURE_SIZE))
    for cells in (4, 8, 16, 32, 64):
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        image = Image.fromarray(grid).resize((TEXTURE_SIZE, TEXTURE_SIZE), Image.Resampling.BICUBIC)
        total += np.asarray(image) * cells ** -rng.uniform(0.3, 0.9)
    return total


def _stripes(rng: np.random.Generator) -> Array:
    """Draw straight stripes that a little smooth noise bends."""
    y, x = np.mgrid[:TEXTURE_SIZE, :TEXTURE_SIZE]
    turn = rng.uniform(0, np.pi)
    along = x * np.cos(turn) + y * np.sin(turn)
    bend = _octaves(rng)
    wavelength = rng.uniform(7, 24)
    waves: Array = np.sin(2 * np.pi * along / wavelength + bend / bend.std() * rng.uniform(0, 1.0))
    return waves


@functools.cache
def noise_bank() -> Array:
    """Make pixel noise of rising strength, to be added in wrapping uint8: [4, 160, 160, 3]."""
    rng = np.random.Generator(np.random.PCG64(20241))
    noise = rng.standard_normal((NOISE_LEVELS, NOISE_SIZE, NOISE_SIZE, 3))
    noise *= np.linspace(1.5, 6.0, NOISE_LEVELS)[:, None, None, None]
    return np.clip(np.rint(noise), -NOISE_LIMIT, NOISE_LIMIT).astype(np.int8).view(np.uint8)

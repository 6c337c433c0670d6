"""Pictures of what pruning keeps: patches left bright over the image, words left standing, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from madtp_cli.report import wording
from madtp_cli.report.kept_tokens import TITLES, KeptTokens, Pixels, Sample, SiteView, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = 192  # pixels of a panel's side, about: a whole number for every patch
_GREY, _LINE = 225.0, 165.0
_SEEN = 0.2  # of a patch that is gone
_LEAST = 8  # pixels of a patch's side, so that its lines are seen
_INK, _FAINT = "#1a1a1a", "#9a9a9a"
# Inches: a panel's side and the step to the next one, the lines above a panel, the figure's margin.
_INCHES, _STEP, _CAPTION, _MARGIN = 2.0, 2.15, 0.44, 0.2
_LINE_POINTS, _SPACE = 15.0, 3.5
_TITLE: Mapping[str, Any] = {"fontsize": 11, "color": _INK, "weight": "bold"}
_BODY: Mapping[str, Any] = {"fontsize": 9.5, "color": _INK}
_NOTE: Mapping[str, Any] = {"fontsize": 7.5, "color": _INK}
_DPI = 110


def panel(image: Pixels, view: SiteView, kept: KeptTokens | None = None, *, pixels: int = PANEL) -> Pixels:
    """Draw an image of about `pixels` a side, with the patches that no longer stand alone faded and hatched.

    Without kept tokens it is the image as the model sees it.
    """
    patch = max(_LEAST, round(pixels / view.side))
    size = view.side * patch
    sampling = Image.Resampling.NEAREST if size >= max(image.shape[:2]) else Image.Resampling.LANCZOS
    drawn = np.asarray(Image.fromarray(image).resize((size, size), sampling)).astype(np.float32)
    if kept is None:
        return drawn.astype(np.uint8)
    gone = np.ones(view.side**2, dtype=bool)
    gone[view.patches(kept)] = False
    mask = np.kron(gone.reshape(view.side, view.side), np.ones((patch, patch), dtype=bool))
    here = np.arange(size)
    hatch = (here[:, None] + here) % max(patch // 2, 4) == 0  # lines from corner to corner, each on its own pixels
    faded = _SEEN * drawn + (1 - _SEEN) * np.where(hatch, _LINE, _GREY)[..., None]
    return np.where(mask[..., None], faded, drawn).astype(np.uint8)


def titled(sample: Sample) -> str:
    """Say in one line what was answered, whether it is right, and what it cost."""
    parts = []
    if sample.answer is not None:
        parts.append(f"answer: {sample.answer}")
    if sample.right is not True and sample.reference is not None:
        parts.append(f"reference: {sample.reference}")
    if sample.right is not None:
        parts.append("right" if sample.right else "wrong")
    change = wording.relative_change(sample.dense_gmacs, sample.gmacs)
    cost = f"{wording.gmacs(sample.gmacs)} gmacs"
    parts.append(cost if sample.gmacs == sample.dense_gmacs else f"{cost} ({change})")
    return ", ".join(parts)


def kept_figure(sample: Sample, *, most_layers: int = 6) -> Figure:
    """Draw one sample: a row of panels for each image, its pruned layers side by side, and the words below.

    Of more pruned layers than `most_layers`, some evenly chosen ones are shown, the last among them.
    """
    from matplotlib.figure import Figure

    layers = [spread(view.layers, most_layers) for _, _, view in sample.views]
    columns = max(1 + max(map(len, layers), default=0), 3)
    width = columns * _STEP + 2 * _MARGIN - (_STEP - _INCHES)
    points = 72 * (width - 2 * _MARGIN)
    head = [
        [_Word(sample.id, 0.0, _TITLE)],
        *_wrapped([(part, True) for part in titled(sample).split()], _BODY, points),
    ]
    body = list(_text_lines(sample, most_layers, points))
    line = _LINE_POINTS / 72
    row = _INCHES + _CAPTION
    height = 2 * _MARGIN + line * (len(head) + len(body)) + row * len(layers) + _MARGIN
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    top = height - _MARGIN
    for number, words in enumerate(head, start=1):
        _write_line(figure, words, top - number * line)
    top -= len(head) * line
    for (name, image, view), chosen in zip(sample.views, layers, strict=True):
        top -= row
        for column, kept in enumerate([None, *chosen]):
            left, side = (_MARGIN + column * _STEP) / width, _INCHES
            axes = figure.add_axes((left, top / height, side / width, side / height))
            _draw_panel(axes, TITLES.get(name, name), image, view, kept)
    for number, words in enumerate(body, start=1):
        _write_line(figure, words, top - _MARGIN - (number - 0.5) * line)
    return figure


def _draw_panel(axes: Axes, title: str, image: Pixels, view: SiteView, kept: KeptTokens | None) -> None:
    axes.imshow(panel(image, view, kept), interpolation="nearest")
    axes.set_axis_off()
    if kept is None:
        note = title if view.layers else f"{title}, not pruned"
    else:
        left, _, rest = view.described(kept).partition(", the others ")
        note = f"layer {kept.layer}: {left}" + (f"\nothers {rest}" if rest else "")
    axes.set_title(note, loc="left", pad=3, parse_math=False, **_NOTE)


@dataclass(frozen=True)
class _Word:
    """A word, or neighbours that share its fate: its place and width in points, and whether it is left."""

    text: str
    x: float
    style: Mapping[str, Any]
    left: bool = True
    width: float = 0.0


def _text_lines(sample: Sample, most_layers: int, width: float) -> Iterator[list[_Word]]:
    """Break the words after every pruned layer of the sites of texts into lines of so many points."""
    if not sample.words:
        return
    pruned = [(name, view) for name, view in sample.texts if view.layers]
    if not pruned:
        yield [_Word("text, not pruned", 0.0, _NOTE)]
        yield from _wrapped([(word, True) for word in sample.words], _BODY, width)
    for name, view in pruned:
        for kept in spread(view.layers, most_layers):
            alone = set(kept.alone)
            yield [_Word(f"{name}, layer {kept.layer}: {view.described(kept)}", 0.0, _NOTE)]
            yield from _wrapped([(word, place in alone) for place, word in enumerate(sample.words)], _BODY, width)


def _wrapped(words: Sequence[tuple[str, bool]], style: Mapping[str, Any], width: float) -> Iterator[list[_Word]]:
    """Break words, each left or gone, into lines of so many points."""
    line: list[_Word] = []
    x = 0.0
    for text, left in words:
        size = _points(text, style["fontsize"])
        if line and x + size > width:
            yield line
            line, x = [], 0.0
        if line and line[-1].left == left:
            before = line.pop()
            line.append(replace(before, text=f"{before.text} {text}", width=x + size - before.x))
        else:
            line.append(_Word(text, x, style, left, size))
        x += size + _SPACE
    yield line


def _points(text: str, fontsize: float) -> float:
    """Measure text in points; letters are drawn on whole pixels, which takes a little more."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    width, _, _ = TextToPath().get_text_width_height_descent(text, FontProperties(size=fontsize), ismath=False)
    return 1.03 * float(width)


def _write_line(figure: Figure, words: Sequence[_Word], bottom: float) -> None:
    """Write words, `bottom` inches above the figure's lower edge; those that are gone are grey and struck out."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    for word in words:
        x = _MARGIN + word.x / 72
        style = word.style if word.left else {**word.style, "color": _FAINT}
        # As it is: a dollar sign opens no formula.
        figure.text(x / width, bottom / height, word.text, parse_math=False, **style)
        if not word.left:
            y = (bottom + 0.35 * style["fontsize"] / 72) / height
            figure.add_artist(Line2D([x / width, (x + word.width / 72) / width], [y, y], color=_FAINT, linewidth=0.9))

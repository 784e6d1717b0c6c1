"""Label contours on slices of the scans, as PNG bytes; drawn off screen, with no global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from medcontext.drawing import DPI, TRUTH_STYLE, contour, draw_legend, label_style, legend_size, short
from medcontext.evaluation.turned import Structures, read_turned

Drawn = Sequence[tuple[tuple[int, ...], Mapping[str, Any]]]
"""Of each structure, the numbers that it is made of, and its style."""


@dataclass(frozen=True)
class OverlayCase:
    """One row of :func:`overlay_figure`.

    Attributes:
        rank: Why it is shown, such as ``best``.
        name: The case's name.
        images: The scan's files; of several channels the first is shown.
        truth: The true label map.
        predictions: Run name -> (predicted label map, Dice of the case or ``None``), in the order of the columns.
    """

    rank: str
    name: str
    images: tuple[Path, ...]
    truth: Path
    predictions: Mapping[str, tuple[Path, float | None]]


@dataclass(frozen=True)
class _Row:
    """One slice, ready to draw: ``(H, W)`` arrays with the patient's right (or front) on the left, and sides in mm."""

    image: npt.NDArray[np.float32]
    maps: tuple[npt.NDArray[np.int32], ...]
    height: float
    width: float
    sides: tuple[str, str]
    place: str


def overlay_figure(cases: Sequence[OverlayCase], structures: Structures) -> bytes:
    """Contours of each structure on one slice per case: a row per case, a column for the truth and for each run.

    The slice is the one with the most labels, then the most foreground, of the truth, in the plane of the finest
    resolution (axial where the voxels are about cubes), in radiological convention, cut to the region that any of the
    maps labels. A thin white line under a prediction is the outline of the truth.

    Args:
        cases: The rows; all with the same runs, at least one.
        structures: Label -> name and the numbers that it is made of; other numbers are not drawn.

    Returns:
        A PNG.

    Raises:
        MedContextError: A file cannot be read, or a label map has another shape than its scan.
    """
    rows = [_row(case, structures) for case in cases]
    drawn = [(numbers, label_style(index)) for index, (_, numbers) in enumerate(structures.values())]
    entries = [
        (name, style)
        for (name, numbers), (_, style) in zip(structures.values(), drawn, strict=True)
        if any(np.isin(each, numbers).any() for row in rows for each in row.maps)
    ]
    if any(case.predictions for case in cases):
        entries.append(("truth's outline", TRUTH_STYLE))
    panel, left, gap, head = 2.75, 0.56, 0.1, 0.34
    width = left + max(len(row.maps) for row in rows) * (panel + gap)
    legend_columns, legend_height = legend_size([name for name, _ in entries], width)
    heights = [panel * row.height / row.width for row in rows]
    height = sum(heights) + head * len(rows) + legend_height + 0.1
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="#101418")
    top = height
    for case, row, tall in zip(cases, rows, heights, strict=True):
        top -= head + tall
        figure.text(
            0.5 * left / width, (top + tall / 2) / height, f"{case.rank}\n{short(case.name, int(12 * tall))}",
            rotation=90, color="#e8eaed", fontsize=10.5, linespacing=1.5, ha="center", va="center", parse_math=False,
        )  # fmt: skip
        titles = [("truth", row.place), *((name, _dice_text(dice)) for name, (_, dice) in case.predictions.items())]
        for column, (title, labels) in enumerate(zip(titles, row.maps, strict=True)):
            box = ((left + column * (panel + gap)) / width, top / height, panel / width, tall / height)
            axes = figure.add_axes(box)
            _draw_slice(axes, row, labels, drawn, outline=column > 0)
            axes.set_title(short(title[0], 20), loc="left", color="#ffffff", fontsize=11, pad=5, parse_math=False)
            axes.set_title(title[1], loc="right", color="#c9ced6", fontsize=10, pad=5)
    draw_legend(figure, entries, legend_columns)
    return png(figure)


def _row(case: OverlayCase, structures: Structures) -> _Row:
    """Read one case, turn it to RAS, and choose the slice and the region of it to show."""
    maps = [case.truth, *(path for path, _ in case.predictions.values())]
    turned = read_turned(case.images[0], maps, structures)
    spacing, (truth, *_) = turned.spacing, turned.maps
    axis = int(np.argmax(spacing)) if max(spacing) > 1.1 * spacing[2] else 2
    index = _slice_to_show(truth, axis)
    # Both axes that are left run right, front or up in RAS; flipped, they run to the picture's right and down it.
    flat = [np.take(each, index, axis=axis)[::-1, ::-1].T for each in (turned.image, *turned.maps)]
    across, down = (size for other, size in enumerate(spacing) if other != axis)
    region = _region(flat[1:], down, across)
    image, *shown = (each[region] for each in flat)
    plane = ("sagittal", "coronal", "axial")[axis]
    return _Row(
        image=np.nan_to_num(image),
        maps=tuple(shown),
        height=image.shape[0] * down,
        width=image.shape[1] * across,
        sides=("A", "P") if axis == 0 else ("R", "L"),
        place=f"{plane}, slice {index + 1} of {truth.shape[axis]}",
    )


def _slice_to_show(truth: npt.NDArray[np.int32], axis: int) -> int:
    """The slice with the most labels; of several such the one with the most foreground; the middle of an empty map."""
    others = tuple(other for other in range(3) if other != axis)
    labels = sum(np.any(truth == label, axis=others).astype(np.int64) for label in _labels(truth))
    score = labels * truth.size + np.count_nonzero(truth, axis=others)
    return int(score.argmax()) if score.any() else truth.shape[axis] // 2


def _region(maps: Sequence[npt.NDArray[np.int32]], down: float, across: float) -> tuple[slice, slice]:
    """A square in mm around every labelled voxel of ``(H, W)`` maps, with margin, as far as the slice reaches."""
    rows, columns = np.nonzero(np.any([each != 0 for each in maps], axis=0))
    shape = maps[0].shape
    if rows.size == 0:
        return slice(None), slice(None)
    extents = ((int(rows.min()), int(rows.max()) + 1, down), (int(columns.min()), int(columns.max()) + 1, across))
    field = max(shape[0] * down, shape[1] * across)
    side = max(1.6 * max((stop - start) * size for start, stop, size in extents), 0.3 * field)
    slices = []
    for (start, stop, size), length in zip(extents, shape, strict=True):
        wanted = min(length, max(stop - start, round(side / size)))
        first = min(max(0, (start + stop - wanted) // 2), length - wanted)
        slices.append(slice(first, first + wanted))
    return slices[0], slices[1]


def _draw_slice(axes: Any, row: _Row, labels: Any, drawn: Drawn, outline: bool) -> None:
    """The grey slice, the contours of each structure in ``labels``, the letters of the patient's sides."""
    low, high = np.percentile(row.image, (1, 99.5))
    axes.imshow(
        row.image, cmap="gray", vmin=low, vmax=high, extent=(0, row.width, row.height, 0),
        interpolation="bicubic", aspect="auto",
    )  # fmt: skip
    if outline:
        for numbers, _ in drawn:
            contour(axes, np.isin(row.maps[0], numbers), (row.height, row.width), TRUTH_STYLE)
    for numbers, style in drawn:
        contour(axes, np.isin(labels, numbers), (row.height, row.width), style)
    for x, letter in zip((0.025, 0.975), row.sides, strict=True):
        axes.text(
            x, 0.5, letter, transform=axes.transAxes, color="white", fontsize=9, va="center",
            ha="left" if x < 0.5 else "right", path_effects=[withStroke(linewidth=2, foreground="black")],
        )  # fmt: skip
    axes.set(xlim=(0, row.width), ylim=(row.height, 0))
    axes.set_axis_off()


def _labels(array: npt.NDArray[np.int32]) -> list[int]:
    return [int(label) for label in np.unique(array) if label != 0]


def _dice_text(dice: float | None) -> str:
    return "no Dice" if dice is None else f"Dice {dice:.3f}"


def png(figure: Any) -> bytes:
    """The figure as PNG, without a note of the program that wrote it."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()

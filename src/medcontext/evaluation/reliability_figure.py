"""The reliability diagram: what the network says against how often it is so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from medcontext.drawing import DPI, LABEL_COLOURS, short
from medcontext.evaluation.pictures import png

TEXT, QUIET, GRID = "#1b1f24", "#5b6470", "#e3e6ea"
OVER = "#d55e00"


def reliability_figure(calibration: Mapping[str, Any]) -> bytes:
    """A panel for all classes together, where there is one, and one for each label.

    Bars are frequencies of the truth; a dot is a bin's mean probability (across) and frequency (up), on the diagonal
    where both agree, and larger the more voxels are in it. The line from dot to diagonal is what the expected
    calibration error averages.

    Args:
        calibration: As :func:`medcontext.evaluation.calibration.summarise` gives it.

    Returns:
        A PNG.
    """
    panels = {} if calibration["overall"] is None else {"every voxel, largest probability": calibration["overall"]}
    panels |= {entry.get("name", f"label {label}"): entry for label, entry in calibration["labels"].items()}
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(2.9 * columns + 0.3, 3.0 * rows + 0.3), dpi=DPI, facecolor="#ffffff")
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, entry) in zip(grid, panels.items(), strict=False):
        _draw(axes, name, entry)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel("mean probability", color=QUIET, fontsize=10)
    figure.supylabel("frequency of the truth", color=QUIET, fontsize=10)
    return png(figure)


def _draw(axes: Any, name: str, entry: Mapping[str, Any]) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    error = "no voxels" if entry["ece"] is None else f"ECE {entry['ece']:.3f}"
    axes.set_title(f"{short(name, 34)}\n{error}", loc="left", color=TEXT, fontsize=10, parse_math=False)
    axes.tick_params(colors=QUIET, labelsize=9, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=(0, (4, 2)))
    most = max((each["voxels"] for each in entry["bins"]), default=1)
    for each in entry["bins"]:
        x, y = each["probability"], each["frequency"]
        axes.bar(each["low"], y, each["high"] - each["low"], align="edge", color=LABEL_COLOURS[0], alpha=0.35)
        axes.plot([x, x], [x, y], color=OVER, linewidth=1.5)
        size = 12 + 60 * math.sqrt(each["voxels"] / most)
        axes.scatter([x], [y], s=size, color=OVER, edgecolors="#ffffff", linewidths=0.8, zorder=3, clip_on=False)

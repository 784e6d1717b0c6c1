"""Training curves of several runs as one picture of small panels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from medcontext.drawing import DPI, short
from medcontext.evaluation.pictures import png

History = Sequence[Mapping[str, Any]]

SMOOTH_FROM = 60
"""Curves with at least so many points are drawn faint, with their moving average over a thirtieth of them on top."""


STYLES: tuple[Any, ...] = ("solid", (0, (4, 1.5)))
"""Line styles of the two curves that a panel can have for each run."""


@dataclass(frozen=True)
class _Theme:
    """Colours of the page behind, the text, the grid, and the runs in their order."""

    page: str
    text: str
    quiet: str
    grid: str
    runs: tuple[str, ...]


_LIGHT = _Theme(
    "#ffffff", "#1b1f24", "#5b6470", "#e3e6ea", ("#0072b2", "#d55e00", "#009e73", "#b0578d", "#946200", "#4b4fc4")
)
_DARK = _Theme(
    "#181c21", "#e8eaed", "#9aa3ae", "#2e343c", ("#56b4e9", "#ff8a4c", "#2fcb9c", "#e79ac6", "#f0c84a", "#a3a6ff")
)

_PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Validation Dice", "on cases that are not trained on", ("dice/student", "dice/teacher")),
    ("Quick validation Dice", "on patches of these cases", ("quick_dice/student", "quick_dice/teacher")),
    ("Context score", "Dice where the scan was hidden", ("context_score",)),
    ("Context gap", "clean Dice minus context score", ("context_gap",)),
    ("Consistency's share", "of the gradient norm", ("gradient_share/consistency",)),
    ("Teacher momentum", "of its moving average", ("momentum",)),
    ("Teacher entropy", "near 0 is certain", ("teacher_entropy",)),
)
"""Heading, what it means, and the keys of the records, the second one dashed. The losses come after the first two."""


def curves_figure(runs: Mapping[str, History], dark: bool = False) -> bytes | None:
    """Small panels over the training step: validation Dice, each loss, and the diagnostics of the method.

    A panel is drawn where any run has a finite value for it; each run has one colour in all of them.

    Args:
        runs: Run name -> its history records. A step that is recorded twice counts as it was recorded last.
        dark: Draw for a dark page.

    Returns:
        A PNG, or ``None`` where there is nothing to draw.
    """
    records = [record for history in runs.values() for record in history]
    losses = dict.fromkeys(key for record in records for key in record if key.startswith("loss/"))
    by_loss = [(f"{key.removeprefix('loss/').capitalize()} loss", "", (key,)) for key in losses]
    panels = [
        (heading, meaning, series)
        for heading, meaning, keys in (*_PANELS[:2], *by_loss, *_PANELS[2:])
        if (series := {key: found for key in keys if (found := _series(runs, key))})
    ]
    if not panels:
        return None
    theme = _DARK if dark else _LIGHT
    colours = {name: theme.runs[index % len(theme.runs)] for index, name in enumerate(runs)}
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.45 * columns, 2.15 * rows + 0.5), dpi=DPI, facecolor=theme.page)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.09))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, (axes, (heading, meaning, series)) in enumerate(zip(grid, panels, strict=False)):
        _draw_panel(axes, heading, meaning, theme)
        axes.set_xlim(0, 1.02 * max(1, *(record["step"] for record in records)))
        for style, by_run in zip(STYLES, series.values(), strict=False):
            for name, (steps, values) in by_run.items():
                _draw_curve(axes, steps, values, colours[name], style)
        if len(series) > 1:
            _draw_key(axes, [key.rsplit("/")[-1] for key in series], theme)
        if place >= len(panels) - columns:
            axes.set_xlabel("training step", color=theme.quiet, fontsize=9.5)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    _draw_legend(figure, colours, theme)
    return png(figure)


def _series(runs: Mapping[str, History], key: str) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Run name -> (steps, values) in order of step, of the finite values recorded under ``key``."""
    found = {}
    for name, history in runs.items():
        points = {row["step"]: row[key] for row in history if row.get(key) is not None and math.isfinite(row[key])}
        if points:
            steps = sorted(points)
            found[name] = (np.array(steps), np.array([points[step] for step in steps], dtype=np.float64))
    return found


def _draw_panel(axes: Any, heading: str, meaning: str, theme: _Theme) -> None:
    axes.set_facecolor(theme.page)
    axes.set_title(heading, loc="left", color=theme.text, fontsize=11, fontweight="bold", pad=7, parse_math=False)
    axes.set_title(meaning, loc="right", color=theme.quiet, fontsize=8.5, pad=7)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)
    axes.tick_params(colors=theme.quiet, labelsize=9.5, length=0, pad=4)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(y=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def _draw_curve(axes: Any, steps: Any, values: npt.NDArray[Any], colour: str, style: Any) -> None:
    """One curve; a long one faint with its moving average on top, a single point as a dot."""
    if len(values) == 1:
        axes.plot(steps, values, "o", color=colour, markersize=5)
        return
    if len(values) >= SMOOTH_FROM:
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.25)
        window = np.ones(len(values) // 30)
        values = np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
    axes.plot(steps, values, color=colour, linewidth=1.8, linestyle=style)


def _draw_key(axes: Any, names: Sequence[str], theme: _Theme) -> None:
    """What a solid and a dashed line are, inside the panel."""
    lines = [Line2D([], [], color=theme.quiet, linewidth=1.8, linestyle=style) for style in STYLES]
    axes.legend(lines, names, loc="best", fontsize=9, frameon=False, labelcolor=theme.text, handlelength=2.2)


def _draw_legend(figure: Any, colours: Mapping[str, str], theme: _Theme) -> None:
    """The runs' names and colours above all panels."""
    lines = [Line2D([], [], color=colour, linewidth=3) for colour in colours.values()]
    legend = figure.legend(
        lines, ["-"] * len(lines), loc="outside upper left", ncols=min(4, len(lines)), frameon=False, fontsize=11,
        labelcolor=theme.text, handlelength=1.6, columnspacing=2,
    )  # fmt: skip
    for text, name in zip(legend.get_texts(), colours, strict=True):
        text.set(text=short(name, 24), parse_math=False)

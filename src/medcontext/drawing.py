"""How labels look in every picture: their colours, their outlines, and the legend."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.lines import Line2D

DPI = 110

LABEL_COLOURS = ("#56b4e9", "#e69f00", "#f0e442", "#cc79a7", "#00c896", "#ff6f3c", "#8fa5ff")
"""Okabe and Ito's colours, told apart by colour-blind people, lightened where they would drown on grey."""

MORE_COLOURS = ((0.92, 0.96), (0.59, 0.71), (0.98, 0.88), (0.51, 0.98))
"""Saturation and value of the colours after those, where line styles can't tell labels apart."""

LABEL_STYLES = ("solid", (0, (4, 1.5)), (0, (1.2, 1.2)))
"""With more labels than colours, the colours come again with the next of these line styles."""

TRUTH_STYLE: Mapping[str, Any] = {"color": "#ffffffcc", "linewidth": 0.6}
"""Outline of the truth under a prediction."""


def label_colour(index: int) -> str:
    """A colour of its own for the label at that place in the order of the labels, as ``#rrggbb``.

    Where ``LABEL_COLOURS`` have run out, hues are spread by the golden ratio, which keeps neighbours apart however many
    follow, in saturations and values with which the first 40 lie farthest apart (in CIELAB, of 6000 sets drawn).
    """
    if index < len(LABEL_COLOURS):
        return LABEL_COLOURS[index]
    more = index - len(LABEL_COLOURS)
    rgb = colorsys.hsv_to_rgb((0.43 + more * (5**0.5 - 1) / 2) % 1, *MORE_COLOURS[more % len(MORE_COLOURS)])
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def label_style(index: int) -> Mapping[str, Any]:
    """Line style of the label at that place in the order of the labels."""
    style = LABEL_STYLES[index // len(LABEL_COLOURS) % len(LABEL_STYLES)]
    return {"color": LABEL_COLOURS[index % len(LABEL_COLOURS)], "linestyle": style, "linewidth": 1.3}


def contour(axes: Any, mask: npt.NDArray[np.bool_], size: tuple[float, float], style: Mapping[str, Any]) -> None:
    """The outline of ``(H, W)`` ``mask``, closed at the edge of the picture; ``size`` is (height, width) in mm."""
    down, across = size[0] / mask.shape[0], size[1] / mask.shape[1]
    y, x = (np.arange(mask.shape[0] + 2) - 0.5) * down, (np.arange(mask.shape[1] + 2) - 0.5) * across
    lines = {f"{key}s": [value] for key, value in style.items()}
    axes.contour(x, y, np.pad(mask, 1).astype(np.float32), levels=[0.5], **lines)


def legend_size(names: Sequence[str], width: float) -> tuple[int, float]:
    """How many columns of names fit in ``width`` inches, and how many inches high they stand."""
    widest = 0.55 + 0.085 * max((len(short(name, 30)) for name in names), default=0)
    columns = max(1, min(len(names), int(width / widest)))
    return columns, 0.2 + 0.2 * -(-len(names) // columns)


def draw_legend(figure: Any, entries: Sequence[tuple[str, Mapping[str, Any]]], columns: int) -> None:
    """Names and line styles at the foot of the figure."""
    if not entries:
        return
    lines = [Line2D([], [], **{**style, "linewidth": 1.5 * style["linewidth"]}) for _, style in entries]
    legend = figure.legend(
        lines, ["-"] * len(lines), loc="lower center", ncols=columns, frameon=False, fontsize=10, labelcolor="#e8eaed",
        borderaxespad=0.3, columnspacing=1.6, handlelength=1.8, labelspacing=0.3,
    )  # fmt: skip
    for text, (name, _) in zip(legend.get_texts(), entries, strict=True):
        text.set(text=short(name, 30), parse_math=False)


def short(text: str, most: int) -> str:
    """``text`` on one line, its middle left out where it is longer than ``most`` characters."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    return f"{text[: (most - 1) // 2]}…{text[len(text) - most // 2 :]}"

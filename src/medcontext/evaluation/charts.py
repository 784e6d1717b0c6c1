"""What charts of the page are made of: axes in round numbers, and inline SVG that takes the page's colours and width.

Positions are percentages of the plot, so that a chart is as wide as its column while its text keeps its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator


@dataclass(frozen=True)
class Scale:
    """An axis from its first to its last tick."""

    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Where a value lies, in per cent of the axis."""
        return 100 * (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])


def scale_of(low: float, high: float, ticks: int = 4, *, whole: bool = False) -> Scale:
    """An axis of about so many steps, between round numbers that hold ``low`` and ``high``; ``whole`` ones alone.

    Where all are from 0 to 1, as shares are, so is the axis.
    """
    share = low >= 0 and high <= 1
    if low == high:
        # A tenth around what never changes; matplotlib would widen it by a millionth.
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    low, high = (max(0.0, low), min(1.0, high)) if share else (low, high)
    locator = MaxNLocator(ticks, integer=whole)
    found = np.array(locator.tick_values(low, high))
    if share and found[-1] > 1:
        found = 1 - np.array(locator.tick_values(0, 1 - low))[::-1]
    return Scale(tuple(float(tick) for tick in found))


def number(value: float) -> str:
    """Short text of a number on an axis or in a sentence."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(value: float) -> str:
    """A position, as SVG has it."""
    return f"{value:.2f}".rstrip("0").rstrip(".") + "%"


def across(scale: Scale, *, labels: bool = True) -> str:
    """Grid lines of a horizontal axis, and their numbers below the plot."""
    lines, last = [], len(scale.ticks) - 1
    for place, tick in enumerate(scale.ticks):
        x = percent(scale.at(tick))
        lines.append(f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="100%"/>')
        if labels:
            anchor = "start" if place == 0 else "end" if place == last else "middle"
            lines.append(f'<text x="{x}" y="100%" dy="1.4em" text-anchor="{anchor}">{number(tick)}</text>')
    return "".join(lines)


def upwards(scale: Scale) -> str:
    """Grid lines of a vertical axis, and their numbers left of the plot."""
    lines = []
    for tick in scale.ticks:
        y = percent(100 - scale.at(tick))
        lines.append(
            f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
            f'<text x="-8" y="{y}" dy=".32em" text-anchor="end">{number(tick)}</text>'
        )
    return "".join(lines)


def path(points: Sequence[tuple[float, float]], *, closed: bool = False) -> str:
    """A polyline through points in per cent, as the data of a path in a picture of 100 by 100."""
    text = "L".join(f"{x:.5g} {y:.5g}" for x, y in points)
    return f"M{text}z" if closed else f"M{text}"


def stretched(content: str) -> str:
    """Paths in per cent, over the whole of the plot; what is drawn along them keeps its width."""
    return f'<svg viewBox="0 0 100 100" width="100%" height="100%" preserveAspectRatio="none">{content}</svg>'

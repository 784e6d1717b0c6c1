"""The gains of a study as one figure, and how its validations went as another."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0578d", "#946200", "#4b4fc4")
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1, 1, 1)))
"""With more curves than colours, the colours come again with the next of these line styles."""


def gains_figure(comparisons: Sequence[Mapping[str, Any]]) -> str | None:
    """Difference of the mean Dice with its 95 % interval.

    Over the number of training cases, a curve for each comparison, where one of them was made for several numbers; else
    a row for each comparison.

    Returns:
        An SVG, the same for the same comparisons; None where nothing was compared.
    """
    from matplotlib.figure import Figure

    shown = [each for each in comparisons if each["result"]["dice"]["overall"] is not None]
    if not shown:
        return None
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for each in shown:
        fixed = [level for factor, level in each["levels"].items() if factor != "training_cases"]
        name = ", ".join([*fixed, f"{each['arm']} - {each['baseline']}"])
        curves.setdefault(name, []).append(each)
    as_curves = any(len({each["training_cases"] for each in points}) > 1 for points in curves.values())
    figure = Figure(figsize=(7.2, 4.2) if as_curves else (7.2, 1.2 + 0.34 * len(curves)), layout="constrained")
    axes = figure.subplots()
    if as_curves:
        _draw_curves(axes, curves)
    else:
        _draw_rows(axes, curves)
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def convergence_figure(arms: Sequence[Mapping[str, Any]]) -> str | None:
    """Validation Dice over the steps: a curve for each arm, in a panel for each combination of the other levels.

    Args:
        arms: As :func:`medcontext.studies.convergence.convergence` returns them.

    Returns:
        An SVG, the same for the same arms; None where nothing was validated, or there are more arms than ways to draw
        a curve.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels: dict[str, list[Mapping[str, Any]]] = {}
    for arm in arms:
        if arm["steps"]:
            name = " / ".join(level for factor, level in arm["levels"].items() if factor != "arm")
            panels.setdefault(name, []).append(arm)
    names = list(dict.fromkeys(arm["levels"]["arm"] for arm in arms))
    if not panels or len(names) > len(COLOURS) * len(DASHES):
        return None
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    height = 2.6 * rows + 0.25 * math.ceil(len(names) / 3)
    figure = Figure(figsize=(3.4 * columns + 2 * (columns == 1), height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, curves) in zip(grid, panels.items(), strict=False):
        for arm in curves:
            place = names.index(arm["levels"]["arm"])
            dash = DASHES[place // len(COLOURS) % len(DASHES)]
            axes.plot(arm["steps"], arm["dice"], color=COLOURS[place % len(COLOURS)], linestyle=dash, marker=".")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel("validation Dice")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    lines = [Line2D([], [], color=COLOURS[k % len(COLOURS)], linestyle=DASHES[k // len(COLOURS) % len(DASHES)])
             for k in range(len(names))]  # fmt: skip
    figure.legend(lines, names, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return _svg(figure)


def _svg(figure: Any) -> str:
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "medcontext", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _draw_curves(axes: Any, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    places = sorted({each["training_cases"] for points in curves.values() for each in points})
    axes.axhline(0, color="#5b6470", linewidth=1)
    for place, (name, points) in enumerate(curves.items()):
        points = sorted(points, key=lambda each: int(each["training_cases"]))
        # Side by side, so that intervals at the same number don't cover one another.
        x = [places.index(each["training_cases"]) + 0.08 * (place - (len(curves) - 1) / 2) for each in points]
        values, errors = _values(points)
        look = {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place // len(COLOURS) % len(DASHES)]}
        axes.errorbar(x, values, errors, **look, marker="o", markersize=4, capsize=3, linewidth=1.5, label=name)
    axes.set_xticks(range(len(places)), [str(each) for each in places])
    axes.set_xlabel("training cases")
    axes.set_ylabel("gain in Dice, with 95 % interval")
    axes.legend(frameon=False, fontsize=9)


def _draw_rows(axes: Any, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    rows = {name: points[0] for name, points in curves.items()}
    values, errors = _values(list(rows.values()))
    axes.axvline(0, color="#5b6470", linewidth=1)
    axes.errorbar(values, range(len(rows)), xerr=errors, fmt="o", color=COLOURS[0], markersize=4, capsize=3)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("difference in Dice, with 95 % interval")


def _values(points: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[list[float]]]:
    """Differences, and how far their intervals reach below and above."""
    found = [each["result"]["dice"]["overall"] for each in points]
    ends = [each["interval"] or (math.nan, math.nan) for each in found]
    # A NaN as the second of max() is passed over.
    return [each["difference"] for each in found], [
        [max(each["difference"] - low, 0.0) for each, (low, _) in zip(found, ends, strict=True)],
        [max(high - each["difference"], 0.0) for each, (_, high) in zip(found, ends, strict=True)],
    ]

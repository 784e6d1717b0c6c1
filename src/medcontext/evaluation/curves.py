"""Training curves of several runs: a small panel for everything that was logged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from medcontext.evaluation.charts import Scale, across, number, path, percent, scale_of, stretched, upwards
from medcontext.evaluation.page import mark_number, run_class

History = Sequence[Mapping[str, Any]]

STRETCHES = 100
"""A curve of more points is drawn as the mean and the range of so many equal stretches of its steps."""

MARKED = 6
"""So many points of a curve carry the mark of its run, at most."""

_PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Validation Dice", "whole cases that are not trained on", ("dice/student", "dice/teacher")),
    ("Quick validation Dice", "patches of these cases", ("quick_dice/student", "quick_dice/teacher")),
    ("Total loss", "weighted sum of the others", ("loss/total",)),
    ("Clean loss", "the whole scan, against the truth", ("loss/clean",)),
    ("Masked loss", "part of the scan hidden, against the truth", ("loss/masked",)),
    ("Consistency loss", "masked student against teacher", ("loss/consistency",)),
    ("Context score", "Dice of the masked pass where the scan was hidden", ("context_score",)),
    ("Context gap", "clean Dice minus context score", ("context_gap",)),
    (
        "Gradient shares",
        "of the norm, by loss term",
        ("gradient_share/clean", "gradient_share/masked", "gradient_share/consistency"),
    ),
    ("Teacher momentum", "of its moving average", ("momentum",)),
    ("Teacher entropy", "near 0 is certain", ("teacher_entropy",)),
    ("Learning rate", "", ("learning_rate",)),
)
"""Heading, what it means, and the keys of the records, each with a line style of its own."""

_FURTHER: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Dice of the training patches", "pooled over the batch", ("batch_dice/student", "batch_dice/teacher")),
    ("Gradient norm", "before it is clipped", ("gradient_norm",)),
    ("Steps per second", "", ("steps_per_second",)),
    ("Waiting for data", "share of the time", ("data_wait",)),
    ("Peak memory", "GiB", ("peak_memory_gib",)),
)
"""The same, of what is folded away; further keys follow by themselves."""

Points = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Curve:
    """What one run, or one fold of it, logged under a key: steps in order, and finite values."""

    name: str
    run: int
    dash: int
    points: Points


def curves(runs: Mapping[str, Mapping[str, History]]) -> tuple[list[str], list[str]]:
    """Panels over the training step, of what any run has logged; each run has one colour and mark in all of them.

    Args:
        runs: Run name -> name of a fold, or nothing where there is none -> history records. A step that is recorded
            twice counts as it was recorded last.

    Returns:
        HTML of the panels to show at once, and of the others.
    """
    records = [record for histories in runs.values() for history in histories.values() for record in history]
    last = max((record["step"] for record in records), default=1)
    steps = scale_of(0, max(1, last), whole=True)
    known = {key for _, _, keys in (*_PANELS, *_FURTHER) for key in keys} | {"kind", "step", "seconds"}
    others = dict.fromkeys(key for record in records for key in record if key not in known)
    losses = tuple((_name(key), "", (key,)) for key in others if key.startswith("loss/"))
    rest = tuple((_name(key), "", (key,)) for key in others if not key.startswith("loss/"))
    return list(_panels(runs, (*_PANELS, *losses), steps)), list(_panels(runs, (*_FURTHER, *rest), steps))


def _panels(
    runs: Mapping[str, Mapping[str, History]], panels: Sequence[tuple[str, str, tuple[str, ...]]], steps: Scale
) -> Iterable[str]:
    for heading, meaning, keys in panels:
        found = {key: _curves(runs, key, dash) for dash, key in enumerate(keys)}
        found = {key: of_key for key, of_key in found.items() if of_key}
        # What is 0 throughout, such as the number of skipped steps, says so in the table of the last values.
        if any(curve.points[1].any() for of_key in found.values() for curve in of_key):
            yield _panel(heading, meaning, found, steps)


def _curves(runs: Mapping[str, Mapping[str, History]], key: str, dash: int) -> list[Curve]:
    found = []
    for place, (name, histories) in enumerate(runs.items()):
        for fold, history in histories.items():
            points = {row["step"]: float(row[key]) for row in history if _is_finite(row.get(key))}
            if points:
                steps = sorted(points)
                values = np.array([points[step] for step in steps])
                found.append(Curve(f"{name} {fold}".rstrip(), place, dash, (np.array(steps, dtype=float), values)))
    return found


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _panel(heading: str, meaning: str, found: Mapping[str, Sequence[Curve]], steps: Scale) -> str:
    drawn = [curve for of_key in found.values() for curve in of_key]
    values = np.concatenate([curve.points[1] for curve in drawn])
    scale = scale_of(float(values.min()), float(values.max()))
    paths = "".join(_lines(curve, steps, scale) for curve in drawn)
    marks = "".join(_marks(curve, steps, scale) for curve in drawn)
    names = [key.rpartition("/")[2] for key in found]
    keys = "".join(_key(name, of_key[0].dash) for name, of_key in zip(names, found.values(), strict=True))
    told = "; ".join(
        f"{curve.name}{f', {name}' if len(found) > 1 else ''}: {_told(curve.points)}"
        for name, of_key in zip(names, found.values(), strict=True)
        for curve in of_key
    )
    return (
        f"<figure>\n<figcaption><b>{escape(heading)}</b> {escape(meaning)}{keys if len(found) > 1 else ''}</figcaption>"
        f'\n<svg class="plot" role="img" aria-label="{escape(f"{heading} over the training steps. {told}.")}">'
        f"{upwards(scale)}{across(steps)}{stretched(paths)}{marks}</svg>\n</figure>"
    )


def _told(points: Points) -> str:
    steps, values = points
    if len(values) == 1:
        return f"{number(values[0])} at step {number(steps[0])}"
    return f"from {number(values[0])} at step {number(steps[0])} to {number(values[-1])} at step {number(steps[-1])}"


def _lines(curve: Curve, steps: Scale, scale: Scale) -> str:
    """The curve, and behind one of many points the range that each stretch of it has."""
    low, mean, high = stretches(curve.points)
    x, y = ([steps.at(step) for step in mean[0]], [100 - scale.at(value) for value in mean[1]])
    band = ""
    if len(curve.points[0]) > STRETCHES:
        edge = [*zip(x, high, strict=True), *zip(reversed(x), reversed(low), strict=True)]
        points = [(across, 100 - scale.at(value)) for across, value in edge]
        band = f'<path class="band {run_class(curve.run)}" d="{path(points, closed=True)}"/>'
    dash = f" dash-{curve.dash + 1}" if curve.dash else ""
    line = path(list(zip(x, y, strict=True)))
    return f'{band}<path class="curve {run_class(curve.run)}{dash}" d="{line}"/>'


def stretches(points: Points) -> tuple[npt.NDArray[np.float64], Points, npt.NDArray[np.float64]]:
    """Lowest value, mean (steps and values) and highest value of equal stretches of the steps.

    With :data:`STRETCHES` points or fewer, each is a stretch of its own.
    """
    steps, values = points
    if len(steps) <= STRETCHES:
        return values, points, values
    edges = np.linspace(steps[0], steps[-1], STRETCHES + 1)[1:-1]
    starts = np.unique(np.searchsorted(edges, steps), return_index=True)[1]
    counts = np.diff([*starts, len(steps)])
    mean = (np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts)
    return np.minimum.reduceat(values, starts), mean, np.maximum.reduceat(values, starts)


def _marks(curve: Curve, steps: Scale, scale: Scale) -> str:
    """The run's mark on a few points, the last one included, hollow on dashed lines; those of the next run lie beside
    them."""
    x, y = stretches(curve.points)[1]
    every = max(1, -(-len(x) // MARKED))
    last = len(x) - 1
    places = range(last, -1, -every) if every == 1 else [last, *range(last - every - curve.run * every // 4, 0, -every)]
    uses = "".join(
        f'<use href="#mark-{mark_number(curve.run)}" x="{percent(steps.at(x[place]))}" '
        f'y="{percent(100 - scale.at(y[place]))}"/>'
        for place in places
        if place >= 0
    )
    hollow = " hollow" if curve.dash else ""
    return f'<g class="dots {run_class(curve.run)}{hollow}">{uses}</g>'


def _key(name: str, dash: int) -> str:
    """What a line style stands for."""
    kind = f' class="dash-{dash + 1}"' if dash else ""
    line = f'<line{kind} x1="0" x2="100%" y1="50%" y2="50%"/><circle cx="50%" cy="50%" r="3"/>'
    hollow = " hollow" if dash else ""
    return f' <span class="key{hollow}"><svg aria-hidden="true">{line}</svg>{escape(name)}</span>'


def _name(key: str) -> str:
    """A heading for what has none of its own."""
    group, _, name = key.rpartition("/")
    text = f"{name} {group}" if group == "loss" else f"{group} {name}"
    return text.strip().replace("_", " ").capitalize()

"""Box plots per label, the runs one below the other, every case a point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.cbook import boxplot_stats

from medcontext.evaluation.charts import Scale, across, number, percent, scale_of
from medcontext.evaluation.page import run_class, run_name

SHIFTS = (0, 5, -4, 2, -6, 6, -2, 4, -5, -1, 3, -3, 1)
"""Pixels by which points are moved up or down in turn, so that equal ones don't cover one another."""


@dataclass(frozen=True)
class Box:
    """The scores of one label in one run: case -> score, of cases that have one."""

    label: str
    run: int
    scores: Mapping[str, float]


def box_plots(heading: str, reading: str, runs: Sequence[str], boxes: Sequence[Box], form: str, *, share: bool) -> str:
    """A box from the first to the third quartile with the median in it, whiskers by Tukey's rule, every case a point.

    Args:
        heading: What the scores are.
        reading: How they are read.
        runs: The runs' names.
        boxes: Of one label one after the other, in the order of the runs.
        form: How a score is written.
        share: Whether a score is from 0 to 1, so that the axis ends there.

    Returns:
        HTML of a figure; nothing where there is no score.
    """
    values = [score for box in boxes for score in box.scores.values()]
    if not values:
        return ""
    scale = scale_of(min(values), 1.0) if share else scale_of(0.0, max(values))
    rows, label = [], None
    for box in boxes:
        if len(runs) > 1 and box.label != label:
            rows.append(f'<div class="label">{escape(box.label)}</div>')
        label = box.label
        name = run_name(runs[box.run], box.run) if len(runs) > 1 else escape(box.label)
        rows.append(f'<div class="name">{name}</div>{_row(heading, runs[box.run], box, scale, form)}')
    axis = f'<span></span><svg class="axis" aria-hidden="true">{_numbers(scale)}</svg><span></span>'
    return (
        f"<figure>\n<figcaption><b>{escape(heading)}</b> {escape(reading)}</figcaption>\n"
        f'<div class="boxes">{"".join(rows)}{axis}</div>\n</figure>'
    )


def _row(heading: str, run: str, box: Box, scale: Scale, form: str) -> str:
    """One box, and its median as text."""
    if not box.scores:
        return '<svg aria-hidden="true"></svg><span class="value">no score</span>'
    stats = boxplot_stats(list(box.scores.values()))[0]
    low, first, median, third, high = (stats[key] for key in ("whislo", "q1", "med", "q3", "whishi"))
    told = (
        f"{heading}, {box.label}, {run}: median {median:{form}}, quartiles {first:{form}} and {third:{form}}, "
        f"from {min(box.scores.values()):{form}} to {max(box.scores.values()):{form}}, {len(box.scores)} cases"
    )
    at = scale.at
    points = "".join(
        f'<circle cx="{percent(at(score))}" cy="{13 + SHIFTS[place % len(SHIFTS)]}" r="2.5"><title>{escape(case)} '
        f"{score:{form}}</title></circle>"
        for place, (case, score) in enumerate(box.scores.items())
    )
    whisker = '<line class="whisker" x1="{}" x2="{}" y1="13" y2="13"/>'
    return (
        f'<svg class="{run_class(box.run)}" role="img" aria-label="{escape(told)}">{across(scale, labels=False)}'
        f"{whisker.format(percent(at(low)), percent(at(first)))}{whisker.format(percent(at(third)), percent(at(high)))}"
        f'<rect x="{percent(at(first))}" width="{percent(at(third) - at(first))}" y="4" height="18"/>{points}'
        f'<line class="median" x1="{percent(at(median))}" x2="{percent(at(median))}" y1="3" y2="23"/></svg>'
        f'<span class="value">{median:{form}}</span>'
    )


def _numbers(scale: Scale) -> str:
    return "".join(
        f'<text x="{percent(scale.at(tick))}" y="15" text-anchor="middle">{number(tick)}</text>' for tick in scale.ticks
    )

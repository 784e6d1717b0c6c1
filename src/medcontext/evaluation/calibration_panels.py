"""Calibration on the page: a reliability diagram for each label of each run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from medcontext.evaluation.charts import Scale, across, percent, upwards

SCALE = Scale((0.0, 0.25, 0.5, 0.75, 1.0))


def calibration_panels(name: str, calibration: Mapping[str, Any]) -> list[str]:
    """A panel for all classes together, where there is one, and one for each label.

    Bars are frequencies of the truth; a dot is a bin's mean probability (across) and frequency (up), on the diagonal
    where both agree, and larger the more voxels are in it. The line from dot to diagonal is what the expected
    calibration error averages.

    Args:
        name: Of the run.
        calibration: As :func:`medcontext.evaluation.calibration.summarise` gives it.
    """
    panels = {} if calibration["overall"] is None else {"Every voxel, largest probability": calibration["overall"]}
    panels |= {entry.get("name", f"label {label}"): entry for label, entry in calibration["labels"].items()}
    return [_panel(name, label, entry) for label, entry in panels.items()]


def _panel(run: str, label: str, entry: Mapping[str, Any]) -> str:
    error = "no voxels" if entry["ece"] is None else f"expected calibration error {entry['ece']:.3f}"
    told = "; ".join(f"{each['probability']:.2f} was true in {each['frequency']:.2f}" for each in entry["bins"])
    alt = f"{run}, {label}: {error}. Mean probability {told}."
    return (
        f"<figure>\n<figcaption><b>{escape(label)}</b> {escape(run)}, {error}</figcaption>\n"
        f'<svg class="plot square" role="img" aria-label="{escape(alt)}">'
        f'{upwards(SCALE)}{across(SCALE)}<line class="diagonal" x1="0" y1="100%" x2="100%" y2="0"/>'
        f'<g class="bars">{"".join(_bins(entry["bins"]))}</g></svg>\n</figure>'
    )


def _bins(bins: Sequence[Mapping[str, Any]]) -> list[str]:
    most = max((each["voxels"] for each in bins), default=1)
    drawn = []
    for each in bins:
        x, y = SCALE.at(each["probability"]), 100 - SCALE.at(each["frequency"])
        left, width = SCALE.at(each["low"]), SCALE.at(each["high"]) - SCALE.at(each["low"])
        drawn.append(
            f'<rect x="{percent(left)}" y="{percent(y)}" width="{percent(width)}" height="{percent(100 - y)}"/>'
            f'<line x1="{percent(x)}" x2="{percent(x)}" y1="{percent(100 - x)}" y2="{percent(y)}"/>'
            f'<circle cx="{percent(x)}" cy="{percent(y)}" r="{2 + 4 * math.sqrt(each["voxels"] / most):.2g}"/>'
        )
    return drawn

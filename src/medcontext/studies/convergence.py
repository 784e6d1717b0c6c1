"""Whether the arms of a study were trained to their end: what they still gained towards it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

LAST_QUARTER = 0.75
"""Share of the training after which it begins."""

STILL_GAINING = 0.005
"""Dice that an arm gains in the last quarter if it is not at its end."""

Run = Mapping[str, Any]


def by_arm(runs: Sequence[Run]) -> dict[tuple[tuple[str, str], ...], list[Run]]:
    """The runs of each combination of levels, the seed left out: (factor, level) of each -> runs."""
    arms: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        levels = tuple((factor, level) for factor, level in run["levels"].items() if factor != "seed")
        arms.setdefault(levels, []).append(run)
    return arms


def validations(history: Sequence[Run]) -> list[list[float]]:
    """``[step, Dice]`` of each validation of a run, of whichever of student and teacher is better there."""
    rows = [row for row in history if row["kind"] == "validation"]
    dices = [[row[key] for key in ("dice/student", "dice/teacher") if key in row] for row in rows]
    return [[row["step"], max(found)] for row, found in zip(rows, dices, strict=True) if found]


def convergence(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """How the validation of each arm went.

    Args:
        runs: Each with ``levels``, ``steps`` and ``validations``.

    Returns:
        For each arm ``levels``; ``steps`` and ``dice``, the mean over its seeds at the steps at which all of them were
        validated; ``last_quarter_gain``, the best of these in the last quarter of the training minus the best before,
        None where there is none on one side; ``ended_before``, whether it was validated, but not in the last quarter.
    """
    found = []
    for levels, of_arm in by_arm(runs).items():
        curves = [dict(run["validations"]) for run in of_arm]
        steps = sorted(set(curves[0]).intersection(*curves))
        dice = [fmean(curve[step] for curve in curves) for step in steps]
        border = LAST_QUARTER * of_arm[0]["steps"]
        before = [value for step, value in zip(steps, dice, strict=True) if step <= border]
        after = dice[len(before) :]
        gain = max(after) - max(before) if before and after else None
        found.append(
            {
                "levels": dict(levels),
                "steps": steps,
                "dice": dice,
                "last_quarter_gain": gain,
                "ended_before": bool(before) and not after,
            }
        )
    return found


def in_words(arm: Mapping[str, Any]) -> str:
    """One plain line about an arm."""
    name, gain = " / ".join(arm["levels"].values()), arm["last_quarter_gain"]
    if arm["ended_before"]:
        # A training that comes to its end is validated there.
        return f"{name}: not known, a run was stopped before the last quarter"
    if gain is None:
        return f"{name}: not known, it was validated too seldom"
    state = "still gaining" if gain > STILL_GAINING else "at its end"
    return f"{name}: {state}, {gain:+.4f} in the last quarter"

"""Scores of every case put together: means over the cases, then over the labels, with what they leave out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medcontext.evaluation.lesions import KEYS, Detection
from medcontext.evaluation.metrics import METRICS
from medcontext.evaluation.policies import OUTCOMES
from medcontext.evaluation.statistics import Scores, mean_intervals


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are defined; ``None`` where none is."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def summarise(
    rows: Sequence[Mapping[str, Any]], patients: Mapping[str, str], names: Mapping[int, str]
) -> dict[str, Any]:
    """Means of the rows of :func:`medcontext.evaluation.evaluate.evaluate`: its ``mean``.

    Args:
        rows: One for each case and label, all labels for each case.
        patients: Case to patient, of all cases.
        names: Label number to name, where it has one.
    """
    labels = list(dict.fromkeys(row["label"] for row in rows))
    by_label = {label: [row for row in rows if row["label"] == label] for label in labels}
    values = np.array([[[row[metric] for row in of] for of in by_label.values()] for metric in METRICS], dtype=float)
    people = [patients[row["case"]] for row in rows if row["label"] == labels[0]]
    of_labels, of_all = (
        mean_intervals(np.moveaxis(values, -1, 0), patients=people) if rows else (np.empty(0), np.empty(0))
    )
    entries = {
        str(label): {
            **({"name": names[label]} if label in names else {}),
            **{metric: mean(row[metric] for row in of_label) for metric in METRICS},
            "ci": _intervals(of_labels[:, place]),
            **_outcomes(of_label),
            **_lesions(of_label),
        }
        for place, (label, of_label) in enumerate(by_label.items())
    }
    return {
        **{metric: mean(entry[metric] for entry in entries.values()) for metric in METRICS},
        "ci": _intervals(of_all) if rows else dict.fromkeys(METRICS),
        "cases": len(patients),
        "labels": entries,
    }


def _intervals(ends: Scores) -> dict[str, list[float] | None]:
    """Metric to the ends of its interval; None where there is none."""
    found: dict[str, list[float] | None] = {}
    for metric, (low, high) in zip(METRICS, ends, strict=True):
        found[metric] = [float(low), float(high)] if np.isfinite(low) else None
    return found


def _outcomes(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """In how many cases the label is scored (in either map), missed, spurious and absent."""
    found = [row["outcome"] for row in rows]
    return {"scored": len(found) - found.count("absent")} | {
        outcome: found.count(outcome) for outcome in OUTCOMES if outcome != "both"
    }


def _lesions(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Lesions of all cases together, where they are counted for this label."""
    if KEYS[0] not in rows[0]:
        return {}
    total = Detection.total(Detection(*(row[key] for key in KEYS)) for row in rows)
    return {
        **total.row(),
        "lesions_sensitivity": total.sensitivity,
        "lesions_precision": total.precision,
        "lesions_spurious_per_case": total.spurious / len(rows),
    }

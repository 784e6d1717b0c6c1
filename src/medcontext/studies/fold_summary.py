"""The scores of a cross-validation: per fold, over folds, and over all cases, each of which was held out once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from medcontext.evaluation.compare import METRICS, OVERALL
from medcontext.evaluation.statistics import RESAMPLES, bootstrap_interval
from medcontext.evaluation.summary import mean

DEFINITION = {
    "folds": "mean over the held-out cases of each fold, each predicted by the model of its fold",
    "mean": "mean of the folds' means",
    "sd": "standard deviation of the folds' means (n - 1): how much the folds differ. It is no error of their mean, as "
    "any two folds share training cases",
    "pooled": "mean over all cases that have a score, each held out once",
    "interval": f"95 % percentile bootstrap interval of the pooled mean, {RESAMPLES:,} resamples of the patients, "
    "each with all of their cases. It speaks of new patients, not of new trainings",
    OVERALL: "mean over the labels of a case that have a score, then over cases",
}
"""What the numbers mean, in words that travel with them."""

COUNTS = ("scored", "missed", "spurious", "absent")


def summarise(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the scores of all folds together.

    Args:
        evaluations: What :func:`~medcontext.evaluation.evaluate.evaluate` returned for the held-out cases of each fold;
            no case in two of them.

    Returns:
        A plain dict that can be written as JSON. ``overall``, and each label of ``labels``, has ``dice`` and
        ``hd95_mm``, each with ``folds``, ``mean``, ``sd``, ``pooled``, ``interval`` and ``cases`` (that have a score),
        None where there is no score; labels have their ``name``, where known, and the counts of ``evaluate`` as well.
        ``cases`` are all cases; ``definition`` says what the numbers mean.
    """
    by_label: dict[int, list[Mapping[str, Any]]] = {}
    for evaluation in evaluations:
        for label, entry in evaluation["mean"]["labels"].items():
            by_label.setdefault(int(label), []).append(entry)
    return {
        "cases": sum(len({row["case"] for row in evaluation["cases"]}) for evaluation in evaluations),
        OVERALL: {metric: _entry(evaluations, metric) for metric in METRICS},
        "labels": {
            str(label): {
                **({"name": entries[0]["name"]} if "name" in entries[0] else {}),
                **{metric: _entry(evaluations, metric, label) for metric in METRICS},
                **{count: sum(entry[count] for entry in entries) for count in COUNTS},
            }
            for label, entries in sorted(by_label.items())
        },
        "definition": evaluations[0]["definition"] | {"cross_validation": dict(DEFINITION)},
    }


def _entry(evaluations: Sequence[Mapping[str, Any]], metric: str, label: int | None = None) -> dict[str, Any]:
    folds = [_scores(evaluation, metric, label) for evaluation in evaluations]
    means = [mean(scores.values()) for scores in folds]
    defined = [each for each in means if each is not None]
    pooled = [score for scores in folds for score in scores.values()]
    patients = [
        evaluation.get("patients", {}).get(case, case)
        for evaluation, scores in zip(evaluations, folds, strict=True)
        for case in scores
    ]
    interval = bootstrap_interval(np.array([pooled]), patients=patients, seed=0)
    return {
        "folds": means,
        "mean": mean(defined),
        "sd": stdev(defined) if len(defined) > 1 else None,
        "pooled": mean(pooled),
        "interval": None if interval is None else list(interval),
        "cases": len(pooled),
    }


def _scores(evaluation: Mapping[str, Any], metric: str, label: int | None) -> dict[str, float]:
    """Of every case that has one: the score of a label, or without one the mean over its labels."""
    by_case: dict[str, list[float]] = {}
    for row in evaluation["cases"]:
        if row[metric] is not None and label in (None, row["label"]):
            by_case.setdefault(row["case"], []).append(row[metric])
    return {case: fmean(scores) for case, scores in by_case.items()}


def folds_table(summary: Mapping[str, Any]) -> Table:
    """What :func:`summarise` returns, for the terminal: a row per label and metric, then the overall ones."""
    folds = len(summary[OVERALL]["dice"]["folds"])
    made = Table(caption=f"{summary['cases']} cases, each held out once")
    made.add_column("label", overflow="fold")
    made.add_column("score")
    for heading in (*(f"fold {fold}" for fold in range(folds)), "mean (SD)", "all cases [95 %]", "missed"):
        made.add_column(Text(heading), justify="right", overflow="fold")
    for label, entry in summary["labels"].items():
        name = Text(f"{label} {entry.get('name', '')}".strip())
        made.add_row(name, "Dice", *_cells(entry["dice"], ".3f"), f"{entry['missed']}")
        made.add_row("", "HD95 mm", *_cells(entry["hd95_mm"], ".2f"))
    made.add_section()
    made.add_row(OVERALL, "Dice", *_cells(summary[OVERALL]["dice"], ".3f"))
    made.add_row("", "HD95 mm", *_cells(summary[OVERALL]["hd95_mm"], ".2f"))
    return made


def _cells(entry: Mapping[str, Any], form: str) -> list[str]:
    def said(value: float | None) -> str:
        return "-" if value is None else format(value, form)

    spread = "" if entry["sd"] is None else f" ({said(entry['sd'])})"
    ends = "" if entry["interval"] is None else f" [{', '.join(map(said, entry['interval']))}]"
    return [*map(said, entry["folds"]), said(entry["mean"]) + spread, said(entry["pooled"]) + ends]

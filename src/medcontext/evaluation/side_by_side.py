"""Scores of two methods side by side: which cases both have, of which seed, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medcontext.evaluation.statistics import Scores


def cases_of(evaluation: Mapping[str, Any]) -> set[str]:
    """Names of the cases of an evaluation."""
    return {row["case"] for row in evaluation["cases"]}


def labels_of(evaluations: Sequence[Mapping[str, Any]]) -> list[int]:
    """The labels that any of the evaluations has scores of."""
    return sorted({row["label"] for each in evaluations for row in each["cases"]})


def patients_among(cases: Sequence[str], evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whose each case is, as far as any of the evaluations says."""
    known = {case: patient for each in evaluations for case, patient in each.get("patients", {}).items()}
    return [known.get(case, case) for case in cases]


def seed_by_seed(*methods: Sequence[Mapping[str, Any]]) -> Sequence[Sequence[Mapping[str, Any]]]:
    """The same with the cases of folds put together, for each seed; as they are where there is one seed of folds, which
    can't be told from trainings with cases of their own."""
    together: list[list[dict[str, Any]]] = [[] for _ in methods]
    seen: set[str] = set()
    for each in zip(*methods, strict=True):
        cases = set().union(*map(cases_of, each))
        if not together[0] or cases & seen:
            seen = set()
            for of_method in together:
                of_method.append({"cases": []})
        seen |= cases
        for of_method, evaluation in zip(together, each, strict=True):
            of_method[-1]["cases"] += evaluation["cases"]
    return methods if len(together[0]) == 1 else together


def paired_scores(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    metric: str,
    cases: Sequence[str],
    labels: Sequence[int],
) -> tuple[Scores, Scores]:
    """Scores of both, ``(seeds, cases, labels)`` each, NaN where there is none."""
    one, two = _scores(first, metric, cases, labels), _scores(second, metric, cases, labels)
    if metric != "dice":
        return one, two
    # What has no Dice is absent in the truth and not predicted; where the other method has 0, it invented something.
    held = in_both(first, second, cases)
    right = [held[..., None] & np.isnan(own) & (other == 0) for own, other in ((one, two), (two, one))]
    return np.where(right[0], 1.0, one), np.where(right[1], 1.0, two)


def in_both(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], cases: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """Of each seed and case, whether both have it."""
    held = [cases_of(a) & cases_of(b) for a, b in zip(first, second, strict=True)]
    return np.array([[case in each for case in cases] for each in held], dtype=bool).reshape(len(held), len(cases))


def _scores(
    evaluations: Sequence[Mapping[str, Any]], metric: str, cases: Sequence[str], labels: Sequence[int]
) -> Scores:
    """``(seeds, cases, labels)``, NaN where there is no score."""
    at_case = {case: k for k, case in enumerate(cases)}
    at_label = {label: k for k, label in enumerate(labels)}
    scores = np.full((len(evaluations), len(cases), len(labels)), np.nan)
    for seed, evaluation in enumerate(evaluations):
        for row in evaluation["cases"]:
            if row[metric] is not None and row["case"] in at_case:
                scores[seed, at_case[row["case"]], at_label[row["label"]]] = row[metric]
    return scores


def over_labels(scores: Scores, defined: Any) -> Scores:
    """Mean over the labels that are defined; NaN where none is."""
    count = defined.sum(axis=-1)
    total = np.where(defined, scores, 0).sum(axis=-1)
    means: Scores = np.where(count > 0, total / np.maximum(1, count), np.nan)
    return means

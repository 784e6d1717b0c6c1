"""Two methods on the same cases: is one better, by how much, for which label."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from medcontext.data.split import patients_of
from medcontext.errors import MedContextError
from medcontext.evaluation.evaluate import evaluate
from medcontext.evaluation.policies import DEFAULT
from medcontext.evaluation.side_by_side import (
    cases_of,
    in_both,
    labels_of,
    over_labels,
    paired_scores,
    patients_among,
    seed_by_seed,
)
from medcontext.evaluation.statistics import DEFINITION, Paired, Scores, holm, paired
from medcontext.files import read_json

METRICS = {"dice": True, "hd95_mm": False}
"""Metric -> whether higher is better."""

OVERALL = "overall"

Methods = tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]
"""Results of :func:`~medcontext.evaluation.evaluate.evaluate` of two methods, one of each for each seed."""


def compare(first: Path, second: Path, truth: Path | None = None, *, patient: str | None = None) -> dict[str, Any]:
    """Compare two sets of predictions of the same cases.

    Args:
        first: The baseline: a run folder that has been scored, a file that ``medcontext evaluate --json`` wrote, or,
            with ``truth``, a folder of label maps.
        second: The same of the other method.
        truth: Folder of true label maps.
        patient: Regular expression that finds the patient in a case's name; None: as the scores say, or else every case
            is a patient.

    Returns:
        As :func:`compare_evaluations`.

    Raises:
        MedContextError: Nothing to compare there, no case that both have, or scores by different rules.
    """
    return compare_runs([first], [second], truth, patient=patient)


def compare_runs(
    first: Sequence[Path], second: Sequence[Path], truth: Path | None = None, *, patient: str | None = None
) -> dict[str, Any]:
    """The same for several seeds: the runs at the same place in both lists are paired.

    Raises:
        MedContextError: Also where the lists differ in length.
    """
    if len(first) != len(second) or not first:
        raise MedContextError(
            "Runs are compared in pairs, one of each method for each seed.",
            found=f"{len(first)} and {len(second)} runs",
            remedy="give as many of one method as of the other, seed by seed",
        )
    for paths in (first, second):
        twice = next((path for path in paths if paths.count(path) > 1), None)
        if twice is not None:
            raise MedContextError(
                "A run counts as one seed.", file=twice, found="it is named twice", remedy="name each run once"
            )
    read = partial(_evaluation, truth=truth, patient=patient)
    pairs = [(read(a), read(b)) for a, b in zip(first, second, strict=True)]
    every = [*zip(first, (a for a, _ in pairs), strict=True), *zip(second, (b for _, b in pairs), strict=True)]
    for one, other in combinations(every, 2):
        _require_alike(*one, *other)
    for (a, b), (of_a, of_b) in zip(zip(first, second, strict=True), pairs, strict=True):
        if not cases_of(of_a) & cases_of(of_b):
            raise MedContextError(
                "These two have no case in common.",
                file=b,
                found=", ".join(sorted(cases_of(of_b))[:3]),
                expected=f"cases of {a}, such as {', '.join(sorted(cases_of(of_a))[:3])}",
                remedy="compare runs that were tested on the same cases",
            )
    return compare_evaluations([a for a, _ in pairs], [b for _, b in pairs])


def compare_evaluations(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare results of :func:`~medcontext.evaluation.evaluate.evaluate`, one of each method for each seed.

    The overall score of a case is the mean over its labels in which both methods have a score. Cases that only one of
    a pair has are left out. Whose case each is, ``patients`` of an evaluation says, if it is there (case -> patient, of
    those that are not called as their case is). Where a label is in neither the truth nor the prediction of one method,
    so that it has no Dice, and in the prediction of the other, the first has found what there is: its Dice counts as 1
    here. Folds of one seed that follow one another, sharing no case, count as one seed if there is another after them.

    Returns:
        A plain dict that can be written as JSON: ``seeds``; ``unpaired`` (cases, over the seeds, that only one of a
        pair has); for ``dice`` and ``hd95_mm`` each ``overall`` and ``labels`` (label -> ``name`` where known, and the
        fields of :class:`~medcontext.evaluation.statistics.Paired`; overall, ``left_out`` counts a case's labels one by
        one), None where no pair has a score; ``definition``.
    """
    labels = labels_of([*first, *second])
    cases = sorted({case for a, b in zip(first, second, strict=True) for case in cases_of(a) & cases_of(b)})
    unpaired = sum(len(cases_of(a) ^ cases_of(b)) for a, b in zip(first, second, strict=True))
    names = {
        int(label): entry["name"]
        for each in (*first, *second)
        for label, entry in each["mean"]["labels"].items()
        if "name" in entry
    }
    patients = patients_among(cases, (*first, *second))
    first, second = seed_by_seed(first, second)
    held = in_both(first, second, cases)
    result: dict[str, Any] = {"seeds": len(first), "unpaired": unpaired}
    for metric, higher in METRICS.items():
        one, two = paired_scores(first, second, metric, cases, labels)
        defined = np.isfinite(one) & np.isfinite(two)
        # A case that a seed has not, as it lies in another fold, is no pair that is left out.
        without = (held[..., None] & ~defined).sum(axis=(0, 1))
        compared = partial(paired, patients=patients, higher_is_better=higher)
        overall = compared(over_labels(one, defined), over_labels(two, defined))
        each = [compared(one[..., k], two[..., k]) for k in range(len(labels))]
        corrected = iter(holm([found.p for found in each if found is not None]))
        by_label = {
            str(label): None
            if found is None
            else ({"name": names[label]} if label in names else {})
            | dataclasses.replace(found, p_holm=next(corrected), left_out=int(left_out)).to_dict()
            for label, found, left_out in zip(labels, each, without, strict=True)
        }
        if overall is not None:
            overall = dataclasses.replace(overall, left_out=int(without.sum()))
        result[metric] = {OVERALL: None if overall is None else overall.to_dict(), "labels": by_label}
    return result | {"definition": dict(DEFINITION)}


def per_case(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Case -> difference of its overall Dice, second minus first, averaged over the seeds; the largest first."""
    cases = sorted({case for a, b in zip(first, second, strict=True) for case in cases_of(a) & cases_of(b)})
    gains = _gains(first, second, cases, labels_of([*first, *second]))
    means = over_labels(gains, np.isfinite(gains))
    known = np.isfinite(means)
    by_case = np.where(known, means, 0).sum(axis=0) / np.maximum(1, known.sum(axis=0))
    found = [(case, float(by_case[k])) for k, case in enumerate(cases) if known[:, k].any()]
    return dict(sorted(found, key=lambda pair: (-pair[1], pair[0])))


def compare_gains(one: Methods, other: Methods) -> Paired | None:
    """Whether what one method gains over its baseline in overall Dice is more than what another gains over another.

    Args:
        one: Results of a baseline, one for each seed, and those of the method beside it.
        other: The same for the second gain, of the same seeds.

    Returns:
        The gains compared over the cases, second minus first, in the labels that have both; None where none has.
    """
    every = [each for methods in (*one, *other) for each in methods]
    cases = sorted(set().union(*map(cases_of, every)))
    labels, patients = labels_of(every), patients_among(cases, every)
    before, after, other_before, other_after = seed_by_seed(*one, *other)
    pairs = ((before, after), (other_before, other_after))
    gains = [_gains(*methods, cases, labels) for methods in pairs]
    # Where neither of two has a Dice, they find alike that a label is absent: no gain, beside one that invents it.
    alike = [in_both(*methods, cases)[..., None] & np.isnan(each) for methods, each in zip(pairs, gains, strict=True)]
    gains = [np.where(alike[k] & np.isfinite(gains[1 - k]), 0.0, gains[k]) for k in (0, 1)]
    defined = np.isfinite(gains[0]) & np.isfinite(gains[1])
    first, second = (over_labels(each, defined) for each in gains)
    return paired(first, second, patients=patients)


def _gains(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    cases: Sequence[str],
    labels: Sequence[int],
) -> Scores:
    """Differences of Dice ``(seeds, cases, labels)``, NaN where there is none."""
    before, after = paired_scores(first, second, "dice", cases, labels)
    return after - before


def _evaluation(path: Path, truth: Path | None, patient: str | None) -> dict[str, Any]:
    """What was measured: read from a run folder or a file, or measured now."""
    if truth is not None:
        return evaluate(path, truth, patient=patient)
    file = path / "test" / "evaluation.json" if path.is_dir() else path
    if not file.is_file():
        raise MedContextError(
            "There are no scores here to compare.",
            file=path,
            expected="a run folder with test/evaluation.json, or a file of 'medcontext evaluate --json'",
            remedy="write the run's report first (medcontext report); of a cross-validation name the folds, "
            "[CV/fold-0,CV/fold-1]; for a folder of label maps give --truth",
        )
    result: dict[str, Any] = read_json(file)
    if not isinstance(result, dict) or not {"cases", "mean"} <= result.keys():
        raise MedContextError(
            "This file holds no scores.", file=file, expected="what 'medcontext evaluate --json' writes"
        )
    if patient is not None:
        result["patients"] = patients_of(sorted(cases_of(result)), patient)
    return result


def _require_alike(one: Path, first: Mapping[str, Any], file: Path, second: Mapping[str, Any]) -> None:
    """Refuse two that were scored by different rules, or in which a number stands for different structures, as far as
    they say what it stands for."""
    if _scored_by(first) != _scored_by(second):
        raise MedContextError(
            "These two were scored by different rules.",
            file=file,
            found=_scored_by(second),
            expected=f"{_scored_by(first)}, as {one}",
            remedy="score both alike (medcontext evaluate --policy --hd95)",
        )

    def told(evaluation: Mapping[str, Any], label: str) -> tuple[str | None, Any]:
        numbers = evaluation.get("settings", {}).get("structures", {}).get(label)
        return evaluation["mean"]["labels"][label].get("name"), numbers

    for label in first["mean"]["labels"].keys() & second["mean"]["labels"].keys():
        before, now = told(first, label), told(second, label)
        if any(None not in pair and pair[0] != pair[1] for pair in zip(before, now, strict=True)):
            raise MedContextError(
                "These two were scored on different structures.",
                file=file,
                found=f"{label} is {_structure(*now)}",
                expected=f"{_structure(*before)}",
                remedy="score both with the labels of one data set (medcontext evaluate --data)",
            )


def _structure(name: str | None, numbers: Sequence[int] | None) -> str:
    of = "" if numbers is None else f" (label {' and '.join(map(str, numbers))})"
    return f"{name or 'a structure without a name'}{of}"


def _scored_by(evaluation: Mapping[str, Any]) -> str:
    """The rules that Dice and HD95 depend on; results from before there was a choice are by the defaults."""
    settings = evaluation.get("settings", {"policy": DEFAULT, "hd95": "pooled"})
    return f"policy {settings['policy']}, {settings['hd95']} HD95"

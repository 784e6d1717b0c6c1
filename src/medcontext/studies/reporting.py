"""The report of runs and of cross-validations: their held-out cases scored, and everything gathered for the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from medcontext.data.dataset import Dataset
from medcontext.errors import MedContextError
from medcontext.evaluation.report import picks, write_report
from medcontext.evaluation.run_results import RunResults
from medcontext.evaluation.summary import summarise
from medcontext.files import require_writable
from medcontext.inference.models import model_files
from medcontext.progress import Progress
from medcontext.studies.holdout import data_of, score_held_out
from medcontext.studies.masked_pass import masked_pass
from medcontext.studies.run_facts import environment, facts
from medcontext.training.run import RunFolder

Folds = Mapping[str, RunFolder]
"""Name of a fold -> its run folder; of a single run, the name is empty."""


def report_runs(
    runs: Sequence[Path],
    *,
    out: Path | None = None,
    calibration: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> Path:
    """Score the held-out cases of the runs and write a page about them.

    Args:
        runs: Run folders, or folders of cross-validations, of which each case counts once; the page is about the
            first, and compares it with the others.
        out: The page; None: ``report.html`` in the first of them.
        calibration: Also predict probabilities, and show how well they are calibrated.
        device: To predict on.
        progress: Where to say how far it is.

    Returns:
        The page.

    Raises:
        MedContextError: A folder is no run or given twice, its scans are gone, or a case can't be predicted.
    """
    progress = progress or Progress(quiet=True)
    page = out or RunFolder(runs[0]).report
    require_writable(page)
    folders = [_folds(path) for path in runs]
    _require_once(runs)
    trained_on = {_data(folds): next(iter(folds.values())) for folds in folders}
    datasets = {path: data_of(run) for path, run in trained_on.items()}
    results: list[RunResults] = []
    for name, folds in zip(_names(runs, folders), folders, strict=True):
        dataset = datasets[_data(folds)]
        evaluations = {
            fold: score_held_out(run, dataset, calibration=calibration, device=device, progress=progress)
            for fold, run in folds.items()
        }
        results.append(_results(name, folds, evaluations, dataset, results[0] if results else None))
    first = datasets[_data(folders[0])]
    scans = {name: (case.images, case.label) for name, case in first.cases.items()}
    title = " and ".join(dict.fromkeys(dataset.name for dataset in datasets.values()))
    write_report(page, results, scans, f"MedContext on {title}")
    return page


def _folds(path: Path) -> Folds:
    if not path.is_dir():
        raise MedContextError("There is no such run folder.", file=path, remedy="check the path")
    files = model_files(path)
    found = {RunFolder(file.parent).path for file in files}
    if found == {path}:
        return {"": RunFolder(path)}
    return {file.parent.name.replace("-", " "): RunFolder(file.parent) for file in files}


def _require_once(runs: Sequence[Path]) -> None:
    seen: set[Path] = set()
    for path in runs:
        if path.resolve() in seen:
            raise MedContextError("This run is given twice.", file=path, remedy="name each run once")
        seen.add(path.resolve())


def _data(folds: Folds) -> Path:
    """The data set that a run, or the first fold, was trained on."""
    first = next(iter(folds.values()))
    first.read_config()
    return first.data


def _names(paths: Sequence[Path], folders: Sequence[Folds]) -> list[str]:
    """The presets where they tell the runs apart; else the folders' names with them, or their whole paths."""
    presets = [str(next(iter(folds.values())).read_config()["preset"]) for folds in folders]
    for told in (path.name for path in paths), (str(path) for path in paths):
        if len(set(presets)) == len(presets):
            break
        names = [f"{preset} ({each})" for preset, each in zip(presets, told, strict=True)]
        if len(set(names)) == len(names):
            return names
    return presets


def _results(
    name: str, folds: Folds, evaluations: Mapping[str, dict[str, Any]], dataset: Dataset, first: RunResults | None
) -> RunResults:
    structures = next(iter(folds.values())).read_plan().labels.structures
    names = {label: called for label, (called, _) in structures.items()}
    evaluation = pooled(list(evaluations.values()), names)
    results = RunResults(
        name=name,
        data=dataset.root,
        facts=_facts_of(folds, evaluations),
        environment=_together({fold: environment(run) for fold, run in folds.items()}),
        histories={fold: run.history() for fold, run in folds.items()},
        evaluation=evaluation,
        predictions={case: file for run in folds.values() for case, file in _predictions(run).items()},
        structures=structures,
        calibrations={fold: each["calibration"] for fold, each in evaluations.items() if "calibration" in each},
    )
    case = _median(first if first is not None and first.data == results.data else results)
    if case not in results.predictions:
        case = _median(results)
    run = next(run for run in folds.values() if case in run.read_split().test)
    return dataclasses.replace(results, masked=masked_pass(run, case, dataset.cases[case]))


def _predictions(run: RunFolder) -> dict[str, Path]:
    return {case: run.predictions / f"{case}.nii.gz" for case in run.read_split().test}


def _median(results: RunResults) -> str:
    """The case that the page calls the median one; any, where it has fewer than three."""
    dices = results.dice_by_case()
    ranked = sorted(dices, key=lambda case: (-(dices[case] or 0.0), case))
    chosen = picks(ranked)
    return chosen.get("median", ranked[0])


def pooled(evaluations: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> dict[str, Any]:
    """Scores of all folds as if they were of one run: each case was held out once.

    Args:
        evaluations: What :func:`~medcontext.evaluation.evaluate.evaluate` returned for each fold.
        names: Label -> name.

    Raises:
        MedContextError: A case was held out in two folds.
    """
    if len(evaluations) == 1:
        return dict(evaluations[0])
    by_fold = [{row["case"] for row in each["cases"]} for each in evaluations]
    cases = set().union(*by_fold)
    if sum(map(len, by_fold)) > len(cases):
        twice = next(case for case in sorted(cases) if sum(case in fold for fold in by_fold) > 1)
        raise MedContextError(
            "These folds don't hold out each case once.", found=f"'{twice}' in two of them",
            remedy="report the folds one by one, as runs of their own",
        )  # fmt: skip
    rows = [row for each in evaluations for row in each["cases"]]
    lists = {
        key: [case for each in evaluations for case in each[key]]
        for key in ("unpredicted", "without_truth", "resampled")
    }
    told = {case: patient for each in evaluations for case, patient in each.get("patients", {}).items()}
    mean = summarise(rows, {case: told.get(case, case) for case in cases}, names)
    return {**evaluations[0], **lists, "patients": told, "cases": rows, "mean": mean}


def _facts_of(folds: Folds, evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Facts of a run; those in which folds differ, fold by fold, and the Dice of each."""
    told = _together({fold: facts(run) for fold, run in folds.items()})
    if len(folds) == 1:
        return told
    means = [each["mean"]["dice"] for each in evaluations.values() if each["mean"]["dice"] is not None]
    spread = f", mean {fmean(means):.3f} (SD {stdev(means):.3f})" if len(means) > 1 else ""
    return {"Folds": f"{len(folds)}, mean Dice {', '.join(f'{each:.3f}' for each in means)}{spread}"} | told


def _together(by_fold: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """One text for each fact: the common one, or that of each fold."""
    told = {}
    for key in dict.fromkeys(key for each in by_fold.values() for key in each):
        values = {fold: each.get(key, "not recorded") for fold, each in by_fold.items()}
        alike = len(set(values.values())) == 1
        told[key] = next(iter(values.values())) if alike else "; ".join(f"{f}: {text}" for f, text in values.items())
    return told

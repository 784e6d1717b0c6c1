"""What came of a study: every run's scores, the comparisons, and the summary over all studies."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from medcontext.errors import MedContextError
from medcontext.evaluation.statistics import DEFINITION
from medcontext.files import read_json, write_json, write_text
from medcontext.studies.comparisons import compared, gains_compared
from medcontext.studies.convergence import convergence
from medcontext.studies.kept_pictures import KeptPictures
from medcontext.studies.missing_parts import MISSING
from medcontext.studies.outcome import Outcome, missing_table, of_folder, split_name, table_of
from medcontext.studies.study import state_of
from medcontext.studies.study_file import Study
from medcontext.training.run import RunFolder, source_commit

SUMMARISED = ("equal_steps", "equal_compute")
"""Comparisons of these names make rows of the summary."""

ONE_ROW = ("dataset", "split", "network", "preset", "arm", "learning_rates", "training_cases", "levels", "comparison")
"""What rows of the summary differ in."""

SUMMARY = "summary.json"

Done = Sequence[Outcome]


def gather(study: Study, out: Path, results: Path, recorded: Mapping[str, Outcome] | None = None) -> dict[str, Any]:
    """Write what came of a study so far.

    Into ``results``: ``STUDY.json`` (what is returned), ``STUDY.csv`` (a row per run, case and label),
    ``STUDY-missing-KIND.csv`` (the same with parts of the scans missing, where that was scored), ``STUDY.md`` (tables
    for people), ``STUDY.svg`` (the gains, where anything is compared), ``STUDY-convergence.svg`` (validation
    over the steps), pictures of the best and the worst cases in ``STUDY/``, where the study asks for them and scans and
    predictions are at hand, or were when the same was found, and ``summary.json`` anew.

    Args:
        study: The study.
        out: Its folder.
        results: Folder for the results of all studies.
        recorded: Runs by name that count where they are not done in ``out``
            (:func:`medcontext.studies.recorded.recorded`).

    Returns:
        ``study``, ``about``, ``dataset``, ``split`` (name and hash), ``date``, ``commits``, ``hardware``, ``software``,
        ``settings`` (those that all runs share), ``runs`` (each with the rest of its own), ``missing`` (runs that are
        not done), ``left_out`` (those of them whose folders do not hold what the study asks for), ``labels`` (their
        names), ``patients`` (of cases that are not called as their patient is), ``convergence`` (as
        :func:`medcontext.studies.convergence.convergence` returns it), ``comparisons``,
        ``missing_parts`` (the comparisons with parts of the scans missing), ``gains`` (as
        :func:`medcontext.studies.comparisons.gains_compared` yields them, and ``missing``: the kind of missing parts,
        None of whole scans), ``scored_with_missing`` (kind of missing
        parts -> how many of the runs have these scores) and ``definition``.

    Raises:
        MedContextError: No run is done.
    """
    from medcontext.studies.figures import convergence_figure, gains_figure
    from medcontext.studies.tables import results_page

    done, left_out = _outcomes(study, out, recorded or {})
    if not done and left_out:
        raise next(iter(left_out.values()))
    if not done:
        raise MedContextError(
            "No run of this study is done.", file=out, remedy="run the study first (medcontext study FILE)"
        )
    runs = [outcome.facts for outcome in done]
    shared = _shared([run["settings"] for run in runs])
    names = {outcome.planned.name for outcome in done}
    pictures = KeptPictures.of(study, results)
    found: dict[str, Any] = _facts(study, runs) | {
        "settings": shared,
        "runs": [_without(run, shared) for run in runs],
        "missing": [planned.name for planned in study.runs if planned.name not in names],
        "left_out": list(left_out),
        "labels": dict(done[0].labels),
        "patients": {case: patient for outcome in done for case, patient in outcome.patients.items()},
        "convergence": convergence(runs),
        "comparisons": list(compared(pictures, done)),
        "missing_parts": [
            {"missing": kind, **row} for kind in MISSING for row in compared(pictures, _damaged(done, kind), kind)
        ],
        "gains": [
            {"missing": kind, **row}
            for kind, scored in ((None, done), *((kind, _damaged(done, kind)) for kind in MISSING))
            for row in gains_compared(study, scored)
        ],
        "scored_with_missing": _scored_with_missing(study, done),
        "definition": {**done[0].definition, "comparison": dict(DEFINITION)},
    }
    # Before the JSON, which says that these scores are there: what is broken off in between leaves a study to read.
    write_text(results / f"{study.name}.csv", table_of(done))
    for kind in MISSING:
        damaged, file = _damaged(done, kind), results / missing_table(study.name, kind)
        if damaged:
            write_text(file, table_of(damaged))
        else:
            # It would be taken for scores of the present runs, which go by their names.
            file.unlink(missing_ok=True)
    write_json(results / f"{study.name}.json", found)
    figures = {
        f"{study.name}.svg": gains_figure(found["comparisons"]),
        f"{study.name}-convergence.svg": convergence_figure(found["convergence"]),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name in figures.keys() - drawn.keys():
        # It would show what there was before.
        (results / name).unlink(missing_ok=True)
    for name, figure in drawn.items():
        write_text(results / name, figure)
    write_text(results / f"{study.name}.md", results_page(found, figures=drawn))
    write_json(results / SUMMARY, summary(results))
    return found


def _outcomes(
    study: Study, out: Path, recorded: Mapping[str, Outcome]
) -> tuple[list[Outcome], dict[str, MedContextError]]:
    """Of every run that is done, in the order of the study; and those whose folders can't be taken for theirs."""
    done, left_out = [], {}
    for planned in study.runs:
        try:
            if state_of(planned, out) == "done":
                done.append(of_folder(planned, RunFolder(out / planned.name)))
                continue
        except MedContextError as error:
            if planned.name not in recorded:
                left_out[planned.name] = error
        if planned.name in recorded:
            done.append(recorded[planned.name])
    return done, left_out


def summary(results: Path) -> list[dict[str, Any]]:
    """A row per data set, split, network, preset, arm, learning rates, number of training cases, levels of others, and
    comparison, from all studies in a folder: where several make one, from that of the most seeds, and of those of the
    most steps.

    ``dice_gain`` is MedContext minus baseline, ``hd95_mm_gain`` baseline minus MedContext: above 0 is better in both.
    ``..._ci`` are the 95 % intervals of the gains; ``seeds`` is how many seeds both have.
    """
    files = [file for file in sorted(results.glob("*.json")) if file.name != SUMMARY]
    made = [
        _summary_row(found, each)
        for found in map(read_json, files)
        if isinstance(found, dict) and "study" in found
        for each in found["comparisons"]
        if each["name"] in SUMMARISED
    ]
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in filter(None, made):
        key = tuple(map(str, (row[key] for key in ONE_ROW)))
        rows[key] = max(rows.get(key, row), row, key=lambda row: (row["seeds"], row["steps_medcontext"]))
    return list(rows.values())


def _summary_row(found: Mapping[str, Any], comparison: Mapping[str, Any]) -> dict[str, Any] | None:
    dice, hd95 = (comparison["result"][metric]["overall"] for metric in ("dice", "hd95_mm"))
    if dice is None:
        return None
    # Results that an earlier version wrote do not say.
    steps = comparison.get("steps", [0, 0])
    row = {
        "dataset": found["dataset"],
        "split": found["split"],
        "network": comparison["network"],
        "preset": comparison["preset"],
        "arm": comparison["arm"],
        "learning_rates": [_learning_rate(found, comparison, comparison[arm]) for arm in ("baseline", "arm")],
        "training_cases": comparison["training_cases"],
        "levels": {key: level for key, level in comparison["levels"].items() if key != "training_cases"},
        "comparison": comparison["name"],
        "seeds": len(comparison["seeds"]),
        "steps_baseline": steps[0],
        "steps_medcontext": steps[1],
        "study": found["study"],
    }
    for metric, entry, sign in (("dice", dice, 1), ("hd95_mm", hd95, -1)):
        gain, interval = (None, None) if entry is None else (sign * entry["difference"], entry["interval"])
        row |= {
            f"{metric}_baseline": entry and entry["first"],
            f"{metric}_medcontext": entry and entry["second"],
            f"{metric}_gain": gain,
            f"{metric}_gain_ci": interval and sorted(sign * end for end in interval),
        }
    return row


def _learning_rate(found: Mapping[str, Any], comparison: Mapping[str, Any], arm: str) -> float:
    """Of the runs of an arm that were compared."""
    levels = {**comparison["levels"], "arm": arm}.items()
    return next(float(run["learning_rate"]) for run in found["runs"] if levels <= run["levels"].items())


def _facts(study: Study, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What holds for the study as a whole."""
    split = study.runs[0].config.split
    assert split is not None
    return {
        "study": study.name,
        "about": study.about,
        "dataset": study.data.name,
        "split": split_name(split),
        "date": time.strftime("%Y-%m-%d"),
        "commits": sorted({run["commit"] for run in runs}),
        "gathered_at_commit": source_commit(),
        "hardware": sorted({run["hardware"] for run in runs}),
        "software": sorted({run["software"] for run in runs}),
    }


def _shared(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that all have alike."""
    first, *others = settings
    return {key: value for key, value in first.items() if all(key in other and other[key] == value for other in others)}


def _without(run: Mapping[str, Any], shared: Collection[str]) -> dict[str, Any]:
    """A run with the settings of its own alone."""
    return {**run, "settings": {key: value for key, value in run["settings"].items() if key not in shared}}


def _damaged(done: Done, kind: str) -> Done:
    """The runs that were also scored with such parts missing, with those scores."""
    return [dataclasses.replace(outcome, rows=outcome.missing[kind]) for outcome in done if outcome.missing.get(kind)]


def _scored_with_missing(study: Study, done: Done) -> dict[str, int]:
    counts = {kind: len(_damaged(done, kind)) for kind in MISSING}
    return counts if any(counts.values()) or any(planned.missing_parts for planned in study.runs) else {}

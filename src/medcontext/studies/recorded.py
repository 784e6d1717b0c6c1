"""Runs that results hold: they live on without their folders, for the study that made them and for others that ask for
the same."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medcontext.errors import MedContextError
from medcontext.files import read_json
from medcontext.method.presets import MethodConfig
from medcontext.studies.missing_parts import MISSING
from medcontext.studies.outcome import METRICS, PLACES, Outcome, Rows, flat, missing_table, patients_in, split_name
from medcontext.studies.study_file import PlannedRun, Study
from medcontext.training.config import TrainConfig
from medcontext.training.resume import NONE_SAYS
from medcontext.training.run import plain


def recorded(study: Study, results: Path) -> dict[str, Outcome]:
    """The runs of a study that results hold, by name: made with the settings, the data set and the split that it asks
    for now, by itself or else by another study, which the fact ``of_study`` of the run names then.

    Args:
        study: The study.
        results: Folder with the ``STUDY.json`` and ``STUDY.csv`` of studies, if it has any.

    Raises:
        MedContextError: What is there are not the results of a study.
    """
    split = study.runs[0].config.split
    if split is None or not split.is_file():
        return {}
    own = results / f"{study.name}.json"
    held = [_held_by(file, study, split_name(split)) for file in (own, *sorted({*results.glob("*.json")} - {own}))]
    found = {}
    for planned in study.runs:
        same = [(place, outcomes[planned.name]) for place, outcomes in enumerate(held) if planned.name in outcomes]
        if same:
            # Of other studies' runs, which were made alike, the one that was scored in most ways; and rather as that
            # study has it now than as it was taken over from it once.
            _, found[planned.name] = max(
                same, key=lambda each: ("of_study" not in each[1].facts, len(each[1].missing), each[0] > 0)
            )
    return found


def _held_by(file: Path, study: Study, split: str) -> dict[str, Outcome]:
    """Those of the study's runs that the results in one file hold."""
    told = read_json(file) if file.is_file() else None
    if not isinstance(told, dict) or "study" not in told:
        return {}
    try:
        if (told["dataset"], told["split"]) != (study.data.name, split):
            return {}
        same = _same_runs(study, told)
        rows = _read_table(file.with_suffix(".csv")) if same else {}
        kinds = {kind: file.parent / missing_table(told["study"], kind) for kind in MISSING if same}
        missing = {kind: _read_table(each) for kind, each in kinds.items() if each.is_file()}
        definition = {key: value for key, value in told["definition"].items() if key != "comparison"}
        return {
            planned.name: Outcome(
                planned,
                run | {"name": planned.name, "levels": dict(planned.levels)} | _origin(study, told),
                rows[run["name"]],
                patients_in(told, rows[run["name"]], planned),
                {kind: of_runs[run["name"]] for kind, of_runs in missing.items() if run["name"] in of_runs},
                told["labels"],
                definition,
                None,
            )
            for planned, run in same
        }
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise MedContextError(
            "The results of this study can't be read.",
            file=file,
            found=f"{type(error).__name__}: {error}",
            expected="what this version of 'medcontext study' writes there, and its .csv beside it",
            remedy="put both files back as they were, or move them away to gather anew what has its folder",
        ) from None


def _same_runs(study: Study, told: Mapping[str, Any]) -> list[tuple[PlannedRun, dict[str, Any]]]:
    """Runs that the study asks for, and the entries of those that were made so, whatever they were called. Of another
    study those that it made itself count, so that moving away results has their runs done anew."""
    own = told["study"] == study.name
    # A setting that there was not yet counts at its default, at which it changes nothing.
    defaults = flat(plain(TrainConfig(method=MethodConfig())))
    made = [run | {"settings": told["settings"] | run["settings"]} for run in told["runs"]]
    candidates = [(run, defaults | run["settings"]) for run in made if own or "of_study" not in run]
    same: dict[str, list[dict[str, Any]]] = {}
    spacings = {tuple(settings["spacing"]) for _, settings in candidates}
    asked = {
        spacing: {planned.name: _asked(planned, spacing).items() for planned in study.runs} for spacing in spacings
    }
    for run, settings in candidates:
        fitting = {
            name: wanted for name, wanted in asked[tuple(settings["spacing"])].items() if wanted <= settings.items()
        }
        named = fitting.get(run["name"]) if own else None
        for name, wanted in fitting.items():
            # What an arm leaves to the plan, an arm beside it may set: its runs are not those of the first.
            if wanted == named if named is not None else not any(wanted < more for more in fitting.values()):
                same.setdefault(name, []).append(run)
    # Of a study with two arms alike, each has its own.
    return [
        (planned, max(same[planned.name], key=lambda run: bool(run["name"] == planned.name)))
        for planned in study.runs
        if planned.name in same
    ]


def _origin(study: Study, told: Mapping[str, Any]) -> dict[str, Any]:
    return {} if told["study"] == study.name else {"of_study": told["study"]}


def _asked(planned: PlannedRun, spacing: tuple[float, float, float]) -> dict[str, Any]:
    """The settings that are asked for, at a spacing (D, H, W). Those left to the plan (None) may be whatever they
    were."""
    config = dataclasses.replace(planned.config, method=planned.config.method_config().for_spacing(spacing))
    settings = flat({key: value for key, value in plain(config).items() if key not in PLACES})
    return {key: value for key, value in settings.items() if value is not None or key in NONE_SAYS}


def _read_table(file: Path) -> Mapping[str, Rows]:
    """Run -> its rows, of a file that :func:`~medcontext.studies.outcome.table_of` wrote."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))):
        scores = {key: float(row[key]) if row[key] else None for key in METRICS}
        entry = {"case": row["case"], "label": int(row["label"]), **scores, "outcome": row["outcome"]}
        rows.setdefault(row["run"], []).append(entry)
    return rows

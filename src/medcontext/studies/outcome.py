"""What came of one run of a study, as its folder tells it, and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcontext.data.split import patients_of
from medcontext.data.split_file import read_split_file
from medcontext.files import read_json
from medcontext.inference.model import load_tensors
from medcontext.studies.convergence import validations
from medcontext.studies.missing_parts import MISSING, scores_file
from medcontext.studies.study_file import PlannedRun
from medcontext.training.resume import MAY_CHANGE
from medcontext.training.run import RunFolder

COLUMNS = ("run", "case", "label", "dice", "hd95_mm", "outcome")
"""Of ``STUDY.csv``, a row per run, case and label."""

METRICS = ("dice", "hd95_mm")

PRECISION = ".8g"
"""Of scores in the results, and in every comparison: a run counts alike whether or not its folder is still there."""

Rows = Sequence[Mapping[str, Any]]

PLACES = MAY_CHANGE | {"split"}
"""Settings that say nothing about what was learned."""


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        planned: The run.
        facts: Its entry among the ``runs`` of ``STUDY.json``, with all its ``settings``.
        rows: Its scores: :data:`COLUMNS` but ``run`` for each case and label.
        patients: Case -> patient, of those that are not called as their case is.
        missing: Kind of :data:`~medcontext.studies.missing_parts.MISSING` -> the scores with such parts missing.
        labels: Number of a label, as text, -> its name, where it has one.
        definition: What the scores mean.
        folder: Its folder; None: it is known from the results alone.
    """

    planned: PlannedRun
    facts: Mapping[str, Any]
    rows: Rows
    patients: Mapping[str, str]
    missing: Mapping[str, Rows]
    labels: Mapping[str, str]
    definition: Mapping[str, Any]
    folder: RunFolder | None

    @property
    def evaluation(self) -> dict[str, Any]:
        """As :func:`medcontext.evaluation.compare.compare_evaluations` takes it."""
        names = {"labels": {label: {"name": name} for label, name in self.labels.items()}}
        return {"cases": self.rows, "patients": self.patients, "mean": names}


def patients_in(told: Mapping[str, Any], rows: Rows, planned: PlannedRun) -> dict[str, str]:
    """Case -> patient, of those that are not called as their case is: as told, or else as the study finds them in the
    cases' names."""
    found = told.get("patients") or patients_of({row["case"] for row in rows}, planned.config.patient)
    return {case: patient for case, patient in sorted(found.items()) if patient != case}


def split_name(split: Path) -> str:
    """A split file's name and hash."""
    return f"{split.name} ({read_split_file(split).hash})"


def of_folder(planned: PlannedRun, run: RunFolder) -> Outcome:
    """What came of a run that is trained and scored."""
    evaluation, history, config, about = (
        read_json(run.evaluation), run.history(), run.read_config(), read_json(run.about)
    )  # fmt: skip
    scored = load_tensors(run.best)["about"]
    last = [row for row in history if row["kind"] == "train"][-1]
    made = [about, *({**about, **again} for again in about.get("resumed", ()))]
    facts = {
        "name": planned.name,
        "levels": dict(planned.levels),
        "preset": config["preset"],
        "network": config["network"],
        "training_cases": len(run.read_split().train),
        "seed": config["seed"],
        "learning_rate": config["learning_rate"],
        "unlabelled_cases": len(about.get("unlabelled", ())),
        "steps": max(row["step"] for row in history),
        "pretrain_steps": config.get("pretrain_steps", 0),
        "seconds": _seconds(run),
        "scored_step": scored["step"],
        "scored_is": scored["which"],
        "validation_dice": scored["validation_dice"],
        "validations": validations(history),
        "dice": evaluation["mean"]["dice"],
        "hd95_mm": evaluation["mean"]["hd95_mm"],
        "missed": sum(entry["missed"] for entry in evaluation["mean"]["labels"].values()),
        "last_diagnostics": {
            key: value
            for key, value in last.items()
            if key.startswith(("context", "gradient_share", "momentum", "teacher_entropy", "loss/"))
        },
        "commit": _joined(str(each["source"]) for each in made),
        "hardware": _joined(_hardware(each, config) for each in made),
        "software": _joined(_software(each) for each in made),
        "settings": {key: value for key, value in flat(config).items() if key.partition(".")[0] not in PLACES},
    }
    missing = {kind: _rows(read_json(scores_file(run, kind))) for kind in MISSING if planned.missing_parts}
    labels = {label: entry["name"] for label, entry in evaluation["mean"]["labels"].items() if "name" in entry}
    rows = _rows(evaluation)
    patients = patients_in(evaluation, rows, planned)
    return Outcome(planned, facts, rows, patients, missing, labels, evaluation["definition"], run)


def missing_table(study: str, kind: str) -> str:
    """What the table of scores with such parts missing is called."""
    return f"{study}-missing-{kind}.csv"


def table_of(outcomes: Iterable[Outcome]) -> str:
    """``STUDY.csv``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for outcome in outcomes:
        for row in outcome.rows:
            numbers = ["" if row[key] is None else f"{row[key]:{PRECISION}}" for key in METRICS]
            writer.writerow([outcome.planned.name, row["case"], row["label"], *numbers, row["outcome"]])
    return text.getvalue()


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those inside of others beside them, as ``method.ratio``."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inside = flat(value) if isinstance(value, Mapping) else None
        found |= {key: value} if inside is None else {f"{key}.{name}": each for name, each in inside.items()}
    return found


def _rows(evaluation: Mapping[str, Any]) -> Rows:
    return [{key: _rounded(row[key]) for key in COLUMNS[1:]} for row in evaluation["cases"]]


def _rounded(value: Any) -> Any:
    return float(f"{value:{PRECISION}}") if isinstance(value, float) else value


def _hardware(about: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What a run was trained on, whichever of several alike. What kind of GPU that was, older runs did not record."""
    device = str(config["device"]).partition(":")[0]
    if device.startswith("cuda") and about.get("gpu"):
        device += f" ({about['gpu']})"
    return f"{about['processor']}, {about['threads']} of {about['cores']} cores; {device} in {config['precision']}"


def _software(about: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {it}" for name, it in {"python": about["python"], **about["versions"]}.items())


def _joined(facts: Iterable[str]) -> str:
    """What a run was begun with, and what it was resumed with where that differs."""
    return "; then ".join(dict.fromkeys(facts))


def _seconds(run: RunFolder) -> float:
    """What training took, pre-training included."""
    stages = (run.pretraining.history(), run.history())
    return sum(max((float(row["seconds"]) for row in rows if "seconds" in row), default=0.0) for rows in stages)

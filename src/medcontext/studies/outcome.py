"""What came of one run of a study: read from its folder, or from the results, where it lives on without the folder."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcontext.data.split_file import read_split_file
from medcontext.errors import MedContextError
from medcontext.files import read_json
from medcontext.inference.model import load_tensors
from medcontext.method.presets import MethodConfig
from medcontext.studies.convergence import validations
from medcontext.studies.missing_parts import MISSING, scores_file
from medcontext.studies.study_file import PlannedRun, Study
from medcontext.training.config import TrainConfig
from medcontext.training.run import MAY_CHANGE, NONE_SAYS, RunFolder, plain

COLUMNS = ("run", "case", "label", "dice", "hd95_mm", "outcome")
"""Of ``STUDY.csv``, a row per run, case and label."""

METRICS = ("dice", "hd95_mm")

PRECISION = ".8g"
"""Of scores in the results, and in every comparison: a run counts alike whether or not its folder is still there."""

Rows = Sequence[Mapping[str, Any]]

_PLACES = MAY_CHANGE | {"split"}
"""Settings that say nothing about what was learned."""


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        planned: The run.
        facts: Its entry among the ``runs`` of ``STUDY.json``, with all its ``settings``.
        rows: Its scores: :data:`COLUMNS` but ``run`` for each case and label.
        missing: Kind of :data:`~medcontext.studies.missing_parts.MISSING` -> the scores with such parts missing.
        labels: Number of a label, as text, -> its name, where it has one.
        definition: What the scores mean.
        folder: Its folder; None: it is known from the results alone.
    """

    planned: PlannedRun
    facts: Mapping[str, Any]
    rows: Rows
    missing: Mapping[str, Rows]
    labels: Mapping[str, str]
    definition: Mapping[str, Any]
    folder: RunFolder | None

    @property
    def evaluation(self) -> dict[str, Any]:
        """As :func:`medcontext.evaluation.compare.compare_evaluations` takes it."""
        return {"cases": self.rows, "mean": {"labels": {label: {"name": name} for label, name in self.labels.items()}}}


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
    facts = {
        "name": planned.name,
        "levels": dict(planned.levels),
        "preset": config["preset"],
        "network": config["network"],
        "training_cases": len(run.read_split().train),
        "seed": config["seed"],
        "learning_rate": config["learning_rate"],
        "unlabelled_cases": len(about.get("unlabelled", ())),
        "steps": config["max_steps"],
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
        "commit": str(about["source"]),
        "hardware": _hardware(about, config),
        "software": ", ".join(f"{name} {it}" for name, it in {"python": about["python"], **about["versions"]}.items()),
        "settings": {key: value for key, value in flat(config).items() if key.partition(".")[0] not in _PLACES},
    }
    missing = {kind: _rows(read_json(scores_file(run, kind))) for kind in MISSING if planned.missing_parts}
    labels = {label: entry["name"] for label, entry in evaluation["mean"]["labels"].items() if "name" in entry}
    return Outcome(planned, facts, _rows(evaluation), missing, labels, evaluation["definition"], run)


def recorded(study: Study, results: Path) -> dict[str, Outcome]:
    """The runs of a study that its results hold, by name, made with the settings and the split that it asks for now.

    Args:
        study: The study.
        results: Folder with its ``STUDY.json`` and ``STUDY.csv``, if it has any.

    Raises:
        MedContextError: These are not the results of a study.
    """
    file, table = (results / f"{study.name}.{ending}" for ending in ("json", "csv"))
    split = study.runs[0].config.split
    if not file.is_file() or split is None or not split.is_file():
        return {}
    found = read_json(file)
    try:
        if found["split"] != split_name(split):
            return {}
        rows = _read_table(table)
        kinds = {kind: results / missing_table(study.name, kind) for kind in MISSING}
        missing = {kind: _read_table(each) for kind, each in kinds.items() if each.is_file()}
        runs = {run["name"]: run | {"settings": found["settings"] | run["settings"]} for run in found["runs"]}
        definition = {key: value for key, value in found["definition"].items() if key != "comparison"}
        return {
            planned.name: Outcome(
                planned,
                runs[planned.name],
                rows[planned.name],
                {kind: of_runs[planned.name] for kind, of_runs in missing.items() if planned.name in of_runs},
                found["labels"],
                definition,
                None,
            )
            for planned in study.runs
            if planned.name in runs and _as_asked(planned, runs[planned.name]["settings"])
        }
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise MedContextError(
            "The results of this study can't be read.",
            file=file,
            found=f"{type(error).__name__}: {error}",
            expected="what this version of 'medcontext study' writes there, and its .csv beside it",
            remedy="put both files back as they were, or move them away to gather anew what has its folder",
        ) from None


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


def _read_table(file: Path) -> Mapping[str, Rows]:
    """Run -> its rows, of a file that :func:`table_of` wrote."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))):
        scores = {key: float(row[key]) if row[key] else None for key in METRICS}
        entry = {"case": row["case"], "label": int(row["label"]), **scores, "outcome": row["outcome"]}
        rows.setdefault(row["run"], []).append(entry)
    return rows


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those inside of others beside them, as ``method.ratio``."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inside = flat(value) if isinstance(value, Mapping) else None
        found |= {key: value} if inside is None else {f"{key}.{name}": each for name, each in inside.items()}
    return found


def _as_asked(planned: PlannedRun, settings: Mapping[str, Any]) -> bool:
    """Whether a run was made with the settings that are asked for. Those left to the plan (None) may be whatever they
    were; one that there was not yet counts at its default, at which it changes nothing."""
    made = flat(plain(TrainConfig(method=MethodConfig()))) | dict(settings)
    config = dataclasses.replace(planned.config, method=planned.config.method_config())
    asked = {
        key: value
        for key, value in plain(config).items()
        if key not in _PLACES and (value is not None or key in NONE_SAYS)
    }
    return all(key in made and made[key] == value for key, value in flat(asked).items())


def _rows(evaluation: Mapping[str, Any]) -> Rows:
    return [{key: _rounded(row[key]) for key in COLUMNS[1:]} for row in evaluation["cases"]]


def _rounded(value: Any) -> Any:
    return float(f"{value:{PRECISION}}") if isinstance(value, float) else value


def _hardware(about: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What a run was trained on. Which GPU that was, older runs did not record."""
    device = str(config["device"])
    if device.startswith("cuda") and about.get("gpu"):
        device += f" ({about['gpu']})"
    return f"{about['processor']}, {about['threads']} of {about['cores']} cores; {device} in {config['precision']}"


def _seconds(run: RunFolder) -> float:
    """What training took, pre-training included."""
    stages = (run.pretraining.history(), run.history())
    return sum(max((float(row["seconds"]) for row in rows if "seconds" in row), default=0.0) for rows in stages)

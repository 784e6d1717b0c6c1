"""``medcontext evaluate``. The signature is the command line, as in :mod:`.commands`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medcontext.errors import MedContextError
from medcontext.files import replacing, require_writable, write_json, write_text
from medcontext.progress import Progress

if TYPE_CHECKING:
    from medcontext.data.dataset import Dataset
    from medcontext.data.labels import Labels


def evaluate(
    predictions: Path,
    labels: Path,
    data: Path | None = None,
    patient: str | None = None,
    policy: Literal["medcontext", "official", "official_unetr", "transunet", "brats", "penalised"] = "medcontext",
    hd95: Literal["pooled", "directed", "weighted"] = "pooled",
    tolerance: float | dict[int | str, float] = 2.0,
    lesions: list[int | str] | int | str | None = None,
    lesion_iou: float = 0.1,
    probabilities: Path | None = None,
    diagram: Path | None = None,
    resample: bool = False,
    workers: int = 2,
    json: Path | None = None,
    csv: Path | None = None,
) -> int:
    """Score label maps against the truth: overlap, surface distances, volumes; lesions and calibration where asked for.

    Args:
        predictions: Folder of predicted label maps, or one file.
        labels: Folder of true label maps of the same names, or one file.
        data: Data set whose declared labels, regions and ignored label are scored; None: every label found in a map.
        patient: Regular expression for the patient in a case's name, for the intervals; None: as the data set says.
        policy: What a label counts that is missing in a map; docs/evaluation.md tells what each is.
        hd95: 95th percentile of the distances of both directions, the larger of both, or that weighted by area.
        tolerance: Of NSD in mm; or of single labels, such as '{liver: 3, 2: 1}', and 2 mm for the others.
        lesions: Labels whose lesions are counted, by name or number: one, or several in brackets ('[tumour, 3]').
        lesion_iou: Intersection over union from which on a predicted and a true lesion are the same.
        probabilities: Folder of probability maps (NAME.nii.gz, a channel per class), for calibration.
        diagram: Draw the reliability diagram to this file (PNG).
        resample: Bring predictions of another grid to the truth's, by nearest neighbour.
        workers: Threads, a case each.
        json: Write everything to this file: a row per case and label, means with intervals, and what they mean.
        csv: Write the rows to this file.
    """
    from medcontext.cli.tables import print_table
    from medcontext.data.dataset import open_dataset
    from medcontext.evaluation.evaluate import evaluate as score
    from medcontext.evaluation.score_tables import csv_rows, lesion_table, table
    from medcontext.evaluation.scoring import Scoring

    if diagram is not None and probabilities is None:
        raise MedContextError(
            "There is nothing to draw the reliability diagram of.", remedy="give the probability maps (--probabilities)"
        )
    require_writable(json, csv, diagram)
    dataset = None if data is None else open_dataset(data)
    declared = None if dataset is None else _declared(dataset)
    tolerances = {str(label): each for label, each in tolerance.items()} if isinstance(tolerance, dict) else tolerance
    scoring = Scoring(policy, hd95, tolerances, _listed(lesions), lesion_iou)
    with Progress().task("scoring") as update:
        result = score(
            predictions,
            labels,
            declared,
            scoring,
            patient=dataset.patients if patient is None and dataset is not None else patient,
            probabilities=probabilities,
            resample=resample,
            workers=workers,
            progress=update,
        )
    print_table(table(result))
    found = lesion_table(result)
    if found is not None:
        print_table(found)
    for line in _remarks(result):
        print(line)
    if json is not None:
        write_json(json, result)
    if csv is not None:
        write_text(csv, csv_rows(result))
    if diagram is not None:
        from medcontext.evaluation.reliability_figure import reliability_figure

        with replacing(diagram) as temporary:
            temporary.write_bytes(reliability_figure(result["calibration"]))
    return 0


def _listed(labels: list[int | str] | int | str | None) -> tuple[str, ...]:
    """One label or several as text."""
    every = [] if labels is None else labels if isinstance(labels, list) else [labels]
    return tuple(map(str, every))


def _declared(dataset: Dataset) -> Labels:
    """Labels that a data set declares."""
    if dataset.labels is None:
        raise MedContextError(
            "This data set does not say what its labels are.",
            file=dataset.root,
            expected="a dataset.json with labels",
            remedy="write one (docs/data.md), or leave --data out to score every label that is found",
        )
    return dataset.labels


def _remarks(result: Mapping[str, Any]) -> list[str]:
    """What beside the scores has to be known."""
    from medcontext.evaluation.pairing import some

    told = {
        "unpredicted": "have a truth but no prediction, and were not scored",
        "without_truth": "have a prediction but no truth, and were not scored",
        "resampled": "were resampled to the grid of their truth",
    }
    lines = [f"{len(result[key])} case(s) {what}: {some(result[key], 10)}" for key, what in told.items() if result[key]]
    if "calibration" in result:
        found = result["calibration"]
        overall = [] if found["overall"] is None else [f"{_error(found['overall'])} over every voxel"]
        each = [f"{entry.get('name', f'label {label}')} {_error(entry)}" for label, entry in found["labels"].items()]
        lines.append(f"expected calibration error: {'; '.join([*overall, ', '.join(each)])}")
    return lines


def _error(calibrated: Mapping[str, Any]) -> str:
    return "-" if calibrated["ece"] is None else f"{calibrated['ece']:.4f}"

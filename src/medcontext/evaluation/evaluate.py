"""Predicted label maps against true ones: a row per case and label, means, and tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from medcontext.data.labels import Labels
from medcontext.data.scan import LabelMap, case_name, read_labels, scan_files, spacing_of, voxels_apart
from medcontext.errors import MedContextError
from medcontext.evaluation.metrics import dice, hd95

DEFINITION = {
    "dice": "twice the overlap over the sum of both volumes, per case and label; 0 to 1, higher is better",
    "hd95_mm": "95th percentile of the surface distances of both directions pooled (MedPy's definition), in mm, lower "
    "is better; surface: voxels with a face neighbour outside the object; distances between voxel centres",
    "empty": "a label in neither map is not counted (absent); a label in only one of them has Dice 0 and no HD95 "
    "(missed: in the truth only; spurious: in the prediction only)",
    "mean": "over the cases of each label, then over the labels; the mean HD95 is over the cases where it is defined, "
    "so read it together with the number missed",
}
"""What the numbers mean, in words that travel with them."""

ALIGNED = 0.01
"""The furthest that a corner of a prediction's grid may lie from the truth's, in voxels (of their smallest side)."""


def evaluate(
    predictions: Path,
    labels: Path | Mapping[str, Path],
    declared: Labels | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score predicted label maps against true ones, in the grid that both are stored in.

    Args:
        predictions: Folder of label maps, or one label map.
        labels: Folder of true label maps, or one, or case name -> file. Files pair by case name; two single files pair
            whatever their names.
        declared: What the numbers mean. Its labels, or regions, are scored, where the truth is not ignored; without it,
            every nonzero label found in any map is.
        progress: Called with (cases done, cases to do) after each case.

    Returns:
        A plain dict that can be written as JSON, with ``None`` for what is not defined (policy: :mod:`.metrics`):

        - ``cases``: rows of ``case``, ``label``, ``dice``, ``hd95_mm`` and ``outcome`` (``both``, ``missed``,
          ``spurious`` or ``absent``);
        - ``mean``: ``dice``, ``hd95_mm``, and ``labels``: label number as text -> ``name`` (where known), ``dice``,
          ``hd95_mm`` and the counts ``scored`` (in either map), ``missed``, ``spurious``, ``absent``; a region goes by
          the number that it is written with;
        - ``definition``: what the numbers mean; ``unpredicted``: the cases with a truth and no prediction.

    Raises:
        MedContextError: A path is absent, a folder has no label maps, no case is in both, a prediction has no truth, a
            grid differs from its truth's, or a prediction has a label that is not declared.
    """
    pairs, unpredicted = _pairs(predictions, labels)
    per_case: dict[str, dict[int, dict[str, Any]]] = {}
    for done, (case, (prediction, truth)) in enumerate(pairs.items(), start=1):
        per_case[case] = _score(prediction, truth, declared)
        if progress is not None:
            progress(done, len(pairs))
    found_anywhere = sorted({label for rows in per_case.values() for label in rows})
    scored = found_anywhere if declared is None else sorted(declared.structures)
    rows = [
        {"case": case, "label": label, **found.get(label, {"dice": None, "hd95_mm": None, "outcome": "absent"})}
        for case, found in per_case.items()
        for label in scored
    ]
    return {"cases": rows, "mean": _means(rows, declared), "definition": dict(DEFINITION), "unpredicted": unpredicted}


def table(result: Mapping[str, Any]) -> Table:
    """One result of :func:`evaluate` for the terminal: a row per label, then the mean."""
    return _table({"": result}, ("dice", "hd95_mm", "scored", "missed", "spurious"))


def comparison(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Several results side by side, by name: Dice, HD95 and missed cases for each."""
    return _table(results, ("dice", "hd95_mm", "missed"))


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are defined; ``None`` where none is."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _pairs(predictions: Path, labels: Path | Mapping[str, Path]) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """Case -> (prediction, truth), and the cases that have a truth only."""
    if isinstance(labels, Path) and predictions.is_file() and labels.is_file():
        return {case_name(predictions): (predictions, labels)}, []
    predicted = _label_maps(predictions)
    true = _label_maps(labels) if isinstance(labels, Path) else labels
    common = [case for case in predicted if case in true]
    if not common:
        raise MedContextError(
            "No prediction has the name of a true label map.",
            file=predictions,
            found=f"predictions {_some(predicted)}; true label maps {_some(true)}",
            expected="files of the same name in both folders",
            remedy="rename the predictions, or check that both paths belong to one data set",
        )
    strangers = [case for case in predicted if case not in true]
    if strangers:
        raise MedContextError(
            "A prediction has no true label map to be scored against.",
            file=predicted[strangers[0]],
            found=f"{len(strangers)} such: {_some(strangers)}",
            expected="a true label map of the same name",
            remedy="add the true label map or take the prediction away",
        )
    return {case: (predicted[case], true[case]) for case in common}, [case for case in true if case not in predicted]


def _label_maps(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {case_name(path): path}
    files = scan_files(path)
    if not files:
        raise MedContextError(
            "There are no label maps in this folder.",
            file=path,
            found=f"{len(list(path.iterdir()))} other entries",
            expected="files that end in .nii.gz or .nii",
            remedy="give the folder that holds the label maps themselves",
        )
    return files


def _some(names: Iterable[str]) -> str:
    """The first few names."""
    every = list(names)
    return ", ".join(every[:3]) + (f" and {len(every) - 3} more" if len(every) > 3 else "")


def _score(prediction: Path, truth: Path, declared: Labels | None) -> dict[int, dict[str, Any]]:
    """Label -> its scores in one case, for the labels found there and among those declared, if any are."""
    predicted, true = read_labels(prediction), read_labels(truth)
    _same_grid(predicted, true)
    spacing = spacing_of(true.affine)
    if declared is not None and declared.ignore is not None:
        for each in (predicted, true):
            each.array[true.array == declared.ignore] = 0
    in_prediction = {int(label) for label in np.unique(predicted.array)} - {0}
    found = in_prediction | ({int(label) for label in np.unique(true.array)} - {0})
    if declared is None:
        return {label: _row(predicted.array == label, true.array == label, spacing) for label in sorted(found)}
    undeclared = sorted(in_prediction - declared.declared)
    if undeclared:
        raise MedContextError(
            "A prediction has label numbers that are not declared.",
            file=prediction,
            found=f"label {', '.join(map(str, undeclared))}",
            expected=f"one of {', '.join(map(str, sorted(declared.declared)))}",
            remedy="score with the label names of the data set that the network was trained on, or predict again",
        )
    rows = {}
    for label, (_, numbers) in declared.structures.items():
        if found.intersection(numbers):
            rows[label] = _row(np.isin(predicted.array, numbers), np.isin(true.array, numbers), spacing)
    return rows


def _row(predicted: Any, true: Any, spacing: tuple[float, float, float]) -> dict[str, Any]:
    """The scores of one label that is in at least one of the two maps."""
    outcome = "both" if predicted.any() and true.any() else "missed" if true.any() else "spurious"
    return {"dice": dice(predicted, true), "hd95_mm": hd95(predicted, true, spacing), "outcome": outcome}


def _same_grid(predicted: LabelMap, true: LabelMap) -> None:
    if predicted.array.shape != true.array.shape:
        raise MedContextError(
            "A prediction and its true label map differ in shape.",
            file=predicted.path,
            found=f"shape {predicted.array.shape}",
            expected=f"shape {true.array.shape}, as {true.path}",
            remedy="predict on the original scan; predictions are scored in the scan's own grid",
        )
    apart = voxels_apart(true.array.shape, true.affine, predicted.affine)
    if apart > ALIGNED:
        raise MedContextError(
            "A prediction and its true label map lie differently in space.",
            file=predicted.path,
            found=f"affine {np.round(predicted.affine, 4).tolist()}: corners up to {apart:.3g} voxels apart",
            expected=f"affine {np.round(true.affine, 4).tolist()}, as {true.path}",
            remedy="predict on the original scan; predictions are scored in the scan's own grid",
        )


def _means(rows: Sequence[Mapping[str, Any]], declared: Labels | None) -> dict[str, Any]:
    by_label: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    labels: dict[str, dict[str, Any]] = {}
    for label, of_label in by_label.items():
        outcomes = [row["outcome"] for row in of_label]
        labels[str(label)] = {
            **({} if declared is None else {"name": declared.structures[label][0]}),
            "dice": mean(row["dice"] for row in of_label),
            "hd95_mm": mean(row["hd95_mm"] for row in of_label),
            "scored": len(outcomes) - outcomes.count("absent"),
            **{outcome: outcomes.count(outcome) for outcome in ("missed", "spurious", "absent")},
        }
    return {
        "dice": mean(entry["dice"] for entry in labels.values()),
        "hd95_mm": mean(entry["hd95_mm"] for entry in labels.values()),
        "labels": labels,
    }


_COLUMNS = {"dice": ("Dice", ".3f"), "hd95_mm": ("HD95 mm", ".2f")}
"""Heading and number format of the columns that are not counts."""


def _table(results: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> Table:
    """A row per label of any of the results, then the mean; ``columns`` are repeated for each result."""
    made = Table()
    made.add_column("label", vertical="bottom")
    for name in results:
        for column in columns:
            heading, _ = _COLUMNS.get(column, (column, ""))
            above = name if column == columns[0] else ""
            made.add_column(Text(f"{above}\n{heading}" if name else heading, justify="right"), justify="right")
    means = [result["mean"] for result in results.values()]
    entries: dict[str, str] = {}
    for each in means:
        for label, entry in each["labels"].items():
            entries.setdefault(label, f"{label} {entry['name']}" if "name" in entry else label)
    for label in sorted(entries, key=int):
        cells = [_cell(each["labels"].get(label, {}), column) for each in means for column in columns]
        made.add_row(Text(entries[label]), *cells)
    made.add_section()
    made.add_row("mean", *[_cell(each, column) if column in _COLUMNS else "" for each in means for column in columns])
    return made


def _cell(entry: Mapping[str, Any], column: str) -> str:
    value = entry.get(column)
    return "-" if value is None else format(value, _COLUMNS.get(column, ("", "d"))[1])

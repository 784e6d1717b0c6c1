"""Predicted label maps against true ones: a row per case and label, and means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medcontext.data.labels import TABLE_SIZE, Labels
from medcontext.data.scan import LabelMap, spacing_of
from medcontext.data.split import patients_of
from medcontext.errors import MedContextError, require
from medcontext.evaluation import calibration, lesions
from medcontext.evaluation.metrics import METRICS, measure
from medcontext.evaluation.pairing import pair_files, read_pair, some
from medcontext.evaluation.policies import Outcome, policy_named
from medcontext.evaluation.scoring import TOLERANCE, Scoring, definition
from medcontext.evaluation.summary import summarise
from medcontext.evaluation.surfaces import Mask, Voxel

Box = tuple[slice, ...]

RIGHT_ANGLE = 1e-4
"""Cosine of the angle between two edges of a voxel up to which it is taken for a right one, which headers round."""


def evaluate(
    predictions: Path,
    labels: Path | Mapping[str, Path],
    declared: Labels | None = None,
    scoring: Scoring | None = None,
    *,
    patient: str | Mapping[str, str] | None = None,
    probabilities: Path | None = None,
    resample: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score predicted label maps against true ones, in the grid of the truth.

    Args:
        predictions: Folder of label maps, or one label map.
        labels: Folder of true label maps, or one, or case name -> file. Files pair by case name; two single files pair
            whatever their names.
        declared: What the numbers mean. Its labels, or regions, are scored, where the truth is not ignored; without it,
            every nonzero label found in any map is.
        scoring: How; None: the defaults.
        patient: Case -> patient, or a regular expression that finds the patient in a case's name
            (:func:`medcontext.data.split.patients_of`), for the intervals. A case that is not told of is a patient.
        probabilities: Folder of probability maps, for calibration (:mod:`.calibration`).
        resample: Bring predictions of another grid to the truth's by nearest neighbour, instead of refusing them.
        workers: Threads, a case each.
        progress: Called with (cases done, cases to do) after each case.

    Returns:
        A plain dict that can be written as JSON, with ``None`` for what is not defined or not counted:

        - ``cases``: rows of ``case``, ``label``, ``outcome`` (``both``, ``missed``, ``spurious`` or ``absent``), the
          scores of :data:`.metrics.METRICS`, and, of labels whose lesions are counted, ``lesions_found``,
          ``lesions_missed``, ``lesions_spurious`` and ``lesions_f1``;
        - ``mean``: each score over the cases, then over the labels; ``ci``: score -> its 95 % interval; ``cases``: how
          many; ``labels``: label number as text -> ``name`` (where known), each score, ``ci``, the counts ``scored``
          (in either map), ``missed``, ``spurious``, ``absent``, and the lesions of all cases together; a region goes by
          the number that it is written with;
        - ``calibration``, where probability maps are given: see :func:`.calibration.summarise`;
        - ``patients``: case -> patient, of those that are not called as their case is;
        - ``unpredicted``, ``without_truth``: cases with a truth only, with a prediction only;
        - ``resampled``: cases whose prediction was;
        - ``settings``: of the scoring; ``definition``: what the numbers mean.

    Raises:
        MedContextError: A path is absent, a folder has no label maps, no case is in both, no patient is found in a
            name, or the scoring names a label that is not declared; or, told for all such cases at once, a file is
            damaged, a grid differs from its truth's, or a label map has a number that is not declared.
    """
    require(workers >= 1, "workers", workers, "1 or more")
    scoring = scoring or Scoring()
    pairs = pair_files(predictions, labels)
    told = patient if isinstance(patient, Mapping) else patients_of(pairs.files, patient)
    maps = None if probabilities is None else calibration.probability_files(probabilities, pairs.files)
    scorer = _Scorer(scoring, declared, resample)

    def score(case: str) -> _Scored | MedContextError:
        try:
            return scorer.score(*pairs.files[case], None if maps is None else maps[case])
        except MedContextError as error:
            return error

    scored: dict[str, _Scored] = {}
    bad: dict[str, MedContextError] = {}
    with ThreadPoolExecutor(workers) as pool:
        for case, found in zip(pairs.files, pool.map(score, pairs.files), strict=True):
            if isinstance(found, MedContextError):
                bad[case] = found
            else:
                scored[case] = found
            if progress is not None:
                progress(len(scored) + len(bad), len(pairs.files))
    _require_none(bad, len(pairs.files))
    numbers = scorer.labels({label for each in scored.values() for label in each.rows})
    rows = [
        {"case": case, "label": label, **each.rows.get(label, scorer.absent(label))}
        for case, each in scored.items()
        for label in numbers
    ]
    whose = {case: told.get(case, case) for case in scored}
    result: dict[str, Any] = {"cases": rows, "mean": summarise(rows, whose, scorer.names)}
    if maps is not None:
        result["calibration"] = calibration.summarise([each.reliability for each in scored.values()], scorer.names)
    return result | {
        "patients": {case: patient for case, patient in whose.items() if patient != case},
        "unpredicted": list(pairs.unpredicted),
        "without_truth": list(pairs.without_truth),
        "resampled": [case for case, each in scored.items() if each.resampled],
        "settings": scorer.settings(numbers),
        "definition": definition(scoring),
    }


@dataclass(frozen=True)
class _Scored:
    """What came of one case: label to row, of labels in either map."""

    rows: Mapping[int, dict[str, Any]]
    resampled: bool
    reliability: Mapping[str, calibration.Bins] = field(default_factory=dict)


class _Scorer:
    """Scores cases one by one, by one scoring."""

    def __init__(self, scoring: Scoring, declared: Labels | None, resample: bool) -> None:
        self._scoring = scoring
        self._policy = policy_named(scoring.policy)
        self._declared = declared
        self._resample = resample
        self.names = {} if declared is None else {label: name for label, (name, _) in declared.structures.items()}
        by_text = {str(label): label for label in self.names} | {name: label for label, name in self.names.items()}
        self._by_text = by_text
        own = scoring.tolerance if isinstance(scoring.tolerance, Mapping) else {}
        self._tolerances = {self._number(text): float(tolerance) for text, tolerance in own.items()}
        self._tolerance = TOLERANCE if isinstance(scoring.tolerance, Mapping) else float(scoring.tolerance)
        self._lesions = frozenset(self._number(text) for text in scoring.lesions)

    def _number(self, text: str) -> int:
        """Of a label that the scoring names."""
        if self._declared is None and text.isdecimal() and int(text):
            return int(text)
        if text not in self._by_text:
            raise MedContextError(
                "There is no label of this name or number.",
                found=text,
                expected=", ".join(f"{label} {name}" for label, name in self.names.items()) or "a label number above 0",
                remedy="check it" if self._declared else "give its number, or the data set that has its name (--data)",
            )
        return self._by_text[text]

    def labels(self, found: set[int]) -> list[int]:
        """The labels that are scored, where these are found."""
        return sorted(self.names if self._declared is not None else found | self._lesions)

    def settings(self, labels: Sequence[int]) -> dict[str, Any]:
        """As JSON holds them."""
        tolerances = {str(label): self._tolerances.get(label, self._tolerance) for label in labels}
        return {
            "policy": self._scoring.policy,
            "hd95": self._scoring.hd95,
            "tolerance_mm": tolerances,
            "lesions": sorted(self._lesions),
            "lesion_iou": self._scoring.lesion_iou,
            "structures": {str(label): list(numbers) for label, numbers in self._structures({*labels}).items()},
        }

    def absent(self, label: int) -> dict[str, Any]:
        """The row of a label that is in neither map."""
        row = self._policy.apply(dict.fromkeys(METRICS), "absent", diagonal=math.nan)
        counted = lesions.Detection(0, 0, 0).row() if label in self._lesions else {}
        return {"outcome": "absent", **row, **counted}

    def score(self, prediction: Path, truth: Path, probabilities: Path | None) -> _Scored:
        """One case, from its files."""
        predicted, true, moved = read_pair(prediction, truth, resample=self._resample)
        reliability = {}
        if probabilities is not None:
            reliability = calibration.reliability(probabilities, true, self._declared)
        if self._declared is not None and self._declared.ignore is not None:
            for each in (predicted, true):
                each.array[true.array == self._declared.ignore] = 0
        boxes = []
        for each in (predicted, true):
            # Transposed, since the first axis is the one that lies together in a file, and so in memory.
            boxes.append(label_boxes(each.array.T))
            self._require_declared(each.path, boxes[-1])
        rows = {}
        for label, numbers in self._structures({*boxes[0], *boxes[1]}).items():
            box = around([found[number] for found in boxes for number in numbers if number in found])
            if box is not None:
                one, other = (_mask(each.array.T[box], numbers) for each in (predicted, true))
                rows[label] = self._row(label, one, other, true)
        return _Scored(rows, moved, reliability)

    def _structures(self, found: set[int]) -> Mapping[int, tuple[int, ...]]:
        """Label to the numbers that it is made of."""
        if self._declared is None:
            return {label: (label,) for label in sorted(found)}
        return {label: numbers for label, (_, numbers) in self._declared.structures.items()}

    def _row(self, label: int, predicted: Mask, true: Mask, within: LabelMap) -> dict[str, Any]:
        """The scores of one label that is in at least one of the two maps; axes of the masks are transposed."""
        tolerance = self._tolerances.get(label, self._tolerance)
        scores = measure(
            predicted,
            true,
            _voxel(within.affine)[::-1],
            tolerance=tolerance,
            hd95=self._scoring.hd95,
            cubes=self._policy.cubes,
        )
        outcome: Outcome = "both" if predicted.any() and true.any() else "missed" if true.any() else "spurious"
        diagonal = float(np.linalg.norm(within.affine[:3, :3] @ within.array.shape))
        row = {"outcome": outcome, **self._policy.apply(scores, outcome, diagonal)}
        if label in self._lesions:
            row |= lesions.detect(predicted, true, self._scoring.lesion_iou).row()
        return row

    def _require_declared(self, file: Path, found: Mapping[int, Box]) -> None:
        if self._declared is None:
            return
        undeclared = sorted(found.keys() - self._declared.declared)
        if undeclared:
            raise MedContextError(
                "A label map has numbers that are not declared.",
                file=file,
                found=f"label {some(map(str, undeclared), 8)}",
                expected=f"one of {', '.join(map(str, sorted(self._declared.declared)))}",
                remedy="score with the labels of the data set that the network was trained on, or predict again",
            )


def _require_none(bad: Mapping[str, MedContextError], cases: int) -> None:
    """Scores of some cases would pass for those of all: a bad case stops it, and every one is told at once."""
    if len(bad) == 1:
        raise next(iter(bad.values()))
    if bad:
        raise MedContextError(
            f"{len(bad)} of {cases} cases can't be scored.",
            found="".join(f"\n- {case}: {error}" for case, error in bad.items()).replace("\n", "\n    "),
            remedy="mend these files, or take them out of both folders, and score again",
        )


def label_boxes(array: npt.NDArray[np.int32]) -> dict[int, Box]:
    """Label number to the smallest box around its voxels, for every number but 0."""
    if int(array.min()) < 0 or int(array.max()) >= TABLE_SIZE:
        numbers, places = np.unique(array, return_inverse=True)
        found = zip(numbers.tolist(), ndimage.find_objects(places.reshape(array.shape) + 1), strict=True)
        return {number: box for number, box in found if number != 0}
    return {number: box for number, box in enumerate(ndimage.find_objects(array), start=1) if box is not None}


def around(boxes: Sequence[Box]) -> Box | None:
    """The smallest box that holds these; None where there is none."""
    if not boxes:
        return None
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def _voxel(affine: npt.NDArray[np.float64]) -> Voxel:
    """The voxels of a grid: their sizes, or their edges where those are not at right angles."""
    sizes, edges = spacing_of(affine), affine[:3, :3].T
    cosines = edges @ edges.T / np.outer(sizes, sizes) - np.eye(3)
    if np.abs(cosines).max() <= RIGHT_ANGLE:
        return sizes
    one, two, three = ((float(x), float(y), float(z)) for x, y, z in edges)
    return one, two, three


def _mask(array: npt.NDArray[np.int32], numbers: tuple[int, ...]) -> Mask:
    return array == numbers[0] if len(numbers) == 1 else np.isin(array, numbers)

"""Calibration: of the voxels that get a probability of 0.8, are 80 % what the network says?

Probability maps are files ``NAME.nii.gz`` (or another format that is read) on the grid of the label maps, floats with
one channel along the fourth axis for each class, the background first and then the labels in the order in which they
are declared (without a declaration, channel ``k`` is label ``k``); for regions one channel each, in their order. Ten or
so decimals of a softmax are not needed: float16 or scaled integers do, within :data:`SLACK`.

Two things are measured, each in :data:`BINS` bins of equal width, over the voxels of all cases together:

- *overall*, for classes: the largest probability of every voxel against how often its class is the true one (the
  expected calibration error of Guo et al., ICML 2017);
- for each label: its probability against how often the voxel is of that label, over the voxels where it is at least
  :data:`LEAST` (as the thresholded calibration error of Nixon et al., CVPR workshops 2019): everywhere else the scan
  is background beyond doubt, and so much of it that it would hide any error. The choice depends on the prediction
  alone, since one that looks at the truth would shift the frequencies themselves.

The *expected calibration error* is the mean over the voxels of their bin's difference between mean probability and
frequency: 0 is perfect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medcontext.data.labels import Labels
from medcontext.data.scan import AFFINE_TOLERANCE, LabelMap, Scan, read_scan, voxels_apart
from medcontext.errors import MedContextError
from medcontext.evaluation.pairing import label_files, some
from medcontext.evaluation.summary import mean

BINS = 15
"""As Guo et al. have them."""

LEAST = 0.01
"""Probability of a label from which on a voxel counts for it."""

SLACK = 0.01
"""The furthest that the probabilities of a voxel may sum up from 1, or lie outside 0 to 1."""

OVERALL = "overall"

DEFINITION = (
    "expected calibration error: mean over the voxels of their bin's difference between mean probability and how often "
    f"it is true, {BINS} bins of equal width, voxels of all cases together; 0 is perfect. Of a label: over the voxels "
    f"that give it a probability of {LEAST:g} or more; overall: of the largest probability of every voxel"
)

Bins = npt.NDArray[np.float64]
"""``(3, BINS)``: number of voxels, sum of their probabilities, number of those that are what the probability is of."""


def probability_files(folder: Path, cases: Iterable[str]) -> dict[str, Path]:
    """Case to its probability map.

    Raises:
        MedContextError: There is no such folder, or a case has none there.
    """
    files = label_files(folder)
    missing = [case for case in cases if case not in files]
    if missing:
        raise MedContextError(
            "Cases have no probability map.",
            file=folder,
            found=f"{len(missing)} without one: {some(missing)}",
            expected="a file of the same name as each prediction",
            remedy="write them for the same scans as the predictions",
        )
    return files


def reliability(file: Path, truth: LabelMap, declared: Labels | None) -> dict[str, Bins]:
    """What one case adds: ``overall`` (for classes) and each label's number as text, to its bins.

    Raises:
        MedContextError: The file can't be read, lies on another grid than the truth, has not one channel for each
            class, or holds no probabilities.
    """
    scan = read_scan(file)
    regions = declared is not None and bool(declared.regions)
    channels = _channels(declared, len(scan.array))
    _require_probabilities(scan, truth, channels, sums_to_one=not regions)
    if declared is None and truth.array.max() >= len(channels):
        raise MedContextError(
            "A true label map has a label that the probabilities have no channel for.",
            file=truth.path,
            found=f"label {truth.array.max()}; {len(channels)} channels, for the labels 0 to {len(channels) - 1}",
            remedy="say which channel is which label by giving the data set (--data)",
        )
    known = np.ones(truth.array.shape, dtype=bool)
    if declared is not None and declared.ignore is not None:
        known = truth.array != declared.ignore
    bins = {}
    true_channel = np.zeros(known.shape, dtype=np.intp)
    for place, (label, numbers) in enumerate(channels.items()):
        if label == 0:
            continue
        values, is_it = scan.array[place], np.isin(truth.array, numbers)
        true_channel[is_it] = place
        counted = known & (values >= LEAST)
        bins[str(label)] = count(values[counted], is_it[counted])
    if not regions:
        right = scan.array.argmax(axis=0) == true_channel
        bins[OVERALL] = count(scan.array.max(axis=0)[known], right[known])
    return bins


def count(probabilities: npt.NDArray[np.floating[Any]], right: npt.NDArray[np.bool_]) -> Bins:
    """Bins of ``(N,)`` probabilities, and of whether each is of what is true."""
    values = probabilities.astype(np.float64)
    places = np.clip((values * BINS).astype(np.int64), 0, BINS - 1)
    weights = (None, values, right.astype(np.float64))
    return np.stack([np.bincount(places, each, minlength=BINS) for each in weights]).astype(np.float64)


def expected_error(bins: Bins) -> float | None:
    """Expected calibration error; None where no voxel counts."""
    voxels, probability, right = bins
    return float(np.abs(probability - right).sum() / voxels.sum()) if voxels.any() else None


def summarise(cases: Sequence[Mapping[str, Bins]], names: Mapping[int, str]) -> dict[str, Any]:
    """Calibration over all cases, as JSON holds it.

    Returns:
        ``overall`` (None for regions) and ``labels``, label number as text to the same: ``name`` (where known),
        ``ece``, ``voxels`` and ``bins``, each of which has ``low``, ``high``, ``voxels``, and their mean
        ``probability`` and ``frequency``; ``ece``: the mean over the labels; ``definition``.
    """
    every = dict.fromkeys(key for case in cases for key in case)
    total = {key: _told(np.sum([case[key] for case in cases if key in case], axis=0)) for key in every}
    labels = {
        key: ({"name": names[int(key)]} if int(key) in names else {}) | total[key]
        for key in sorted(every.keys() - {OVERALL}, key=int)
    }
    return {
        OVERALL: total.get(OVERALL),
        "labels": labels,
        "ece": mean(entry["ece"] for entry in labels.values()),
        "definition": DEFINITION,
    }


def _told(bins: Bins) -> dict[str, Any]:
    rows = [
        {
            "low": place / BINS,
            "high": (place + 1) / BINS,
            "voxels": int(voxels),
            "probability": float(probability / voxels),
            "frequency": float(right / voxels),
        }
        for place, (voxels, probability, right) in enumerate(bins.T)
        if voxels
    ]
    return {"ece": expected_error(bins), "voxels": int(bins[0].sum()), "bins": rows}


def _channels(declared: Labels | None, found: int) -> dict[int, tuple[int, ...]]:
    """Label to the numbers that it is made of, a channel each, in order; the background is label 0."""
    if declared is None:
        return {label: (label,) for label in range(found)}
    of_labels = {label: numbers for label, (_, numbers) in declared.structures.items()}
    return of_labels if declared.regions else {0: (0,), **of_labels}


def _require_probabilities(scan: Scan, truth: LabelMap, channels: Mapping[int, Any], sums_to_one: bool) -> None:
    shape = scan.array.shape
    if shape[1:] != truth.array.shape or voxels_apart(shape[1:], truth.affine, scan.affine) > AFFINE_TOLERANCE:
        raise MedContextError(
            "A probability map lies on another grid than the true label map.",
            file=scan.path,
            found=f"shape {shape[1:]}, affine {np.round(scan.affine, 4).tolist()}",
            expected=f"shape {truth.array.shape}, affine {np.round(truth.affine, 4).tolist()}, as {truth.path}",
            remedy="write probabilities on the grid of the scan",
        )
    if shape[0] != len(channels):
        raise MedContextError(
            "A probability map has not one channel for each class.",
            file=scan.path,
            found=f"{shape[0]} channels",
            expected=f"{len(channels)}: {'the background and ' if sums_to_one else ''}the labels "
            f"{', '.join(str(label) for label in channels if label)}",
            remedy="write the probabilities of every class, the background's first; of regions each one's",
        )
    low, high = float(scan.array.min()), float(scan.array.max())
    sums = scan.array.sum(axis=0) if sums_to_one else np.ones(1)
    if not (low >= -SLACK and high <= 1 + SLACK and float(np.abs(sums - 1).max()) <= SLACK):
        raise MedContextError(
            "The values of a probability map are no probabilities.",
            file=scan.path,
            found=f"values from {low:.4g} to {high:.4g}, sums from {float(sums.min()):.4g} to {float(sums.max()):.4g}",
            expected="values from 0 to 1" + (", those of a voxel summing up to 1" if sums_to_one else ""),
            remedy="write the softmax (of regions the sigmoid) of the network's output, not the output itself",
        )

"""Which predicted label map belongs to which true one, and both of a case on one grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from medcontext.data.scan import AFFINE_TOLERANCE, LabelMap, case_name, read_labels, scan_files, voxels_apart
from medcontext.errors import MedContextError


@dataclass(frozen=True)
class Pairs:
    """Label maps by case.

    Attributes:
        files: Case to prediction and truth.
        unpredicted: Cases with a truth and no prediction.
        without_truth: Cases with a prediction and no truth.
    """

    files: Mapping[str, tuple[Path, Path]]
    unpredicted: tuple[str, ...] = ()
    without_truth: tuple[str, ...] = ()


def pair_files(predictions: Path, labels: Path | Mapping[str, Path]) -> Pairs:
    """Pair label maps by the names of their cases; two single files pair whatever their names.

    Args:
        predictions: Folder of label maps, or one label map.
        labels: Folder of true label maps, or one, or case name -> file.

    Raises:
        MedContextError: A path is absent, a folder has no label maps, or no case is in both.
    """
    if isinstance(labels, Path) and predictions.is_file() and labels.is_file():
        return Pairs({case_name(predictions): (predictions, labels)})
    predicted = label_files(predictions)
    true = label_files(labels) if isinstance(labels, Path) else labels
    common = {case: (predicted[case], true[case]) for case in predicted if case in true}
    if not common:
        raise MedContextError(
            "No prediction has the name of a true label map.",
            file=predictions,
            found=f"predictions {some(predicted)}; true label maps {some(true)}",
            expected="files of the same name in both folders",
            remedy="rename the predictions, or check that both paths belong to one data set",
        )
    return Pairs(
        common,
        unpredicted=tuple(case for case in true if case not in predicted),
        without_truth=tuple(case for case in predicted if case not in true),
    )


def label_files(path: Path) -> dict[str, Path]:
    """Case to file, of a folder of label maps or a single one.

    Raises:
        MedContextError: There is no such path, or the folder has no label maps.
    """
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


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few names."""
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def read_pair(prediction: Path, truth: Path, *, resample: bool = False) -> tuple[LabelMap, LabelMap, bool]:
    """Read both label maps of a case.

    Args:
        prediction: File.
        truth: File.
        resample: Bring a prediction of another grid to the truth's, instead of refusing it.

    Returns:
        Prediction, truth, and whether the prediction was resampled.

    Raises:
        MedContextError: A file can't be read, or the grids differ.
    """
    predicted, true = read_labels(prediction), read_labels(truth)
    error = _other_grid(predicted, true)
    if error is None:
        return predicted, true, False
    if not resample:
        raise error
    return resampled(predicted, true), true, True


def resampled(labels: LabelMap, like: LabelMap) -> LabelMap:
    """A label map on another grid: each voxel gets the label of the voxel that its centre lies in, 0 outside."""
    there = np.linalg.inv(labels.affine) @ like.affine
    # "grid-constant": up to the outer faces of the outer voxels, half a voxel beyond their centres.
    array = ndimage.affine_transform(
        labels.array, there[:3, :3], there[:3, 3], output_shape=like.array.shape, order=0, mode="grid-constant", cval=0
    )
    return replace(labels, array=array, affine=like.affine, header=like.header)


def _other_grid(predicted: LabelMap, true: LabelMap) -> MedContextError | None:
    """What is wrong where the two are not on the same grid."""
    apart = 0.0
    if predicted.array.shape == true.array.shape:
        apart = voxels_apart(true.array.shape, true.affine, predicted.affine)
        if apart <= AFFINE_TOLERANCE:
            return None
    return MedContextError(
        "A prediction lies on another grid than its true label map.",
        file=predicted.path,
        found=_grid(predicted) + (f": corners up to {apart:.3g} voxels apart" if apart else ""),
        expected=f"{_grid(true)}, as {true.path}",
        remedy="predict on the original scan; or have it resampled by nearest neighbour (--resample), which costs "
        "accuracy at the surface",
    )


def _grid(labels: LabelMap) -> str:
    return f"shape {labels.array.shape}, affine {np.round(labels.affine, 4).tolist()}"

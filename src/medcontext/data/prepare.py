"""A case as the network sees it: turned, resampled, normalised and cut as the plan says; on disk and back."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medcontext.data.geometry import (
    Box,
    Size,
    filled_box,
    reorient,
    reoriented_spacing,
    resample_image,
    resample_labels,
    resampled_size,
)
from medcontext.data.plan import Normalisation, Plan, listed
from medcontext.data.scan import LabelMap, Scan
from medcontext.data.stored import StoredArray, damaged, packed
from medcontext.errors import MedContextError
from medcontext.memory import GIB, free_memory

COPIES = {"ct": 2.5, "case": 4.5}
"""While a scan is prepared, so much of its size in the plan's grid is taken, by kind of normalisation; measured."""

KEPT_PLACES = 5_000
"""Voxels of each class that patches may be centred on: enough to cover it, few enough to load at once."""

PERCENTILES = (0.5, 99.5)
"""Of a channel's intensities; what lies beyond is clipped, where a case is normalised by itself."""

PERCENTILE_VOXELS = 1_000_000
"""Voxels of each channel that its percentiles are taken from, or a few more; of smaller scans, all of them."""

SMALLEST_STD = 1e-6
"""A channel is divided by no less than this times (1 + its mean without sign): a constant one becomes zeros."""

HALF_LIMIT = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Prepared:
    """A case in the plan's grid, without the empty border of the scan.

    The arrays of a case that was read from the cache stay on disk and are read where they are sliced.

    Attributes:
        image: ``(C, D, H, W)``, normalised; float32 as prepared, float16 in the cache.
        label: ``(D, H, W)`` class indices, uint8 or int16, -1 where ignored; None: the case has none.
        places: For each class but the background, ``(n, 3)`` int32 voxel indices, at most :data:`KEPT_PLACES` each;
            none without a label.
    """

    image: npt.NDArray[np.floating[Any]] | StoredArray
    label: npt.NDArray[np.integer[Any]] | StoredArray | None
    places: tuple[npt.NDArray[np.int32], ...]


def prepare_image(scan: Scan, plan: Plan) -> tuple[npt.NDArray[np.float32], Box]:
    """What the network sees of a scan, in training as in prediction: what isn't empty, in the plan's grid, normalised.

    Labels have no say in it: a new scan has none.

    Returns:
        ``(C, D, H, W)``, and the box of the scan (X, Y, Z) that it covers: the smallest around all that isn't empty,
        or the whole of an empty scan.

    Raises:
        MedContextError: The scan has other channels than the plan, or values that are not finite.
    """
    if len(scan.array) != plan.channels:
        raise MedContextError(
            "The image has the wrong number of channels.",
            file=scan.path,
            found=str(len(scan.array)),
            expected=f"{plan.channels}, as the network was trained on",
        )
    if not np.isfinite(scan.array).all():
        raise MedContextError("The image holds values that are not finite.", file=scan.path, remedy="export it again")
    how = plan.normalisation
    # Air in CT is below the lowest value that is told apart; MRI is 0 where nothing was measured or all was removed.
    box = filled_box(scan.array, how.low if how.kind == "ct" else None)
    part = dataclasses.replace(scan, array=scan.array[:, *box])
    # Copied in any case: NumPy takes a turned axis of one voxel for contiguous, torch doesn't.
    turned = reorient(part.array, scan.affine, plan.orientation).copy()
    image = resample_image(torch.from_numpy(turned), planned_size(part, plan)).numpy()
    return _normalise(image, how), box


def prepare_case(scan: Scan, labels: LabelMap | None, plan: Plan) -> Prepared:
    """A case in the plan's grid, with places of every class for sampling where it has a label.

    The image is that of :func:`prepare_image`. Labels beyond it are left out, as nothing was measured there.

    Raises:
        MedContextError: As :func:`prepare_image` and :func:`require_memory`.
    """
    require_memory(scan, plan)
    image, box = prepare_image(scan, plan)
    if labels is None:
        return Prepared(image, None, ())
    indices = reorient(plan.labels.to_indices(labels.array[box]), scan.affine, plan.orientation)
    label = resample_labels(indices.copy(), image.shape[1:])
    return Prepared(image, label, _places(label, plan.labels.classes))


def require_memory(scan: Scan, plan: Plan, numbers: int = 0) -> None:
    """Refuse a scan that can't be held in the plan's grid: a header in other units than mm makes it millions of times
    larger; or whose maps can't be held in its own.

    Args:
        scan: As it was read.
        plan: Of the network.
        numbers: For each voxel of the scan, how many are made beside its label, in half precision.

    Raises:
        MedContextError: It takes more memory than is free.
    """
    size = planned_size(scan, plan)
    maps = (4.0 + 2 * numbers) * np.prod(scan.array.shape[1:], dtype=np.float64)
    needed = 4.0 * COPIES[plan.normalisation.kind] * plan.channels * np.prod(size, dtype=np.float64) + maps
    free = free_memory("cpu")
    if needed > free:
        raise MedContextError(
            "There is too little memory for this scan at the plan's spacing.",
            file=scan.path,
            found=f"{free / GIB:.1f} GiB free; {listed(scan.array.shape[1:])} voxels of "
            f"{listed(np.round(reoriented_spacing(scan.affine, plan.orientation), 3))} mm",
            expected=f"more than {needed / GIB:,.0f} GiB, for {listed(size)} voxels of {listed(plan.spacing)} mm"
            f" and {maps / GIB:,.0f} GiB of maps like the scan",
            remedy="see whether the header is in millimetres; if it is right, cut the scan into parts"
            + (", or ask for no probabilities" if numbers else ""),
        )


def planned_size(scan: Scan, plan: Plan) -> Size:
    """Size of the scan in the plan's grid."""
    d, h, w = reorient(scan.array, scan.affine, plan.orientation).shape[1:]
    return resampled_size((d, h, w), reoriented_spacing(scan.affine, plan.orientation), plan.spacing)


def _normalise(image: npt.NDArray[np.float32], how: Normalisation) -> npt.NDArray[np.float32]:
    if how.kind == "ct":
        return _scale(image, how.low, how.high, how.mean, how.std)
    normalised = np.empty_like(image)
    for channel, values in enumerate(image):
        low, high = (float(value) for value in np.percentile(_sample(values), PERCENTILES))
        if low == high:
            # Nearly all voxels have one value, and the channel says something by the others, as a map of few points.
            low, high = float(values.min()), float(values.max())
        clipped = np.clip(values, low, high)
        mean = float(clipped.mean())
        normalised[channel] = _scale(values, low, high, mean, max(float(clipped.std()), SMALLEST_STD * (1 + abs(mean))))
    return normalised


def _scale(
    values: npt.NDArray[np.float32], low: float, high: float, mean: float, std: float
) -> npt.NDArray[np.float32]:
    scaled: npt.NDArray[np.float32] = np.clip(values, low, high)
    scaled -= mean
    scaled /= std
    return scaled


def _sample(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Voxels of a large scan at one distance. It shares no factor with the length of any axis, so that all rows,
    columns and slices are met alike."""
    distance = max(1, values.size // PERCENTILE_VOXELS)
    while math.gcd(distance, values.size) > 1:
        distance -= 1
    return values.reshape(-1)[::distance]


def _places(label: npt.NDArray[np.integer[Any]], classes: int) -> tuple[npt.NDArray[np.int32], ...]:
    """All voxels of small classes; of large ones a draw, since voxels at one distance would lie on few lines."""
    rng = np.random.default_rng(0)
    flat = label.reshape(-1)
    labelled = np.flatnonzero(flat > 0)
    indices = flat[labelled]
    by_class = labelled[np.argsort(indices, kind="stable")]
    ends = np.cumsum(np.bincount(indices, minlength=classes))
    places = []
    for start, end in itertools.pairwise(ends):
        own = by_class[start:end]
        if len(own) > KEPT_PLACES:
            own = np.sort(rng.choice(own, KEPT_PLACES, replace=False))
        places.append(np.stack(np.unravel_index(own, label.shape), axis=1).astype(np.int32))
    return tuple(places)


IMAGE, LABEL, PLACES = "image.b2nd", "label.b2nd", "places.npz"


def read_prepared(folder: Path) -> Prepared:
    """Open a case that :func:`write_prepared` wrote.

    Raises:
        MedContextError: A file is missing, cut short or something else.
    """
    image = StoredArray(folder / IMAGE)
    try:
        with (folder / PLACES).open("rb") as file, np.load(file, allow_pickle=False) as kept:
            places = np.split(kept["places"].astype(np.int32), np.cumsum(kept["counts"]))[:-1]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise damaged(folder / PLACES, error) from error
    # A case with a label has as many lists of places as it has classes, at least one; so a lost label is noticed.
    return Prepared(image, StoredArray(folder / LABEL) if places else None, tuple(places))


def write_prepared(folder: Path, case: Prepared) -> None:
    """Store a case in a new folder; once this returns, it is on the disk, whatever happens to the power."""
    folder.mkdir(parents=True)
    # Normalised values come nowhere near the limit; a plan edited by hand shall not make infinities of them.
    half = np.clip(np.asarray(case.image), -HALF_LIMIT, HALF_LIMIT).astype(np.float16)
    places = io.BytesIO()
    np.savez(
        places,
        places=np.concatenate([*case.places, np.zeros((0, 3))]).astype(np.min_scalar_type(max(half.shape))),
        counts=np.array([len(own) for own in case.places], dtype=np.int64),
    )
    files = {IMAGE: packed(half), PLACES: places.getvalue()}
    if case.label is not None:
        files[LABEL] = packed(np.asarray(case.label))
    for name, content in files.items():
        with (folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

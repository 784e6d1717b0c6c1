"""A case as the network sees it: turned, resampled and normalised as the plan says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medcontext.data.geometry import (
    Size,
    reorient,
    reoriented_spacing,
    resample_image,
    resample_labels,
    resampled_size,
)
from medcontext.data.plan import Normalisation, Plan
from medcontext.data.scan import LabelMap, Scan
from medcontext.errors import MedContextError


@dataclass(frozen=True)
class Prepared:
    """A case in the plan's grid.

    Attributes:
        image: ``(C, D, H, W)`` float32, normalised.
        label: ``(D, H, W)`` class indices, uint8 or int16; None for a scan to predict.
        places: For each class but the background, ``(n, 3)`` int32 voxel indices, at most :data:`KEPT_PLACES` each.
    """

    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.integer[Any]] | None
    places: tuple[npt.NDArray[np.int32], ...]


KEPT_PLACES = 5_000
"""Voxels of each class that patches may be centred on: enough to cover it, few enough to load at once."""


def prepare_image(scan: Scan, plan: Plan) -> npt.NDArray[np.float32]:
    """``(C, D, H, W)`` in the plan's grid, normalised.

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
    turned = np.ascontiguousarray(reorient(scan.array, scan.affine, plan.orientation))
    image = resample_image(torch.from_numpy(turned), planned_size(scan, plan)).numpy()
    return _normalise(image, plan.normalisation)


def prepare_case(scan: Scan, labels: LabelMap, plan: Plan) -> Prepared:
    """A labelled case in the plan's grid, with places of every class for sampling."""
    values = np.array(list(plan.labels))
    turned = reorient(labels.array, scan.affine, plan.orientation)
    kind = np.uint8 if plan.classes <= 256 else np.int16
    indices = np.zeros(turned.shape, dtype=kind)
    for index, value in enumerate(values, start=1):
        indices[turned == value] = index
    resampled = resample_labels(torch.from_numpy(indices), planned_size(scan, plan), plan.classes)
    label: npt.NDArray[np.integer[Any]] = resampled.numpy().astype(kind)
    return Prepared(prepare_image(scan, plan), label, _places(label, plan.classes))


def planned_size(scan: Scan, plan: Plan) -> Size:
    """Size of the scan in the plan's grid."""
    d, h, w = reorient(scan.array, scan.affine, plan.orientation).shape[1:]
    return resampled_size((d, h, w), reoriented_spacing(scan.affine, plan.orientation), plan.spacing)


def _normalise(image: npt.NDArray[np.float32], how: Normalisation) -> npt.NDArray[np.float32]:
    if how.kind == "ct":
        return ((np.clip(image, how.low, how.high) - how.mean) / how.std).astype(np.float32)
    normalised = np.empty_like(image)
    for channel, values in enumerate(image):
        clipped = np.clip(values, *np.percentile(values, (0.5, 99.5)))
        normalised[channel] = (clipped - clipped.mean()) / max(float(clipped.std()), 1e-6 * (1 + abs(clipped.mean())))
    return normalised


def _places(label: npt.NDArray[np.integer[Any]], classes: int) -> tuple[npt.NDArray[np.int32], ...]:
    found = []
    for k in range(1, classes):
        places = np.argwhere(label == k).astype(np.int32)
        found.append(places[:: -(-len(places) // KEPT_PLACES) or 1])
    return tuple(found)


def read_prepared(folder: Path) -> Prepared:
    """Open a case that :func:`write_prepared` wrote; its arrays stay on disk and are read where they are touched."""
    image, label = (np.load(folder / f"{part}.npy", mmap_mode="r") for part in ("image", "label"))
    with np.load(folder / "places.npz") as stored:
        return Prepared(image, label, tuple(stored[name] for name in sorted(stored, key=int)))


def write_prepared(folder: Path, case: Prepared) -> None:
    """Store a case as memory-mappable arrays in a new folder."""
    assert case.label is not None
    folder.mkdir(parents=True)
    np.save(folder / "image.npy", case.image)
    np.save(folder / "label.npy", case.label)
    named: dict[str, Any] = {str(k): places for k, places in enumerate(case.places)}
    np.savez(folder / "places.npz", **named)

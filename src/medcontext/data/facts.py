"""What a plan needs to know of a case, taken while its files are read for the check."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from medcontext.data.geometry import filled_box
from medcontext.data.labels import TABLE_SIZE, Labels
from medcontext.data.scan import LabelMap, Scan, spacing_of

SAMPLED_VOXELS = 2_000
"""Foreground voxels of each case whose intensities stand for the data set's, for the normalisation of CT."""

PERCENTILE_VOXELS = 200_000
"""Voxels of a scan that its percentiles are taken from; of smaller scans, all of them."""

PERCENTILES = (0.5, 99.5)

COUNTED_AT_ONCE = 1 << 20
"""Voxels of a label map; counting takes eight bytes for each."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class CaseFacts:
    """What a plan needs to know of a case.

    Attributes:
        shape: (X, Y, Z) in the file's own axis order; ``spacing`` in mm likewise.
        spacing: Voxel size in mm.
        orientation: Of the file's axes, such as ``"RAS"`` or ``"LPS"``.
        channels: Number of image channels.
        voxels: Label number to its number of voxels, background and ignored voxels left out.
        foreground: ``(n, C)`` intensities of a sample of the voxels counted in ``voxels``.
        intensities: Of each channel over the whole scan: minimum, 0.5 and 99.5 percentiles (of a sample of
            :data:`PERCENTILE_VOXELS` where the scan is larger), maximum.
        ignored: Number of voxels that carry the ignore label.
        filled: Share of the scan's voxels that lies in the smallest box around all that are not 0 in every channel:
            what is left when an empty border is cut off.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    channels: int
    voxels: Mapping[int, int]
    foreground: npt.NDArray[np.float32] = field(repr=False)
    intensities: tuple[tuple[float, float, float, float], ...] = ()
    ignored: int = 0
    filled: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; the sample of the foreground is left out."""
        return {
            "shape": list(self.shape),
            "spacing": list(self.spacing),
            "orientation": self.orientation,
            "channels": self.channels,
            "voxels": {str(number): count for number, count in self.voxels.items()},
            "intensities": [list(channel) for channel in self.intensities],
            "ignored": self.ignored,
            "filled": self.filled,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], foreground: npt.NDArray[np.float32]) -> CaseFacts:
        """From what :meth:`to_dict` gave, and the sample of the foreground."""
        x, y, z = values["shape"]
        dx, dy, dz = values["spacing"]
        return cls(
            shape=(x, y, z),
            spacing=(dx, dy, dz),
            orientation=values["orientation"],
            channels=values["channels"],
            voxels={int(number): count for number, count in values["voxels"].items()},
            foreground=foreground,
            intensities=tuple((low, few, most, high) for low, few, most, high in values["intensities"]),
            ignored=values["ignored"],
            filled=values["filled"],
        )


def gather_facts(scan: Scan, labels: LabelMap | None, counts: Mapping[int, int], declared: Labels | None) -> CaseFacts:
    """The facts of a scan of finite values.

    Args:
        scan: The scan.
        labels: Its label map, of the same shape, if it has one.
        counts: What :func:`count_labels` says of it.
        declared: The labels of the data set, if it declares any.
    """
    _, x, y, z = scan.array.shape
    voxels = {number: count for number, count in counts.items() if is_structure(number, declared)}
    return CaseFacts(
        shape=(x, y, z),
        spacing=spacing_of(scan.affine),
        orientation=orientation_of(scan.affine),
        channels=len(scan.array),
        voxels=voxels,
        foreground=_sample(scan, labels, list(voxels)),
        intensities=tuple(intensity_range(channel) for channel in scan.array),
        ignored=0 if declared is None or declared.ignore is None else counts.get(declared.ignore, 0),
        filled=_filled(scan.array),
    )


def is_structure(number: int, declared: Labels | None) -> bool:
    """Whether a label number stands for something to segment: neither background nor ignored."""
    return number > 0 if declared is None else number in declared.names


def count_labels(array: npt.NDArray[np.int32]) -> dict[int, int]:
    """Every number in a label map and how many voxels carry it, in ascending order."""
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= TABLE_SIZE:
        numbers, found = np.unique(array, return_counts=True)
        return {int(number): int(count) for number, count in zip(numbers, found, strict=True)}
    flat = array.ravel(order="K")
    counts = np.zeros(high + 1, dtype=np.int64)
    for start in range(0, len(flat), COUNTED_AT_ONCE):
        counts += np.bincount(flat[start : start + COUNTED_AT_ONCE], minlength=high + 1)
    return {int(number): int(counts[number]) for number in np.flatnonzero(counts)}


def orientation_of(affine: npt.NDArray[np.float64]) -> str:
    """Anatomical direction of each array axis, such as ``"RAS"``; shorter where an axis has none."""
    import nibabel as nib

    return "".join(letter for letter in nib.aff2axcodes(affine) if letter is not None)


def by_direction(orientation: str, values: tuple[Value, Value, Value]) -> tuple[Value, Value, Value]:
    """Values along a file's axes, reordered to right-left, anterior-posterior, superior-inferior."""
    x, y, z = (
        values[next(axis for axis, letter in enumerate(orientation) if letter in pair)] for pair in ("RL", "AP", "SI")
    )
    return x, y, z


def _sample(scan: Scan, labels: LabelMap | None, numbers: list[int]) -> npt.NDArray[np.float32]:
    """``(n, C)`` intensities at every so-manieth voxel with one of these numbers."""
    if labels is None or not numbers:
        return np.zeros((0, len(scan.array)), dtype=np.float32)
    # In the order in which NIfTI stores voxels: a large scan is not copied for another one.
    flat = labels.array.ravel(order="F")
    places = np.flatnonzero(flat)
    places = places[np.isin(flat[places], numbers)]
    places = places[:: max(1, len(places) // SAMPLED_VOXELS)]
    voxels = np.unravel_index(places, labels.array.shape, order="F")
    return np.stack([channel[voxels] for channel in scan.array], axis=1)


def intensity_range(channel: npt.NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Minimum, 0.5 and 99.5 percentiles, maximum of finite values.

    The sample is drawn by a fixed seed; a stride would favour some rows of the scan.
    """
    values = channel.ravel(order="K")
    sample = values
    if len(values) > PERCENTILE_VOXELS:
        sample = values[np.random.default_rng(0).integers(len(values), size=PERCENTILE_VOXELS)]
    few, most = np.percentile(sample, PERCENTILES)
    return float(values.min()), float(few), float(most), float(values.max())


def _filled(array: npt.NDArray[np.float32]) -> float:
    if not array.any():
        return 0.0
    sides = zip(filled_box(array), array.shape[1:], strict=True)
    return float(math.prod((side.stop - side.start) / size for side, size in sides))

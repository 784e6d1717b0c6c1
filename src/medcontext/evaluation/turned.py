"""A scan and label maps on its grid, turned so that their axes run to the patient's right, front and head (RAS+)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medcontext.data.scan import read_labels, read_scan, spacing_of
from medcontext.errors import MedContextError

Structures = Mapping[int, tuple[str, tuple[int, ...]]]
"""Label -> name and the numbers that it is made of."""


@dataclass(frozen=True)
class Turned:
    """Arrays in RAS+.

    Attributes:
        image: ``(X, Y, Z)``; of several channels the first.
        maps: Label maps, ``(X, Y, Z)`` each.
        spacing: In mm.
    """

    image: npt.NDArray[np.float32]
    maps: tuple[npt.NDArray[np.int32], ...]
    spacing: tuple[float, float, float]


def read_turned(scan: Path, label_maps: Sequence[Path], structures: Structures) -> Turned:
    """Read a scan and its label maps.

    Args:
        scan: Of several channels, one that is shown.
        label_maps: On its grid.
        structures: Label -> name and the numbers that it is made of; other numbers, such as that of ignored voxels,
            become 0.

    Raises:
        MedContextError: A file cannot be read, or a label map has another shape than its scan.
    """
    read = read_scan(scan)
    numbers = [number for _, own in structures.values() for number in own]
    volumes = [read_labels(path).array for path in label_maps]
    volumes = [np.where(np.isin(volume, numbers), volume, np.int32(0)) for volume in volumes]
    for path, volume in zip(label_maps, volumes, strict=True):
        if volume.shape != read.array.shape[1:]:
            raise MedContextError(
                "A label map has another shape than its scan.",
                file=path,
                found=f"shape {volume.shape}",
                expected=f"shape {read.array.shape[1:]}, as {scan}",
                remedy="check that both are of the same case",
            )
    turn = nib.orientations.io_orientation(read.affine)
    x, y, z = (size for _, size in sorted(zip(turn[:, 0], spacing_of(read.affine), strict=True)))
    image, *maps = (nib.orientations.apply_orientation(each, turn) for each in (read.array[0], *volumes))
    return Turned(image, tuple(maps), (x, y, z))

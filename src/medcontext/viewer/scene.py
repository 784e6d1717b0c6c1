"""Everything that a page shows: the scan, label maps on its grid, their names, and what is known of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medcontext.data.scan import case_name, read_labels, read_volume, spacing_of
from medcontext.drawing import label_colour
from medcontext.viewer.grid import Affine, require_same_grid, steps
from medcontext.viewer.label_maps import Indices, numbers_in, pair_counts, to_indices
from medcontext.viewer.names import Names
from medcontext.viewer.nifti import compact, nifti_parts

CT_WINDOWS = (("Soft tissue", 40, 400), ("Lung", -600, 1500), ("Bone", 400, 1800), ("Brain", 40, 80))
"""Name, level and width in Hounsfield units, as they are customary in reading CT."""

ENOUGH_VOXELS = 1e7
"""For percentiles; of a larger scan every n-th voxel along each axis is taken."""

SCAN_FILE = "scan.nii"

Parts = tuple[memoryview, memoryview]


@dataclass(frozen=True)
class Scene:
    """What a page needs.

    Attributes:
        about: For the page's script: plain values that JSON holds.
        files: Name to the parts of a NIfTI file, as ``about`` refers to them.
    """

    about: dict[str, Any]
    files: dict[str, Parts]


@dataclass(frozen=True)
class _Grid:
    """The scan's own grid, and which of its voxels are shown."""

    path: Path
    shape: tuple[int, ...]
    affine: Affine
    step: tuple[int, int, int]

    @property
    def shown(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, each) for each in self.step)

    @property
    def shown_affine(self) -> Affine:
        shown: Affine = self.affine @ np.diag([*self.step, 1.0])
        return shown


def make_scene(scan: Path, labels: Sequence[Path], truth: Path | None, names: Names, most: int) -> Scene:
    """Read everything.

    Args:
        scan: The scan.
        labels: Label maps on its grid.
        truth: The true label map: it comes first, and the others are compared with it.
        names: Of labels and channels.
        most: Voxels, channels counted, that the page may hold; of a larger scan only some are shown, and it says so.

    Raises:
        MedContextError: A file can't be read, or a label map lies on another grid.
    """
    about, voxels, grid = _read_scan(scan, names, most)
    paths = [*([truth] if truth else []), *labels]
    numbers, maps = _read_maps(paths, grid, names)
    counts = [pair_counts(maps[0], each, len(numbers) + 1) for each in maps]
    files = {SCAN_FILE: voxels}
    for n, each in enumerate(maps):
        files[f"map{n}.nii"] = nifti_parts(each[grid.shown], grid.shown_affine, labels=True)
    about["maps"] = [
        {
            "title": title,
            "file": f"map{n}.nii",
            "voxels": pairs.sum(axis=0)[1:].tolist(),
            "pairs": [[int(i), int(j), int(pairs[i, j])] for i, j in np.argwhere(pairs) if i != j],
        }
        for n, (title, pairs) in enumerate(zip(_titles(labels, truth), counts, strict=True))
    ]
    # As in the report; what is not declared comes after that.
    places = {number: place for place, number in enumerate(dict.fromkeys([*names.labels, *numbers]))}
    about["labels"] = [
        {"number": number, "name": names.labels.get(number, f"label {number}"), "colour": label_colour(places[number])}
        for number in numbers
    ]
    return Scene(about, files)


def _read_scan(path: Path, names: Names, most: int) -> tuple[dict[str, Any], Parts, _Grid]:
    """What is known of the scan, the voxels to show, and the grid."""
    scan = read_volume(path)
    shape, spacing = scan.array.shape[:3], spacing_of(scan.affine)
    channels = scan.array.size // math.prod(shape)
    grid = _Grid(path, shape, scan.affine, steps(shape, spacing, most // channels))
    shown = compact(scan.array[grid.shown])
    about = {
        "title": case_name(path),
        "shape": list(shape),
        "spacing": list(spacing),
        "voxelMl": abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000,
        "step": list(grid.step),
        "affine": grid.shown_affine.tolist(),
        "channels": list(names.modality) if len(names.modality) == channels else [],
        "windows": [
            _windows(channel, names.modality[n : n + 1])
            for n, channel in enumerate(np.moveaxis(shown.reshape(*shown.shape[:3], -1), 3, 0))
        ],
        "file": SCAN_FILE,
    }
    return about, nifti_parts(shown, grid.shown_affine), grid


def _read_maps(paths: Sequence[Path], grid: _Grid, names: Names) -> tuple[list[int], list[Indices]]:
    """The label numbers, of the files or named, and for each map the places in them."""
    maps = []
    for path in paths:
        maps.append(read_labels(path))
        require_same_grid(maps[-1], grid.path, grid.shape, grid.affine)
    numbers = sorted(numbers_in(maps) | set(names.labels if paths else ()) - {0})
    indices = []
    while maps:
        # One after the other is let go of: as they were read, they take four times the memory.
        indices.append(to_indices(maps.pop(0).array, numbers))
    return numbers, indices


def _titles(labels: Sequence[Path], truth: Path | None) -> list[str]:
    """What the maps are called; files of one name, such as a case's in two runs, are told apart by their folders."""
    stems = [case_name(path) for path in labels]
    if len(set(stems)) < len(stems):
        parts = [path.absolute().parts for path in labels]
        deep = 2
        while len({each[-deep:] for each in parts}) < len(set(parts)):
            deep += 1
        folders = [each[-deep:-1] for each in parts]
        telling = [place for place, level in enumerate(zip(*folders, strict=True)) if len(set(level)) > 1]
        stems = ["/".join(each[place] for place in telling) or stem for each, stem in zip(folders, stems, strict=True)]
    if truth is not None and len(labels) == 1:
        stems = ["Prediction"]
    return ["Truth", *stems] if truth else stems


def _windows(channel: npt.NDArray[Any], modality: tuple[str, ...]) -> list[dict[str, Any]]:
    """Ranges of intensity to choose from, the first of them to begin with."""
    every = max(1, round((channel.size / ENOUGH_VOXELS) ** (1 / 3)))
    low, high = (float(value) for value in np.percentile(channel[::every, ::every, ::every], (1, 99.5)))
    least, greatest = float(channel.min()), float(channel.max())
    if not least < greatest:
        greatest = least + 1
    if not low < high:
        low, high = least, greatest
    found = [{"name": "Automatic", "low": low, "high": high}, {"name": "Full range", "low": least, "high": greatest}]
    if "CT" in modality or (not modality and least <= -500):
        found = [{"name": n, "low": lev - wide / 2, "high": lev + wide / 2} for n, lev, wide in CT_WINDOWS] + found
    return found

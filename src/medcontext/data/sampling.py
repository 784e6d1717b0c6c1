"""Batches of patches as a pure function of the step: any worker, any order, and a resumed run sees the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medcontext.data.augment import reach, spatial_matrix, vary_intensity, warp
from medcontext.data.augment_config import AugmentConfig
from medcontext.data.plan import Plan
from medcontext.data.prepare import Prepared, read_prepared

FOREGROUND_SHARE = 0.5
"""Share of the patches that are centred on a labelled voxel, of a class drawn first so that rare ones are seen."""


class Batch(TypedDict):
    """``image`` ``(B, C, D, H, W)`` float32, ``label`` ``(B, D, H, W)`` int64, names of the ``cases``."""

    image: Tensor
    label: Tensor
    cases: list[str]


class PatchBatches(Dataset[Batch]):
    """Item ``t`` is the batch of step ``t``, drawn from ``(seed, t)`` alone.

    Every case is seen once before any is seen twice.

    Args:
        folders: Case name to its folder in the cache.
        plan: Patch and batch size.
        augment: How patches are varied.
        seed: Of everything drawn.
        steps: Length.
    """

    def __init__(self, folders: Mapping[str, Path], plan: Plan, augment: AugmentConfig, seed: int, steps: int) -> None:
        self._names = sorted(folders)
        self._folders = dict(folders)
        self._plan = plan
        self._augment = augment
        self._seed = seed
        self._steps = steps
        self._open: dict[str, Prepared] = {}

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < self._steps:
            raise IndexError(step)
        rng = np.random.default_rng([self._seed, step])
        size = self._plan.batch_size
        cases = [self._case_of(step * size + place) for place in range(size)]
        images, labels = zip(*(self._patch(name, rng) for name in cases), strict=True)
        return {"image": torch.stack(images), "label": torch.stack(labels), "cases": cases}

    def _case_of(self, sample: int) -> str:
        epoch, place = divmod(sample, len(self._names))
        # A seed sequence of another length than a step's: the two never coincide.
        order = np.random.default_rng([self._seed, epoch, 0]).permutation(len(self._names))
        return self._names[int(order[place])]

    def _patch(self, name: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        if name not in self._open:
            self._open[name] = read_prepared(self._folders[name])
        case = self._open[name]
        assert case.label is not None
        patch = self._plan.patch
        matrix = spatial_matrix(self._augment, self._plan.spacing, rng)
        start = _draw_start(case, patch, rng)
        box = reach(matrix, patch)
        # The box shares the patch's centre; where their sizes differ by an odd number it is half a voxel off.
        corner = [first + (inner - outer) // 2 for first, inner, outer in zip(start, patch, box, strict=True)]
        image = torch.from_numpy(cut(case.image, corner, box, self._plan.normalisation.outside))
        label = torch.from_numpy(cut(case.label, corner, box, 0))
        if not torch.equal(matrix, torch.eye(3, dtype=matrix.dtype)):
            image, label = warp(image, label, matrix, patch)
        return vary_intensity(image, self._augment, rng), label.long()


def cut(array: npt.NDArray[Any], start: Sequence[int], size: Sequence[int], outside: float) -> npt.NDArray[Any]:
    """Box out of the last three axes; ``outside`` where it reaches beyond the array."""
    lead = array.shape[:-3]
    box = np.full((*lead, *size), outside, dtype=array.dtype)
    inside = [
        (max(first, 0), min(first + length, extent))
        for first, length, extent in zip(start, size, array.shape[-3:], strict=True)
    ]
    if all(low < high for low, high in inside):
        source = [slice(low, high) for low, high in inside]
        target = [slice(low - first, high - first) for (low, high), first in zip(inside, start, strict=True)]
        box[..., target[0], target[1], target[2]] = array[..., source[0], source[1], source[2]]
    return box


def _draw_start(case: Prepared, patch: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Corner of a patch: around a labelled voxel for half of the patches, anywhere for the others.

    A patch stays within the scan where it fits; where the scan is smaller it lies anywhere around it.
    """
    extent = case.image.shape[1:]
    bounds = [sorted((0, size - length)) for size, length in zip(extent, patch, strict=True)]
    present = [places for places in case.places if len(places)]
    if present and rng.random() < FOREGROUND_SHARE:
        places = present[rng.integers(len(present))]
        centre = places[rng.integers(len(places))]
        around = [int(rng.integers(-(length // 4), length // 4 + 1)) for length in patch]
        wanted = [int(c) - length // 2 + off for c, length, off in zip(centre, patch, around, strict=True)]
        return [min(max(want, low), high) for want, (low, high) in zip(wanted, bounds, strict=True)]
    return [int(rng.integers(low, high + 1)) for low, high in bounds]

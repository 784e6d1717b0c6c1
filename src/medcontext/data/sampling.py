"""Batches of patches as a pure function of the step: any worker, any order, and a resumed run sees the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import get_ident
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from medcontext.data.augment_config import AugmentConfig
from medcontext.data.fingerprint import has_thick_slices
from medcontext.data.intensity import vary_intensity
from medcontext.data.plan import Plan
from medcontext.data.prepare import Prepared, read_prepared
from medcontext.data.spatial import draw_deformation, reach, warp
from medcontext.data.stored import of_case

FOREGROUND_SHARE = 0.5
"""Share of the patches that are centred near a labelled voxel, of a class drawn first so that rare ones are seen.
nnU-Net asks for a third, which in its batches of two is one patch of the two."""

OPEN_CASES = 64
"""Cases that a process holds at most: the places of their classes, up to a megabyte each. Their voxels stay on disk."""


_ORDER, _PATCH, _UNLABELLED_ORDER, _UNLABELLED_PATCH = 1, 2, 3, 4
"""Last word of a seed sequence, by what is drawn. Zeros at its end would not count: [s] and [s, 0] are the same."""


class Batch(TypedDict):
    """``image`` ``(B, C, D, H, W)`` float32, ``label`` ``(B, D, H, W)`` class indices, names of the ``cases``.

    The indices are of the type that they are stored in, uint8 or int16, so that workers hand over little. Which samples
    are ``labelled``: these come first; the label of the others is 0 everywhere and means nothing.
    """

    image: Tensor
    label: Tensor
    cases: list[str]
    labelled: list[bool]


@dataclass(frozen=True)
class _Turns:
    """Whose turn it is: every case once before any twice, in an order that is drawn anew each time.

    Attributes:
        names: Of the cases.
        size: Patches per step.
        share: Which part of them to draw, and of how many.
        seed: Of everything drawn.
        words: Last words of the seed sequences of order and patch.
    """

    names: Sequence[str]
    size: int
    share: tuple[int, int]
    seed: int
    words: tuple[int, int]

    def cases(self, step: int) -> list[str]:
        """Of all patches of a step."""
        return [self._case_of(step * self.size + place) for place in range(self.size)]

    def own(self, step: int) -> Iterator[tuple[str, np.random.Generator]]:
        """Case and source of randomness of each patch of the own part."""
        part, parts = self.share
        own = self.size // parts
        whole = self.cases(step)
        for place in range(part * own, (part + 1) * own):
            yield whole[place], np.random.default_rng([self.seed, step, place, self.words[1]])

    def _case_of(self, sample: int) -> str:
        epoch, place = divmod(sample, len(self.names))
        order = np.random.default_rng([self.seed, epoch, 0, self.words[0]]).permutation(len(self.names))
        return self.names[int(order[place])]


class PatchBatches(Dataset[Batch]):
    """Item ``t`` is the batch of step ``t``, drawn from ``(seed, t)`` alone.

    Every case is seen once before any is seen twice. What is held in memory does not grow with the number of cases.
    Patches of scans without a label lie anywhere in them, come after the others, and change nothing about these.

    Args:
        folders: Case name to its folder in the cache.
        plan: Patch and batch size.
        augment: How patches are varied.
        seed: Of everything drawn.
        steps: Length.
        share: Which part of every batch to draw, and of how many: that of one process.
        unlabelled: The folders of cases that were prepared without a label.
        unlabelled_batch: Patches of these per step, beside the plan's.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        plan: Plan,
        augment: AugmentConfig,
        seed: int,
        steps: int,
        share: tuple[int, int] = (0, 1),
        unlabelled: Mapping[str, Path] | None = None,
        unlabelled_batch: int = 0,
    ) -> None:
        others = unlabelled or {}
        self._folders = {**folders, **others}
        self._plan = plan
        self._augment = augment
        self._steps = steps
        self._labelled = _Turns(sorted(folders), plan.batch_size, share, seed, (_ORDER, _PATCH))
        words = (_UNLABELLED_ORDER, _UNLABELLED_PATCH)
        self._unlabelled = _Turns(sorted(others), unlabelled_batch, share, seed, words)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < self._steps:
            raise IndexError(step)
        known, others = [*self._labelled.own(step)], [*self._unlabelled.own(step)]
        with _one_thread():
            images, labels = zip(*(self._patch(name, rng) for name, rng in [*known, *others]), strict=True)
            # In a worker this writes the images straight into the memory that they are handed over in.
            return {
                "image": default_collate([*images]),
                "label": default_collate([*labels]),
                "cases": [name for name, _ in [*known, *others]],
                "labelled": [True] * len(known) + [False] * len(others),
            }

    def cases(self, step: int) -> list[str]:
        """Names of the cases in the whole batch of a step, those without a label last."""
        return self._labelled.cases(step) + self._unlabelled.cases(step)

    def _patch(self, name: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        plan, patch = self._plan, self._plan.patch
        deformation = draw_deformation(self._augment, plan.spacing, patch, rng)
        with of_case(name):
            case = _open(self._folders[name], get_ident())
            start = _draw_start(case, patch, rng)
            box = reach(deformation, patch)
            # The box shares the patch's centre; where their sizes differ by an odd number it is half a voxel off.
            corner = [first + (inner - outer) // 2 for first, inner, outer in zip(start, patch, box, strict=True)]
            image = torch.from_numpy(cut(case.image, corner, box, plan.normalisation.outside)).float()
            label = torch.zeros(box, dtype=torch.uint8)
            if case.label is not None:
                label = torch.from_numpy(cut(case.label, corner, box, 0))
        image, label = warp(image, label, deformation, patch)
        vary_intensity(image, self._augment, has_thick_slices(plan.spacing), rng)
        return image, label


@lru_cache(maxsize=OPEN_CASES)
def _open(folder: Path, thread: int) -> Prepared:
    """A case for one thread: an array that two threads read at a time would be read wrongly."""
    return read_prepared(folder)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over several threads round differently: with one, a patch is the same in a worker and without workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cut(array: Any, start: Sequence[int], size: Sequence[int], outside: float) -> npt.NDArray[Any]:
    """Box out of the last three axes, as a copy; ``outside`` where it reaches beyond the array.

    Args:
        array: Anything with ``shape`` and ``dtype`` that is read by slicing, which happens once.
        start: First voxel; may lie outside.
        size: Of the box.
        outside: Value of what isn't in the array.
    """
    inside = [
        (max(first, 0), min(first + length, extent))
        for first, length, extent in zip(start, size, array.shape[-3:], strict=True)
    ]
    box = np.full((*array.shape[:-3], *size), outside, dtype=array.dtype)
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

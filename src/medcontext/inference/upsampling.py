"""Which class is the largest between the voxels of a coarser grid, mostly without computing it.

Linear interpolation gives every class a mean of its values at eight voxels or fewer, with weights that are the same for
all classes. So a class that is the largest at all of these is the largest between them. Where they disagree, two of the
classes that are largest at one of them compete. Each other class has no more than the mean of what bounds it there: the
second largest value where one of the two has the largest, elsewhere the largest. If the better of the two has no less
than that, it is the largest; if it has, which is rare, all classes are computed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medcontext.data.geometry import neighbours_along
from medcontext.errors import MedContextError

AT_ONCE = 2**22
"""Numbers that are computed at once where all classes have to be."""


@dataclass(frozen=True)
class Axis:
    """Where the voxels of a new grid lie along an axis of an old one of the same extent.

    Attributes:
        before: For each new voxel the old one before it; never the last one, if some lie ``between``.
        share: How far it is from there to the next, as a share of the way.
        between: Whether any lies between two old ones.
    """

    before: Tensor
    share: Tensor
    between: bool

    @classmethod
    def of(cls, old: int, new: int, device: torch.device) -> Axis:
        before, _, share = neighbours_along(old, new)
        between = bool(share.any())
        last = between & (before == old - 1)
        before, share = before - last, share + last.astype(np.float32)
        return cls(torch.from_numpy(before).to(device), torch.from_numpy(share).to(device), between)


@dataclass(frozen=True)
class Mixed:
    """Where the old voxels around a new one disagree.

    Attributes:
        voxels: New ones of which that is so, as indices into their flattened slice.
        cells: Old ones before them, each once, as indices into theirs.
        of: For each of the ``voxels``, which of the ``cells``.
        low: For each of the ``cells``, the lowest class that is the largest at a corner of it.
        high: The highest.
    """

    voxels: Tensor
    cells: Tensor
    of: Tensor
    low: Tensor
    high: Tensor


class Ranked:
    """A slice of logits and what is largest where.

    Args:
        logits: ``(K, H, W)``.

    Raises:
        MedContextError: The logits are not finite.

    Attributes:
        logits: The same.
        best: ``(H, W)`` int16, the largest class of each voxel; of equal ones the lowest.
    """

    def __init__(self, logits: Tensor) -> None:
        # One class after the other, so that what is compared stays in a processor's cache.
        self.logits = logits
        first = logits[0].float().clone()
        second, lesser = torch.full_like(first, -torch.inf), torch.empty_like(first)
        self.best = torch.zeros_like(first, dtype=torch.int16)
        for k, values in enumerate(logits[1:], start=1):
            values = values.float()
            torch.maximum(self.best, (values > first).short().mul_(k), out=self.best)
            torch.minimum(first, values, out=lesser)
            torch.maximum(second, lesser, out=second)
            torch.maximum(first, values, out=first)
        if not torch.isfinite(first.sum()):
            raise MedContextError(
                "The network's output is not finite.",
                found="infinity or no number among the logits",
                remedy="predict in single precision; if that fails, train again: the weights are of no use",
            )
        self._first, self._second = first.flatten(), second.flatten()
        # One index into all values is several times faster than one of classes and one of voxels.
        rows = logits.flatten(1)
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        self._distance = rows.stride(0)
        self._values = rows.as_strided(((len(rows) - 1) * self._distance + rows.shape[1],), (1,))

    def of(self, k: Tensor, at: Tensor) -> Tensor:
        """Values of classes k at these voxels."""
        where = k * self._distance + at
        return self._values.index_select(0, where.flatten()).view(where.shape).float()

    def of_all(self, at: Tensor) -> Tensor:
        """Values of all classes at these voxels, ``(K, n)``."""
        k = torch.arange(len(self.logits), device=at.device)[:, None]
        return self.of(k, at)

    def bound(self, mixed: Mixed, at: Tensor) -> Tensor:
        """The most that any class but the two that compete has at these voxels, a corner of each of the cells."""
        best = self.best.flatten().index_select(0, at)
        compete = (best == mixed.low) | (best == mixed.high)
        return torch.where(compete, self._second.index_select(0, at), self._first.index_select(0, at))


class Plane:
    """A slice of a new grid between two slices of an old one.

    Args:
        old: (H, W).
        new: (H, W).
        device: Of the logits.
    """

    def __init__(self, old: tuple[int, int], new: tuple[int, int], device: torch.device) -> None:
        self._rows, self._columns = (Axis.of(*sizes, device) for sizes in zip(old, new, strict=True))
        self.size = new
        rows, columns = self._rows, self._columns
        self._cell = (rows.before[:, None] * old[1] + columns.before).flatten()
        self._down = rows.share[:, None].expand(new).flatten()
        self._right = columns.share.expand(new).flatten()
        sides = [(0, 1) if axis.between else (0,) for axis in (rows, columns)]
        self._corners = [down * old[1] + right for down, right in itertools.product(*sides)]

    def largest(self, below: Ranked, above: Ranked, share: float) -> Tensor:
        """Index of the largest class of each voxel, ``(H, W)`` int16; of equal ones the lowest.

        Args:
            below: Slice before the new one.
            above: Slice after it.
            share: How far the new one is from the first to the second.
        """
        found, mixed = self._compared(below.best, above.best)
        gains, leads = [], []
        for corner in self._corners:
            at = mixed.cells + corner
            low, high = (below.of(k, at).lerp(above.of(k, at), share) for k in (mixed.low, mixed.high))
            bound = below.bound(mixed, at).lerp(above.bound(mixed, at), share)
            gains.append((high - low).index_select(0, mixed.of))
            leads.append((low - bound).index_select(0, mixed.of))
        gain, lead = self._mean(gains, mixed.voxels), self._mean(leads, mixed.voxels)
        winners = torch.where(gain > 0, mixed.high.index_select(0, mixed.of), mixed.low.index_select(0, mixed.of))
        found[mixed.voxels] = winners.to(found.dtype)
        undecided = mixed.voxels[lead + gain.clamp_min(0) < 0]
        for part in torch.split(undecided, max(1, AT_ONCE // len(below.logits))):
            corners = (self._cell[part] + corner for corner in self._corners)
            values = [below.of_all(at).lerp(above.of_all(at), share) for at in corners]
            found[part] = self._mean(values, part).argmax(0).to(found.dtype)
        return found.view(self.size)

    def positive(self, below: Tensor, above: Tensor, share: float) -> Tensor:
        """Where one logit, in slices ``(H, W)``, is above 0: ``(H, W)`` bool; the rest as in :meth:`largest`."""
        found, mixed = self._compared((below > 0).short(), (above > 0).short())
        low, high = below.flatten(), above.flatten()
        values = [
            low.index_select(0, at).float().lerp(high.index_select(0, at).float(), share).index_select(0, mixed.of)
            for at in (mixed.cells + corner for corner in self._corners)
        ]
        found[mixed.voxels] = (self._mean(values, mixed.voxels) > 0).to(found.dtype)
        return found.view(self.size) > 0

    def _compared(self, below: Tensor, above: Tensor) -> tuple[Tensor, Mixed]:
        """The class of each new voxel around which all are the same, flattened, and where that isn't so.

        Args:
            below: ``(H, W)``, the largest classes of the slice before.
            above: Of the slice after.
        """
        low, high = torch.minimum(below, above), torch.maximum(below, above)
        for dimension, axis in enumerate((self._rows, self._columns)):
            if axis.between:
                low, high = torch.minimum(low, _next(low, dimension)), torch.maximum(high, _next(high, dimension))
        unknown = torch.iinfo(low.dtype).max
        low, high = low.flatten(), high.flatten()
        found = torch.where(low == high, low, unknown).index_select(0, self._cell)
        voxels = (found == unknown).nonzero()[:, 0]
        before = self._cell.index_select(0, voxels)
        number = torch.zeros(len(low), dtype=torch.int64, device=low.device).index_fill_(0, before, 1)
        cells = number.nonzero()[:, 0]
        number[cells] = torch.arange(len(cells), device=low.device)
        low, high = (each.index_select(0, cells).long() for each in (low, high))
        return found, Mixed(voxels, cells, number.index_select(0, before), low, high)

    def _mean(self, corners: list[Tensor], voxels: Tensor) -> Tensor:
        """Bilinear, of ``(..., n)`` values at the corners of the cells of n new voxels."""
        rows, columns = self._rows, self._columns
        if columns.between:
            share = self._right.index_select(0, voxels)
            corners = [left.lerp(right, share) for left, right in zip(corners[::2], corners[1::2], strict=True)]
        if rows.between:
            corners = [corners[0].lerp(corners[1], self._down.index_select(0, voxels))]
        return corners[0]


def _next(plane: Tensor, axis: int) -> Tensor:
    """What comes after each row or column; after the last one, itself."""
    last = plane.shape[axis] - 1
    return torch.cat([plane.narrow(axis, 1, last), plane.narrow(axis, last, 1)], axis)

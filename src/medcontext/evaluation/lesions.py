"""Detection of lesions: which of a label's connected components in the truth are found, and which found are none.

A component is a set of voxels that hang together by faces, edges or corners (26 neighbours). A component of the
prediction may find a component of the truth if their intersection over union is at least a threshold; each finds at
most one and is found by at most one, paired so that as many as possible are found. The threshold of 0.1 is that of
PI-CAI (Saha et al., Lancet Oncology 25(7), 2024) and nnDetection (Baumgartner et al., MICCAI 2021).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from medcontext.evaluation.surfaces import Mask

IOU = 0.1
"""The threshold, where none is given."""

ROUNDING = 1e-9
"""A share that falls below the threshold by this little is the threshold itself, rounded."""

KEYS = ("lesions_found", "lesions_missed", "lesions_spurious")
"""True positives, false negatives and false positives, as a row of scores holds them."""


@dataclass(frozen=True)
class Detection:
    """How many lesions are found (true positives), missed (false negatives) and spurious (false positives)."""

    found: int
    missed: int
    spurious: int

    @property
    def sensitivity(self) -> float | None:
        """Share of the true lesions that are found."""
        return _share(self.found, self.found + self.missed)

    @property
    def precision(self) -> float | None:
        """Share of the predicted lesions that are true."""
        return _share(self.found, self.found + self.spurious)

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN)."""
        return _share(2 * self.found, 2 * self.found + self.missed + self.spurious)

    def row(self) -> dict[str, float | None]:
        """As a row of scores holds it."""
        return {**dict(zip(KEYS, (self.found, self.missed, self.spurious), strict=True)), "lesions_f1": self.f1}

    @classmethod
    def total(cls, of_cases: Iterable[Detection]) -> Detection:
        """Of all cases together."""
        every = list(of_cases)
        return cls(*(sum(getattr(each, name) for each in every) for name in ("found", "missed", "spurious")))


def detect(prediction: Mask, truth: Mask, iou: float = IOU) -> Detection:
    """Compare the components of two masks of one shape.

    Args:
        prediction: ``(X, Y, Z)`` mask.
        truth: Mask of the same shape.
        iou: Least intersection over union of a pair, above 0.
    """
    predicted, of_prediction = _components(prediction)
    true, of_truth = _components(truth)
    both = prediction & truth
    keys, voxels = np.unique(predicted[both] * np.int64(len(of_truth)) + true[both], return_counts=True)
    rows, columns = np.divmod(keys, len(of_truth))
    least = iou * (of_prediction[rows] + of_truth[columns] - voxels)
    close = voxels >= least * (1 - ROUNDING)
    shape = len(of_prediction), len(of_truth)
    graph = csr_array((np.ones(close.sum()), (rows[close], columns[close])), shape=shape)
    found = int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
    return Detection(found, len(of_truth) - 1 - found, len(of_prediction) - 1 - found)


def _components(mask: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Numbers of the components, from 1 on, and how many voxels each has (the background, 0, the first)."""
    numbers, count = ndimage.label(mask, np.ones((3, 3, 3)))
    return numbers, np.bincount(numbers.ravel(), minlength=count + 1)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None

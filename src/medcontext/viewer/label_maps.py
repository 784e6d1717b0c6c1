"""Label maps in the form the page needs: small class indices, volumes, and how two maps differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medcontext.data.labels import TABLE_SIZE
from medcontext.data.scan import LabelMap
from medcontext.errors import MedContextError

Indices = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

MOST_LABELS = 2000
"""A graphics card's table of colours is a row of a picture, which may be 2048 long everywhere."""

RESERVED = 4
"""Indices after those of the labels: what the page draws differences with."""


def numbers_in(maps: Sequence[LabelMap]) -> set[int]:
    """The label numbers of any of these maps, 0 left out.

    Raises:
        MedContextError: More than can be shown.
    """
    found: set[int] = set()
    for labels in maps:
        for plane in _planes(labels.array):
            if plane.min() >= 0 and plane.max() < TABLE_SIZE:
                found.update(map(int, np.flatnonzero(np.bincount(plane))))
            else:
                found.update(map(int, np.unique(plane)))
            if len(found) > MOST_LABELS:
                raise MedContextError(
                    "These are more labels than the viewer can tell apart; or this is no label map.",
                    file=labels.path,
                    found=f"more than {MOST_LABELS} different numbers",
                    remedy="check that the scan comes first and label maps after it",
                )
    return found - {0}


def to_indices(array: npt.NDArray[np.int32], numbers: Sequence[int]) -> Indices:
    """Replace each label number by its place in ``numbers``, counted from 1; plane by plane, to spare memory."""
    indices = np.empty(array.shape, np.uint8 if len(numbers) + RESERVED <= 255 else np.uint16, order="F")
    place = {0: 0} | {number: index for index, number in enumerate(numbers, start=1)}
    known = np.array(sorted(place))
    places = np.array([place[int(number)] for number in known], indices.dtype)
    table = None
    if known[0] == 0 and known[-1] < TABLE_SIZE:
        table = np.zeros(known[-1] + 1, indices.dtype)
        table[known] = places
    for plane, target in zip(_planes(array), _planes(indices), strict=True):
        target[:] = places[np.searchsorted(known, plane)] if table is None else table[plane]
    return indices


def pair_counts(reference: Indices, other: Indices, classes: int) -> npt.NDArray[np.int64]:
    """``(classes, classes)``: how many voxels are class i in ``reference`` and class j in ``other``; 0 is background.

    Against itself, a map's diagonal holds the voxels of each class.
    """
    counts = np.zeros(classes * classes, dtype=np.int64)
    for one, two in zip(_planes(reference), _planes(other), strict=True):
        counts += np.bincount(one * np.int64(classes) + two, minlength=classes * classes)
    return counts.reshape(classes, classes)


def _planes(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """The planes of ``(X, Y, Z)`` one by one, flat, as views of a volume whose x runs fastest."""
    return (plane.reshape(-1, order="F") for plane in np.moveaxis(array, 2, 0))

"""What is done to a label map after the network: small pieces removed, holes filled, structure by structure.

Which of it is done is chosen on validation cases (:mod:`medcontext.studies.tune`) and kept in the model file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medcontext.data.labels import Labels

Mask = npt.NDArray[np.bool_]
KEY = "postprocessing"
"""Of the rules for a model, among what its file says beside its weights."""

KEY_TOGETHER = "postprocessing_together"
"""Of those for its mean with the other models that they were chosen with: cases that one fold holds out help to choose
the mean's, and must not help to choose its own."""


@dataclass(frozen=True)
class Rule:
    """What is done to one structure, in this order.

    Attributes:
        number: Of the structure in predictions.
        largest: Only its largest piece is kept. Voxels that share a corner belong to one piece.
        least_ml: Pieces smaller than this are removed.
        fill: Its holes are filled: what it encloses on all sides, a hole that is open through a corner included.
    """

    number: int
    largest: bool = False
    least_ml: float = 0.0
    fill: bool = False

    def __str__(self) -> str:
        parts = ["largest piece only"] if self.largest else []
        parts += [f"pieces of {self.least_ml:.3g} ml or more"] if self.least_ml else []
        parts += ["holes filled"] if self.fill else []
        return ", ".join(parts) or "as predicted"

    def to_dict(self) -> dict[str, Any]:
        """As a model file holds it."""
        return asdict(self)


def shared_rules(about: Sequence[Mapping[str, Any]]) -> tuple[Rule, ...]:
    """The rules of a model, or those that several agree on for their mean, from what their files say."""
    alone = len(about) == 1
    each = [[Rule(**rule) for rule in model.get(KEY if alone else KEY_TOGETHER, ())] for model in about]
    return tuple(rule for rule in each[0] if all(rule in rules for rules in each)) if each else ()


def postprocess(
    array: npt.NDArray[np.int32], rules: Iterable[Rule], labels: Labels, ml: float
) -> npt.NDArray[np.int32]:
    """The label map with all rules applied, one after the other; the one that is given is left as it is.

    What is removed of a structure becomes background, or the region that contains it; only such voxels are filled.

    Args:
        array: ``(X, Y, Z)`` label numbers.
        rules: At most one for each structure.
        labels: Of the data set.
        ml: Volume of a voxel.
    """
    result = array.copy()
    for rule in rules:
        around = around_of(labels, rule.number)
        numbers = labels.structures[rule.number][1]
        mask: Mask = np.isin(result, numbers)
        changed = changed_mask(mask, rule, ml)
        result[mask & ~changed] = around
        result[changed & ~mask & (result == around)] = rule.number
    return result


def voxel_ml(affine: npt.NDArray[np.float64]) -> float:
    """Volume of a voxel."""
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000


def around_of(labels: Labels, number: int) -> int:
    """What a voxel is when it isn't this structure: the innermost region that contains it, else background."""
    order = list(labels.structures)
    own = set(labels.structures[number][1])
    containing = [other for other in order[: order.index(number)] if own < set(labels.structures[other][1])]
    return containing[-1] if containing else 0


def changed_mask(mask: Mask, rule: Rule, ml: float) -> Mask:
    """A structure as a rule makes it; of several pieces of the same size, the first is the largest."""
    from scipy import ndimage

    found = ndimage.find_objects(mask.view(np.uint8))
    if not found:
        return mask
    inside = mask[found[0]]
    if rule.largest or rule.least_ml:
        pieces, count = ndimage.label(inside, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        sizes[0] = 0
        kept = sizes * ml >= rule.least_ml if rule.least_ml else sizes > 0
        kept[0] = False
        if rule.largest:
            kept &= np.arange(count + 1) == sizes.argmax()
        inside = kept[pieces]
    if rule.fill:
        inside = ndimage.binary_fill_holes(inside)
    changed = np.zeros_like(mask)
    changed[found[0]] = inside
    return changed

"""How label maps are scored: what can be chosen, and what the numbers then mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from medcontext.errors import require
from medcontext.evaluation.lesions import IOU
from medcontext.evaluation.policies import DEFAULT, policy_named
from medcontext.evaluation.statistics import LEVEL, RESAMPLES
from medcontext.evaluation.surfaces import Hd95

TOLERANCE = 2.0
"""Of the normalised surface distance in mm, where nothing else is said: about a voxel or two of most CT and MRI."""


@dataclass(frozen=True)
class Scoring:
    """How label maps are scored.

    Attributes:
        policy: What an object counts that is not in both maps: a name of :data:`.policies.POLICIES`.
        hd95: Definition of the 95th percentile: ``pooled``, ``directed`` or ``weighted`` (:mod:`.surfaces`).
        tolerance: Of the normalised surface distance, in mm; or label (number or name) to its own, 2 mm for the others.
        lesions: Labels (numbers or names) whose lesions are counted.
        lesion_iou: Least intersection over union of a predicted and a true lesion that are the same (:mod:`.lesions`).
    """

    policy: str = DEFAULT
    hd95: Hd95 = "pooled"
    tolerance: float | Mapping[str, float] = TOLERANCE
    lesions: Sequence[str] = ()
    lesion_iou: float = IOU

    def __post_init__(self) -> None:
        policy_named(self.policy)
        require(self.hd95 in get_args(Hd95), "hd95", self.hd95, f"one of {', '.join(get_args(Hd95))}")
        given = self.tolerance.values() if isinstance(self.tolerance, Mapping) else [self.tolerance]
        for tolerance in given:
            require(0 <= tolerance < math.inf, "tolerance", tolerance, "a length in mm, 0 or more")
        require(0 < self.lesion_iou <= 1, "lesion_iou", self.lesion_iou, "above 0, at most 1")


def definition(scoring: Scoring) -> dict[str, str]:
    """What the numbers mean, in words that travel with them."""
    policy = policy_named(scoring.policy)
    hd95 = {
        "pooled": "of the surface distances of both directions pooled (MedPy's definition)",
        "directed": "of the surface distances, the larger of the two directions' (MONAI's definition)",
        "weighted": "of the distances of surface elements weighted by their area, the larger of the two directions' "
        "(surface-distance's definition)",
    }[scoring.hd95]
    told = {
        "dice": "twice the overlap over the sum of both volumes, per case and label; 0 to 1, higher is better",
        "hd95_mm": f"95th percentile {hd95}, in mm, lower is better"
        + ("" if scoring.hd95 == "weighted" else "; surface: voxels with a face neighbour outside the object; "
           "distances between voxel centres"),
        "assd_mm": "mean of the surface distances of both directions, in mm, of the same surface voxels",
        "nsd": "share of both surfaces, by area of their elements, within a tolerance of the other (surface Dice of "
        "Nikolov et al.)",
        "empty": policy.about,
        "mean": "over the cases of each label, then over the labels; a mean distance is over the cases where it is "
        "defined, so read it together with the number missed",
        "ci": f"{LEVEL:.0%} percentile bootstrap interval of the mean, {RESAMPLES:,} resamples of the patients, each "
        "with all of their cases; fewer than about 15 patients make it too narrow",
    }  # fmt: skip
    if scoring.lesions:
        told["lesions"] = (
            "connected components (26 neighbours); a true one is found by a predicted one of an intersection over "
            f"union of at least {scoring.lesion_iou:g}, one to one; in the mean, of all cases together"
        )
    return told

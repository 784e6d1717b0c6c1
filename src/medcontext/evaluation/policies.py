"""What an object counts that is missing in the prediction, in the truth or in both: one default, and others by name.

Dice and the distances of such objects are a matter of convention, and published tables differ in it: the same
predictions score better or worse by several points. The others are here to compare with such tables, not to be
recommended. Whatever the policy, missed and spurious objects are counted and told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from medcontext.errors import MedContextError
from medcontext.evaluation.metrics import DISTANCES, OVERLAPS

Outcome = Literal["both", "missed", "spurious", "absent"]
"""The object is in both maps, in the truth only, in the prediction only, or in neither."""

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

DEFAULT = "medcontext"


@dataclass(frozen=True)
class Worth:
    """What an object counts that is not in both maps.

    Attributes:
        overlap: Its Dice, IoU and NSD; None: it is not counted.
        distance: Its HD95 and ASSD in mm; None: it is not counted; ``"diagonal"``: the diagonal of the scan.
    """

    overlap: float | None
    distance: float | Literal["diagonal"] | None


@dataclass(frozen=True)
class Policy:
    """A convention.

    Attributes:
        about: What it is, for people.
        absent: Worth of an object in neither map.
        missed: Of one in the truth only.
        spurious: Of one in the prediction only.
        cubes: Whether distances are computed as if every voxel were a cube of 1 mm.
    """

    about: str
    absent: Worth
    missed: Worth
    spurious: Worth
    cubes: bool = False

    def apply(self, scores: Mapping[str, Any], outcome: Outcome, diagonal: float) -> dict[str, Any]:
        """Scores of an object as :func:`.metrics.measure` gives them, with what this policy says put in.

        Args:
            scores: By name.
            outcome: Where the object is.
            diagonal: Of the scan, in the unit of the distances.
        """
        if outcome == "both":
            return dict(scores)
        worth: Worth = getattr(self, outcome)
        distance = diagonal if worth.distance == "diagonal" else worth.distance
        return {**scores, **dict.fromkeys(OVERLAPS, worth.overlap), **dict.fromkeys(DISTANCES, distance)}


NOT_COUNTED = Worth(None, None)
NOTHING = Worth(0.0, None)
FARTHEST = Worth(0.0, "diagonal")

POLICIES: dict[str, Policy] = {
    DEFAULT: Policy(
        "a label in neither map is not counted (absent); a label in only one of them has Dice, IoU and NSD 0 and no "
        "distance (missed: in the truth only; spurious: in the prediction only), and is counted as such",
        absent=NOT_COUNTED,
        missed=NOTHING,
        spurious=NOTHING,
    ),
    "official": Policy(
        "as the nnFormer code that MedContext's authors released (nnFormer/nnformer/inference_synapse.py): a label in "
        "neither map has Dice 1 and distance 0; one in only one of them has Dice 0 and distance 0; every voxel "
        "counts as a cube of 1 mm",
        absent=Worth(1.0, 0.0),
        missed=Worth(0.0, 0.0),
        spurious=Worth(0.0, 0.0),
        cubes=True,
    ),
    "official_unetr": Policy(
        "as the UNETR code that MedContext's authors released (UNETR/BTCV/test_8.py, trainer.py): a label that is not "
        "in both maps has Dice 0 and distance 0; every voxel counts as a cube of 1 mm",
        absent=Worth(0.0, 0.0),
        missed=Worth(0.0, 0.0),
        spurious=Worth(0.0, 0.0),
        cubes=True,
    ),
    "transunet": Policy(
        "as TransUNet's code (utils.py), which many Synapse tables use: a label in the prediction only has Dice 1 and "
        "distance 0; one in the truth only or in neither map has Dice 0 and distance 0; every voxel counts as a cube "
        "of 1 mm",
        absent=Worth(0.0, 0.0),
        missed=Worth(0.0, 0.0),
        spurious=Worth(1.0, 0.0),
        cubes=True,
    ),
    "brats": Policy(
        "as the BraTS challenges: a label in neither map has Dice 1 and distance 0; one in only one of them has Dice 0 "
        "and the diagonal of the scan as its distance (373.13 mm in BraTS)",
        absent=Worth(1.0, 0.0),
        missed=FARTHEST,
        spurious=FARTHEST,
    ),
    "penalised": Policy(
        "as the default, but a label in only one map has the diagonal of the scan as its distance, the worst there is "
        "(Metrics Reloaded: Maier-Hein, Reinke et al., Nature Methods 21, 2024)",
        absent=NOT_COUNTED,
        missed=FARTHEST,
        spurious=FARTHEST,
    ),
}
"""By name."""


def policy_named(name: str) -> Policy:
    """The policy of this name.

    Raises:
        MedContextError: There is none.
    """
    if name not in POLICIES:
        raise MedContextError(
            "There is no policy of this name.", found=name, expected=", ".join(POLICIES), remedy="check the name"
        )
    return POLICIES[name]

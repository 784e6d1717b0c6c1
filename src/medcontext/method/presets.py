"""Every choice that the method leaves open, as a plain value that can be printed, compared and changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medcontext.errors import MedContextError

MaskKind = Literal["tube", "random", "none"]
Hide = Literal["auto", "tokens", "voxels"]
Fill = Literal["mean", "zero", "learnable"]
ConsistencyForm = Literal["paper", "kl"]
MomentumSchedule = Literal["cosine", "constant"]
Axis = Literal[0, 1, 2]


def _require(holds: bool, field: str, found: object, expected: str) -> None:
    if not holds:
        raise MedContextError(
            f"The method's setting '{field}' is out of range.", found=f"{field} = {found}", expected=expected
        )


@dataclass(frozen=True)
class MethodConfig:
    """The MedContext method. ``L = L_clean + masked_weight * L_masked + consistency_weight * L_consistency``."""

    mask: MaskKind = "random"
    """Which patches are hidden: ``tube`` hides a column of patches at every position along ``tube_axis`` or at none;
    ``random`` hides each patch on its own; ``none`` turns the method off, which leaves supervised training."""

    mask_patch: tuple[int, int, int] = (8, 8, 8)
    """Size (D, H, W) in voxels of the patches that are hidden or shown as a whole."""

    tube_axis: Axis = 0
    """Axis of (D, H, W) along which a tube runs; 0 is the slice axis."""

    ratio: float = 0.3
    """Share of the patches (of the columns, for tubes) that is hidden."""

    hide: Hide = "voxels"
    """Where the hidden part is taken away: ``voxels`` at the input of the network, ``tokens`` after its patch
    embedding, ``auto`` in tokens where the network has a patch embedding and in voxels where it has none."""

    fill: Fill = "mean"
    """What stands in the place of hidden voxels, per channel: the mean of the visible, zero, or a learned value."""

    masked_weight: float = 1.0
    """Weight of the supervised loss of the masked pass."""

    consistency: ConsistencyForm = "kl"
    """How the masked student is compared with the teacher: ``paper`` is MSE(z_m, z_t) / ||z_t||; ``kl`` is the
    Kullback-Leibler divergence of the student's class probabilities from the teacher's, averaged over voxels."""

    consistency_weight: float = 1.0
    """Weight of the consistency term."""

    momentum: float = 0.99
    """Momentum of the teacher's moving average: its first value for ``cosine``, its only one for ``constant``."""

    momentum_schedule: MomentumSchedule = "constant"
    """``cosine`` lets the momentum rise to 1 at the last step of training."""

    momentum_warm_start: bool = True
    """Start as a true average of all students so far: momentum at most ``1 - 1 / (t + 1)`` at update ``t``."""

    def __post_init__(self) -> None:
        _require(0 <= self.ratio < 1, "ratio", self.ratio, "a share from 0 up to, and not including, 1")
        _require(0 <= self.momentum <= 1, "momentum", self.momentum, "a number from 0 to 1")
        _require(self.masked_weight >= 0, "masked_weight", self.masked_weight, "0 or more")
        _require(self.consistency_weight >= 0, "consistency_weight", self.consistency_weight, "0 or more")
        _require(min(self.mask_patch) >= 1, "mask_patch", self.mask_patch, "three sizes in voxels, each 1 or more")

    @property
    def active(self) -> bool:
        """Whether there is a masked pass at all; without one this is supervised training."""
        return self.mask != "none" and self.ratio > 0


PRESETS: dict[str, MethodConfig] = {
    "medcontext": MethodConfig(),
    "paper": MethodConfig(
        mask="tube",
        mask_patch=(16, 16, 16),
        ratio=0.4,
        hide="auto",
        fill="learnable",
        consistency="paper",
        consistency_weight=0.5,
        momentum=0.996,
        momentum_schedule="cosine",
        momentum_warm_start=False,
    ),
    "supervised": MethodConfig(mask="none"),
}
"""``medcontext``: the default, what measured best; ``paper``: what the paper says; ``supervised``: the baseline."""

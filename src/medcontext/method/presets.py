"""Every choice that the method leaves open, as a plain value that can be printed, compared and changed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from medcontext.errors import MedContextError, require

MaskKind = Literal["tube", "random", "block", "none"]
Scope = Literal["sample", "batch"]
Hide = Literal["auto", "tokens", "voxels", "both"]
TokenPosition = Literal["before", "after"]
Fill = Literal["mean", "zero", "learnable", "noise"]
SupervisedLoss = Literal["dice_ce", "dice_ce_squared"]
ConsistencyForm = Literal["paper", "relative", "kl", "cosine", "dice"]
Region = Literal["all", "hidden"]
Confidence = Literal["none", "voxel", "sample"]
MomentumSchedule = Literal["cosine", "constant", "restarting"]
Buffers = Literal["average", "copy", "keep"]
Axis = Literal[0, 1, 2]

WIDTH = 8
"""Of a hidden cube, in voxels of the finest axis."""


@dataclass(frozen=True)
class MethodConfig:
    """The method, by default as in the preset ``medcontext``: of its three passes the masked one alone. A term of
    weight 0 is left out, and with it the pass that only it needs.

    ``L = clean_weight * L_clean + masked_weight * L_masked + consistency_weight * ramp * L_consistency``.
    """

    mask: MaskKind = "random"
    """Which patches are hidden: ``tube`` hides a column of patches at every position along ``tube_axis`` or at none;
    ``random`` hides each patch on its own; ``block`` hides one box of patches that lie together (across the border,
    it goes on at the other side); ``none`` turns the method off, which leaves supervised training."""

    mask_patch: tuple[int, int, int] | None = None
    """Size (D, H, W) in voxels of the patches that are hidden or shown as a whole; None: about cubes in mm, as wide
    as 8 voxels of the finest axis (:meth:`for_spacing`), or of 8 voxels a side where the spacing isn't known."""

    tube_axis: Axis = 0
    """Axis of (D, H, W) along which a tube runs; 0 is the slice axis."""

    ratio: float | tuple[float, float] = (0.0, 0.3)
    """Share of the patches (of the columns, for tubes) that is hidden, or the range it is drawn from for each mask."""

    mask_probability: float = 1.0
    """Chance of a labelled sample to have anything hidden: the masked pass sees the others whole. Samples without a
    label, which have nothing else to learn from, are always masked."""

    mask_until: float = 1.0
    """Share of the training after which the masked pass sees every labelled sample whole, so that it ends as ordinary
    training does; samples without a label are masked to the end."""

    mask_per: Scope = "sample"
    """Whether every sample of a batch has a mask of its own, or all share one."""

    hide: Hide = "voxels"
    """Where the hidden part is taken away: ``voxels`` at the input of the network; ``tokens`` after its patch
    embedding; ``both``; ``auto``: tokens where the network has a patch embedding, voxels where it has none."""

    token_position: TokenPosition = "before"
    """Whether the mask token takes a token's place before the position embedding is added to it, so that the network
    knows where it is, or after, so that the token overwrites the position as well."""

    fill: Fill = "mean"
    """What stands in the place of hidden voxels, per channel: the mean of the visible, zero, a learned value, or noise
    with the mean and standard deviation of the visible."""

    loss: SupervisedLoss = "dice_ce"
    """Supervised loss of the clean and the masked pass: ``dice_ce`` with Dice over the foreground; ``dice_ce_squared``
    with the background and squared denominators, as in UNETR's released code."""

    clean_weight: float = 0.0
    """Weight of the supervised loss of the clean pass."""

    masked_weight: float = 1.0
    """Weight of the supervised loss of the masked pass."""

    consistency: ConsistencyForm = "kl"
    """How the masked student is compared with the teacher, on logits z: ``paper`` is MSE(z_m, z_t) / ||z_t||;
    ``relative`` is ||z_m - z_t||^2 / ||z_t||^2 per sample; ``kl`` is the Kullback-Leibler divergence of the student's
    class probabilities from the teacher's; ``cosine`` is 1 - cos(z_m, z_t) per voxel; ``dice`` is a soft Dice loss
    between the probabilities."""

    consistency_weight: float = 0.0
    """Weight of the consistency term."""

    consistency_over: Region = "all"
    """Whether student and teacher are compared everywhere or in the hidden part only."""

    temperature: float = 1.0
    """Of the probabilities in ``kl``, which is multiplied by its square."""

    confidence: Confidence = "none"
    """``voxel``: only voxels whose teacher is surer than the threshold count; ``sample``: each sample counts by the
    share of such voxels."""

    confidence_threshold: float = 0.968
    """Probability of the teacher's most likely class from which it is sure."""

    ramp_up: float = 0.0
    """Share of the training over which the weight of the consistency term rises from nearly 0."""

    deep_consistency: bool = False
    """Compare all heads of a deeply supervised network, not the finest alone."""

    momentum: float = 0.99
    """Momentum of the teacher's moving average: its first value for ``cosine``, its only one for ``constant``."""

    momentum_schedule: MomentumSchedule = "constant"
    """``cosine`` lets it rise to 1 at the last step; ``restarting`` is the released code's, which begins a linear rise
    from 0 anew in every epoch and never gets beyond about 0.02."""

    momentum_warm_start: bool = True
    """Start as a true average of all students so far: momentum at most ``1 - 1 / (t + 1)`` at update ``t``."""

    teacher_update: Literal["step", "epoch"] = "step"
    """When the teacher follows the student."""

    teacher_train_mode: bool = False
    """Run the teacher in train mode (dropout, batch statistics), as the released code does."""

    buffers: Buffers = "average"
    """What becomes of the teacher's floating-point buffers (running statistics): averaged like the weights, copied from
    the student, or kept as they are."""

    passes: Literal["apart", "together"] = "apart"
    """Clean and masked student pass one after the other, in less memory, or as one batch."""

    teacher_bf16: bool = False
    """Run the teacher's pass in bfloat16 whatever the student runs in."""

    def __post_init__(self) -> None:
        low, high = self.ratio_range
        require(0 <= low <= high < 1, "ratio", self.ratio, "a share from 0 up to, and not including, 1, or two such")
        chance = self.mask_probability
        require(0 < chance <= 1, "mask_probability", chance, "a chance above 0, at most 1 (mask=none hides nothing)")
        require(0 < self.mask_until <= 1, "mask_until", self.mask_until, "a share above 0, at most 1")
        require(0 <= self.momentum <= 1, "momentum", self.momentum, "a number from 0 to 1")
        for name in ("clean_weight", "masked_weight", "consistency_weight"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(
            self.clean_weight > 0 or (self.active and self.masked_weight > 0),
            "clean_weight",
            self.clean_weight,
            "a number above 0 where no masked pass learns from the labels (masked_weight = 0, or nothing is hidden)",
        )
        require(min(self.hidden_patch) >= 1, "mask_patch", self.mask_patch, "three sizes in voxels, each 1 or more")
        require(self.temperature > 0, "temperature", self.temperature, "a number above 0")
        require(0 <= self.ramp_up <= 1, "ramp_up", self.ramp_up, "a share from 0 to 1")
        threshold = self.confidence_threshold
        require(0 <= threshold <= 1, "confidence_threshold", threshold, "a probability from 0 to 1")

    @property
    def ratio_range(self) -> tuple[float, float]:
        """The smallest and the largest ratio."""
        return self.ratio if isinstance(self.ratio, tuple) else (self.ratio, self.ratio)

    @property
    def hidden_patch(self) -> tuple[int, int, int]:
        """``mask_patch`` as a size."""
        return self.mask_patch or (WIDTH, WIDTH, WIDTH)

    def for_spacing(self, spacing: tuple[float, float, float]) -> MethodConfig:
        """The same with a ``mask_patch``, if it has none yet, for volumes of this spacing (D, H, W), in any unit.

        It is as near to a cube as powers of two come, which the tokens of most networks are as well.
        """
        d, h, w = (2 ** max(0, round(math.log2(WIDTH * min(spacing) / step))) for step in spacing)
        return self if self.mask_patch else replace(self, mask_patch=(d, h, w))

    @property
    def active(self) -> bool:
        """Whether there is a teacher at all; without one this is supervised training."""
        return self.mask != "none" and self.ratio_range[1] > 0

    @property
    def masks(self) -> bool:
        """Whether there is a masked pass: one that a term needs."""
        return self.active and max(self.masked_weight, self.consistency_weight) > 0


PRESETS: dict[str, MethodConfig] = {
    "medcontext": MethodConfig(),
    "paper": MethodConfig(
        mask="tube",
        mask_patch=(16, 16, 16),
        ratio=0.4,
        hide="auto",
        fill="learnable",
        clean_weight=1.0,
        consistency="paper",
        consistency_weight=0.5,
        momentum=0.996,
        momentum_schedule="cosine",
        momentum_warm_start=False,
    ),
    "official": MethodConfig(
        mask="tube",
        mask_patch=(16, 16, 16),
        tube_axis=2,
        ratio=0.6,
        mask_per="batch",
        hide="auto",
        token_position="after",
        fill="learnable",
        loss="dice_ce_squared",
        clean_weight=1.0,
        consistency="paper",
        consistency_weight=0.5,
        momentum=0.996,
        momentum_schedule="restarting",
        momentum_warm_start=False,
        teacher_update="epoch",
        teacher_train_mode=True,
        buffers="keep",
    ),
    # Without a mask, what is said of masks and consistency is nothing but what recorded runs are found by.
    "supervised": MethodConfig(mask="none", mask_patch=(8, 8, 8), ratio=0.3, clean_weight=1.0, consistency_weight=1.0),
}
"""``medcontext``: the default, what measured best on whole scans at equal compute (docs/results): the student sees a
batch once, with up to 30 % hidden; the moving average teaches nothing, which takes a ``consistency_weight``.
``paper``: what the paper says, done right. ``official``: what the released UNETR code computes, for reproduction and
comparison only. ``supervised``: the baseline."""


def preset(name: str) -> MethodConfig:
    """The preset of that name.

    Raises:
        MedContextError: There is none.
    """
    if name not in PRESETS:
        raise MedContextError("There is no such preset.", found=name, expected=" or ".join(PRESETS))
    return PRESETS[name]

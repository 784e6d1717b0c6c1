"""From what a data set is to how it is prepared: a plan is plain data that says in words why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from medcontext.data.check import CaseFacts, CheckReport
from medcontext.errors import MedContextError

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]
Device = Literal["cpu", "gpu"]

PATCH_VOXELS: Mapping[Device, int] = {"cpu": 48**3, "gpu": 128**3}
"""The most voxels of a patch. On 2 CPU cores this keeps a training step of the small U-Net below a second."""

STEPS: Mapping[Device, int] = {"cpu": 1_500, "gpu": 25_000}
"""Training steps by default: about a quarter of an hour on 2 CPU cores, the better part of a day on a GPU."""

BATCH_SIZE = 2
"""Patches per step."""

ANISOTROPIC = 2.0
"""Slices this many times thicker than the plane's voxels decide which axis is the slice axis."""


@dataclass(frozen=True)
class Normalisation:
    """How intensities are brought to one scale.

    ``ct``: clip to ``low``..``high`` HU, then subtract ``mean`` and divide by ``std``, all of them percentiles and
    moments of the labelled voxels of the whole data set. ``case``: each channel of each case by its own 0.5 and 99.5
    percentiles, mean and standard deviation; the four numbers are then unused and 0.
    """

    kind: Literal["ct", "case"]
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 0.0

    @property
    def outside(self) -> float:
        """Normalised value that stands for what lies beyond a scan: air in CT, the scan's mean elsewhere."""
        return (self.low - self.mean) / self.std if self.kind == "ct" else 0.0


@dataclass(frozen=True)
class Plan:
    """How a data set is prepared and sampled.

    Attributes:
        dataset: Its name.
        channels: Number of image channels.
        labels: Label number to name; class k of the network is the k-th of them, class 0 the background.
        orientation: Anatomical direction of the array axes (D, H, W), slice axis first, such as ``"SAR"``.
        spacing: Voxel size (D, H, W) in mm that every case is resampled to.
        normalisation: Of the intensities.
        patch: Size (D, H, W) in voxels that the network is trained and applied on.
        batch_size: Patches per training step.
        steps: Training steps.
        reasons: Why, in words.
    """

    dataset: str
    channels: int
    labels: Mapping[int, str]
    orientation: str
    spacing: Spacing
    normalisation: Normalisation
    patch: Size
    batch_size: int
    steps: int
    reasons: tuple[str, ...] = field(default=(), compare=False)

    @property
    def classes(self) -> int:
        """Number of the network's outputs, background included."""
        return len(self.labels) + 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {"labels": {str(number): name for number, name in self.labels.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """From what :meth:`to_dict` gave, also after a way through JSON."""
        numbers = {int(number): str(name) for number, name in values["labels"].items()}
        tuples = {key: tuple(values[key]) for key in ("spacing", "patch", "reasons")}
        return cls(**{**values, **tuples, "labels": numbers, "normalisation": Normalisation(**values["normalisation"])})


def make_plan(
    report: CheckReport,
    *,
    device: Device = "cpu",
    patch_multiple: int | None = None,
    patch: Size | None = None,
    spacing: Spacing | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
) -> Plan:
    """Plan a checked data set.

    Args:
        report: What :func:`medcontext.data.check.check_dataset` found.
        device: What the training will run on, which bounds the patch.
        patch_multiple: Every axis of the patch becomes a multiple of this, for networks that need it.
        patch: Take this patch (D, H, W) in voxels.
        spacing: Take this spacing (D, H, W) in mm.
        batch_size: Take so many patches per step.
        steps: Take so many steps.

    Raises:
        MedContextError: No case is whole, or nothing is labelled.
    """
    if not report.facts:
        raise MedContextError(
            "No case of this data set can be used.", file=report.dataset.root, remedy="run 'medcontext check' on it"
        )
    if not report.labels:
        raise MedContextError(
            "Nothing is labelled in this data set.",
            file=report.dataset.root,
            found="label maps of background only",
            remedy="label at least one structure",
        )
    facts = list(report.facts.values())
    orientation, why_orientation = _orientation(facts)
    sizes, spacings = _in_plan_axes(facts, orientation)
    target = spacing or _as_spacing(np.median(spacings, axis=0))
    median = np.median(sizes * spacings / np.array(target), axis=0)
    normalisation, why_normalisation = _normalisation(report, facts)
    chosen = patch or _patch(median, target, PATCH_VOXELS[device], patch_multiple)
    return Plan(
        dataset=report.dataset.name,
        channels=facts[0].channels,
        labels=report.labels,
        orientation=orientation,
        spacing=target,
        normalisation=normalisation,
        patch=chosen,
        batch_size=batch_size or BATCH_SIZE,
        steps=steps or STEPS[device],
        reasons=(
            why_orientation,
            f"spacing {_listed(target)} mm: " + ("as asked for" if spacing else f"the median of {len(facts)} cases"),
            why_normalisation,
            f"patch {_listed(chosen)}: " + ("as asked for" if patch else _why_patch(median, device, patch_multiple)),
            f"{steps or STEPS[device]} steps of {batch_size or BATCH_SIZE} patches: "
            + ("as asked for" if steps or batch_size else f"the default on a {device}"),
        ),
    )


def _orientation(facts: list[CaseFacts]) -> tuple[str, str]:
    """RAS+ axes with the slice axis first: the coarsest where slices are thick, else superior, as in axial scans."""
    by_direction = np.array([_by_direction(case.orientation, case.spacing) for case in facts])
    right, anterior, superior = np.median(by_direction, axis=0)
    sizes = {"R": right, "A": anterior, "S": superior}
    coarsest = max(sizes, key=lambda letter: sizes[letter])
    others = sorted(sizes[letter] for letter in sizes if letter != coarsest)
    thick = sizes[coarsest] >= ANISOTROPIC * others[-1]
    first = coarsest if thick else "S"
    orientation = first + "".join(letter for letter in "SAR" if letter != first)
    why = "its slices are thick" if thick else "as in axial scans"
    return orientation, f"axes {orientation}: slice axis '{first}' first, {why}"


def _by_direction(orientation: str, values: tuple[float, ...]) -> list[float]:
    """Values along a file's axes, reordered to right, anterior, superior."""
    pairs = ("RL", "AP", "SI")
    return [values[next(axis for axis, letter in enumerate(orientation) if letter in pair)] for pair in pairs]


def _in_plan_axes(facts: list[CaseFacts], orientation: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Sizes in voxels and spacings in mm of all cases, ``(n, 3)`` each, along the plan's axes."""
    order = ["RAS".index(letter) for letter in orientation]
    sizes = np.array([_by_direction(case.orientation, case.shape) for case in facts])[:, order]
    spacings = np.array([_by_direction(case.orientation, case.spacing) for case in facts])[:, order]
    return sizes, spacings


def _normalisation(report: CheckReport, facts: list[CaseFacts]) -> tuple[Normalisation, str]:
    modality = report.dataset.modality
    if len(modality) == 1 and modality[0].strip().upper() == "CT":
        values = np.concatenate([case.foreground for case in facts])
        low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
        clipped = np.clip(values, low, high)
        return (
            Normalisation("ct", low, high, float(clipped.mean()), max(float(clipped.std()), 1e-6)),
            f"normalisation ct: Hounsfield units mean the same in every case; clipped to {low:.0f}..{high:.0f}",
        )
    kind = ", ".join(modality) or "modality not declared"
    return Normalisation("case"), f"normalisation case: intensities have no common scale ({kind})"


def _patch(median: np.ndarray[Any, Any], spacing: Spacing, most: int, multiple: int | None) -> Size:
    """The median case, cut along its longest sides in mm until no more than ``most`` voxels are left."""
    size = [_round_up(count, multiple) for count in median]
    while math.prod(size) > most:
        steps = [multiple or _multiple_for(count) for count in size]
        longest = max(
            (axis for axis in range(3) if size[axis] > steps[axis]),
            key=lambda axis: size[axis] * spacing[axis],
            default=None,
        )
        if longest is None:
            break
        size[longest] -= steps[longest]
    d, h, w = size
    return d, h, w


def _why_patch(median: np.ndarray[Any, Any], device: Device, multiple: int | None) -> str:
    text = f"the median case is {_listed(np.round(median))} voxels, and a {device} takes up to {PATCH_VOXELS[device]}"
    return text + (f"; multiples of {multiple} for the network" if multiple else "")


def _round_up(count: float, multiple: int | None) -> int:
    step = multiple or _multiple_for(count)
    return max(step, math.ceil(round(count, 3) / step) * step)


def _multiple_for(count: float) -> int:
    """Long axes can be halved three times by a U-Net, short ones (few thick slices) less often."""
    return 8 if count >= 24 else 4 if count >= 12 else 2


def _as_spacing(values: np.ndarray[Any, Any]) -> Spacing:
    d, h, w = (round(float(value), 4) for value in values)
    return d, h, w


def _listed(values: Any) -> str:
    return " x ".join(f"{value:g}" for value in values)

"""From what a data set is to how it is prepared: a plan is plain data that says in words why."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medcontext.data.check import CheckReport
from medcontext.data.description import FILE
from medcontext.data.fingerprint import (
    Fingerprint,
    Grids,
    as_triple,
    foreground_values,
    has_thick_slices,
    take_fingerprint,
    take_grids,
    usable_facts,
)
from medcontext.data.labels import Labels
from medcontext.data.patch_size import (
    PATCHES,
    Budget,
    Device,
    Scale,
    Size,
    Spacing,
    budget_for,
    choose_batch,
    choose_patch,
)
from medcontext.data.plan_form import require_form
from medcontext.errors import MedContextError

STEPS: Mapping[Device, int] = {"cpu": 1_500, "gpu": 25_000}
"""Training steps by default: with three passes a step, about a quarter of an hour on 2 CPU cores, the better part of a
day on a GPU; by count, 3/7 of that with the preset ``medcontext``."""

VERY_ANISOTROPIC = 3.0
"""Slices this many times thicker than the plane's voxels, and as many times fewer, are resampled to nearly the thinnest
of the data set: at the median, those of the finest scans would lose what they show. nnU-Net's rule (Isensee et al.
2021)."""

LEAST_SPREAD = 1e-3
"""Standard deviation of labelled CT voxels, in HU, up to which they are taken to be of one value."""

THIN = 10
"""Percentile of the slice spacings that stands for the thinnest."""

SIDED = re.compile(r"(?<![a-z])(left|right|links?e?r?|rechte?r?s?|gauche|droite?|l|r|lh|rh)(?![a-z])", re.IGNORECASE)
"""A side in a label's name."""

UNNAMED = re.compile(r"(label|structure|class|region|organ)?[ _-]*\d+", re.IGNORECASE)
"""A name that says no more than a number does."""


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
        labels: What is segmented, and which label number is which class of the network.
        orientation: Anatomical direction of the array axes (D, H, W), slice axis first, such as ``"SAR"``.
        spacing: Voxel size (D, H, W) in mm that every case is resampled to.
        normalisation: Of the intensities.
        patch: Size (D, H, W) in voxels that the network is trained and applied on.
        batch_size: Patches per training step.
        steps: Training steps.
        scale: Size of the network.
        reasons: Why, in words.
    """

    dataset: str
    channels: int
    labels: Labels
    orientation: str
    spacing: Spacing
    normalisation: Normalisation
    patch: Size
    batch_size: int
    steps: int
    scale: Scale = "small"
    reasons: tuple[str, ...] = field(default=(), compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {"labels": self.labels.to_dict()}

    @classmethod
    def from_dict(cls, values: Any, file: Path | None = None) -> Plan:
        """From what :meth:`to_dict` gave, also after a way through JSON and an editor.

        Args:
            values: As they were read.
            file: Where they were read, for the error.

        Raises:
            MedContextError: A key is unknown or missing, or its value is of the wrong type or impossible.
        """
        require_form(values, file)
        d, h, w = (float(length) for length in values["spacing"])
        made = {
            "labels": Labels.from_dict(values["labels"]),
            "normalisation": Normalisation(**values["normalisation"]),
            "spacing": (d, h, w),
            "patch": tuple(values["patch"]),
            "reasons": tuple(values.get("reasons", ())),
        }
        return cls(**{**values, **made})


def make_plan(
    report: CheckReport,
    *,
    device: Device = "cpu",
    memory_gib: float | None = None,
    patch_multiple: int | None = None,
    patch: Size | None = None,
    spacing: Spacing | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
) -> Plan:
    """Plan a checked data set. What is asked for goes before the data set's protocol, and that before the rules.

    Args:
        report: What :func:`medcontext.data.check.check_dataset` found. Every case in it has a say, also those that are
            held out later.
        device: What the training will run on, which bounds the patch.
        memory_gib: All of its memory, for a GPU; None: not known, and taken to be enough.
        patch_multiple: Every axis of the patch becomes a multiple of this, for networks that need it.
        patch: Take this patch (D, H, W) in voxels.
        spacing: Take this spacing (D, H, W) in mm.
        batch_size: Take so many patches per step.
        steps: Take so many steps.

    Raises:
        MedContextError: No case is whole, nothing is labelled, or the protocol can't be used.
    """
    fingerprint, grids = take_fingerprint(report), take_grids(usable_facts(report))
    budget = budget_for(device, memory_gib)
    target, why_spacing = _spacing(report, grids, spacing)
    normalisation, why_normalisation = _normalisation(report, fingerprint)
    sizes = grids.sizes * grids.spacings / np.array(target)
    median = np.median(sizes, axis=0)
    chosen = patch or choose_patch(median, target, budget, patch_multiple)
    batch = batch_size or choose_batch(chosen, PATCHES * budget.voxels, float(sizes.prod(axis=1).sum()))
    thick = "its slices are thick" if grids.thick else "as in axial scans"
    return Plan(
        dataset=fingerprint.dataset,
        channels=fingerprint.channels,
        labels=report.labels,
        orientation=grids.orientation,
        spacing=target,
        normalisation=normalisation,
        patch=chosen,
        batch_size=batch,
        steps=steps or STEPS[device],
        scale=budget.scale,
        reasons=(
            f"axes {grids.orientation}: slice axis '{grids.orientation[0]}' first, {thick}",
            f"spacing {listed(target)} mm: {why_spacing}",
            why_normalisation,
            f"patch {listed(chosen)}: "
            + ("as asked for" if patch else _why_patch(chosen, median, budget, patch_multiple)),
            f"{batch} patches per step: " + ("as asked for" if batch_size else _why_batch(batch)),
            f"{steps or STEPS[device]} steps: " + ("as asked for" if steps else f"the default on a {device}"),
            f"network {budget.scale}: what a {budget.device} takes",
            _augmentation(target, grids.orientation, report.labels),
            _rare(fingerprint),
        ),
    )


def listed(values: Any) -> str:
    """Numbers as sizes are written."""
    return " x ".join(f"{value:g}" for value in values)


def _spacing(report: CheckReport, grids: Grids, asked: Spacing | None) -> tuple[Spacing, str]:
    """The median; along very thick slices nearly the thinnest, though never finer than the plane."""
    if asked:
        return asked, "as asked for"
    laid_down = _protocol(report, "spacing", 3)
    if laid_down:
        d, h, w = laid_down
        return (d, h, w), f"as the protocol of {report.dataset.name} lays down"
    d, h, w = as_triple(np.median(grids.spacings, axis=0))
    count, *plane = np.median(grids.sizes, axis=0)
    thin, _, _ = as_triple(np.percentile(grids.spacings, THIN, axis=0))
    if thin == d or d <= VERY_ANISOTROPIC * max(h, w) or count * VERY_ANISOTROPIC >= min(plane):
        return (d, h, w), f"the median of {len(grids.sizes)} cases"
    return (
        (max(thin, h, w), h, w),
        f"the median of {len(grids.sizes)} cases; across the thick slices their {THIN}th percentile instead of "
        f"{d:g}, so that thinner ones lose little",
    )


def _normalisation(report: CheckReport, fingerprint: Fingerprint) -> tuple[Normalisation, str]:
    modality = fingerprint.modality
    if not modality or any(kind.strip().upper() != "CT" for kind in modality):
        kind = ", ".join(dict.fromkeys(modality)) or "modality not declared; declare CT in dataset.json if it is"
        return Normalisation("case"), f"normalisation case: intensities have no common scale ({kind})"
    values = foreground_values(list(report.facts.values()))
    laid_down = _protocol(report, "clip", 2)
    low, high = laid_down or (float(value) for value in np.percentile(values, (0.5, 99.5)))
    clipped = np.clip(values, low, high)
    if not clipped.std() > LEAST_SPREAD:
        if laid_down:
            raise _wrong_protocol(report, f"clip = {list(laid_down)}, within which the labelled voxels don't differ",
                                  "a window in which labelled voxels differ", "clip")  # fmt: skip
        return Normalisation("case"), f"normalisation case: the labelled voxels of this CT have all one value, {low:g}"
    source = f"as the protocol of {report.dataset.name} lays down" if laid_down else "99 % of the labelled voxels"
    return (
        Normalisation("ct", low, high, float(clipped.mean()), float(clipped.std())),
        f"normalisation ct: Hounsfield units mean the same in every case; clipped to {low:.0f}..{high:.0f}, {source}",
    )


def _protocol(report: CheckReport, key: str, count: int) -> tuple[float, ...] | None:
    """Numbers that the data set's own description lays down."""
    found = report.dataset.protocol.get(key)
    if found is None:
        return None
    expected = "three sizes (D, H, W) in mm, above 0" if key == "spacing" else "two numbers, the lower first"
    numbers = isinstance(found, Sequence) and len(found) == count and all(type(each) in (int, float) for each in found)
    possible = numbers and (min(found) > 0 if key == "spacing" else found[0] < found[-1]) and math.isfinite(sum(found))
    if not possible:
        raise _wrong_protocol(report, f"{key} = {found}", expected, key)
    return tuple(float(each) for each in found)


def _wrong_protocol(report: CheckReport, found: str, expected: str, key: str) -> MedContextError:
    return MedContextError(
        "The protocol of this data set can't be used.",
        file=report.dataset.root / FILE if report.dataset.root.is_dir() else report.dataset.root.parent / FILE,
        found=f"protocol: {found}",
        expected=expected,
        remedy=f"correct {key} there, or remove it",
    )


def _why_patch(patch: Size, median: Any, budget: Budget, multiple: int | None) -> str:
    text = f"the median case is {listed(np.round(median))}"
    if math.prod(patch) < math.prod(np.round(median)):
        text += f", cut along its longest sides in mm to the {budget.voxels:,} voxels that a {budget.device} takes"
    else:
        text += f", and a {budget.device} takes it whole"
    return text + (f"; multiples of {multiple} for the network" if multiple else "")


def _why_batch(batch: int) -> str:
    return "the least" if batch == PATCHES else "small ones; as many as a step takes, at most 5 % of the data"


def _augmentation(spacing: Spacing, orientation: str, labels: Labels) -> str:
    """What will be varied, and why nothing is mirrored: where no label names a side, it is for the user to know."""
    within = "within the slices alone, which are thick" if has_thick_slices(spacing) else "in 3D"
    names = [name for name, _ in labels.structures.values()]
    sided = next((name for name in names if SIDED.search(name)), None)
    if sided:
        why = f"'{sided}' is on one side of the body"
    elif any(UNNAMED.fullmatch(name) for name in names):
        why = "the labels have no names that would say whether they are sides"
    else:
        why = f"a body is not its mirror image; where it nearly is, try augment.mirror_axes [{orientation.index('R')}]"
    return f"augmentation {within}, without mirroring: {why}"


def _rare(fingerprint: Fingerprint) -> str:
    rarest, absent = fingerprint.rarest, [each.name for each in fingerprint.structures.values() if not each.cases]
    text = (
        f"rarest structure: {rarest.name}, {100 * rarest.share:.2g} % of the voxels, in {rarest.cases} of "
        f"{fingerprint.cases} cases; patches are drawn around every structure equally often"
    )
    return text + (f"; in no case at all: {', '.join(absent)}" if absent else "")

"""Scans that a network was not trained for: what can be told before it segments them all the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medcontext.data.facts import CaseFacts, by_direction, intensity_range
from medcontext.data.geometry import reoriented_spacing
from medcontext.data.image_checks import geometry_remarks
from medcontext.data.plan import Plan, listed
from medcontext.data.prepare import planned_size
from medcontext.data.scan import Scan
from medcontext.errors import MedContextError

KEY = "seen"
"""Of what the training scans were like, among what a model file says beside its weights."""

FAR = 2.0
"""A voxel that is this many times finer or coarser than every training scan's lies far outside of what was learned."""

BELOW_ZERO = 0.1
"""A scan has values below zero where its 0.5 percentile is below minus this share of its 99.5 percentile: air in CT is,
ringing beside edges in MRI is not."""

PATCH_FILLED = 0.25
"""A scan that fills less of a patch than this share is mostly padding to the network."""

NARROW = 0.1
"""Hounsfield units that span less than this share of what every training scan spans are normalised ones."""


def seen_in(facts: Iterable[CaseFacts], plan: Plan) -> dict[str, Any]:
    """What the training scans were like, as a model file holds it.

    ``spacing``: ``least`` and ``most`` in mm along the plan's axes. ``intensities``: for each channel, least and most
    of the scans' 0.5 percentiles (``low``), and of their 99.5 percentiles (``high``).
    """
    cases = list(facts)
    order = ["RAS".index(letter) for letter in plan.orientation]
    spacings = np.array([by_direction(case.orientation, case.spacing) for case in cases])[:, order]
    ranges = np.array([[channel[1:3] for channel in case.intensities] for case in cases])
    return {
        "spacing": {"least": spacings.min(axis=0).tolist(), "most": spacings.max(axis=0).tolist()},
        "intensities": [
            {
                name: [float(values.min()), float(values.max())]
                for name, values in zip(("low", "high"), each.T, strict=True)
            }
            for each in ranges.transpose(1, 0, 2)
        ],
    }


def remarks(scan: Scan, plan: Plan, about: Mapping[str, Any]) -> tuple[MedContextError, ...]:
    """Why the labels of this scan may be worth little.

    Args:
        scan: As it was read.
        plan: Of the network.
        about: What is recorded beside the weights; of a model that doesn't say what it was trained on, less is known.
    """
    seen = about.get(KEY)
    found = geometry_remarks(scan)
    if seen is not None:
        found += _spacing_remarks(scan, plan, seen["spacing"])
        found += _intensity_remarks(scan, seen["intensities"], plan.normalisation.kind == "ct")
    return (*found, *_size_remarks(scan, plan))


def _spacing_remarks(scan: Scan, plan: Plan, seen: Mapping[str, Sequence[float]]) -> list[MedContextError]:
    spacing = reoriented_spacing(scan.affine, plan.orientation)
    within = all(
        least / FAR <= own <= most * FAR for own, least, most in zip(spacing, seen["least"], seen["most"], strict=True)
    )
    if within:
        return []
    return [
        MedContextError(
            "The voxels of this scan are unlike those of the training scans.",
            file=scan.path,
            found=f"{_sizes(spacing)} mm ({plan.orientation}), {listed(planned_size(scan, plan))} voxels at "
            "the network's spacing",
            expected=f"from {_sizes(seen['least'])} to {_sizes(seen['most'])} mm, as in training",
            remedy="see whether the header is right, and the model the one for such scans",
        )
    ]


def _intensity_remarks(
    scan: Scan, seen: Sequence[Mapping[str, Sequence[float]]], hounsfield: bool
) -> list[MedContextError]:
    found = []
    for channel, (values, trained) in enumerate(zip(scan.array, seen, strict=False)):
        with np.errstate(invalid="ignore"):  # what is not finite is refused when the scan is prepared
            _, low, high, _ = intensity_range(values)
        (lowest, low_most), (high_least, highest) = trained["low"], trained["high"]
        negative = low < -BELOW_ZERO * abs(high)
        always, never = low_most < -BELOW_ZERO * highest, lowest >= -BELOW_ZERO * high_least
        narrow = hounsfield and high - low < NARROW * (high_least - low_most)
        if (always and not negative) or (never and negative) or narrow:
            found.append(
                MedContextError(
                    "The intensities of this scan are unlike those of the training scans.",
                    file=scan.path,
                    found=f"99 % of the voxels from {low:.4g} to {high:.4g} in channel {channel}",
                    expected=f"about {lowest:.4g} to {highest:.4g}, as in training; below zero there: "
                    f"{'every scan' if always else 'none' if never else 'some scans'}",
                    remedy="see whether the model is for this kind of scan (CT or MRI), and CT in Hounsfield units",
                )
            )
    return found


def _size_remarks(scan: Scan, plan: Plan) -> list[MedContextError]:
    size = planned_size(scan, plan)
    filled = np.prod([min(1.0, own / wanted) for own, wanted in zip(size, plan.patch, strict=True)])
    if filled >= PATCH_FILLED:
        return []
    return [
        MedContextError(
            "This scan is much smaller than what the network sees at once.",
            file=scan.path,
            found=f"{listed(size)} voxels at the network's spacing, {filled:.0%} of a patch",
            expected=f"about {listed(plan.patch)} or more",
            remedy="see whether the header's spacing is right, and the whole of the scan there",
        )
    ]


def _sizes(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)

"""What there is to know beside a network's file: how a scan is prepared for it, and how its logits become labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from medcontext.data.plan import Plan
from medcontext.data.prepare import PERCENTILE_VOXELS, PERCENTILES, SMALLEST_STD
from medcontext.inference.postprocess import Rule, around_of
from medcontext.inference.sliding import OVERLAP
from medcontext.version import __version__

FILE = "preprocessing.json"
FORMAT = 2
MADE_BY = "medcontext"

SIGMA = 0.125
"""Of the Gaussian that weights a window, in shares of its length along each axis; MONAI's, like all of a window."""

SMALLEST_WEIGHT = 0.001
"""Of a window's voxels, MONAI's as well."""


def describe(plan: Plan, rules: Iterable[Rule]) -> dict[str, Any]:
    """Everything that a prediction takes, as JSON holds it; ``docs/export.md`` says what the keys mean.

    Args:
        plan: That scans are prepared by.
        rules: Of the post-processing.
    """
    return {
        "format": FORMAT,
        "made_by": f"{MADE_BY} {__version__}",
        "dataset": plan.dataset,
        "channels": plan.channels,
        "orientation": plan.orientation,
        "spacing_mm": list(plan.spacing),
        "interpolation": "trilinear",
        "normalisation": {"kind": plan.normalisation.kind, "channels": [_channel(plan)] * plan.channels},
        "outside": plan.normalisation.outside,
        "window": {
            "size": list(plan.patch),
            "overlap": OVERLAP,
            "weights": "gaussian",
            "sigma": SIGMA,
            "smallest_weight": SMALLEST_WEIGHT,
        },
        "activation": "sigmoid" if plan.labels.regions else "softmax",
        "outputs": outputs(plan),
        "postprocessing": [
            rule.to_dict()
            | {"labels": list(plan.labels.structures[rule.number][1]), "around": around_of(plan.labels, rule.number)}
            for rule in rules
        ],
    }


def outputs(plan: Plan) -> list[dict[str, Any]]:
    """Of each output of the network: its name, the number that is written for it, the label numbers it stands for."""
    labels = plan.labels
    if labels.regions:
        return [{"name": each.name, "number": each.written, "labels": list(each.numbers)} for each in labels.regions]
    named = {0: "background", **labels.names}
    return [{"name": name, "number": number, "labels": [number]} for number, name in named.items()]


def _channel(plan: Plan) -> dict[str, Any]:
    """How one channel is normalised: each by the same rule."""
    how = plan.normalisation
    if how.kind == "ct":
        return {"low": how.low, "high": how.high, "mean": how.mean, "std": how.std}
    return {"percentiles": list(PERCENTILES), "percentile_voxels": PERCENTILE_VOXELS, "smallest_std": SMALLEST_STD}

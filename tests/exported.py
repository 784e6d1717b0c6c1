"""Shared by the tests of exports: models of a moment, and scans that put every step of the preparation to the test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from medcontext.data.labels import Labels, Region
from medcontext.data.plan import Normalisation, Plan
from medcontext.inference.model import save_model
from medcontext.inference.postprocess import KEY, Rule
from medcontext.networks.registry import build_network, network_spec
from tests.conftest import ORIENTATIONS, oriented, write_nifti

PATCH = (16, 16, 16)
REGIONS = (Region("whole", (1, 2, 4), 2), Region("core", (1, 4), 1), Region("enhancing", (4,), 4))

RULES = {
    "mri": [Rule(3, least_ml=0.02, fill=True), Rule(300, largest=True)],
    "ct": [],
    "regions": [Rule(2, least_ml=0.1, fill=True), Rule(1, largest=True)],
}
"""Of the post-processing of each of the following."""

PLANS = {
    "mri": {"labels": Labels({3: "low", 300: "high"}), "normalisation": Normalisation("case")},
    "ct": {
        "labels": Labels({1: "liver", 2: "spleen"}),
        "normalisation": Normalisation("ct", -100.0, 200.0, 60.5, 40.25),
        "orientation": "RSA",
    },
    "regions": {
        "labels": Labels({1: "oedema", 2: "core", 4: "enhancing"}, regions=REGIONS),
        "normalisation": Normalisation("case"),
        "channels": 2,
        "orientation": "ASR",
    },
}
"""One for each way in which scans are normalised and labels are made of logits."""


def make_plan(name: str, **changed) -> Plan:
    values = {"channels": 1, "orientation": "SAR", "spacing": (1.4, 1.2, 1.1), "patch": PATCH} | PLANS[name] | changed
    return Plan(dataset="Made up", batch_size=1, steps=1, **values)


def write_model(path: Path, plan: Plan, network: str = "unet", rules: Sequence[Rule] = (), **settings) -> Path:
    """A model file with weights as they were drawn."""
    known = ":" not in network
    chosen = network_spec(network).settings(plan.patch, plan.spacing, "tiny") | settings if known else settings
    built = build_network(network, plan.channels, plan.labels.outputs, plan.patch, chosen, seed=3)
    about = {"network": network, "settings": chosen, "validation_dice": float("nan")}
    save_model(path, built.state_dict(), plan, about | {KEY: [rule.to_dict() for rule in rules]})
    return path


def write_scan(path: Path, plan: Plan, seed: int, *, empty: bool = False) -> Path:
    """A scan of random size (along one axis less than a window), spacing and axes; with an empty border if asked to."""
    rng = np.random.default_rng(seed)
    size = rng.permutation([rng.integers(8, 14), *rng.integers(20, 32, 2)])
    grown = rng.normal(50, 60, (plan.channels, *-(-size // 4))).repeat(4, 1).repeat(4, 2).repeat(4, 3)
    array = grown[:, : size[0], : size[1], : size[2]] + rng.normal(0, 10, (plan.channels, *size))
    if empty:
        array[:, :3] = array[:, :, -5:] = array[:, :, :, :4] = -1000 if plan.normalisation.kind == "ct" else 0
    affine = np.diag([*rng.uniform(0.7, 2.2, 3), 1.0])
    affine[:3, 3] = rng.normal(0, 40, 3)
    last = np.moveaxis(array.astype(np.float32), 0, -1)
    turned, affine = oriented(last[..., 0] if plan.channels == 1 else last, affine, ORIENTATIONS[seed % 4])
    return write_nifti(path, turned, affine)


def label_map(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)

"""A model whose labels are known beforehand: it tells intensities below 25, from 25 to 75, and above apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medcontext.data.labels import Labels
from medcontext.data.plan import Normalisation, Plan
from medcontext.inference.model import save_model
from medcontext.networks.registry import network_spec
from tests.conftest import oriented, write_nifti

NETWORK = "tests.predicting:build"
LABELS = Labels({3: "middle", 8: "high"})
AFFINE = np.array([[0.0, 0, 1.5, -20], [-1, 0, 0, 30], [0, 1, 0, -40], [0, 0, 0, 1]])
"""Voxels of 1 x 1 x 1.5 mm, axes neither in the order nor in the direction of the plan's."""


def build(channels: int, classes: int, patch: Any) -> nn.Module:
    """Logits 0, x - 25 and 2x - 100 of the first channel, whatever is around a voxel."""
    network = nn.Conv3d(channels, classes, 1)
    with torch.no_grad():
        network.weight.zero_()
        network.weight[:, 0, 0, 0, 0] = torch.arange(classes)
        network.bias.copy_(torch.tensor([0.0, -25, -100][:classes]))
    return network


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "dataset": "Known", "channels": 1, "labels": LABELS, "orientation": "SAR", "spacing": (1.0, 1.0, 1.5),
        "normalisation": Normalisation("ct", 0.0, 100.0, 0.0, 1.0), "patch": (8, 8, 8), "batch_size": 1, "steps": 1,
    }  # fmt: skip
    return Plan(**{**values, **changes})


def write_model(path: Path, about: dict[str, Any] | None = None, **changes: Any) -> Path:
    """The model file, or the model of a run folder."""
    made = plan(**changes)
    network_spec(NETWORK, allow_import=True)
    weights = build(made.channels, made.labels.outputs, made.patch).state_dict()
    file = path if path.suffix == ".pt" else path / "best.pt"
    save_model(file, weights, made, {"network": NETWORK, "settings": {}, **(about or {})})
    return path


def intensities(seed: int, size: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 101, (size, size + 1, size + 2)).astype(np.float32)


def labels_of(image: np.ndarray) -> np.ndarray:
    """What the model says of it."""
    return np.array([0, 3, 8])[np.digitize(image, (25.5, 75.5))]


def write_scans(folder: Path, count: int = 3, size: int = 12) -> dict[str, np.ndarray]:
    """Scans in several orientations; the labels that are to be predicted."""
    expected = {}
    for index in range(count):
        array, affine = oriented(intensities(index, size), AFFINE, ("ASR", "LPS", "SAL")[index % 3])
        write_nifti(folder / f"scan_{index}.nii.gz", array, affine)
        expected[f"scan_{index}"] = labels_of(array)
    return expected

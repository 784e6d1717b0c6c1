"""The Dice that chooses a model: of whole cases, averaged over those that have a class, then over the classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from medcontext.data.prepare import Prepared, write_prepared
from medcontext.training.validate import validate
from tests.predicting import build, intensities, plan

BORDERS = {"student": (25.5, 75.5), "teacher": (15.5, 85.5)}
"""Intensities from which on a network says class 1 and class 2."""


def stored_truth(folder: Path, image: np.ndarray) -> np.ndarray:
    """The truth of a case that is stored: what the student says of it, but for a third of the voxels."""
    label = np.digitize(image, BORDERS["student"]).astype(np.uint8)
    label[np.random.default_rng(0).random(label.shape) < 1 / 3] = 0
    places = tuple(np.argwhere(label == k).astype(np.int32) for k in (1, 2))
    write_prepared(folder, Prepared(image[None], label, places))
    return label


def dice_by_hand(predicted: np.ndarray, label: np.ndarray) -> list[float]:
    """Of each class; NaN where there is nothing of it."""
    pairs = [(predicted == k, label == k) for k in (1, 2)]
    return [2 * (p & t).sum() / (p.sum() + t.sum()) if (p | t).any() else np.nan for p, t in pairs]


@pytest.mark.parametrize("at_once", [1, 10**9])
def test_validation_dice_is_that_of_whole_cases_and_leaves_out_a_class_that_is_nowhere(at_once, tmp_path, monkeypatch):
    """One case is larger than a patch; the other is smaller, and has nothing of class 2."""
    monkeypatch.setattr("medcontext.training.validate.AT_ONCE", at_once)
    images = {"both": intensities(0), "one": intensities(1, size=6).clip(max=70)}
    truths = {name: stored_truth(tmp_path / name, image) for name, image in images.items()}
    # The student is right only if nothing is dropped.
    student, teacher = nn.Sequential(build(1, 3, None), nn.Dropout(0.9)).train(), build(1, 3, None).eval()
    with torch.no_grad():
        teacher.bias.copy_(torch.tensor([0.0, -15, -100]))
    networks, fabric = {"student": student, "teacher": teacher}, Fabric(accelerator="cpu", devices=1)
    for names in (["both", "one"], ["one"]):
        scores = validate(networks, {name: tmp_path / name for name in names}, plan(), "cpu", fabric)
        expected = {}
        for which, borders in BORDERS.items():
            table = [dice_by_hand(np.digitize(images[name], borders), truths[name]) for name in names]
            expected[which] = np.ma.masked_invalid(table).mean(axis=0).mean()
        assert scores == pytest.approx(expected, abs=1e-6)
        assert scores["student"] != pytest.approx(scores["teacher"], abs=0.01)
    assert (student.training, teacher.training) == (True, False)

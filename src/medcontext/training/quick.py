"""Between two validations of whole volumes: Dice on a few patches of the validation cases, always the same ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medcontext.data.augment_config import AugmentConfig
from medcontext.data.plan import Plan
from medcontext.data.sampling import PatchBatches
from medcontext.method.diagnostics import dice_of, overlap
from medcontext.training.distribution import of_all
from medcontext.training.validate import membership

BATCHES = 4
"""How many. Student and teacher forward are 8 passes over a batch, where a training step of the default preset is 3 (a
backward pass counted as two) and one with three passes 7; supervised training, without a teacher, has 4 where a step
is 3."""

_NEVER: dict[str, Any] = {
    field.name: 0.0 for field in dataclasses.fields(AugmentConfig) if field.name.endswith("_probability")
}
UNVARIED = AugmentConfig(mirror_axes=(), **_NEVER)
"""Patches as they are in the scans."""


def validation_steps(steps: int, validations: int, between: int) -> tuple[frozenset[int], frozenset[int]]:
    """Steps of a training after which whole volumes are validated, and those after which patches are.

    Args:
        steps: Of the whole training.
        validations: Of whole volumes, the last of them at the end.
        between: Of patches, before each of those.
    """
    parts = validations * (between + 1)
    whole = {round(steps * (k + 1) / validations) for k in range(validations)} | {steps}
    return frozenset(whole), frozenset(round(steps * k / parts) for k in range(1, parts)) - whole - {0}


class QuickValidation:
    """Dice of each network on patches that are drawn once, as training patches are but for being varied.

    It shows early how a training goes, and costs the same however many cases and voxels there are. It says less than
    whole volumes do, so nothing is chosen by it. (nnU-Net watches a Dice over patches as well: Isensee et al., Nature
    Methods 18, 2021.) No random state but its own is drawn from, and networks are left in the mode that they were in.

    Args:
        folders: Prepared validation cases.
        plan: Of the data: a batch here is as large as a training batch.
        seed: Of the patches.
        device: The networks'.
        fabric: Its processes share every batch; each gets the scores of all.
    """

    def __init__(self, folders: Mapping[str, Path], plan: Plan, seed: int, device: str, fabric: Fabric) -> None:
        share = (fabric.global_rank, fabric.world_size)
        self._batches = PatchBatches(folders, plan, UNVARIED, seed, BATCHES, share)
        self._members = membership(plan, device)
        self._device = device
        self._fabric = fabric

    @cached_property
    def _patches(self) -> list[tuple[Tensor, Tensor]]:
        """Images and labels; images in half precision, as the cases are stored."""
        drawn = (self._batches[number] for number in range(BATCHES))
        return [(batch["image"].half(), batch["label"]) for batch in drawn]

    @torch.no_grad()
    def __call__(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """Dice of each network, by its name: per class or region over all patches together, then their mean; NaN where
        no class is in any patch or prediction."""
        scores: dict[str, float] = {}
        for name, network in networks.items():
            was_training = network.training
            network.eval()
            own = torch.stack([self._overlap(network, image, label) for image, label in self._patches]).sum(0)
            network.train(was_training)
            shares = of_all(self._fabric, {str(self._fabric.global_rank): own.tolist()})
            scores[name] = float(dice_of(torch.tensor([*shares.values()]).sum(0)).nanmean())
        return scores

    def _overlap(self, network: nn.Module, image: Tensor, label: Tensor) -> Tensor:
        outputs = network(image.to(self._device).float())
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        return overlap(logits, label.to(self._device).long(), None, self._members)

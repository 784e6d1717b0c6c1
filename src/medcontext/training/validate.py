"""Dice of whole validation volumes, of student and of teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medcontext.data.plan import Plan
from medcontext.data.prepare import read_prepared
from medcontext.data.stored import of_case
from medcontext.inference.sliding import sliding_logits
from medcontext.method.diagnostics import dice_of, overlap
from medcontext.training.distribution import of_all

AT_ONCE = 2**22
"""Voxels whose classes are compared at once: the logits of a scan may have left the device little room."""


def membership(plan: Plan, device: torch.device | str) -> Tensor | None:
    """Which class of the labels belongs to which region, where the plan has regions: ``(regions, classes)``."""
    table = plan.labels.membership()
    return None if table is None else torch.from_numpy(table).to(device)


def validate(
    networks: Mapping[str, nn.Module], folders: Mapping[str, Path], plan: Plan, device: str, fabric: Fabric
) -> dict[str, float]:
    """Mean Dice over cases, then over foreground classes or regions, in the plan's grid, of each network.

    Args:
        networks: By name, each called in eval mode and left in the mode it was in.
        folders: Prepared validation cases.
        plan: Of the data.
        device: The networks'.
        fabric: Its processes share the cases; each gets the scores of all.
    """
    scores: dict[str, float] = {}
    for name, network in networks.items():
        was_training = network.training
        network.eval()
        own = {}
        for case_name in sorted(folders)[fabric.global_rank :: fabric.world_size]:
            with of_case(case_name):
                case = read_prepared(folders[case_name])
                assert case.label is not None
                image, label = torch.from_numpy(case.image[:]).float(), torch.from_numpy(case.label[:]).long()
            logits = sliding_logits(network, image.to(device), plan.patch, plan.normalisation.outside)
            # Where the device has no room for the logits, they are in the computer's memory.
            target = label[None].to(logits.device)
            members = membership(plan, logits.device)
            slices = max(1, AT_ONCE // math.prod(target.shape[2:]))
            parts = zip(torch.split(logits[None], slices, 2), torch.split(target, slices, 1), strict=True)
            counts = torch.stack([overlap(*part, membership=members) for part in parts]).sum(0)
            own[case_name] = dice_of(counts).tolist()
        network.train(was_training)
        per_case = torch.tensor([*of_all(fabric, own).values()])
        scores[name] = float(per_case.nanmean(dim=0).nanmean())
    return scores

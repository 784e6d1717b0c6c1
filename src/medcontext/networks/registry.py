"""The networks by name: how each is sized for a patch, built, and where its patch embedding is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from medcontext.errors import MedContextError
from medcontext.networks.unet import build_unet, unet_settings
from medcontext.networks.unetr import build_unetr, unetr_settings

Size = tuple[int, int, int]
Scale = Literal["small", "full"]
Settings = dict[str, Any]


@dataclass(frozen=True)
class NetworkSpec:
    """What there is to know of a network before it is built.

    Attributes:
        settings: ``(patch, spacing, scale)`` to the settings that ``build`` takes, as plain values.
        build: ``(channels, classes, patch, settings)`` to the network.
        learning_rate: Largest of the schedule, for AdamW.
        patch_multiple: Every axis of a patch must be a multiple of this; None: any patch the planner makes.
        patch_embedding: Module path at which its tokens can be hidden; None where it has no tokens.
    """

    settings: Callable[[Size, tuple[float, float, float], Scale], Settings]
    build: Callable[[int, int, Size, Settings], nn.Module]
    learning_rate: float
    patch_multiple: int | None = None
    patch_embedding: str | None = None


NETWORKS: dict[str, NetworkSpec] = {
    "unet": NetworkSpec(unet_settings, build_unet, 3e-3),
    "unetr": NetworkSpec(unetr_settings, build_unetr, 3e-4, 16, "vit.patch_embedding.patch_embeddings"),
}


def network_spec(name: str) -> NetworkSpec:
    """The network of that name.

    Raises:
        MedContextError: There is none.
    """
    if name not in NETWORKS:
        raise MedContextError("There is no network of this name.", found=name, expected=" or ".join(NETWORKS))
    return NETWORKS[name]


def build_network(name: str, channels: int, classes: int, patch: Size, settings: Settings, seed: int) -> nn.Module:
    """Build a network with weights drawn from ``seed``, leaving the global random state as it was."""
    spec = network_spec(name)
    multiple = spec.patch_multiple
    if multiple is not None and any(size % multiple for size in patch):
        nearest = [max(multiple, round(size / multiple) * multiple) for size in patch]
        raise MedContextError(
            f"The network '{name}' can't take this patch.",
            found=f"patch {list(patch)}",
            expected=f"multiples of {multiple}",
            remedy=f"set the patch to {nearest}",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build(channels, classes, patch, settings)

"""The networks by name."""

from __future__ import annotations

import torch
from torch import nn

from medcontext.errors import MedContextError
from medcontext.networks import unet, unetr
from medcontext.networks.spec import NetworkSpec, Settings, Size

NETWORKS: dict[str, NetworkSpec] = {"unet": unet.SPEC, "unetr": unetr.SPEC}


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build(channels, classes, patch, settings)

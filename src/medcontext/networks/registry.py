"""The networks by name.

Names with a colon (``package.module:factory``) are code outside medcontext. It is imported only where a caller says so
with ``allow_import``, which is for names that the user gave; a name read from a file (a model, a run folder) is looked
up without, so that no file can choose code to run. Once imported, a network is known for the rest of the process.
"""

from __future__ import annotations

import torch
from torch import nn

from medcontext.errors import MedContextError
from medcontext.networks import mednext, nnformer, resenc_unet, segresnet, swin_unetr, unet, unetr, unetr_pp
from medcontext.networks.imported import import_network
from medcontext.networks.spec import NetworkSpec, Settings, Size

NETWORKS: dict[str, NetworkSpec] = {
    "unet": unet.SPEC,
    "unetr": unetr.SPEC,
    "resenc_unet": resenc_unet.SPEC,
    "swin_unetr": swin_unetr.SPEC,
    "nnformer": nnformer.SPEC,
    "unetr_pp": unetr_pp.SPEC,
    "segresnet": segresnet.SPEC,
    "mednext": mednext.SPEC,
}

_imported: dict[str, NetworkSpec] = {}


def network_spec(name: str, *, allow_import: bool = False) -> NetworkSpec:
    """The network of that name.

    Args:
        name: One of ``NETWORKS``, or ``package.module:factory``.
        allow_import: Import the module of such a name, which runs its code. Only for names that the user gave.

    Raises:
        MedContextError: There is none, or it may not be imported.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if ":" not in name:
        raise MedContextError(
            "There is no network of this name.",
            found=name,
            expected=" or ".join([*NETWORKS, "package.module:factory for your own"]),
        )
    if name not in _imported:
        if not allow_import:
            raise MedContextError(
                "This network is code outside medcontext, which is not run because a file names it.",
                found=name,
                remedy=f"if you trust that code, name it yourself: --network {name}, or allow_import=True in Python",
            )
        _imported[name] = import_network(name)
    return _imported[name]


def build_network(
    name: str,
    channels: int,
    classes: int,
    patch: Size,
    settings: Settings,
    seed: int,
    *,
    allow_import: bool = False,
) -> nn.Module:
    """Build a network with weights drawn from ``seed``, leaving the global random state as it was.

    Args:
        name: As for :func:`network_spec`, and likewise ``allow_import``.
        channels: C of the images.
        classes: K of the logits, background included.
        patch: (D, H, W) that it is trained and applied on.
        settings: Its own, as ``network_spec(name).settings`` gives them.
        seed: Of the weights.
    """
    spec = network_spec(name, allow_import=allow_import)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return spec.build(channels, classes, patch, settings)

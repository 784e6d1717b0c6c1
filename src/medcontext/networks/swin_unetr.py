"""Swin UNETR (Hatamizadeh et al., arXiv 2201.01266; Tang et al., CVPR 2022, arXiv 2111.14791), through MONAI."""

from __future__ import annotations

from torch import nn

from medcontext.networks.spec import (
    NetworkSpec,
    Published,
    Scale,
    Settings,
    Size,
    Spacing,
    require_deep_voxels,
    require_multiples,
)

STRIDE = 32
"""Side in voxels of what becomes one of the deepest features: tokens of 2^3 voxels, merged four times."""

COMMON: Settings = {"norm": "instance", "dropout": 0.0, "attention_dropout": 0.0, "stochastic_depth": 0.0}
SETTINGS: dict[Scale, Settings] = {
    "tiny": {"features": 12, "depths": [1, 1, 1, 1], "heads": [1, 2, 4, 8], "window": 4, **COMMON},
    "small": {"features": 12, "depths": [2, 2, 2, 2], "heads": [1, 2, 4, 8], "window": 7, **COMMON},
    "full": {"features": 48, "depths": [2, 2, 2, 2], "heads": [3, 6, 12, 24], "window": 7, **COMMON},
}
"""Features are multiples of 12, so that ``tiny`` has 3.7 million parameters, nearly all in the deepest convolutions."""

GROUPS = 4


def swin_unetr_settings(patch: Size, spacing: Spacing, scale: Scale) -> Settings:
    """By scale; with group normalisation where a patch leaves one deepest voxel, which has no instance statistics."""
    alone = all(size == STRIDE for size in patch)
    return SETTINGS[scale] | {"norm": "group" if alone else "instance"}


def build_swin_unetr(channels: int, classes: int, patch: Size, settings: Settings) -> nn.Module:
    """Swin UNETR, for any patch of multiples of 32."""
    from monai.networks.nets.swin_unetr import SwinUNETR

    from medcontext.networks.swin_layer import make_portable

    require_multiples("swin_unetr", patch, (STRIDE, STRIDE, STRIDE))
    if settings["norm"] == "instance":
        require_deep_voxels("swin_unetr", patch, (STRIDE, STRIDE, STRIDE))
    network: nn.Module = SwinUNETR(
        in_channels=channels,
        out_channels=classes,
        feature_size=settings["features"],
        depths=settings["depths"],
        num_heads=settings["heads"],
        window_size=settings["window"],
        norm_name=("group", {"num_groups": GROUPS}) if settings["norm"] == "group" else "instance",
        drop_rate=settings["dropout"],
        attn_drop_rate=settings["attention_dropout"],
        dropout_path_rate=settings["stochastic_depth"],
    )
    make_portable(network)
    return network


SPEC = NetworkSpec(
    settings=swin_unetr_settings,
    build=build_swin_unetr,
    learning_rate=3e-4,
    published={"synapse": Published(1, 14, (96, 96, 96), SETTINGS["full"], 62_187_296, "released code, 48 features")},
    patch_multiple=STRIDE,
    patch_embedding="swinViT.patch_embed.proj",
    export="torch.export",
    compile=True,
)

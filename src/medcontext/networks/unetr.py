"""UNETR (Hatamizadeh et al., WACV 2022, arXiv 2103.10504), through MONAI."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn


def unetr_settings(
    patch: tuple[int, int, int], spacing: tuple[float, float, float], scale: Literal["small", "full"]
) -> dict[str, Any]:
    """``full`` is the published size; ``small`` has a quarter of its width, for a CPU."""
    if scale == "full":
        return {"features": 16, "hidden": 768, "mlp": 3072, "heads": 12}
    return {"features": 16, "hidden": 192, "mlp": 768, "heads": 6}


def build_unetr(channels: int, classes: int, patch: tuple[int, int, int], settings: dict[str, Any]) -> nn.Module:
    """UNETR for one size of patch, every axis a multiple of its tokens' 16 voxels."""
    from monai.networks.nets.unetr import UNETR

    network: nn.Module = UNETR(
        in_channels=channels,
        out_channels=classes,
        img_size=patch,
        feature_size=settings["features"],
        hidden_size=settings["hidden"],
        mlp_dim=settings["mlp"],
        num_heads=settings["heads"],
        norm_name="instance",
        res_block=True,
    )
    return network

"""UNETR (Hatamizadeh et al., WACV 2022, arXiv 2103.10504), through MONAI."""

from __future__ import annotations

from torch import nn

from medcontext.networks.spec import NetworkSpec, Published, Scale, Settings, Size, Spacing, require_multiples

SETTINGS: dict[Scale, Settings] = {
    "tiny": {"features": 4, "hidden": 24, "mlp": 48, "heads": 2},
    "small": {"features": 16, "hidden": 192, "mlp": 768, "heads": 6},
    "full": {"features": 16, "hidden": 768, "mlp": 3072, "heads": 12},
}
TOKEN = 16
"""Side in voxels of the cube that becomes one token."""


def build_unetr(channels: int, classes: int, patch: Size, settings: Settings) -> nn.Module:
    """UNETR for one size of patch."""
    from monai.networks.nets.unetr import UNETR

    require_multiples("unetr", patch, (TOKEN, TOKEN, TOKEN))
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
    for name, parameter in network.named_parameters():
        # MONAI's blocks carry a norm for cross-attention that nothing runs; DDP would wait for its gradient forever.
        parameter.requires_grad_("norm_cross_attn" not in name)
    return network


def _settings(patch: Size, spacing: Spacing, scale: Scale) -> Settings:
    return SETTINGS[scale]


SPEC = NetworkSpec(
    settings=_settings,
    build=build_unetr,
    learning_rate=3e-4,
    published={"synapse": Published(1, 14, (96, 96, 96), SETTINGS["full"], 92_802_478, "released code, 16 features")},
    patch_multiple=TOKEN,
    patch_embedding="vit.patch_embedding.patch_embeddings",
    positioned_embedding="vit.patch_embedding",
    export="torch.export",
    compile=True,
)

"""SegResNet (Myronenko, BrainLes 2018, arXiv 1810.11654), without its variational branch, through MONAI."""

from __future__ import annotations

from torch import nn

from medcontext.networks.spec import NetworkSpec, Published, Scale, Settings, Size, Spacing, require_multiples

SETTINGS: dict[Scale, Settings] = {
    "tiny": {"features": 8, "blocks_down": [1, 1, 1, 1], "blocks_up": [1, 1, 1], "dropout": 0.0},
    "small": {"features": 16, "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1], "dropout": 0.0},
    "full": {"features": 32, "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1], "dropout": 0.0},
}
"""``full`` as published, but for its spatial dropout of 0.2 after the first convolution; every stage after the first
halves the volume and doubles the features."""


def build_segresnet(channels: int, classes: int, patch: Size, settings: Settings) -> nn.Module:
    """SegResNet, for any patch that its halvings divide."""
    from monai.networks.nets.segresnet import SegResNet

    stride = 2 ** len(settings["blocks_up"])
    require_multiples("segresnet", patch, (stride, stride, stride))
    network: nn.Module = SegResNet(
        in_channels=channels,
        out_channels=classes,
        init_filters=settings["features"],
        blocks_down=settings["blocks_down"],
        blocks_up=settings["blocks_up"],
        dropout_prob=settings["dropout"] or None,
    )
    return network


def _settings(patch: Size, spacing: Spacing, scale: Scale) -> Settings:
    return SETTINGS[scale]


SPEC = NetworkSpec(
    settings=_settings,
    build=build_segresnet,
    learning_rate=1e-3,
    published={
        "synapse": Published(
            1, 14, (96, 96, 96), SETTINGS["full"], 18_796_398, "our count of MONAI 1.6.1 at the paper's 32 features"
        )
    },
    patch_multiple=8,
    export="torch.export",
    compile=True,
)

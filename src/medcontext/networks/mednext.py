"""MedNeXt (Roy et al., MICCAI 2023, arXiv 2303.09975) with kernels of 3, through MONAI."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

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

STRIDE = 16
"""Side in voxels of what becomes one of the deepest features."""

LEVELS = 4
"""Halvings; settings give one number per level down, for the bottom, and per level up."""

SETTINGS: dict[Scale, Settings] = {
    "tiny": {"features": 4, "blocks": [1] * 9, "expansion": [2] * 9, "kernel": 3, "deep_supervision": False},
    "small": {"features": 16, "blocks": [2] * 9, "expansion": [2] * 9, "kernel": 3, "deep_supervision": False},
    "full": {
        "features": 32,
        "blocks": [3, 4, 4, 4, 4, 4, 4, 4, 3],
        "expansion": [2, 3, 4, 4, 4, 4, 4, 3, 2],
        "kernel": 3,
        "deep_supervision": False,
    },
}
"""``full`` is MedNeXt-M; ``small`` is MedNeXt-S with half the features."""


class DeeplySupervisedMedNeXt(nn.Module):
    """A MedNeXt that gives all its heads, in train and eval mode alike.

    MONAI's gives the lower heads only while it believes itself in train mode, and nothing else in it asks for the mode;
    so it is left in that belief.

    Args:
        network: MONAI's MedNeXt with deep supervision.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def train(self, mode: bool = True) -> DeeplySupervisedMedNeXt:
        """As of any module, without telling the network itself."""
        super().train(mode)
        self.network.training = True
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits, finest first and each half the size of the one before, for an image ``(B, C, D, H, W)``."""
        return list(self.network(image))


def build_mednext(channels: int, classes: int, patch: Size, settings: Settings) -> nn.Module:
    """MedNeXt with residual connections, also where it resamples, for any patch of multiples of 16."""
    from monai.networks.nets.mednext import MedNeXt

    require_multiples("mednext", patch, (STRIDE, STRIDE, STRIDE))
    require_deep_voxels("mednext", patch, (STRIDE, STRIDE, STRIDE))
    blocks, expansion = settings["blocks"], settings["expansion"]
    network: nn.Module = MedNeXt(
        in_channels=channels,
        out_channels=classes,
        init_filters=settings["features"],
        kernel_size=settings["kernel"],
        blocks_down=blocks[:LEVELS],
        blocks_bottleneck=blocks[LEVELS],
        blocks_up=blocks[LEVELS + 1 :],
        encoder_expansion_ratio=expansion[:LEVELS],
        bottleneck_expansion_ratio=expansion[LEVELS],
        decoder_expansion_ratio=expansion[LEVELS + 1 :],
        use_residual_connection=True,
        deep_supervision=settings["deep_supervision"],
    )
    return DeeplySupervisedMedNeXt(network) if settings["deep_supervision"] else network


def _settings(patch: Size, spacing: Spacing, scale: Scale) -> Settings:
    return SETTINGS[scale]


SPEC = NetworkSpec(
    settings=_settings,
    build=build_mednext,
    learning_rate=1e-3,
    published={
        "synapse": Published(
            1, 14, (128, 128, 128), SETTINGS["full"], 17_600_000, "MIC-DKFZ/MedNeXt's README: M, kernel 3, 17.6M"
        )
    },
    patch_multiple=STRIDE,
    deep_supervision=True,
    export="torch.export",
    compile=True,
)

"""nnU-Net's plain U-Net (Isensee et al., Nature Methods 2021), through MONAI's DynUNet."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from medcontext.errors import MedContextError
from medcontext.networks.spec import NetworkSpec, Published, Scale, Settings, Size, Spacing
from medcontext.networks.stages import double_features, plan_stages, require_strides_fit

PUBLISHED: Settings = {
    "features": [32, 64, 128, 256, 320, 320],
    "strides": [[1, 1, 1], *[[2, 2, 2]] * 5],
    "kernels": [[3, 3, 3]] * 6,
    "deep_supervision": False,
}
"""Six stages without anisotropy: what nnU-Net plans for a patch of 128^3 at an isotropic spacing."""


NORMS: dict[str, tuple[str, Settings]] = {
    "instance": ("INSTANCE", {"affine": True}),
    "batch": ("BATCH", {}),
    "group": ("GROUP", {"num_groups": 4, "affine": True}),
}
"""Normalisation layers by name, as MONAI calls them; four groups divide the features of every size here."""


class DeeplySupervisedDynUNet(nn.Module):
    """A DynUNet with a head at every stage of its decoder, in train and eval mode alike.

    MONAI's own deep supervision resamples the lower heads to full size, stacks all of them in one tensor, and does so
    in train mode only. Here each head stays at the resolution of its stage.

    Args:
        network: MONAI's DynUNet, without deep supervision.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.ModuleList([network.get_output_block(stage) for stage in range(1, len(network.upsamples))])
        self.heads.apply(network.initialize_weights)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits, finest first, for an image ``(B, C, D, H, W)``."""
        skips = [self.network.input_block(image)]
        for downsample in self.network.downsamples:
            skips.append(downsample(skips[-1]))
        features = self.network.bottleneck(skips[-1])
        decoded: list[Tensor] = []
        for upsample in self.network.upsamples:
            features = upsample(features, skips.pop())
            decoded.insert(0, features)
        heads = [self.network.output_block, *self.heads]
        return [head(features) for head, features in zip(heads, decoded, strict=True)]


def unet_settings(patch: Size, spacing: Spacing, scale: Scale) -> Settings:
    """Stages, kernels and features for a patch (D, H, W) at a spacing in mm, by nnU-Net's rule.

    ``full`` goes from 32 to 320 features in up to 6 stages, ``small`` from 16 to 128 in up to 4, ``tiny`` from 4 to 8
    in 3. ``norm`` may also be ``batch``, with running statistics, or ``group``.
    """
    first, most, stages = {"tiny": (4, 8, 3), "small": (16, 128, 4), "full": (32, 320, 6)}[scale]
    strides, kernels = plan_stages(patch, spacing, stages)
    features = double_features(first, most, len(strides))
    return {
        "features": features,
        "strides": strides,
        "kernels": kernels,
        "norm": "instance",
        "deep_supervision": False,
    }


def build_unet(channels: int, classes: int, patch: Size, settings: Settings) -> nn.Module:
    """The U-Net with leaky ReLU, for any patch that its strides divide.

    Raises:
        MedContextError: They don't divide it, the stages are not as many as the strides, or there is no such
            normalisation.
    """
    from monai.networks.nets.dynunet import DynUNet

    require_strides_fit("unet", patch, settings["strides"])
    stages = {key: len(settings[key]) for key in ("features", "kernels", "strides")}
    if len(set(stages.values())) > 1:
        raise MedContextError(
            "The U-Net's settings disagree about its stages.", found=f"{stages}", expected="one number"
        )
    norm = settings.get("norm", "instance")
    if norm not in NORMS:
        raise MedContextError("There is no such normalisation.", found=f"norm: {norm}", expected=" or ".join(NORMS))
    network: nn.Module = DynUNet(
        spatial_dims=3,
        in_channels=channels,
        out_channels=classes,
        kernel_size=settings["kernels"],
        strides=settings["strides"],
        upsample_kernel_size=settings["strides"][1:],
        filters=settings["features"],
        norm_name=NORMS[norm],
    )
    return DeeplySupervisedDynUNet(network) if settings.get("deep_supervision", False) else network


SPEC = NetworkSpec(
    settings=unet_settings,
    build=build_unet,
    learning_rate=3e-3,
    published={
        "synapse": Published(
            1, 14, (96, 96, 96), PUBLISHED, 31_200_000, "nn-UNet at 96^3 in 3D UX-Net, arXiv 2209.15076: 31.2M"
        )
    },
    deep_supervision=True,
    export="torch.export",
    compile=True,
)

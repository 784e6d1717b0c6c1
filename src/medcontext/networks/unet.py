"""nnU-Net's plain U-Net (Isensee et al., Nature Methods 2021), through MONAI's DynUNet."""

from __future__ import annotations

from torch import nn

from medcontext.networks.spec import NetworkSpec, Scale, Settings, Size, Spacing

SMALLEST_SIDE = 4
"""An axis is halved only while at least this many voxels are left along it."""

FEWEST_STAGES = 3


def unet_settings(patch: Size, spacing: Spacing, scale: Scale) -> Settings:
    """Stages, kernels and features for a patch (D, H, W) at a spacing in mm.

    As in nnU-Net: an axis takes part in a stage's pooling while it is long enough and not coarser than twice the
    finest, and in its convolutions once its spacing is within twice the finest, so that thick slices are not mixed
    before their plane is as coarse as they are. ``full`` goes from 32 to 320 features in up to 6 stages, ``small``
    from 16 to 128 in up to 4, ``tiny`` from 4 to 8 in 3. Where there is too little to halve, stages without pooling
    make up the three that DynUNet needs.
    """
    first, most, stages = {"tiny": (4, 8, 3), "small": (16, 128, 4), "full": (32, 320, 6)}[scale]
    size, millimetres = list(patch), list(spacing)
    strides = [[1, 1, 1]]
    kernels = [_kernel(millimetres)]
    while len(strides) < stages:
        finest = min(millimetres)
        stride = [
            2 if count % 2 == 0 and count // 2 >= SMALLEST_SIDE and step < 2 * finest else 1
            for count, step in zip(size, millimetres, strict=True)
        ]
        if max(stride) == 1 and len(strides) >= FEWEST_STAGES:
            break
        size = [count // step for count, step in zip(size, stride, strict=True)]
        millimetres = [length * step for length, step in zip(millimetres, stride, strict=True)]
        strides.append(stride)
        kernels.append(_kernel(millimetres))
    features = [min(first * 2**stage, most) for stage in range(len(strides))]
    return {"features": features, "strides": strides, "kernels": kernels}


def build_unet(channels: int, classes: int, patch: Size, settings: Settings) -> nn.Module:
    """The U-Net with instance normalisation and leaky ReLU, for any patch that its strides divide."""
    from monai.networks.nets.dynunet import DynUNet

    network: nn.Module = DynUNet(
        spatial_dims=3,
        in_channels=channels,
        out_channels=classes,
        kernel_size=settings["kernels"],
        strides=settings["strides"],
        upsample_kernel_size=settings["strides"][1:],
        filters=settings["features"],
        norm_name=("INSTANCE", {"affine": True}),
    )
    return network


def _kernel(spacing: list[float]) -> list[int]:
    return [1 if step >= 2 * min(spacing) else 3 for step in spacing]


SPEC = NetworkSpec(settings=unet_settings, build=build_unet, learning_rate=3e-3)

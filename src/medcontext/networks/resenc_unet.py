"""nnU-Net's residual-encoder U-Net, "ResEnc" (Isensee et al., "nnU-Net Revisited", MICCAI 2024, arXiv 2404.09556).

Written from the paper and from the facts of its released form, ``ResidualEncoderUNet`` of
``dynamic-network-architectures`` as nnU-Net's ResEnc planners call it: residual blocks of ResNet-D (strides sit in the
first convolution, the shortcut pools before it projects), instance normalisation, leaky ReLU, one convolution per stage
of the decoder. Modules carry the names of the released form, so that its checkpoints can be taken up by key.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medcontext.networks.spec import NetworkSpec, Published, Scale, Settings, Size, Spacing
from medcontext.networks.stages import double_features, plan_stages, require_strides_fit
from medcontext.networks.tokens import triple

SLOPE = 0.01
"""Of the leaky ReLU where it is negative."""

BLOCKS: dict[Scale, list[int]] = {"tiny": [1, 1, 2], "small": [1, 2, 2, 2], "full": [1, 3, 4, 6, 6, 6]}
"""Residual blocks per stage; ``full`` as in the presets M, L and XL."""

PUBLISHED: Settings = {
    "features": [32, 64, 128, 256, 320, 320],
    "strides": [[1, 1, 1], *[[2, 2, 2]] * 5],
    "kernels": [[3, 3, 3]] * 6,
    "blocks": BLOCKS["full"],
    "deep_supervision": False,
}


class ConvNorm(nn.Module):
    """Convolution, instance normalisation and, unless told otherwise, leaky ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int] = (1, 1, 1),
        *,
        bias: bool = True,
        activation: bool = True,
    ) -> None:
        super().__init__()
        padding = triple([side // 2 for side in kernel])
        self.conv = nn.Conv3d(inputs, outputs, triple(kernel), triple(stride), padding, bias=bias)
        self.norm = nn.InstanceNorm3d(outputs, affine=True)
        self.nonlin = nn.LeakyReLU(SLOPE, inplace=True) if activation else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """``(B, inputs, D, H, W)`` to ``(B, outputs, D / stride, ...)``."""
        normalised: Tensor = self.nonlin(self.norm(self.conv(features)))
        return normalised


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which pools where they stride and projects where features change."""

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, kernel, stride)
        self.conv2 = ConvNorm(outputs, outputs, kernel, activation=False)
        shortcut: list[nn.Module] = []
        if max(stride) > 1:
            shortcut.append(nn.AvgPool3d(triple(stride)))
        if inputs != outputs:
            shortcut.append(ConvNorm(inputs, outputs, (1, 1, 1), bias=False, activation=False))
        self.skip = nn.Sequential(*shortcut)
        self.nonlin2 = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, inputs, D, H, W)`` to ``(B, outputs, D / stride, ...)``."""
        summed: Tensor = self.nonlin2(self.conv2(self.conv1(features)) + self.skip(features))
        return summed


class Encoder(nn.Module):
    """A stem at full resolution, then stages of residual blocks, the first block of each with the stage's stride."""

    def __init__(self, channels: int, settings: Settings) -> None:
        super().__init__()
        features, kernels = settings["features"], settings["kernels"]
        self.stem = _named("convs", [ConvNorm(channels, features[0], kernels[0])])
        stages = []
        inputs = features[0]
        for outputs, kernel, stride, count in zip(
            features, kernels, settings["strides"], settings["blocks"], strict=True
        ):
            blocks = [ResidualBlock(inputs, outputs, kernel, stride)]
            blocks += [ResidualBlock(outputs, outputs, kernel, (1, 1, 1)) for _ in range(count - 1)]
            stages.append(_named("blocks", blocks))
            inputs = outputs
        self.stages = nn.Sequential(*stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of every stage, finest first, for an image ``(B, C, D, H, W)``."""
        features = self.stem(image)
        return [features := stage(features) for stage in self.stages]


class Decoder(nn.Module):
    """Per stage, deepest first: a transposed convolution, the encoder's features joined, one convolution, a head."""

    def __init__(self, classes: int, settings: Settings) -> None:
        super().__init__()
        features, kernels, strides = (settings[key] for key in ("features", "kernels", "strides"))
        upsamplings, stages = [], []
        heads: dict[str, nn.Module] = {}
        deepest = len(features) - 1
        for order, level in enumerate(range(deepest - 1, -1, -1)):
            outputs, stride = features[level], triple(strides[level + 1])
            upsamplings.append(nn.ConvTranspose3d(features[level + 1], outputs, stride, stride))
            stages.append(_named("convs", [ConvNorm(2 * outputs, outputs, kernels[level])]))
            if level == 0 or settings["deep_supervision"]:
                heads[str(order)] = nn.Conv3d(outputs, classes, 1)
        self.transpconvs = nn.ModuleList(upsamplings)
        self.stages = nn.ModuleList(stages)
        self.seg_layers = nn.ModuleDict(heads)

    def forward(self, skips: list[Tensor]) -> list[Tensor]:
        """Logits of every head, finest first, from the encoder's features."""
        features = skips[-1]
        logits: list[Tensor] = []
        for order, (upsample, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            features = stage(torch.cat((upsample(features), skips[-2 - order]), dim=1))
            if str(order) in self.seg_layers:
                logits.insert(0, self.seg_layers[str(order)](features))
        return logits


class ResidualEncoderUNet(nn.Module):
    """The whole network; with deep supervision it gives a list of logits, finest first, else the finest alone."""

    def __init__(self, channels: int, classes: int, settings: Settings) -> None:
        super().__init__()
        self.encoder = Encoder(channels, settings)
        self.decoder = Decoder(classes, settings)
        self._deep_supervision = bool(settings["deep_supervision"])
        self.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits ``(B, K, D, H, W)``, or a list of them, for an image ``(B, C, D, H, W)``."""
        logits: list[Tensor] = self.decoder(self.encoder(image))
        return logits if self._deep_supervision else logits[0]


def resenc_unet_settings(patch: Size, spacing: Spacing, scale: Scale) -> Settings:
    """Stages, kernels and features as for the plain U-Net, and the blocks of each stage."""
    first, most = {"tiny": (4, 8), "small": (16, 128), "full": (32, 320)}[scale]
    strides, kernels = plan_stages(patch, spacing, len(BLOCKS[scale]))
    return {
        "features": double_features(first, most, len(strides)),
        "strides": strides,
        "kernels": kernels,
        "blocks": BLOCKS[scale][: len(strides)],
        "deep_supervision": False,
    }


def build_resenc_unet(channels: int, classes: int, patch: Size, settings: Settings) -> nn.Module:
    """The residual-encoder U-Net, for any patch that its strides divide."""
    require_strides_fit("resenc_unet", patch, settings["strides"])
    return ResidualEncoderUNet(channels, classes, settings)


def _named(name: str, modules: Sequence[nn.Module]) -> nn.Sequential:
    """A sequence one level down under a name, as in the released form's keys: ``stem.convs.0``."""
    return nn.Sequential(OrderedDict([(name, nn.Sequential(*modules))]))


def _initialise(module: nn.Module) -> None:
    """He's normal weights, biases of zero, and residual branches that start at zero."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ResidualBlock):
        nn.init.zeros_(module.conv2.norm.weight)
        nn.init.zeros_(module.conv2.norm.bias)


SPEC = NetworkSpec(
    settings=resenc_unet_settings,
    build=build_resenc_unet,
    learning_rate=1e-3,
    published={
        "synapse": Published(
            1,
            14,
            (96, 96, 96),
            PUBLISHED,
            102_359_430,
            "released code, dynamic-network-architectures 0.4.4, with the heads of deep supervision",
        )
    },
    deep_supervision=True,
    export="torch.export",
    compile=True,
)

"""UNETR++ (Shaker et al., "UNETR++: Delving into Efficient and Accurate 3D Medical Image Segmentation").

arXiv 2212.04497. Written from the paper; sizes and settings from the authors' code, Amshaker/unetr_plus_plus on GitHub,
whose parameter counts it has exactly. Two deliberate differences: what a token gets by spatial attention stays with it
(that code has tokens before channels when it reshapes, which deals it out to other tokens; in issue 62 its authors
agree, and measure 87.1 against 87.2 Dice), and linear layers of the attention are initialised alike in encoder and
decoder (there, both have the same initialisation, and only the encoder's is called).

Patches of the embedding do not overlap: nothing of a hidden token's content enters the encoder. What still sees the
whole image is the skip at full resolution, ``encoder1``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from medcontext.errors import MedContextError
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
from medcontext.networks.tokens import fit_strides, token_grids, triple


class EfficientPairedAttention(nn.Module):
    """Efficient paired attention: spatial and channel attention that share queries and keys ("EPA block").

    Spatial attention is linear in the number of tokens N: keys and values are projected from N to P places.

    Args:
        width: Features C of a token.
        tokens: Their number N, which the projections depend on.
        places: P.
        settings: See :func:`build_unetr_pp`.
    """

    def __init__(self, width: int, tokens: int, places: int, settings: Settings) -> None:
        super().__init__()
        self.heads: int = settings["heads"]
        self.dropout: float = settings["dropout"]
        self.spatial_temperature = nn.Parameter(torch.ones(self.heads, 1, 1))
        self.channel_temperature = nn.Parameter(torch.ones(self.heads, 1, 1))
        self.project = nn.Linear(width, 4 * width, bias=False)
        bias: bool = settings["projection_bias"]
        self.project_key = nn.Linear(tokens, places, bias)
        self.project_value = self.project_key if settings["shared_projection"] else nn.Linear(tokens, places, bias)
        self.concatenate = settings["fusion"] == "concatenate"
        if self.concatenate:
            self.spatial_output = nn.Linear(width, width // 2)
            self.channel_output = nn.Linear(width, width // 2)
        self.apply(_initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, N, C)`` to the same."""
        # (B, heads, channels of a head, N)
        query, key, channel_value, spatial_value = rearrange(
            self.project(tokens), "b n (part heads c) -> part b heads c n", part=4, heads=self.heads
        ).unbind(0)
        places, values = self.project_key(key), self.project_value(spatial_value)
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        dropout = self.dropout if self.training else 0.0
        spatial = F.scaled_dot_product_attention(
            query.mT * self.spatial_temperature, places.mT, values.mT, dropout_p=dropout, scale=1.0
        )
        channel = F.scaled_dot_product_attention(
            query * self.channel_temperature, key, channel_value, dropout_p=dropout, scale=1.0
        )
        spatial = rearrange(spatial, "b heads n c -> b n (heads c)")
        channel = rearrange(channel, "b heads c n -> b n (heads c)")
        if self.concatenate:
            return torch.cat([self.spatial_output(spatial), self.channel_output(channel)], dim=-1)
        return spatial + channel


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _residual_block(channels: int, width: int, norm: str) -> nn.Module:
    from monai.networks.blocks.dynunet_block import UnetResBlock

    block: nn.Module = UnetResBlock(3, channels, width, kernel_size=3, stride=1, norm_name=norm)
    return block


class TransformerBlock(nn.Module):
    """Position, efficient paired attention, and convolutions for detail, each added to its input ("EPA block")."""

    def __init__(self, width: int, grid: Size, places: int, settings: Settings) -> None:
        super().__init__()
        count, dropout = math.prod(grid), settings["dropout"]
        self.position = nn.Parameter(torch.zeros(1, count, width))
        self.norm = nn.LayerNorm(width)
        self.attention = EfficientPairedAttention(width, count, places, settings)
        self.scale = nn.Parameter(torch.full((width,), 1e-6))
        convolutions = (_residual_block(width, width, settings["norm"]) for _ in range(settings["convolutions"]))
        self.detail = nn.Sequential(*convolutions, nn.Dropout3d(dropout), nn.Conv3d(width, width, 1))

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, d, h, w)`` to the same."""
        tokens = rearrange(features, "b c d h w -> b (d h w) c") + self.position
        tokens = tokens + self.scale * self.attention(self.norm(tokens))
        features = tokens.mT.reshape(features.shape)
        detail: Tensor = self.detail(features)
        return features + detail


def _stage(depth: int, width: int, grid: Size, places: int, settings: Settings) -> nn.Sequential:
    return nn.Sequential(*(TransformerBlock(width, grid, places, settings) for _ in range(depth)))


def _reducing(channels: int, width: int, stride: Size) -> nn.Conv3d:
    return nn.Conv3d(channels, width, stride, stride, bias=False)


def _expanding(channels: int, width: int, stride: Size) -> nn.ConvTranspose3d:
    return nn.ConvTranspose3d(channels, width, stride, stride, bias=False)


class UNETRPlusPlus(nn.Module):
    """UNETR++ for one size of patch; see :func:`build_unetr_pp`."""

    def __init__(self, channels: int, classes: int, patch: Size, settings: Settings) -> None:
        super().__init__()
        self.patch = triple(patch)
        self.deep_supervision: bool = settings["deep_supervision"]
        strides = [triple(stride) for stride in settings["strides"]]
        grids, widths, finest = token_grids(patch, strides), settings["widths"], settings["features"]
        inner = range(len(widths) - 1)
        groups = [math.gcd(channels, widths[0]), *(math.gcd(*widths[index : index + 2]) for index in inner)]
        self.embedding = _reducing(channels, widths[0], strides[0])
        self.down = nn.ModuleList(_reducing(widths[i], widths[i + 1], strides[i + 1]) for i in inner)
        self.norms = nn.ModuleList(nn.GroupNorm(*sizes) for sizes in zip(groups, widths, strict=True))
        stages = zip(settings["depths"], widths, grids, settings["places"], strict=True)
        self.encoder = nn.ModuleList(_stage(*sizes, settings) for sizes in stages)
        self.encoder1 = _residual_block(channels, finest, "instance")
        depth, places = settings["decoder_depth"], settings["decoder_places"]
        self.up = nn.ModuleList(_expanding(widths[i + 1], widths[i], strides[i + 1]) for i in inner[::-1])
        self.decoder = nn.ModuleList(_stage(depth, widths[i], grids[i], places, settings) for i in inner[::-1])
        self.up1 = _expanding(widths[0], finest, strides[0])
        self.decoder1 = _residual_block(finest, finest, "instance")
        supervised = [finest, *widths[:-1][:2]] if self.deep_supervision else [finest]
        self.heads = nn.ModuleList(nn.Conv3d(width, classes, 1) for width in supervised)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """``(B, C, D, H, W)`` to logits ``(B, K, D, H, W)``, or a list of them, finest first."""
        if image.shape[2:] != self.patch:
            raise MedContextError(
                "UNETR++ takes only the size of patch that it is built for.",
                found=str(list(image.shape[2:])),
                expected=str(list(self.patch)),
                remedy="give it such patches, or build it for these",
            )
        features = self.encoder[0](self.norms[0](self.embedding(image)))
        skips = []
        for down, norm, stage in zip(self.down, self.norms[1:], self.encoder[1:], strict=True):
            skips.append(features)
            features = stage(norm(down(features)))
        decoded: list[Tensor] = []
        for up, stage in zip(self.up, self.decoder, strict=True):
            features = stage(up(features) + skips.pop())
            decoded.insert(0, features)
        decoded.insert(0, self.decoder1(self.up1(features) + self.encoder1(image)))
        logits = [head(features) for head, features in zip(self.heads, decoded, strict=False)]
        return logits if self.deep_supervision else logits[0]


def build_unetr_pp(channels: int, classes: int, patch: Size, settings: Settings) -> nn.Module:
    """UNETR++ for one size of patch, which its positions and projections depend on.

    Settings: ``strides``: (D, H, W) per stage, of the embedding first; ``widths``, ``depths``: features and blocks per
    stage; ``features``: those at full resolution; ``heads``; ``places``: what spatial attention projects keys and
    values to, per stage; ``decoder_depth``, ``decoder_places``: the same for all stages of the decoder;
    ``shared_projection``: keys and values have one; ``projection_bias``; ``fusion`` of the two attentions:
    ``concatenate`` or ``sum``; ``convolutions``: residual blocks after attention; ``norm`` of these: ``batch`` or
    ``instance``; ``dropout`` of attention weights and of channels before the last convolution of a block;
    ``deep_supervision``: logits of the last three decoder stages.

    Raises:
        MedContextError: The strides do not divide the patch, or leave a single token of it.
    """
    whole = triple([math.prod(steps) for steps in zip(*settings["strides"], strict=True)])
    require_multiples("unetr_pp", patch, whole)
    require_deep_voxels("unetr_pp", patch, whole)
    return UNETRPlusPlus(channels, classes, patch, settings)


def unetr_pp_settings(patch: Size, spacing: Spacing, scale: Scale) -> Settings:
    """Settings for a patch (D, H, W) at a spacing in mm; ``full`` has the published widths and depths."""
    width, stages, depth = {"tiny": (12, 3, 1), "small": (16, 4, 2), "full": (32, 4, 3)}[scale]
    strides = fit_strides(patch, spacing, stages)
    tokens = [math.prod(grid) for grid in token_grids(patch, strides)]
    return _SYNAPSE | {
        "strides": strides,
        "widths": [width * 2**stage for stage in range(len(strides))],
        "depths": [depth] * len(strides),
        "features": width // 2,
        "places": [max(1, min(_PLACES, count // 2)) for count in tokens],
        "decoder_depth": depth,
        "deep_supervision": False,
    }


_PLACES = 64

_SYNAPSE: Settings = {
    "strides": [[2, 4, 4], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    "widths": [32, 64, 128, 256],
    "depths": [3, 3, 3, 3],
    "features": 16,
    "heads": 4,
    "places": [_PLACES, _PLACES, _PLACES, 32],
    "decoder_depth": 3,
    "decoder_places": _PLACES,
    "shared_projection": True,
    "projection_bias": True,
    "fusion": "concatenate",
    "convolutions": 1,
    "norm": "batch",
    "dropout": 0.1,
    "deep_supervision": True,
}
_ACDC: Settings = _SYNAPSE | {
    "strides": [[1, 4, 4], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    "shared_projection": False,
    "convolutions": 2,
}
_BRATS: Settings = _SYNAPSE | {
    "strides": [[4, 4, 4], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    "projection_bias": False,
    "fusion": "sum",
}

SPEC = NetworkSpec(
    settings=unetr_pp_settings,
    build=build_unetr_pp,
    learning_rate=5e-4,
    published={
        "synapse": Published(1, 14, (64, 128, 128), _SYNAPSE, 42_952_850, "released code"),
        "acdc": Published(1, 4, (16, 160, 160), _ACDC, 66_796_404, "released code"),
        "brats": Published(4, 4, (128, 128, 128), _BRATS, 42_647_604, "released code"),
    },
    patch_embedding="embedding",
    deep_supervision=True,
    export="torch.export",
    compile=True,
)

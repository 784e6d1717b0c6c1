"""nnFormer (Zhou et al., "nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer", arXiv 2109.03201).

Written from the paper; sizes and settings from the authors' code (github.com/282857341/nnFormer), whose parameter
counts it has exactly. Where that code slips, this follows the paper: every offset within a window has a position bias
of its own (there, several share one), and tokens that the shift brings into a window from the far side, or that only
fill it up, are not attended to (there, filling is everywhere, and in the ACDC setting the far side as well).

Everything passes through the embedding, but its convolutions overlap: along an axis of stride 4 a token sees 9 voxels
before its own 4 and 6 after them. So a visible token still sees that far into a hidden part beside it, which is the
whole of a hidden block of 8 voxels, and all but the core of larger ones.
"""

from __future__ import annotations

import itertools
import math

import torch.nn.functional as F
from torch import Tensor, nn

from medcontext.networks.spec import NetworkSpec, Published, Scale, Settings, Size, Spacing, require_multiples
from medcontext.networks.tokens import fit_strides, token_grids, triple
from medcontext.networks.volume_attention import VolumeAttention


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of ``(B, C, D, H, W)``, at every place on its own."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.movedim(1, -1)).movedim(-1, 1)


def embedding_block(channels: int, width: int, stride: Size) -> nn.Sequential:
    """``(B, channels, D, H, W)`` to tokens ``(B, width, d, h, w)`` by overlapping convolutions ("Encoder").

    Strides of 4 are two of 2, strides of 2 are taken by the first.
    """
    first = triple([min(step, 2) for step in stride])
    second = triple([step // taken for step, taken in zip(stride, first, strict=True)])
    half = width // 2
    return nn.Sequential(
        *(nn.Conv3d(channels, half, 3, first, 1), nn.GELU(), ChannelNorm(half)),
        *(nn.Conv3d(half, half, 3, 1, 1), nn.GELU(), ChannelNorm(half)),
        *(nn.Conv3d(half, width, 3, second, 1), nn.GELU(), ChannelNorm(width)),
        *(nn.Conv3d(width, width, 3, 1, 1), ChannelNorm(width)),
    )


class StochasticDepth(nn.Module):
    """Leaves a residual branch out for some samples during training (Huang et al., arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return branch
        return branch * F.dropout(branch.new_ones(branch.shape[0], 1, 1, 1, 1), self.rate)


class TransformerBlock(nn.Module):
    """Attention within local volumes, then an MLP, each normalised before and added to its input ("Encoder").

    ``skip_attention``: the decoder's tokens, as they are, ask, and the encoder's of the same stage answer ("Decoder").
    """

    def __init__(self, width: int, attention: VolumeAttention, skip_attention: bool, rate: float, settings: Settings):
        super().__init__()
        dropout, hidden = settings["dropout"], settings["mlp_ratio"] * width
        self.norm1 = nn.LayerNorm(width)
        self.project = nn.Linear(width, (2 if skip_attention else 3) * width)
        self.attention = attention
        self.output = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.stochastic_depth = StochasticDepth(rate)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            *(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout)),
            *(nn.Linear(hidden, width), nn.Dropout(dropout)),
        )

    def forward(self, tokens: Tensor, skip: Tensor | None = None) -> Tensor:
        """``(B, d, h, w, C)`` to the same; ``skip``, for skip attention, likewise."""
        if skip is None:
            query, key, value = self.project(self.norm1(tokens)).chunk(3, dim=-1)
        else:
            query = self.norm1(tokens)
            key, value = self.project(self.norm1(skip)).chunk(2, dim=-1)
            tokens = tokens + skip
        tokens = tokens + self.stochastic_depth(self.output(self.attention(query, key, value)))
        tokens = tokens + self.stochastic_depth(self.mlp(self.norm2(tokens)))
        return tokens


class Stage(nn.Module):
    """The blocks of one resolution: every second one shifted in the encoder, all but the first in the decoder."""

    def __init__(self, index: int, rates: list[float], decoder: bool, settings: Settings) -> None:
        super().__init__()
        width = settings["embedding"] * 2**index
        heads = settings["decoder_heads" if decoder else "heads"][index]
        window, dropout = triple(settings["windows"][index]), settings["dropout"]
        self.blocks = nn.ModuleList()
        for place, rate in enumerate(rates):
            shifted = place > 0 if decoder else place % 2 == 1
            attention = VolumeAttention(heads, window, shifted, dropout)
            self.blocks.append(TransformerBlock(width, attention, decoder and place == 0, rate, settings))

    def forward(self, tokens: Tensor, skip: Tensor | None = None) -> Tensor:
        """``(B, d, h, w, C)`` to the same."""
        for place, block in enumerate(self.blocks):
            tokens = block(tokens, skip if place == 0 else None)
        return tokens


class DownSampling(nn.Module):
    """``(B, d, h, w, C)`` to ``(B, d', h', w', 2 C)`` by a convolution: axes of stride 2 are halved, rounding down."""

    def __init__(self, width: int, stride: Size) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.reduce = nn.Conv3d(width, 2 * width, triple([3 if step == 2 else 1 for step in stride]), stride)

    def forward(self, tokens: Tensor) -> Tensor:
        features = self.norm(F.gelu(tokens)).movedim(-1, 1)
        sides = zip(features.shape[2:], self.reduce.stride, strict=True)
        d, h, w = (1 if step == 2 and count % 2 == 0 else 0 for count, step in sides)
        reduced: Tensor = self.reduce(F.pad(features, (w, 0, h, 0, d, 0)))
        return reduced.movedim(1, -1)


class UpSampling(nn.Module):
    """``(B, d', h', w', 2 C)`` to ``(B, d, h, w, C)``, the size of the stage above, by a transposed convolution."""

    def __init__(self, width: int, stride: Size) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.expand = nn.ConvTranspose3d(2 * width, width, stride, stride)

    def forward(self, tokens: Tensor, grid: Size) -> Tensor:
        expanded: Tensor = self.expand(self.norm(tokens).movedim(-1, 1), output_size=list(grid))
        return expanded.movedim(1, -1)


class NNFormer(nn.Module):
    """nnFormer for any patch that its strides allow; see :func:`build_nnformer`."""

    def __init__(self, channels: int, classes: int, settings: Settings) -> None:
        super().__init__()
        self.strides = [triple(stride) for stride in settings["strides"]]
        self.deep_supervision: bool = settings["deep_supervision"]
        depths, rate = settings["depths"], settings["stochastic_depth"]
        widths = [settings["embedding"] * 2**index for index in range(len(depths))]
        inner = range(len(depths) - 1)
        upwards = inner[::-1]
        self.embedding = embedding_block(channels, widths[0], self.strides[0])
        self.encoder = nn.ModuleList(
            Stage(index, rates, False, settings) for index, rates in enumerate(_rates(rate, depths))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.down = nn.ModuleList(DownSampling(widths[index], self.strides[index + 1]) for index in inner)
        self.up = nn.ModuleList(UpSampling(widths[index], self.strides[index + 1]) for index in upwards)
        ascending = zip(upwards, _rates(rate, [depths[index] for index in upwards]), strict=True)
        self.decoder = nn.ModuleList(Stage(index, rates, True, settings) for index, rates in ascending)
        supervised = widths[:-1] if self.deep_supervision else widths[:1]
        stride = self.strides[0]
        self.heads = nn.ModuleList(nn.ConvTranspose3d(width, classes, stride, stride) for width in supervised)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """``(B, C, D, H, W)`` to logits ``(B, K, D, H, W)``, or a list of them, finest first."""
        _require_size(triple(image.shape[2:]), self.strides)
        tokens = self.encoder[0](self.embedding(image).movedim(1, -1))
        skips = [self.norms[0](tokens)]
        for down, stage, norm in zip(self.down, self.encoder[1:], self.norms[1:], strict=True):
            tokens = stage(down(tokens))
            skips.append(norm(tokens))
        tokens = skips.pop()
        decoded: list[Tensor] = []
        for up, stage in zip(self.up, self.decoder, strict=True):
            skip = skips.pop()
            tokens = stage(up(tokens, triple(skip.shape[1:4])), skip)
            decoded.insert(0, tokens)
        logits = [head(tokens.movedim(-1, 1)) for head, tokens in zip(self.heads, decoded, strict=False)]
        return logits if self.deep_supervision else logits[0]


def _rates(most: float, depths: list[int]) -> list[list[float]]:
    """Rates of stochastic depth by stage and block, rising evenly from 0 to the most."""
    last = max(1, sum(depths) - 1)
    rates = (most * place / last for place in itertools.count())
    return [list(itertools.islice(rates, depth)) for depth in depths]


def _require_size(size: Size, strides: list[Size]) -> None:
    """Axes are whole tokens, and at least one token is left of them at the last stage."""
    whole = [math.prod(steps) for steps in zip(*strides, strict=True)]
    multiples = [step if count >= most else most for count, step, most in zip(size, strides[0], whole, strict=True)]
    require_multiples("nnformer", size, triple(multiples))


def build_nnformer(channels: int, classes: int, patch: Size, settings: Settings) -> nn.Module:
    """nnFormer, built for one patch and applicable to every other that its strides allow.

    Settings: ``embedding``: features of a token at the first stage, doubled at every further one; ``strides``: (D, H,
    W) per stage, of the embedding first (1, 2 or 4), then 1 or 2; ``depths``, ``windows``, ``heads``: blocks, sides (D,
    H, W) of a local volume in tokens, and attention heads, per stage, the decoder having the same but for its
    ``decoder_heads``; ``mlp_ratio``; ``stochastic_depth``: its rate at the last block of encoder and decoder;
    ``dropout``; ``deep_supervision``: logits of every decoder stage.

    Raises:
        MedContextError: The strides do not allow the patch.
    """
    _require_size(patch, [triple(stride) for stride in settings["strides"]])
    return NNFormer(channels, classes, settings)


def _side(count: int, preferred: int) -> int:
    """Side of a local volume along an axis of ``count`` tokens: one near the preferred that divides it, if any."""
    if count <= preferred:
        return count
    near = [side for side in range(3 * preferred // 4, 5 * preferred // 4 + 1) if count % side == 0]
    return min(near, key=lambda side: abs(side - preferred), default=preferred)


def nnformer_settings(patch: Size, spacing: Spacing, scale: Scale) -> Settings:
    """Settings for a patch (D, H, W) at a spacing in mm; ``full`` has the published widths of ACDC and BraTS.

    Local volumes have about 4 tokens a side, and up to about 8, mostly the whole grid, at the last two stages.
    """
    embedding, stages = {"tiny": (12, 3), "small": (48, 4), "full": (96, 4)}[scale]
    strides = fit_strides(patch, spacing, stages)
    stages = len(strides)
    preferred = [4] * (stages - 2) + [8] * 2
    grids = zip(token_grids(patch, strides), preferred, strict=True)
    heads = [(1 if scale == "tiny" else 3) * 2**stage for stage in range(stages)]
    return _RATES | {
        "embedding": embedding,
        "strides": strides,
        "depths": [2] * stages,
        "windows": [[_side(count, side) for count in grid] for grid, side in grids],
        "heads": heads,
        "decoder_heads": heads[:-1],
        "deep_supervision": False,
    }


_RATES: Settings = {"mlp_ratio": 4, "stochastic_depth": 0.2, "dropout": 0.0}

_SYNAPSE: Settings = _RATES | {
    "embedding": 192,
    "strides": [[2, 4, 4], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    "depths": [2, 2, 2, 2],
    "windows": [[4, 4, 4], [4, 4, 4], [8, 8, 8], [4, 4, 4]],
    "heads": [6, 12, 24, 48],
    "decoder_heads": [6, 12, 24],
    "deep_supervision": True,
}
_ACDC: Settings = _SYNAPSE | {
    "embedding": 96,
    "strides": [[1, 4, 4], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
    "windows": [[3, 5, 5], [3, 5, 5], [7, 10, 10], [3, 5, 5]],
    "heads": [3, 6, 12, 24],
    "decoder_heads": [3, 6, 12],
}
_BRATS: Settings = _SYNAPSE | {
    "embedding": 96,
    "strides": [[4, 4, 4], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    "heads": [3, 6, 12, 24],
}
_SOURCE = "released code, with its deep supervision, which its ACDC and BraTS trainers switch off"

SPEC = NetworkSpec(
    settings=nnformer_settings,
    build=build_nnformer,
    learning_rate=5e-4,
    published={
        "synapse": Published(1, 14, (64, 128, 128), _SYNAPSE, 150_054_210, _SOURCE),
        "acdc": Published(1, 4, (14, 160, 160), _ACDC, 37_197_072, _SOURCE),
        "brats": Published(4, 4, (128, 128, 128), _BRATS, 37_754_190, _SOURCE),
    },
    patch_embedding="embedding",
    deep_supervision=True,
    export="torch.export",
    compile=True,
)

"""Attention within local volumes of a grid of tokens, plain and shifted (nnFormer, arXiv 2109.03201, after Swin)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from medcontext.networks.spec import Size
from medcontext.networks.tokens import triple


class VolumeAttention(nn.Module):
    """Attention within local volumes of ``window`` tokens, with a relative position bias (LV-MSA, "Encoder").

    ``shifted``: the volumes start half a window later (SLV-MSA). A window as large as the grid gives global attention
    (GV-MSA, "Bottleneck"), and there is then nothing to shift. Grids that windows do not divide are filled up with
    tokens that nothing attends to.
    """

    relative_index: Tensor

    def __init__(self, heads: int, window: Size, shifted: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.window, self.shifted, self.dropout = heads, window, shifted, dropout
        self.relative_bias = nn.Parameter(torch.empty(math.prod(2 * side - 1 for side in window), heads))
        nn.init.trunc_normal_(self.relative_bias, std=0.02)
        self.register_buffer("relative_index", relative_index(window), persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``(B, d, h, w, C)`` each, and so is the result."""
        grid = triple(query.shape[1:4])
        pairs = zip(grid, self.window, strict=True)
        shift = triple([side // 2 if self.shifted and count > side else 0 for count, side in pairs])
        bias = self.relative_bias[self.relative_index].permute(2, 0, 1)[None]
        apart = kept_apart(grid, self.window, shift, query)
        layout = "(b w) heads n c"
        if apart is not None:
            # Windows differ in what they may attend to, samples do not: as heads, windows share this among samples.
            bias = rearrange(bias.masked_fill(apart[:, None], -math.inf), "w heads n m -> 1 (w heads) n m")
            layout = "b (w heads) n c"
        q, k, v = (
            rearrange(to_windows(tokens, self.window, shift), f"b w n (heads c) -> {layout}", heads=self.heads)
            for tokens in (query, key, value)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        windows = rearrange(mixed, f"{layout} -> b w n (heads c)", b=query.shape[0], heads=self.heads)
        return from_windows(windows, grid, self.window, shift)


def relative_index(window: Size) -> Tensor:
    """Row of the position bias for every pair of tokens of a window ``(N, N)``: one for each offset in (D, H, W)."""
    places = torch.cartesian_prod(*(torch.arange(side) for side in window))
    d, h, w = (places[:, None] - places[None, :] + torch.tensor(window) - 1).unbind(-1)
    return (d * (2 * window[1] - 1) + h) * (2 * window[2] - 1) + w


def to_windows(tokens: Tensor, window: Size, shift: Size) -> Tensor:
    """``(B, d, h, w, C)`` to ``(B, windows, tokens of a window, C)``, rolled by ``shift`` and filled up with zeros."""
    d, h, w = ((-count) % side for count, side in zip(tokens.shape[1:4], window, strict=True))
    tokens = F.pad(tokens, (0, 0, 0, w, 0, h, 0, d))
    tokens = tokens.roll([-step for step in shift], (1, 2, 3)) if any(shift) else tokens
    x, y, z = window
    return rearrange(tokens, "b (d x) (h y) (w z) c -> b (d h w) (x y z) c", x=x, y=y, z=z)


def from_windows(windows: Tensor, grid: Size, window: Size, shift: Size) -> Tensor:
    """Undo :func:`to_windows`."""
    d, h, w = (-(-count // side) for count, side in zip(grid, window, strict=True))
    x, y, z = window
    tokens = rearrange(windows, "b (d h w) (x y z) c -> b (d x) (h y) (w z) c", d=d, h=h, w=w, x=x, y=y, z=z)
    tokens = tokens.roll(shift, (1, 2, 3)) if any(shift) else tokens
    return tokens[:, : grid[0], : grid[1], : grid[2]]


def kept_apart(grid: Size, window: Size, shift: Size, tokens: Tensor) -> Tensor | None:
    """Which pairs of a window's tokens must not attend to each other ``(windows, N, N)``, on the device of ``tokens``;
    None: all of them may.

    Tokens that the roll brought in from the far side are kept apart from the others, along each axis, and so are
    those that only fill up the grid.
    """
    if not any(shift) and all(count % side == 0 for count, side in zip(grid, window, strict=True)):
        return None
    # Made from the tokens, not on their device by name: a trace would keep the name, and run on that device alone.
    region = tokens.new_zeros((1, 1, 1), dtype=torch.int64)
    for axis, (count, side, step) in enumerate(zip(grid, window, shift, strict=True)):
        filled = -(-count // side) * side
        origin = tokens.new_ones(filled, dtype=torch.int64).cumsum(0) - 1 + step
        kind = (origin >= filled) + 2 * (origin % filled >= count)
        region = 4 * region + kind.view([-1 if other == axis else 1 for other in range(3)])
    regions = to_windows(region[None, ..., None], window, (0, 0, 0))[0, :, :, 0]
    return regions[:, :, None] != regions[:, None, :]

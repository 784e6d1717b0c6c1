"""Which patches of a volume are hidden. A mask is data: a boolean grid, True where hidden, one per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from medcontext.method.presets import MethodConfig

Size = tuple[int, int, int]


def volume_size(image: Tensor) -> Size:
    """(D, H, W) of a batch ``(B, C, D, H, W)``."""
    d, h, w = image.shape[2:]
    return d, h, w


def mask_grid(volume: Size, patch: Size) -> Size:
    """How many patches lie along each axis of a volume; the last of an axis may be cut short by the border."""
    d, h, w = (-(-size // step) for size, step in zip(volume, patch, strict=True))
    return d, h, w


def draw_mask(config: MethodConfig, batch: int, grid: Size, generator: torch.Generator) -> Tensor:
    """Draw one mask per sample.

    Each hides exactly ``round(ratio * n)`` of its ``n`` patches (or columns of patches, for tubes), but never all of
    them and, at a ratio above zero, never none; all choices of that many are equally likely.

    Args:
        config: Kind of mask, ratio, and the tube's axis.
        batch: Number of samples.
        grid: Patches along (D, H, W).
        generator: Source of randomness, on the CPU: the same masks on every device.

    Returns:
        ``(batch, *grid)`` boolean on the CPU, True where hidden.
    """
    if not config.active:
        return torch.zeros(batch, *grid, dtype=torch.bool)
    if config.mask == "tube":
        cross_section = [1 if axis == config.tube_axis else count for axis, count in enumerate(grid)]
        return _draw_exactly(config.ratio, batch, cross_section, generator).expand(batch, *grid)
    return _draw_exactly(config.ratio, batch, list(grid), generator)


def _draw_exactly(ratio: float, batch: int, shape: list[int], generator: torch.Generator) -> Tensor:
    places = torch.Size(shape).numel()
    hidden = min(max(round(ratio * places), 1), places - 1)
    order = torch.rand(batch, places, generator=generator).argsort(dim=1)
    mask = torch.zeros(batch, places, dtype=torch.bool).scatter_(1, order[:, :hidden], True)
    return mask.view(batch, *shape)


def mask_to_voxels(mask: Tensor, patch: Size, volume: Size) -> Tensor:
    """Spread a mask ``(B, *grid)`` over the voxels it stands for: ``(B, 1, *volume)``."""
    for axis, step in enumerate(patch, start=1):
        mask = mask.repeat_interleave(step, dim=axis)
    d, h, w = volume
    return mask[:, None, :d, :h, :w]

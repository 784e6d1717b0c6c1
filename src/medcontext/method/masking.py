"""Which patches of a volume are hidden. A mask is data: a boolean grid, True where hidden, one per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from medcontext.errors import MedContextError
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
    """Draw the masks of a batch.

    Each hides exactly ``round(ratio * n)`` of its ``n`` patches (or columns of patches, for tubes), but never all of
    them and, at a ratio above zero, never none. Every patch is as likely as any other to be hidden.

    Args:
        config: Kind of mask, ratio, scope, and the tube's axis.
        batch: Number of samples.
        grid: Patches along (D, H, W).
        generator: Source of randomness, on the CPU: the same masks on every device.

    Returns:
        ``(batch, *grid)`` boolean on the CPU, True where hidden.

    Raises:
        MedContextError: There is one place only.
    """
    if not config.active:
        return torch.zeros(batch, *grid, dtype=torch.bool)
    masks = 1 if config.mask_per == "batch" else batch
    shape = list(grid)
    if config.mask == "tube":
        shape[config.tube_axis] = 1
    order = (
        _block_order(masks, shape, generator)
        if config.mask == "block"
        else torch.rand(masks, *shape, generator=generator)
    )
    places = order[0].numel()
    if places < 2:
        raise MedContextError(
            "With one patch to hide there is nothing left to see.",
            found=f"a grid of {list(grid)} patches, hidden by '{config.mask}'",
            expected="two patches or more across",
            remedy=f"make mask_patch {list(config.hidden_patch)} smaller, at most half of the volume",
        )
    low, high = config.ratio_range
    ratios = low + (high - low) * torch.rand(masks, generator=generator, dtype=torch.float64)
    hidden = (ratios * places).round().clamp(min=1, max=places - 1) * (ratios > 0)
    rank = order.flatten(1).argsort(dim=1).argsort(dim=1)
    return (rank < hidden[:, None]).view(masks, *shape).expand(batch, *grid)


def _block_order(masks: int, shape: list[int], generator: torch.Generator) -> Tensor:
    """Distance of every patch from a centre drawn at random: the nearest patches make a box.

    The grid is taken as closed (its last patch beside its first), without which patches in the middle would be hidden
    more often; among patches of one distance, the order is drawn.
    """
    distance = torch.zeros(masks, *shape)
    for axis, count in enumerate(shape):
        centre = torch.randint(count, (masks, 1), generator=generator)
        steps = (torch.arange(count) - centre) % count
        along = torch.minimum(steps, count - steps) / count
        view = [masks, 1, 1, 1]
        view[axis + 1] = count
        distance = torch.maximum(distance, along.view(view))
    return distance + 1e-3 * torch.rand(masks, *shape, generator=generator)


def mask_to_voxels(mask: Tensor, patch: Size, volume: Size) -> Tensor:
    """Spread a mask ``(B, *grid)`` over the voxels it stands for: ``(B, 1, *volume)``."""
    for axis, step in enumerate(patch, start=1):
        mask = mask.repeat_interleave(step, dim=axis)
    d, h, w = volume
    return mask[:, None, :d, :h, :w]

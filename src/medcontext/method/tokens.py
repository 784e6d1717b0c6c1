"""Where the tokens of a patch embedding lie in the volume, whatever their layout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from torch import Tensor, nn

from medcontext.errors import MedContextError
from medcontext.method.masking import Size


def mask_over_tokens(
    mask: Tensor, patch: Size, volume: Size, tokens: Tensor, embedding: nn.Module
) -> tuple[Tensor, int]:
    """Spread a mask over the tokens of a patch embedding.

    Args:
        mask: ``(B, *grid)`` boolean over patches of ``patch`` voxels.
        patch: Size of such a patch.
        volume: (D, H, W) of the image.
        tokens: Output of the embedding for that image: ``(B, E, d, h, w)``, ``(B, d, h, w, E)``, ``(B, N, E)`` or
            ``(B, E, N)``, the N tokens in the order of ``(d, h, w)``.
        embedding: The module that gave them.

    Returns:
        The mask, which broadcasts over ``tokens``, and the axis of the features.

    Raises:
        MedContextError: Another layout, or a patch that is no whole number of tokens along an axis.
    """
    first = isinstance(embedding, nn.Conv3d)
    axis = 1 if first else _feature_axis(tuple(tokens.shape), volume, embedding_width(embedding))
    places = tuple(size for place, size in enumerate(tokens.shape) if place not in (0, axis))
    grid = (places[0], places[1], places[2]) if len(places) == 3 else _grid_of(places[0], volume, patch)
    for place, (step, size, count) in enumerate(zip(patch, volume, grid, strict=True), start=1):
        mask = mask.repeat_interleave(_tokens_per_patch(patch, volume, grid, step * count, size), dim=place)
    d, h, w = grid
    mask = mask[:, :d, :h, :w]
    return (mask if len(places) == 3 else mask.flatten(1)).unsqueeze(axis), axis


def _feature_axis(shape: tuple[int, ...], volume: Size, width: int) -> int:
    """The axis of E: that which leaves places that the volume is a multiple of."""
    candidates = [axis for axis in (1, len(shape) - 1) if len(shape) in (3, 5) and shape[axis] == width]
    if len(shape) == 5:
        places = {1: shape[2:], 4: shape[1:4]}
        candidates = [
            axis
            for axis in candidates
            if not any(size % count for size, count in zip(volume, places[axis], strict=True))
        ]
    if len(candidates) != 1:
        raise MedContextError(
            "Tokens of this layout can't be hidden.",
            found=f"a patch embedding of {width} features that gives shape {shape} for a volume of {list(volume)}"
            + (", which can be read in two ways" if candidates else ""),
            expected="(B, E, d, h, w), (B, d, h, w, E), (B, N, E) or (B, E, N)",
            remedy="name another module of the embedding, or hide voxels: hide=voxels",
        )
    return candidates[0]


def _grid_of(tokens: int, volume: Size, patch: Size) -> Size:
    """The grid of so many tokens: its steps divide the volume and, if they can, the patch, and are the most alike."""
    grids = list(_grids(tokens, volume))
    if not grids:
        raise MedContextError(
            "The tokens don't lie on a grid of the volume.",
            found=f"{tokens} tokens for a volume of {list(volume)} voxels",
            expected="a whole number of voxels per token along each axis, and no class token",
            remedy="name the convolution inside the patch embedding, or hide voxels: hide=voxels",
        )

    def preference(grid: Size) -> tuple[bool, float]:
        steps = [size // count for size, count in zip(volume, grid, strict=True)]
        return any(step % length for step, length in zip(patch, steps, strict=True)), max(steps) / min(steps)

    return min(grids, key=preference)


def _grids(tokens: int, volume: Size) -> Iterator[Size]:
    divisors = [[count for count in range(1, size + 1) if size % count == 0] for size in volume]
    for d, h, w in product(*divisors):
        if d * h * w == tokens:
            yield d, h, w


def _tokens_per_patch(patch: Size, volume: Size, grid: Size, tokens_times_size: int, size: int) -> int:
    if tokens_times_size % size == 0 and tokens_times_size >= size:
        return tokens_times_size // size
    lengths = [length / count for length, count in zip(volume, grid, strict=True)]
    nearest = [max(1, round(step / length)) * length for step, length in zip(patch, lengths, strict=True)]
    raise MedContextError(
        "A hidden patch must be a whole number of tokens.",
        found=f"mask_patch = {list(patch)} with tokens of {[round(length, 2) for length in lengths]} voxels",
        remedy=f"set mask_patch to {[math.ceil(step) for step in nearest]}",
    )


def embedding_width(embedding: nn.Module) -> int:
    """Number of features per token: what the last convolution or linear layer of an embedding gives."""
    for module in reversed(list(embedding.modules())):
        width = getattr(module, "out_channels", getattr(module, "out_features", None))
        if isinstance(width, int):
            return width
    raise MedContextError(
        "The named patch embedding has no convolution or linear layer.",
        found=type(embedding).__name__,
        remedy="name another module, or hide voxels: hide=voxels",
    )

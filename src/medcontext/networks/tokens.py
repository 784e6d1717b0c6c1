"""How a patch is divided into tokens, and how their grid is halved from stage to stage of a transformer."""

from __future__ import annotations

from collections.abc import Sequence

from medcontext.networks.halving import next_halving
from medcontext.networks.spec import Size, Spacing

SMALLEST_SIDE = 2
"""An axis is halved only while at least this many tokens are left along it."""

FEWEST_STAGES = 2


def fit_strides(patch: Size, spacing: Spacing, stages: int) -> list[list[int]]:
    """Strides for a patch (D, H, W) at a spacing in mm: of the embedding first, then between stages.

    The embedding is two halvings, every further stage one. Thick slices are halved later than their plane, so that
    tokens become cubes in mm, and an axis with an odd number of tokens no more. This gives the published embeddings:
    (2, 4, 4) for abdominal CT, (1, 4, 4) for cardiac MRI, (4, 4, 4) for brain MRI of 1 mm. Stages that would halve
    nothing are left off, down to two.
    """
    tokens, millimetres = list(patch), list(spacing)
    halvings = []
    for _ in range(stages + 1):
        halving = next_halving(tokens, millimetres, SMALLEST_SIDE)
        tokens = [count // step for count, step in zip(tokens, halving, strict=True)]
        millimetres = [length * step for length, step in zip(millimetres, halving, strict=True)]
        halvings.append(halving)
    embedding = [first * second for first, second in zip(halvings[0], halvings[1], strict=True)]
    strides = [embedding, *halvings[2:]]
    while len(strides) > FEWEST_STAGES and max(strides[-1]) == 1:
        strides.pop()
    return strides


def token_grids(patch: Size, strides: Sequence[Sequence[int]]) -> list[Size]:
    """Tokens along (D, H, W) at every stage; half of an odd number is rounded down."""
    grids = []
    d, h, w = patch
    for stride in strides:
        d, h, w = d // stride[0], h // stride[1], w // stride[2]
        grids.append((d, h, w))
    return grids


def triple(values: Sequence[int]) -> Size:
    """Three numbers as they come out of JSON, as PyTorch wants them."""
    d, h, w = values
    return d, h, w

"""Which axes of a grid are halved next, so that thick slices wait for their plane."""

from __future__ import annotations

from collections.abc import Sequence

THICK = 2.0
"""An axis this many times coarser in mm than the finest of those that can be halved waits for the others."""


def next_halving(counts: Sequence[int], millimetres: Sequence[float], least: int) -> list[int]:
    """2 for each axis that is halved, 1 for the others.

    Args:
        counts: Voxels, or tokens, along each axis.
        millimetres: Length of one along each axis.
        least: As many have to be left along an axis that is halved.
    """
    can = [count % 2 == 0 and count // 2 >= least for count in counts]
    finest = min((length for length, may in zip(millimetres, can, strict=True) if may), default=0.0)
    return [2 if may and length < THICK * finest else 1 for may, length in zip(can, millimetres, strict=True)]

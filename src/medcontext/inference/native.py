"""From logits in the plan's grid to label maps in the scan's own, slice by slice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from medcontext.data.geometry import Affine, Box, Size, reorient, reorient_back
from medcontext.data.labels import Labels
from medcontext.data.plan import Plan
from medcontext.inference.sliding import Slab
from medcontext.inference.upsampling import Axis, Plane, Ranked


@dataclass(frozen=True)
class NativeMaps:
    """What a network makes of a scan, in the scan's own grid.

    Attributes:
        labels: ``(X, Y, Z)`` int32 label numbers.
        probabilities: ``(n, X, Y, Z)`` float16, of the outputs that were asked for.
        entropy: ``(X, Y, Z)`` float16, of the probabilities of all outputs, in nats; of regions the sum of theirs.
            None if it was not asked for.
    """

    labels: npt.NDArray[np.int32]
    probabilities: npt.NDArray[np.float16]
    entropy: npt.NDArray[np.float16] | None


def to_native(
    slabs: Iterable[Slab],
    grid: Size,
    plan: Plan,
    shape: tuple[int, ...],
    affine: Affine,
    *,
    box: Box | None = None,
    outputs: Sequence[int] = (),
    entropy: bool = False,
) -> NativeMaps:
    """Label numbers in a scan's own grid from logits in the plan's, and what else is asked for.

    Logits are resampled, not labels. Probabilities are those of the resampled logits, so that a label is that of the
    largest. This takes the memory of what is returned and of a few slices.

    Args:
        slabs: All of the volume, in order.
        grid: Its size (D, H, W).
        plan: That the scan was prepared by.
        shape: (X, Y, Z) of the scan.
        affine: Of the scan.
        box: Part of the scan (X, Y, Z) that the volume covers, and around which all is background, without a doubt;
            None: all of it.
        outputs: Those of the network, classes or regions by their place, whose probabilities are wanted.
        entropy: Whether the entropy is wanted.

    Raises:
        MedContextError: The logits are not finite.
    """
    maps = NativeMaps(
        _zeros(np.int32, (), shape, affine, plan),
        _zeros(np.float16, (len(outputs),), shape, affine, plan),
        _zeros(np.float16, (), shape, affine, plan) if entropy else None,
    )
    if not plan.labels.regions:
        maps.probabilities[np.array(outputs, dtype=int) == 0] = 1
    within = box or (slice(None), slice(None), slice(None))
    numbers = reorient(maps.labels[within], affine, plan.orientation)
    chosen = reorient(maps.probabilities[:, *within], affine, plan.orientation)
    doubt = None if maps.entropy is None else reorient(maps.entropy[within], affine, plan.orientation)
    height, width = numbers.shape[1:]
    plane = None
    for z, (below, above, share) in enumerate(_neighbouring(slabs, grid[0], len(numbers))):
        plane = plane or Plane(grid[1:], (height, width), below.logits.device)
        numbers[z] = _labels(below, above, share, plane, plan.labels)
        if len(outputs) or doubt is not None:
            probabilities = _probabilities(below, above, share, (height, width), plan.labels)
            chosen[:, z] = probabilities[list(outputs)].half().cpu().numpy()
            if doubt is not None:
                doubt[z] = _entropy(probabilities, plan.labels).half().cpu().numpy()
    return maps


def _zeros(kind: type, lead: tuple[int, ...], shape: tuple[int, ...], affine: Affine, plan: Plan) -> npt.NDArray[Any]:
    """In the scan's grid, but in memory as it will be filled: the plan's slices one after the other."""
    turned = reorient(np.empty((*lead, *shape), kind), affine, plan.orientation)
    return np.zeros_like(reorient_back(np.empty(turned.shape, kind), affine, plan.orientation))


def _neighbouring(slabs: Iterable[Slab], old: int, new: int) -> Iterator[tuple[Ranked, Ranked, float]]:
    """For each of ``new`` slices in the place of ``old`` ones, the one before it, the one after it, and how far it is
    from the first to the second, as soon as both are finished."""
    axis = Axis.of(old, new, torch.device("cpu"))
    places = zip(axis.before.tolist(), axis.share.tolist(), strict=True)
    place = next(places, None)
    held: dict[int, Ranked] = {}
    for slab in slabs:
        while place and place[0] + axis.between < slab.stop:
            before, share = place
            after = before + axis.between
            held = {d: held[d] if d in held else Ranked(slab[d]) for d in {before, after}}
            yield held[before], held[after], share
            place = next(places, None)


def _labels(below: Ranked, above: Ranked, share: float, plane: Plane, labels: Labels) -> npt.NDArray[np.int32]:
    """Label numbers ``(H, W)``."""
    if not labels.regions:
        return labels.to_numbers(plane.largest(below, above, share).cpu().numpy())
    numbers = torch.zeros(plane.size, dtype=torch.int32, device=below.logits.device)
    for k, region in enumerate(labels.regions):
        numbers[plane.positive(below.logits[k], above.logits[k], share)] = region.written
    return numbers.cpu().numpy()


def _probabilities(below: Ranked, above: Ranked, share: float, size: tuple[int, int], labels: Labels) -> Tensor:
    """Of all outputs: ``(K, H, W)``."""
    between = below.logits.float().lerp(above.logits.float(), share)
    logits: Tensor = F.interpolate(between[None], size, mode="bilinear", align_corners=False)[0]
    return torch.sigmoid(logits) if labels.regions else torch.softmax(logits, 0)


def _entropy(probabilities: Tensor, labels: Labels) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(0)
    return entropy + torch.special.entr(1 - probabilities).sum(0) if labels.regions else entropy

"""A network trained on patches, applied to a whole volume, whose logits come out slab by slab."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medcontext.data.geometry import Size
from medcontext.errors import MedContextError
from medcontext.memory import GIB, free_memory

OVERLAP = 0.5
"""Share of a window that it has in common with the next, along each axis."""

WINDOWS = 2
"""Windows that a network is given at once."""

LARGE = 64**3
"""Voxels of windows that a CPU is given one at a time: two would take twice the memory and as long. Of smaller ones,
two together take it two thirds of the time, since PyTorch has no fast convolution for one alone."""

SINGLE_PRECISION = 2 * GIB
"""Bytes up to which logits are added up in single precision; beyond, in half precision, as nnU-Net always does, in half
of the memory. Scan, patch and network alone decide, so that a scan is predicted alike on every machine."""

HALF_LIMIT = 60_000.0
"""No logit in half precision is larger, so that no sum becomes infinite."""

SPARED = 0.9
"""Share of the free memory that logits may take."""

Window = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Slab:
    """Slices of a volume's logits that are finished.

    Attributes:
        ring: ``(K, R, H, W)``; slice d of the volume lies at ``d % R``, so that R slices are held of however many.
        start: First slice that is finished with this slab.
        stop: The one after the last. The slice before ``start`` is still there, too, until the next slab is asked for.
    """

    ring: Tensor
    start: int
    stop: int

    def __getitem__(self, d: int) -> Tensor:
        """Slice d: ``(K, H, W)``."""
        return self.ring[:, d % self.ring.shape[1]]


def sliding_slabs(network: nn.Module, image: Tensor, patch: Size, outside: float) -> Iterator[Slab]:
    """Logits of a volume from overlapping windows, weighted by a Gaussian around each window's centre.

    The windows advance along D, and slices that no later window reaches are handed on, so that of a volume of any
    length no more slices are held than those of a window and one. Windows and weights are those of MONAI's
    ``sliding_window_inference``. A window of nothing but one value, such as air, is computed once for all like it.

    Args:
        network: In eval mode, on the image's device; of a list of logits the first is taken.
        image: ``(C, D, H, W)``, of any size; smaller ones are padded and the padding is cut off again.
        patch: Size of a window.
        outside: Value to pad with.

    Raises:
        MedContextError: Neither the device nor the computer has the memory.
    """
    return _slabs(network, image, patch, outside, whole=False)


def sliding_logits(network: nn.Module, image: Tensor, patch: Size, outside: float) -> Tensor:
    """Logits ``(K, D, H, W)`` float32 of a whole volume at once; the rest as in :func:`sliding_slabs`."""
    *_, last = _slabs(network, image, patch, outside, whole=True)
    return last.ring


@torch.no_grad()
def _slabs(network: nn.Module, image: Tensor, patch: Size, outside: float, *, whole: bool) -> Iterator[Slab]:
    """The slabs; where the ``whole`` is wanted, the ring has room for all slices."""
    from monai.data.utils import compute_importance_map, dense_patch_slices

    image, (first, height, width), depth = _padded(image, patch, outside)
    size = image.shape[1:]
    windows: list[Window] = dense_patch_slices(size, patch, [max(1, int(side * (1 - OVERLAP))) for side in patch])
    weights = compute_importance_map(patch, mode="gaussian", device=image.device)
    total = torch.zeros(size, device=image.device)
    for window in windows:
        total[window] += weights

    ring = torch.empty(0)
    known: dict[tuple[float, ...], Tensor] = {}
    rows = [list(row) for _, row in itertools.groupby(windows, key=lambda window: window[0].start)]
    starts = [*(row[0][0].start for row in rows), size[0]]
    for row, start, stop in zip(rows, starts, starts[1:], strict=False):
        for window, logits in _outputs(network, image, row, known):
            if not ring.numel():
                slices = size[0] if whole else min(patch[0] + 1, size[0])
                ring = _ring((len(logits), slices, *size[1:]), image.device, always_single=whole)
            _add(ring, window, logits, weights / total[window])
        # Where the volume is padded along D there is one row of windows, and the ring holds all of it.
        inside = ring[:, first : first + depth, height, width]
        yield Slab(inside, max(0, start - first), min(stop - first, depth))
        if not whole:
            for d in range(max(0, start - 1), stop - 1):
                ring[:, d % ring.shape[1]] = 0


def _padded(image: Tensor, patch: Size, outside: float) -> tuple[Tensor, tuple[int, slice, slice], int]:
    """The image at no less than the patch's size, where in it the image is (D: its first slice), and its depth."""
    before = [max(0, side - n) // 2 for side, n in zip(patch, image.shape[1:], strict=True)]
    after = [max(0, side - n) - b for side, n, b in zip(patch, image.shape[1:], before, strict=True)]
    around = [count for pair in zip(before[::-1], after[::-1], strict=True) for count in pair]
    height, width = (slice(b, b + n) for b, n in zip(before[1:], image.shape[2:], strict=True))
    padded = F.pad(image, around, value=outside) if any(around) else image
    return padded, (before[0], height, width), image.shape[1]


def _outputs(
    network: nn.Module, image: Tensor, windows: list[Window], known: dict[tuple[float, ...], Tensor]
) -> Iterator[tuple[Window, Tensor]]:
    """Logits ``(K, *patch)`` of each window; the last one of a single value in each channel is kept in ``known``."""
    large = image[0, *windows[0]].numel() >= LARGE
    at_once = 1 if large and image.device.type == "cpu" else WINDOWS
    waiting: list[tuple[Window, tuple[float, ...] | None]] = []
    for index, window in enumerate(windows, start=1):
        values = _only_values(image[:, *window])
        if values in known:
            yield window, known[values]
        else:
            waiting.append((window, values))
        if len(waiting) == at_once or (waiting and index == len(windows)):
            outputs = network(torch.stack([image[:, *each] for each, _ in waiting]))
            batch: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
            for (each, only), logits in zip(waiting, batch, strict=True):
                if only is not None:
                    known.clear()
                    known[only] = logits
                yield each, logits
            waiting = []


def _only_values(part: Tensor) -> tuple[float, ...] | None:
    """The value of each channel, where none has more than one."""
    lowest, highest = part.amin((1, 2, 3)), part.amax((1, 2, 3))
    return tuple(lowest.tolist()) if torch.equal(lowest, highest) else None


def _ring(shape: tuple[int, int, int, int], device: torch.device, always_single: bool) -> Tensor:
    """Zeros to add logits up in: on the device, where it has room beside the network, which has run there, or else in
    the computer's memory."""
    numbers = shape[0] * shape[1] * shape[2] * shape[3]
    single = always_single or 4 * numbers <= SINGLE_PRECISION
    needed = (4 if single else 2) * numbers
    if device.type != "cpu" and needed > SPARED * free_memory(str(device)):
        device = torch.device("cpu")
    free = free_memory(str(device))
    if needed > SPARED * free:
        raise MedContextError(
            "There is not enough memory for this scan.",
            found=f"{free / GIB:.1f} GiB free",
            expected=f"{needed / SPARED / GIB:.1f} GiB, for {shape[0]} outputs at {shape[1]} x {shape[2]} x {shape[3]}",
            remedy="end other programs, take another computer, or cut the scan to what is of interest",
        )
    return torch.zeros(shape, dtype=torch.float32 if single else torch.float16, device=device)


def _add(ring: Tensor, window: Window, logits: Tensor, weights: Tensor) -> None:
    """Add a window's weighted logits; where the ring ends it begins again."""
    logits, weights = logits.to(ring.device), weights.to(ring.device)
    slices, height, width = window
    begin = slices.start % ring.shape[1]
    before_end = min(logits.shape[1], ring.shape[1] - begin)
    for place, part in (
        (slice(begin, begin + before_end), slice(before_end)),
        (slice(logits.shape[1] - before_end), slice(before_end, None)),
    ):
        target = ring[:, place, height, width]
        if ring.dtype == torch.float32:
            target.addcmul_(logits[:, part].float(), weights[part])
        else:
            # Each sum is rounded once, and one class at a time stays in a processor's cache.
            for own, added in zip(target, logits[:, part], strict=True):
                own.copy_(own.float().addcmul_(added.float(), weights[part]).clamp_(-HALF_LIMIT, HALF_LIMIT))

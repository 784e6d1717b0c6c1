"""A network trained on patches, applied to a whole volume."""

from __future__ import annotations

import torch
from torch import Tensor, nn

OVERLAP = 0.5
"""Share of a window that it has in common with the next, along each axis."""


@torch.no_grad()
def sliding_logits(network: nn.Module, image: Tensor, patch: tuple[int, int, int], outside: float) -> Tensor:
    """Logits of a whole volume from overlapping windows, weighted by a Gaussian around each window's centre.

    Args:
        network: In eval mode, on the image's device; of a list of logits the first is taken.
        image: ``(C, D, H, W)``, of any size; smaller ones are padded and the padding is cut off again.
        patch: Size of a window.
        outside: Value to pad with.

    Returns:
        ``(K, D, H, W)`` float32.
    """
    from monai.inferers.utils import sliding_window_inference

    def finest(window: Tensor) -> Tensor:
        outputs = network(window)
        logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
        return logits.float()

    logits: Tensor = sliding_window_inference(
        image[None], patch, 2, finest, overlap=OVERLAP, mode="gaussian", cval=outside
    )
    return logits[0]

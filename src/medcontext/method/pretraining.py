"""Masked-image pre-training: the other way to learn from what is hidden, which the method is compared with.

The network paints the hidden part of the image, where the method segments it. The stage before a training as in Chen et
al., "Masked Image Modeling Advances 3D Medical Image Analysis", WACV 2023, arXiv 2204.11716: mean squared error in the
hidden voxels alone, three quarters of the patches hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from medcontext.losses.dice_ce import by_halves, nearest
from medcontext.method.batches import labelled_places
from medcontext.method.masking import mask_to_voxels, volume_size
from medcontext.method.objective import MedContext
from medcontext.method.presets import MethodConfig

HIDING = MethodConfig(ratio=0.75, consistency_weight=1.0)
"""What is hidden, and how: as the method does it, but more. There is no teacher to be compared with; the weight says
that scans without a label are learned from as well."""


class Reconstruction(MedContext):
    """Steps of pre-training in the place of the method's, with the same masks, and no teacher.

    Args:
        network: With an output for each image channel at least; those beyond are not looked at.
        config: What is hidden, and how.
        settings: Of :class:`~medcontext.method.objective.MedContext`.
    """

    def __init__(self, network: nn.Module, config: MethodConfig = HIDING, **settings: Any) -> None:
        super().__init__(network, config, **settings)
        self.teacher = None

    def __call__(
        self,
        image: Tensor,
        label: Tensor | None = None,
        *,
        labelled: Sequence[bool] | None = None,
        backward: Callable[..., Any] | None = None,
        diagnose: bool = False,
        gradients: bool = False,
        scale: float = 1.0,
    ) -> dict[str, Tensor]:
        """One pass.

        Args:
            image: ``(B, C, D, H, W)``.
            label: Not looked at.
            labelled: Which samples have a label, which decides nothing but the order of masks that processes share.
            backward: Called with the loss.
            diagnose: There is nothing to diagnose.
            gradients: There is one term.
            scale: Of gradients.

        Returns:
            ``total``: mean over samples of the mean squared error in their hidden voxels; over heads as in deep
            supervision.
        """
        known = labelled_places(image, labelled, shared=self._parts > 1)
        mask, noise = self.draw_mask(image, known), self._draw_noise(image, len(known))
        outputs = self.student(image, mask, noise)
        hidden = mask_to_voxels(mask, self.config.hidden_patch, volume_size(image))
        heads = [outputs] if isinstance(outputs, Tensor) else outputs
        loss = by_halves([_error(head, image, hidden) for head in heads])
        if backward is None:
            return {"total": loss}
        backward(loss)
        return {"total": loss.detach()}


def _error(painted: Tensor, image: Tensor, hidden: Tensor) -> Tensor:
    """Of one head, which may be of lower resolution than the image, and have more channels."""
    size = painted.shape[2:]
    true = nearest(image.float(), size)
    where = nearest(hidden, size).expand_as(true)
    squares = where * (painted[:, : image.shape[1]].float() - true) ** 2
    return (squares.flatten(1).sum(1) / where.flatten(1).sum(1).clamp_min(1)).mean()

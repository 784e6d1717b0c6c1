"""A stage of MONAI's Swin transformer that runs, once it is exported, on any device."""

from __future__ import annotations

from monai.networks.nets.swin_unetr import BasicLayer, get_window_size
from torch import Tensor, nn

from medcontext.networks.tokens import triple
from medcontext.networks.volume_attention import kept_apart

APART = -100.0
"""Added to the attention between tokens that must not attend to each other, as in the Swin transformer's code."""


class PortableLayer(BasicLayer):  # type: ignore[misc]  # MONAI says no types
    """MONAI's stage with the mask of its shifted windows made from the tokens.

    MONAI makes it on their device by name. A trace keeps that name: it could be run on the device alone that it was
    made on.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Tokens ``(B, C, d, h, w)`` through the stage's blocks and what merges them after it."""
        tokens = features.movedim(1, -1)
        grid = triple(tokens.shape[1:4])
        window, shift = (triple(sides) for sides in get_window_size(grid, self.window_size, self.shift_size))
        d, h, w = (-(-count // side) * side for count, side in zip(grid, window, strict=True))
        apart = kept_apart((d, h, w), window, shift, tokens)
        mask = None if apart is None else APART * apart.float()
        for block in self.blocks:
            tokens = block(tokens, mask)
        merged: Tensor = tokens if self.downsample is None else self.downsample(tokens)
        return merged.movedim(-1, 1)


def make_portable(network: nn.Module) -> None:
    """Turn every such stage of a network into one that can be exported for any device."""
    for module in network.modules():
        if type(module) is BasicLayer:
            module.__class__ = PortableLayer

"""How the masked part of a volume is hidden from a network, which itself stays as it is.

``voxels``: the input is changed, so nothing of the hidden part reaches the network by any path, whatever network it is.
``tokens``: the output of the network's patch embedding is changed, as in the paper. What reads the raw image beside the
embedding (UNETR's ``encoder1``), or reaches over the border of a patch within it, still sees the hidden part.
``both``: the input is changed and the tokens are marked: no leak, and the network is told what is hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medcontext.errors import MedContextError
from medcontext.method.masking import Size, mask_to_voxels, volume_size
from medcontext.method.presets import Fill, MethodConfig
from medcontext.method.tokens import embedding_width, mask_over_tokens


class Student(nn.Module):
    """A network that can be shown a volume with part of it hidden.

    Called with an image alone it is the network. It owns what the method learns beside the network's weights: the
    mask token, and the values of hidden voxels. Optimise, wrap (DDP, Fabric) and compile this module.

    Args:
        network: Any module from ``(B, C, D, H, W)`` to logits; used as it is.
        config: The method.
        channels: C, the number of image channels.
        patch_embedding: Path of the network's patch embedding, as in ``network.get_submodule``; needed for tokens.
        positioned_embedding: Path of the module that gives the tokens with their position added, where that is another:
            needed to overwrite the position.
    """

    def __init__(
        self,
        network: nn.Module,
        config: MethodConfig,
        channels: int,
        patch_embedding: str | None = None,
        positioned_embedding: str | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self._config = config
        path = _embedding_path(config, network, patch_embedding)
        if path is not None and config.token_position == "after":
            path = positioned_embedding or path
        self._embedding_path = path
        self._fills = config.masks and (path is None or config.hide == "both")
        if config.masks and path is not None:
            self.mask_token = nn.Parameter(torch.zeros(embedding_width(network.get_submodule(path))))
        if self._fills and config.fill == "learnable":
            self.hidden_value = nn.Parameter(torch.zeros(channels))

    @property
    def hides(self) -> str:
        """``tokens``, ``voxels`` or ``both``."""
        return "voxels" if self._embedding_path is None else "both" if self._fills else "tokens"

    def forward(self, image: Tensor, mask: Tensor | None = None, noise: Tensor | None = None) -> Any:
        """The network's outputs for ``image`` ``(B, C, D, H, W)``.

        Args:
            image: The batch.
            mask: ``(B, *grid)`` boolean over patches, True where hidden; None: nothing is, nor by a method without a
                masked pass.
            noise: Standard normal, like the image; needed where hidden voxels are filled with noise.
        """
        if mask is None or not self._config.masks:
            return self.network(image)
        with ExitStack() as stack:
            if self._embedding_path is not None:
                stack.enter_context(self._hidden_tokens(self._embedding_path, mask, volume_size(image)))
            if self._fills:
                hidden = mask_to_voxels(mask, self._config.hidden_patch, volume_size(image))
                image = fill_voxels(image, hidden, self._config.fill, getattr(self, "hidden_value", None), noise)
            return self.network(image)

    @contextmanager
    def _hidden_tokens(self, path: str, mask: Tensor, volume: Size) -> Iterator[None]:
        """While open, the embedding gives the mask token for every hidden patch."""

        def replace(module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
            hidden, axis = mask_over_tokens(mask, self._config.hidden_patch, volume, tokens, module)
            shape = [-1 if place == axis else 1 for place in range(tokens.ndim)]
            return torch.where(hidden, self.mask_token.to(tokens.dtype).view(shape), tokens)

        handle = self.network.get_submodule(path).register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()


def fill_voxels(
    image: Tensor, hidden: Tensor, fill: Fill, value: Tensor | None = None, noise: Tensor | None = None
) -> Tensor:
    """Replace hidden voxels.

    Args:
        image: ``(B, C, D, H, W)``.
        hidden: ``(B, 1, D, H, W)`` boolean.
        fill: ``mean``: per sample and channel, the mean of the visible voxels, which leaves the statistics that
            normalisation layers see nearly as they were; ``zero``; ``learnable``: ``value``; ``noise``: with the mean
            and the standard deviation of the visible voxels.
        value: ``(C,)``, for ``learnable``.
        noise: Standard normal, like ``image``, for ``noise``.
    """
    if fill == "learnable":
        if value is None or len(value) != image.shape[1]:
            raise MedContextError(
                "The learned values of hidden voxels are not those of this image's channels.",
                found=f"{0 if value is None else len(value)} for {image.shape[1]} channels",
                remedy=f"make the method for them: MedContext(..., channels={image.shape[1]})",
            )
        return torch.where(hidden, value.to(image.dtype)[:, None, None, None], image)
    if fill == "zero":
        return image.masked_fill(hidden, 0)
    visible, wide = ~hidden, image.float()
    count = visible.sum(dim=(2, 3, 4), keepdim=True).clamp_min(1)
    mean = (wide * visible).sum(dim=(2, 3, 4), keepdim=True) / count
    if fill == "mean":
        return torch.where(hidden, mean.to(image.dtype), image)
    assert noise is not None
    spread = (((wide - mean) ** 2 * visible).sum(dim=(2, 3, 4), keepdim=True) / count).sqrt()
    return torch.where(hidden, (mean + spread * noise).to(image.dtype), image)


def _embedding_path(config: MethodConfig, network: nn.Module, patch_embedding: str | None) -> str | None:
    """The module path to hide tokens at, or None for voxels alone."""
    if config.hide == "voxels" or (config.hide == "auto" and patch_embedding is None):
        return None
    if patch_embedding is None:
        raise MedContextError(
            "Tokens can't be hidden: this network has no patch embedding that is known by name.",
            found=type(network).__name__,
            remedy="hide voxels instead (hide=voxels), or name the module: patch_embedding='path.of.module'",
        )
    return patch_embedding

"""How the masked part of a volume is hidden from a network, which itself stays as it is.

``voxels``: the input is changed, so nothing of the hidden part reaches the network by any path, whatever network it is.
``tokens``: the output of the network's patch embedding is changed, before the position is added, as in the paper; a
skip connection that reads the raw image still sees the hidden part (UNETR's ``encoder1`` does).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medcontext.errors import MedContextError
from medcontext.method.masking import Size, mask_to_voxels, volume_size
from medcontext.method.presets import Fill, MethodConfig


class Student(nn.Module):
    """A network that can be shown a volume with part of it hidden.

    Called with an image alone it is the network. It owns what the method learns beside the network's weights: the
    mask token, or the values of hidden voxels. Optimise, wrap (DDP, Fabric) and compile this module.

    Args:
        network: Any module from ``(B, C, D, H, W)`` to logits; used as it is.
        config: The method.
        channels: C, the number of image channels.
        patch_embedding: Path of the network's patch embedding, as in ``network.get_submodule``; needed for tokens.
    """

    def __init__(self, network: nn.Module, config: MethodConfig, channels: int, patch_embedding: str | None) -> None:
        super().__init__()
        self.network = network
        self._fill: Fill = config.fill
        self._mask_patch = config.mask_patch
        self._embedding_path = _where_to_hide(config, network, patch_embedding)
        if config.active and self._embedding_path is not None:
            width = _embedding_width(network.get_submodule(self._embedding_path))
            self.mask_token = nn.Parameter(torch.zeros(width))
        elif config.active and config.fill == "learnable":
            self.hidden_value = nn.Parameter(torch.zeros(channels))

    @property
    def hides(self) -> str:
        """``tokens`` or ``voxels``."""
        return "voxels" if self._embedding_path is None else "tokens"

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Any:
        """The network's outputs for ``image`` ``(B, C, D, H, W)``, the patches of ``mask`` ``(B, *grid)`` hidden."""
        if mask is None:
            return self.network(image)
        if self._embedding_path is None:
            hidden = mask_to_voxels(mask, self._mask_patch, volume_size(image))
            return self.network(fill_voxels(image, hidden, self._fill, getattr(self, "hidden_value", None)))
        with self._hidden_tokens(self._embedding_path, mask, volume_size(image)):
            return self.network(image)

    @contextmanager
    def _hidden_tokens(self, path: str, mask: Tensor, volume: Size) -> Iterator[None]:
        """While open, the patch embedding gives the mask token for every hidden patch."""

        def replace(module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
            hidden = mask_to_tokens(mask, self._mask_patch, volume, tokens)
            return torch.where(hidden, self.mask_token.to(tokens.dtype)[:, None, None, None], tokens)

        handle = self.network.get_submodule(path).register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()


def fill_voxels(image: Tensor, hidden: Tensor, fill: Fill, value: Tensor | None = None) -> Tensor:
    """Replace hidden voxels.

    Args:
        image: ``(B, C, D, H, W)``.
        hidden: ``(B, 1, D, H, W)`` boolean.
        fill: ``mean``: per sample and channel, the mean of the visible voxels, which leaves the statistics that
            normalisation layers see nearly as they were; ``zero``; ``learnable``: ``value``.
        value: ``(C,)``, for ``learnable``.
    """
    if fill == "mean":
        visible = ~hidden
        total = (image.float() * visible).sum(dim=(2, 3, 4), keepdim=True)
        count = visible.sum(dim=(2, 3, 4), keepdim=True).clamp_min(1)
        return torch.where(hidden, (total / count).to(image.dtype), image)
    if fill == "learnable":
        assert value is not None
        return torch.where(hidden, value.to(image.dtype)[:, None, None, None], image)
    return image.masked_fill(hidden, 0)


def mask_to_tokens(mask: Tensor, patch: Size, volume: Size, tokens: Tensor) -> Tensor:
    """Spread a mask ``(B, *grid)`` over the tokens ``(B, E, d, h, w)`` of a patch embedding: ``(B, 1, d, h, w)``.

    Raises:
        MedContextError: The embedding has another layout, or a mask patch is no whole number of tokens.
    """
    if tokens.ndim != 5:
        raise MedContextError(
            "Tokens of this layout can't be hidden.",
            found=f"a patch embedding that gives shape {tuple(tokens.shape)}",
            expected="(B, E, d, h, w), channels first",
            remedy="name the convolution inside it, or hide voxels: hide=voxels",
        )
    stride = [size / count for size, count in zip(volume, tokens.shape[2:], strict=True)]
    if any(step % length for step, length in zip(patch, stride, strict=True)):
        nearest = [max(1, round(step / length)) * round(length) for step, length in zip(patch, stride, strict=True)]
        raise MedContextError(
            "A hidden patch must be a whole number of tokens.",
            found=f"mask_patch = {list(patch)} with tokens of {[round(length, 2) for length in stride]} voxels",
            remedy=f"set mask_patch to {nearest}",
        )
    for axis, (step, length) in enumerate(zip(patch, stride, strict=True), start=1):
        mask = mask.repeat_interleave(round(step / length), dim=axis)
    d, h, w = tokens.shape[2:]
    return mask[:, None, :d, :h, :w]


def _where_to_hide(config: MethodConfig, network: nn.Module, patch_embedding: str | None) -> str | None:
    """The module path to hide tokens at, or None for voxels."""
    if config.hide == "voxels" or (config.hide == "auto" and patch_embedding is None):
        return None
    if patch_embedding is None:
        raise MedContextError(
            "Tokens can't be hidden: this network has no patch embedding that is known by name.",
            found=type(network).__name__,
            remedy="hide voxels instead (hide=voxels), or name the module: patch_embedding='path.of.module'",
        )
    return patch_embedding


def _embedding_width(embedding: nn.Module) -> int:
    """Number of features per token: what the last convolution or linear layer of the embedding gives."""
    for module in reversed(list(embedding.modules())):
        width = getattr(module, "out_channels", getattr(module, "out_features", None))
        if isinstance(width, int):
            return width
    raise MedContextError(
        "The named patch embedding has no convolution or linear layer.", found=type(embedding).__name__
    )

"""Random changes to a patch's intensities, which leave its labels as they are.

Every change works in place, on whatever device the image is on, and needs no more than a pass or two over it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medcontext.data.augment_config import AugmentConfig, Range

SMALLEST = 1e-7
"""Ranges and deviations below this are those of a constant image, which is left as it is."""


def vary_intensity(image: Tensor, config: AugmentConfig, in_plane: bool, rng: np.random.Generator) -> None:
    """Vary a normalised image in place, in the order in which nnU-Net does.

    Args:
        image: ``(C, D, H, W)`` float32.
        config: How far, and how often.
        in_plane: Slices are thick: they are never lost to a low resolution.
        rng: All that is drawn comes from it.
    """

    def drawn(probability: float) -> bool:
        return bool(rng.random() < probability)

    def some_channels() -> Iterator[Tensor]:
        return (channel for channel in image if drawn(config.channel_probability))

    if drawn(config.noise_probability):
        add_noise(image, rng.uniform(*config.noise), rng)
    if drawn(config.blur_probability):
        for channel in some_channels():
            blur(channel, rng.uniform(*config.blur, 3))
    if drawn(config.brightness_probability):
        for channel in image:
            channel.mul_(_factor(config.brightness, rng))
    if drawn(config.contrast_probability):
        for channel in image:
            change_contrast(channel, _factor(config.contrast, rng))
    if drawn(config.low_resolution_probability):
        for channel in some_channels():
            lower_resolution(channel, rng.uniform(*config.low_resolution), in_plane)
    if drawn(config.inverted_gamma_probability):
        for channel in image:
            apply_gamma(channel.neg_(), _factor(config.gamma, rng))
            channel.neg_()
    if drawn(config.gamma_probability):
        for channel in image:
            apply_gamma(channel, _factor(config.gamma, rng))


def add_noise(image: Tensor, deviation: float, rng: np.random.Generator) -> None:
    """Add Gaussian noise of this standard deviation to ``(C, D, H, W)``."""
    generator = torch.Generator(image.device).manual_seed(int(rng.integers(2**63)))
    image.add_(torch.randn(image.shape, generator=generator, device=image.device), alpha=deviation)


def blur(channel: Tensor, deviations: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    """Blur ``(D, H, W)`` along each axis by a Gaussian of so many voxels, cut at four deviations; edges go on."""
    blurred = channel
    for axis, deviation in enumerate(deviations):
        radius = int(4 * deviation + 0.5)
        weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
        padding = [0, 0, 0, 0, 0, 0]
        padding[2 * (2 - axis) : 2 * (2 - axis) + 2] = radius, radius
        padded = F.pad(blurred[None], padding, mode="replicate")[0]
        # A handful of shifted sums is seven times faster than a convolution with so small a kernel.
        blurred = torch.zeros_like(channel)
        for shift, weight in enumerate(weights / weights.sum()):
            blurred.add_(padded.narrow(axis, shift, channel.shape[axis]), alpha=float(weight))
    channel.copy_(blurred)


def change_contrast(channel: Tensor, factor: float) -> None:
    """Multiply the distance to the mean, and keep within the range that was."""
    low, high = (float(end) for end in channel.aminmax())
    mean = channel.mean()
    channel.sub_(mean).mul_(factor).add_(mean).clamp_(low, high)


def lower_resolution(channel: Tensor, share: float, in_plane: bool) -> None:
    """Keep this share of the voxels of ``(D, H, W)`` along each axis (the nearest ones), and interpolate linearly."""
    size = [max(1, round(length * share)) for length in channel.shape]
    if in_plane:
        size[0] = channel.shape[0]
    coarse = F.interpolate(channel[None, None], size, mode="nearest-exact")
    channel.copy_(F.interpolate(coarse, channel.shape, mode="trilinear", align_corners=False)[0, 0])


def apply_gamma(channel: Tensor, exponent: float) -> None:
    """Raise intensities, taken from 0 to 1 over their range, to a power; mean and standard deviation stay."""
    mean, deviation = _centre(channel)
    low, high = (float(end) for end in channel.aminmax())
    if high - low > SMALLEST:
        channel.sub_(low).div_(high - low).pow_(exponent)
        _, moved = _centre(channel)
        channel.mul_(deviation / moved)
    channel.add_(mean)


def _centre(channel: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the mean in place; the mean and the standard deviation."""
    mean = channel.mean()
    return mean, torch.linalg.vector_norm(channel.sub_(mean)) / channel.numel() ** 0.5


def _factor(bounds: Range, rng: np.random.Generator) -> float:
    """As often below 1 as above, where the range holds both: otherwise the wider side would shift the data."""
    low, high = bounds
    if low < 1 < high:
        low, high = (low, 1.0) if rng.random() < 0.5 else (1.0, high)
    return float(rng.uniform(low, high))

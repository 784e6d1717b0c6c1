"""How far patches are varied. Apart from the code that does it, so that reading a configuration needs no PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from medcontext.errors import require

Range = tuple[float, float]

FOLDS_AT = 0.4
"""Control points of a cubic B-spline that move less than this share of their distance never fold space: Choi and Lee,
Injectivity conditions of 2D and 3D uniform cubic B-spline functions, Graphical Models 62 (2000)."""


@dataclass(frozen=True)
class AugmentConfig:
    """How patches are varied. Every probability is per patch, and every range is (least, most).

    Ranges and probabilities are those that nnU-Net trains with (Isensee et al., Nature Methods 18 (2021); numbers of
    version 2.8), but for mirroring, which is off here, and for turns where slices are thick, which go up to 180 degrees
    there. Slices are thick where the spacing says so, there where the shape of the patch does.
    """

    rotation_probability: float = 0.2
    """Of being rotated."""

    rotation_degrees: float = 30.0
    """Largest rotation, about each axis in turn; about the slice axis alone where slices are thick."""

    scale_probability: float = 0.2
    """Of being magnified or reduced."""

    scale: Range = (0.7, 1.4)
    """Size of what is seen, relative to the patch: above 1 structures become smaller. Within the plane alone where
    slices are thick."""

    elastic_probability: float = 0.0
    """Of being bent."""

    elastic: Range = (0.0, 0.25)
    """Largest shift of the control points that bend a patch, as a share of their distance, which is a quarter of the
    patch; below 0.4, from where on space could fold. Within the plane alone where slices are thick."""

    mirror_axes: tuple[int, ...] = ()
    """Axes of (D, H, W) along which patches are mirrored half of the time. None by default: a mirrored body is no
    body, and labels that are two ends or two sides of something would change places."""

    noise_probability: float = 0.1
    """Of Gaussian noise."""

    noise: Range = (0.0, 0.1)
    """Standard deviation of the noise, where the image's own is about 1."""

    blur_probability: float = 0.2
    """Of a Gaussian blur."""

    blur: Range = (0.5, 1.0)
    """Standard deviation of the blur in voxels, drawn for each channel and axis."""

    brightness_probability: float = 0.15
    """Of intensities being multiplied."""

    brightness: Range = (0.75, 1.25)
    """Factor of the intensities, drawn for each channel."""

    contrast_probability: float = 0.15
    """Of intensities being drawn apart or together about their mean."""

    contrast: Range = (0.75, 1.25)
    """Factor of the distance to the mean, drawn for each channel; what the patch's range would be left by is cut."""

    low_resolution_probability: float = 0.25
    """Of being seen as by a coarser scanner."""

    low_resolution: Range = (0.5, 1.0)
    """Share of the voxels that are kept along each axis, drawn for each channel; within the plane alone where slices
    are thick."""

    inverted_gamma_probability: float = 0.1
    """Of a gamma curve on the inverted image."""

    gamma_probability: float = 0.3
    """Of a gamma curve."""

    gamma: Range = (0.7, 1.5)
    """Exponent of both gamma curves, drawn for each channel; mean and standard deviation stay as they were."""

    channel_probability: float = 0.5
    """Of each channel, of taking part in a blur or in a low resolution of the patch."""

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if field.name.endswith("_probability")):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a probability from 0 to 1")
        require(0 <= self.rotation_degrees <= 180, "rotation_degrees", self.rotation_degrees, "degrees from 0 to 180")
        require(set(self.mirror_axes) <= {0, 1, 2}, "mirror_axes", self.mirror_axes, "axes 0, 1 or 2 of (D, H, W)")
        for name in ("scale", "blur", "brightness", "contrast", "gamma"):
            low, high = getattr(self, name)
            require(0 < low <= high < math.inf, name, (low, high), "two numbers above 0, the smaller one first")
        for name, most in (("noise", math.inf), ("elastic", FOLDS_AT), ("low_resolution", 1.0)):
            low, high = getattr(self, name)
            limits = "from 0 up" if most == math.inf else f"from 0 to {most:g}"
            require(0 <= low <= high <= most, name, (low, high), f"two numbers {limits}, the smaller one first")

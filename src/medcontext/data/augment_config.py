"""How far patches are varied. Apart from the code that does it, so that reading a configuration needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from medcontext.errors import require


@dataclass(frozen=True)
class AugmentConfig:
    """How patches are varied; every probability is per patch."""

    rotation_degrees: float = 15.0
    """Largest rotation, about each axis in turn; about the slice axis alone where slices are thick."""

    scale: float = 0.2
    """Largest change of size: by a factor between ``1 - scale`` and ``1 + scale``."""

    spatial_probability: float = 0.5
    """Of rotating and scaling at all."""

    intensity_probability: float = 0.3
    """Of each of gamma, contrast, brightness and noise."""

    mirror_axes: tuple[int, ...] = ()
    """Axes of (D, H, W) along which patches are mirrored half of the time. None by default: a mirrored body is no
    body, and labels that are two ends or two sides of something would change places."""

    def __post_init__(self) -> None:
        require(0 <= self.rotation_degrees <= 180, "rotation_degrees", self.rotation_degrees, "degrees from 0 to 180")
        require(0 <= self.scale < 1, "scale", self.scale, "a share from 0 up to, and not including, 1")
        for name in ("spatial_probability", "intensity_probability"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a probability from 0 to 1")
        require(set(self.mirror_axes) <= {0, 1, 2}, "mirror_axes", self.mirror_axes, "axes 0, 1 or 2 of (D, H, W)")

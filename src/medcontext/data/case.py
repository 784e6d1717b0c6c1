"""One scan, with its label or without."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """A labelled scan and where it lies.

    Attributes:
        name: Of the case; its prediction is named after it.
        images: One file with all channels, or one file per channel.
        label: The label map.
        patient: Whose scan it is: two scans of a patient never lie on two sides of a split.
        stratum: The group, such as a diagnosis, that a split spreads evenly; None: not known.
    """

    name: str
    images: tuple[Path, ...]
    label: Path
    patient: str
    stratum: str | None = None


@dataclass(frozen=True)
class UnlabelledCase:
    """A scan that is learned from without a label: it has none, or it is not to be read.

    Attributes:
        name: Of the case.
        images: One file with all channels, or one file per channel.
        patient: Whose scan it is.
        label: There is none.
    """

    name: str
    images: tuple[Path, ...]
    patient: str
    label: None = None

"""What is particular to a data set, in numbers: what its plan is made from (nnU-Net's word for it, Isensee et al.,
Nature Methods 18 (2021))."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medcontext.data.check import CheckReport
from medcontext.data.facts import CaseFacts, by_direction
from medcontext.data.labels import Labels
from medcontext.errors import MedContextError

ANISOTROPIC = 2.0
"""Slices this many times thicker than the plane's voxels decide which axis is the slice axis."""

Triple = tuple[float, float, float]
Table = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Grids:
    """The grids of all cases along common axes.

    Attributes:
        orientation: Anatomical direction of the axes (D, H, W), such as ``"SAR"``.
        thick: Whether slices are so thick that they chose the first axis.
        sizes: ``(n, 3)`` in voxels.
        spacings: ``(n, 3)`` in mm.
    """

    orientation: str
    thick: bool
    sizes: Table
    spacings: Table


@dataclass(frozen=True)
class Spread:
    """Of a quantity along (D, H, W): its least, median and largest value over the cases, axis by axis."""

    least: Triple
    median: Triple
    most: Triple


@dataclass(frozen=True)
class Intensities:
    """Of one channel, over a sample of the labelled voxels of all cases: 0.5, 50 and 99.5 percentiles, and moments."""

    low: float
    median: float
    high: float
    mean: float
    std: float


@dataclass(frozen=True)
class Structure:
    """How much there is of what is segmented.

    Attributes:
        name: Of the label or region.
        share: Of all voxels of the data set.
        cases: How many show it.
    """

    name: str
    share: float
    cases: int


@dataclass(frozen=True)
class Fingerprint:
    """What is particular to a data set.

    Attributes:
        dataset: Its name.
        cases: Their number.
        channels: Of the images.
        modality: Of each channel, as declared; empty where nothing is.
        orientation: Of the axes that the following are along, slice axis first.
        sizes: In voxels, as stored.
        spacings: In mm.
        anisotropy: Coarsest by finest median spacing.
        filled: Share of the median case that is left when an empty border is cut off.
        foreground: Intensities of the labelled voxels, per channel.
        structures: By the number that stands for them in predictions.
    """

    dataset: str
    cases: int
    channels: int
    modality: tuple[str, ...]
    orientation: str
    sizes: Spread
    spacings: Spread
    anisotropy: float
    filled: float
    foreground: tuple[Intensities, ...]
    structures: Mapping[int, Structure]

    @property
    def rarest(self) -> Structure:
        """The structure with the smallest share, of those that any case shows."""
        return min((each for each in self.structures.values() if each.cases), key=lambda each: each.share)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def has_thick_slices(spacing: Triple) -> bool:
    """Whether voxels are so much longer along the slice axis that patches are varied within the plane alone."""
    return spacing[0] >= ANISOTROPIC * max(spacing[1:])


def take_fingerprint(report: CheckReport) -> Fingerprint:
    """The fingerprint of a checked data set.

    Raises:
        MedContextError: No case is whole, or no voxel is labelled.
    """
    facts = usable_facts(report)
    grids = take_grids(facts)
    median = np.median(grids.spacings, axis=0)
    return Fingerprint(
        dataset=report.dataset.name,
        cases=len(facts),
        channels=facts[0].channels,
        modality=report.dataset.modality,
        orientation=grids.orientation,
        sizes=_spread(grids.sizes),
        spacings=_spread(grids.spacings),
        anisotropy=round(float(median.max() / median.min()), 4),
        filled=round(float(np.median([case.filled for case in facts])), 4),
        foreground=tuple(_intensities(channel) for channel in foreground_values(facts).T),
        structures=_structures(report.labels, facts),
    )


def usable_facts(report: CheckReport) -> list[CaseFacts]:
    """The facts of all whole cases, at least one of which shows something to segment.

    Raises:
        MedContextError: No case is whole, or no voxel is labelled.
    """
    if not report.facts:
        raise MedContextError(
            "No case of this data set can be used.", file=report.dataset.root, remedy="run 'medcontext check' on it"
        )
    facts = list(report.facts.values())
    if not any(case.voxels.get(number) for case in facts for number in report.labels.names):
        raise MedContextError(
            "Nothing is labelled in this data set.",
            file=report.dataset.root,
            found="label maps of background only",
            remedy="label at least one structure",
        )
    return facts


def take_grids(facts: Sequence[CaseFacts]) -> Grids:
    """Sizes and spacings along RAS+ axes with the slice axis first: the coarsest, where slices are thick, else the
    superior one, as in axial scans."""
    sizes = np.array([by_direction(case.orientation, case.shape) for case in facts], dtype=np.float64)
    spacings = np.array([by_direction(case.orientation, case.spacing) for case in facts], dtype=np.float64)
    median = dict(zip("RAS", np.median(spacings, axis=0), strict=True))
    coarsest = max(median, key=lambda letter: median[letter])
    thick = bool(median[coarsest] >= ANISOTROPIC * max(median[letter] for letter in median if letter != coarsest))
    first = coarsest if thick else "S"
    orientation = first + "".join(letter for letter in "SAR" if letter != first)
    order = ["RAS".index(letter) for letter in orientation]
    return Grids(orientation, thick, sizes[:, order], spacings[:, order])


def foreground_values(facts: Sequence[CaseFacts]) -> npt.NDArray[np.float32]:
    """``(n, C)`` intensities of the sampled labelled voxels of all cases."""
    return np.concatenate([case.foreground for case in facts])


def as_triple(values: Any) -> Triple:
    """Three numbers to the precision that spacings are stored in."""
    d, h, w = (round(float(value), 4) for value in values)
    return d, h, w


def _spread(values: Table) -> Spread:
    return Spread(*(as_triple(kind(values, axis=0)) for kind in (np.min, np.median, np.max)))


def _intensities(values: npt.NDArray[np.float32]) -> Intensities:
    low, median, high = (float(value) for value in np.percentile(values, (0.5, 50, 99.5)))
    wide = values.astype(np.float64)
    return Intensities(low, median, high, float(wide.mean()), float(wide.std()))


def _structures(labels: Labels, facts: Sequence[CaseFacts]) -> dict[int, Structure]:
    total = sum(np.prod(case.shape, dtype=np.int64) for case in facts)
    found = {}
    for number, (name, members) in labels.structures.items():
        counts = [sum(case.voxels.get(member, 0) for member in members) for case in facts]
        found[number] = Structure(name, float(sum(counts) / total), sum(count > 0 for count in counts))
    return found

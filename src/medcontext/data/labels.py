"""What the numbers in label maps mean, what a network's outputs stand for, and the way between the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IGNORED = -1
"""Class index of voxels that nobody has labelled: they are neither learned from nor scored."""

TABLE_SIZE = 2**16
"""Up to this label number a table is looked up; atlases with larger numbers are sorted instead."""


@dataclass(frozen=True)
class Region:
    """A union of labels that is segmented as one, such as the whole tumour; regions may contain one another.

    Attributes:
        name: Of the region.
        numbers: Label numbers that belong to it.
        written: Number that its voxels get in a prediction, unless a later region has them too.
    """

    name: str
    numbers: tuple[int, ...]
    written: int


READABLE = "for each region a number that is in it and in no later one, and regions that are nested or apart"
"""What :func:`unreadable` asks for, in words."""


def unreadable(regions: Sequence[Region]) -> str | None:
    """What would be read back as other regions than it was written for, in words; None where nothing would be."""

    def around(number: int) -> list[Region]:
        return [region for region in regions if number in region.numbers]

    for number in sorted({number for region in regions for number in region.numbers}):
        own, written = around(number), around(number)[-1].written
        if around(written) != own:
            read = _names(around(written)) or "no region"
            return f"a voxel of {_names(own)} (label {number}) is written as {written}, which is of {read}"
    for region in regions:
        # A network may find a region and nothing of what is inside it, whether or not there is such a label.
        number = region.written
        if around(number)[-1:] != [region]:
            found = _names(around(number)) or "no region"
            return f"a voxel of {region.name} alone is written as {number}, which is of {found}"
    return None


def _names(regions: Sequence[Region]) -> str:
    return ", ".join(region.name for region in regions)


@dataclass(frozen=True)
class Labels:
    """The labels of a data set; arbitrary numbers, with gaps.

    Attributes:
        names: Label number to name, in the order of the class indices 1, 2, ...; 0, the background, is left out.
        background: Further numbers that count as background.
        ignore: Number of the voxels that nobody has labelled; None: there are none.
        regions: What the network segments instead of the labels, outermost first, each by an output of its own
            (a sigmoid); empty: the labels and the background, of which every voxel has one (a softmax).
    """

    names: Mapping[int, str]
    background: tuple[int, ...] = ()
    ignore: int | None = None
    regions: tuple[Region, ...] = ()

    @property
    def classes(self) -> int:
        """Number of class indices, background included."""
        return len(self.names) + 1

    @property
    def outputs(self) -> int:
        """Number of a network's output channels."""
        return len(self.regions) or self.classes

    @property
    def declared(self) -> frozenset[int]:
        """Every number that may stand in a label map."""
        return frozenset({0, *self.names, *self.background} | ({self.ignore} if self.ignore is not None else set()))

    @property
    def structures(self) -> dict[int, tuple[str, tuple[int, ...]]]:
        """What is scored and shown: number to name and to the label numbers that it is made of."""
        if self.regions:
            return {region.written: (region.name, region.numbers) for region in self.regions}
        return {number: (name, (number,)) for number, name in self.names.items()}

    def membership(self) -> npt.NDArray[np.bool_] | None:
        """``(regions, classes)``: which class index belongs to which region; None where there are no regions."""
        if not self.regions:
            return None
        order = [0, *self.names]
        return np.array([[number in region.numbers for number in order] for region in self.regions])

    def to_indices(self, array: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.integer[Any]]:
        """Class indices of label numbers: uint8, or int16 where voxels are ignored or the classes are more than 256."""
        kind = np.uint8 if self.ignore is None and self.classes <= 256 else np.int16
        index = {number: k for k, number in enumerate(self.names, start=1)}
        if self.ignore is not None:
            index[self.ignore] = IGNORED
        indices: npt.NDArray[np.integer[Any]]
        if max(index, default=0) < TABLE_SIZE:
            table = np.zeros(TABLE_SIZE + 1, dtype=kind)
            for number, k in index.items():
                table[number] = k
            # Numbers beyond the table are not declared; its last entry is the background, as for all of those.
            indices = table[np.clip(array, 0, TABLE_SIZE)]
        else:
            numbers, places = np.unique(array, return_inverse=True)
            indices = np.array([index.get(int(n), 0) for n in numbers], dtype=kind)[places.reshape(array.shape)]
        return indices

    def to_numbers(self, indices: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int32]:
        """Label numbers of class indices."""
        numbers: npt.NDArray[np.int32] = np.array([0, *self.names], dtype=np.int32)[indices]
        return numbers

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {"names": {str(number): name for number, name in self.names.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Labels:
        """From what :meth:`to_dict` gave, also after a way through JSON."""
        return cls(
            names={int(number): str(name) for number, name in values["names"].items()},
            background=tuple(values["background"]),
            ignore=values["ignore"],
            regions=tuple(Region(each["name"], tuple(each["numbers"]), each["written"]) for each in values["regions"]),
        )

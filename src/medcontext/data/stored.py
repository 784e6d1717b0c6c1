"""Arrays on disk of which any box is read at little cost: blosc2 files of small compressed blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medcontext.errors import MedContextError

CHUNK = 64
"""Voxels along each axis of what is stored in one piece."""

BLOCK = 16
"""Voxels along each axis of what is decompressed in one piece. Of sizes 16, 32 and 64 it took the least time to read
96^3 voxels of a CT with, at the same size on disk."""


class StoredArray:
    """An array on disk, read where it is sliced; ``array[:]`` reads all of it.

    No file stays open between two reads, so any number of these may be kept, also across a fork.

    Attributes:
        shape: Of the array.
        dtype: Of the array.

    Raises:
        MedContextError: The file is absent, damaged or no array. Damage within the numbers shows when they are read.
    """

    def __init__(self, path: Path) -> None:
        import blosc2

        self._path = path
        try:
            # blosc2 files can hold more than numbers, some of it code; in this mode nothing of that kind is touched.
            opened: Any = blosc2.open(path, mode="r", deserialize="safe", dparams=blosc2.DParams(nthreads=1))
        except (OSError, RuntimeError, ValueError) as error:
            raise damaged(path, error) from error
        if not isinstance(opened, blosc2.NDArray):
            raise damaged(path, TypeError(f"a {type(opened).__name__} and no array"))
        self._array = opened
        self.shape: tuple[int, ...] = tuple(opened.shape)
        self.dtype: np.dtype[Any] = opened.dtype

    def __getitem__(self, where: Any) -> npt.NDArray[Any]:
        try:
            return np.asarray(self._array[where])
        except RuntimeError as error:
            raise damaged(self._path, error) from error

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)


def packed(array: npt.NDArray[Any]) -> bytes:
    """Content of a file that :class:`StoredArray` opens. The last three axes are those of the volume."""
    import blosc2

    lead = (1,) * (array.ndim - 3)
    chunk = [min(CHUNK, length) for length in array.shape[-3:]]
    content: bytes = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=(*lead, *chunk),
        blocks=(*lead, *(min(BLOCK, length) for length in chunk)),
        cparams=blosc2.CParams(codec=blosc2.Codec.LZ4, clevel=5, filters=[blosc2.Filter.SHUFFLE], nthreads=1),
    ).to_cframe()
    return content


@contextmanager
def of_case(name: str) -> Iterator[None]:
    """Let an error about a file of a prepared case name the case: the file's folder is named by its content."""
    try:
        yield
    except MedContextError as error:
        error.found = f"{error.found}, of case {name}"
        raise


def damaged(file: Path, error: Exception) -> MedContextError:
    """A file of a prepared case can't be read."""
    return MedContextError(
        "A prepared case in the cache is damaged.",
        file=file,
        found=f"{type(error).__name__}: {error}",
        expected="the file as it was written",
        remedy=f"delete the folder {file.parent} and start again: the case is then prepared anew",
    )

"""What a recipe is, and what it reads out of a download."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from medcontext.errors import MedContextError


@dataclass(frozen=True)
class ListedCase:
    """A case of a download.

    Attributes:
        name: Of the case.
        images: One file with all channels, or one per channel, in the order of the declared channels.
        label: None for an official test image.
        patient: Whose scan it is.
        stratum: The group, such as a diagnosis, that a split spreads evenly.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    patient: str
    stratum: str | None = None


@dataclass(frozen=True)
class Contents:
    """What a recipe read out of a download.

    Attributes:
        description: ``name``, ``channel_names``, ``labels``, ... as in nnU-Net's ``dataset.json``.
        protocol: What the publications lay down: ``spacing`` (D, H, W) in mm, ``clip`` (low, high),
            ``few_shot`` (numbers of training cases).
        cases: All of them.
        splits: Published ones, from :func:`published_split`.
    """

    description: Mapping[str, Any]
    protocol: Mapping[str, Any]
    cases: Sequence[ListedCase]
    splits: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Download:
    """Where an openly licensed data set can be had, and the MD5 sum that its archive must have."""

    url: str
    md5: str


@dataclass(frozen=True)
class Recipe:
    """A data set by name.

    Attributes:
        name: To ask for it by.
        title: What it is, in a line.
        source: Where its owners give it out, and how to get it there.
        licence: On what terms.
        layout: Of the download, in words.
        signature: Found in the path of at least one file of this download, and in none of another data set's.
        read: From the folder and its files (see :func:`files_of`) to what is in it.
        download: Where it can be had without registration; None where there is no such place.
    """

    name: str
    title: str
    source: str
    licence: str
    layout: str
    signature: re.Pattern[str]
    read: Callable[[Path, Sequence[Path]], Contents]
    download: Download | None = None

    def matches(self, files: Iterable[str]) -> bool:
        """Whether files of these paths (with ``/``) look like this download."""
        return any(self.signature.search(file) for file in files)

    def import_from(self, source: Path, out: Path) -> Path:
        """As :func:`medcontext.data.recipes.import_dataset`."""
        from medcontext.data.recipes.importing import import_dataset

        return import_dataset(self.name, source, out)


def is_junk(path: PurePosixPath) -> bool:
    """Whether it is what file managers leave behind (``__MACOSX``, ``._scan.nii.gz``, ``.DS_Store``) or hidden."""
    return any(part == "__MACOSX" or part.startswith(".") for part in path.parts)


def files_of(folder: Path) -> list[Path]:
    """Every file in a folder and its subfolders, linked ones too, sorted, without what is hidden or left by a file
    manager."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, subfolders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link back to a folder that it is in
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not is_junk(PurePosixPath(name))]
        found += [Path(place) / name for name in names if not is_junk(PurePosixPath(name))]
    return sorted(found)


def by_case(files: Iterable[Path], pattern: str) -> dict[str, Path]:
    """First group of ``pattern`` -> file, for every file whose whole name it matches.

    Raises:
        MedContextError: Two files of one name: two copies of the download lie there.
    """
    found: dict[str, Path] = {}
    for file in files:
        match = re.fullmatch(pattern, file.name)
        if match is None:
            continue
        if match[1] in found:
            raise MedContextError(
                "Two files are of the same case.",
                file=file,
                found=f"also {found[match[1]]}",
                remedy="give the folder of one copy of the download",
            )
        found[match[1]] = file
    return found


def require_complete(folder: Path, missing: Sequence[str], layout: str) -> None:
    """Refuse a download of which files are missing.

    Raises:
        MedContextError: ``missing`` is not empty.
    """
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise MedContextError(
            "This download is not complete.",
            file=folder,
            found=f"missing: {', '.join(missing[:5])}{more}",
            expected=layout,
            remedy="download or unpack it again",
        )


def published_split(
    name: str, source: str, *, train: Iterable[str], validation: Iterable[str] = (), test: Iterable[str]
) -> dict[str, Any]:
    """A split as ``splits/NAME.json`` holds it; names are sorted."""
    fold = {"train": sorted(train), "validation": sorted(validation), "test": sorted(test)}
    return {"name": name, "source": source, "folds": [fold]}


def split_hash(split: Mapping[str, Any]) -> str:
    """SHA-256 of a split's folds; their order of keys and of cases does not matter."""
    folds = [{part: sorted(names) for part, names in fold.items()} for fold in split["folds"]]
    return hashlib.sha256(json.dumps(folds, sort_keys=True).encode()).hexdigest()

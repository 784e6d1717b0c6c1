"""Which scans are to be predicted: found in files, folders and lists, and shared out among machines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from medcontext.data import case_list
from medcontext.data.dataset import LAYOUTS, by_channel
from medcontext.data.formats import ENDINGS
from medcontext.data.scan import case_name, is_series, scan_files
from medcontext.errors import MedContextError

Scans = Mapping[str, tuple[Path, ...]]
"""Case name to its image files."""

RECORD = ".predicted-by-medcontext"
"""The file that says that a folder holds predictions, and of which model: only such are ever written over, and DICOM
among them is no scan."""

Value = TypeVar("Value")


def find_scans(path: Path, channels: int = 1) -> dict[str, tuple[Path, ...]]:
    """Case name to image files, sorted by name.

    Args:
        path: A scan (a file, or a folder of DICOM slices), a folder of scans, a data set (its training images, or those
            that its list names), or a list of scans: text with one path a line, or a case list (CSV, JSON lines).
        channels: Of the scans; files ``NAME_0000``, ``NAME_0001``, ... of so many are the channels of one scan.

    Raises:
        MedContextError: Nothing there, nothing that can be read, or two scans of one name.
    """
    if not path.exists():
        raise MedContextError("There is no such file or folder.", file=path, remedy="check the path")
    found = _found(path, channels)
    if not found:
        raise MedContextError("There are no scans to predict here.", file=path, remedy="check the list")
    return dict(sorted(found.items()))


def _found(path: Path, channels: int) -> dict[str, tuple[Path, ...]]:
    if path.suffix.lower() == ".txt":
        return _from_text(path)
    listed = path if path.suffix.lower() in case_list.ENDINGS else case_list.find(path)
    if listed is not None:
        cases, unlabelled = case_list.read(listed)
        return {name: case.images for name, case in cases.items()} | unlabelled
    path = next((path / images for images, *_ in LAYOUTS if (path / images).is_dir()), path)
    if path.is_file() or is_series(path):
        return {case_name(path): (path,)}
    found = {name: scan for name, scan in scan_files(path).items() if not (scan / RECORD).exists()}
    if not found:
        inner = [each.name for each in sorted(path.iterdir()) if each.is_dir() and not each.name.startswith(".")]
        raise MedContextError(
            "There are no scans in this folder.",
            file=path,
            found=f"folders without scans directly in them: {', '.join(inner[:3])}" if inner else "nothing",
            expected=f"files ending in {', '.join(ENDINGS)}, or a folder of DICOM slices for each scan",
            remedy="give the folder that the scans lie in, or a list of them (.txt, one path a line)",
        )
    grouped = by_channel(found)
    wanted = [f"_{channel:04d}" for channel in range(channels)]
    if grouped and all([case_name(file)[-5:] for file in files] == wanted for files in grouped.values()):
        return grouped
    return {name: (file,) for name, file in found.items()}


def _from_text(file: Path) -> dict[str, tuple[Path, ...]]:
    """One path a line, relative to the list's folder; empty lines and those that begin with # are passed over."""
    found: dict[str, tuple[Path, ...]] = {}
    for line in case_list.read_text(file).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        scan = file.parent / line.strip()
        name = case_name(scan)
        if name in found:
            raise MedContextError(
                "Two scans of this list have the same name.",
                file=file,
                found=f"{found[name][0]} and {scan}",
                expected="names that differ: predictions are named after their scans",
                remedy="make a CSV list, with the columns name and image",
            )
        found[name] = (scan,)
    return found


def take_shard(scans: Mapping[str, Value], shard: str) -> dict[str, Value]:
    """The part of the scans that one of several machines does: the same for every one that sees the same names.

    Args:
        scans: All of them, by name.
        shard: Which part of how many, such as ``"3/8"``; every scan is in exactly one of the parts 1/8 to 8/8, and
            their numbers of scans differ by one at most.

    Raises:
        MedContextError: There is no such part.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise MedContextError(
            "There is no such part of the scans.",
            found=f"shard {shard}",
            expected="part and number of parts, such as 3/8; the first is 1/8, the last 8/8",
        )
    return {name: scans[name] for name in sorted(scans)[int(match[1]) - 1 :: int(match[2])]}

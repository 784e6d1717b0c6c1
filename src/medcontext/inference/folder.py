"""A folder of predictions: its label maps, what they were made by, and what came of every scan."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medcontext.data.content import KnownContent, scan_state
from medcontext.errors import MedContextError
from medcontext.files import read_json, write_json
from medcontext.inference.scans import RECORD, Scans
from medcontext.inference.writing import Format, ending_for
from medcontext.version import __version__

SHARE_OF_SCAN = 0.1
"""A label map takes less of the disk than this share of its compressed scan: 274 real ones, of up to 61 structures,
took 0.0003 to 0.073. It is the least that probabilities take; of hippocampi, they took 1.7 times the scan a class."""

MADE_FROM = ".made-from"
"""Folder with a file for each label map that says what its scan held; machines could not share one for all."""


BESIDE = ("probabilities", "entropy")
"""What may be asked for beside label maps; each has a folder of its own."""


class PredictionFolder:
    """A folder of predictions, which several machines may write to at once.

    A label map is up to date if it is newer than the record of what makes them, and was made from what the scan holds
    now, wherever the scan lies and whatever its date.

    Args:
        path: The folder.
        kind: Format of the label maps.
        made_by: Model and options: all that, beside the scan, decides what a label map says. Plain values.
        shard: Which part of the scans is done by this process, such as ``"3/8"``; None: all of them.
    """

    def __init__(self, path: Path, kind: Format, made_by: Mapping[str, Any], shard: str | None = None) -> None:
        self.path = path
        self._kind = kind
        self._made_by = dict(made_by)
        self._beside = [kind for kind in BESIDE if made_by.get(kind)]
        self._record = path / RECORD
        part = "" if shard is None else f"-{shard.replace('/', '-of-')}"
        self.summary = path / f"summary{part}.json"
        self._content = KnownContent(path / f".content{part}")
        self._scans: Scans = {}
        self._states: dict[str, list[str] | None] = {}

    def file(self, name: str, scan: Path) -> Path:
        """Where the label map of a scan goes."""
        return self.path / f"{name}{ending_for(self._kind, scan)}"

    def beside(self, name: str, values: str) -> Path:
        """Where the values of a scan go that are asked for beside its label map, a kind of :data:`BESIDE`."""
        return self.path / values / f"{name}.nii.gz"

    def open(self, scans: Scans, *, redo: bool, maps: int = 1) -> list[str]:
        """Make the folder ready to be written to; nothing in it is lost.

        Args:
            scans: All that are to be predicted.
            redo: Whether predictions of another model, or with other options, are to be made anew.
            maps: How many are written of each scan: its labels, and perhaps probabilities.

        Returns:
            The scans whose label maps are there and up to date.

        Raises:
            MedContextError: The folder can't be written to or has no room, holds scans or other files that would be
                written over, or predictions that were made otherwise and are not to be made anew.
        """
        files = {name: self.file(name, paths[0]) for name, paths in scans.items()}
        self._require_own_place(scans)
        recorded = self._recorded()
        in_the_way = self._in_the_way(files, predicted=recorded is not None)
        if in_the_way and not (redo and recorded is not None):
            raise MedContextError(
                "This folder holds files that are no predictions and would be written over.",
                file=self.path,
                found=f"{in_the_way[0].relative_to(self.path)} and {len(in_the_way) - 1} more",
                remedy="choose another folder" + ("" if recorded is None else ", or make all anew with --replace"),
            )
        made_by = (recorded or {}).get("made_by")
        if recorded is not None and recorded.get("format", self._kind) != self._kind:
            raise MedContextError(
                "The predictions in this folder are of another format.",
                file=self.path,
                found=f"{recorded['format']}, as was asked for then",
                expected=f"{self._kind}, as is asked for now",
                remedy="choose another folder: two label maps of one scan can't be told apart",
            )
        if recorded is not None and made_by != self._made_by and not redo:
            raise MedContextError(
                "The predictions in this folder were made by another model, or with other options.",
                file=self.path,
                found=_differences(made_by, self._made_by),
                remedy="choose another folder, or make them anew with --replace",
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if made_by != self._made_by:
                record = {"made_by": self._made_by, "format": self._kind, "medcontext": __version__}
                write_json(self._record, record)
            # A record that stays as it is says nothing of whether the folder can be written to.
            write_json(self.summary, {"scans": len(scans)})
            self._scans, self._states = scans, {name: _states(paths) for name, paths in scans.items()}
            done = [name for name, file in files.items() if self._up_to_date(name, file)]
            for name in files.keys() - set(done):
                # What is killed before it notes the new one must not leave the note of the old one; and a label map
                # without any note is not of our making.
                write_json(self._made_from(name), None)
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._require_room([path for name, paths in scans.items() if name not in done for path in paths], maps)
        return done

    def made(self, name: str) -> None:
        """Note what the label map of a scan was made from; of a scan that has changed since, that isn't known.

        Raises:
            MedContextError: The folder can't be written to.
        """
        digests = self._digests(name)
        unchanged = _states(self._scans[name]) == self._states[name]
        try:
            write_json(self._made_from(name), digests if unchanged else None)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def note(self, summary: Mapping[str, Any]) -> None:
        """Write what came of the scans so far."""
        write_json(self.summary, summary)
        self._content.save()

    def _recorded(self) -> Mapping[str, Any] | None:
        """The record; None where there is none, and nothing in it where it is of another version."""
        if not self._record.is_file():
            return None
        try:
            found = read_json(self._record)
        except MedContextError:
            return {}
        return found if isinstance(found, dict) else {}

    def _in_the_way(self, files: Mapping[str, Path], *, predicted: bool) -> list[Path]:
        """What would be written over and was not written by us, in a folder with predictions or without."""
        if predicted:
            return [file for name, file in files.items() if file.exists() and not self._made_from(name).exists()]
        every = [self.summary, *files.values(), *(self.beside(name, kind) for name in files for kind in self._beside)]
        return [file for file in every if file.exists()]

    def _up_to_date(self, name: str, file: Path) -> bool:
        written = [file, *(self.beside(name, kind) for kind in self._beside)]
        if not all(each.is_file() for each in written) or file.stat().st_mtime < self._record.stat().st_mtime:
            return False
        try:
            made_from = read_json(self._made_from(name))
        except MedContextError:
            return False
        return made_from is not None and made_from == self._digests(name)

    def _made_from(self, name: str) -> Path:
        return self.path / MADE_FROM / f"{name}.json"

    def _digests(self, name: str) -> list[str] | None:
        """Of a scan's files; None where one can't be read."""
        try:
            return [self._content.digest(path) for path in self._scans[name]]
        except MedContextError:
            return None

    def _require_own_place(self, scans: Scans) -> None:
        """Predictions among scans would be taken for scans the next time."""
        out = self.path.resolve()
        for paths in scans.values():
            for path in paths:
                if out in (path.resolve(), path.resolve().parent):
                    raise MedContextError(
                        "The folder for the predictions holds the scans themselves; predictions would be written over "
                        "them or among them.",
                        file=self.path,
                        found=str(path),
                        remedy="choose another folder",
                    )

    def _require_room(self, scans: Iterable[Path], maps: int) -> None:
        needed = SHARE_OF_SCAN * maps * sum(_size(path) for path in scans)
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise MedContextError(
                "The disk has no room for the predictions.",
                file=self.path,
                found=f"{free / 1e6:,.0f} MB free",
                expected=f"about {needed / 1e6:,.0f} MB, a tenth of the scans for each of {maps} map(s)",
                remedy="make room, or choose a folder on another disk",
            )


def file_hash(file: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def unwritable(folder: Path, error: OSError) -> MedContextError:
    """Why nothing can be written to a folder."""
    return MedContextError(
        "The predictions can't be written.",
        file=folder,
        found=error.strerror or str(error),
        remedy="make room or the folder writable, or choose another; what is there already is whole",
    )


def _states(scan: Iterable[Path]) -> list[str] | None:
    """Of a scan's files; None where one isn't there."""
    try:
        return [scan_state(path) for path in scan]
    except MedContextError:
        return None


def _size(path: Path) -> int:
    """Bytes of a scan; 0 where it isn't there, which is said when it is read."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return path.stat().st_size if path.is_file() else 0


def _differences(before: Any, now: Mapping[str, Any]) -> str:
    if not isinstance(before, dict):
        return "predictions that don't say what they were made by"
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "; ".join(f"{key}: {before.get(key)} before, {now.get(key)} now" for key in keys)

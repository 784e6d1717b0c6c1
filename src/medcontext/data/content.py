"""What is in the files of a scan, as a hash that is computed once and remembered while the files stay as they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from medcontext.data.formats import HEADER_BYTES
from medcontext.errors import MedContextError
from medcontext.files import read_json, write_json

SETTLED_SECONDS = 2.0
"""A file that changed this recently may change again without its times showing it, and isn't remembered."""

DETACHED = (".mhd", ".nhdr")
"""Headers that name a file of voxels in their folder."""


def files_of(scan: Path) -> list[Path]:
    """The files that a scan is read from: one, a header and what it names, or those of a folder of DICOM slices."""
    if scan.is_dir():
        return sorted(part for part in scan.iterdir() if part.is_file())
    if scan.suffix.lower() not in DETACHED:
        return [scan]
    with scan.open("rb") as file:
        header = file.read(HEADER_BYTES).decode("latin-1")
    return [scan, *sorted(part for part in scan.parent.iterdir() if part.name in header and part.is_file())]


def content_digest(scan: Path) -> str:
    """SHA-256 of everything that a scan is read from.

    Raises:
        MedContextError: It can't be read.
    """
    try:
        return _digest(files_of(scan))
    except OSError as error:
        raise _unreadable(scan, error) from error


def scan_state(scan: Path) -> str:
    """What changes whenever a file of a scan does: a hash of their paths, sizes, numbers on the disk and times.

    Raises:
        MedContextError: It isn't there.
    """
    try:
        return _named([_state(file) for file in files_of(scan)])
    except OSError as error:
        raise _unreadable(scan, error) from error


class KnownContent:
    """Remembers :func:`content_digest`, so that a data set of a hundred gigabytes isn't read again at every start.

    A file counts as unchanged while its size, its number on the disk and its times of change are the same. The last of
    these is set by the system alone, so that a file put in another's place is noticed even if it was given its date.

    Args:
        path: Where they are kept, a JSON file; if it can't be read, it is begun anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            kept = read_json(path)
        except (MedContextError, OSError):
            kept = None
        self._known: dict[str, str] = kept if isinstance(kept, dict) else {}

    def digest(self, scan: Path) -> str:
        """As :func:`content_digest`."""
        try:
            files = files_of(scan)
            states = [_state(file) for file in files]
            name = _named(states)
            if name in self._known:
                return str(self._known[name])
            start = time.time_ns()
            digest = _digest(files)
        except OSError as error:
            raise _unreadable(scan, error) from error
        if all(start - max(changed) > SETTLED_SECONDS * 1e9 for _, _, _, *changed in states):
            self._known[name] = digest
        return digest

    def save(self) -> None:
        """Write them down; what can't be is computed again the next time."""
        with contextlib.suppress(OSError):
            write_json(self._path, self._known)


def _digest(files: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _state(file: Path) -> tuple[str, int, int, int, int]:
    state = file.stat()
    return str(file.absolute()), state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns


def _named(states: Sequence[tuple[str, int, int, int, int]]) -> str:
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def _unreadable(scan: Path, error: OSError) -> MedContextError:
    return MedContextError(
        "This file can't be read.", file=scan, found=str(error), remedy="check the path and its permissions"
    )

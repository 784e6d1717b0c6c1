"""Writing files so that a killed process leaves the old file or the new one, never half of one; reading them back."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medcontext.errors import MedContextError

LOCK = ".lock"
"""Name of the file in a folder by which one process keeps others out of it."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the place of ``path``, on failure it is removed.

    The temporary name ends like ``path`` does, since some writers choose their format by the ending.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".unfinished-{uuid.uuid4().hex[:8]}-{path.name}")
    # With the rights of any new file, which tempfile's are not; the umask can only be asked for by changing it.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder; on success it takes the place of ``path``, on failure ``path`` stays as it was."""
    parent = path.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=parent) as room:
        new = Path(room) / "new"
        new.mkdir()
        yield new
        if path.exists():
            path.rename(Path(room) / "old")
        new.rename(path)


def require_replaceable(folder: Path) -> None:
    """Find out, before hours of work, that :func:`replacing_folder` can't put another folder in the place of this one.

    Raises:
        MedContextError: It is a disk of its own, or where this process is.
    """
    if folder.is_dir() and (folder.is_mount() or folder.samefile(Path.cwd())):
        raise MedContextError(
            "This folder can't be made anew: it is a disk of its own, or the folder that this was called in.",
            file=folder,
            remedy=f"name a folder in it, such as {folder / 'run'}",
        )


@contextmanager
def alone_in(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a folder, which the system takes back however the process ends. Where a file system has no
    locks, there is nothing to hold.

    Args:
        folder: The folder.
        wait: Until no other process holds it.

    Raises:
        MedContextError: Another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        raise MedContextError(
            "Another process is at work in this folder.",
            file=folder,
            remedy="wait for it or stop it, or choose another folder",
        ) from None
    except NotImplementedError:
        pass
    try:
        yield
    finally:
        lock.release()


def require_writable(*paths: Path | None) -> None:
    """Find out before hours of work that a file can't be written after them; those that are None are passed over.

    Raises:
        MedContextError: Such a file is a folder, or nothing can be written beside it.
    """
    for path in paths:
        if path is None:
            continue
        found = "it is a folder" if path.is_dir() else None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            found = f"{error.strerror or error}: {path.parent}"
        if found is not None:
            raise MedContextError(
                "This file can't be written.", file=path, found=found, remedy="choose another place for it"
            )


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, all of it or nothing. What no text is, as some file names, is written as escapes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        MedContextError: The file is absent or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MedContextError("A file is missing.", file=path, remedy="check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MedContextError("This file is not valid JSON.", file=path, found=str(error)) from None

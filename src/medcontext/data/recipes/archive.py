"""Unpacking archives that came from somewhere: nothing outside the target, nothing over a file, all or nothing."""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from medcontext.data.recipes.recipe import is_junk
from medcontext.errors import MedContextError
from medcontext.files import read_json, write_json

SOURCE = ".source.json"
"""In an unpacked folder: which archive it is from."""

CHUNK = 1 << 20

DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    OSError,
    ValueError,
)
"""What Python's readers raise on archives that are cut off, damaged, or packed in a way that they don't know."""


@dataclass(frozen=True)
class Member:
    """A file in an archive: its path with ``/``, its size in bytes when unpacked, and a way to read it."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def member_names(path: Path) -> list[str]:
    """Paths of the files in an archive, without what file managers leave in it.

    Raises:
        MedContextError: As :func:`extract`, before anything is written.
    """
    with _reading(path) as members:
        return [member.name for member in members]


def extract(path: Path, to: Path, update: Callable[[int, int], None] | None = None) -> None:
    """Unpack a zip or tar archive (also ``.tar.gz`` and the like) to the folder ``to``, which appears when it is whole.

    If ``to`` was unpacked from the very same file, nothing is done; if from another, it is replaced. The rules are
    the same for both kinds and stricter than tarfile's ``data`` filter: files and folders only, so no link leads out.

    Args:
        path: The archive.
        to: The folder to make.
        update: Called with (bytes done, bytes in all).

    Raises:
        MedContextError: No archive, a damaged or an encrypted one; a member with an absolute path, ``..``, a link or a
            device; two members of one name; more than the disk has room for; ``to`` is there and was not unpacked here.
    """
    origin = {"archive": path.name, "bytes": path.stat().st_size, "modified": path.stat().st_mtime_ns}
    if to.exists():
        if not (to / SOURCE).is_file():
            raise MedContextError(
                "This folder was not unpacked from an archive here.",
                file=to,
                expected="no such folder",
                remedy="move it away, or import to another folder",
            )
        if read_json(to / SOURCE) == origin:
            return
    unfinished = to.with_name(f".unfinished-{to.name}")
    with _reading(path) as members:
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            _require_room(path, to.parent, sum(member.size for member in members))
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            _write(members, unfinished, update)
            write_json(unfinished / SOURCE, origin)
            shutil.rmtree(to, ignore_errors=True)
            unfinished.rename(to)
        except OSError as error:
            raise MedContextError(
                "This archive could not be unpacked.", file=path, found=str(error), remedy=f"look at {to.parent}"
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _reading(path: Path) -> Iterator[list[Member]]:
    """The members, while the archive is open. Every way of being damaged becomes one error that names it."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                yield _checked(path, [_of_zip(path, packed, each) for each in packed.infolist() if not each.is_dir()])
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as tape:
                members = _checked(path, [_of_tar(path, tape, each) for each in tape if not each.isdir()])
                # The checksum of a packed tar stands at its very end, beyond what tarfile reads.
                while tape.fileobj is not None and tape.fileobj.read(CHUNK):
                    pass
                yield members
        else:
            raise MedContextError(
                "This file is not an archive that can be unpacked.",
                file=path,
                expected="a zip or tar archive, or the folder that it unpacks to",
                remedy="check that the download is complete",
            )
    except DAMAGED as error:
        raise MedContextError(
            "This archive is damaged or cut off.",
            file=path,
            found=f"{type(error).__name__}: {error}",
            remedy="download it again",
        ) from error


def _of_zip(path: Path, packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise _refused(path, info.filename, "a link or a device", "files and folders only")
    if info.flag_bits & 1:
        raise _refused(path, info.filename, "encrypted", "an archive without a password")
    return Member(info.filename, info.file_size, lambda: packed.open(info))


def _of_tar(path: Path, tape: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    if not info.isreg():
        raise _refused(path, info.name, "a link or a device", "files and folders only")
    return Member(info.name, info.size, lambda: tape.extractfile(info))


def _checked(path: Path, members: list[Member]) -> list[Member]:
    """Members under clean names, each of which stays inside the target; what file managers left is dropped."""
    kept: dict[str, Member] = {}
    for member in members:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or "\\" in member.name or ":" in (name.parts or (":",))[0]:
            raise _refused(path, member.name, "a path that could lead out of the folder", "paths below the folder")
        if is_junk(name):
            continue
        if str(name) in kept:
            raise _refused(path, member.name, "there twice", "every file once")
        kept[str(name)] = Member(str(name), member.size, member.open)
    return list(kept.values())


def _refused(path: Path, name: str, found: str, expected: str) -> MedContextError:
    return MedContextError(
        "This archive is not safe to unpack.",
        file=path,
        found=f"{name!r}: {found}",
        expected=expected,
        remedy="get it from its owners again; or look at it, unpack it yourself and give the folder",
    )


def _require_room(path: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MedContextError(
            "There is not enough room to unpack this archive.",
            file=path,
            found=f"{free / 1e9:.1f} GB free in {folder}",
            expected=f"{needed / 1e9:.1f} GB",
            remedy="make room, or import to another disk",
        )


def _write(members: list[Member], folder: Path, update: Callable[[int, int], None] | None) -> None:
    done, total = 0, sum(member.size for member in members)
    for member in members:
        target = folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        source: Any = member.open()
        with source, target.open("xb") as written:
            while chunk := source.read(CHUNK):
                written.write(chunk)
                done += len(chunk)
                if update:
                    update(done, total)

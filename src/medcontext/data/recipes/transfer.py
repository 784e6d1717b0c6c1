"""Downloading a large file so that nothing is fetched twice and nothing wrong is kept."""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medcontext.errors import MedContextError
from medcontext.files import read_json, write_json
from medcontext.version import __version__

ATTEMPTS = 5
"""How often in a row an attempt may bring nothing new before it is given up."""

WAIT_SECONDS = 1.0
"""Before the second attempt; twice as long before every further one."""

TIMEOUT_SECONDS = 30.0
CHUNK = 1 << 18
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Answers of a server that may be another one later."""

Update = Callable[[int, int], None]


class _InterruptedError(Exception):
    """The transfer broke off; it may go on."""


def fetch(
    url: str,
    to: Path,
    *,
    md5: str | None = None,
    sha256: str | None = None,
    size: int | None = None,
    update: Update | None = None,
) -> Path:
    """Download a file; it appears under its name when it is whole and its checksum is right.

    What is there of an earlier, broken download (``NAME.part``) is gone on with, if the server still has the same file
    (``Range`` with ``If-Range``); otherwise it starts over. A broken connection is tried again.

    Args:
        url: http or https.
        to: The file to make. If it is there already and its checksum is right, nothing is downloaded.
        md5: Checksum, in hexadecimal.
        sha256: Likewise.
        size: In bytes.
        update: Called with (bytes done, bytes in all); in all is 0 while it is not known.

    Raises:
        MedContextError: Another scheme; the server has no such file or can't be reached; another size or checksum (what
            was downloaded is removed); no room on the disk; ``to`` is there and is another file.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise MedContextError("This address can't be downloaded from.", found=url, expected="http:// or https://")
    if to.exists():
        _require_right(to, url, md5, sha256, size, "move it away; it is not written over")
        return to
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(to.name + ".part")
    _transfer(url, part, size, update)
    try:
        _require_right(part, url, md5, sha256, size, "try again; if it stays so, the file on the server has changed")
    except MedContextError:
        _discard(part)
        raise
    part.replace(to)
    _discard(part)
    return to


def _transfer(url: str, part: Path, size: int | None, update: Update | None) -> None:
    """Attempt after attempt until the file is whole; only those in a row that bring nothing new are counted."""
    furthest, idle = _length(part), 0
    while True:
        try:
            _attempt(url, part, size, update)
            return
        except _InterruptedError as error:
            idle = 0 if _length(part) > furthest else idle + 1
            furthest = max(furthest, _length(part))
            if idle >= ATTEMPTS:
                raise MedContextError(
                    "The download broke off.",
                    file=url,
                    found=str(error),
                    remedy="check the network and try again: it goes on where it stopped",
                ) from error
            time.sleep(WAIT_SECONDS * 2 ** max(0, idle - 1))


def _attempt(url: str, part: Path, size: int | None, update: Update | None) -> None:
    notes = _notes(part, url)
    have = _length(part) if notes else 0
    if notes and have == notes["total"]:
        return
    headers = {"User-Agent": f"medcontext/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": notes["validator"]}
    with _open(urllib.request.Request(url, headers=headers), part) as response:
        have, total = _extent(response, part, have)
        if size is not None and total not in (None, size):
            raise MedContextError(
                "The file on the server has another size.",
                file=url,
                found=f"{total} bytes",
                expected=f"{size} bytes",
                remedy="the file on the server has changed; look at its page",
            )
        _require_room(part, url, (total or size or 0) - have)
        etag = response.headers.get("ETag", "")
        # A weak ETag does not promise the same bytes.
        validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
        if not have:
            _discard(part)
        if validator:
            write_json(_notes_file(part), {"url": url, "validator": validator, "total": total})
        _receive(response, part, have, total, update)


def _open(request: urllib.request.Request, part: Path) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            # The file has become shorter than what is here of it.
            _discard(part)
        if error.code == 416 or error.code in BUSY:
            raise _InterruptedError(f"the server answers {error.code} {error.reason}") from error
        raise MedContextError(
            "The server does not give this file.",
            file=request.full_url,
            found=f"{error.code} {error.reason}",
            remedy="check the address; it may have moved",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(str(getattr(error, "reason", error)) or type(error).__name__) from error


def _extent(response: Any, part: Path, have: int) -> tuple[int, int | None]:
    """How many bytes the answer goes on after, and how many there are in all (None: not said)."""
    if response.status != 206:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != have:
        _discard(part)
        raise _InterruptedError("the server answers with another part of the file than was asked for")
    return have, None if found[2] == "*" else int(found[2])


def _receive(response: Any, part: Path, have: int, total: int | None, update: Update | None) -> None:
    with part.open("ab") as file:
        while True:
            try:
                chunk = response.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _InterruptedError(str(error) or type(error).__name__) from error
            if not chunk:
                break
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                raise MedContextError(
                    "The download could not be written.",
                    file=part,
                    found=str(error),
                    remedy="make room; it goes on where it stopped",
                ) from error
            have += len(chunk)
            if update:
                update(have, total or 0)
    if total is not None and have < total:
        raise _InterruptedError(f"the connection was closed after {have} of {total} bytes")


def _require_right(file: Path, url: str, md5: str | None, sha256: str | None, size: int | None, remedy: str) -> None:
    length = file.stat().st_size
    wrong = [(f"{length} bytes", f"{size} bytes")] if size not in (None, length) else []
    for kind, expected in (("md5", md5), ("sha256", sha256)):
        if expected is not None and (found := _digest(file, kind)) != expected.lower():
            wrong.append((f"{kind} {found}", f"{kind} {expected.lower()}"))
    if wrong:
        raise MedContextError(
            "This file is not the one that was to be downloaded.",
            file=file,
            found=", ".join(found for found, _ in wrong),
            expected=f"{', '.join(expected for _, expected in wrong)}, of {url}",
            remedy=remedy,
        )


def _digest(file: Path, kind: str) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def _require_room(part: Path, url: str, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise MedContextError(
            "There is not enough room for this download.",
            file=url,
            found=f"{free / 1e9:.1f} GB free in {part.parent}",
            expected=f"{needed / 1e9:.1f} GB",
            remedy="make room, or download to another disk",
        )


def _length(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _notes_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _notes(part: Path, url: str) -> dict[str, Any]:
    """What is known of the file that ``part`` is the beginning of; empty if it can't be gone on with."""
    if not part.is_file() or not _notes_file(part).is_file():
        return {}
    notes: dict[str, Any] = read_json(_notes_file(part))
    return notes if notes.get("url") == url else {}


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _notes_file(part).unlink(missing_ok=True)

"""NiiVue, which draws scans in the browser: which version, where it lies, and how it gets there.

It is third-party code and in no repository of ours: the build puts it into the package (``hatch_build.py``), and
``python -m medcontext.viewer.niivue`` does so where the build could not. For the build, which knows no other package,
only the standard library is needed here. Source: https://www.npmjs.com/package/@niivue/niivue, BSD-2-Clause.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

from medcontext.errors import MedContextError
from medcontext.files import replacing

PACKAGE = "@niivue/niivue"
VERSION = "0.69.0"
SHA512 = "YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA=="
"""Of the package's archive, as the npm registry declares it."""

MEMBER = "package/dist/niivue.umd.js"
PUBLIC_REGISTRY = "https://registry.npmjs.org"
SECONDS = 120.0
MOST_BYTES = 1 << 26

FILE = Path(__file__).parent / "vendor" / f"niivue-{VERSION}.js"
NOTICES = Path(__file__).parent / "NOTICES.txt"
"""The licences of NiiVue and of what is built into it: its archive on npm holds none."""


def require() -> Path:
    """Where NiiVue lies.

    Raises:
        MedContextError: It is not there, with the command that fetches it.
    """
    if not FILE.is_file():
        raise MedContextError(
            "NiiVue, which draws scans in the browser, is not in this installation.",
            file=FILE,
            remedy=f"fetch it from npm, once: {sys.executable} -m medcontext.viewer.niivue",
        )
    return FILE


def fetch() -> Path:
    """Put NiiVue into the package: from the npm registry that this machine is set up for, by npm where there is one.

    Raises:
        MedContextError: No registry can be reached, the archive is another one, or the package can't be written to.
    """
    with tempfile.TemporaryDirectory() as room:
        try:
            archive = _by_npm(Path(room)) if shutil.which("npm") else _by_http(Path(room))
            found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        except (OSError, subprocess.SubprocessError) as error:
            raise MedContextError(
                f"{PACKAGE} {VERSION} could not be fetched from the npm registry.",
                found=_reason(error),
                remedy="check the network; another registry can be named by NPM_CONFIG_REGISTRY",
            ) from error
        if found != SHA512:
            raise MedContextError(
                "The npm registry gave another archive than the one that was pinned; it was not unpacked.",
                found=f"{archive.stat().st_size:,} bytes, SHA-512 {found}",
                expected=f"SHA-512 {SHA512}",
                remedy="check the registry",
            )
        with tarfile.open(archive, "r:gz") as content:
            # One member is read; nothing is written where the archive says.
            member = content.extractfile(MEMBER)
            assert member is not None, "the archive is pinned"
            script = member.read()
    try:
        with replacing(FILE) as temporary:
            temporary.write_bytes(script)
    except OSError as error:
        raise MedContextError(
            "NiiVue could not be put into the package.",
            file=FILE,
            found=_reason(error),
            remedy="run the same command as the user who installed medcontext",
        ) from error
    return FILE


def _by_npm(room: Path) -> Path:
    """By npm itself, which knows the registry, its certificate and the proxy; no script of the package is run."""
    npm = shutil.which("npm")
    assert npm is not None
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--fetch-retries=1", "--loglevel=error"]
    subprocess.run(command, cwd=room, check=True, capture_output=True, text=True, timeout=SECONDS)
    return next(room.glob("*.tgz"))


def _by_http(room: Path) -> Path:
    """Where there is no npm: from the registry that its environment variable names, or the public one."""
    registry = os.environ.get("NPM_CONFIG_REGISTRY") or PUBLIC_REGISTRY
    address = f"{registry.rstrip('/')}/{PACKAGE}/-/{PACKAGE.rpartition('/')[2]}-{VERSION}.tgz"
    with urllib.request.urlopen(address, timeout=SECONDS) as response:
        archive = room / "niivue.tgz"
        archive.write_bytes(response.read(MOST_BYTES))
    return archive


def _reason(error: Exception) -> str:
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
    return ((said or str(error)).strip() or type(error).__name__).splitlines()[0][:300]


if __name__ == "__main__":
    try:
        print(fetch())
    except MedContextError as problem:
        sys.exit(f"error: {problem}")

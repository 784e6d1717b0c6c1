"""The page: one HTML document whose script and style are inside; NiiVue and the volumes beside it, or inside too."""

from __future__ import annotations

import base64
import json
import secrets
import zlib
from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from medcontext.viewer.niivue import NOTICES
from medcontext.viewer.scene import Scene

SOURCES = Path(__file__).parent / "page"
SCRIPTS = ("shaders.js", "volumes.js", "picture.js", "controls.js", "main.js")
NIIVUE = "niivue.js"


def policy(nonce: str, *, served: bool) -> str:
    """What the page may do: run its own scripts, and reach nothing but the server that it came from."""
    own = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data: blob:"
    return own + ("; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'" if served else "")


def served_page(scene: Scene) -> tuple[bytes, str]:
    """The page for a server that has ``niivue.js`` and the scene's files beside it, and its security policy."""
    nonce = secrets.token_urlsafe(16)
    page = _page(scene.about, nonce, head="", niivue=f'<script nonce="{nonce}" src="{NIIVUE}"></script>', data="")
    return page.encode(), policy(nonce, served=True)


def single_file(scene: Scene, niivue: Path) -> Iterator[str]:
    """The same page with everything inside, piece by piece; it needs no network and no server."""
    nonce = secrets.token_urlsafe(16)
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy(nonce, served=False)}">'
    cut = f"@@{nonce}@@"
    script = niivue.read_text(encoding="utf-8").replace("</script", "<\\/script")
    before, between, after = _page(scene.about, nonce, head, niivue=cut, data=cut).split(cut)
    yield f'{before}<script nonce="{nonce}">{script}</script>{between}'
    for name, parts in scene.files.items():
        yield f'<script type="text/plain" data-file="{escape(name)}">'
        yield base64.b64encode(_gzipped(parts)).decode("ascii")
        yield "</script>\n"
    yield after


def _page(about: dict[str, Any], nonce: str, head: str, niivue: str, data: str) -> str:
    # In a script element, only "<" could end it or begin another.
    described = json.dumps(about, allow_nan=False).replace("<", "\\u003c")
    return Template((SOURCES / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(about["title"]),
        head=head,
        nonce=nonce,
        style=(SOURCES / "style.css").read_text(encoding="utf-8"),
        script="\n".join((SOURCES / name).read_text(encoding="utf-8") for name in SCRIPTS),
        niivue=niivue,
        notices=escape(NOTICES.read_text(encoding="utf-8")),
        about=described,
        data=data,
    )


def _gzipped(parts: tuple[memoryview, ...]) -> bytes:
    worker = zlib.compressobj(wbits=31)
    return b"".join([*(worker.compress(part) for part in parts), worker.flush()])

"""Look at a scan and its label maps in the browser."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

from medcontext.errors import MedContextError
from medcontext.files import replacing
from medcontext.viewer import niivue
from medcontext.viewer.html import NIIVUE, served_page, single_file
from medcontext.viewer.names import find_names, read_names
from medcontext.viewer.scene import Scene, make_scene
from medcontext.viewer.server import Resource, Server

SERVED_VOXELS = 110_000_000
"""Of a scan in the browser, 512 x 512 x 419: its textures take up to 2 GB of the graphics card's memory."""

FILE_VOXELS = 40_000_000
"""Of a scan in one HTML file, 512 x 512 x 152: a CT makes a file of 54 MB, float32 numbers up to 200 MB."""


def open_scene(scan: Path, labels: Sequence[Path], truth: Path | None, names: Path | None, most: int) -> Scene:
    """Read a scan, its label maps and what they are called.

    Args:
        scan: The scan, of any kind that can be trained on.
        labels: Label maps on its grid, such as predictions.
        truth: The true label map, which the others are compared with; None: they are compared with the first.
        names: ``dataset.json``, a data set's folder or a run folder; None: one of these near the files, if there is.
        most: Voxels of the scan that the page may hold.

    Raises:
        MedContextError: A file can't be read, a label map lies on another grid, or there are no names there.
    """
    niivue.require()
    near = [*([truth] if truth else []), *labels, scan]
    return make_scene(scan, labels, truth, read_names(names) if names else find_names(near), most)


def write_view(scene: Scene, out: Path) -> None:
    """Write the viewer as one HTML file.

    Raises:
        MedContextError: The name of the file is not one of a page.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise MedContextError(
            "The viewer is written as a page.", file=out, found=f"ending '{out.suffix}'", expected="ending '.html'"
        )
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(single_file(scene, niivue.require()))


def serve_view(scene: Scene, *, browser: bool, say: Callable[[str], None]) -> None:
    """Serve the viewer on this machine until it is interrupted (Ctrl-C).

    Args:
        scene: What to show.
        browser: Open it in the browser.
        say: Called with the address once it can be opened.
    """
    with viewer_server(scene) as server:
        say(server.address)
        if browser:
            # Some browsers run in the terminal, and this would return only when they end.
            threading.Thread(target=webbrowser.open, args=(server.address,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def viewer_server(scene: Scene) -> Server:
    """A server of the page, of NiiVue and of the scene's volumes, not yet running."""
    page, policy = served_page(scene)
    volumes = {name: Resource("application/octet-stream", parts) for name, parts in scene.files.items()}
    script = Resource("text/javascript; charset=utf-8", (niivue.require().read_bytes(),))
    return Server({"": Resource("text/html; charset=utf-8", (page,), policy), NIIVUE: script, **volumes})


def size_note(scene: Scene) -> str | None:
    """What to say of a scan that is too large to be shown whole."""
    step, shape = scene.about["step"], scene.about["shape"]
    if step == [1, 1, 1]:
        return None
    shown = [-(-length // each) for length, each in zip(shape, step, strict=True)]
    return (
        f"{_size(shape)} voxels are too many: {_size(shown)} of them are shown, and all of them counted in the volumes."
    )


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))

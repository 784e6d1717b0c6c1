"""``medcontext view``. The signature is the command line, as in :mod:`.commands`."""

from __future__ import annotations

from pathlib import Path

from medcontext.progress import Progress


def view(
    scan: Path,
    labels: tuple[Path, ...] = (),
    truth: Path | None = None,
    out: Path | None = None,
    names: Path | None = None,
    no_browser: bool = False,
) -> int:
    """Look at a scan and its label maps in the browser: three planes and 3D, until Ctrl-C; or write that as one page.

    Args:
        scan: A scan: a file, or a folder of DICOM slices.
        labels: Label maps on its grid, such as predictions.
        truth: The true label map; the others are compared with it, and without it with the first of them.
        out: Write one HTML file instead, which needs no network.
        names: What labels are called: a dataset.json, a data set or a run folder; None: one that lies near the files.
        no_browser: Only print the address.
    """
    from medcontext.viewer.view import FILE_VOXELS, SERVED_VOXELS, open_scene, serve_view, size_note, write_view

    scene = open_scene(scan, labels, truth, names, FILE_VOXELS if out else SERVED_VOXELS)
    if note := size_note(scene):
        Progress().say(note)
    if out is not None:
        write_view(scene, out)
        print(f"viewer: {out} ({out.stat().st_size / 1e6:,.1f} MB)")
        return 0
    serve_view(scene, browser=not no_browser, say=lambda address: print(f"{address}\nCtrl-C ends it.", flush=True))
    return 0

"""From a download to a data set: a case list, ``dataset.json`` and the published splits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from medcontext.data.recipes.archive import extract, member_names
from medcontext.data.recipes.catalogue import RECIPES, recipe_named, where_to_get
from medcontext.data.recipes.recipe import Contents, Recipe, files_of
from medcontext.data.recipes.transfer import fetch
from medcontext.errors import MedContextError
from medcontext.files import read_json, write_json, write_text
from medcontext.progress import Progress

CASES = "cases.jsonl"
DESCRIPTION = "dataset.json"
SPLITS = "splits"
SCANS = "scans"
DOWNLOAD = "download"
"""What an imported data set's folder holds; ``download`` only while it is being fetched."""

MEGABYTE = 10**6


def import_dataset(recipe: str, source: Path, out: Path, *, progress: Progress | None = None) -> Path:
    """Make a data set of an official download.

    An archive is unpacked to ``out/scans``; the scans of a folder stay where they are. The case list is written last,
    so what a killed import leaves is no data set; called again it does what is left to do.

    Args:
        recipe: Name of the recipe.
        source: The archive as its owners give it out, or the folder that it unpacks to.
        out: The folder of the data set; new, or of an earlier import by this recipe.
        progress: Where to say how far it is.

    Returns:
        ``out``.

    Raises:
        MedContextError: No such recipe or source; the source is something else, not complete, or not safe to unpack;
            ``out`` holds something else.
    """
    chosen = recipe_named(recipe)
    if not source.exists():
        raise MedContextError(
            "The download is not there.", file=source, expected=chosen.layout, remedy=where_to_get(recipe)
        )
    _claim(out, chosen)
    folder = source
    if not source.is_dir():
        _require_match(chosen, source, member_names(source))
        folder = out / SCANS
        with (progress or Progress(quiet=True)).task("unpacking, MB") as update:
            extract(source, folder, _in_megabytes(update))
    files = files_of(folder)
    _require_match(chosen, source, (file.relative_to(folder).as_posix() for file in files))
    _write(out, chosen, chosen.read(folder, files))
    return out


def fetch_dataset(recipe: str, out: Path, *, progress: Progress | None = None) -> Path:
    """Download an openly licensed data set and import it; a broken download goes on where it stopped.

    Args:
        recipe: Name of the recipe.
        out: As in :func:`import_dataset`; if the data set is there already, nothing is done.
        progress: Where to say how far it is.

    Returns:
        ``out``.

    Raises:
        MedContextError: As :func:`import_dataset` and :func:`medcontext.data.recipes.transfer.fetch`; or its owners ask
            for a registration, and the error says where.
    """
    chosen = recipe_named(recipe)
    if chosen.download is None:
        raise MedContextError(
            "This data set can't be fetched: its owners ask for a registration.",
            found=chosen.name,
            remedy=f"download it yourself and import it\n{where_to_get(recipe)}",
        )
    _claim(out, chosen)
    if (out / CASES).is_file():
        return out
    url = chosen.download.url
    archive = out / DOWNLOAD / PurePosixPath(url).name
    progress = progress or Progress(quiet=True)
    with progress.task("downloading, MB") as update:
        fetch(url, archive, md5=chosen.download.md5, update=_in_megabytes(update))
    import_dataset(recipe, archive, out, progress=progress)
    archive.unlink()
    archive.parent.rmdir()
    return out


def _in_megabytes(update: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Of a counter of bytes; called on when the number has changed, and reaching the total at the last byte only."""
    shown = None

    def report(done: int, total: int) -> None:
        nonlocal shown
        # A server that does not say how long a file is lets total be 0.
        now = done // MEGABYTE, max(done, total) // MEGABYTE + 1
        if done == total:
            now = now[1], now[1]
        if now != shown:
            shown = now
            update(*now)

    return report


def _claim(out: Path, recipe: Recipe) -> None:
    """Make the folder; refuse one with anything in it that an import by this recipe does not make."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in out.iterdir()}
    except OSError as error:
        raise MedContextError(
            "No data set can be written here.", file=out, found=str(error), remedy="import to another folder"
        ) from error
    strange = sorted(
        name for name in names - {CASES, DESCRIPTION, SPLITS, SCANS, DOWNLOAD} if not name.startswith(".unfinished-")
    )
    owner = None
    if not strange and DESCRIPTION in names:
        owner = read_json(out / DESCRIPTION).get("recipe")
    if strange or (owner != recipe.name and names & {DESCRIPTION, CASES}):
        found = ", ".join(strange[:5]) if strange else f"a data set by {owner or 'other means'}"
        raise MedContextError(
            "This folder holds something else.",
            file=out,
            found=found,
            expected=f"no such folder, an empty one, or one that '{recipe.name}' was imported to",
            remedy="import to another folder",
        )


def _require_match(recipe: Recipe, source: Path, files: Iterable[str]) -> None:
    """Refuse another download than the one that was asked for, and say what it looks like."""
    files = list(files)
    if recipe.matches(files):
        return
    others = [name for name, other in RECIPES.items() if other.matches(files)]
    found = ", ".join(files[:3]) + (f" and {len(files) - 3} more files" if len(files) > 3 else "")
    raise MedContextError(
        f"This is not the download of '{recipe.name}'.",
        file=source,
        found=(found or "no files") + (f"; it looks like {' or '.join(others)}" if others else ""),
        expected=recipe.layout,
        remedy="check the recipe's name and the file; an archive within an archive has to be unpacked first",
    )


def _write(out: Path, recipe: Recipe, contents: Contents) -> None:
    (out / CASES).unlink(missing_ok=True)
    for split in contents.splits:
        write_json(out / SPLITS / f"{split['name']}.json", split)
    labelled = sum(case.label is not None for case in contents.cases)
    owned = {
        "recipe": recipe.name,
        "source": recipe.source,
        "licence": recipe.licence,
        "numTraining": labelled,
        "file_ending": ".nii.gz",
        "protocol": contents.protocol,
    }
    write_json(out / DESCRIPTION, {**contents.description, **owned})
    lines = [
        _line(
            out,
            {
                "name": case.name,
                "images": list(case.images),
                "label": case.label,
                "patient": case.patient,
                "stratum": case.stratum,
            },
        )
        for case in contents.cases
    ]
    write_text(out / CASES, "".join(lines))


def _line(out: Path, case: Mapping[str, Any]) -> str:
    """A line of the case list. Scans in ``out`` are named from there, so that it can be moved; others in full."""
    scans = (out / SCANS).absolute()

    def place(path: Path) -> str:
        whole = Path(os.path.abspath(path))
        return whole.relative_to(out.absolute()).as_posix() if whole.is_relative_to(scans) else str(whole)

    values = {key: value for key, value in case.items() if key != "stratum" or value is not None}
    return json.dumps(values, default=place) + "\n"

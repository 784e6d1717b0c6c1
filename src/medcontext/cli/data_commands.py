"""``medcontext data ...``: data sets by name. The signatures are the command line, as in :mod:`.commands`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medcontext.progress import Progress


def recipes(name: str | None = None) -> int:
    """List the data sets that are known by name, or say everything about one.

    Args:
        name: One of them.
    """
    from medcontext.cli.tables import print_table, recipes_table
    from medcontext.data.recipes.catalogue import RECIPES, where_to_get

    if name is None:
        print_table(recipes_table(RECIPES.values()))
    else:
        print(where_to_get(name))
    return 0


def bring(name: str, source: Path, out: Path) -> int:
    """Make a data set of an official download: an archive, or the folder it unpacks to.

    Args:
        name: Name of the data set; 'medcontext data list' knows them.
        source: The archive, which is unpacked, or the folder, whose scans stay where they are.
        out: Folder to make.
    """
    from medcontext.data.recipes.importing import import_dataset

    return _done(import_dataset(name, source, out, progress=Progress()))


def fetch(name: str, out: Path) -> int:
    """Download an openly licensed data set and import it; called again, it goes on where it stopped.

    Args:
        name: Name of the data set; 'medcontext data list' knows them.
        out: Folder to make.
    """
    from medcontext.data.recipes.importing import fetch_dataset

    return _done(fetch_dataset(name, out, progress=Progress()))


def _done(out: Path) -> int:
    from medcontext.data.dataset import open_dataset
    from medcontext.data.split_file import read_split_file

    dataset = open_dataset(out)
    print(f"{dataset.name}: {len(dataset.cases)} labelled cases, {len(dataset.test)} without a label, in {out}")
    for file in sorted((out / "splits").glob("*.json")):
        print(f"split {file.stem} ({read_split_file(file).hash}): {file}")
    print(f"Next: medcontext check {out}")
    return 0


COMMANDS: dict[str, Callable[..., int]] = {"list": recipes, "import": bring, "fetch": fetch}

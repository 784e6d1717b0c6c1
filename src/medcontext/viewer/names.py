"""What labels and channels are called: as a data set's ``dataset.json`` or a run's plan says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from medcontext.data.description import FILE, read_description
from medcontext.data.labels import Labels
from medcontext.errors import MedContextError

PLAN = "plan.json"
LEVELS = 3
"""How many folders up from a file its names are looked for: predictions lie in RUN/test/predictions."""


@dataclass(frozen=True)
class Names:
    """What is declared.

    Attributes:
        labels: Number to name, in the order of their colours; the background left out.
        modality: Of each channel; empty where nothing is said.
    """

    labels: Mapping[int, str] = field(default_factory=dict)
    modality: tuple[str, ...] = ()


def read_names(path: Path) -> Names:
    """From a ``dataset.json``, a data set's folder, or a run folder.

    Raises:
        MedContextError: There is neither, or it can't be read.
    """
    found = _names_in(path.parent if path.name in (FILE, PLAN) else path)
    if found is None:
        raise MedContextError(
            "No names of labels are here.",
            file=path,
            expected=f"a {FILE}, a data set's folder with one in it, or a run folder",
            remedy="give one of these, or leave it out: labels are then shown by their numbers",
        )
    return found


def find_names(files: Iterable[Path]) -> Names:
    """The names declared nearest to one of these files, in its folder or a few above; none where there are none.

    What lies there and can't be read is passed over: nobody has asked for it.
    """
    for file in files:
        for folder in list(file.resolve().parents)[:LEVELS]:
            with suppress(MedContextError):
                if (found := _names_in(folder)) is not None:
                    return found
    return Names()


def _names_in(folder: Path) -> Names | None:
    if (folder / PLAN).is_file() and (folder / "config.yaml").is_file():
        from medcontext.data.plan_file import read_plan

        return Names(_by_number(read_plan(folder / PLAN).labels))
    if (folder / FILE).is_file():
        described = read_description(folder)
        return Names(_by_number(described.labels) if described.labels else {}, described.modality)
    return None


def _by_number(labels: Labels) -> dict[int, str]:
    """The report's names and its order: of regions by the number that their voxels get, else of labels."""
    return {number: name for number, (name, _) in labels.structures.items()} | {
        number: name for number, name in labels.names.items() if number not in labels.structures
    }

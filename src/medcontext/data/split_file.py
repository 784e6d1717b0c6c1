"""Split files: a split that can be read, shared, compared by its hash, and checked against a data set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcontext.data.split import Split
from medcontext.errors import MedContextError
from medcontext.files import read_json, write_json

KEYS = ("name", "source", "folds")
PARTS = ("train", "validation", "test")
NNUNET_PARTS = ("train", "val")


@dataclass(frozen=True)
class SplitFile:
    """A split of one fold or more.

    Attributes:
        name: What it is called.
        source: Where it comes from: a paper, an address, or how it was drawn.
        folds: In each, a case is in one part at most, and there is something to train on.
        file: Where it was read from; errors name it.

    Raises:
        MedContextError: No fold, a fold with nothing to train on, or a case twice in a fold.
    """

    name: str
    source: str
    folds: tuple[Split, ...]
    file: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.folds:
            raise MedContextError("A split has no folds.", file=self.file, expected="at least one")
        for number, fold in enumerate(self.folds):
            if not fold.train:
                raise MedContextError(
                    "A split has nothing to train on.", file=self.file, found=f"'train' of fold {number} is empty"
                )
            before: dict[str, str] = {}
            for part, name in _members(fold):
                if name in before:
                    raise MedContextError(
                        "A split has a case twice.",
                        file=self.file,
                        found=f"'{name}' in '{before[name]}' and again in '{part}' of fold {number}",
                        expected="each case once in a fold",
                        remedy="leave it in one place",
                    )
                before[name] = part

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that are the same for the same folds, whatever the order of the cases in a part.

        They are the first of the SHA-256 of the folds as JSON on one line, parts and cases in alphabetical order.
        """
        folds = [{part: sorted(getattr(fold, part)) for part in PARTS} for fold in self.folds]
        text = json.dumps(folds, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def checked_against(self, patients: Mapping[str, str]) -> tuple[str, ...]:
        """Look whether this split can be used with a data set.

        Args:
            patients: Case name to patient, for every case of the data set.

        Returns:
            Cases of the data set that are in no part of any fold.

        Raises:
            MedContextError: A case that the data set doesn't have, or a patient on two sides of a fold.
        """
        used = {name for fold in self.folds for _, name in _members(fold)}
        absent = sorted(used - set(patients))
        if absent:
            raise MedContextError(
                "A split names cases that are not in the data set.",
                file=self.file,
                found=f"{len(absent)} of {len(used)}, for example '{absent[0]}'",
                expected="cases of the data set" + (f", such as '{min(patients)}'" if patients else ""),
                remedy="choose a split of this data set, or add the missing cases",
            )
        for number, fold in enumerate(self.folds):
            first: dict[str, tuple[str, str]] = {}
            for part, name in _members(fold):
                other_part, other = first.setdefault(patients[name], (part, name))
                if other_part != part:
                    raise MedContextError(
                        "A split has a patient on two sides.",
                        file=self.file,
                        found=f"patient '{patients[name]}' in fold {number}: '{other}' in '{other_part}', "
                        f"'{name}' in '{part}'",
                        expected="all cases of a patient in one part",
                        remedy="move them into one part",
                    )
        return tuple(sorted(set(patients) - used))


def write_split_file(path: Path, split: SplitFile) -> None:
    """Write a split as JSON: ``name``, ``source`` and ``folds``, each with ``train``, ``validation`` and ``test``."""
    write_json(
        path, {"name": split.name, "source": split.source, "folds": [dataclasses.asdict(fold) for fold in split.folds]}
    )


def read_split_file(path: Path) -> SplitFile:
    """Read a split file, the ``split.json`` of a run folder, or nnU-Net's ``splits_final.json``.

    What nnU-Net calls ``val`` becomes ``test``: it is what a fold's model is scored on there, and no choice may be
    made on it. There are no validation cases then; :func:`~medcontext.data.split.with_validation` takes some from the
    training part. Format: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/manual_data_splits.md

    Raises:
        MedContextError: The file is absent, no JSON, or no split; file, fold and case are named.
    """
    value = read_json(path)
    if isinstance(value, list):
        parts = [_parts(path, number, fold, NNUNET_PARTS) for number, fold in enumerate(value)]
        folds = [Split(train=fold["train"], validation=(), test=fold["val"]) for fold in parts]
        return SplitFile(path.stem, "nnU-Net", tuple(folds), path)
    if isinstance(value, dict) and value.keys() == set(PARTS):
        return SplitFile(path.stem, "a run folder", (Split(**_parts(path, 0, value, PARTS)),), path)
    _require_keys(path, "the file", value, KEYS)
    for key, kind in (("name", str), ("source", str), ("folds", list)):
        if not isinstance(value[key], kind):
            raise _wrong(path, f"'{key}' is {_short(value[key])}", "text" if kind is str else "a list of folds")
    folds = [Split(**_parts(path, number, fold, PARTS)) for number, fold in enumerate(value["folds"])]
    return SplitFile(value["name"], value["source"], tuple(folds), path)


def _parts(path: Path, number: int, fold: Any, expected: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    _require_keys(path, f"fold {number}", fold, expected)
    for part, names in fold.items():
        if not isinstance(names, list):
            raise _wrong(path, f"'{part}' of fold {number} is {_short(names)}", "a list of names of cases")
        for name in names:
            if not isinstance(name, str):
                raise _wrong(path, f"{_short(name)} in '{part}' of fold {number}", "the name of a case, in quotes")
    return {part: tuple(names) for part, names in fold.items()}


def _require_keys(path: Path, what: str, value: Any, keys: tuple[str, ...]) -> None:
    expected = " and ".join(", ".join(f"'{key}'" for key in keys).rsplit(", ", 1)) + ", and nothing else"
    if not isinstance(value, dict):
        raise _wrong(path, f"{what} is {_short(value)}", f"an object with {expected}")
    if value.keys() != set(keys):
        unknown, missing = sorted(value.keys() - set(keys)), sorted(set(keys) - value.keys())
        wrong = [f"unknown '{key}'" for key in unknown] + [f"no '{key}'" for key in missing]
        raise _wrong(path, f"in {what}: {', '.join(wrong)}", expected)


def _wrong(path: Path, found: str, expected: str) -> MedContextError:
    return MedContextError("This file is not a split.", file=path, found=found, expected=expected)


def _short(value: Any) -> str:
    return json.dumps(value)[:60]


def _members(fold: Split) -> Iterator[tuple[str, str]]:
    """Every (part, case)."""
    return ((part, name) for part in PARTS for name in getattr(fold, part))

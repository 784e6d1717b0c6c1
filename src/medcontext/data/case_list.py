"""Data sets as a list of files, wherever they lie: ``cases.jsonl``, one JSON object per line, or ``cases.csv``."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medcontext.data.case import Case, UnlabelledCase
from medcontext.errors import MedContextError

ENDINGS = (".jsonl", ".csv")
NAMES = tuple(f"cases{ending}" for ending in ENDINGS)
"""Files that make a folder a data set."""

KEYS = ("name", "images", "label", "patient", "stratum")
"""Of a line; ``images`` is a list of files. In CSV they are columns, with ``image``, ``image_0``, ``image_1``, ...
for the images. Only name and images are required: without a label a case is one to predict."""

IMAGE_COLUMN = re.compile(r"image(_\d+)?")

UNLABELLED = "unlabelled"
"""In place of a label: the scan has none, and is there to be learned from all the same."""

Listed = tuple[dict[str, Case | UnlabelledCase], dict[str, tuple[Path, ...]]]


def find(folder: Path) -> Path | None:
    """The case list in this folder, if there is one."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def read(file: Path) -> Listed:
    """Cases to learn from by name, and the images of those to predict. Paths are relative to the list's folder.

    Raises:
        MedContextError: Naming file and line: not to be read, an unknown key, no image, or a name that stands twice.
    """
    rows = _csv(file) if file.suffix.lower() == ".csv" else _jsonl(file)
    cases: dict[str, Case | UnlabelledCase] = {}
    to_predict: dict[str, tuple[Path, ...]] = {}
    for line, row in rows:
        name, images, label = row.get("name"), row.get("images"), row.get("label")
        if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
            raise _wrong(file, line, f"name {name!r}", "a name that a file can have")
        if not isinstance(images, list) or not images or not all(isinstance(each, str) and each for each in images):
            raise _wrong(file, line, f"images {images!r}", "the path of an image, or of one image per channel")
        if name in cases or name in to_predict:
            raise _wrong(file, line, f"'{name}' for the second time", "every name once")
        paths = tuple(file.parent / each for each in images)
        patient, stratum = _text(row.get("patient")) or name, _text(row.get("stratum"))
        if label == UNLABELLED:
            cases[name] = UnlabelledCase(name, paths, patient)
        elif label:
            cases[name] = Case(
                name,
                paths,
                file.parent / str(label),
                patient=patient,
                stratum=stratum or None,
            )
        else:
            to_predict[name] = paths
    return cases, to_predict


def _text(value: Any) -> str:
    """A name, which may be a number (0, too), without spaces around it; empty where there is none."""
    return "" if value is None else str(value).strip()


def _jsonl(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(read_text(file).splitlines(), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise _wrong(file, line, str(error), "one JSON object per line") from None
        if not isinstance(row, dict) or not set(row) <= set(KEYS):
            raise _wrong(file, line, text[:200], f"an object with the keys {', '.join(KEYS)}")
        yield line, row


def _csv(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(read_text(file).splitlines())
    columns = list(reader.fieldnames or [])
    # By the number of the channel, wherever its column stands.
    images = sorted(filter(IMAGE_COLUMN.fullmatch, columns), key=lambda name: int(name[6:] or 0))
    unknown = set(columns) - set(images) - set(KEYS)
    if unknown or "name" not in columns or not images:
        raise _wrong(
            file, 1, f"columns {', '.join(columns) or 'none'}", "name, image (or image_0, ...), label, patient"
        )
    for row in reader:
        if None in row or None in row.values():
            raise _wrong(file, reader.line_num, "more or fewer fields than columns", f"{len(columns)} fields")
        yield reader.line_num, row | {"images": [row[name] for name in images]}


def read_text(file: Path) -> str:
    """A list's text.

    Raises:
        MedContextError: No such file, or not UTF-8.
    """
    if not file.is_file():
        raise MedContextError("There is no such list.", file=file, remedy="check the path")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MedContextError("This list is not text.", file=file, found=str(error), expected="UTF-8") from None


def _wrong(file: Path, line: int, found: str, expected: str) -> MedContextError:
    return MedContextError(
        "A line of this case list can't be used.",
        file=file,
        found=f"line {line}: {found}",
        expected=expected,
        remedy="mend the line",
    )

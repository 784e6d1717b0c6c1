"""Scores as people read them: tables for the terminal, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from medcontext.evaluation.lesions import KEYS
from medcontext.evaluation.metrics import METRICS

_COLUMNS = {
    "dice": ("Dice", ".3f"),
    "hd95_mm": ("HD95 mm", ".2f"),
    "nsd": ("NSD", ".3f"),
    "assd_mm": ("ASSD mm", ".2f"),
    "volume_difference_ml": ("volume ml", "+.2f"),
}
"""Heading and number format of the columns that are not counts."""

_WITH_INTERVAL = ("dice", "hd95_mm", "nsd")


def table(result: Mapping[str, Any]) -> Table:
    """One result of :func:`medcontext.evaluation.evaluate.evaluate` for the terminal: a row per label, then the mean.

    Below Dice, HD95 and NSD stand the ends of their 95 % intervals; ``volume ml`` is prediction minus truth. The other
    scores are in JSON and CSV.
    """
    made = _table({"": result}, (*_COLUMNS, "scored", "missed", "spurious"), intervals=True)
    made.caption = (
        f"{result['mean']['cases']} case(s); below a mean its 95 % interval. "
        f"Policy {result['settings']['policy']}: {result['definition']['empty']}."
    )
    made.caption_justify = "left"
    return made


def lesion_table(result: Mapping[str, Any]) -> Table | None:
    """A row per label whose lesions are counted, of all cases together; None where there is no such label."""
    entries = {label: entry for label, entry in result["mean"]["labels"].items() if KEYS[0] in entry}
    if not entries:
        return None
    made = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title="lesions",
        title_justify="left",
        caption=result["definition"]["lesions"],
        caption_justify="left",
    )
    made.add_column("label")
    for heading in ("found", "missed", "spurious", "spurious per case", "sensitivity", "precision", "F1"):
        made.add_column(heading, justify="right")
    for label, entry in entries.items():
        made.add_row(
            Text(_name(label, entry)),
            *(str(entry[key]) for key in KEYS),
            f"{entry['lesions_spurious_per_case']:.2f}",
            *(_number(entry[f"lesions_{each}"], ".3f") for each in ("sensitivity", "precision", "f1")),
        )
    return made


def comparison(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Several results side by side, by name: Dice, HD95 and missed cases for each."""
    return _table(results, ("dice", "hd95_mm", "missed"))


def csv_rows(result: Mapping[str, Any]) -> str:
    """A line for every case and label, with headings; empty where a score is not defined or not counted."""
    names = {label: entry.get("name", "") for label, entry in result["mean"]["labels"].items()}
    counted = [key for key in (*KEYS, "lesions_f1") if any(key in row for row in result["cases"])]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["case", "label", "name", "outcome", *METRICS, *counted], lineterminator="\n")
    writer.writeheader()
    for row in result["cases"]:
        writer.writerow({**row, "name": names[str(row["label"])]})
    return text.getvalue()


def _table(results: Mapping[str, Mapping[str, Any]], columns: Sequence[str], intervals: bool = False) -> Table:
    """A row per label of any of the results, then the mean; ``columns`` are repeated for each result."""
    made = Table(box=SIMPLE_HEAD if intervals else HEAVY_HEAD, pad_edge=not intervals)
    made.add_column("label", overflow="fold", vertical="top" if intervals else "bottom")
    for name in results:
        for column in columns:
            heading, _ = _COLUMNS.get(column, (column, ""))
            above = name if column == columns[0] else ""
            made.add_column(
                Text(f"{above}\n{heading}" if name else heading, justify="right"), justify="right", overflow="fold"
            )
    means = [result["mean"] for result in results.values()]
    entries: dict[str, str] = {}
    for each in means:
        for label, entry in each["labels"].items():
            entries.setdefault(label, _name(label, entry))
    for label in sorted(entries, key=int):
        cells = [_cell(each["labels"].get(label, {}), column, intervals) for each in means for column in columns]
        made.add_row(Text(entries[label]), *cells)
    made.add_section()
    total = [_cell(each, column, intervals) if column in _COLUMNS else "" for each in means for column in columns]
    made.add_row("mean", *total)
    return made


def _name(label: str, entry: Mapping[str, Any]) -> str:
    return f"{label} {entry['name']}" if "name" in entry else label


def _cell(entry: Mapping[str, Any], column: str, intervals: bool) -> Text:
    """A value, and below it its interval."""
    form = _COLUMNS.get(column, ("", "d"))[1]
    text = Text(_number(entry.get(column), form))
    if intervals and column in _WITH_INTERVAL:
        ends = entry["ci"][column]
        text.append("" if ends is None else "\n" + " ".join(format(end, form) for end in ends), style="dim")
    return text


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

"""A comparison for people: in a sentence, and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from medcontext.evaluation.compare import OVERALL

ENOUGH_SEEDS = 5

FEW_SEEDS = (
    f"With fewer than {ENOUGH_SEEDS} seeds the interval may be too narrow, and chance alone pass for a difference more "
    "often than 1 time in 20."
)


def comparison_table(result: Mapping[str, Any], first: str, second: str) -> Table:
    """A row per label and metric, then the overall ones, for the terminal."""
    made = Table(caption=Text(verdict(result, first, second)))
    made.add_column("label", overflow="fold")
    made.add_column("score")
    for heading in (first, second, "difference [95 %]", "p", "effect", "win/tie/loss", "left out"):
        made.add_column(Text(heading), justify="right", overflow="fold")
    for label, dice in result["dice"]["labels"].items():
        hd95 = result["hd95_mm"]["labels"][label]
        made.add_row(Text(f"{label} {(dice or {}).get('name', '')}".strip()), "Dice", *_cells(dice, ".3f"))
        made.add_row("", "HD95 mm", *_cells(hd95, ".2f"))
    made.add_section()
    made.add_row(OVERALL, "Dice", *_cells(result["dice"][OVERALL], ".3f"))
    made.add_row("", "HD95 mm", *_cells(result["hd95_mm"][OVERALL], ".2f"))
    return made


def verdict(result: Mapping[str, Any], first: str, second: str) -> str:
    """The overall Dice in plain words."""
    found = result["dice"][OVERALL]
    if found is None:
        return f"{first} and {second} have no scored case in common."
    over = f"{found['cases']} cases"
    over += f" of {found['patients']} patients" if found["patients"] < found["cases"] else ""
    if found["seeds"] > 1:
        over += f", each in one of {found['seeds']} trainings" if _apart(found) else f" and {found['seeds']} seeds"
    if found["interval"] is None:
        one = "One case" if found["cases"] == 1 else "One patient"
        return f"{one} says nothing about others: {second} {found['difference']:+.4f} Dice."
    low, high = found["interval"]
    size = f"{found['difference']:+.4f} Dice (95 % interval {low:+.4f} to {high:+.4f}) over {over}"
    if found["distinguishable"]:
        return f"{second} is {'better' if found['difference'] > 0 else 'worse'} than {first}: {size}.{_caveat(found)}"
    return f"The difference is not distinguishable from noise: {second} against {first}, {size}."


def _caveat(found: Mapping[str, Any]) -> str:
    """What a difference over few seeds does not say."""
    if found["seeds"] == 1 or _apart(found):
        return " This speaks of new cases, not of new trainings."
    return f" {FEW_SEEDS}" if found["seeds"] < ENOUGH_SEEDS else ""


def _apart(found: Mapping[str, Any]) -> bool:
    """Whether each case belongs to one training only, as those of folds do: then cases alone are resampled."""
    return bool(found["pairs"] == found["cases"])


def _cells(entry: Mapping[str, Any] | None, form: str) -> list[str]:
    if entry is None:
        return ["-"] * 7
    ends = "" if entry["interval"] is None else f" [{', '.join(format(end, '+' + form) for end in entry['interval'])}]"
    return [
        format(entry["first"], form),
        format(entry["second"], form),
        format(entry["difference"], "+" + form) + ends + ("" if entry["distinguishable"] else " noise"),
        f"{entry['p'] if entry['p_holm'] is None else entry['p_holm']:.2g}",
        f"{entry['effect']:+.2f}",
        f"{entry['wins']}/{entry['ties']}/{entry['losses']}",
        str(entry["left_out"]),
    ]

"""The report's scores: means with their intervals, box plots, differences between runs, every case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medcontext.evaluation import page
from medcontext.evaluation.box_plots import Box, box_plots
from medcontext.evaluation.calibration_panels import calibration_panels
from medcontext.evaluation.compare import OVERALL, compare_evaluations
from medcontext.evaluation.page import Cell
from medcontext.evaluation.run_results import UNDEFINED, RunResults, count, labels_of, number
from medcontext.evaluation.verdict import verdict

HD95 = "HD95\N{NO-BREAK SPACE}mm"

_COLUMNS = (("dice", "Dice", ".3f"), ("hd95_mm", HD95, ".2f"), ("nsd", "NSD", ".3f"))
"""Key, heading and form of the scores that have an interval."""


def comparisons(runs: Sequence[RunResults]) -> dict[str, dict[str, Any]]:
    """Name of each further run -> the first run compared with it, case by case, where they have cases in common."""
    found = {}
    for other in runs[1:]:
        if other.data == runs[0].data and set(other.cases) & set(runs[0].cases):
            found[other.name] = compare_evaluations([other.evaluation], [runs[0].evaluation])
    return found


def verdicts(runs: Sequence[RunResults], compared: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One sentence for each further run: how much the first differs from it, and whether that is noise."""
    found = []
    for other in runs[1:]:
        if other.name in compared:
            found.append(verdict(compared[other.name], other.name, runs[0].name))
        else:
            why = "have no held-out case in common" if other.data == runs[0].data else "are of different data sets"
            found.append(f"{runs[0].name} and {other.name} can't be compared: they {why}.")
    return found


def tiles(runs: Sequence[RunResults]) -> str:
    """The mean Dice of every run, large, with what belongs to it."""
    made = []
    for place, run in enumerate(runs):
        means = run.evaluation["mean"]
        missed = sum(entry["missed"] for entry in means["labels"].values())
        made.append(
            f'<li class="tile"><b>{page.run_name(run.name, place)}</b><span class="number">'
            f"{number(means['dice'], '.3f')} <small>mean Dice</small></span>"
            f"{page.paragraph(_told(means, missed, len(run.cases)), 'quiet')}</li>"
        )
    return f'<ul class="tiles" style="padding: 0; list-style: none">{"".join(made)}</ul>'


def _told(means: Mapping[str, Any], missed: int, cases: int) -> str:
    interval = _interval(means, "dice", ".3f")
    between = f"95 % interval {interval}. " if interval else ""
    return (
        f"{between}HD95 {number(means['hd95_mm'], '.2f')} mm. {count(cases, 'held-out case')}, "
        f"{count(missed, 'missed label')}."
    )


def means_table(runs: Sequence[RunResults]) -> str:
    """Means over the cases with their intervals, a row for each label."""
    by_run = [run.means() for run in runs]
    rows = [
        ([name], [cell for found in by_run for cell in _cells(found.get((label, name)))])
        for label, name in labels_of(runs)
    ]
    total = []
    for run in runs:
        means = run.evaluation["mean"]
        missed = sum(entry["missed"] for entry in means["labels"].values())
        total += _cells({**means, "missed": missed})
    columns = [(run.name, (*(heading for _, heading, _ in _COLUMNS), "Missed")) for run in runs]
    return page.table(
        "Means over the held-out cases, with 95 % intervals",
        ["Label"], columns, rows, (["Mean over labels"], total), kind="groups", sortable=True,
    )  # fmt: skip


def _cells(entry: Mapping[str, Any] | None) -> list[str | Cell]:
    if entry is None:
        return [UNDEFINED] * (len(_COLUMNS) + 1)
    scores = [Cell(number(entry[key], form), _interval(entry, key, form)) for key, _, form in _COLUMNS]
    return [*scores, str(entry["missed"])]


def _interval(entry: Mapping[str, Any], key: str, form: str) -> str:
    ends = entry["ci"][key]
    return "" if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"


def plots(runs: Sequence[RunResults]) -> str:
    """Box plots of Dice and HD95, per label, the runs one below the other."""
    names = [run.name for run in runs]
    scores = [run.rows() for run in runs]

    def boxes(key: str) -> list[Box]:
        made = []
        for label in labels_of(runs):
            for place, rows in enumerate(scores):
                values = {case: row[key] for (case, of), row in rows.items() if of == label and row[key] is not None}
                made.append(Box(label[1], place, values))
        return made

    dice = box_plots("Dice", "higher is better", names, boxes("dice"), ".3f", share=True)
    hd95 = box_plots(
        "HD95 in mm", "lower is better; missed labels have none", names, boxes("hd95_mm"), ".2f", share=False
    )
    caption = (
        "Every point is a case; the number at the right is the median. A box goes from the first to the third "
        "quartile, its whiskers to the furthest case within 1.5 times its length."
    )
    return f'<div class="pair">{dice}{hd95}</div>' + page.paragraph(caption, "quiet")


def differences(runs: Sequence[RunResults], compared: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Differences per label, of the first run against each of the others."""
    made = []
    for name, result in compared.items():
        labels = [*result["dice"]["labels"], OVERALL]
        rows = []
        for label in labels:
            title = "Mean over labels" if label == OVERALL else runs[0].label(int(label))[1]
            dice, hd95 = (
                result[metric][OVERALL] if label == OVERALL else result[metric]["labels"][label]
                for metric in ("dice", "hd95_mm")
            )
            rows.append(([title], [*_difference(dice, "+.3f"), *_difference(hd95, "+.2f")]))
        columns = [(heading, ("Difference", "p", "Better/same/worse")) for heading in ("Dice", HD95)]
        caption = f"{runs[0].name} minus {name}, case by case, with 95 % intervals"
        made.append(page.table(caption, ["Label"], columns, rows[:-1], rows[-1], kind="groups"))
    return made


def _difference(entry: Mapping[str, Any] | None, form: str) -> list[str | Cell]:
    if entry is None:
        return [UNDEFINED] * 3
    ends = entry["interval"]
    between = "" if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"
    noise = "" if entry["distinguishable"] else ", noise"
    p = entry["p"] if entry["p_holm"] is None else entry["p_holm"]
    wins = f"{entry['wins']}/{entry['ties']}/{entry['losses']}"
    wins += f", {entry['left_out']} left out" if entry["left_out"] else ""
    return [Cell(format(entry["difference"], form), between + noise), "< 0.001" if p < 0.001 else f"{p:.2g}", wins]


def cases_table(runs: Sequence[RunResults]) -> str:
    """Scores of every case and label; of a label that is not in both maps, what became of it."""
    found = [run.rows() for run in runs]
    missing = {"dice": None, "hd95_mm": None, "nsd": None, "outcome": "not scored"}
    rows = []
    for case, label in sorted({key for each in found for key in each}):
        cells: list[str | Cell] = []
        for each in found:
            row = each.get((case, label), missing)
            hd95 = row["outcome"] if row["hd95_mm"] is None else number(row["hd95_mm"], ".2f")
            cells += [number(row["dice"], ".3f"), hd95, number(row["nsd"], ".3f")]
        rows.append(([case, label[1]], cells))
    columns = [(run.name, ("Dice", HD95, "NSD")) for run in runs]
    return page.table("Scores of every held-out case", ["Case", "Label"], columns, rows, kind="groups", sortable=True)


def calibration(runs: Sequence[RunResults]) -> list[str]:
    """Reliability diagrams of the runs whose probabilities were evaluated."""
    panels = [
        panel
        for run in runs
        for fold, measured in run.calibrations.items()
        for panel in calibration_panels(f"{run.name} {fold}".rstrip(), measured)
    ]
    if not panels:
        return []
    reading = (
        "Across: the probability that the network gives; up: how often that is true. Dots below the dashed line are "
        "overconfident. Larger dots stand for more voxels."
    )
    return [page.paragraph(reading, "quiet"), f'<div class="panels">{"".join(panels)}</div>']

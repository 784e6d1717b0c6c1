"""The report of one or more trained runs on the same held-out cases: one HTML file with everything in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcontext.data.scan import scan_files
from medcontext.errors import MedContextError
from medcontext.evaluation import page
from medcontext.evaluation.curves import curves_figure
from medcontext.evaluation.pictures import OverlayCase, overlay_figure
from medcontext.evaluation.summary import mean
from medcontext.files import write_text

_HD95 = "HD95\N{NO-BREAK SPACE}mm"
_UNDEFINED = "–"  # noqa: RUF001

_DIAGNOSTICS = {
    "step": "Step",
    "dice/student": "Validation Dice of the student",
    "dice/teacher": "Validation Dice of the teacher",
    "quick_dice/": "Quick validation Dice, on patches, of the ",
    "loss/": "Loss: ",
    "context_score": "Context score: Dice of the masked pass where the scan was hidden",
    "context_gap": "Context gap: Dice of the clean pass minus context score",
    "gradient_share/": "Share of the gradient norm: ",
    "momentum": "Momentum of the teacher's moving average",
    "teacher_entropy": "Entropy of the teacher's prediction (near 0 is certain)",
    "teacher_occupancy/": "Part of the volume that the teacher gives to class ",
    "learning_rate": "Learning rate",
    "seconds": "Seconds",
}
"""Key of the training log, or how a family of keys begins -> what it is, in the order of the table."""

_TERMS = {
    "dice": "Dice",
    "hd95_mm": "HD95",
    "assd_mm": "ASSD",
    "nsd": "NSD",
    "empty": "Absent, missed, spurious",
    "mean": "Means",
    "ci": "Intervals",
}


@dataclass(frozen=True)
class RunResults:
    """One trained run as the report shows it.

    Attributes:
        name: What the run is called; no two runs of a report share it.
        facts: What was trained on what, shown as a table: preset, network, steps, seed, training cases, and so on.
        environment: Versions and machine, shown as a table.
        history: Records of the training log, in order: flat dicts with ``kind``, ``step`` and numbers.
        evaluation: What :func:`medcontext.evaluation.evaluate.evaluate` returned for ``predictions``.
        predictions: Folder of predicted label maps, in the data set's own label numbers.
    """

    name: str
    facts: Mapping[str, str]
    environment: Mapping[str, str]
    history: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any]
    predictions: Path


def write_report(
    path: Path,
    runs: Sequence[RunResults],
    scans: Mapping[str, tuple[tuple[Path, ...], Path]],
    label_names: Mapping[int, str],
    title: str,
) -> None:
    """Write one self-contained HTML page about ``runs``: scores, slices of the best, median and worst case, curves.

    Args:
        path: The file to write.
        runs: The runs, at least one; the first one ranks the cases that are shown.
        scans: Case name -> (files of the scan, true label map), for the pictures.
        label_names: Label number -> name.
        title: Heading of the page.

    Raises:
        MedContextError: There is no run, two runs share a name, or a scan or label map for the pictures cannot be read.
    """
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        raise MedContextError(
            "A report needs one or more runs with different names.",
            file=path,
            found=", ".join(names) or "no run",
            remedy="give each run a name of its own",
        )
    main = [
        page.section("What was trained", _by_run("Facts of each run", "Fact", runs, lambda run: run.facts)),
        page.section("Scores", _scores(runs, label_names), page.details("Every case", _cases(runs, label_names))),
        page.section("Predictions", _overlays(runs, scans, label_names)),
        page.section("Training", _curves(runs), _by_run("Last logged values", "Diagnostic", runs, _diagnostics)),
        page.section("What the numbers mean", page.terms(_definitions(runs))),
        page.section("Environment", _by_run("Software and machine", "Part", runs, lambda run: run.environment)),
    ]
    write_text(path, page.page(title, _headline(runs), main))


def _headline(runs: Sequence[RunResults]) -> list[str]:
    """The measured numbers in a sentence, how far they can be trusted, and what is not as it should be."""
    cases = [sorted({row["case"] for row in run.evaluation["cases"]}) for run in runs]
    dices = [f"{run.name} {_number(run.evaluation['mean']['dice'], '.3f')}" for run in runs]
    alike = all(each == cases[0] for each in cases)
    if alike:
        lead = f"Mean Dice on {_count(len(cases[0]), 'held-out case')}: {', '.join(dices)}."
    else:
        on = (f"{dice} on {_count(len(each), 'case')}" for dice, each in zip(dices, cases, strict=True))
        lead = f"Mean Dice on held-out cases: {', '.join(on)}."
    trust = (
        "One training run each: this is a measurement, not evidence of a difference. Only runs with several seeds tell "
        "a difference between methods from chance."
        if len(runs) > 1
        else "One training run: another seed would give other numbers."
    )
    said = [page.paragraph(lead, "lead"), page.paragraph(trust, "quiet")]
    if not alike:
        said.append(page.paragraph("The runs were scored on different cases: do not compare their means.", "warning"))
    for run in runs:
        if left_out := run.evaluation["unpredicted"]:
            found = f"{run.name} has no prediction for {_count(len(left_out), 'case')}, which its scores leave out."
            said.append(page.paragraph(found, "warning"))
    return said


def _scores(runs: Sequence[RunResults], label_names: Mapping[int, str]) -> str:
    means = [run.evaluation["mean"] for run in runs]
    labels = sorted({int(label) for each in means for label in each["labels"]})
    keys = (("dice", ".3f"), ("hd95_mm", ".2f"), ("missed", "d"))
    rows = []
    for label in labels:
        entries = [each["labels"].get(str(label), {}) for each in means]
        cells = [_number(entry.get(key), form) for entry in entries for key, form in keys]
        rows.append(([_label(label, label_names)], cells))
    total = []
    for each in means:
        missed = sum(entry["missed"] for entry in each["labels"].values())
        total += [_number(each["dice"], ".3f"), _number(each["hd95_mm"], ".2f"), str(missed)]
    columns = [(run.name, ("Dice", _HD95, "Missed")) for run in runs]
    reading = (
        "Dice: higher is better. HD95: lower is better. Missed: cases where the label is in the truth and not in the "
        "prediction; in the last row, of all labels together."
    )
    scores = page.table(
        "Mean over the held-out cases", ["Label"], columns, rows, (["Mean over labels"], total), kind="groups"
    )
    return page.paragraph(reading, "quiet") + scores


def _cases(runs: Sequence[RunResults], label_names: Mapping[int, str]) -> str:
    found = [{(row["case"], row["label"]): row for row in run.evaluation["cases"]} for run in runs]
    rows = []
    for case, label in sorted({key for each in found for key in each}):
        cells = []
        for each in found:
            row = each.get((case, label), {"dice": None, "hd95_mm": None, "outcome": "not scored"})
            hd95 = row["outcome"] if row["hd95_mm"] is None else _number(row["hd95_mm"], ".2f")
            cells += [_number(row["dice"], ".3f"), hd95]
        rows.append(([case, _label(label, label_names)], cells))
    columns = [(run.name, ("Dice", _HD95)) for run in runs]
    return page.table("Scores of every held-out case", ["Case", "Label"], columns, rows, kind="groups")


def _overlays(
    runs: Sequence[RunResults], scans: Mapping[str, tuple[tuple[Path, ...], Path]], names: Mapping[int, str]
) -> str:
    """Slices of the best, the median and the worst case, of those that every run has predicted and scored."""
    dices = [_dice_by_case(run) for run in runs]
    files = [scan_files(run.predictions) for run in runs]
    usable = [case for case in scans if all(case in found for found in files) and dices[0].get(case) is not None]
    usable.sort(key=lambda case: (-(dices[0][case] or 0.0), case))
    if not usable:
        return page.paragraph("No case has a scan, a prediction of every run, and a score: there is nothing to show.")
    shown = []
    for rank, case in _picks(usable).items():
        columns = zip(runs, files, dices, strict=True)
        predictions = {run.name: (found[case], by_case.get(case)) for run, found, by_case in columns}
        shown.append(OverlayCase(rank, case, *scans[case], predictions))
    told = []
    for each in shown:
        scores = (f"{name} {_number(dice, '.3f')}" for name, (_, dice) in each.predictions.items())
        told.append(f"{each.rank} {each.name}: {', '.join(scores)}")
    alt = f"Slices with the outlines of the truth and of each run. Dice of {'; '.join(told)}."
    caption = (
        f"Ranked by {runs[0].name}'s mean Dice over the labels of a case. Each row is the slice with the most labels, "
        "then the most foreground, cut to the labelled region; the patient's right is on the left (R) in axial and "
        "coronal slices. Beside a prediction, the thin white line is the outline of the truth."
    )
    return page.picture(overlay_figure(shown, names), alt, caption)


def _picks(ranked: Sequence[str]) -> dict[str, str]:
    """Rank -> case, of cases that are sorted best first."""
    if len(ranked) == 1:
        return {"case": ranked[0]}
    median = {"median": ranked[len(ranked) // 2]} if len(ranked) > 2 else {}
    return {"best": ranked[0], **median, "worst": ranked[-1]}


def _dice_by_case(run: RunResults) -> dict[str, float | None]:
    by_case: dict[str, list[float | None]] = {}
    for row in run.evaluation["cases"]:
        by_case.setdefault(row["case"], []).append(row["dice"])
    return {case: mean(values) for case, values in by_case.items()}


def _curves(runs: Sequence[RunResults]) -> str:
    histories = {run.name: run.history for run in runs}
    light = curves_figure(histories)
    if light is None:
        return page.paragraph("No curves: the runs logged no values.")
    alt = f"Curves of validation Dice, losses and diagnostics over the training steps of {', '.join(histories)}"
    caption = "Where a curve has many points, the faint line is what was logged and the strong one its moving average."
    dark = curves_figure(histories, dark=True)
    return page.picture(light, f"{alt}; their last values are in the table below.", caption, dark)


def _diagnostics(run: RunResults) -> dict[str, str]:
    """What each diagnostic is -> its last finite value."""
    last: dict[str, float] = {}
    for record in run.history:
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float)}
        last.update({key: value for key, value in numbers.items() if math.isfinite(value)})
    told = {}
    for start, meaning in _DIAGNOSTICS.items():
        for key in [key for key in last if key == start or (start.endswith("/") and key.startswith(start))]:
            told[meaning + key.removeprefix(start)] = f"{last.pop(key):.5g}"
    return told | {key: f"{value:.5g}" for key, value in last.items()}


def _definitions(runs: Sequence[RunResults]) -> Iterable[tuple[str, str]]:
    return ((_TERMS.get(key, key), text) for key, text in runs[0].evaluation["definition"].items())


def _by_run(caption: str, head: str, runs: Sequence[RunResults], of: Callable[[RunResults], Mapping[str, str]]) -> str:
    """A row per key that any run has, a column per run; one column where every run says the same."""
    told = {run.name: of(run) for run in runs}
    if len(runs) > 1 and all(each == of(runs[0]) for each in told.values()):
        told = {"every run": of(runs[0])}
    keys = dict.fromkeys(key for each in told.values() for key in each)
    if not keys:
        return page.paragraph("Nothing was recorded.")
    rows = [([key], [each.get(key, _UNDEFINED) for each in told.values()]) for key in keys]
    return page.table(caption, [head], [(name, ()) for name in told], rows, kind="words")


def _label(label: int, names: Mapping[int, str]) -> str:
    return names.get(label, f"label {label}")


def _number(value: float | None, form: str) -> str:
    return _UNDEFINED if value is None else format(value, form)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

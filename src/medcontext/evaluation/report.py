"""The report of one or more trained runs on their held-out cases: one HTML file with everything in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from medcontext.errors import MedContextError
from medcontext.evaluation import page, report_scores, statistics
from medcontext.evaluation.curves import curves
from medcontext.evaluation.masked import masked_section
from medcontext.evaluation.page import Section
from medcontext.evaluation.plane_pictures import Column, alt_of, plane_pictures, structure_legend
from medcontext.evaluation.planes import choose_voxel, three_planes
from medcontext.evaluation.run_results import UNDEFINED, RunResults, count, number
from medcontext.evaluation.turned import read_turned
from medcontext.files import write_text

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

_COMPARED = {
    "difference": "Difference (here the first run minus another)",
    "interval": "Intervals of differences",
    "p": "p",
    "p_holm": "p of a label",
    "wins": "Better/same/worse",
    "verdict": "Noise",
}
"""What comparisons on the page need to be said of, and how it is called there."""

Scans = Mapping[str, tuple[tuple[Path, ...], Path]]


def write_report(path: Path, runs: Sequence[RunResults], scans: Scans, title: str) -> None:
    """Write one self-contained HTML page about ``runs``.

    Args:
        path: The file to write.
        runs: The runs, at least one; the page is about the first, and compares it with the others.
        scans: Case name -> (files of the scan, true label map), of the first run's data set, for the pictures.
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
    compared = report_scores.comparisons(runs)
    write_text(path, page.page(title, _header(runs, compared), list(_sections(runs, scans, compared))))


def _sections(
    runs: Sequence[RunResults], scans: Scans, compared: Mapping[str, Mapping[str, object]]
) -> Iterable[Section]:
    reading = (
        "Dice and NSD: higher is better. HD95: lower is better. Missed: cases where the label is in the truth and not "
        "in the prediction; in the last row, of all labels together."
    )
    scores = [
        report_scores.plots(runs),
        report_scores.means_table(runs),
        page.paragraph(reading, "quiet"),
        *report_scores.differences(runs, compared),
        page.details("Every case", report_scores.cases_table(runs)),
    ]
    yield Section("What was trained", [_by_run("Facts of each run", "Fact", runs, lambda run: run.facts)])
    yield Section("Scores", scores)
    if calibration := report_scores.calibration(runs):
        yield Section("Calibration", calibration)
    yield Section("Predictions", list(_cases(runs, scans)))
    if masked := list(_masked(runs)):
        yield Section("What the masked student saw", masked)
    yield Section("Training", [*_curves(runs), _last_values(runs)])
    yield Section("What the numbers mean", [page.terms(_definitions(runs, compared))])
    yield Section("Environment", [_by_run("Software and machine", "Part", runs, lambda run: run.environment)])


def _header(runs: Sequence[RunResults], compared: Mapping[str, Mapping[str, object]]) -> Iterable[str]:
    """The measured numbers, how far they can be trusted, and what is not as it should be."""
    yield report_scores.tiles(runs)
    for sentence in report_scores.verdicts(runs, compared):
        yield page.paragraph(sentence, "lead")
    yield page.paragraph(
        "The intervals speak of other cases of the same kind, not of other trainings: one training run each is a "
        "measurement, and only runs with several seeds tell a difference between methods from chance."
        if len(runs) > 1
        else "One training run: another seed would give other numbers.",
        "quiet",
    )
    if len({run.data for run in runs}) > 1:
        sets = "; ".join(f"{run.name} on {run.data}" for run in runs)
        yield page.paragraph(f"The runs are of different data sets: do not compare their means. {sets}.", "warning")
    elif any(run.cases != runs[0].cases for run in runs):
        on = ", ".join(f"{run.name} on {count(len(run.cases), 'case')}" for run in runs)
        yield page.paragraph(
            f"The runs were scored on different cases: do not compare their means ({on}). Differences between runs, "
            "and pictures, are of the cases that they have in common.",
            "warning",
        )
    for run in runs:
        if left_out := run.evaluation["unpredicted"]:
            found = f"{run.name} has no prediction for {count(len(left_out), 'case')}, which its scores leave out."
            yield page.paragraph(found, "warning")


def _cases(runs: Sequence[RunResults], scans: Scans) -> Iterable[str]:
    """Three planes of the best, the median and the worst case, of those that every run has predicted and scored."""
    shown = [run for run in runs if run.data == runs[0].data]
    dices = {run.name: run.dice_by_case() for run in shown}
    first = dices[runs[0].name]
    usable = [
        case
        for case in scans
        if all(case in run.predictions and case in dices[run.name] for run in shown) and first[case] is not None
    ]
    usable.sort(key=lambda case: (-(first[case] or 0.0), case))
    if not usable:
        yield page.paragraph("No case has a scan, a prediction of every run, and a score: there is nothing to show.")
        return
    reading = (
        f"Ranked by {runs[0].name}'s mean Dice over the labels of a case. The three planes of a case go through one "
        "voxel (short lines at the edges), on each axis the slice with the most labels, then the most labelled and "
        "disputed voxels. All have one scale in mm. R and L, A and P, S and I are the patient's right and left, front "
        "and back, head and feet."
    )
    yield page.paragraph(reading, "quiet")
    for rank, case in picks(usable).items():
        yield _case(rank, case, shown, scans[case], {name: of[case] for name, of in dices.items()})


def picks(ranked: Sequence[str]) -> dict[str, str]:
    """Rank -> case, of cases that are sorted best first."""
    if len(ranked) == 1:
        return {"case": ranked[0]}
    median = {"median": ranked[len(ranked) // 2]} if len(ranked) > 2 else {}
    return {"best": ranked[0], **median, "worst": ranked[-1]}


def _case(
    rank: str,
    case: str,
    runs: Sequence[RunResults],
    files: tuple[tuple[Path, ...], Path],
    dices: Mapping[str, float | None],
) -> str:
    images, truth = files
    turned = read_turned(images[0], [truth, *(run.predictions[case] for run in runs)], runs[0].structures)
    structures = {label: numbers for label, (_, numbers) in runs[0].structures.items()}
    voxel = choose_voxel(turned.maps[0], turned.maps[1:])
    planes = three_planes(turned.image, turned.maps, structures, turned.spacing, voxel)
    columns = [Column("truth", "on the scan", 0, numbered=True)]
    for place, run in enumerate(runs):
        dice = f"Dice {number(dices[run.name], '.3f')}"
        columns.append(Column(page.run_name(run.name, place), dice, place + 1, outlined=0))
    alt = f"Outlines of the truth and of each run on three planes of {case}. Dice: {alt_of(dices)}."
    names = [name for name, _ in runs[0].structures.values()]
    return (
        f"{page.heading(f'{rank.capitalize()}: {case}')}\n<figure>{plane_pictures(rank, [planes], columns, alt)}\n"
        f"{structure_legend(names, truth=True)}</figure>"
    )


def _masked(runs: Sequence[RunResults]) -> Iterable[str]:
    for place, run in enumerate(runs, start=1):
        if isinstance(run.masked, str):
            yield page.heading(run.name) + page.paragraph(run.masked)
        elif run.masked is not None:
            yield masked_section(
                f"masked-{place}", run.name, run.masked, {label: name for label, (name, _) in run.structures.items()}
            )


def _curves(runs: Sequence[RunResults]) -> Iterable[str]:
    shown, folded = curves({run.name: run.histories for run in runs})
    if not shown:
        yield page.paragraph("No curves: the runs logged no values.")
        return
    if len(runs) > 1:
        yield page.runs_legend([run.name for run in runs])
    yield page.paragraph(
        "Over the training steps. Where a curve has many points, the line is their mean over a hundredth of the "
        "training, and the shade behind it their range.",
        "quiet",
    )
    yield f'<div class="panels">{"".join(shown)}</div>'
    if folded:
        yield page.details("Further curves", f'<div class="panels">{"".join(folded)}</div>')


def _last_values(runs: Sequence[RunResults]) -> str:
    made = _by_run("Last logged values", "Diagnostic", runs, _diagnostics)
    return page.details("Last logged values", made)


def _diagnostics(run: RunResults) -> dict[str, str]:
    """What each diagnostic is -> its last finite value; of each fold, where there are several."""
    last: dict[str, list[str]] = {}
    for history in run.histories.values():
        values: dict[str, float] = {}
        for record in history:
            numbers = {key: value for key, value in record.items() if isinstance(value, int | float)}
            values.update({key: value for key, value in numbers.items() if math.isfinite(value)})
        for key, value in values.items():
            last.setdefault(key, []).append(f"{value:.5g}")
    told = {}
    for start, meaning in _DIAGNOSTICS.items():
        for key in [key for key in last if key == start or (start.endswith("/") and key.startswith(start))]:
            told[meaning + key.removeprefix(start)] = ", ".join(last.pop(key))
    return told | {key: ", ".join(values) for key, values in last.items()}


def _definitions(runs: Sequence[RunResults], compared: Mapping[str, object]) -> Iterable[tuple[str, str]]:
    yield from ((_TERMS.get(key, key), text) for key, text in runs[0].evaluation["definition"].items())
    if compared:
        yield from ((term, statistics.DEFINITION[key]) for key, term in _COMPARED.items())


def _by_run(caption: str, head: str, runs: Sequence[RunResults], of: Callable[[RunResults], Mapping[str, str]]) -> str:
    """A row per key that any run has, a column per run; one column where every run says the same."""
    told = {run.name: of(run) for run in runs}
    if len(runs) > 1 and all(each == of(runs[0]) for each in told.values()):
        told = {"every run": of(runs[0])}
    keys = dict.fromkeys(key for each in told.values() for key in each)
    if not keys:
        return page.paragraph("Nothing was recorded.")
    rows = [([key], [each.get(key, UNDEFINED) for each in told.values()]) for key in keys]
    return page.table(caption, [head], [(name, ()) for name in told], rows, kind="words")

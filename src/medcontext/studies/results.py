"""What came of a study: every run's scores, the comparisons, and the summary over all studies."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from medcontext.data.dataset import open_dataset
from medcontext.data.split_file import read_split_file
from medcontext.errors import MedContextError
from medcontext.evaluation.compare import compare_evaluations, per_case, verdict
from medcontext.evaluation.statistics import DEFINITION
from medcontext.files import read_json, replacing, write_json, write_text
from medcontext.studies.convergence import convergence, validations
from medcontext.studies.extremes import compact, extremes_figure
from medcontext.studies.study import state_of
from medcontext.studies.study_file import Comparison, PlannedRun, Study
from medcontext.training.run import MAY_CHANGE, RunFolder, source_commit

SUMMARISED = ("equal_steps", "equal_compute")
"""Comparisons of these names make rows of the summary."""

SUMMARY = "summary.json"

EXTREMES = 3
"""Cases with the largest gain, and with the largest loss, that are named."""

COLUMNS = ("run", "case", "label", "dice", "hd95_mm", "outcome")

Done = list[tuple[PlannedRun, RunFolder]]


def gather(study: Study, out: Path, results: Path) -> dict[str, Any]:
    """Write what came of a study so far.

    Into ``results``: ``STUDY.json`` (what is returned), ``STUDY.csv`` (a row per run, case and label), ``STUDY.md``
    (tables for people), ``STUDY.svg`` (the gains, where anything is compared), ``STUDY-convergence.svg`` (validation
    over the steps), pictures of the best and the worst cases in ``STUDY/``, where the study asks for them and scans and
    predictions are at hand, and ``summary.json`` anew.

    Args:
        study: The study.
        out: Its folder.
        results: Folder for the results of all studies.

    Returns:
        ``study``, ``about``, ``dataset``, ``split`` (name and hash), ``date``, ``commits``, ``hardware``, ``software``,
        ``settings`` (those that all runs share), ``runs``, ``missing`` (runs that are not done), ``convergence`` (as
        :func:`medcontext.studies.convergence.convergence` returns it), ``comparisons`` and ``definition``.

    Raises:
        MedContextError: No run is done, or a run was made with other settings.
    """
    from medcontext.studies.figures import convergence_figure, gains_figure
    from medcontext.studies.tables import results_page

    states = {planned.name: state_of(planned, out) for planned in study.runs}
    done = [(planned, RunFolder(out / planned.name)) for planned in study.runs if states[planned.name] == "done"]
    if not done:
        raise MedContextError(
            "No run of this study is done.", file=out, remedy="run the study first (medcontext study FILE)"
        )
    evaluations = {planned.name: read_json(run.evaluation) for planned, run in done}
    runs = [_run(planned, run, evaluations[planned.name]) for planned, run in done]
    found = _facts(study, done) | {
        "runs": runs,
        "missing": [name for name, state in states.items() if state != "done"],
        "convergence": convergence(runs),
        "comparisons": list(_comparisons(study, done, evaluations, results)),
        "definition": next(iter(evaluations.values()))["definition"] | {"comparison": dict(DEFINITION)},
    }
    write_json(results / f"{study.name}.json", found)
    write_text(results / f"{study.name}.csv", _rows(evaluations))
    figures = {
        f"{study.name}.svg": gains_figure(found["comparisons"]),
        f"{study.name}-convergence.svg": convergence_figure(found["convergence"]),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        write_text(results / name, figure)
    write_text(results / f"{study.name}.md", results_page(found, figures=drawn))
    write_json(results / SUMMARY, summary(results))
    return found


def summary(results: Path) -> list[dict[str, Any]]:
    """A row per data set, network, preset, number of training cases and comparison, from all studies in a folder.

    ``dice_gain`` is MedContext minus baseline, ``hd95_mm_gain`` baseline minus MedContext: above 0 is better in both.
    ``..._ci`` are the 95 % intervals of the gains; ``seeds`` is how many seeds both have.
    """
    files = [file for file in sorted(results.glob("*.json")) if file.name != SUMMARY]
    rows = [
        _summary_row(found, each)
        for found in map(read_json, files)
        if isinstance(found, dict) and "study" in found
        for each in found["comparisons"]
        if each["name"] in SUMMARISED
    ]
    return [row for row in rows if row is not None]


def _summary_row(found: Mapping[str, Any], comparison: Mapping[str, Any]) -> dict[str, Any] | None:
    dice, hd95 = (comparison["result"][metric]["overall"] for metric in ("dice", "hd95_mm"))
    if dice is None:
        return None
    row = {
        "dataset": found["dataset"],
        "network": comparison["network"],
        "preset": comparison["preset"],
        "training_cases": comparison["training_cases"],
        "comparison": comparison["name"],
        "seeds": len(comparison["seeds"]),
        "study": found["study"],
    }
    for metric, entry, sign in (("dice", dice, 1), ("hd95_mm", hd95, -1)):
        gain, interval = (None, None) if entry is None else (sign * entry["difference"], entry["interval"])
        row |= {
            f"{metric}_baseline": entry and entry["first"],
            f"{metric}_medcontext": entry and entry["second"],
            f"{metric}_gain": gain,
            f"{metric}_gain_ci": interval and sorted(sign * end for end in interval),
        }
    return row


def _facts(study: Study, done: Done) -> dict[str, Any]:
    """What holds for the study as a whole."""
    about = [read_json(run.about) for _, run in done]
    configs = [run.read_config() for _, run in done]
    split = done[0][0].config.split
    assert split is not None
    file = read_split_file(split)
    return {
        "study": study.name,
        "about": study.about,
        "dataset": study.data.name,
        "split": f"{split.name} ({file.hash})",
        "date": time.strftime("%Y-%m-%d"),
        "commits": sorted({str(each["source"]) for each in about}),
        "gathered_at_commit": source_commit(),
        "hardware": sorted(
            {
                f"{each['processor']}, {each['threads']} of {each['cores']} cores; {config['device']} in "
                f"{config['precision']}"
                for each, config in zip(about, configs, strict=True)
            }
        ),
        "software": {"python": about[0]["python"], **about[0]["versions"]},
        "settings": {
            key: value
            for key, value in configs[0].items()
            if key not in MAY_CHANGE | {"split"} and all(config.get(key) == value for config in configs)
        },
    }


def _run(planned: PlannedRun, run: RunFolder, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    history, config = run.history(), run.read_config()
    by_network = [
        (row[key], row["step"], key.removeprefix("dice/"))
        for row in history
        if row["kind"] == "validation"
        for key in ("dice/student", "dice/teacher")
        if key in row
    ]
    best = max(by_network, default=(None, None, None), key=lambda each: each[0])
    last = [row for row in history if row["kind"] == "train"][-1]
    return {
        "name": planned.name,
        "levels": dict(planned.levels),
        "preset": config["preset"],
        "network": config["network"],
        "training_cases": len(run.read_split().train),
        "seed": config["seed"],
        "learning_rate": config["learning_rate"],
        "unlabelled_cases": len(read_json(run.about).get("unlabelled", ())),
        "steps": config["max_steps"],
        "pretrain_steps": config.get("pretrain_steps", 0),
        "seconds": _seconds(run),
        "best_step": best[1],
        "best_is": best[2],
        "validation_dice": best[0],
        "validations": validations(history),
        "dice": evaluation["mean"]["dice"],
        "hd95_mm": evaluation["mean"]["hd95_mm"],
        "missed": sum(entry["missed"] for entry in evaluation["mean"]["labels"].values()),
        "last_diagnostics": {
            key: value
            for key, value in last.items()
            if key.startswith(("context", "gradient_share", "momentum", "teacher_entropy", "loss/"))
        },
    }


def cells(study: Study, comparison: Comparison, done: Done) -> Iterator[tuple[dict[str, str], Done, Done]]:
    """For each level of the other factors, the runs of baseline and arm, seed by seed, of the seeds that both have."""
    by_levels = {tuple(sorted(planned.levels.items())): (planned, run) for planned, run in done}
    others = dict.fromkeys(
        tuple((key, level) for key, level in planned.levels.items() if key not in ("arm", "seed"))
        for planned in study.runs
    )
    seeds = dict.fromkeys(planned.levels["seed"] for planned in study.runs)
    for other in others:
        pairs = []
        for seed in seeds:
            keys = [tuple(sorted({**dict(other), "arm": arm, "seed": seed}.items())) for arm in
                    (comparison.baseline, comparison.arm)]  # fmt: skip
            if all(key in by_levels for key in keys):
                pairs.append([by_levels[key] for key in keys])
        if pairs:
            yield dict(other), [first for first, _ in pairs], [second for _, second in pairs]


def _comparisons(
    study: Study, done: Done, evaluations: Mapping[str, Mapping[str, Any]], results: Path
) -> Iterator[dict[str, Any]]:
    for comparison in study.comparisons:
        for levels, first, second in cells(study, comparison, done):
            before, after = ([evaluations[planned.name] for planned, _ in runs] for runs in (first, second))
            result = compare_evaluations(before, after)
            result.pop("definition")
            ranked = list(per_case(before, after).items())
            config = second[0][1].read_config()
            yield {
                "name": comparison.name,
                "baseline": comparison.baseline,
                "arm": comparison.arm,
                "levels": levels,
                "network": config["network"],
                "preset": config["preset"],
                "training_cases": len(second[0][1].read_split().train),
                "seeds": [planned.levels["seed"] for planned, _ in second],
                "seconds": [_mean_seconds(first), _mean_seconds(second)],
                "helped_most": [list(each) for each in ranked[:EXTREMES]],
                "hurt_most": [list(each) for each in ranked[::-1][:EXTREMES]],
                "picture": _picture(
                    study, comparison, levels, [run for _, run in first], [run for _, run in second], results
                ),
                "verdict": verdict(result, comparison.baseline, comparison.arm),
                "result": result,
            }


def _picture(
    study: Study,
    comparison: Comparison,
    levels: Mapping[str, str],
    first: Sequence[RunFolder],
    second: Sequence[RunFolder],
    results: Path,
) -> str | None:
    """Draw the best and the worst cases of a comparison, if that is asked for and possible; where, within results."""
    at_hand = study.data.exists() and all(run.predictions.is_dir() for run in (*first, *second))
    if comparison.name not in study.pictures or not at_hand:
        return None
    figure = extremes_figure(first, second, (comparison.baseline, comparison.arm), open_dataset(study.data))
    place = "/".join((study.name, "-".join((*levels.values(), comparison.baseline, comparison.arm)) + ".png"))
    with replacing(results / place) as file:
        file.write_bytes(compact(figure))
    return place


def _seconds(run: RunFolder) -> float:
    """What training took, pre-training included."""
    stages = (run.pretraining.history(), run.history())
    return sum(max((float(row["seconds"]) for row in rows if "seconds" in row), default=0.0) for rows in stages)


def _mean_seconds(runs: Done) -> float:
    return round(fmean(_seconds(run) for _, run in runs), 1)


def _rows(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, evaluation in evaluations.items():
        for row in evaluation["cases"]:
            numbers = ["" if row[key] is None else f"{row[key]:.6g}" for key in ("dice", "hd95_mm")]
            writer.writerow([name, row["case"], row["label"], *numbers, row["outcome"]])
    return text.getvalue()

"""The results of a study as a page of Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from medcontext.evaluation.verdict import FEW_SEEDS
from medcontext.progress import clock
from medcontext.studies.convergence import STILL_GAINING, by_arm, in_words
from medcontext.studies.extremes import RULE
from medcontext.studies.missing_parts import BLOCK_MM, SHARE

CONVERGENCE = (
    "The better of student and teacher at each validation, mean over the seeds. An arm is at its end if the best of "
    f"this in the last quarter of the training is at most {100 * STILL_GAINING:g} Dice points above the best before."
)

COMPARISONS = (
    "(noise): the interval includes 0. With one seed it speaks of new cases, not of new trainings. "
    f"{FEW_SEEDS} p is not corrected for the number of comparisons on this page. Left out of HD95 (counted over seeds, "
    "cases and structures) is what one of the two missed, or found where there is none: it has no distance."
)

ARMS = (
    "Means over seeds, with the lowest and the highest of the seeds. Scored was the better, on validation cases, of "
    "student and teacher (the moving average, which is kept where nothing is learned from it as well); in how many of "
    "the runs it was the teacher, the last column but one says (-: not recorded)."
)

UNSHOWN = ("p_holm", "effect")
"""Numbers of a comparison that the JSON holds and the page does not show."""

MISSING_PARTS = (
    f"The same networks on the same held-out cases, with {100 * SHARE:g} % of each scan taken out, the same "
    f"parts for every network: as blocks of {BLOCK_MM:g} mm (at most a third of its longest side) all over it with the "
    "mean of the rest in their place, as the masks of a training do; or as a slab of neighbouring slices that are "
    "black, unlike those masks. The whole truth is to be found, what lies in the missing parts included."
)


GAINS = (
    "Differences of Dice that are compared above, with one another: whether the one is more than the other. Over the "
    "same cases and seeds, of which all four runs are done."
)


def results_page(found: Mapping[str, Any], *, figures: Collection[str]) -> str:
    """The page.

    Args:
        found: As :func:`medcontext.studies.results.gather` returns it.
        figures: Names of the figures beside it.
    """
    gains, curves = f"{found['study']}.svg", f"{found['study']}-convergence.svg"
    missing, left_out = found["missing"], found["left_out"]
    compared, damaged = _of_pairs(found["comparisons"]), _of_pairs(found["missing_parts"])
    parts = [
        f"# {found['study']}",
        found["about"],
        f"Written by `medcontext study` on {found['date']}; runs at commit {', '.join(found['commits'])}, on "
        f"{'; '.join(found['hardware'])}. Data: {found['dataset']}, split {found['split']}."
        + (f" **Not done yet: {len(missing)} of {len(missing) + len(found['runs'])} runs.**" if missing else "")
        + (f" Left out, as their folders hold something else: {', '.join(left_out)}." if left_out else "")
        + _of_other_studies(found["runs"]),
    ]
    if compared:
        parts += ["## Comparisons", COMPARISONS, _comparisons(compared)]
        parts += ["\n".join(map(_in_words, compared))]
    if gains in figures:
        parts.append(f"![Gain in Dice with 95 % intervals]({gains})")
    parts += _missing_parts(damaged, found["scored_with_missing"], len(found["runs"]))
    parts += _gains(found["gains"])
    parts += _pictures([each for each in (*compared, *damaged) if each["picture"]])
    parts += ["## Runs", ARMS, _arms(found["runs"])]
    parts += ["## Convergence", CONVERGENCE, "\n".join(f"- {in_words(arm)}" for arm in found["convergence"])]
    if curves in figures:
        parts.append(f"![Validation Dice over the steps]({curves})")
    meanings = [f"- {name}: {text}" for name, text in found["definition"]["comparison"].items() if name not in UNSHOWN]
    parts += ["## What the numbers mean", "\n".join(meanings)]
    parts.append(f"All scores of all cases: [{found['study']}.csv]({found['study']}.csv); the settings and everything "
                 f"else: [{found['study']}.json]({found['study']}.json).")  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _of_other_studies(runs: Sequence[Mapping[str, Any]]) -> str:
    """Which runs were made by other studies."""
    by_study: dict[str, list[str]] = {}
    for run in runs:
        if "of_study" in run:
            by_study.setdefault(run["of_study"], []).append(run["name"])
    told = "; ".join(f"of [{study}]({study}.md): {', '.join(names)}" for study, names in by_study.items())
    return f" Runs of other studies that were made just so, {told}." if told else ""


def _of_pairs(comparisons: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One comparison for each pair of arms, under all the names that the study has for it: where a step of both costs
    the same, equal steps are equal compute."""
    pairs: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for each in comparisons:
        key = (each.get("missing"), *each["levels"].values(), each["baseline"], each["arm"])
        pairs.setdefault(key, []).append(each)
    return [
        {
            **same[0],
            "name": ", ".join(each["name"] for each in same),
            "picture": next((each["picture"] for each in same if each["picture"]), None),
        }
        for same in pairs.values()
    ]


def _missing_parts(comparisons: Sequence[Mapping[str, Any]], scored: Mapping[str, int], runs: int) -> list[str]:
    if not scored:
        return []
    counts = "; ".join(f"with {kind} missing: {count} of {runs} runs" for kind, count in scored.items())
    rows = [[each["missing"], *_compared(each)] for each in comparisons if each["result"]["dice"]["overall"]]
    table = [_table(["missing", *COMPARED], rows)] if rows else []
    return ["## Where parts of the scans are missing", f"{MISSING_PARTS} Scored {counts}.", *table]


def _gains(compared: Sequence[Mapping[str, Any]]) -> list[str]:
    if not compared:
        return []
    heads = ["missing", "", "gain of", "beside that of", "seeds", "that gain", "gain", "difference [95 %]", "p",
             "win/tie/loss"]  # fmt: skip
    rows = [
        [
            each["missing"] or "nothing", ", ".join(each["levels"].values()), each["second"], each["first"],
            str(len(each["seeds"])), f"{each['result']['first']:+.4f}", f"{each['result']['second']:+.4f}",
            _difference(each["result"], ".4f"), f"{each['result']['p']:.2g}",
            "{wins}/{ties}/{losses}".format(**each["result"]),
        ]
        for each in compared
    ]  # fmt: skip
    return ["## Gains beside one another", GAINS, _table(heads, rows)]


def _pictures(drawn: Sequence[Mapping[str, Any]]) -> list[str]:
    if not drawn:
        return []
    parts = ["## Best and worst cases", f"Chosen by rule: {RULE}. The thin white line is the truth's outline."]
    for each in drawn:
        title = f"{_cell_name(each)}{each['arm']} against {each['baseline']}"
        title += f", with {each['missing']} missing" if "missing" in each else ""
        parts += [title, f"![Outlines on the best and the worst cases of {title}]({each['picture']})"]
    return parts


def _in_words(comparison: Mapping[str, Any]) -> str:
    helped, hurt = (
        ", ".join(f"{case} {gain:+.3f}" for case, gain in comparison[key]) for key in ("helped_most", "hurt_most")
    )
    smallest = f"; smallest: {hurt}" if hurt else ""
    unlike = "".join(f" {words}" for key, words in UNLIKE.items() if not comparison[key])
    return f"- {_cell_name(comparison)}{comparison['verdict']}{unlike} Largest gains: {helped}{smallest}."


UNLIKE = {
    "same_hardware": "The two were trained on different hardware or in different precision, which may be a part of the "
    "difference.",
    "same_commit": "The two were trained at different commits, which may be a part of the difference.",
}

COMPARED = ("", "comparison", "seeds", "Dice before", "Dice", "difference [95 %]", "p", "win/tie/loss",
            "HD95 mm difference [95 %]")  # fmt: skip


def _compared(comparison: Mapping[str, Any]) -> list[str]:
    """Cells of :data:`COMPARED`, of a comparison in which there are scores."""
    dice, hd95 = (comparison["result"][metric]["overall"] for metric in ("dice", "hd95_mm"))
    without = hd95["left_out"] - dice["left_out"] if hd95 else 0
    return [
        _cell_name(comparison).removesuffix(": "),
        f"{comparison['arm']} against {comparison['baseline']} ({comparison['name']})",
        str(len(comparison["seeds"])),
        f"{dice['first']:.4f}",
        f"{dice['second']:.4f}",
        _difference(dice, ".4f"),
        f"{dice['p']:.2g}",
        f"{dice['wins']}/{dice['ties']}/{dice['losses']}",
        _difference(hd95, ".3f") + (f", {without} left out" if without else ""),
    ]


def _comparisons(comparisons: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for each in comparisons:
        if each["result"]["dice"]["overall"]:
            first, second = each["seconds"]
            ratio = f"{second / first:.2f}" if first and each["same_hardware"] else "-"
            rows.append([*_compared(each), ratio])
    return _table([*COMPARED, "time ratio"], rows)


def _arms(runs: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for levels, of_levels in by_arm(runs).items():
        first = of_levels[0]
        spread = {key: _spread([run[key] for run in of_levels], form) for key, form in
                  (("dice", ".4f"), ("hd95_mm", ".2f"), ("validation_dice", ".4f"))}  # fmt: skip
        missed = fmean(run["missed"] for run in of_levels)
        cases, steps = str(first["training_cases"]), str(first["steps"])
        if first["unlabelled_cases"]:
            cases += f" + {first['unlabelled_cases']} unlabelled"
        if first["pretrain_steps"]:
            steps = f"{first['pretrain_steps']} + {steps}"
        scored = [run["scored_is"] for run in of_levels]
        teachers = "-" if None in scored else str(scored.count("teacher"))
        rows.append(
            [
                " / ".join(level for _, level in levels), str(len(of_levels)), cases, steps,
                f"{first['learning_rate']:g}", spread["dice"], spread["hd95_mm"], f"{round(missed, 1):g}",
                spread["validation_dice"], teachers, clock(fmean(run["seconds"] for run in of_levels)),
            ]
        )  # fmt: skip
    heads = ["", "seeds", "cases", "steps", "learning rate", "Dice", "HD95 mm", "missed", "validation Dice",
             "of the teacher", "time"]  # fmt: skip
    return _table(heads, rows)


def _cell_name(comparison: Mapping[str, Any]) -> str:
    return ", ".join(comparison["levels"].values()) + ": " if comparison["levels"] else ""


def _difference(entry: Mapping[str, Any] | None, form: str) -> str:
    if entry is None:
        return "-"
    ends = "" if entry["interval"] is None else " [" + ", ".join(format(e, "+" + form) for e in entry["interval"]) + "]"
    return f"{entry['difference']:+{form}}{ends}" + ("" if entry["distinguishable"] else " (noise)")


def _spread(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    ends = f" ({min(known):{form}} to {max(known):{form}})" if len(known) > 1 else ""
    return f"{fmean(known):{form}}{ends}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

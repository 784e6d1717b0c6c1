"""The comparisons of a study: its arms paired run by run, and their gains with one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from medcontext.evaluation.compare import compare_evaluations, compare_gains, per_case
from medcontext.evaluation.verdict import verdict
from medcontext.studies.kept_pictures import KeptPictures
from medcontext.studies.outcome import Outcome
from medcontext.studies.study_file import Comparison, Study

EXTREMES = 3
"""Cases with the largest gain, and with the largest loss, that are named; none as both."""

Done = Sequence[Outcome]


def cells(study: Study, comparison: Comparison, done: Done) -> Iterator[tuple[dict[str, str], Done, Done]]:
    """For each level of the other factors, the runs of baseline and arm, seed by seed, of the seeds that both have."""
    by_levels = {tuple(sorted(outcome.planned.levels.items())): outcome for outcome in done}
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


def compared(pictures: KeptPictures, done: Done, missing: str | None = None) -> Iterator[dict[str, Any]]:
    """Every comparison of the study at every level of the other factors.

    Args:
        pictures: Those of the study.
        done: Runs with their scores, of whole scans or of scans with parts missing.
        missing: Which parts; None: none.
    """
    for comparison in pictures.study.comparisons:
        for levels, first, second in cells(pictures.study, comparison, done):
            before, after = ([outcome.evaluation for outcome in outcomes] for outcomes in (first, second))
            result = compare_evaluations(before, after)
            result.pop("definition")
            ranked = list(per_case(before, after).items())
            facts = second[0].facts
            yield {
                "name": comparison.name,
                "baseline": comparison.baseline,
                "arm": comparison.arm,
                "levels": levels,
                "network": facts["network"],
                "preset": facts["preset"],
                "training_cases": facts["training_cases"],
                "seeds": [outcome.planned.levels["seed"] for outcome in second],
                "steps": [_mean("steps", first), _mean("steps", second)],
                "seconds": [_mean("seconds", first), _mean("seconds", second)],
                "same_hardware": _alike("hardware", first, second),
                "same_commit": _alike("commit", first, second),
                "helped_most": [list(each) for each in ranked[:EXTREMES]],
                "hurt_most": [list(each) for each in ranked[EXTREMES:][::-1][:EXTREMES]],
                **pictures.draw(comparison, levels, first, second, missing),
                "verdict": verdict(result, comparison.baseline, comparison.arm),
                "result": result,
            }


def _alike(fact: str, first: Done, second: Done) -> bool:
    """Whether the runs of each seed have this in common."""
    return all(one.facts[fact] == other.facts[fact] for one, other in zip(first, second, strict=True))


def gains_compared(study: Study, done: Done) -> Iterator[dict[str, Any]]:
    """Whether the gain of one comparison differs from that of another, which two intervals side by side don't say.

    Yields:
        For each pair of comparisons in ``study.gains`` and each level of the other factors: ``first`` and ``second``,
        their names; ``levels``; ``seeds``, of which all four runs are done; and ``result``: the fields of
        :class:`~medcontext.evaluation.statistics.Paired` of the gains in overall Dice, second minus first.
    """
    named = {comparison.name: comparison for comparison in study.comparisons}
    for first, second in study.gains:
        others = {tuple(levels.items()): runs for levels, *runs in cells(study, named[second], done)}
        for levels, *runs in cells(study, named[first], done):
            pair = [_by_seed(*runs), _by_seed(*others.get(tuple(levels.items()), ([], [])))]
            seeds = [seed for seed in pair[0] if seed in pair[1]]
            one, other = (([runs[seed][0] for seed in seeds], [runs[seed][1] for seed in seeds]) for runs in pair)
            result = compare_gains(one, other) if seeds else None
            if result is not None:
                yield {"first": first, "second": second, "levels": levels, "seeds": seeds, "result": result.to_dict()}


def _by_seed(first: Done, second: Done) -> dict[str, tuple[Any, Any]]:
    """Seed -> the scores of both."""
    pairs = zip(first, second, strict=True)
    return {one.planned.levels["seed"]: (one.evaluation, other.evaluation) for one, other in pairs}


def _mean(fact: str, runs: Done) -> float:
    return round(fmean(outcome.facts[fact] for outcome in runs), 1)

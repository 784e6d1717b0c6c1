"""Paired statistics over cases, and over seeds: how large a difference is, and whether it is more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
"""``(seeds, cases)``, NaN where there is no score."""

RESAMPLES = 10_000
LEVEL = 0.95
EXACT = 13
"""Differences up to which all of their signs are gone through."""

AT_ONCE = 500
"""Resamples that are held in memory together."""

DEFINITION = {
    "difference": "second minus first, mean over the pairs (one per seed and case) in which both have a score; pairs "
    "in which one has none are left out and counted; overall, a label of a case is. Where a label is absent and one "
    "of the two finds it absent, which has no Dice, its Dice counts as 1 beside the other's",
    "interval": f"95 % percentile bootstrap interval of the mean difference, {RESAMPLES:,} resamples of the cases and, "
    "with several seeds, of seeds and cases at once, a drawn case being taken from every drawn seed (Owen, Annals of "
    "Applied Statistics 1(2), 2007), since every seed is scored on the same cases (where each has cases of its own, as "
    "folds have, of the cases, which says nothing of other trainings). A patient with several cases is drawn with all "
    "of them. Fewer than about 5 seeds, or 15 patients, make such intervals too narrow",
    "p": "Wilcoxon signed-rank test, two-sided, of the patients' differences, each averaged over its cases and their "
    "seeds; differences of 0 are ranked and then dropped (Pratt, JASA 54, 1959). It speaks of new patients, not of new "
    "seeds",
    "p_holm": "p corrected for the number of labels (Holm, Scandinavian Journal of Statistics 6, 1979)",
    "effect": "matched-pairs rank-biserial correlation (Kerby, Comprehensive Psychology 3, 2014) of the same: -1 to 1, "
    "above 0 where the second is better",
    "wins": "cases in which the second is better, as good, or worse, averaged over the seeds",
    "verdict": "a difference is called distinguishable from noise where its interval leaves out 0",
}
"""What the numbers mean, in words that travel with them."""


@dataclass(frozen=True)
class Paired:
    """A paired comparison of two methods, second minus first.

    Attributes:
        first: Mean score of the first, over the pairs.
        second: Of the second.
        difference: Their difference.
        interval: 95 % confidence interval of the difference; None where there are fewer than two patients.
        p: Of the Wilcoxon signed-rank test; 1 where no pair differs.
        p_holm: The same, corrected for several labels; None where it is not one of several.
        effect: Rank-biserial correlation, above 0 where the second is better.
        wins: Cases in which the second is better.
        ties: In which both are as good.
        losses: In which the second is worse.
        cases: With a pair in at least one seed.
        patients: Whose cases these are.
        seeds: How many.
        pairs: Seeds and cases in which both have a score.
        left_out: Seeds and cases in which only one has a score, or none.
    """

    first: float
    second: float
    difference: float
    interval: tuple[float, float] | None
    p: float
    p_holm: float | None
    effect: float
    wins: int
    ties: int
    losses: int
    cases: int
    patients: int
    seeds: int
    pairs: int
    left_out: int

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        interval = None if self.interval is None else list(self.interval)
        return asdict(self) | {"interval": interval, "distinguishable": self.distinguishable}


def paired(
    first: Scores,
    second: Scores,
    *,
    patients: Sequence[str] | None = None,
    higher_is_better: bool = True,
    seed: int = 0,
) -> Paired | None:
    """Compare two methods on the same cases.

    Args:
        first: Scores ``(seeds, cases)``, NaN where there is none.
        second: The same seeds and cases of the other method.
        patients: Whose case each is; None: of a patient of its own.
        higher_is_better: Whether a positive difference is a win.
        seed: Of the bootstrap.

    Returns:
        The comparison; None where there is no pair.
    """
    both = np.isfinite(first) & np.isfinite(second)
    if not both.any():
        return None
    differences = np.where(both, second - first, np.nan)
    used = both.any(axis=0)
    by_case = np.nanmean(differences[:, used], axis=0)
    places = _places(patients, both.shape[1])[used]
    by_patient = np.array([by_case[places == place].mean() for place in dict.fromkeys(places.tolist())])
    better = by_case if higher_is_better else -by_case
    return Paired(
        first=float(first[both].mean()),
        second=float(second[both].mean()),
        difference=float(differences[both].mean()),
        interval=bootstrap_interval(differences, patients=patients, seed=seed),
        p=wilcoxon(by_patient),
        p_holm=None,
        effect=rank_biserial(by_patient if higher_is_better else -by_patient),
        wins=int((better > 0).sum()),
        ties=int((better == 0).sum()),
        losses=int((better < 0).sum()),
        cases=int(used.sum()),
        patients=len(by_patient),
        seeds=int(both.any(axis=1).sum()),
        pairs=int(both.sum()),
        left_out=int((~both).sum()),
    )


def _places(patients: Sequence[str] | None, cases: int) -> npt.NDArray[np.int64]:
    """Of each case, which patient it is of, counted as they come."""
    if patients is None:
        return np.arange(cases)
    known = {patient: place for place, patient in enumerate(dict.fromkeys(patients))}
    return np.array([known[patient] for patient in patients], dtype=np.int64)


def bootstrap_interval(
    values: Scores,
    *,
    seed: int,
    patients: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean of ``values`` ``(seeds, cases)``, resampling seeds and cases.

    A case that is drawn is taken from every seed that is drawn (the pigeonhole bootstrap of Owen, Annals of Applied
    Statistics 1(2), 2007): seeds share their cases, and drawing cases anew within each seed would miss what a case has
    in common over the seeds. With one seed this is the ordinary bootstrap over cases; so it is where every case belongs
    to one seed only, as in cross-validation: seeds and cases can't be told apart then, and drawing both would count
    what varies twice. Where ``patients`` says whose case each is, patients are drawn, with all of their cases: scans of
    one patient are alike, and drawn apart they would count for more than they tell.

    Returns:
        Its ends; None where fewer than two patients have a value.
    """
    used = np.isfinite(values).any(axis=0)
    drawn, places = np.unique(_places(patients, values.shape[1])[used], return_inverse=True)
    values = values[:, used]
    values = values[np.isfinite(values).any(axis=1)]
    if (np.isfinite(values).sum(axis=0) == 1).all():
        values = np.nansum(values, axis=0, keepdims=True)
    seeds, people = len(values), len(drawn)
    if people < 2:
        return None
    known = np.isfinite(values).astype(np.float64)
    filled = np.nan_to_num(values)
    rng = np.random.default_rng(seed)
    means: list[Scores] = []
    for begin in range(0, resamples, AT_ONCE):
        count = min(AT_ONCE, resamples - begin)
        by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), count).astype(np.float64)
        by_patient = rng.multinomial(people, np.full(people, 1 / people), count).astype(np.float64)
        by_case = by_patient[:, places]
        weights = ((by_seed @ known) * by_case).sum(axis=1)
        sums = ((by_seed @ filled) * by_case).sum(axis=1)
        means.append(sums[weights > 0] / weights[weights > 0])
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_intervals(values: Scores, *, patients: Sequence[str] | None = None, seed: int = 0) -> tuple[Scores, Scores]:
    """Bootstrap intervals of means over cases, and of the means of these over the labels; patients are resampled, each
    with all of their cases.

    Args:
        values: ``(cases, metrics, labels)``, NaN where there is no value.
        patients: Whose case each is; None: of a patient of its own.
        seed: Of the bootstrap.

    Returns:
        ``(metrics, labels, 2)`` and ``(metrics, 2)``: ends of the intervals (percentile bootstrap, of the level and
        number of resamples of this module), NaN where fewer than two patients have a value.
    """
    known = np.isfinite(values)
    places = _places(patients, len(values))
    people = int(places.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), RESAMPLES).astype(np.float64)
    drawn = drawn[:, places]
    weights = np.einsum("rc,cml->mlr", drawn, known.astype(np.float64), optimize=True)
    sums = np.einsum("rc,cml->mlr", drawn, np.nan_to_num(values), optimize=True)
    means = np.divide(sums, weights, out=np.full_like(sums, np.nan), where=weights > 0)
    over_labels = _mean_of_known(means, axis=1)
    of_labels, of_all = _ends(means), _ends(over_labels)
    of_each = np.stack([known[places == place].any(axis=0) for place in range(people)])
    of_labels[of_each.sum(axis=0) < 2] = np.nan
    of_all[of_each.any(axis=2).sum(axis=0) < 2] = np.nan
    return of_labels, of_all


def _mean_of_known(values: Scores, axis: int) -> Scores:
    """Mean over an axis of what is not NaN; NaN where nothing is."""
    count = np.isfinite(values).sum(axis=axis)
    means: Scores = np.where(count > 0, np.nansum(values, axis=axis) / np.maximum(1, count), np.nan)
    return means


def _ends(resampled: Scores) -> Scores:
    """``(..., 2)``: ends of the percentile interval over the last axis, of what is not NaN."""
    ends = np.full((*resampled.shape[:-1], 2), np.nan)
    shares = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    for place in np.ndindex(resampled.shape[:-1]):
        known = resampled[place][np.isfinite(resampled[place])]
        if known.size:
            ends[place] = np.quantile(known, shares)
    return ends


def wilcoxon(differences: npt.NDArray[np.float64]) -> float:
    """Two-sided p of the Wilcoxon signed-rank test; zeros by Pratt's rule; 1 where every difference is 0.

    Over all signs where up to 13 differences are not 0: SciPy goes by how many there are with the zeros, and takes a
    normal distribution for the few that count.
    """
    from scipy.stats import rankdata
    from scipy.stats import wilcoxon as signed_rank

    counted = differences != 0
    if counted.sum() <= EXACT:
        ranks = rankdata(np.abs(differences))[counted]
        sums = np.zeros(1)
        for rank in ranks:
            sums = np.concatenate([sums, sums + rank])
        found = ranks[differences[counted] > 0].sum()
        return float(min(1.0, 2 * min((sums <= found).mean(), (sums >= found).mean())))
    return float(signed_rank(differences, zero_method="pratt").pvalue)


def rank_biserial(better: npt.NDArray[np.float64]) -> float:
    """Sum of the ranks of the wins minus that of the losses, over both, ranked with the ties among them."""
    from scipy.stats import rankdata

    ranks = rankdata(np.abs(better))
    total = ranks[better != 0].sum()
    return float((ranks * np.sign(better)).sum() / total) if total else 0.0


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected by Holm's step-down procedure, in the order given."""
    corrected = [0.0] * len(p)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - place) * p[index]))
        corrected[index] = largest
    return corrected

"""Pictures of the best and the worst cases in a study's results: drawn, or kept while they show what was found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medcontext.data.dataset import open_dataset
from medcontext.evaluation.compare import per_case
from medcontext.files import read_json, replacing
from medcontext.studies.extremes import Scored, compact, extremes_figure
from medcontext.studies.missing_parts import predictions_folder
from medcontext.studies.outcome import Outcome
from medcontext.studies.study_file import Comparison, Study


@dataclass(frozen=True)
class KeptPictures:
    """The pictures of a study.

    Attributes:
        study: The study.
        results: Folder for the results of all studies.
        shown: Place within ``results`` -> what the picture shows that was drawn there, as :func:`shows` says it.
    """

    study: Study
    results: Path
    shown: Mapping[str, str]

    @classmethod
    def of(cls, study: Study, results: Path) -> KeptPictures:
        """Those that the results tell of."""
        file = results / f"{study.name}.json"
        found = read_json(file) if file.is_file() else {}
        compared = [*found.get("comparisons", ()), *found.get("missing_parts", ())]
        return cls(study, results, {each["picture"]: each["shows"] for each in compared if each.get("shows")})

    def draw(
        self,
        comparison: Comparison,
        levels: Mapping[str, str],
        first: Sequence[Outcome],
        second: Sequence[Outcome],
        missing: str | None,
    ) -> dict[str, str | None]:
        """Draw the best and the worst cases of a comparison, of whole scans or with such parts missing, if that is
        asked for.

        Where scans, or the label maps of all seeds, are not at hand any more, a picture is kept that was drawn when
        they were, if it shows this comparison; another one is removed.

        Returns:
            ``picture``: where, within the results, and ``shows``: what, as :func:`shows` says it; None: there is none.
        """
        nothing: dict[str, str | None] = {"picture": None, "shows": None}
        if comparison.name not in self.study.pictures:
            return nothing
        parts = (*levels.values(), comparison.baseline, comparison.arm, *([f"missing-{missing}"] if missing else []))
        place = "/".join((self.study.name, "-".join(parts) + ".png"))
        told: dict[str, str | None] = {"picture": place, "shows": shows(comparison, first, second)}
        scored = [[_scored(outcome, missing) for outcome in outcomes] for outcomes in (first, second)]
        at_hand = [
            outcome.folder
            for outcome, *pair in zip(first, *scored, strict=True)
            if outcome.folder and all(each.predictions for each in pair)
        ]
        if self.study.data.exists() and at_hand:
            names, labels = (comparison.baseline, comparison.arm), at_hand[0].read_plan().labels
            figure = extremes_figure(scored[0], scored[1], names, open_dataset(self.study.data), labels, missing)
            with replacing(self.results / place) as file:
                file.write_bytes(compact(figure))
        elif self.shown.get(place) != told["shows"]:
            (self.results / place).unlink(missing_ok=True)
        return told if (self.results / place).is_file() else nothing


def shows(comparison: Comparison, first: Sequence[Outcome], second: Sequence[Outcome]) -> str:
    """A hash of the arms, the seeds and every case's gain."""
    gains = per_case([outcome.evaluation for outcome in first], [outcome.evaluation for outcome in second])
    seeds = [outcome.planned.levels["seed"] for outcome in second]
    rounded = {case: f"{gain:.6f}" for case, gain in gains.items()}
    said = json.dumps([comparison.baseline, comparison.arm, seeds, rounded], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _scored(outcome: Outcome, missing: str | None) -> Scored:
    """What there is to draw of a run, of whole scans or with such parts missing."""
    run, folder = outcome.folder, None
    if run is not None:
        folder = run.predictions if missing is None else predictions_folder(run, missing)
    return Scored(outcome.evaluation, folder if folder and folder.is_dir() else None)

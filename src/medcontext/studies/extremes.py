"""The cases where one method gains most over another, and where it loses most: chosen by rule, and drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from medcontext.data.dataset import Dataset
from medcontext.data.labels import Labels
from medcontext.errors import MedContextError
from medcontext.evaluation.compare import per_case
from medcontext.evaluation.summary import mean
from medcontext.files import read_json
from medcontext.studies.holdout import data_of
from medcontext.studies.missing_parts import write_what_is_left
from medcontext.training.run import RunFolder

DRAWN = 2
"""Cases of the largest gain, and cases of the smallest, that are drawn."""

WIDTH = 700

RULE = (
    "the two cases whose Dice gains most, and the two that gain least or lose most, by the mean over the seeds; of "
    "each the run, of those at hand, of the seed whose own gain is nearest to that mean"
)


@dataclass(frozen=True)
class Scored:
    """Scores of a run's held-out cases, as :func:`medcontext.evaluation.evaluate.evaluate` returns them, and the folder
    of the label maps that have them (None: not at hand)."""

    evaluation: Mapping[str, Any]
    predictions: Path | None


def picture_of_runs(first: Sequence[Path], second: Sequence[Path], names: tuple[str, str]) -> bytes:
    """:func:`extremes_figure` of run folders, with the scans of the data set that the first of them was trained on.

    Raises:
        MedContextError: One of them is no run folder that has been scored, or its data set is gone.
    """
    runs = [RunFolder(path) for path in (*first, *second)]
    for run in runs:
        if not run.evaluation.is_file():
            raise MedContextError(
                "Pictures can be drawn only of runs whose held-out cases have been predicted and scored.",
                file=run.path,
                expected="a run folder with test/evaluation.json",
                remedy="write the run's report first (medcontext report), or leave out pictures",
            )
    scored = [Scored(read_json(run.evaluation), run.predictions) for run in runs]
    dataset = data_of(runs[0])
    return extremes_figure(scored[: len(first)], scored[len(first) :], names, dataset, runs[0].read_plan().labels)


def extremes_figure(
    first: Sequence[Scored],
    second: Sequence[Scored],
    names: tuple[str, str],
    dataset: Dataset,
    labels: Labels,
    missing: str | None = None,
) -> bytes:
    """Contours of the truth and of both methods on a slice of each of these cases (:data:`RULE`).

    Args:
        first: Of the baseline, one for each seed.
        second: Of the other method, in the same order. Label maps of both have to be at hand for one seed at least.
        names: What both are called.
        dataset: Where the scans and their true labels are.
        labels: What the numbers in the label maps mean.
        missing: Show the scans with such parts missing (:data:`~medcontext.studies.missing_parts.MISSING`), which is
            how the label maps were made.

    Returns:
        A PNG.

    Raises:
        MedContextError: A case is not in the data set any more, or can't be read.
    """
    from medcontext.evaluation.pictures import OverlayCase, overlay_figure

    pairs = list(zip(first, second, strict=True))
    ranked = list(per_case([one.evaluation for one, _ in pairs], [other.evaluation for _, other in pairs]).items())
    by_seed = [per_case([one.evaluation], [other.evaluation]) for one, other in pairs]
    at_hand = [seed for seed, pair in enumerate(pairs) if all(each.predictions is not None for each in pair)]
    rows = []
    with TemporaryDirectory() as room:
        for rank, (case, gain) in _chosen([each for each in ranked if any(each[0] in by_seed[s] for s in at_hand)]):
            if case not in dataset.cases:
                raise MedContextError("A scored case is not in the data set any more.", file=dataset.root, found=case)
            having = [seed for seed in at_hand if case in by_seed[seed]]
            seed = min(having, key=lambda seed: abs(by_seed[seed][case] - gain))
            columns = {
                name: (each.predictions / f"{case}.nii.gz", _dice(each.evaluation, case))
                for name, each in zip(names, pairs[seed], strict=True)
                if each.predictions is not None
            }
            scan = dataset.cases[case]
            images = scan.images if missing is None else (write_what_is_left(case, scan, missing, Path(room)),)
            rows.append(OverlayCase(f"{rank} gain {gain:+.3f}", case, images, scan.label, columns))
        return overlay_figure(rows, labels.structures)


def _chosen(ranked: Sequence[tuple[str, float]]) -> list[tuple[str, tuple[str, float]]]:
    """Of cases that are sorted by gain, the largest first: the first and the last ones, none twice, with a rank."""
    most, least = ranked[:DRAWN], ranked[max(DRAWN, len(ranked) - DRAWN) :]
    return [("largest", each) for each in most] + [("smallest", each) for each in least]


def compact(picture: bytes) -> bytes:
    """A PNG of 256 colours and at most :data:`WIDTH` pixels across, small enough to be kept beside source code."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.thumbnail((WIDTH, image.height))
    made = io.BytesIO()
    # Of Pillow's methods the one that keeps the few coloured lines among all the grey.
    image.quantize(256, method=Image.Quantize.FASTOCTREE).save(made, format="png", optimize=True)
    return made.getvalue()


def _dice(evaluation: Mapping[str, Any], case: str) -> float | None:
    return mean(row["dice"] for row in evaluation["cases"] if row["case"] == case)

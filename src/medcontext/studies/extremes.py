"""The cases where one method gains most over another, and where it loses most: chosen by rule, and drawn."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from medcontext.data.dataset import Dataset, open_dataset
from medcontext.errors import MedContextError
from medcontext.evaluation.compare import per_case
from medcontext.evaluation.summary import mean
from medcontext.files import read_json
from medcontext.studies.missing_parts import predictions_folder, scores_file, write_what_is_left
from medcontext.training.run import RunFolder

DRAWN = 2
"""Cases of the largest gain, and cases of the smallest, that are drawn."""

WIDTH = 700

RULE = (
    "the two cases whose Dice gains most, and the two that gain least or lose most, by the mean over the seeds; of "
    "each the run of the seed whose own gain is nearest to that mean"
)


def picture_of_runs(first: Sequence[Path], second: Sequence[Path], names: tuple[str, str]) -> bytes:
    """:func:`extremes_figure` of run folders, with the scans of the data set that the first of them was trained on.

    Raises:
        MedContextError: One of them is no run folder that has been scored, or its data set is gone.
    """
    before, after = ([RunFolder(path) for path in paths] for paths in (first, second))
    for run in (*before, *after):
        if not run.evaluation.is_file():
            raise MedContextError(
                "Pictures can be drawn only of runs whose held-out cases have been predicted and scored.",
                file=run.path,
                expected="a run folder with test/evaluation.json",
                remedy="write the run's report first (medcontext report), or leave out pictures",
            )
    return extremes_figure(before, after, names, open_dataset(Path(read_json(before[0].about)["data"])))


def extremes_figure(
    first: Sequence[RunFolder],
    second: Sequence[RunFolder],
    names: tuple[str, str],
    dataset: Dataset,
    missing: str | None = None,
) -> bytes:
    """Contours of the truth and of both methods on a slice of each of these cases (:data:`RULE`).

    Args:
        first: Scored runs of the baseline, one for each seed.
        second: Those of the other method, in the same order.
        names: What both are called.
        dataset: Where the scans and their true labels are.
        missing: Draw, and choose by, the scans with such parts missing
            (:data:`~medcontext.studies.missing_parts.MISSING`) in place of whole ones.

    Returns:
        A PNG.

    Raises:
        MedContextError: A case is not in the data set any more, or can't be read.
    """
    from medcontext.evaluation.pictures import OverlayCase, overlay_figure

    scored = [[(run.evaluation, run.predictions) for run in runs] for runs in (first, second)]
    if missing is not None:
        scored = [
            [(scores_file(run, missing), predictions_folder(run, missing)) for run in runs] for runs in (first, second)
        ]
    before, after = ([read_json(scores) for scores, _ in runs] for runs in scored)
    ranked = list(per_case(before, after).items())
    by_seed = [per_case([one], [other]) for one, other in zip(before, after, strict=True)]
    rows = []
    for rank, (case, gain) in _chosen(ranked):
        if case not in dataset.cases:
            raise MedContextError("A scored case is not in the data set any more.", file=dataset.root, found=case)
        having = [seed for seed, gains in enumerate(by_seed) if case in gains]
        seed = min(having, key=lambda seed: abs(by_seed[seed][case] - gain))
        columns = {
            name: (runs[seed][1] / f"{case}.nii.gz", _dice(evaluations[seed], case))
            for name, runs, evaluations in zip(names, scored, (before, after), strict=True)
        }
        scan = dataset.cases[case]
        rows.append(OverlayCase(f"{rank} gain {gain:+.3f}", case, scan.images, scan.label, columns))
    structures = first[0].read_plan().labels.structures
    with TemporaryDirectory() as room:
        if missing is not None:
            shown = {
                row.name: write_what_is_left(row.name, dataset.cases[row.name], missing, Path(room)) for row in rows
            }
            rows = [dataclasses.replace(row, images=(shown[row.name],)) for row in rows]
        return overlay_figure(rows, {number: name for number, (name, _) in structures.items()})


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

"""Held-out cases with a part of each scan missing: what a network that learned context should bear better."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medcontext.data.case import Case
from medcontext.data.dataset import Dataset
from medcontext.data.geometry import filled_box
from medcontext.data.scan import Scan, read_scan, spacing_of, write_labels
from medcontext.data.writing import write_nifti
from medcontext.evaluation.evaluate import evaluate
from medcontext.files import write_json
from medcontext.inference.predictor import Predictor
from medcontext.progress import Progress
from medcontext.studies.holdout import patients_of_run
from medcontext.training.device import choose_device
from medcontext.training.run import RunFolder

SHARE = 0.3
"""Of a scan that is missing."""

BLOCK_MM = 12.0
BLOCK_SHARE = 1 / 3
"""Edge of a missing block: so many mm, but at most this share of the scan's longest side, as of a mouse."""


def blocks(scan: Scan, generator: np.random.Generator) -> Scan:
    """Cubes all over the scan, each missing with a chance of :data:`SHARE`, the mean of what is left in their place."""
    shape, filled, spacing = scan.array.shape[1:], filled_box(scan.array), spacing_of(scan.affine)
    longest = max(size * length for size, length in zip(shape, spacing, strict=True))
    edges = [max(1, round(min(BLOCK_MM, BLOCK_SHARE * longest) / length)) for length in spacing]
    missing = generator.random([-(-size // edge) for size, edge in zip(shape, edges, strict=True)]) < SHARE
    for axis, (size, edge) in enumerate(zip(shape, edges, strict=True)):
        missing = missing.repeat(edge, axis).take(range(size), axis)
    # An empty border would cease to be one with something in it.
    inside = np.zeros(shape, dtype=bool)
    inside[filled] = True
    left = scan.array[:, inside & ~missing] if (inside & ~missing).any() else scan.array[:, inside]
    return _without(scan, inside & missing, left.mean(axis=1))


def slab(scan: Scan, generator: np.random.Generator) -> Scan:
    """Neighbouring slices of one axis, a share of :data:`SHARE` of all, are black, with others on both sides of them: a
    black border is taken for the end of the scan."""
    axis = int(generator.integers(3))
    filled = filled_box(scan.array)[axis]
    size = filled.stop - filled.start
    count = round(SHARE * size)
    start = filled.start + min(max(1, int(generator.integers(size - count + 1))), max(0, size - count - 1))
    missing = np.zeros(scan.array.shape[1:], dtype=bool)
    np.moveaxis(missing, axis, 0)[start : start + count] = True
    return _without(scan, missing, scan.array.min(axis=(1, 2, 3)))


def _without(scan: Scan, missing: npt.NDArray[np.bool_], fill: npt.NDArray[np.float32]) -> Scan:
    return dataclasses.replace(scan, array=np.where(missing, fill[:, None, None, None], scan.array))


MISSING: dict[str, Callable[[Scan, np.random.Generator], Scan]] = {"blocks": blocks, "slab": slab}
"""What may be missing -> how it is taken out of a scan."""


def scores_file(run: RunFolder, kind: str) -> Path:
    """Where a run's scores with such parts missing are, beside those of whole scans."""
    return run.evaluation.with_name(f"missing-{kind}.json")


def predictions_folder(run: RunFolder, kind: str) -> Path:
    """Where the label maps are that were scored."""
    return run.evaluation.with_name(f"missing-{kind}")


def what_is_left(name: str, case: Case, kind: str) -> Scan:
    """A case's scan with such parts missing: the same ones whenever it is asked for."""
    return MISSING[kind](read_scan(*case.images), np.random.default_rng(zlib.crc32(name.encode())))


def write_what_is_left(name: str, case: Case, kind: str, folder: Path) -> Path:
    """Write the first channel of it as NIfTI, to be looked at."""
    scan, file = what_is_left(name, case, kind), folder / f"{name}-{kind}.nii.gz"
    write_nifti(file, scan.array[0], scan.affine, scan.header)
    return file


def score_missing_parts(run: RunFolder, dataset: Dataset, *, device: str, progress: Progress) -> None:
    """Predict and score the run's held-out cases with parts missing, without post-processing; of a case the same parts
    for every run.

    Args:
        run: Its folder; for each kind of :data:`MISSING` label maps are written to ``test/missing-<kind>`` there, and
            to ``test/missing-<kind>.json`` what :func:`medcontext.evaluation.evaluate.evaluate` returns.
        dataset: With the scans and their true labels.
        device: To predict on.
        progress: Where to say how far it is.

    Raises:
        MedContextError: A case can't be predicted.
    """
    predictor = Predictor.load(run.path, choose_device(device), postprocess=False)
    cases = {name: dataset.cases[name] for name in run.read_split().test}
    truths = {name: case.label for name, case in cases.items()}
    patients = patients_of_run(run, dataset)
    for kind in MISSING:
        folder = predictions_folder(run, kind)
        folder.mkdir(exist_ok=True)
        with progress.task(f"{kind} missing ({run.path.name})") as update:
            for done, (name, case) in enumerate(cases.items()):
                left = what_is_left(name, case, kind)
                write_labels(folder / f"{name}.nii.gz", predictor.labels_of(left), left)
                update(done + 1, len(cases))
        write_json(scores_file(run, kind), evaluate(folder, truths, predictor.plan.labels, patient=patients))

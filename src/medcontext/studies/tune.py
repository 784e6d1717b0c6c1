"""Choosing the post-processing of a model on validation cases, never on those that its run holds out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from medcontext.data.dataset import Dataset
from medcontext.data.labels import Labels
from medcontext.data.scan import read_labels
from medcontext.errors import MedContextError
from medcontext.evaluation.metrics import dice
from medcontext.evaluation.statistics import Paired, paired
from medcontext.files import write_json
from medcontext.inference.model import load_tensors, save_tensors
from medcontext.inference.postprocess import KEY, KEY_TOGETHER, Mask, Rule, around_of, changed_mask, voxel_ml
from medcontext.inference.predictor import Predictor
from medcontext.progress import Progress
from medcontext.studies.holdout import data_of, patients_of_run
from medcontext.training.device import choose_device
from medcontext.training.run import RunFolder

SHARES = (0.01, 0.05, 0.2)
"""Pieces that are smaller than this share of a structure's median volume are tried to be removed."""

LEAST_GAIN = 0.001
LEAST_WINS = 5

DEFINITION = (
    "Tried for each structure by itself: pieces below 1, 5 or 20 % of its median true volume removed, or all but the "
    "largest; then holes filled. Scored by Dice on the validation cases, in their own grids; 1 where nothing is and "
    "nothing is found, and of a case that several folds validate on their mean. Taken is what gains most, if it gains "
    "0.001 or more on average, the 95 % bootstrap interval of the gain over the patients is above 0, and at least 5 "
    "cases get better."
)
"""What is tried, and when it is taken, in words that travel with the results."""


@dataclass(frozen=True)
class Tried:
    """One way of post-processing a structure, against none, or for filled holes against the same without.

    Attributes:
        name: Of the structure.
        rule: What is done.
        scores: Dice without and with it, over the validation cases.
        taken: Whether it is done from now on.
    """

    name: str
    rule: Rule
    scores: Paired
    taken: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "name": self.name,
            "what": str(self.rule),
            **self.rule.to_dict(),
            "taken": self.taken,
            "dice": self.scores.to_dict(),
        }


@dataclass(frozen=True)
class Choice:
    """What was tried for a model, or for the mean of several, on the named cases."""

    cases: tuple[str, ...]
    tried: tuple[Tried, ...]

    @property
    def taken(self) -> list[dict[str, Any]]:
        """The rules that are done from now on, as a model file holds them."""
        return [each.rule.to_dict() for each in self.tried if each.taken]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"cases": list(self.cases), "tried": [each.to_dict() for each in self.tried]}


def tune(runs: Sequence[Path], *, device: str = "auto", progress: Progress | None = None) -> Choice:
    """Choose the post-processing of a run's model; of several runs (folds), that of each model and that of their mean.

    Each validation case is predicted by the model of its own run. The mean's choice is made on all of them; that of a
    model, on those which its run doesn't hold out, since a case that one fold validates on is held out by another. A
    case that several folds validate on counts once, with the mean of its scores.

    What is taken is written into the model files (``medcontext predict`` does it from then on), and what was tried,
    into ``postprocessing.json`` of each run.

    Args:
        runs: Run folders; of folds, each with its own validation cases.
        device: To predict on.
        progress: Where to say how far it is.

    Returns:
        What was tried for the mean, which of a single run is its model.

    Raises:
        MedContextError: No validation cases, one of them is gone or can't be predicted, or runs of different labels.
    """
    progress = progress or Progress(quiet=True)
    folders = [RunFolder(path) for path in runs]
    labels = folders[0].read_plan().labels
    if any(folder.read_plan().labels != labels for folder in folders):
        raise MedContextError("These runs segment different labels.", file=folders[-1].path)
    cases = [(folder, *_validation(folder)) for folder in folders]
    every = {name: dataset.cases[name].label for _, dataset, names in cases for name in names}
    patients = {
        name: patient for folder, dataset, _ in cases for name, patient in patients_of_run(folder, dataset).items()
    }
    volumes = {name: _volumes(label, labels) for name, label in every.items()}
    parts = [
        tuple(name for name in every if name not in held_out)
        for held_out in (*(folder.read_split().test for folder in folders), ())
    ]
    candidates = [_candidates([volumes[name] for name in part]) for part in parts]
    rules = {n: list(dict.fromkeys(rule for each in candidates for rule in each[n])) for n in labels.structures}
    rows: dict[str, list[dict[Rule, float]]] = {name: [] for name in every}
    done, count = itertools.count(1), sum(len(names) for _, _, names in cases)
    with progress.task("trying post-processing") as update:
        for folder, dataset, names in cases:
            predictor = Predictor.load(folder.path, choose_device(device), postprocess=False)
            for made in predictor.over({name: dataset.cases[name].images for name in names}):
                truth = read_labels(dataset.cases[made.name].label).array
                ml = voxel_ml(made.scan.affine)
                rows[made.name].append(_scores(made.labels, truth, labels, rules, ml))
                update(next(done), count)
    scores = {name: _mean(of_case) for name, of_case in rows.items()}
    *alone, together = (
        Choice(part, _tried(own, [scores[name] for name in part], [patients[name] for name in part], labels))
        for part, own in zip(parts, candidates, strict=True)
    )
    for folder, choice in zip(folders, alone, strict=True):
        _keep(folder, choice, together)
    return together


def _validation(run: RunFolder) -> tuple[Dataset, tuple[str, ...]]:
    dataset, names = data_of(run), run.read_split().validation
    missing = [name for name in names if name not in dataset.cases]
    if not names or missing:
        raise MedContextError(
            "There are no validation cases to choose the post-processing on.",
            file=run.split,
            found=f"{len(missing)} of {len(names)} no longer in {dataset.root}" if missing else "none",
            remedy="put them back where they were" if missing else "train with a validation_share above 0",
        )
    return dataset, names


def _volumes(file: Path, labels: Labels) -> dict[int, float]:
    """Of each structure in a label map, in ml."""
    truth = read_labels(file)
    ml = voxel_ml(truth.affine)
    return {number: int(np.isin(truth.array, own).sum()) * ml for number, (_, own) in labels.structures.items()}


def _candidates(volumes: Sequence[Mapping[int, float]]) -> dict[int, list[Rule]]:
    """For each structure, by its median volume over the cases that show it."""
    shown = {number: [each[number] for each in volumes if each[number]] for number in volumes[0]}
    return {number: _rules(number, float(np.median(own)) if own else 0.0) for number, own in shown.items()}


def _rules(number: int, volume: float) -> list[Rule]:
    """From the mildest on, each without and with filled holes; the first two change no piece."""
    pieces: list[dict[str, Any]] = [{}, *({"least_ml": float(f"{share * volume:.3g}")} for share in SHARES if volume)]
    return [Rule(number, **kept, fill=fill) for kept in (*pieces, {"largest": True}) for fill in (False, True)]


def _scores(
    predicted: npt.NDArray[np.int32],
    truth: npt.NDArray[np.int32],
    labels: Labels,
    rules: dict[int, list[Rule]],
    ml: float,
) -> dict[Rule, float]:
    """Dice of one case under every rule, each of which changes its own structure alone."""
    known = np.ones(truth.shape, dtype=bool) if labels.ignore is None else truth != labels.ignore
    scores = {}
    for number, (_, numbers) in labels.structures.items():
        mask, true = np.isin(predicted, numbers), np.isin(truth, numbers)
        box, around = _box_around(mask | true), around_of(labels, number)
        for rule in rules[number]:
            # As in :func:`~medcontext.inference.postprocess.postprocess`, other structures are not filled.
            changed = changed_mask(mask[box], rule, ml) & (mask[box] | (predicted[box] == around))
            score = dice(changed & known[box], true[box] & known[box])
            scores[rule] = 1.0 if score is None else score
    return scores


def _box_around(mask: Mask) -> tuple[slice, ...]:
    from scipy.ndimage import find_objects

    found = find_objects(mask.view(np.uint8))
    return found[0] if found else (slice(0),) * 3


def _mean(rows: Sequence[dict[Rule, float]]) -> dict[Rule, float]:
    """Of one case."""
    return {rule: fmean(row[rule] for row in rows) for rule in rows[0]}


def _tried(
    candidates: Mapping[int, Sequence[Rule]],
    rows: Sequence[dict[Rule, float]],
    patients: Sequence[str],
    labels: Labels,
) -> tuple[Tried, ...]:
    return tuple(each for number, own in candidates.items() for each in _choose(number, own, rows, patients, labels))


def _choose(
    number: int,
    rules: Sequence[Rule],
    rows: Sequence[dict[Rule, float]],
    patients: Sequence[str],
    labels: Labels,
) -> list[Tried]:
    """What is done with pieces first, then whether holes are filled on top of that."""

    def against(rule: Rule, other: Rule) -> Paired:
        scores = paired(*(np.array([[row[each] for row in rows]]) for each in (other, rule)), patients=patients)
        assert scores is not None
        return scores

    best = rules[0]
    pieces = {rule: against(rule, best) for rule in rules[2:] if not rule.fill}
    helpful = [rule for rule, scores in pieces.items() if helps(scores)]
    if helpful:
        best = max(helpful, key=lambda rule: pieces[rule].difference)
    filled = next(rule for rule in rules if rule == Rule(number, best.largest, best.least_ml, fill=True))
    holes = against(filled, best)
    name, _ = labels.structures[number]
    return [
        *(Tried(name, rule, scores, rule == best and not helps(holes)) for rule, scores in pieces.items()),
        Tried(name, filled, holes, helps(holes)),
    ]


def helps(scores: Paired) -> bool:
    """Whether a gain is more than noise (:data:`DEFINITION`)."""
    surely = scores.interval is not None and scores.interval[0] > 0
    return surely and scores.difference >= LEAST_GAIN and scores.wins >= LEAST_WINS


def _keep(run: RunFolder, own: Choice, together: Choice) -> None:
    """Write what was tried into the run's folder, and what is taken into its model, if that changes it."""
    content = load_tensors(run.best)
    about, taken = content["about"], {KEY: own.taken, KEY_TOGETHER: together.taken}
    if any(about.get(key, []) != rules for key, rules in taken.items()):
        save_tensors(run.best, {**content, "about": {**about, **taken}})
    write_json(run.postprocessing, {"definition": DEFINITION, **own.to_dict(), "together": together.to_dict()})

"""Which cases a training learns from, chooses its checkpoint on, and leaves to the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from medcontext.data.check import CheckReport
from medcontext.data.few_shot import few_shot, missing_classes
from medcontext.data.split import Split, make_split, with_validation
from medcontext.data.split_file import SplitFile, read_split_file
from medcontext.errors import MedContextError
from medcontext.training.config import TrainConfig


def split_for(report: CheckReport, config: TrainConfig, say: Callable[[str], None]) -> Split:
    """The split of a checked data set that the settings ask for: drawn, or a fold of a split file; all cases or few.

    Args:
        report: Of the data set, its patients known.
        config: ``split``, ``fold``, ``few_shot``, the shares and the seed.
        say: Told what is worth knowing: the hash of the split, what it leaves out, classes that are not learned.

    Raises:
        MedContextError: A split file that does not fit the data set, too few cases, or no such fold.
    """
    patients = {name: report.dataset.cases[name].patient for name in report.facts}
    split = _before_few_shot(report, config, patients, say)
    if config.few_shot is not None:
        classes = {name: facts.voxels for name, facts in report.facts.items()}
        subset = few_shot(split.train, config.few_shot, seed=config.split_seed, patients=patients, classes=classes)
        unseen = missing_classes(subset, split.train, classes)
        if unseen:
            say(f"label(s) {', '.join(map(str, unseen))} occur in none of the {len(subset)} training cases")
        split = dataclasses.replace(split, train=tuple(sorted(subset)))
    parts = f"{len(split.train)} cases to train on, {len(split.validation)} to choose the checkpoint"
    say(f"{parts}, {len(split.test)} held out; split {SplitFile('', '', (split,)).hash}")
    return split


def unlabelled_for(
    report: CheckReport, config: TrainConfig, split: Split, say: Callable[[str], None]
) -> tuple[str, ...]:
    """The cases to learn from without their label: what few-shot leaves of the training part, and what has no label.

    Scans without a label of patients who are validated or tested on take no part.

    Args:
        report: Of the data set, its patients known.
        config: As for :func:`split_for`, and whether there shall be any.
        split: What :func:`split_for` made of both.
        say: Told how many there are.

    Raises:
        MedContextError: There shall be some, and there are none.
    """
    if not config.unlabelled_batch:
        return ()
    dataset = report.dataset
    patients = {name: dataset.cases[name].patient for name in report.facts}
    rest = set(_before_few_shot(report, config, patients, lambda text: None).train) - set(split.train)
    apart = {patients[name] for name in (*split.validation, *split.test)}
    free = {name for name, case in dataset.unlabelled.items() if case.patient not in apart}
    say(
        f"learning without labels from {len(rest)} training cases left out by few_shot, and from {len(free)} of "
        f"{len(dataset.unlabelled)} scans that have none"
    )
    if not rest | free:
        raise MedContextError(
            "There are no scans to learn from without a label.",
            file=dataset.root,
            found=f"unlabelled_batch = {config.unlabelled_batch}",
            expected="training cases that few_shot leaves out, or training images without a label map",
            remedy="set few_shot, add such images to the training images, or leave unlabelled_batch out",
        )
    return tuple(sorted(rest | free))


def _before_few_shot(
    report: CheckReport, config: TrainConfig, patients: Mapping[str, str], say: Callable[[str], None]
) -> Split:
    if config.split is None:
        return make_split(
            report.facts,
            test_share=config.test_share,
            validation_share=config.validation_share,
            seed=config.split_seed,
            patient=patients,
            strata=report.dataset.strata,
        )
    file = read_split_file(config.split)
    left_out = file.checked_against(patients)
    if left_out:
        say(f"{len(left_out)} case(s) are in no part of {config.split}, for example {left_out[0]}")
    if config.fold >= len(file.folds):
        raise MedContextError(
            "The split has no such fold.",
            file=config.split,
            found=f"fold {config.fold}",
            expected=f"0 to {len(file.folds) - 1}",
        )
    chosen = file.folds[config.fold]
    return with_validation(
        chosen,
        share=config.validation_share,
        seed=config.split_seed,
        patients=patients,
        strata=report.dataset.strata,
    )

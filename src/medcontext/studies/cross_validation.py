"""A cross-validation: every fold trained in a run folder of its own, one after the other, then all cases scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from medcontext.data.dataset import Dataset, open_dataset
from medcontext.data.split import Split, make_folds
from medcontext.data.split_file import SplitFile, read_split_file
from medcontext.errors import MedContextError, require
from medcontext.files import alone_in, write_json
from medcontext.networks.registry import network_spec
from medcontext.progress import Progress
from medcontext.studies.fold_folder import CrossValidationFolder
from medcontext.studies.fold_summary import summarise
from medcontext.studies.holdout import score_held_out
from medcontext.training.config import TrainConfig
from medcontext.training.distribution import PREPARING, ending_together, first_does, launch
from medcontext.training.resume import MAY_CHANGE, to_resume
from medcontext.training.run import RunFolder
from medcontext.training.setup import checked, possible
from medcontext.training.train import train


def cross_validate(
    data: Path | str,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    folds: int = 5,
    resume: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train every fold of a cross-validation, and score each case by the model that was not trained on its patient.

    Args:
        data: The data set.
        out: Its folder; ``fold-<k>`` in it are ordinary run folders. One that was trained elsewhere, with the folder's
            ``folds.json`` as its split and ``fold=k``, can be put there and is taken as done.
        config: Settings of every fold; None: those of a cross-validation that is resumed, else the defaults. ``split``
            is a split file of as many folds; without one they are drawn by ``split_seed``, ``validation_share`` and
            ``patient``.
        folds: How many.
        resume: Go on with the cross-validation in ``out`` where it stopped; start it if there is none.
        replace: Remove the one in ``out`` first.
        progress: Where to say how far it is.

    Returns:
        What is written to ``summary.json``: ``dataset``, ``split`` (the hash of the folds), ``runs``, settings in which
        they are ``unlike``, and what :func:`~medcontext.studies.fold_summary.summarise` returns.

    Raises:
        MedContextError: Anything about data or settings that the user can mend.
        KeyboardInterrupt: Stopped by the user; the checkpoint of the fold under way is written.
    """
    folder = CrossValidationFolder(Path(out))
    if config is not None:
        network_spec(config.network, allow_import=True)
    stored = folder.read_config() if resume else None
    asked = config or stored or TrainConfig()
    fabric = launch(asked)
    progress = progress if progress and fabric.is_global_zero else Progress(quiet=True)
    # The other processes were started here, not by the trainings; and they wait long while data are read or predicted.
    with ending_together(fabric), ExitStack() as held:
        work = partial(_begin, Path(data), folder, asked, stored, folds, resume, replace, fabric, progress, held)
        for fold, settings in first_does(fabric, work, PREPARING).items():
            run = folder.run(fold)
            progress.say(f"fold {fold} ({fold + 1} of {folds}): {run.path}" + ("" if settings else ", done before"))
            if settings is not None:
                train(data, run.path, settings, resume=True, progress=progress)
        return first_does(fabric, partial(_score, Path(data), folder, folds, asked.device, progress), PREPARING)


def _begin(
    data: Path,
    folder: CrossValidationFolder,
    asked: TrainConfig,
    stored: TrainConfig | None,
    count: int,
    resume: bool,
    replace: bool,
    fabric: Fabric,
    progress: Progress,
    held: ExitStack,
) -> dict[int, TrainConfig | None]:
    """Find or write what the folds are, and what each is trained by: None for one that is done. The folder is held from
    here on."""
    require(count >= 2, "folds", count, "a whole number, 2 or more")
    goes_on = folder.open(resume=resume, replace=replace)
    existed = folder.path.is_dir()
    if existed:
        held.enter_context(alone_in(folder.path))
    settings = (
        to_resume(asked, stored, folder.path) if stored else dataclasses.replace(asked, method=asked.method_config())
    )
    # Own networks are named by whoever starts this, never by a file.
    network_spec(settings.network)
    _require_for_all_folds(settings)
    dataset = open_dataset(data).with_patients(settings.patient)
    file = read_split_file(folder.folds) if goes_on else _folds_of(dataset, settings, count)
    _require_each_once(file, count)
    file.checked_against(dataset.patients)
    if not goes_on:
        # Before the folds of one that is replaced go.
        possible(checked(dataset, settings.cache, progress), settings, fabric, Progress(quiet=True))
        folder.begin(settings, file)
        if not existed:
            held.enter_context(alone_in(folder.path))
        progress.say(f"{count} folds, split {file.hash}: {folder.folds}")
    elif stored is None:
        folder.write_config(settings)
    return {fold: _left_to_do(folder, fold, split, settings) for fold, split in enumerate(file.folds)}


def _require_for_all_folds(config: TrainConfig) -> None:
    """Refuse what is meant for one training with one split."""
    if config.fold != TrainConfig.fold:
        raise MedContextError(
            "A cross-validation trains every fold.",
            found=f"fold = {config.fold} beside folds",
            remedy="leave out fold, or, to train that fold alone, leave out folds",
        )
    if config.test_share != TrainConfig.test_share:
        raise MedContextError(
            "In a cross-validation the folds say which cases are held out.",
            found=f"test_share = {config.test_share} beside folds",
            remedy="leave out test_share; cases that no fold shall see are kept out by a split file of your own",
        )


def _folds_of(dataset: Dataset, config: TrainConfig, count: int) -> SplitFile:
    """Those of the split file that is asked for; else drawn, as 'medcontext split --folds' draws them."""
    if config.split is not None:
        return read_split_file(config.split)
    drawn = make_folds(
        dataset.patients,
        folds=count,
        validation_share=config.validation_share,
        seed=config.split_seed,
        strata=dataset.strata,
    )
    return SplitFile(dataset.name, f"medcontext train --folds {count}, split_seed {config.split_seed}", drawn)


def _require_each_once(file: SplitFile, count: int) -> None:
    """Refuse folds that hold out nothing, or a case twice, whose scores can't be put together."""
    if len(file.folds) != count:
        raise MedContextError(
            "The split has another number of folds than is asked for.",
            file=file.file,
            found=f"{len(file.folds)} fold(s)",
            expected=f"{count}",
            remedy=f"ask for its own (--folds {len(file.folds)}), or take another split file or folder",
        )
    held_out: dict[str, int] = {}
    for number, fold in enumerate(file.folds):
        if not fold.test:
            raise MedContextError(
                "A fold holds out no case.", file=file.file, found=f"'test' of fold {number} is empty",
                remedy="take a split file whose folds hold out different cases",
            )  # fmt: skip
        for name in fold.test:
            before = held_out.setdefault(name, number)
            if before != number:
                raise MedContextError(
                    "A cross-validation holds out no case twice.",
                    file=file.file,
                    found=f"'{name}' in 'test' of fold {before} and of fold {number}",
                    remedy="take a split file whose folds hold out different cases",
                )


def _left_to_do(folder: CrossValidationFolder, fold: int, split: Split, config: TrainConfig) -> TrainConfig | None:
    """What a fold is to be trained by, its run having been looked at if there is one; None if it is done.

    Raises:
        MedContextError: The run was begun with other settings or for other cases.
    """
    run = folder.run(fold)
    if not run.open(resume=True, replace=False):
        return dataclasses.replace(config, split=folder.folds, fold=fold)
    stored = run.read_settings()
    # The same file may have another path where the fold was trained.
    own = dataclasses.replace(config, split=stored.split, fold=fold)
    to_resume(own, stored, run.path)
    held_out = run.read_split().test
    if set(held_out) != set(split.test) or stored.few_shot != config.few_shot:
        raise MedContextError(
            "This run was made for other cases than its fold.",
            file=run.path,
            found=f"{len(held_out)} held-out cases, few_shot = {stored.few_shot}",
            expected=f"the {len(split.test)} held-out cases of fold {fold} of {folder.folds}, "
            f"few_shot = {config.few_shot}",
            remedy="move it away and go on (--resume): the fold is trained anew",
        )
    return None if run.finished else own


def _score(data: Path, folder: CrossValidationFolder, count: int, device: str, progress: Progress) -> dict[str, Any]:
    """Predict and score what each fold held out, and write the summary."""
    dataset = open_dataset(data)
    runs = [folder.run(fold) for fold in range(count)]
    evaluations = [score_held_out(run, dataset, device=device, progress=progress) for run in runs]
    unlike = _unlike([run.read_config() for run in runs])
    if unlike:
        progress.say(f"the folds were not trained alike: they differ in {', '.join(unlike)}")
    summary = {
        "dataset": dataset.name,
        "split": read_split_file(folder.folds).hash,
        "runs": [_facts(run) for run in runs],
        "unlike": unlike,
        **summarise(evaluations),
    }
    write_json(folder.summary, summary)
    return summary


def _facts(run: RunFolder) -> dict[str, Any]:
    split = run.read_split()
    return {
        "run": run.path.name,
        "steps": max(row["step"] for row in run.history()),
        **{part: len(getattr(split, part)) for part in ("train", "validation", "test")},
    }


def _unlike(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Settings that may change what is learned and are not the same in all folds, with their values."""
    apart = {"split", "fold", *MAY_CHANGE}
    by_name = {name: [config.get(name) for config in configs] for name in configs[0] if name not in apart}
    return {name: values for name, values in by_name.items() if any(value != values[0] for value in values)}

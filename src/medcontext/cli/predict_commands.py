"""``medcontext predict`` and ``medcontext tune``. The signatures are the command line, as in :mod:`.commands`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from medcontext.errors import MedContextError
from medcontext.inference.writing import Format
from medcontext.progress import Progress


def predict(
    model: list[Path] | Path,
    scans: Path,
    out: Path,
    split: Literal["train", "validation", "test"] | None = None,
    format: Format = "nii.gz",  # noqa: A002
    shard: str | None = None,
    replace: bool = False,
    mirror: bool = False,
    probabilities: bool = False,
    entropy: bool = False,
    no_postprocess: bool = False,
    device: str = "auto",
    network: str | None = None,
) -> int:
    """Segment scans, each in its own space; what is done already is kept. The exit code is 1 if any of them failed.

    Args:
        model: A run folder, a folder of folds, or a model file; in brackets several, which are averaged.
        scans: A scan (file or DICOM folder), a folder of scans, a data set, or a list of scans (.txt, .csv, .jsonl).
        out: Folder for the label maps.
        split: Only the cases of this part of the run's split; of several runs, those in this part of every one's.
        format: Of the label maps: seg.nrrd has names for 3D Slicer, dcm is DICOM SEG, same is that of the scan.
        shard: Do only this part of the scans, such as 3/8, while other machines do the others.
        replace: Make predictions anew that are there already, also those of another model.
        mirror: Average over mirrored images, too (if the model was trained with such).
        probabilities: Also write those of all classes, to OUT/probabilities.
        entropy: Also write how uncertain each voxel is, to OUT/entropy.
        no_postprocess: Leave out the post-processing that 'medcontext tune' chose for the model.
        device: auto, cpu, cuda or mps.
        network: Your own network, package.module:factory, if the model was trained with it.
    """
    from medcontext.inference.predict import predict_files
    from medcontext.inference.predictor import Predictor
    from medcontext.inference.scans import find_scans
    from medcontext.networks.registry import network_spec
    from medcontext.training.device import choose_device

    progress = Progress()
    if network is not None:
        network_spec(network, allow_import=True)
    predictor = Predictor.load(model, choose_device(device), mirror=mirror, postprocess=not no_postprocess)
    found = find_scans(scans, predictor.plan.channels)
    if split is not None:
        wanted = _in_part(predictor.files, split)
        found = {name: paths for name, paths in found.items() if name in wanted}
        if not found:
            raise MedContextError(f"None of these scans is in the {split} part of the run's split.", file=scans)
    for rule in predictor.rules:
        progress.say(f"post-processing of {predictor.plan.labels.structures[rule.number][0]}: {rule}")
    outcome = predict_files(
        predictor,
        found,
        out,
        kind=format,
        shard=shard,
        replace=replace,
        probabilities=probabilities,
        entropy=entropy,
        progress=progress,
    )
    counts = [
        f"{len(outcome.written)} label map(s) written to {out}",
        f"{len(outcome.there)} there already" if outcome.there else "",
        f"{len(outcome.remarks)} of scans unlike the training scans" if outcome.remarks else "",
        f"{len(outcome.failed)} scan(s) failed: see {outcome.summary}" if outcome.failed else "",
    ]
    print("; ".join(filter(None, counts)))
    return 1 if outcome.failed else 0


def _in_part(files: Sequence[Path], split: str) -> set[str]:
    """The cases in this part of every model's split: one that a single model learned from is held out of no mean."""
    from medcontext.training.run import RunFolder

    shared = set.intersection(*(set(getattr(RunFolder(file.parent).read_split(), split)) for file in files))
    if not shared and len(files) > 1:
        raise MedContextError(
            f"No case is in the {split} part of the split of every one of these models.",
            found=", ".join(str(file) for file in files),
            expected=f"cases in the {split} part of all their splits, since the models are averaged",
            remedy="predict with one fold at a time, or use 'medcontext report' for each fold's held-out cases",
        )
    return shared


def tune(runs: list[Path] | Path, device: str = "auto", network: str | None = None) -> int:
    """Choose a model's post-processing on validation cases; it is left off unless it helps by more than noise.

    Args:
        runs: A run folder, or a folder of folds; in brackets several runs. The choice for their mean is printed; each
            run's own, on what it doesn't hold out, is in its postprocessing.json.
        device: To predict on.
        network: Your own network, package.module:factory, if the run was trained with it.
    """
    from medcontext.cli.tables import postprocessing_table, print_table
    from medcontext.inference.models import model_files
    from medcontext.networks.registry import network_spec
    from medcontext.studies.tune import DEFINITION
    from medcontext.studies.tune import tune as choose

    if network is not None:
        network_spec(network, allow_import=True)
    files = model_files(runs)
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise MedContextError("There is no such run, or no model in it.", file=missing, remedy="check the path")
    folders = [file.parent for file in files]
    choice = choose(folders, device=device, progress=Progress())
    print_table(postprocessing_table(choice.tried))
    print(DEFINITION)
    count = len(choice.taken)
    print(f"{count} structure(s) are post-processed by 'medcontext predict' from now on" if count else "none taken")
    return 0

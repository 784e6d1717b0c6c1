"""The held-out cases of a run: predicted in native space, scored, and reported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medcontext.data.dataset import Dataset, open_dataset
from medcontext.errors import MedContextError
from medcontext.evaluation.evaluate import evaluate
from medcontext.evaluation.report import RunResults, write_report
from medcontext.files import read_json, write_json
from medcontext.inference.model import load_model
from medcontext.inference.predict import predict_files
from medcontext.inference.predictor import Predictor
from medcontext.progress import Progress, clock
from medcontext.training.device import choose_device
from medcontext.training.run import RunFolder


def score_held_out(run: RunFolder, dataset: Dataset, *, device: str, progress: Progress) -> dict[str, Any]:
    """Predict the run's test cases that are not predicted yet, and score them all in their native space.

    Returns:
        What :func:`medcontext.evaluation.evaluate.evaluate` gives; also written to ``test/evaluation.json``.

    Raises:
        MedContextError: No test cases, one of them is gone, or one can't be predicted.
    """
    test = run.read_split().test
    missing = [name for name in test if name not in dataset.cases]
    if not test or missing:
        raise MedContextError(
            "The held-out cases of this run can't be scored.",
            file=run.split,
            found=f"{len(missing)} of {len(test)} no longer in {dataset.root}" if missing else "no case is held out",
            remedy="put them back where they were" if missing else "train with a test_share above 0",
        )
    predictor = Predictor.load(run.path, choose_device(device))
    scans = {name: dataset.cases[name].images for name in test}
    title = f"predicting ({run.path.name})"
    outcome = predict_files(predictor, scans, run.predictions, redo=True, progress=progress, title=title)
    if outcome.failed:
        raise next(iter(outcome.failed.values()))
    labels = run.read_plan().labels
    with progress.task(f"scoring ({run.path.name})") as update:
        truths = {name: dataset.cases[name].label for name in test}
        result = evaluate(run.predictions, truths, labels, progress=update)
    write_json(run.evaluation, result)
    return result


def report_runs(runs: Sequence[Path], *, device: str = "auto", progress: Progress | None = None) -> Path:
    """Score the held-out cases of the runs and write the page ``report.html`` into the first of them.

    Args:
        runs: Run folders; the first is the one the page is about.
        device: To predict on.
        progress: Where to say how far it is.

    Returns:
        The page.
    """
    progress = progress or Progress(quiet=True)
    folders = [RunFolder(path) for path in runs]
    settings = [folder.read_config() for folder in folders]
    names = _names([str(each["preset"]) for each in settings], [folder.path.name for folder in folders])
    dataset = open_dataset(Path(read_json(folders[0].about)["data"]))
    results = [
        RunResults(
            name=name,
            facts=_facts(folder),
            environment=_environment(folder),
            history=folder.history(),
            evaluation=score_held_out(folder, dataset, device=device, progress=progress),
            predictions=folder.predictions,
        )
        for name, folder in zip(names, folders, strict=True)
    ]
    scans = {name: (case.images, case.label) for name, case in dataset.cases.items()}
    labels = {number: name for number, (name, _) in folders[0].read_plan().labels.structures.items()}
    write_report(folders[0].report, results, scans, labels, f"MedContext on {dataset.name}")
    return folders[0].report


def _names(presets: list[str], folders: list[str]) -> list[str]:
    """The presets where they tell the runs apart, else the folders' names with them."""
    if len(set(presets)) == len(presets):
        return presets
    return [f"{preset} ({folder})" for preset, folder in zip(presets, folders, strict=True)]


def _facts(run: RunFolder) -> dict[str, str]:
    settings, split, about = run.read_config(), run.read_split(), load_model(run.best).about
    unlabelled, pretrained = len(read_json(run.about).get("unlabelled", ())), settings.get("pretrain_steps", 0)
    seconds = next((row["seconds"] for row in reversed(run.history()) if "seconds" in row), 0.0)
    method = settings["method"]
    masked = method["mask"] != "none" and method["ratio"] > 0
    return {
        "Preset": settings["preset"],
        "Masking": f"{method['mask']}, {method['ratio']:.0%} hidden, {method['hide']}, {method['fill']} in their place"
        if masked
        else "none",
        "Network": f"{settings['network']}, {about['parameters']:,} parameters",
        "Patch": f"{' x '.join(map(str, settings['patch']))} voxels, {settings['batch_size']} per step",
        "Steps": f"{settings['max_steps']:,} in {clock(seconds)}"
        + (f", after {pretrained:,} of pre-training" if pretrained else ""),
        "Cases": f"{len(split.train)} training, {len(split.validation)} validation, {len(split.test)} held out"
        + (f"; {unlabelled} without their label" if unlabelled else ""),
        "Seed": f"{settings['seed']} (split {settings['split_seed']})",
        "Model": f"{about['which']} at "
        + ("the last step" if about["validation_dice"] is None else f"step {about['step']:,}, chosen by validation"),
    }


def _environment(run: RunFolder) -> dict[str, str]:
    about, settings = read_json(run.about), run.read_config()
    return {
        "Started": about["started"],
        "Processor": f"{about['processor']}, {about['cores']} cores, {about['threads']} threads",
        "Device": f"{settings['device']} in {settings['precision']}",
        "Python": about["python"],
        **about["versions"],
    }

"""The held-out cases of a run: predicted in native space, and scored."""

from __future__ import annotations

from typing import Any

from medcontext.data.dataset import Dataset, open_dataset
from medcontext.errors import MedContextError
from medcontext.evaluation.evaluate import evaluate
from medcontext.files import write_json
from medcontext.inference.predict import predict_files
from medcontext.inference.predictor import Predictor
from medcontext.progress import Progress
from medcontext.training.device import choose_device
from medcontext.training.run import RunFolder


def data_of(run: RunFolder) -> Dataset:
    """The data set that a run was trained on.

    Raises:
        MedContextError: It is no longer there.
    """
    if not run.data.exists():
        raise MedContextError(
            "The data set of this run is not where it was.",
            file=run.path,
            found=f"nothing at {run.data}",
            remedy="put it back, or make a link to it there; or tell the run where it is now "
            f"('medcontext train DATA --out {run.path} --resume')",
        )
    return open_dataset(run.data)


def patients_of_run(run: RunFolder, dataset: Dataset) -> dict[str, str]:
    """Case -> patient, as the run was told to find them."""
    return dataset.with_patients(run.read_config().get("patient")).patients


def score_held_out(
    run: RunFolder,
    dataset: Dataset,
    *,
    device: str,
    progress: Progress,
    calibration: bool = False,
    postprocess: bool = True,
) -> dict[str, Any]:
    """Predict the run's test cases that are not predicted yet, and score them all in their native space.

    Args:
        run: Its folder.
        dataset: With the scans and their true labels.
        device: To predict on.
        progress: Where to say how far it is.
        calibration: Also predict probabilities, and measure how well they are calibrated.
        postprocess: Whether the post-processing that was chosen for the model is done.

    Returns:
        What :func:`medcontext.evaluation.evaluate.evaluate` gives, and ``postprocessing``: the rules that were done;
        also written to ``test/evaluation.json``.

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
    predictor = Predictor.load(run.path, choose_device(device), postprocess=postprocess)
    scans = {name: dataset.cases[name].images for name in test}
    title = f"predicting ({run.path.name})"
    outcome = predict_files(
        predictor, scans, run.predictions, redo=True, probabilities=calibration, progress=progress, title=title
    )
    if outcome.failed:
        raise next(iter(outcome.failed.values()))
    labels = run.read_plan().labels
    with progress.task(f"scoring ({run.path.name})") as update:
        truths = {name: dataset.cases[name].label for name in test}
        probabilities = run.predictions / "probabilities" if calibration else None
        result = evaluate(
            run.predictions, truths, labels, patient=patients_of_run(run, dataset), probabilities=probabilities,
            progress=update,
        )  # fmt: skip
    result["postprocessing"] = [rule.to_dict() for rule in predictor.rules]
    write_json(run.evaluation, result)
    return result

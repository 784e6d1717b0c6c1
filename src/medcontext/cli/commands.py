"""What each command does. The signatures are the command line: required parameters in order, the others as options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medcontext.files import replacing, write_json
from medcontext.progress import Progress
from medcontext.training.config import Preset


def phantom(out: Path, cases: int = 20, seed: int = 0) -> int:
    """Make a data set of CT-like abdominal phantoms, as NIfTI files in the Medical Segmentation Decathlon's layout.

    Args:
        out: Folder to make.
        cases: Number of phantoms.
        seed: Of the draw; phantom i is the same whatever the number of cases.
    """
    from medcontext.data.phantom import make_phantoms

    progress = Progress()
    with progress.task("phantoms") as update:
        make_phantoms(out, cases, seed, update)
    print(f"{cases} phantoms in {out}. Next: medcontext check {out}")
    return 0


def check(
    data: Path,
    split: Path | None = None,
    patient: str | None = None,
    json: Path | None = None,
    cache: Path | None = None,
) -> int:
    """Read every file of a data set and say what is wrong with it. The exit code is 1 if training would be refused.

    Args:
        data: Data folder: imagesTr and labelsTr, or images and labels; or a case list.
        split: Also check this split file: that it fits the data, and that no patient is on two sides.
        patient: Regular expression for the patient in a case's name; None: as the data set says.
        json: Also write the findings to this file.
        cache: Folder that remembers what has been checked; None: ~/.cache/medcontext.
    """
    from medcontext.cli.tables import findings_table, print_table
    from medcontext.data.check import check_split
    from medcontext.data.dataset import open_dataset
    from medcontext.data.split_file import read_split_file
    from medcontext.training.setup import checked

    dataset = open_dataset(data).with_patients(patient)
    report = checked(dataset, cache, Progress())
    if split is not None:
        found = check_split(dataset, read_split_file(split))
        report = replace(report, findings=(*found, *report.findings))
    if report.findings:
        print_table(findings_table(report.findings))
    warnings = len(report.findings) - len(report.errors)
    print(
        f"{report.dataset.name}: {len(report.facts)} case(s) fit for training, labels "
        f"{', '.join(f'{number} {name}' for number, (name, _) in report.labels.structures.items()) or 'none'}; "
        f"{len(report.errors)} error(s), {warnings} warning(s)"
    )
    if json is not None:
        write_json(json, report.to_dict())
    return 1 if report.errors or not report.facts else 0


def plan(
    data: Path,
    network: str = "unet",
    preset: Preset = "medcontext",
    device: str = "auto",
    patch: tuple[int, int, int] | None = None,
    spacing: tuple[float, float, float] | None = None,
    batch_size: int | None = None,
    json: Path | None = None,
    against: Path | None = None,
    cache: Path | None = None,
) -> int:
    """Say how a data set would be prepared and trained on, why, and what it would take.

    Args:
        data: Data folder.
        network: The network it is planned for.
        preset: The method, for the memory and time of a step.
        device: What it will be trained on.
        patch: Take this patch (D, H, W) in voxels, slice axis first.
        spacing: Take this spacing (D, H, W) in mm.
        batch_size: Take so many patches per step.
        json: Also write the plan to this file, which can be edited and given to 'medcontext train --plan'.
        against: Another plan file: say what differs from it.
        cache: Folder that remembers what has been checked; None: ~/.cache/medcontext.
    """
    from medcontext.cli.tables import fingerprint_table, plan_table, print_table
    from medcontext.data.cache import estimate_bytes
    from medcontext.data.dataset import open_dataset
    from medcontext.data.fingerprint import take_fingerprint
    from medcontext.data.plan_file import diff_plans, read_plan, write_plan
    from medcontext.networks.registry import network_spec
    from medcontext.training.config import TrainConfig
    from medcontext.training.device import choose_device
    from medcontext.training.estimate import estimate
    from medcontext.training.setup import build, checked, plan_for, require_clean, resolve

    report = checked(open_dataset(data), cache, Progress())
    require_clean(report)
    network_spec(network, allow_import=True)
    asked = TrainConfig(
        preset=preset, network=network, patch=patch, spacing=spacing, batch_size=batch_size, cache=cache
    )
    chosen = choose_device(device)
    planned = plan_for(report, asked, chosen)
    print_table(fingerprint_table(take_fingerprint(report)))
    print_table(plan_table(planned))
    for reason in planned.reasons:
        print(f"- {reason}")
    settings = resolve(asked, planned, chosen)
    print(f"on {chosen}: {estimate(build(settings, planned), settings, planned, chosen)}")
    print(f"prepared cases: about {estimate_bytes(report.facts.values(), planned) / 1e6:,.0f} MB in {settings.cache}")
    if against is not None:
        differences = diff_plans(read_plan(against), planned)
        print("\n".join(differences) or f"the same plan as {against}")
    if json is not None:
        write_plan(json, planned)
    return 0


def split(
    data: Path,
    out: Path,
    folds: int | None = None,
    test_share: float = 0.2,
    validation_share: float = 0.1,
    patient: str | None = None,
    seed: int = 0,
) -> int:
    """Write a split file for 'medcontext train --split': one split, or the folds of a cross-validation.

    Args:
        data: Data set.
        out: File to write (JSON).
        folds: Number of folds, in each of which other cases are held out; None: one split, by test_share.
        test_share: Share of the patients that is held out, where there are no folds.
        validation_share: Share of the other patients that chooses the checkpoint.
        patient: Regular expression for the patient in a case's name; None: as the data set says.
        seed: Of the draw.
    """
    from medcontext.data.dataset import open_dataset
    from medcontext.data.split import make_folds, make_split
    from medcontext.data.split_file import SplitFile, write_split_file

    dataset = open_dataset(data).with_patients(patient)
    patients, strata = dataset.patients, dataset.strata
    if folds is None:
        drawn = [
            make_split(
                patients,
                test_share=test_share,
                validation_share=validation_share,
                seed=seed,
                patient=patients,
                strata=strata,
            )
        ]
    else:
        drawn = [*make_folds(patients, folds=folds, validation_share=validation_share, seed=seed, strata=strata)]
    written = SplitFile(dataset.name, f"medcontext split, seed {seed}", tuple(drawn))
    write_split_file(out, written)
    for number, fold in enumerate(drawn):
        print(f"fold {number}: {len(fold.train)} train, {len(fold.validation)} validation, {len(fold.test)} held out")
    print(f"{len(set(patients.values()))} patients, split {written.hash}: {out}")
    return 0


def report(
    run: Path,
    others: tuple[Path, ...] = (),
    out: Path | None = None,
    calibration: bool = False,
    device: str = "auto",
    network: str | None = None,
) -> int:
    """Write the report page of a run, beside other runs if there are any. Held-out cases are predicted first.

    Args:
        run: Run folder, or the folder of a cross-validation.
        others: More of them, such as the baseline: the page compares the first with each, case by case.
        out: The page to write; None: report.html in the folder of the first.
        calibration: Also predict probabilities, and show how well they are calibrated.
        device: To predict on.
        network: Your own network, package.module:factory, if the run was trained with it.
    """
    from medcontext.networks.registry import network_spec
    from medcontext.studies.reporting import report_runs

    if network is not None:
        network_spec(network, allow_import=True)
    page = report_runs([run, *others], out=out, calibration=calibration, device=device, progress=Progress())
    print(f"report: {page}")
    return 0


def compare(
    a: list[Path] | Path,
    b: list[Path] | Path,
    truth: Path | None = None,
    patient: str | None = None,
    json: Path | None = None,
    pictures: Path | None = None,
) -> int:
    """Compare two methods on the same cases: difference, confidence interval, tests; in words whether it is noise.

    Args:
        a: The baseline: a run folder, a file of scores, or with truth a folder of label maps; in brackets one per seed.
        b: The other, in the same way.
        truth: Folder of true label maps, where a and b are folders of label maps.
        patient: Regular expression for the patient in a case's name; None: as the scores say.
        json: Also write everything to this file.
        pictures: Also draw the cases of the largest gains and losses to this PNG file, where a and b are run folders.
    """
    from medcontext.cli.tables import print_table
    from medcontext.evaluation.compare import compare_runs
    from medcontext.evaluation.verdict import comparison_table

    first, second = ([each] if isinstance(each, Path) else each for each in (a, b))
    result = compare_runs(first, second, truth, patient=patient)
    names = _name(first), _name(second)
    if names[0] == names[1]:
        # Seeds are often called alike in the folders of both methods.
        names = f"{first[0]}", f"{second[0]}"
    print_table(comparison_table(result, *names))
    if json is not None:
        write_json(json, result)
    if pictures is not None:
        from medcontext.studies.extremes import picture_of_runs

        picture = picture_of_runs(first, second, names)
        with replacing(pictures) as file:
            file.write_bytes(picture)
    return 0


def _name(paths: list[Path]) -> str:
    return paths[0].name if len(paths) == 1 else f"{paths[0].name} and {len(paths) - 1} more"


def demo(out: Path = Path("demo"), seed: int = 0, replace: bool = False) -> int:
    """The whole way on phantoms, in a few minutes: MedContext beside the supervised baseline, from scans to report.

    Args:
        out: Folder for everything.
        seed: Of phantoms and trainings.
        replace: Remove what an earlier demonstration left there.
    """
    from medcontext.studies.demo import run_demo

    run_demo(out, seed=seed, replace=replace, progress=Progress())
    return 0


def networks(json: bool = False) -> int:
    """List the networks: what each costs in the setting that was published for Synapse CT, and what it can do.

    Args:
        json: Print JSON instead of a table: a list with one object per network.
    """
    from json import dumps

    from medcontext.cli.tables import networks_table, print_table
    from medcontext.networks.catalogue import catalogue

    rows = catalogue()
    if json:
        print(dumps(rows, indent=1))
    else:
        print_table(networks_table(rows))
    return 0

"""``medcontext study``: everything that a study file asks for."""

from __future__ import annotations

from pathlib import Path

from medcontext.progress import Progress


def study(
    file: Path,
    data_root: Path,
    out: Path | None = None,
    jobs: int = 1,
    device: str = "auto",
    cache: Path | None = None,
    results: Path | None = None,
    only: str = "*",
    dry_run: bool = False,
) -> int:
    """Train and compare everything that a study file asks for; called again, it goes on where it stopped.

    Args:
        file: The study (YAML); the folder 'studies' has examples.
        data_root: Folder of the data sets that it names.
        out: Folder for the runs; None: runs/NAME.
        jobs: Runs side by side, each with its share of the cores.
        device: auto, cpu, cuda or mps.
        cache: Folder of prepared cases; None: ~/.cache/medcontext.
        results: Folder for tables, figures and the summary; None: the folder of the runs. Runs that it holds with
            these settings are not done again.
        only: Do the runs whose name matches this pattern, as '4-cases/*' or '*/seed-0', or one of several between
            commas; the results are of all that are done.
        dry_run: Say what would be run, and how long it would take.
    """
    from medcontext.cli.tables import print_table
    from medcontext.studies.conduct import conduct, rehearse

    progress = Progress()
    if dry_run:
        table = rehearse(
            file, data_root, out, jobs=jobs, device=device, cache=cache, results=results, only=only, progress=progress
        )
        print_table(table)
        return 0
    failed = conduct(
        file, data_root, out, jobs=jobs, device=device, cache=cache, results=results, only=only, progress=progress
    )
    for name, error in failed.items():
        progress.say(f"{name}: {error}")
    return 1 if failed else 0

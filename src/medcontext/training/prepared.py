"""The prepared scans that a run learns from, and that they and the plan are the same ones when it goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medcontext.data.cache import AnyCase, prepare_all
from medcontext.data.dataset import Dataset
from medcontext.data.facts import CaseFacts
from medcontext.data.plan import Plan
from medcontext.data.split import Split
from medcontext.errors import MedContextError
from medcontext.files import read_json
from medcontext.progress import Progress
from medcontext.training.config import TrainConfig
from medcontext.training.run import RunFolder


def prepared_scans(
    dataset: Dataset,
    plan: Plan,
    split: Split,
    unlabelled: Sequence[str],
    config: TrainConfig,
    progress: Progress,
    facts: Mapping[str, CaseFacts] | None,
) -> dict[str, Path]:
    """Prepared cases to train and to validate on, by name; the label of those to learn from without one is not read.

    Those held out are read when they are predicted, as new scans are.

    Raises:
        MedContextError: One of them is gone, can't be read, or can't be stored.
    """
    needed: dict[str, AnyCase | None] = {name: dataset.cases.get(name) for name in (*split.train, *split.validation)}
    needed |= {name: dataset.without_label(name) for name in unlabelled}
    missing = [name for name, case in needed.items() if case is None]
    if missing:
        raise MedContextError(
            "The data set has changed since this run began.",
            file=dataset.root,
            found=f"{len(missing)} case(s) gone, for example {missing[0]}",
            remedy="put them back, or start a new run",
        )
    assert config.cache is not None
    with progress.task("preparing") as update:
        return prepare_all([case for case in needed.values() if case], plan, config.cache, update, facts)


def require_same_scans(run: RunFolder, folders: Mapping[str, Path], resumes: bool) -> None:
    """The folder of a prepared case is named by its content: a resumed run must find the same ones.

    Raises:
        MedContextError: It doesn't.
    """
    prepared = {name: folder.name for name, folder in folders.items()}
    before = read_json(run.about).get("prepared")
    if before is None or not resumes:
        run.note(prepared=prepared, hashes={"data": _hash(prepared), "plan": _hash(read_json(run.plan))})
    elif before != prepared:
        changed = sorted(name for name in before if before[name] != prepared.get(name))
        raise MedContextError(
            "The data set has changed since this run began.",
            file=run.path,
            found=f"{len(changed)} case(s) of other content, for example {changed[0]}",
            remedy="resume it on the scans it began with, or start a new run",
        )


def require_same_plan(run: RunFolder) -> None:
    """What is left to learn is learned by the plan that the run began with.

    Raises:
        MedContextError: Someone has changed it.
    """
    before = read_json(run.about).get("hashes", {}).get("plan")
    now = _hash(read_json(run.plan))
    if before not in (None, now):
        raise MedContextError(
            "The plan has changed since this run began.",
            file=run.plan,
            found=f"hash {now}",
            expected=f"hash {before}, as run.json says",
            remedy="put the old one back, or start a new run by the changed one (--plan)",
        )


def _hash(value: Any) -> str:
    """Of plain values: the first 16 hexadecimal digits of the SHA-256 of their JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

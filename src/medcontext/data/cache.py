"""Prepared cases on disk, keyed by what they are made from, so that they are never stale and shared between runs."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import torch

from medcontext.data.case import Case, UnlabelledCase
from medcontext.data.content import KnownContent, content_digest, files_of
from medcontext.data.facts import CaseFacts
from medcontext.data.plan import Plan
from medcontext.data.prepare import Prepared, prepare_case, read_prepared, write_prepared
from medcontext.data.scan import read_labels, read_scan
from medcontext.errors import MedContextError
from medcontext.memory import at_once, processors

FORMAT = 4
"""Raised when the preparation of a case changes, so that what older versions cached is not used."""

MADE_BY = ("channels", "labels", "orientation", "spacing", "normalisation")
"""What of a plan changes a prepared case."""

STORED_BYTES = 2.0
"""On disk, for each voxel and channel of a prepared case with all that belongs to it. Measured: 1.2 on CT, 0.9 to 1.6
on MRI, 2.4 on MRI of tiny size."""

BYTES_AT_WORK = 30
"""In memory while a case is prepared, for each byte of its files: compressed 16-bit scans take this, others less."""

UNFINISHED = ".unfinished-"
ABANDONED_SECONDS = 24 * 3600.0
"""An unfinished case this old was left by a process that was killed."""

AnyCase = Case | UnlabelledCase
Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")


def default_cache() -> Path:
    """The user's cache folder."""
    return Path.home() / ".cache" / "medcontext"


def cache_key(case: AnyCase, plan: Plan, digest: Callable[[Path], str] = content_digest) -> str:
    """Hash of the content of all files of a case and of everything in the plan that changes a prepared case."""
    values = plan.to_dict()
    made_from = [digest(path) for path in _scans_of(case)]
    made_by = {name: values[name] for name in MADE_BY}
    # Their order is that of the class indices, and keys are sorted below.
    made_by["order"] = list(values["labels"]["names"])
    made = [FORMAT, made_by, made_from] if case.label else [FORMAT, made_by, made_from, "without a label"]
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:24]


def _scans_of(case: AnyCase) -> tuple[Path, ...]:
    return (*case.images, case.label) if case.label else case.images


def estimate_bytes(facts: Iterable[CaseFacts], plan: Plan) -> int:
    """About how much of the disk the prepared cases will take."""
    voxels = (
        case.channels * case.filled * math.prod(case.shape) * math.prod(case.spacing) / math.prod(plan.spacing)
        for case in facts
    )
    return round(STORED_BYTES * sum(voxels))


def prepare_all(
    cases: Iterable[AnyCase],
    plan: Plan,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
    facts: Mapping[str, CaseFacts] | None = None,
) -> dict[str, Path]:
    """Make sure that every case is in the cache, in parallel.

    It may be killed at any time and called again: what is in the cache is whole, and what isn't whole is made anew.

    Args:
        cases: The cases.
        plan: How to prepare them.
        cache: Folder of prepared cases.
        progress: Called with (cases in the cache, cases in all).
        facts: Of the cases, by name: room on the disk is then made sure of before the work. Cases of unknown facts, as
            those without a label are, count as the mean of the others.

    Returns:
        Case name to its folder, for :func:`medcontext.data.prepare.read_prepared`.

    Raises:
        MedContextError: A case can't be read or changes meanwhile, or the cache can't hold or take them.
    """
    cases = list(cases)
    ready = 0

    def count() -> None:
        nonlocal ready
        ready += 1
        if progress:
            progress(ready, len(cases))

    def locate(case: AnyCase) -> Path:
        return cache / cache_key(case, plan, known.digest)

    _open_cache(cache)
    known = KnownContent(cache / "content.json")
    try:
        folders = _in_parallel(locate, cases, processors())
    finally:
        known.save()
    missing = []
    for case, folder in folders.items():
        if _is_whole(folder):
            count()
        else:
            missing.append(case)
    if facts is not None:
        measured = [facts[case.name] for case in missing if case.name in facts]
        _require_room(cache, estimate_bytes(measured, plan) * len(missing) // max(1, len(measured)))

    def prepare(case: AnyCase) -> None:
        labels = None if case.label is None else read_labels(case.label)
        prepared = prepare_case(read_scan(*case.images), labels, plan)
        _require_unchanged(case, plan, known, folders[case])
        _store(prepared, folders[case])

    needed = max((BYTES_AT_WORK * _size(case) for case in missing), default=0)
    _in_parallel(prepare, missing, at_once(needed), count)
    return {case.name: folder for case, folder in sorted(folders.items(), key=lambda pair: pair[0].name)}


def _in_parallel(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, after_each: Callable[[], None] | None = None
) -> dict[Item, Result]:
    """In threads, since nearly all of the time is spent where Python isn't held: decompression and arithmetic.

    What is in work when one fails, or at Ctrl-C, is finished; the rest isn't begun.
    """
    threads = torch.get_num_threads()
    # The cores are kept busy by cases; several threads for each would only get in one another's way.
    pool = ThreadPoolExecutor(max_workers=workers, initializer=torch.set_num_threads, initargs=(1,))
    waiting = {pool.submit(work, item): item for item in items}
    results = {}
    try:
        for future in as_completed(waiting):
            results[waiting[future]] = future.result()
            if after_each:
                after_each()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    return results


def _size(case: AnyCase) -> int:
    return sum(file.stat().st_size for path in _scans_of(case) for file in files_of(path))


def _open_cache(cache: Path) -> None:
    """Make the folder, and remove from it what killed processes left."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        left = [path for path in cache.iterdir() if path.name.startswith(UNFINISHED)]
    except OSError as error:
        raise _unusable(cache, error) from error
    for path in left:
        try:
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                _remove(path)
        except FileNotFoundError:
            pass  # Another process was faster.


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_whole(folder: Path) -> bool:
    try:
        read_prepared(folder)
    except MedContextError:
        return False
    return True


def _require_room(cache: Path, needed: int) -> None:
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise MedContextError(
            "The disk has no room for the prepared cases.",
            file=cache,
            found=f"{free / 1e9:.1f} GB free",
            expected=f"about {needed / 1e9:.1f} GB",
            remedy="make room, or choose a folder on another disk with --cache",
        )


def _require_unchanged(case: AnyCase, plan: Plan, known: KnownContent, folder: Path) -> None:
    """Its key was made before it was read; other content must not be stored by it."""
    if cache_key(case, plan, known.digest) != folder.name:
        raise MedContextError(
            "A case changed while it was read.",
            file=case.images[0],
            found=f"other content in the files of '{case.name}' than a moment before",
            remedy="start again when nothing writes to the data set any more",
        )


def _store(prepared: Prepared, folder: Path) -> None:
    try:
        temporary = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
        try:
            write_prepared(temporary / "case", prepared)
            if folder.is_dir() and not _is_whole(folder):
                folder.rename(temporary / "damaged")
            _move(temporary / "case", folder)
        finally:
            shutil.rmtree(temporary)
    except OSError as error:
        raise _unusable(folder.parent, error) from error


def _move(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError:
        # Another process was faster; the same key means the same content.
        if not folder.is_dir():
            raise


def _unusable(cache: Path, error: OSError) -> MedContextError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return MedContextError(
        "The disk is full: the prepared cases don't fit." if full else "The cache folder can't be used.",
        file=cache,
        found=str(error),
        remedy="make room and start again, or choose a folder on another disk with --cache"
        if full
        else "choose a folder that you may write to with --cache",
    )

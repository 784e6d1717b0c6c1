"""Prepared cases on disk, keyed by what they are made from, so that they are never stale and shared between runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from medcontext.data.dataset import Case
from medcontext.data.plan import Plan
from medcontext.data.prepare import prepare_case, write_prepared
from medcontext.data.scan import read_labels, read_scan

FORMAT = 1
"""Raised when the preparation of a case changes, so that what older versions cached is not used."""


def default_cache() -> Path:
    """The user's cache folder."""
    return Path.home() / ".cache" / "medcontext"


def cache_key(case: Case, plan: Plan) -> str:
    """Hash of both files' content and of everything in the plan that changes a prepared case."""
    values = plan.to_dict()
    made_by = {name: values[name] for name in ("channels", "labels", "orientation", "spacing", "normalisation")}
    digest = hashlib.sha256(json.dumps([FORMAT, made_by], sort_keys=True).encode())
    for path in (case.image, case.label):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:24]


def prepare_all(
    cases: Iterable[Case], plan: Plan, cache: Path, progress: Callable[[int, int], None] | None = None
) -> dict[str, Path]:
    """Make sure that every case is in the cache, in parallel; it may be interrupted at any time and called again.

    Returns:
        Case name to its folder, for :func:`medcontext.data.prepare.read_prepared`.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        waiting = {pool.submit(_prepare_one, case, plan, cache): case.name for case in cases}
        folders: dict[str, Path] = {}
        for done, future in enumerate(as_completed(waiting), start=1):
            folders[waiting[future]] = future.result()
            if progress:
                progress(done, len(waiting))
    return dict(sorted(folders.items()))


def _prepare_one(case: Case, plan: Plan, cache: Path) -> Path:
    folder = cache / cache_key(case, plan)
    if folder.is_dir():
        return folder
    prepared = prepare_case(read_scan(case.image), read_labels(case.label), plan)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=cache))
    try:
        write_prepared(temporary / "case", prepared)
        try:
            (temporary / "case").rename(folder)
        except OSError:
            # Another process was faster; the same key means the same content.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary)
    return folder

"""From scans to augmented patches: ours, MONAI's and nnU-Net's. ``python -m benchmarks.data [--json]``.

``samples_per_second``: 96^3 patches that a training loop gets, once everything that a pipeline caches is cached; the
median of several rounds, in each of which every pipeline runs once, in a process of its own. ``monai`` is MONAI's
standard chain for abdominal CT, which varies little; ``monai_full`` has as much augmentation as ours; ``nnunet`` is
nnU-Net v2's, where it is installed. ``seconds_to_first_batch`` counts from the scans on, with nothing cached;
``seconds_to_first_batch_again`` with what the first run left on disk. ``peak_gib`` is what the loading process grows
by without workers, from the start to a few batches. The pipeline ``prepare`` is the preparation of one case in parts:
``read`` (mostly decompression), ``resample`` (with turning, normalising and finding the places of classes), ``write``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import grown_by, machine, seconds_of
from benchmarks.loaders import PIPELINES, Source, planned
from medcontext.data.dataset import open_dataset
from medcontext.data.prepare import prepare_case, write_prepared
from medcontext.data.scan import read_labels, read_scan
from medcontext.files import write_json

SHAPE = (512, 512, 150)
"""Of the scans, in the file's order."""

VOXEL = (0.8, 0.8, 3.0)
"""In mm."""

STRUCTURES = 13
"""Beside the background."""


def write_scans(root: Path, count: int) -> None:
    """A Decathlon folder of made-up CT scans: ellipsoids of 13 structures, the smallest a few voxels, and noise."""
    import nibabel as nib

    affine = np.diag([*VOXEL, 1.0])
    for case in range(count):
        rng = np.random.default_rng(case)
        label = np.zeros(SHAPE, dtype=np.uint8)
        image = rng.normal(40, 20, SHAPE).astype(np.float32)
        x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE)
        image[(x[:, None] ** 2 / 0.7 + y[None] ** 2 / 0.5) > 1] = -1000
        for k in range(1, STRUCTURES + 1):
            sizes = rng.uniform(0.5, 1, 3) * 0.4 / k**0.7
            away = [(axis - rng.uniform(-0.4, 0.4)) / size for axis, size in zip((x, y, z), sizes, strict=True)]
            inside = (away[0] ** 2)[:, None, None] + (away[1] ** 2)[:, None] + away[2] ** 2 < 1
            label[inside] = k
            image[inside] += rng.uniform(-60, 120)
        for folder, array in (("imagesTr", np.round(image).astype(np.int16)), ("labelsTr", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), root / folder / f"case_{case}.nii.gz")
    names = {"0": "background", **{str(k): f"structure {k}" for k in range(1, STRUCTURES + 1)}}
    write_json(root / "dataset.json", {"name": "Benchmark", "modality": {"0": "CT"}, "labels": names})


def throughput(pipeline: str, source: Source, workers: int, samples: int) -> dict[str, float]:
    """One run of a pipeline: from its start to the first batch, then so many samples."""
    began = time.perf_counter()
    batches = PIPELINES[pipeline](source, workers)
    next(batches)
    first = time.perf_counter() - began
    # What was made ahead while nobody waited must not count.
    for _ in range(4 + 4 * workers):
        next(batches)
    began, seen = time.perf_counter(), 0
    while seen < samples:
        seen += next(batches)
    return {"first": first, "samples_per_second": seen / (time.perf_counter() - began)}


def memory(pipeline: str, source: Source) -> float:
    """GiB that a process grows by up to the fifth batch."""
    return grown_by(lambda: list(islice(PIPELINES[pipeline](source, 0), 5)), "cpu")


def preparation(source: Source) -> dict[str, Any]:
    """Seconds of each part of preparing a case, on one thread after another."""
    plan, _ = planned(source)
    case = next(iter(open_dataset(source.scans).cases.values()))
    scan, labels = read_scan(*case.images), read_labels(case.label)
    prepared = prepare_case(scan, labels, plan)

    def write() -> None:
        with tempfile.TemporaryDirectory(dir=source.cache) as folder:
            write_prepared(Path(folder) / "case", prepared)

    parts: dict[str, Callable[[], object]] = {
        "read": lambda: (read_scan(*case.images), read_labels(case.label)),
        "resample": lambda: prepare_case(scan, labels, plan),
        "write": write,
    }
    taken = seconds_of(parts, 3, "cpu")
    return {"seconds": {part: round(value, 3) for part, value in taken.items()}}


def in_fresh_process(action: Callable[..., Any], *arguments: Any) -> Any:
    """Unlike a pool's, this process may have workers of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(action, *arguments).result()


def measure(pipelines: list[str], source: Source, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each pipeline."""
    runs: Mapping[str, list[dict[str, float]]] = {name: [] for name in pipelines}
    for _ in range(options.rounds):
        for name in pipelines:
            runs[name].append(in_fresh_process(throughput, name, source, options.workers, options.samples))
    return [
        {
            "pipeline": name,
            "samples_per_second": round(statistics.median(run["samples_per_second"] for run in taken), 2),
            "seconds_to_first_batch": round(taken[0]["first"], 2),
            "seconds_to_first_batch_again": round(taken[-1]["first"], 2) if len(taken) > 1 else None,
            "peak_gib": round(in_fresh_process(memory, name, source), 3),
            "workers": options.workers,
            **machine("cpu"),
        }
        for name, taken in runs.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--pipelines", nargs="*", default=[*PIPELINES, "prepare"], choices=[*PIPELINES, "prepare"])
    parser.add_argument("--workers", type=int, default=2, help="processes that load")
    parser.add_argument("--samples", type=int, default=120, help="per pipeline and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scans", type=int, default=4)
    options = parser.parse_args()
    pipelines = [name for name in options.pipelines if name != "prepare"]
    if "nnunet" in pipelines and importlib.util.find_spec("nnunetv2") is None:
        print("nnunet is left out: nnunetv2 is not installed", file=sys.stderr)
        pipelines.remove("nnunet")
    with tempfile.TemporaryDirectory() as folder:
        source = Source(Path(folder) / "scans", Path(folder) / "cache")
        write_scans(source.scans, options.scans)
        rows = measure(pipelines, source, options)
        if "prepare" in options.pipelines:
            rows.append({"pipeline": "prepare", **in_fresh_process(preparation, source), **machine("cpu")})
    for row in rows:
        print(json.dumps(row) if options.json else _line(row), flush=True)


def _line(row: Mapping[str, Any]) -> str:
    if row["pipeline"] == "prepare":
        return "prepare      " + ", ".join(f"{part} {value:.2f} s" for part, value in row["seconds"].items())
    return (
        f"{row['pipeline']:12} {row['samples_per_second']:7.2f} samples/s, first batch after "
        f"{row['seconds_to_first_batch']:.1f} s, {row['peak_gib']:.2f} GiB"
    )


if __name__ == "__main__":
    main()

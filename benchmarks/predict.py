"""From logits to labels in a scan's own grid, beside nnU-Net and MONAI. ``python -m benchmarks.predict [--json]``

A CT of 512x512x300 voxels at 0.8x0.8x1.5 mm with 14 classes, planned at 1.5x1.5x2 mm, and one with 105, planned at
1.5 mm. Smooth logits, the same for all, come from a stand-in for the network, whose time is taken off. One JSON
object a line:

``library``, ``classes``, ``scan``; ``seconds`` from the scan in memory to its labels (for nnU-Net, its export alone,
from logits in memory) and ``export_seconds`` from the last window's logits to the labels; both also in seconds of the
processor, which other work on the machine changes less; ``peak_gib`` beyond the scan; ``equal``, share of the voxels
that have the same label as medcontext's. Where there is less memory than a way needs, the row has ``needs_gib``
instead, and all go again on a scan of half the size.

nnU-Net v2 runs in an environment of its own (``--nnunet-python``), with its default resampling of logits, which is
linear, too; MONAI by ``sliding_window_inference`` and ``Invertd``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.predict_ways import Case
from medcontext.memory import GIB, free_memory

PLANNED = {14: (2.0, 1.5, 1.5), 105: (1.5, 1.5, 1.5)}
"""(D, H, W) in mm by number of classes: the published settings for abdominal CT, and for 104 structures of the body
(Wasserthal et al., Radiology: Artificial Intelligence 2023)."""

SPARED = 0.85
"""Share of the free memory that a way may take."""


def needed(library: str, case: Case) -> float:
    """Bytes at the least, from the arrays that a way makes."""
    planned, scan, classes = math.prod(case.grid), math.prod(case.size), case.classes
    if library == "nnunet":
        # Logits in half and again in double precision; all classes at full size in half, one of them in double.
        return classes * (10 * planned + 2 * scan) + 16 * scan
    if library == "monai":
        return 4 * classes * (2 * planned + scan)
    return 0


def measured(library: str, case: Case, python: str, limit: float, labels: Path) -> dict[str, Any]:
    """What :mod:`benchmarks.predict_ways` says."""
    room = {"needs_gib": round(needed(library, case) / GIB, 1)}
    if needed(library, case) > limit:
        return room
    root = Path(__file__).parents[1]
    command = [python, "-m", "benchmarks.predict_ways", library, json.dumps(asdict(case)), str(labels), str(int(limit))]
    path = os.pathsep.join([str(root), str(root / "src")])
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        if "MemoryError" in done.stderr or "allocate memory" in done.stderr:
            return room
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {name: round(value, 3) for name, value in found.items()}


def rows(case: Case, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each library in turn, medcontext first."""
    with tempfile.TemporaryDirectory() as folder:
        ours = Path(folder) / "medcontext.npy"
        for library in options.libraries:
            python = options.nnunet_python if library == "nnunet" else sys.executable
            file = Path(folder) / f"{library}.npy"
            row = measured(library, case, python, SPARED * free_memory("cpu"), file)
            if file.exists() and ours.exists():
                row["equal"] = round(float((np.load(file) == np.load(ours)).mean()), 5)
            yield {"library": library, "classes": case.classes, "scan": "x".join(map(str, case.size[::-1]))} | row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--classes", nargs="*", type=int, choices=PLANNED, default=list(PLANNED))
    parser.add_argument("--patch", nargs=3, type=int, default=(96, 96, 96), help="(D, H, W) of a window")
    parser.add_argument(
        "--nnunet-python", help="Python of an environment with nnunetv2; without it, nnU-Net is left out"
    )
    options = parser.parse_args()
    options.libraries = ["medcontext", *(["nnunet"] if options.nnunet_python else []), "monai"]
    for classes in options.classes:
        whole = Case(classes, (300, 512, 512), (1.5, 0.8, 0.8), PLANNED[classes], tuple(options.patch))
        for case in (whole, replace(whole, size=(150, 256, 256))):
            found = []
            for row in rows(case, options):
                found.append(row)
                print(json.dumps(row) if options.json else _sentence(row), flush=True)
            if all("seconds" in row for row in found):
                break


def _sentence(row: dict[str, Any]) -> str:
    about = f"{row['library']:11} {row['classes']:3} classes, {row['scan']}: "
    if "seconds" not in row:
        return f"{about}needs {row['needs_gib']} GiB, which is more than there is"
    return (
        f"{about}{row['seconds']:.1f} s (processor {row['cpu_seconds']:.1f} s), after the windows "
        f"{row['export_seconds']:.1f} s ({row['export_cpu_seconds']:.1f} s), {row['peak_gib']:.2f} GiB, "
        f"{100 * row['equal']:.2f} % as medcontext"
    )


if __name__ == "__main__":
    main()

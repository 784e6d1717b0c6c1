"""Dice and HD95 of eight organs: ours and other libraries'. ``python -m benchmarks.metrics [--json]``.

Two smooth label maps of 314x214x234 voxels of 1.5x1.5x2 mm, scored organ by organ. ``seconds`` is the median of several
rounds, in each of which every library runs once, on one thread; ``definition`` that of the HD95 (docs/evaluation.md);
``difference`` the largest one between a library's values and ours of the same definition. ``medpy`` and ``edt`` (the
package's distance transform, MedPy's definition) get each organ's box; ``medpy-whole`` the whole volume, as MedPy is
called in most published code, and is not run unless it is asked for. Libraries that are not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import machine, seconds_of
from medcontext.evaluation.evaluate import around, label_boxes
from medcontext.evaluation.metrics import dice, hd95, measure
from medcontext.evaluation.surfaces import Hd95, border

SHAPE = (314, 214, 234)
SPACING = (1.5, 1.5, 2.0)
CENTRES = (
    (-0.5, -0.3, 0.2), (0.5, -0.3, 0.1), (0.0, 0.5, 0.3), (-0.5, 0.4, -0.5), (0.5, 0.4, -0.5), (0.0, -0.1, -0.1),
    (0.15, 0.0, 0.6), (-0.1, 0.1, -0.75),
)  # fmt: skip
"""Of the organs, the volume reaching from -1 to 1."""
RADII = (0.42, 0.3, 0.25, 0.22, 0.22, 0.13, 0.1, 0.16)

Map = npt.NDArray[np.int32]
Values = list[tuple[float, float]]
"""Dice and HD95 of each organ."""


def make_maps(shape: tuple[int, int, int] = SHAPE) -> tuple[Map, Map]:
    """Two label maps of the same organs: ellipsoids that low waves deform, in the second one a little differently."""
    rng = np.random.default_rng(0)
    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    x, y, z = x[:, None, None], y[None, :, None], z[None, None]

    def waves() -> npt.NDArray[np.float32]:
        total = np.zeros(shape, np.float32)
        for _ in range(4):
            (i, j, k), (p, q, r) = rng.uniform(4, 9, 3), rng.uniform(0, 6, 3)
            total += np.sin(i * x + p) * np.sin(j * y + q) * np.sin(k * z + r)
        return total

    common, maps = waves(), []
    for _ in range(2):
        bent = 0.2 * common + 0.1 * waves()
        made = np.zeros(shape, np.int32)
        for organ, ((a, b, c), radius) in enumerate(zip(CENTRES, RADII, strict=True), start=1):
            made[((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / radius**2 + bent < 1] = organ
        # As NIfTI lies in memory: the first axis together.
        maps.append(np.asfortranarray(made))
    return maps[0], maps[1]


def boxes(a: Map, b: Map) -> list[tuple[Any, Any]]:
    """The masks of each organ, within the box around both."""
    found_a, found_b = label_boxes(a.T), label_boxes(b.T)
    cuts = [around([found_a[organ], found_b[organ]]) for organ in found_a]
    return [(a.T[box] == organ, b.T[box] == organ) for organ, box in zip(found_a, cuts, strict=True)]


def ours(a: Map, b: Map, definition: Hd95) -> Values:
    return [(_known(dice(x, y)), _known(hd95(x, y, SPACING[::-1], definition))) for x, y in boxes(a, b)]


def ours_all(a: Map, b: Map) -> Values:
    scores = [measure(x, y, SPACING[::-1], tolerance=2.0) for x, y in boxes(a, b)]
    return [(_known(each["dice"]), _known(each["hd95_mm"])) for each in scores]


def monai(a: Map, b: Map) -> Values:
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.meandice import compute_dice

    values = []
    for organ in range(1, len(RADII) + 1):
        x, y = (torch.from_numpy(each == organ)[None, None] for each in (a, b))
        distance = compute_hausdorff_distance(x, y, include_background=True, percentile=95, spacing=SPACING)
        values.append((float(compute_dice(x, y, include_background=True)), float(distance)))
    return values


def surface_distance(a: Map, b: Map) -> Values:
    from surface_distance import metrics as other

    values = []
    for organ in range(1, len(RADII) + 1):
        x, y = a == organ, b == organ
        distances = other.compute_surface_distances(x, y, SPACING)
        distance = float(other.compute_robust_hausdorff(distances, 95))
        values.append((float(other.compute_dice_coefficient(x, y)), distance))
    return values


def medpy(a: Map, b: Map, whole: bool = False) -> Values:
    from medpy.metric import binary

    masks = boxes(a, b)
    if whole:
        whole_a, whole_b = a.T, b.T
        masks = [(whole_a == organ, whole_b == organ) for organ in range(1, len(RADII) + 1)]
    return [(float(binary.dc(x, y)), float(binary.hd95(x, y, SPACING[::-1]))) for x, y in masks]


def edt(a: Map, b: Map) -> Values:
    from edt import edt as transform

    values = []
    for x, y in boxes(a, b):
        one, other = border(x), border(y)
        there, back = (transform(~each, anisotropy=SPACING[::-1], black_border=False) for each in (other, one))
        values.append((_known(dice(x, y)), float(np.percentile(np.concatenate([there[one], back[other]]), 95))))
    return values


LIBRARIES: Mapping[str, tuple[str, str, Callable[[Map, Map], Values]]] = {
    "ours": ("medcontext", "pooled", partial(ours, definition="pooled")),
    "ours-directed": ("medcontext", "directed", partial(ours, definition="directed")),
    "ours-weighted": ("medcontext", "weighted", partial(ours, definition="weighted")),
    "ours-all-metrics": ("medcontext", "pooled", ours_all),
    "monai": ("monai", "directed", monai),
    "surface-distance": ("surface_distance", "weighted", surface_distance),
    "medpy": ("medpy", "pooled", medpy),
    "medpy-whole": ("medpy", "pooled", partial(medpy, whole=True)),
    "edt": ("edt", "pooled", edt),
}
"""Name to package, definition of the HD95, and function."""


def measure_all(names: list[str], rounds: int) -> list[dict[str, Any]]:
    """A row for each library."""
    a, b = make_maps()
    references = {definition: np.array(ours(a, b, definition)) for definition in ("pooled", "directed", "weighted")}
    values: dict[str, Values] = {}

    def run(name: str) -> None:
        values[name] = LIBRARIES[name][2](a, b)

    taken = seconds_of({name: partial(run, name) for name in names}, rounds, "cpu")
    return [
        {
            "library": name,
            "definition": LIBRARIES[name][1],
            "seconds": round(taken[name], 3),
            "dice": round(float(np.mean([each[0] for each in values[name]])), 4),
            "hd95_mm": round(float(np.mean([each[1] for each in values[name]])), 4),
            "difference": float(np.abs(np.array(values[name]) - references[LIBRARIES[name][1]]).max()),
            **machine("cpu"),
        }
        for name in names
    ]


def _known(value: float | None) -> float:
    assert value is not None
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    usual = [name for name in LIBRARIES if name != "medpy-whole"]
    parser.add_argument("--libraries", nargs="*", default=usual, choices=list(LIBRARIES))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    names = [name for name in options.libraries if importlib.util.find_spec(LIBRARIES[name][0]) is not None]
    for name in options.libraries:
        if name not in names:
            print(f"{name} is left out: {LIBRARIES[name][0]} is not installed", file=sys.stderr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older names of numpy and scipy in the other libraries
        rows = measure_all(names, options.rounds)
    for row in rows:
        print(json.dumps(row) if options.json else _line(row), flush=True)


def _line(row: Mapping[str, Any]) -> str:
    return (
        f"{row['library']:18} {row['seconds']:8.2f} s  Dice {row['dice']:.4f}  HD95 {row['hd95_mm']:.4f} mm "
        f"({row['definition']}; at most {row['difference']:.1g} from ours)"
    )


if __name__ == "__main__":
    main()

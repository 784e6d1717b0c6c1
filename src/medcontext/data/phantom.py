"""CT-like abdominal phantoms as a Decathlon data set: to try everything on, without a patient's scan.

One reference anatomy in millimetres is shared by all cases. What differs from case to case is drawn once and moves many
organs together (size, girth, breath, a larger liver, pose), so that the place of one organ predicts the place of
another; each organ then varies a little by itself. Grey values overlap: the kidneys differ only in their side, the vena
cava looks like the aorta, bowel can look like any organ. Where a voxel lies in the body is computed from the affine, so
the anatomy is right in every storage orientation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medcontext.errors import MedContextError
from medcontext.files import replacing, write_json

Vector = tuple[float, float, float]
Shape = tuple[int, int, int]
Affine = npt.NDArray[np.float64]
Voxels = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]

LABELS = {"background": 0, "liver": 1, "spleen": 2, "left_kidney": 3, "right_kidney": 4, "aorta": 5}
"""Label names and values, as in ``dataset.json``."""

HOUNSFIELD: dict[str, tuple[float, float]] = {
    "air": (-1000, 0),
    "gas": (-900, 10),
    "lung": (-820, 20),
    "fat": (-100, 6),
    "fluid": (12, 6),
    "muscle": (58, 6),
    "bowel": (95, 12),
    "liver": (105, 10),
    "spleen": (118, 10),
    "kidney": (140, 14),
    "blood": (138, 12),
    "marrow": (210, 20),
    "bone": (420, 40),
}
"""Tissue -> mean and standard deviation over cases, in HU. Within a case every tissue has one value, plus noise."""

ORIENTATIONS = ("RAS", "LPS", "LAS", "RPI", "PSR", "PIR", "ASL", "SAR")
"""Directions in which the array axes of a case may run (R: towards the patient's right, and so on)."""

_MOVES: dict[str, tuple[float, Vector, float]] = {
    "lungs": (-6, (0, 0, 0), 0),
    "liver": (-7, (-2, 0, -3), 0.06),
    "bile": (-7, (-2, 0, -5), 0),
    "stomach": (-5, (-3, -2, 0), 0),
    "spleen": (-6, (0, 0, 0), 0.05),
    "left_kidney": (-5, (0, 0, 0), 0),
    "right_kidney": (-5, (-2, -1, -8), 0),
    "colon": (-2, (0, 0, -2), 0),
}
"""What ties the groups of shapes together: mm upwards with a deeper breath; mm along x, y, z, and share of growth, with
a larger liver; each for one standard deviation."""

_TUBE = 1000.0  # mm; a radius so long that the shape runs through the whole scan


@dataclass(frozen=True)
class PhantomCase:
    """One phantom: ``image`` ``(X, Y, Z)`` in HU, ``labels`` ``(X, Y, Z)`` with the values of :data:`LABELS`, and the
    oblique ``affine`` ``(4, 4)``, voxel index to millimetres in RAS+ world space."""

    image: npt.NDArray[np.int16]
    labels: Labels
    affine: Affine


@dataclass(frozen=True)
class _Blob:
    """A bent superellipsoid of one tissue, in mm of the reference body: x right, y anterior, z superior.

    Attributes:
        group: Blobs of one group vary as one, and follow :data:`_MOVES`; the group ``frame`` does not vary.
        tissue: A key of :data:`HOUNSFIELD`.
        tilt: Degrees about x, y and z.
        bend: How far the rim of the shape is shifted along its x axis against its middle, in mm.
        power: 2 is an ellipsoid, more is boxier.
        offset: HU on top of the tissue's.
    """

    group: str
    tissue: str
    centre: Vector
    radii: Vector
    tilt: Vector = (0, 0, 0)
    bend: float = 0
    power: float = 2
    label: int = 0
    offset: float = 0


def _frame(fat: float) -> Iterator[_Blob]:
    """Skin, wall, ribs, lungs and muscles, from the outside to the inside, with ``fat`` mm under the skin."""
    yield _Blob("frame", "fat", (0, 0, 0), (116 + fat, 82 + 0.8 * fat, _TUBE), power=2.3)
    yield _Blob("frame", "muscle", (0, 0, 0), (116, 82, _TUBE), power=2.4)
    for height in range(-20, 200, 27):  # slanted plates, of which the cavity leaves only the part inside the wall
        yield _Blob("frame", "bone", (0, -14, height), (111, 64, 5), tilt=(-24, 0, 0))
    yield _Blob("frame", "fat", (0, 6, 0), (106, 67, _TUBE), power=2.4)
    for side in (-1, 1):
        yield _Blob("frame", "muscle", (side * 34, -60, 0), (27, 17, _TUBE))
        yield _Blob("frame", "muscle", (side * 34, -36, -95), (16, 15, 95))
        yield _Blob("lungs", "lung", (side * 58, -8, 113 - side * 5), (46, 60, 54))
    yield _Blob("lungs", "blood", (-14, 22, 106), (48, 40, 32))


def _bowel(rng: np.random.Generator) -> Iterator[_Blob]:
    """Stomach, colon, pancreas and loops of bowel: no label, and grey values like the organs'."""
    yield _Blob("colon", "bowel", (82, 2, -62), (17, 18, 48))
    yield _Blob("colon", "bowel", (-84, -4, -50), (15, 16, 60))
    for loop in range(rng.integers(14, 22)):
        x, y, z = rng.uniform((-70, -2, -95), (66, 54, -2))
        a, b, c = rng.uniform(9, 20, 3)
        blob = _Blob(f"loop_{loop}", "bowel", (x, y, z), (a, b, c), offset=rng.uniform(-55, 45))
        yield blob
        if rng.random() < 0.3:
            yield replace(blob, tissue="gas", centre=(x, y + 0.3 * b, z), radii=(a / 2, b / 2, c / 2), offset=0)
    yield _Blob("stomach", "bowel", (-8, 4, 4), (48, 10, 13), tilt=(0, 18, 0))
    yield _Blob("stomach", "bowel", (-44, 24, 40), (34, 32, 40), tilt=(0, 15, 0), offset=rng.uniform(-65, -25))
    yield _Blob("stomach", "gas", (-42, 42, 44), (17, 9, 20))


def _organs() -> Iterator[_Blob]:
    """What is labelled, and what lies in it or touches it."""
    yield _Blob("liver", "liver", (52, 6, 28), (50, 56, 64), (0, -8, 0), bend=16, power=2.2, label=LABELS["liver"])
    yield _Blob("liver", "liver", (2, 38, 44), (54, 24, 34), (0, 20, 0), label=LABELS["liver"])
    yield _Blob("bile", "fluid", (40, 46, -14), (12, 15, 20))
    for side, name in ((-1, "left_kidney"), (1, "right_kidney")):
        height, tilt = -18 - 2 * side, (8, 14 * side, -25 * side)
        yield _Blob(name, "kidney", (57 * side, -33, height), (22, 23, 43), tilt, bend=-7 * side, label=LABELS[name])
        yield _Blob(name, "fat", (40 * side, -24, height), (14, 9, 16))
    yield _Blob("spleen", "spleen", (-81, -18, 42), (17, 38, 42), (0, -8, 30), bend=12, label=LABELS["spleen"])
    yield _Blob("vena_cava", "blood", (17, -15, 0), (12, 9, _TUBE))
    yield _Blob("aorta", "blood", (-9, -15, 0), (11, 11, _TUBE), label=LABELS["aorta"])


def _spine() -> Iterator[_Blob]:
    yield _Blob("frame", "muscle", (0, -43, 0), (21, 16, _TUBE), power=2.5)
    for height in range(-144, 180, 36):
        yield _Blob("frame", "bone", (0, -43, height), (21, 16, 15), power=4)
        yield _Blob("frame", "marrow", (0, -43, height), (17, 12, 11), power=3)
        yield _Blob("frame", "bone", (0, -80, height - 8), (5, 16, 12))
        yield _Blob("frame", "bone", (0, -66, height), (37, 6, 8))
    yield _Blob("frame", "fluid", (0, -64, 0), (9, 8, _TUBE))


def phantom_case(rng: np.random.Generator) -> PhantomCase:
    """Draw one phantom of about 90x65x30 voxels; a matter of 0.1 seconds."""
    from scipy.ndimage import gaussian_filter

    size, girth, breath, liver, enhancement = rng.uniform(-1.7, 1.7, 5)  # of standard deviation 1, and no outliers
    fat = 15 + 6 * girth
    stretch = (1 + 0.04 * size) * np.array([1 + 0.035 * girth, 1 + 0.045 * girth, 1])
    body = np.eye(4)
    body[:3, :3] = _rotation(rng.uniform(-5, 5, 3)) * stretch
    body[:3, 3] = rng.uniform(-40, 40, 3)
    shape, affine = _grid(rng, stretch * (122 + fat, 88 + 0.8 * fat, 78), body[:3, 3] + rng.uniform(-5, 5, 3))
    to_body = np.linalg.inv(body) @ affine
    points = _points(rng, shape, to_body)
    change = {tissue: 0.8 * enhancement + 0.6 * rng.uniform(-1.7, 1.7) for tissue in HOUNSFIELD}
    values = {tissue: mean + spread * change[tissue] for tissue, (mean, spread) in HOUNSFIELD.items()}
    image, labels = np.full(shape, values["air"], np.float32), np.zeros(shape, np.uint8)
    own: dict[str, Affine] = {"frame": np.zeros((3, 3))}
    for blob in (*_frame(fat), *_bowel(rng), *_organs(), *_spine()):
        shift, grow, turn = own.setdefault(blob.group, rng.uniform(-1, 1, (3, 3)) * [[4], [0.07], [6]])
        up, push, swell = _MOVES.get(blob.group, (0, (0, 0, 0), 0))
        x, y, z = blob.centre + shift + np.multiply(push, liver) + (0, 0, up * breath)
        a, b, c = blob.radii * (1 + grow + swell * liver)
        varied = replace(blob, centre=(x, y, z), radii=(a, b, c), tilt=tuple(blob.tilt + turn))
        _paint(image, labels, points, to_body, varied, values[blob.tissue] + blob.offset)
    noise = gaussian_filter(rng.standard_normal(shape, np.float32), 0.6)  # alike in neighbours, as reconstruction is
    image += noise * np.float32(rng.uniform(12, 22) / noise.std())
    return PhantomCase(np.clip(np.round(image), -1024, 3071).astype(np.int16), labels, affine)


def _rotation(degrees: npt.ArrayLike) -> Affine:
    """The ``(3, 3)`` rotation about x, then y, then z."""
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_euler("xyz", degrees, degrees=True).as_matrix())


def _grid(rng: np.random.Generator, half: Affine, middle: Affine) -> tuple[Shape, Affine]:
    """An oblique grid around ``middle`` (world mm) that holds ``half`` mm to each side: shape, and affine."""
    pixel = 2 * half[0] / rng.integers(80, 97)
    spacing = np.array([pixel, pixel, rng.uniform(4.4, 6)])
    directions = _rotation(rng.uniform(1.5, 5, 3) * rng.choice((-1, 1), 3)) * spacing
    size = np.ceil(2 * half / spacing).astype(int)
    code = ORIENTATIONS[rng.integers(len(ORIENTATIONS))]
    axes = [max("RAS".find(letter), "LPI".find(letter)) for letter in code]
    signs = [1 if letter in "RAS" else -1 for letter in code]
    shape = (int(size[axes[0]]), int(size[axes[1]]), int(size[axes[2]]))
    affine = np.eye(4)
    affine[:3, :3] = directions[:, axes] * signs
    affine[:3, 3] = middle - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return shape, affine.astype(np.float32).astype(np.float64)  # as exactly as NIfTI can store it


def _points(rng: np.random.Generator, shape: Shape, to_body: Affine) -> Voxels:
    """Where the voxels lie in the reference body: ``(3, X, Y, Z)`` mm, with a smooth warp for individual shapes."""
    i, j, k = np.ogrid[tuple(slice(size) for size in shape)]
    points = np.stack([row[0] * i + row[1] * j + row[2] * k + row[3] for row in to_body[:3]]).astype(np.float32)
    warp = np.zeros_like(points)
    for wavelength, amplitude in ((260, 5.0), (90, 2.0)):
        for axis in range(3):
            wave = rng.normal(size=3)
            wave *= 2 * np.pi / wavelength / np.linalg.norm(wave)
            angle = np.tensordot(wave.astype(np.float32), points, axes=1) + np.float32(rng.uniform(0, 2 * np.pi))
            warp[axis] += np.float32(amplitude) * np.sin(angle)
    return points + warp


def _paint(image: Voxels, labels: Labels, points: Voxels, to_body: Affine, blob: _Blob, value: float) -> None:
    """Paint ``blob`` over ``image`` and ``labels`` in place; a voxel at its border is mixed by the share it fills."""
    turn = _rotation(blob.tilt)
    reach = np.abs(turn) @ np.add(blob.radii, abs(blob.bend)).clip(max=150) + 10  # mm: no scan is larger, nor the warp
    to_index = np.linalg.inv(to_body)
    centre, margin = to_index[:3, :3] @ blob.centre + to_index[:3, 3], np.abs(to_index[:3, :3]) @ reach
    low = np.floor(centre - margin).astype(int).clip(0)
    high = np.minimum(np.ceil(centre + margin).astype(int) + 1, image.shape)
    if (high - low < 2).any():
        return
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    offset = points[:, *box] - np.array(blob.centre, np.float32).reshape(3, 1, 1, 1)
    x, y, z = np.tensordot((turn / blob.radii).T.astype(np.float32), offset, axes=1)
    x = x - np.float32(blob.bend / blob.radii[0]) * (y * y + z * z)
    inside = 1 - (np.abs(np.stack((x, y, z))) ** blob.power).sum(0) ** (1 / blob.power)
    # The function is taken as linear across a voxel, whose own extent along the three axes is then its ramp.
    ramp = sum(np.abs(np.gradient(inside, axis=axis)) for axis in range(3))
    share = np.clip(0.5 + inside / (ramp + np.float32(1e-6)), 0, 1)
    image[box] += share * (np.float32(value) - image[box])
    labels[box][share > 0.5] = blob.label


def make_phantoms(
    out: Path, cases: int = 20, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write a data set of phantoms in Decathlon layout (``imagesTr``, ``labelsTr``, ``dataset.json``); returns ``out``.

    Case ``i`` depends on ``seed`` and ``i`` alone: a larger data set begins with the smaller one.

    Args:
        out: The folder to make. It may exist if it is empty.
        cases: How many.
        seed: Another seed gives other patients.
        progress: Called after each case with how many are done and how many there will be.

    Raises:
        MedContextError: ``out`` is a file or holds something already, or ``cases`` or ``seed`` is out of range.
    """
    if cases < 1 or seed < 0:
        raise MedContextError("Phantoms need 1 case or more and a seed of 0 or more.", found=f"{cases=}, {seed=}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MedContextError(
            "There is something in the phantoms' place already.", file=out, remedy="name a new or an empty folder"
        )
    training = []
    for index in range(cases):
        case = phantom_case(np.random.default_rng([seed, index]))
        pair = {"image": f"./imagesTr/phantom_{index:03d}.nii.gz", "label": f"./labelsTr/phantom_{index:03d}.nii.gz"}
        _write(out / pair["image"], case.image, case.affine)
        _write(out / pair["label"], case.labels, case.affine)
        training.append(pair)
        if progress is not None:
            progress(index + 1, cases)
    description = {
        "name": "Phantoms",
        "description": f"CT-like abdominal phantoms, made by medcontext with seed {seed}; no patient's data",
        "licence": "CC0 1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(value): name for name, value in LABELS.items()},
        "numTraining": cases,
        "numTest": 0,
        "training": training,
        "test": [],
    }
    write_json(out / "dataset.json", description)  # last: with it, the data set is whole
    return out


def _write(path: Path, array: npt.NDArray[Any], affine: Affine) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with replacing(path) as temporary:
        nib.save(image, temporary)

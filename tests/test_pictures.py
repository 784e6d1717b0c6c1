"""Slices with outlines, as the pictures of a study: the patient the right way, in mm, in the labels' colours."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medcontext.errors import MedContextError
from medcontext.evaluation import pictures
from medcontext.evaluation.pictures import OverlayCase, overlay_figure


def write(path: Path, array: Any, affine: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1, 2, 1]) if affine is None else affine), path)
    return path


def pixels(png: bytes) -> Any:
    """``(H, W)`` grey values."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"), dtype=np.float64)


def scene(folder: Path, codes: str, sizes: tuple[float, ...] = (1.0, 1.0, 1.0)) -> OverlayCase:
    """One physical scene, stored with array axes that run to ``codes``: bright at the patient's right and front.

    ``sizes`` are the voxel sizes in mm to the left-right, front-back, and up-down.
    """
    image = np.zeros((24, 20, 6), np.float32)
    image[12:] = 100  # in RAS+ the index grows towards the patient's right
    image[:, 10:] += 40
    truth = np.zeros(image.shape, np.uint8)
    truth[1:23, 1:19, 1:5], truth[5:9, 4:8, 1:5] = 1, 2
    predicted = np.roll(truth, 1, axis=1)
    ras = np.diag([*sizes, 1.0])
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    affine = ras @ nib.orientations.inv_ornt_aff(turn, image.shape)
    paths = []
    for name, array in (("image", image), ("truth", truth), ("predicted", predicted)):
        turned = np.ascontiguousarray(nib.orientations.apply_orientation(array, turn))
        paths.append(write(folder / codes / f"{name}.nii.gz", turned, affine))
    assert "".join(nib.aff2axcodes(affine)) == codes
    return OverlayCase("best", "scene", (paths[0],), paths[1], {"run": (paths[2], 0.5)})


ONE = {1: ("one", (1,))}
TWO = {**ONE, 2: ("two", (2,))}


@pytest.mark.parametrize("codes", ["LPS", "PSR", "ILA"])
@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (1.0, 4.0, 1.0), (3.0, 1.0, 0.5)])
def test_the_picture_does_not_depend_on_how_the_scan_is_stored(tmp_path, codes, sizes):
    assert overlay_figure([scene(tmp_path, codes, sizes)], TWO) == overlay_figure([scene(tmp_path, "RAS", sizes)], TWO)


def test_the_patients_right_is_on_the_left_and_the_front_is_up(tmp_path):
    grey = pixels(overlay_figure([scene(tmp_path, "LPS")], TWO))
    left, top, width, height = 75, 50, 280, 230  # inside the panel of the truth
    panel = grey[top : top + height, left : left + width]
    assert panel[:, : width // 3].mean() > panel[:, -width // 3 :].mean() + 50
    assert panel[: height // 3].mean() > panel[-height // 3 :].mean() + 20


def test_the_plane_is_the_finest_and_has_its_shape_in_mm(tmp_path):
    def shape(*sizes: float) -> tuple[int, int]:
        height, width = pixels(overlay_figure([scene(tmp_path, "RAS", sizes)], TWO)).shape
        return height, width

    panel = 2.75 * 110
    height, width = shape(1, 1, 1)
    for sizes, ratio in (((1, 1.05, 5), 21 / 24), ((1, 5, 1), 6 / 24), ((5, 1, 2), 12 / 20)):
        high, wide = shape(*sizes)
        assert wide == width
        assert high - height == pytest.approx(panel * (ratio - 20 / 24), abs=2), sizes


def test_contours_have_a_colour_per_label_the_same_in_every_column(tmp_path):
    def shades(structures: dict[int, tuple[str, tuple[int, ...]]]) -> set[tuple[int, ...]]:
        case = scene(tmp_path, "RAS")
        rgb = np.asarray(Image.open(io.BytesIO(overlay_figure([case], structures))).convert("RGB")).astype(int)
        return {
            colour
            for colour in ((86, 180, 233), (230, 159, 0), (240, 228, 66))
            if (abs(rgb - colour) < 4).all(-1).any()
        }

    assert shades(TWO) == {(86, 180, 233), (230, 159, 0)}
    assert shades(ONE) == {(86, 180, 233)}, "what is no structure, such as ignored voxels, has no colour"


def test_a_label_map_of_another_shape_is_refused(tmp_path):
    case = scene(tmp_path, "RAS")
    wrong = write(tmp_path / "wrong.nii.gz", np.zeros((24, 20, 7), np.uint8))
    with pytest.raises(MedContextError, match="another shape") as caught:
        overlay_figure([replace(case, predictions={"run": (wrong, None)})], TWO)
    assert caught.value.file == str(wrong)


def test_a_region_is_drawn_with_what_it_contains(tmp_path):
    """Of labels 1 and 2, the second inside the first, the region of both has the outline of both together."""
    case = scene(tmp_path, "RAS")
    whole = replace(case, predictions={})
    labels = nib.load(case.truth)
    one = write(tmp_path / "one.nii.gz", (np.asanyarray(labels.dataobj) > 0).astype(np.uint8), labels.affine)
    both = overlay_figure([whole], {1: ("one", (1, 2))})
    assert both == overlay_figure([replace(whole, truth=one)], ONE)
    assert both != overlay_figure([whole], ONE), "label 1 alone has a hole where label 2 is"


def test_an_empty_truth_and_a_flat_scan_can_be_drawn(tmp_path):
    blank = write(tmp_path / "blank.nii.gz", np.zeros((8, 8, 4), np.uint8))
    full = write(tmp_path / "full.nii.gz", np.ones((8, 8, 4), np.uint8))
    assert pixels(overlay_figure([OverlayCase("best", "x", (blank,), blank, {"run": (blank, None)})], TWO)).size
    assert pixels(overlay_figure([OverlayCase("best", "x", (blank,), full, {"run": (full, 1.0)})], ONE)).size


def test_the_slice_shown_has_the_most_labels_and_then_the_most_foreground():
    truth = np.zeros((6, 6, 5), np.int32)
    truth[:, :, 1] = 1
    truth[0, 0, 2:4] = 1
    truth[1, 1, 2:4] = 2
    truth[2, 2, 3] = 2
    assert pictures._slice_to_show(truth, 2) == 3
    assert pictures._slice_to_show(truth * (truth == 1), 2) == 1
    assert pictures._slice_to_show(truth * 0, 2) == 2

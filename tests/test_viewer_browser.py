"""The viewer in headless Chromium: what it shows and says, against numpy; and by its pictures."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest

from medcontext.data.phantom import make_phantoms
from medcontext.data.scan import read_labels, read_scan
from medcontext.drawing import LABEL_COLOURS
from medcontext.viewer import niivue
from medcontext.viewer.names import Names, read_names
from medcontext.viewer.scene import make_scene
from medcontext.viewer.view import viewer_server, write_view
from tests.browser import CHROMIUM, Browser, chromium
from tests.conftest import oriented, write_nifti

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian: apt-get install chromium)"),
    pytest.mark.skipif(not niivue.FILE.is_file(), reason="NiiVue is not here; 'make install' with a network brings it"),
]

READY = "typeof picture !== 'undefined' && picture.scan && document.getElementById('notice').hidden"
SHOWN = """Object.fromEntries(Array.from(document.querySelectorAll("#readout div"),
  (each) => [each.querySelector("dt").textContent, each.querySelector("dd").textContent.trim()]))"""
TILES = """Object.fromEntries(picture.nv.screenSlices.map((tile) => [tile.axCorSag,
  tile.leftTopWidthHeight.map((each) => each / picture.nv.uiData.dpr)]))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def case(request, tmp_path_factory) -> dict[str, Any]:
    """A real scan and its truth, or a phantom where there are none; and a prediction made of the truth, shifted."""
    try:
        data = request.getfixturevalue("real_scans") / "Task04_Hippocampus"
        scan = data / "imagesTr" / "hippocampus_001.nii.gz"
    except pytest.skip.Exception:
        data = tmp_path_factory.mktemp("phantom")
        make_phantoms(data, 1, 0)
        scan = next((data / "imagesTr").iterdir())
    truth = data / "labelsTr" / scan.name
    true = read_labels(truth)
    predicted = np.roll(true.array, (2, 1, 0), axis=(0, 1, 2))
    predicted[true.array.shape[0] // 2 :][predicted[true.array.shape[0] // 2 :] == 1] = 2
    prediction = write_nifti(
        tmp_path_factory.mktemp("prediction") / "p.nii.gz", predicted.astype(np.int16), true.affine
    )
    scene = make_scene(scan, [prediction], truth, read_names(data), 10**8)
    return {"scene": scene, "scan": read_scan(scan), "maps": [true.array, predicted]}


@contextlib.contextmanager
def serving(scene: Any) -> Iterator[str]:
    with viewer_server(scene) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.address
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def address(case) -> Iterator[str]:
    with serving(case["scene"]) as at:
        yield at


@pytest.fixture(scope="module")
def first_page(browser, address) -> Browser:
    return opened(browser, address)


@pytest.fixture
def page(first_page) -> Browser:
    """As it is at first: loading it anew for every test would take most of the time."""
    first_page.run(
        "Object.assign(state, { map: 1, last: 1, differences: false, fill: 0.4, outline: true, view: 'all' })"
    )
    first_page.run("changed('view'); reset()")
    return first_page


def opened(browser: Browser, address: str, **how: Any) -> Browser:
    browser.requests.clear()
    browser.complaints.clear()
    browser.show(address, **how)
    browser.wait(READY)
    return browser


def names_of(scene: Any) -> dict[int, str]:
    return {label["number"]: label["name"] for label in scene.about["labels"]} | {0: "\u2013"}


def tile(page: Browser, plane: int) -> tuple[slice, slice]:
    """Rows and columns of the window in which a plane (0 axial, 1 coronal, 2 sagittal, 4 3D) is drawn."""
    box = json.loads(
        page.run("JSON.stringify((({ left, top }) => [left, top])(picture.canvas.getBoundingClientRect()))")
    )
    left, top, width, height = page.run(TILES)[str(plane)]
    return (
        slice(round(box[1] + top), round(box[1] + top + height)),
        slice(round(box[0] + left), round(box[0] + left + width)),
    )


def pixels_of(picture: np.ndarray, colour: str) -> np.ndarray:
    """Where a picture has just this colour: ``(H, W)``."""
    return (picture == [int(colour[at : at + 2], 16) for at in (1, 3, 5)]).all(axis=2)


def test_it_opens_without_complaint_and_asks_no_one_else(page, address, case):
    assert page.complaints == []
    own = [each for each in page.requests if not each.startswith("data:")]
    assert {urlsplit(each).path.rpartition("/")[2] for each in own} == {"", "niivue.js", *case["scene"].files}
    assert all(each.startswith(address) for each in own)
    row = page.run("document.querySelector('#labels tr').textContent")
    label = case["scene"].about["labels"][0]
    volume = (case["maps"][0] == label["number"]).sum() * case["scene"].about["voxelMl"]
    assert row.startswith(label["name"])
    assert f"{volume:.3g}".rstrip("0").rstrip(".") in row


def test_the_readout_is_that_of_the_files(page, case):
    scan, maps, names = case["scan"], case["maps"], names_of(case["scene"])
    rng = np.random.default_rng(0)
    inside = np.argwhere((maps[0] > 0) | (maps[1] > 0))
    voxels = [*rng.choice(inside, 6), *rng.integers(0, maps[0].shape, (3, 3))]
    for voxel in voxels:
        mm = scan.affine @ [*voxel, 1]
        page.run(f"picture.goTo({mm[:3].tolist()})")
        shown = page.run(SHOWN)
        assert shown["voxel"] == ", ".join(map(str, voxel))
        np.testing.assert_allclose([float(each) for each in shown["mm"].split(",")], mm[:3], atol=0.051)
        assert float(shown["value"]) == pytest.approx(scan.array[(0, *voxel)], rel=1e-5)
        assert shown["Truth"] == names[maps[0][tuple(voxel)]]
        assert shown["Prediction"] == names[maps[1][tuple(voxel)]]


def test_a_click_and_keys_move_the_crosshair(page):
    rows, columns = tile(page, 0)
    before = page.picture()
    page.click(columns.start + 0.25 * (columns.stop - columns.start), rows.start + 0.25 * (rows.stop - rows.start))
    frac = page.run("Array.from(picture.nv.scene.crosshairPos)")
    # Radiological: the left of the screen is the patient's right, where RAS+ coordinates are largest; up is the front.
    np.testing.assert_allclose(frac[:2], [0.75, 0.75], atol=0.03)
    assert (page.picture()[rows, columns] != before[rows, columns]).any()
    slices = page.run("picture.slices")
    for key, move in {
        "ArrowRight": (-1, 0, 0),
        "ArrowUp": (0, 1, 0),
        "PageUp": (0, 0, 1),
        "ArrowLeft": (1, 0, 0),
    }.items():
        page.key(key)
        moved = page.run("picture.slices")
        assert np.subtract(moved, slices).tolist() == list(move), key
        slices = moved


def test_truth_and_prediction_are_switched(page, case):
    page.run("set('fill', 1)")
    rows, columns = tile(page, 0)
    predicted = page.picture()[rows, columns]
    page.key("t")
    assert page.run("document.querySelector('#maps :checked').value") == "0"
    true = page.picture()[rows, columns]
    page.key("t")
    assert (page.picture()[rows, columns] == predicted).all()
    # What has changed lies where the two maps differ in this slice, to the pixel beside a voxel's edge.
    index = page.run("picture.slices")[2] - 1
    changed = (true != predicted).any(axis=2)
    differ = on_screen(case["maps"][0] != case["maps"][1], case["scan"].affine, index, changed.shape)
    assert changed.sum() > 0.5 * differ.sum() > 0
    assert not (changed & ~grown(differ)).any()


def on_screen(mask: np.ndarray, affine: np.ndarray, index: int, size: tuple[int, int]) -> np.ndarray:
    """The pixels of an axial tile that show this slice of ``(X, Y, Z)`` mask; by nibabel's orientation alone."""
    turned = nib.orientations.apply_orientation(mask, nib.orientations.io_orientation(affine))
    flat = turned[::-1, ::-1, index].T
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, flat.shape, strict=True))
    return flat[np.ix_(rows, columns)]


def grown(mask: np.ndarray, by: int = 3) -> np.ndarray:
    """With every pixel that is at most so far along either axis."""
    padded = np.pad(mask, by)
    shifts = range(2 * by + 1)
    rows, columns = mask.shape
    return np.any([padded[i : i + rows, j : j + columns] for i in shifts for j in shifts], axis=0)


def test_differences_are_those_that_numpy_finds(page, case):
    true, predicted = case["maps"]
    page.key("d")
    classes = len(case["scene"].about["labels"]) + 1
    shown = np.array(page.run("Array.from(picture.labels.img)")).reshape(true.shape, order="F")
    agreed, missed, added, other = (classes + n for n in range(4))
    expected = np.select(
        [(true == 0) & (predicted == 0), true == predicted, predicted == 0, true == 0],
        [0, agreed, missed, added],
        other,
    )
    assert len(np.unique(expected)) == 5
    np.testing.assert_array_equal(shown, expected)
    volume = case["scene"].about["voxelMl"]
    said = page.run(
        "Array.from(document.querySelectorAll('#difference-key b'), (each) => parseFloat(each.textContent))"
    )
    np.testing.assert_allclose(said, [(expected == kind).sum() * volume for kind in (missed, added, other)], rtol=0.06)
    colours = page.run("DIFFERENCES.map((each) => each.colour)")
    rows, columns = tile(page, 0)
    picture = page.picture()[rows, columns]
    index = page.run("picture.slices")[2] - 1
    for kind, colour in zip((missed, added, other), colours[1:], strict=True):
        there = on_screen(shown == kind, case["scan"].affine, index, picture.shape[:2])
        drawn = pixels_of(picture, colour)
        assert drawn.any() == there.any()
        assert not (drawn & ~grown(there)).any()
    # Of one label alone: the others count as background in both maps.
    page.run("document.querySelector('#none').click(); document.querySelector('#label-0').click()")
    number = case["scene"].about["labels"][0]["number"]
    first = 2 * (true == number) + (predicted == number)
    shown = np.array(page.run("Array.from(picture.labels.img)")).reshape(true.shape, order="F")
    np.testing.assert_array_equal(shown, np.array([0, added, missed, agreed])[first])


def test_a_label_is_hidden_and_shown(page, case):
    rows, columns = tile(page, 0)
    colours = [label["colour"] for label in case["scene"].about["labels"]]
    assert colours == list(LABEL_COLOURS[: len(colours)])
    page.run("goTo(1)")
    page.run("set('view', 'axial')")
    assert pixels_of(page.picture(), colours[0]).any()
    page.run("document.querySelector('#label-0').click()")
    assert not pixels_of(page.picture()[rows, columns], colours[0]).any()
    page.run("document.querySelector('#all').click()")
    assert pixels_of(page.picture(), colours[0]).any()
    page.key("o")
    page.key("l")
    assert not any(pixels_of(page.picture()[rows, columns], colour).any() for colour in colours)


def test_windows_and_zoom_change_the_picture(page):
    rows, columns = tile(page, 0)
    page.run("set('hidden', true)")
    first = page.picture()[rows, columns].astype(float)
    page.key("w")
    assert abs(page.picture()[rows, columns].mean() - first.mean()) > 3
    page.run("$('level').value = 1e9; $('level').dispatchEvent(new Event('change'))")
    assert page.picture()[rows, columns].mean() < 10
    page.key("r")
    page.run("set('hidden', true)")
    assert (page.picture()[rows, columns] == first).all()
    page.key("+")
    assert page.run("$('zoom').textContent") == "125 %"
    assert (page.picture()[rows, columns] != first).any()


def test_sides_of_the_patient_are_where_they_belong(browser, tmp_path):
    """A block at the right, front and top, in a scan whose axes run otherwise and which is turned in space."""
    label = np.zeros((20, 24, 28), np.uint8)
    label[13:18, 16:22, 19:26] = 1
    turn = 0.2
    affine = np.array(
        [[np.cos(turn), -np.sin(turn), 0, -5], [np.sin(turn), np.cos(turn), 0, 8], [0, 0, 1.5, 3], [0, 0, 0, 1]]
    )
    stored, where = oriented(label, affine, "PSR")
    image = write_nifti(tmp_path / "scan.nii.gz", stored.astype(np.float32), where)
    truth = write_nifti(tmp_path / "label.nii.gz", stored, where)
    with serving(make_scene(image, [], truth, Names(), 10**6)) as address:
        page = opened(browser, address)
        mm = where @ [*np.argwhere(stored).mean(axis=0), 1]
        np.testing.assert_allclose(page.run("picture.mm"), mm[:3], atol=1.3)
        page.run("set('fill', 1)")
        for plane in (0, 1, 2):
            rows, columns = tile(page, plane)
            seen = np.argwhere(pixels_of(page.picture()[rows, columns], LABEL_COLOURS[0]))
            assert len(seen) > 100
            size = np.array([rows.stop - rows.start, columns.stop - columns.start])
            assert (seen.mean(axis=0) < 0.45 * size).all(), plane


@pytest.mark.parametrize("phone", [False, True])
def test_it_fits_and_every_control_has_a_name(browser, address, phone):
    size = {"width": 390, "height": 844} if phone else {}
    page = opened(browser, address, phone=phone, **size)
    assert page.run("document.scrollingElement.scrollWidth <= innerWidth")
    assert page.picture()[-5, -5].mean() > 240
    page.prefer(dark=True)
    assert page.picture()[-5, -5].mean() < 60
    assert page.run("picture.canvas.getBoundingClientRect().height") > 250
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "checkbox", "radio", "slider", "combobox", "spinbutton", "application", "DisclosureTriangle")
    controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
    assert len(controls) > 18
    assert [node for node in controls if not node["name"]["value"].strip()] == []


def test_the_single_file_needs_nothing_else(browser, case, tmp_path):
    write_view(case["scene"], tmp_path / "view.html")
    page = opened(browser, (tmp_path / "view.html").as_uri())
    assert [each for each in page.requests if not each.startswith("data:")] == [(tmp_path / "view.html").as_uri()]
    assert page.complaints == []
    shown = page.run(SHOWN)
    voxel = tuple(int(each) for each in shown["voxel"].split(","))
    assert float(shown["value"]) == pytest.approx(case["scan"].array[(0, *voxel)], rel=1e-5)
    assert shown["Prediction"] == names_of(case["scene"])[case["maps"][1][voxel]] != "\u2013"
    rows, columns = tile(page, 0)
    labelled = [pixels_of(page.picture()[rows, columns], label["colour"]) for label in case["scene"].about["labels"]]
    assert np.any(labelled)


def test_channels_can_be_chosen(browser, tmp_path):
    array = np.random.default_rng(0).normal(size=(8, 9, 10, 3)).astype(np.float32) * [1, 10, 100]
    path = write_nifti(tmp_path / "three.nii.gz", array.astype(np.float32), np.diag([-1.0, 1, 2, 1]))
    with serving(make_scene(path, [], None, Names({}, ("T1", "T2", "FLAIR")), 10**6)) as address:
        page = opened(browser, address)
        before = page.picture()
        options = page.run("Array.from(document.querySelectorAll('#channel option'), (each) => each.textContent)")
        assert options == ["T1", "T2", "FLAIR"]
        page.run("$('channel').value = 2; $('channel').dispatchEvent(new Event('change'))")
        assert (page.picture() != before).any()
        shown = page.run(SHOWN)
        voxel = tuple(int(each) for each in shown["voxel"].split(","))
        assert float(shown["value"]) == pytest.approx(array[(*voxel, 2)], rel=1e-4)


def test_a_page_whose_server_has_gone_says_so(browser, case):
    with viewer_server(case["scene"]) as server:
        path = next(path for path in server.paths if path.endswith("scan.nii"))
        del server.paths[path]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        browser.show(server.address)
        browser.wait("document.getElementById('notice')?.textContent.includes('no longer served')")
        server.shutdown()
        thread.join()

"""The report page and its pictures: they parse, hold the numbers, fetch nothing, and show the patient the right way."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medcontext.data.labels import Labels
from medcontext.errors import MedContextError
from medcontext.evaluation import pictures
from medcontext.evaluation.curves import curves_figure
from medcontext.evaluation.evaluate import evaluate
from medcontext.evaluation.pictures import OverlayCase, overlay_figure
from medcontext.evaluation.report import RunResults, write_report

VOID = {"meta", "link", "img", "source", "br", "col"}
NAMES = {1: "left <b>lobe</b>", 2: "duct & gland"}
CASES = ("case_1", "case_2", "case_3")


class Page(HTMLParser):
    """Checks that tags nest, and collects text, attributes and tables' texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)
        if self.open and self.open[-1] in {"td", "th"}:
            self.rows[-1][-1] += data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attrs[name] or "" for each, attrs in self.tags if each == tag and name in attrs]


def write(path: Path, array: Any, affine: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1, 2, 1]) if affine is None else affine), path)
    return path


def history(method: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, 101):
        rows.append({"kind": "train", "step": step, "loss/clean": 1 / step, "loss/total": 1 / step, "seconds": 0.25})
        if method:
            rows[-1] |= {"loss/masked": 2 / step, "momentum": 0.99, "context_score": 0.5, "teacher_occupancy/1": 0.0625}
        if step % 50 == 0:
            rows.append({"kind": "validation", "step": step, "dice/student": step / 200})
    return rows


Study = tuple[list[RunResults], dict[str, tuple[tuple[Path, ...], Path]]]


def made_study(tmp_path: Path) -> Study:
    """Two runs on three cases: the first is worst on case 3 and best on case 2; the second misses label 2 in case 1."""
    rng = np.random.default_rng(0)
    scans = {}
    for case in CASES:
        truth = np.zeros((16, 14, 8), np.uint8)
        truth[3:9, 4:10, 2:6], truth[9:12, 4:10, 2:6] = 1, 2
        image = rng.normal(size=truth.shape).astype(np.float32)
        scans[case] = ((write(tmp_path / f"image/{case}.nii", image),), write(tmp_path / f"truth/{case}.nii", truth))
        for run, shift in (("first", {"case_1": 1, "case_2": 0, "case_3": 2}[case]), ("second", 1)):
            predicted = np.roll(truth, shift, axis=0)
            if run == "second" and case == "case_1":
                predicted[predicted == 2] = 0
            write(tmp_path / f"{run}/{case}.nii", predicted)
    runs = [
        RunResults(
            name=name,
            facts={"preset": name, "network": "a <i>unet</i>"} | ({"hiding": "blocks"} if name == "first" else {}),
            environment={"python": "3.11 & more"},
            history=history(method=name == "first"),
            evaluation=evaluate(tmp_path / name, tmp_path / "truth", Labels(NAMES)),
            predictions=tmp_path / name,
        )
        for name in ("first", "second")
    ]
    return runs, scans


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return made_study(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, str, Page]:
    """The study, untouched, and its report as text and as parsed; for tests that only read."""
    folder = tmp_path_factory.mktemp("whole")
    study = made_study(folder)
    return study, *report(folder, *study)


def report(tmp_path: Path, runs: Any, scans: Any, title: str = "A title") -> tuple[str, Page]:
    write_report(tmp_path / "report.html", runs, scans, NAMES, title)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def pixels(png: bytes) -> Any:
    """``(H, W)`` grey values."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"), dtype=np.float64)


def test_the_page_says_what_was_measured(whole):
    (runs, _), _, page = whole
    text = "".join(page.text)
    first, second = (run.evaluation["mean"] for run in runs)
    assert f"Mean Dice on 3 held-out cases: first {first['dice']:.3f}, second {second['dice']:.3f}." in text
    assert "not evidence of a difference" in text
    means = [each["labels"]["2"] for each in (first, second)]
    cells = [text for entry in means for text in (f"{entry['dice']:.3f}", f"{entry['hd95_mm']:.2f}")]
    assert [NAMES[2], *cells[:2], "0", *cells[2:], "1"] in page.rows
    assert [row[3::3] for row in page.rows if row[0] == "Mean over labels"] == [["0", "1"]]
    row = next(row for row in page.rows if row[:2] == ["case_1", NAMES[2]])
    assert row[4:] == ["0.000", "missed"]
    assert ["preset", "first", "second"] in page.rows
    assert ["hiding", "blocks", "–"] in page.rows  # noqa: RUF001
    assert ["python", "3.11 & more"] in page.rows, "what every run shares stands once"
    assert ["Loss: masked", "0.02", "–"] in page.rows  # noqa: RUF001
    assert ["Validation Dice of the student", "0.5", "0.5"] in page.rows
    assert ["Part of the volume that the teacher gives to class 1", "0.0625", "–"] in page.rows  # noqa: RUF001
    for meaning in runs[0].evaluation["definition"].values():
        assert meaning in text


def test_one_run_says_that_it_is_one(study, tmp_path):
    runs, scans = study
    text = "".join(report(tmp_path, [replace(runs[0], history=[])], scans)[1].text)
    assert "One training run: another seed" in text
    assert "difference" not in text


def test_best_median_and_worst_are_the_first_runs(whole):
    alt = whole[2].attributes("img", "alt")[0]
    best, median, worst = (alt.index(text) for text in ("best case_2: first 1.000", "median case_1", "worst case_3"))
    assert best < median < worst


def test_everything_is_in_the_file_and_pictures_decode(whole):
    _, html, page = whole
    assert "http" not in html
    assert "<script" not in html
    assert "url(" not in html
    assert not [tag for tag, attrs in page.tags if {"src", "href"} & set(attrs) and tag not in {"img", "link"}]
    sources = page.attributes("img", "src") + page.attributes("source", "srcset")
    assert len(sources) == 3, "overlays, curves, curves for a dark screen"
    for source in sources:
        png = base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
        assert pixels(png).std() > 1
    assert page.attributes("link", "href") == ["data:,"]


def test_the_page_can_be_read_by_everyone(whole):
    _, html, page = whole
    assert page.attributes("html", "lang") == ["en"]
    assert "width=device-width" in page.attributes("meta", "content")[0]
    assert "prefers-color-scheme: dark" in html
    assert all(page.attributes("img", "alt"))
    assert len(page.attributes("img", "alt")) == 2
    tags = [tag for tag, _ in page.tags]
    assert tags.count("h1") == tags.count("main") == tags.count("details") == 1
    assert tags.count("caption") == tags.count("table") == 5
    assert tags.count("th") == len(page.attributes("th", "scope"))


def test_hostile_names_are_escaped_and_do_no_harm(study, tmp_path):
    runs, scans = study
    hostile = "<script>alert('x')</script> & \"q\" $\\bad$ _x"
    hurt = replace(runs[0], name=hostile, facts={hostile: hostile}, environment={hostile: hostile})
    html, page = report(tmp_path, [hurt, runs[1]], scans, title=hostile)
    assert "<script" not in html
    assert "<b>" not in html
    assert "<i>" not in html
    assert [hostile, hostile, "–"] in page.rows  # noqa: RUF001
    assert hostile in page.text
    assert NAMES[1] in {row[0] for row in page.rows}


def test_what_is_amiss_is_said_at_the_top(study, tmp_path):
    runs, scans = study
    (runs[1].predictions / "case_3.nii").unlink()
    fewer = replace(runs[1], evaluation=evaluate(runs[1].predictions, tmp_path / "truth", Labels(NAMES)))
    _, page = report(tmp_path, [replace(run, history=[]) for run in (runs[0], fewer)], scans)
    text = "".join(page.text)
    assert re.search(r"Mean Dice on held-out cases: first 0\.\d{3} on 3 cases, second 0\.\d{3} on 2 cases\.", text)
    assert "scored on different cases" in text
    assert "second has no prediction for 1 case" in text
    assert ["case_3", NAMES[1]] in [row[:2] for row in page.rows]
    alt = page.attributes("img", "alt")[0]
    assert "case_3" not in alt, "only cases that every run predicted are shown"
    assert "best case_2" in alt
    assert "worst case_1" in alt


def test_a_run_that_logged_nothing_has_no_curves(study, tmp_path):
    runs, _ = study
    records = [{"kind": "train", "step": 7, "momentum": float("nan"), "seconds": None}]
    _, page = report(tmp_path, [replace(runs[0], history=records)], {})
    text = "".join(page.text)
    assert ["Step", "7"] in page.rows
    assert "Momentum" not in text
    assert "No curves" in text
    assert "nothing to show" in text
    assert not page.attributes("img", "src")


@pytest.mark.parametrize("count", [0, 2])
def test_runs_need_names_of_their_own(study, tmp_path, count):
    runs, scans = study
    with pytest.raises(MedContextError, match="different names"):
        write_report(tmp_path / "report.html", [runs[0]] * count, scans, NAMES, "")
    assert not (tmp_path / "report.html").exists()


# Pictures


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


@pytest.mark.parametrize("codes", ["LPS", "PSR", "ILA"])
@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (1.0, 4.0, 1.0), (3.0, 1.0, 0.5)])
def test_the_picture_does_not_depend_on_how_the_scan_is_stored(tmp_path, codes, sizes):
    assert overlay_figure([scene(tmp_path, codes, sizes)], {}) == overlay_figure([scene(tmp_path, "RAS", sizes)], {})


def test_the_patients_right_is_on_the_left_and_the_front_is_up(tmp_path):
    grey = pixels(overlay_figure([scene(tmp_path, "LPS")], {}))
    left, top, width, height = 75, 50, 280, 230  # inside the panel of the truth
    panel = grey[top : top + height, left : left + width]
    assert panel[:, : width // 3].mean() > panel[:, -width // 3 :].mean() + 50
    assert panel[: height // 3].mean() > panel[-height // 3 :].mean() + 20


def test_the_plane_is_the_finest_and_has_its_shape_in_mm(tmp_path):
    def shape(*sizes: float) -> tuple[int, int]:
        height, width = pixels(overlay_figure([scene(tmp_path, "RAS", sizes)], {})).shape
        return height, width

    panel = 2.75 * 110
    height, width = shape(1, 1, 1)
    for sizes, ratio in (((1, 1.05, 5), 21 / 24), ((1, 5, 1), 6 / 24), ((5, 1, 2), 12 / 20)):
        high, wide = shape(*sizes)
        assert wide == width
        assert high - height == pytest.approx(panel * (ratio - 20 / 24), abs=2), sizes


def test_contours_have_a_colour_per_label_the_same_in_every_column(tmp_path):
    def shades(names: dict[int, str]) -> set[tuple[int, ...]]:
        case = scene(tmp_path, "RAS")
        rgb = np.asarray(Image.open(io.BytesIO(overlay_figure([case], names))).convert("RGB")).astype(int)
        return {
            colour
            for colour in ((86, 180, 233), (230, 159, 0), (240, 228, 66))
            if (abs(rgb - colour) < 4).all(-1).any()
        }

    assert shades({}) == {(86, 180, 233), (230, 159, 0)}
    assert shades({1: "a", 2: "b"}) == shades({})
    assert shades({0: "background", 1: "a"}) == shades({}), "the background has no colour"


def test_a_label_map_of_another_shape_is_refused(tmp_path):
    case = scene(tmp_path, "RAS")
    wrong = write(tmp_path / "wrong.nii.gz", np.zeros((24, 20, 7), np.uint8))
    with pytest.raises(MedContextError, match="another shape") as caught:
        overlay_figure([replace(case, predictions={"run": (wrong, None)})], {})
    assert caught.value.file == str(wrong)


def test_an_empty_truth_and_a_flat_scan_can_be_drawn(tmp_path):
    blank = write(tmp_path / "blank.nii.gz", np.zeros((8, 8, 4), np.uint8))
    full = write(tmp_path / "full.nii.gz", np.ones((8, 8, 4), np.uint8))
    assert pixels(overlay_figure([OverlayCase("best", "x", (blank,), blank, {"run": (blank, None)})], {})).size
    assert pixels(overlay_figure([OverlayCase("best", "x", (blank,), full, {"run": (full, 1.0)})], {1: "all"})).size


def test_curves_have_a_panel_for_each_thing_that_was_logged():
    little = curves_figure({"run": [{"step": 1, "loss/clean": 1.0}, {"step": 2, "loss/clean": 0.5}]})
    more = curves_figure({"run": history(method=True)})
    assert little is not None
    assert more is not None
    assert pixels(more).shape[0] > 2 * pixels(little).shape[0]
    dark = curves_figure({"run": history(method=True)}, dark=True)
    assert dark is not None
    assert pixels(dark).mean() < 60 < 200 < pixels(more).mean()


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_values_that_are_not_numbers_are_left_out_of_curves(value):
    good = [{"step": step, "loss/clean": 1 / step} for step in (1, 2, 3)]
    assert curves_figure({"run": [{"step": 1, "loss/clean": value}]}) is None
    assert curves_figure({"run": [*good, {"step": 2.5, "loss/clean": value}]}) == curves_figure({"run": good})


def test_a_step_that_was_trained_again_counts_once():
    once = [{"step": step, "momentum": 0.9 + step / 100} for step in (1, 2, 3)]
    assert curves_figure({"run": [{"step": 2, "momentum": 0.1}, *once]}) == curves_figure({"run": once})


def test_the_slice_shown_has_the_most_labels_and_then_the_most_foreground():
    truth = np.zeros((6, 6, 5), np.int32)
    truth[:, :, 1] = 1
    truth[0, 0, 2:4] = 1
    truth[1, 1, 2:4] = 2
    truth[2, 2, 3] = 2
    assert pictures._slice_to_show(truth, 2) == 3
    assert pictures._slice_to_show(truth * (truth == 1), 2) == 1
    assert pictures._slice_to_show(truth * 0, 2) == 2

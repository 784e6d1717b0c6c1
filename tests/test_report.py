"""The report page: it parses, holds the numbers, fetches nothing, and can be read by everyone."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medcontext.data.labels import Labels
from medcontext.errors import MedContextError
from medcontext.evaluation.compare import compare_evaluations
from medcontext.evaluation.evaluate import evaluate
from medcontext.evaluation.page import STYLE
from medcontext.evaluation.report import picks, write_report
from medcontext.evaluation.run_results import RunResults
from tests.html_pages import Page

NAMES = {1: "left <b>lobe</b>", 2: "duct & gland"}
CASES = ("case_1", "case_2", "case_3")


def write(path: Path, array: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1, 2, 1])), path)
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


def made_study(folder: Path) -> Study:
    """Two runs on three cases: the first is worst on case 3 and best on case 2; the second misses label 2 in case 1."""
    rng = np.random.default_rng(0)
    scans = {}
    for case in CASES:
        truth = np.zeros((16, 14, 8), np.uint8)
        truth[3:9, 4:10, 2:6], truth[9:12, 4:10, 2:6] = 1, 2
        image = rng.normal(size=truth.shape).astype(np.float32)
        scans[case] = ((write(folder / f"image/{case}.nii", image),), write(folder / f"truth/{case}.nii", truth))
        for run, shift in (("first", {"case_1": 1, "case_2": 0, "case_3": 2}[case]), ("second", 1)):
            predicted = np.roll(truth, shift, axis=0)
            if run == "second" and case == "case_1":
                predicted[predicted == 2] = 0
            write(folder / f"{run}/{case}.nii", predicted)
    labels = Labels(NAMES)
    runs = [
        RunResults(
            name=name,
            data=Path("/data"),
            facts={"preset": name, "network": "a <i>unet</i>"} | ({"hiding": "blocks"} if name == "first" else {}),
            environment={"python": "3.11 & more"},
            histories={"": history(method=name == "first")},
            evaluation=evaluate(folder / name, folder / "truth", labels),
            predictions={case: folder / name / f"{case}.nii" for case in CASES},
            structures=labels.structures,
            calibrations={},
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


def report(folder: Path, runs: Any, scans: Any, title: str = "A title") -> tuple[str, Page]:
    write_report(folder / "report.html", runs, scans, title)
    html = (folder / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_the_page_says_what_was_measured(whole):
    (runs, _), _, page = whole
    text = "".join(page.text)
    for run in runs:
        mean = run.evaluation["mean"]
        low, high = mean["ci"]["dice"]
        assert f"{mean['dice']:.3f} mean Dice95 % interval {low:.3f} to {high:.3f}." in text
    cells = []
    for run in runs:
        entry = run.evaluation["mean"]["labels"]["2"]
        ends = {key: entry["ci"][key] for key in ("dice", "hd95_mm", "nsd")}
        cells += [
            f"{entry['dice']:.3f} {ends['dice'][0]:.3f} to {ends['dice'][1]:.3f}",
            f"{entry['hd95_mm']:.2f} {ends['hd95_mm'][0]:.2f} to {ends['hd95_mm'][1]:.2f}",
            f"{entry['nsd']:.3f} {ends['nsd'][0]:.3f} to {ends['nsd'][1]:.3f}",
            str(entry["missed"]),
        ]
    assert [NAMES[2], *cells] in page.rows
    assert [row[4::4] for row in page.rows if row[0] == "Mean over labels" and len(row) == 9] == [["0", "1"]]
    row = next(row for row in page.rows if row[:2] == ["case_1", NAMES[2]])
    assert row[5:] == ["0.000", "missed", "0.000"]
    assert ["preset", "first", "second"] in page.rows
    assert ["hiding", "blocks", "–"] in page.rows  # noqa: RUF001
    assert ["python", "3.11 & more"] in page.rows, "what every run shares stands once"
    assert ["Loss: masked", "0.02", "–"] in page.rows  # noqa: RUF001
    assert ["Validation Dice of the student", "0.5", "0.5"] in page.rows
    assert ["Part of the volume that the teacher gives to class 1", "0.0625", "–"] in page.rows  # noqa: RUF001
    for meaning in runs[0].evaluation["definition"].values():
        assert meaning in text


def test_every_case_has_its_scores(whole):
    (runs, _), _, page = whole
    for case in CASES:
        for label, name in NAMES.items():
            row = next(row for row in page.rows if row[:2] == [case, name])
            for place, run in enumerate(runs):
                found = next(x for x in run.evaluation["cases"] if (x["case"], x["label"]) == (case, label))
                assert row[2 + 3 * place] == f"{found['dice']:.3f}"
                assert row[4 + 3 * place] == f"{found['nsd']:.3f}"


def test_differences_are_those_of_the_comparison_and_noise_is_called_so(whole):
    (runs, _), _, page = whole
    result = compare_evaluations([runs[1].evaluation], [runs[0].evaluation])
    overall = result["dice"]["overall"]
    assert not overall["distinguishable"]
    low, high = overall["interval"]
    text = "".join(page.text)
    assert (
        f"The difference is not distinguishable from noise: first against second, {overall['difference']:+.4f} Dice "
        f"(95 % interval {low:+.4f} to {high:+.4f}) over 3 cases." in text
    )
    row = next(row for row in page.rows if row[0] == "Mean over labels" and len(row) == 7)
    assert row[1] == f"{overall['difference']:+.3f} {low:+.3f} to {high:+.3f}, noise"
    assert (overall["left_out"], result["hd95_mm"]["overall"]["left_out"] > 0) == (0, True)
    for metric, cell in (("dice", row[3]), ("hd95_mm", row[6])):
        each = result[metric]["overall"]
        left_out = f", {each['left_out']} left out" if each["left_out"] else ""
        assert cell == f"{each['wins']}/{each['ties']}/{each['losses']}{left_out}"


def test_a_difference_that_is_none_of_noise_is_not_called_so(study, tmp_path):
    runs, scans = study
    worse = json.loads(json.dumps(runs[0].evaluation))
    for row in worse["cases"]:
        row["dice"] *= 0.5
    _, page = report(tmp_path, [runs[0], replace(runs[1], evaluation=worse)], scans)
    text = "".join(page.text)
    assert "first is better than second: +" in text
    assert "noise" not in next(row for row in page.rows if row[0] == "Mean over labels" and len(row) == 7)[1]
    meaning = text.partition("What the numbers mean")[2]
    assert "Holm" in meaning
    assert "Wilcoxon" in meaning


def test_one_run_says_that_it_is_one(study, tmp_path):
    runs, scans = study
    text = "".join(report(tmp_path, [replace(runs[0], histories={"": []})], scans)[1].text)
    assert "One training run: another seed" in text
    assert "difference" not in text.partition("What the numbers mean")[0]
    assert "Wilcoxon" not in text


def test_best_median_and_worst_are_the_first_runs(whole):
    headings = re.findall(r"<h3>(.*?)</h3>", whole[1])
    assert headings == ["Best: case_2", "Median: case_1", "Worst: case_3"]
    best, median, worst = (alt for alt in whole[2].labelled("div"))
    assert "planes of case_2. Dice: first 1.000, second 0." in best
    assert "case_1" in median
    assert "case_3" in worst
    assert picks(["a"]) == {"case": "a"}
    assert picks(["a", "b"]) == {"best": "a", "worst": "b"}


def test_everything_is_in_the_file_and_pictures_decode(whole):
    _, html, page = whole
    assert "http" not in html
    assert "url(" not in html
    assert "@import" not in html
    addresses = [attrs[name] or "" for _, attrs in page.tags for name in ("src", "href", "srcset") if name in attrs]
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    pictures = 0
    for address in addresses:
        if address.startswith("#"):
            assert address[1:] in ids
        elif address != "data:,":
            kind, _, data = address.partition(";base64,")
            assert kind in {"data:image/png", "data:image/jpeg"}
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))), dtype=float)
            assert picture.std() > 1
            pictures += 1
    assert pictures == 3 * 3, "cases, planes"


def test_the_page_can_be_read_by_everyone(whole):
    _, html, page = whole
    assert page.attributes("html", "lang") == ["en"]
    assert "width=device-width" in page.attributes("meta", "content")[0]
    tags = [tag for tag, _ in page.tags]
    assert [tags.count(each) for each in ("h1", "header", "main", "nav")] == [1] * 4
    assert "img" not in tags
    assert page.unsaid == []
    assert all(len(text) > 20 for text in page.labelled() + page.labelled("div"))
    assert page.labelled()
    levels = [int(level) for level in re.findall(r"<h(\d)", html)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert tags.count("caption") == tags.count("table") == 6
    assert tags.count("th") == len(page.attributes("th", "scope"))
    sections = [attrs for tag, attrs in page.tags if tag == "section"]
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all(attrs["aria-labelledby"] in ids for attrs in sections)


def test_pictures_say_their_numbers_to_those_who_dont_see_them(whole):
    (runs, _), _, page = whole
    values = [row["dice"] for row in runs[0].evaluation["cases"] if row["label"] == 1]
    first, median, third = np.percentile(values, [25, 50, 75])
    assert (
        f"Dice, {NAMES[1]}, first: median {median:.3f}, quartiles {first:.3f} and {third:.3f}, from {min(values):.3f} "
        f"to {max(values):.3f}, 3 cases" in page.labelled()
    )
    assert any(
        text.startswith("Validation Dice over the training steps. first: from 0.25 at step 50 to 0.5 at step 100;")
        for text in page.labelled()
    )


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's contrast ratio of two colours ``#rrggbb``."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_have_contrast_enough(dark):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    light, _, rest = STYLE.read_text().partition("@media (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", rest if dark else light))
    assert len(colours) == 13
    for ground in (colours["page"], colours["tint"]):
        for text in ("text", "quiet", "mark"):
            assert contrast(colours[text], ground) >= 4.5, text
        for shape in ("warn", *(name for name in colours if name.startswith("run-"))):
            assert contrast(colours[shape], ground) >= 3, shape


def test_hostile_names_are_escaped_and_do_no_harm(study, tmp_path):
    runs, scans = study
    hostile = "<script>alert('x')</script> & \"q\" $\\bad$ _x"
    hurt = replace(runs[0], name=hostile, facts={hostile: hostile}, environment={hostile: hostile})
    html, page = report(tmp_path, [hurt, runs[1]], scans, title=hostile)
    assert html.count("<script") == 1
    assert "<script>alert" not in html
    assert "<b>lobe" not in html
    assert "<i>" not in html
    assert [hostile, hostile, "–"] in page.rows  # noqa: RUF001
    assert hostile in page.text
    assert NAMES[1] in {row[0] for row in page.rows}


def test_what_is_amiss_is_said_at_the_top(study, tmp_path):
    runs, scans = study
    (tmp_path / "second" / "case_3.nii").unlink()
    left = {case: file for case, file in runs[1].predictions.items() if case != "case_3"}
    scores = evaluate(tmp_path / "second", tmp_path / "truth", Labels(NAMES))
    fewer = replace(runs[1], evaluation=scores, predictions=left)
    html, page = report(tmp_path, [replace(run, histories={"": []}) for run in (runs[0], fewer)], scans)
    text = "".join(page.text)
    assert "scored on different cases: do not compare their means (first on 3 cases, second on 2 cases)" in text
    assert "second has no prediction for 1 case" in text
    assert "over 2 cases." in text
    assert ["case_3", NAMES[1]] in [row[:2] for row in page.rows]
    assert re.findall(r"<h3>(.*?)</h3>", html) == ["Best: case_2", "Worst: case_1"], "cases that every run predicted"


def test_runs_of_different_data_sets_are_not_compared(study, tmp_path):
    runs, scans = study
    names = {1: ("heart", (1,)), 2: ("lung", (2,))}
    elsewhere = replace(runs[1], data=Path("/other"), structures=names)
    _, page = report(tmp_path, [runs[0], elsewhere], scans)
    text = "".join(page.text)
    assert "of different data sets: do not compare their means. first on /data; second on /other" in text
    assert "first and second can't be compared: they are of different data sets." in text
    assert "distinguishable" not in text
    heart = next(row for row in page.rows if row[0] == "heart" and len(row) == 9)
    assert heart[1:5] == ["–"] * 4, "a number is another label there"  # noqa: RUF001
    assert all("second" not in alt for alt in page.labelled("div"))


def test_a_run_that_logged_nothing_has_no_curves(study, tmp_path):
    runs, _ = study
    records = [{"kind": "train", "step": 7, "momentum": float("nan"), "seconds": None}]
    _, page = report(tmp_path, [replace(runs[0], histories={"": records})], {})
    text = "".join(page.text)
    assert ["Step", "7"] in page.rows
    assert "Momentum" not in text
    assert "No curves" in text
    assert "nothing to show" in text
    assert "image" not in [tag for tag, _ in page.tags]


@pytest.mark.parametrize("count", [0, 2])
def test_runs_need_names_of_their_own(study, tmp_path, count):
    runs, scans = study
    with pytest.raises(MedContextError, match="different names"):
        write_report(tmp_path / "report.html", [runs[0]] * count, scans, "")
    assert not (tmp_path / "report.html").exists()

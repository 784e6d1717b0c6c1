"""A report of two runs with 50 held-out cases and 13 labels: its size, and how it opens in headless Chromium."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medcontext.data.labels import Labels
from medcontext.evaluation.metrics import METRICS
from medcontext.evaluation.report import write_report
from medcontext.evaluation.run_results import RunResults
from medcontext.evaluation.scoring import Scoring, definition
from medcontext.evaluation.summary import summarise
from tests.browser import CHROMIUM, Browser, chromium
from tests.test_report import write

CASES, LABELS = 50, 13
NAMES = {label: f"structure_{label}" for label in range(1, LABELS + 1)}
LIMIT = 1_500_000
"""Bytes."""

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian: apt-get install chromium)")


def evaluation(rng: np.random.Generator) -> dict[str, Any]:
    """As ``evaluate`` gives it, of scores that are drawn; label 13 is missed in some cases."""
    rows = []
    for case in range(CASES):
        for label in NAMES:
            missed = label == LABELS and rng.random() < 0.2
            scores = dict.fromkeys(METRICS, float(rng.beta(9, 2)))
            distances = {"hd95_mm": float(rng.gamma(2, 4)), "assd_mm": float(rng.gamma(2, 1))}
            scores |= {"hd95_mm": None, "assd_mm": None, "dice": 0.0} if missed else distances
            rows.append({
                "case": f"case_{case:03d}", "label": label, "outcome": "missed" if missed else "both", **scores
            })  # fmt: skip
    rest = {"unpredicted": [], "without_truth": [], "resampled": [], "definition": definition(Scoring())}
    return {"cases": rows, "mean": summarise(rows, {row["case"]: row["case"] for row in rows}, NAMES), **rest}


def history(rng: np.random.Generator) -> list[dict[str, Any]]:
    keys = ("clean", "masked", "consistency", "total")
    rows: list[dict[str, Any]] = [
        {"kind": "train", "step": step, "momentum": 0.99, "learning_rate": 1 / step, "context_score": rng.random()}
        | {f"loss/{key}": float(rng.gamma(2)) for key in keys}
        | {f"gradient_share/{key}": float(rng.random()) for key in keys[:3]}
        | {f"teacher_occupancy/{label}": float(rng.random()) for label in range(LABELS + 1)}
        for step in range(10, 10_001, 10)
    ]
    rows += [
        {"kind": "validation", "step": step, "dice/student": 0.8, "dice/teacher": 0.75 + rng.random() / 10}
        for step in range(500, 10_001, 500)
    ]
    return rows


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    noise = gaussian_filter(rng.normal(size=(LABELS + 1, 160, 140, 60)), (0, 12, 12, 9))
    truth = noise.argmax(axis=0).astype(np.uint8)
    image = gaussian_filter(rng.normal(size=truth.shape), 1).astype(np.float32) + truth
    maps = [write(folder / f"map_{k}.nii", np.roll(truth, k, axis=0)) for k in range(3)]
    labels = Labels(NAMES)
    runs = [
        RunResults(
            name=name,
            data=Path("/data"),
            facts={"Preset": name},
            environment={"Python": "3.11"},
            histories={"": history(rng)},
            evaluation=evaluation(rng),
            predictions={f"case_{case:03d}": maps[place] for case in range(CASES)},
            structures=labels.structures,
            calibrations={},
        )
        for place, name in enumerate(("medcontext", "supervised"), start=1)
    ]
    scan = write(folder / "scan.nii", image)
    scans = {f"case_{case:03d}": ((scan,), maps[0]) for case in range(CASES)}
    write_report(folder / "report.html", runs, scans, "MedContext on a large data set")
    return folder / "report.html"


def test_it_is_small_enough_to_be_sent(page):
    size = page.stat().st_size
    assert 300_000 < size < LIMIT, "as many outlines, points and curves as these can't be less"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


def opened(browser: Browser, page: Path, **how: Any) -> None:
    browser.requests.clear()
    browser.complaints.clear()
    browser.show(page.as_uri(), **how)
    browser.wait("document.readyState === 'complete' && document.querySelector('h1')")


@needs_chromium
def test_it_asks_for_nothing_and_has_few_elements_to_lay_out(browser, page):
    opened(browser, page, width=1180, height=900)
    browser.wait("performance.getEntriesByType('navigation')[0].loadEventEnd > 0")
    assert {address for address in browser.requests if not address.startswith("data:")} == {page.as_uri()}
    assert browser.complaints == []
    count = browser.run("document.querySelectorAll('*').length")
    assert CASES * LABELS < count < 20_000, "what a browser lays out before it shows anything"


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "phone"), [(390, True), (1180, False)])
def test_nothing_is_wider_than_the_window_or_covers_other_text(browser, page, width, phone, dark):
    opened(browser, page, width=width, height=844, phone=phone)
    browser.prefer(dark=dark)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") == width
    outside = """Array.from(document.querySelectorAll("main *, header *")).filter((each) => {
        const box = each.getBoundingClientRect();
        return box.width && !each.closest(".wide") && (box.left < 0 || box.right > innerWidth + 1);
    }).length"""
    assert browser.run(outside) == 0
    # Numbers of an axis, and what is beside and below it, each in a place of their own.
    covering = """(() => {
        let count = 0;
        for (const group of document.querySelectorAll(".plot, .boxes")) {
            const boxes = Array.from(group.querySelectorAll("text, .name, .value, .label"),
                (each) => each.getBoundingClientRect());
            for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
                const [a, b] = [boxes[i], boxes[j]];
                const beside = a.left > b.right - 1 || b.left > a.right - 1;
                if (!beside && a.top < b.bottom - 1 && b.top < a.bottom - 1) count++;
            }
        }
        return count;
    })()"""
    assert browser.run("document.querySelectorAll('.plot text').length") > 100
    assert browser.run(covering) == 0
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(24, 28, 33)" if dark else "rgb(255, 255, 255)")
    shade = browser.picture().mean()
    assert shade < 110 if dark else shade > 180
    assert browser.complaints == []


@needs_chromium
def test_the_table_of_cases_is_sorted_by_a_heading(browser, page):
    opened(browser, page, width=1180, height=900)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    table = "document.querySelectorAll('table[data-sortable]')[1]"
    column = f"Array.from({table}.tBodies[0].rows, (row) => row.cells[3].textContent)"
    before = browser.run(column)
    assert len(before) == CASES * LABELS
    button = f"{table}.querySelector('th[data-column=\"3\"] button')"
    for order, sign in (("ascending", 1), ("descending", -1)):
        browser.run(f"{button}.click()")
        after = browser.run(column)
        numbers = [float(each) for each in after if each != "missed"]
        assert sorted(before) == sorted(after)
        assert numbers == sorted(numbers, reverse=sign < 0)
        assert set(after[len(numbers) :]) == {"missed"}, "what has no number comes last"
        assert browser.run(f"{button}.closest('th').getAttribute('aria-sort')") == order


@needs_chromium
def test_the_page_is_whole_without_its_script(browser, page, tmp_path):
    html = page.read_text()
    begin, end = html.index("<script>"), html.index("</script>")
    bare = tmp_path / "bare.html"
    bare.write_text(html[:begin] + html[end + len("</script>") :])
    opened(browser, bare, width=1180, height=900)
    assert browser.run("document.querySelectorAll('button').length") == 0
    time.sleep(0.2)
    without = browser.picture()
    opened(browser, page, width=1180, height=900)
    time.sleep(0.2)
    # Chromium rounds an edge between two colours now one way and now the other, by 1 of 255.
    np.testing.assert_allclose(without[:600].astype(int), browser.picture()[:600].astype(int), rtol=0, atol=2)

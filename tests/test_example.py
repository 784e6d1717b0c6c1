"""The example runs, learns, and stays short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "plain_loop.py"


@pytest.mark.parametrize("preset", ["medcontext", "supervised"])
def test_the_plain_loop_learns(preset):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--preset", preset, "--steps", "40"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"Dice of the student (\d\.\d+)", done.stdout)
    assert found
    assert float(found.group(1)) > 0.5
    assert ("context_score" in done.stdout) is (preset == "medcontext")


def test_it_is_under_a_hundred_lines():
    assert len(EXAMPLE.read_text().splitlines()) < 100

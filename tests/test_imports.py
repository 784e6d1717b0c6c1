"""Imports between rooms point one way, the method is pure, and the command line is quick to answer."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import medcontext

SOURCE = Path(medcontext.__file__).parent

MAY_IMPORT = {
    "method": {"losses"},
    "losses": set(),
    "networks": set(),
    "data": set(),
    "inference": {"data", "networks"},
    "evaluation": {"data"},
    "viewer": {"data"},
    "training": {"data", "networks", "losses", "method", "inference"},
    "studies": {"data", "networks", "losses", "method", "inference", "evaluation", "training"},
    "cli": {"data", "networks", "losses", "method", "inference", "evaluation", "viewer", "training", "studies"},
}


def imported_modules(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {file}"
            names.add(node.module or "")
    return names


def test_every_room_is_listed():
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(MAY_IMPORT)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_imports_point_one_way(room):
    files = list((SOURCE / room).rglob("*.py"))
    assert files
    for file in files:
        for name in imported_modules(file):
            parts = name.split(".")
            if parts[0] == "medcontext" and len(parts) > 1 and parts[1] in MAY_IMPORT:
                assert parts[1] == room or parts[1] in MAY_IMPORT[room], f"{file.name} imports {name}"


def test_method_is_pure_pytorch():
    allowed = {
        "torch",
        "medcontext",
        "math",
        "copy",
        "contextlib",
        "collections",
        "functools",
        "itertools",
        "dataclasses",
        "typing",
        "__future__",
    }
    for file in (SOURCE / "method").rglob("*.py"):
        assert {name.split(".")[0] for name in imported_modules(file)} <= allowed, file.name


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["train", "--help"]])
def test_help_needs_no_torch(arguments):
    code = (
        "import sys\nfrom medcontext.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert end.code in (0, None), end.code\n"
        "heavy = {'torch', 'monai', 'nibabel', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_public_names_exist():
    for name in medcontext.__all__:
        assert getattr(medcontext, name) is not None
    with pytest.raises(AttributeError):
        _ = medcontext.nothing_of_this_name

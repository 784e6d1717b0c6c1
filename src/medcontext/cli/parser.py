"""A parser that names the nearest option to one that it does not know."""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from medcontext.method.presets import MethodConfig
from medcontext.training.config import TrainConfig

UNKNOWN = re.compile(
    r"does not accept option '([\w.]+)'|[Uu]nrecognized arguments: (\S+)|Key '([\w.]+)' is not expected"
)
"""How jsonargparse says so of a key in a YAML file, and of an option."""

STRAY = re.compile(r"[Uu]nrecognized arguments: [^-]")
"""How jsonargparse says so of a file."""


class Parser(ArgumentParser):
    """Of the command line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Leave with exit code 2, and with a suggestion where an option is not known."""
        if STRAY.search(message):
            super().error(f"{message}; there are too many files, or some of them come after an option", ex)
        found = UNKNOWN.search(message)
        near = nearest(next(name for name in found.groups() if name)) if found else None
        super().error(message if near is None else f"{message}; the nearest is '{near}'", ex)


def nearest(name: str) -> str | None:
    """The setting of a training whose name is most like this one, if any is."""
    settings = [field.name for field in dataclasses.fields(TrainConfig)]
    settings += [f"method.{field.name}" for field in dataclasses.fields(MethodConfig)]
    asked = name.partition("=")[0].lstrip("-").replace("-", "_")
    close: list[Any] = difflib.get_close_matches(asked, settings, n=1)
    return str(close[0]) if close else None

"""A study as a file: what is kept the same, what is varied, what is compared; and the runs that it stands for."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from medcontext.errors import MedContextError
from medcontext.method.presets import PRESETS, MethodConfig
from medcontext.training.config import TrainConfig

KEYS = {"name": True, "about": True, "data": True, "split": True, "settings": False, "factors": True,
        "comparisons": False, "gains": False, "pictures": False, "missing_parts": False}  # fmt: skip
"""Key of a study file -> whether it has to be there."""

LEVEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a level may be called: it becomes a part of a path."""


@dataclass(frozen=True)
class PlannedRun:
    """One training of a study.

    Attributes:
        name: Its path below the study's folder: the levels, in the order of the factors.
        levels: Factor -> level.
        config: What it is trained with.
        missing_parts: Whether its held-out cases are also scored with parts of each scan missing.
    """

    name: str
    levels: Mapping[str, str]
    config: TrainConfig
    missing_parts: bool = False


@dataclass(frozen=True)
class Comparison:
    """An arm that is compared with another one, its baseline, and what the comparison is called."""

    baseline: str
    arm: str
    name: str


@dataclass(frozen=True)
class Study:
    """What a study file says.

    Attributes:
        name: Of the study.
        about: What it asks, in words.
        file: Where it was read from.
        data: The data set.
        runs: In the order in which they are worth having: all of the first seed before the second, so that whatever is
            there when a study is stopped is balanced.
        comparisons: Between levels of the factor ``arm``.
        pictures: Names of the comparisons of which the best and the worst cases are drawn.
        gains: Pairs of names of comparisons whose gains are compared with one another.
    """

    name: str
    about: str
    file: Path
    data: Path
    runs: tuple[PlannedRun, ...]
    comparisons: tuple[Comparison, ...]
    pictures: tuple[str, ...] = ()
    gains: tuple[tuple[str, str], ...] = ()


def read_study(file: Path, data_root: Path) -> Study:
    """Read a study file.

    ``settings`` are keys of a training's YAML file and hold for every run. Each of the ``factors`` is a list of values
    of one setting, or a mapping from the name of a level to the settings that it stands for; a run takes one level of
    each, later factors going before earlier ones and before ``settings``. Two factors have to be there: ``arm``, which
    ``comparisons`` are between, each ``[baseline, arm, name]``, and ``seed``, over which they are averaged. Beyond the
    fields of :class:`~medcontext.training.config.TrainConfig` there are:

    - ``training_cases``: ``few_shot``, or ``all``;
    - ``max_steps_factor``: multiplies ``max_steps``, for a baseline of equal compute;
    - ``seed``: of the weights, patches and masks and, unless ``split_seed`` is set, of the few-shot subset as well, so
      that each seed has a subset of its own. Test cases are those of ``split`` whatever the seed.

    Args:
        file: YAML with ``name``, ``about``, ``data`` (a folder below ``data_root``), ``split`` (a split file, relative
            to the study file, else to the data set, which need not be at hand), ``settings``, ``factors``,
            ``comparisons``, ``gains`` (``[name, name]``: whether the second comparison's gain differs from the
            first's), ``pictures`` (names of comparisons of which the best and worst cases are drawn), and
            ``missing_parts`` (whether held-out cases are also scored with parts of each scan missing).
        data_root: Folder of the data sets.

    Raises:
        MedContextError: No such file, or something in it that is unknown, missing or out of range.
    """
    content = _read(file)
    data = data_root / str(content["data"])
    split = _split(file, data, str(content["split"]))
    missing_parts = content.get("missing_parts", False)
    if not isinstance(missing_parts, bool):
        raise _wrong(file, f"missing_parts: {missing_parts}", "true or false")
    factors = {str(name): _levels(file, str(name), levels) for name, levels in content["factors"].items()}
    missing = {"arm", "seed"} - set(factors)
    if missing:
        raise _wrong(file, f"no factor '{min(missing)}'", "the factors 'arm' and 'seed'")
    runs = []
    for chosen in itertools.product(*(levels.items() for levels in factors.values())):
        levels = dict(zip(factors, (name for name, _ in chosen), strict=True))
        layers = [content.get("settings") or {}, *(settings for _, settings in chosen)]
        name = "/".join(levels.values())
        runs.append(PlannedRun(name, levels, _config(file, name, layers, split), missing_parts))
    seeds = list(factors["seed"])
    runs.sort(key=lambda run: seeds.index(run.levels["seed"]))
    comparisons = tuple(_comparison(file, entry, factors["arm"]) for entry in content.get("comparisons") or [])
    names = [each.name for each in comparisons]
    pictures = _pictures(file, content.get("pictures") or [], set(names))
    gains = tuple(_gain(file, entry, names) for entry in content.get("gains") or [])
    about = str(content["about"]).strip()
    return Study(str(content["name"]), about, file, data, tuple(runs), comparisons, pictures, gains)


def _read(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MedContextError("There is no such study file.", file=file, remedy="check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MedContextError("This file is not valid YAML.", file=file, found=str(error)) from None
    if not isinstance(content, dict):
        raise _wrong(file, type(content).__name__, f"a mapping with {', '.join(KEYS)}")
    unknown = sorted(str(key) for key in content.keys() - KEYS.keys())
    absent = [key for key, needed in KEYS.items() if needed and not content.get(key)]
    if unknown or absent:
        found = [f"unknown '{key}'" for key in unknown] + [f"no '{key}'" for key in absent]
        raise _wrong(file, ", ".join(found), f"the keys {', '.join(KEYS)}")
    if not LEVEL.fullmatch(str(content["name"])):
        raise _wrong(file, f"name: {content['name']}", "letters, digits, '.', '_' and '-'")
    for key, kind, expected in (
        ("settings", dict, "a mapping of settings"),
        ("factors", dict, "a mapping of factors to levels"),
        ("comparisons", list, "a list of [baseline, arm, name]"),
        ("gains", list, "a list of [name, name] of comparisons"),
    ):
        if content.get(key) and not isinstance(content[key], kind):
            raise _wrong(file, f"{key}: {content[key]}", expected)
    return content


def _split(file: Path, data: Path, named: str) -> Path:
    """The file of that name beside the study file, else the one in the data set, whether or not it is there yet."""
    beside = (file.parent / named).resolve()
    return beside if beside.is_file() else (data / named).resolve()


def _levels(file: Path, factor: str, given: Any) -> dict[str, dict[str, Any]]:
    """Name of a level -> its settings."""
    if isinstance(given, dict):
        levels = {str(name): settings for name, settings in given.items()}
    elif isinstance(given, list):
        levels = {_level_name(factor, value): {factor: value} for value in given}
    else:
        levels = {}
    if not levels or not all(isinstance(settings, dict) for settings in levels.values()):
        raise _wrong(file, f"factor '{factor}': {given}", "a list of values, or a mapping of names to settings")
    for name in levels:
        if not LEVEL.fullmatch(name):
            raise _wrong(file, f"factor '{factor}': level '{name}'", "letters, digits, '.', '_' and '-'")
    return levels


def _level_name(factor: str, value: Any) -> str:
    if factor == "training_cases":
        return f"{value}-cases"
    return value if isinstance(value, str) else f"{factor}-{value}"


def _config(file: Path, run: str, layers: list[Mapping[str, Any]], split: Path) -> TrainConfig:
    """The settings of one run; what a training's command line would refuse is refused here."""
    merged: dict[str, Any] = {}
    for layer in layers:
        method = layer.get("method") or {}
        if not isinstance(method, dict):
            raise _wrong(file, f"{run}: method: {method}", "a mapping of settings of the method")
        merged |= {**layer, "method": {**merged.get("method", {}), **method}}
    for setting, instead in (("few_shot", "training_cases"), ("split", "split at the top of the file")):
        if setting in merged:
            raise _wrong(file, f"{run}: {setting}: {merged[setting]}", f"{instead} in its place")
    cases = merged.pop("training_cases", "all")
    factor = merged.pop("max_steps_factor", 1)
    if not isinstance(factor, int | float) or factor <= 0 or (factor != 1 and "max_steps" not in merged):
        raise _wrong(file, f"{run}: max_steps_factor: {factor}", "a number above 0, and max_steps beside it")
    if factor != 1:
        if not isinstance(merged["max_steps"], int):
            raise _wrong(file, f"{run}: max_steps: {merged['max_steps']!r}", "a whole number beside max_steps_factor")
        merged["max_steps"] = round(merged["max_steps"] * factor)
    if ":" in str(merged.get("network", "")):
        raise _wrong(
            file, f"{run}: network: {merged['network']}", "a network of medcontext: no file chooses code to run"
        )
    merged |= {"split": str(split), "few_shot": None if cases == "all" else cases}
    merged.setdefault("split_seed", merged.get("seed", 0))
    return _parsed(file, run, merged)


def _parsed(file: Path, run: str, values: dict[str, Any]) -> TrainConfig:
    from argparse import ArgumentError

    parser = _parser(frozenset(values), frozenset(values["method"]))
    try:
        settings = parser.instantiate(parser.parse_object(values))
        given = {key: settings[key] for key in values if key != "method"}
        method = {key: settings["method"][key] for key in values["method"]}
        preset = PRESETS[given.get("preset", TrainConfig.preset)]
        return TrainConfig(**given, method=dataclasses.replace(preset, **method))
    except ArgumentError as error:
        found, expected = f"{run}: {error.message or error}", "settings as 'medcontext train --help' lists them"
        raise _wrong(file, found, expected) from None
    except MedContextError as error:
        raise _wrong(file, f"{run}: {error.found}", error.expected or "") from None


@cache
def _parser(settings: frozenset[str], method: frozenset[str]) -> Any:
    """As that of 'medcontext train', for these settings alone: a parser of all takes ten times as long per run."""
    from jsonargparse import ArgumentParser

    skipped = [
        of.__dataclass_fields__.keys() - given for of, given in ((TrainConfig, settings), (MethodConfig, method))
    ]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig, as_group=False, skip={"method", *skipped[0]})
    parser.add_class_arguments(MethodConfig, "method", skip=set(skipped[1]), instantiate=False)
    return parser


def _comparison(file: Path, entry: Any, arms: Mapping[str, Any]) -> Comparison:
    well = isinstance(entry, list) and len(entry) == 3 and all(isinstance(part, str) for part in entry)
    if not well or any(arm not in arms for arm in entry[:2]):
        raise _wrong(file, f"comparison {entry}", f"[baseline, arm, name] with arms of {', '.join(arms)}")
    return Comparison(*entry)


def _gain(file: Path, entry: Any, names: Sequence[str]) -> tuple[str, str]:
    if not isinstance(entry, list) or len(entry) != 2 or any(names.count(name) != 1 for name in entry):
        raise _wrong(file, f"gains: {entry}", "[name, name] of two comparisons, each name given to one comparison only")
    return entry[0], entry[1]


def _pictures(file: Path, given: Any, names: set[str]) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(name in names for name in given):
        raise _wrong(file, f"pictures: {given}", f"a list of names of comparisons: {', '.join(sorted(names))}")
    return tuple(given)


def _wrong(file: Path, found: str, expected: str) -> MedContextError:
    return MedContextError("This file is not a study.", file=file, found=found, expected=expected)

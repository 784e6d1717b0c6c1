"""Plans as files: written, edited by hand, given back, compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medcontext.data.check import CheckReport
from medcontext.data.plan import Plan, listed
from medcontext.errors import MedContextError
from medcontext.files import read_json, write_json


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan as JSON that can be edited."""
    write_json(path, plan.to_dict())


def read_plan(path: Path) -> Plan:
    """Read a plan that :func:`write_plan` wrote, as it was or edited.

    Raises:
        MedContextError: Naming file and key: not JSON, a key unknown or missing, a value of the wrong type or
            impossible.
    """
    return Plan.from_dict(read_json(path), path)


def require_plan_fits(plan: Plan, report: CheckReport, file: Path) -> None:
    """Refuse a plan that was made for other data.

    Raises:
        MedContextError: Its channels or labels are not those of the data set.
    """
    channels = next((facts.channels for facts in report.facts.values()), plan.channels)
    for what, planned, there in (
        ("channels", str(plan.channels), str(channels)),
        ("labels", _labels(plan), _labels(report)),
    ):
        if planned != there:
            raise MedContextError(
                f"This plan is for data of other {what}.",
                file=file,
                found=planned,
                expected=f"{there}, as in {report.dataset.root}",
                remedy="plan this data set itself; labels are declared in its dataset.json, not in the plan",
            )


def diff_plans(before: Plan, after: Plan) -> list[str]:
    """One line for each value that differs, such as ``patch: 40 x 56 x 40 -> 48 x 48 x 48``; empty for equal plans.

    Reasons are left out: they follow from the values.
    """
    old, new = (_flat(plan.to_dict() | {"reasons": {}}) for plan in (before, after))
    return [
        f"{key}: {old.get(key, 'none')} -> {new.get(key, 'none')}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _labels(source: Plan | CheckReport) -> str:
    """Everything that labels are, in their order, which is that of the classes."""
    return ", ".join(f"{key} {value}" for key, value in _flat(source.labels.to_dict()).items())


def _flat(values: Any, key: str = "") -> dict[str, str]:
    """Dotted key to value as it is printed, of objects within objects."""
    if isinstance(values, Mapping):
        inner = values
    elif isinstance(values, list | tuple) and any(isinstance(each, Mapping) for each in values):
        inner = {str(place): each for place, each in enumerate(values)}
    else:
        return {key: _plain(values)}
    flat: dict[str, str] = {}
    for name, value in inner.items():
        flat |= _flat(value, f"{key}.{name}" if key else str(name))
    return flat


def _plain(value: Any) -> str:
    """A size as sizes are written, other lists with commas."""
    if isinstance(value, list | tuple):
        sizes = len(value) == 3 and not isinstance(value[0], str)
        return listed(value) if sizes else ", ".join(map(str, value)) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from medcontext.data.findings import Finding
from medcontext.data.fingerprint import Fingerprint
from medcontext.data.plan import Plan
from medcontext.data.recipes.recipe import Recipe

if TYPE_CHECKING:
    from medcontext.studies.tune import Tried


def print_table(table: Table) -> None:
    """On standard output; where that is no terminal, wide enough that nothing is cut."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)


def findings_table(findings: Iterable[Finding]) -> Table:
    """One row per finding: what is wrong, where, and what to do."""
    table = Table(title="findings", show_lines=True)
    for column in ("", "file", "problem", "found", "expected", "to mend it"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        error = finding.error
        told = (error.file, error.problem, error.found, error.expected, error.remedy)
        table.add_row(
            finding.severity,
            *(Text(each or "") for each in told),
            style="red" if finding.severity == "error" else "yellow",
        )
    return table


def plan_table(plan: Plan) -> Table:
    """One row per field of the plan."""
    table = Table(title=Text(f"plan for {plan.dataset}"), show_header=False)
    values = plan.to_dict()
    # The labels stand in the fingerprint's table.
    del values["dataset"], values["reasons"], values["labels"]
    if plan.normalisation.kind == "case":
        values["normalisation"] = "case"
    for name, value in values.items():
        table.add_row(name.replace("_", " "), Text(_plain(value)))
    return table


def fingerprint_table(fingerprint: Fingerprint) -> Table:
    """What is particular to a data set: a row per quantity, then one per structure."""
    table = Table(title=Text(f"{fingerprint.dataset}: {fingerprint.cases} cases"), show_header=False)
    for name in ("sizes", "spacings"):
        spread = getattr(fingerprint, name)
        unit = "voxels" if name == "sizes" else "mm"
        values = ", ".join(f"{which} {_plain(getattr(spread, which))}" for which in ("least", "median", "most"))
        table.add_row(f"{name} ({fingerprint.orientation})", f"{values} {unit}")
    for channel, each in enumerate(fingerprint.foreground):
        kind = fingerprint.modality[channel] if fingerprint.modality else f"channel {channel}"
        table.add_row(Text(f"{kind} where labelled"), f"{each.low:.4g} to {each.high:.4g}, median {each.median:.4g}")
    for number, structure in fingerprint.structures.items():
        share = f"{structure.share:.3%} of the voxels, in {structure.cases} of {fingerprint.cases} cases"
        table.add_row(Text(f"{number} {structure.name}"), share)
    return table


def recipes_table(recipes: Iterable[Recipe]) -> Table:
    """One row per data set that is known by name."""
    table = Table(title="data sets known by name")
    for column in ("name", "what it is", "licence", "'medcontext data fetch'"):
        table.add_column(column, overflow="fold")
    for recipe in recipes:
        table.add_row(recipe.name, recipe.title, recipe.licence, "yes" if recipe.download else "needs a registration")
    return table


def postprocessing_table(tried: Iterable[Tried]) -> Table:
    """One row per way of post-processing that was tried."""
    table = Table(title="Dice on the validation cases")
    for column in ("structure", "what", "without", "with", "gain (95 % interval)", "better / worse", "taken"):
        table.add_column(column, overflow="fold")
    for each in tried:
        scores = each.scores
        interval = "" if scores.interval is None else f" ({scores.interval[0]:+.4f} to {scores.interval[1]:+.4f})"
        table.add_row(
            Text(each.name),
            str(each.rule),
            f"{scores.first:.4f}",
            f"{scores.second:.4f}",
            f"{scores.difference:+.4f}{interval}",
            f"{scores.wins} / {scores.losses} of {scores.cases}",
            "yes" if each.taken else "-",
        )
    return table


def networks_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """One row per network: cost in the setting published for Synapse, and what it can do."""
    table = Table(
        title="networks, at the size published for Synapse CT",
        caption="GFLOPs: a forward pass of one patch, a multiply-add counted as one, as in this field's tables",
    )
    for column in ("network", "patch", "parameters", "GFLOPs", "hides tokens", "deep supervision", "export", "compile"):
        table.add_column(column, justify="right" if column in ("parameters", "GFLOPs") else "left")
    for row in rows:
        table.add_row(
            row["name"],
            _plain(row["patch"]),
            f"{row['parameters']:,}",
            f"{row['gflops']:.1f}",
            "yes" if row["token_hiding"] else "-",
            "yes" if row["deep_supervision"] else "-",
            row["export"] or "-",
            "yes" if row["compile"] else "-",
        )
    return table


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return " x ".join(_plain(inner) for inner in value)
    return f"{value:g}" if isinstance(value, float) else str(value)

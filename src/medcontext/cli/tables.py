"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from medcontext.data.check import Finding
from medcontext.data.plan import Plan


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
        table.add_row(
            finding.severity,
            error.file or "",
            error.problem,
            error.found or "",
            error.expected or "",
            error.remedy or "",
            style="red" if finding.severity == "error" else "yellow",
        )
    return table


def plan_table(plan: Plan) -> Table:
    """One row per field of the plan."""
    table = Table(title=f"plan for {plan.dataset}", show_header=False)
    values = plan.to_dict()
    del values["dataset"], values["reasons"]
    if plan.normalisation.kind == "case":
        values["normalisation"] = "case"
    for name, value in values.items():
        table.add_row(name.replace("_", " "), _plain(value))
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

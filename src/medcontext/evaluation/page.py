"""Pieces of a self-contained HTML page: all in one file, nothing fetched; plain text is escaped here.

It is whole without its script, which only lets tables be sorted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

STYLE = Path(__file__).with_name("report.css")
SCRIPT = Path(__file__).with_name("report.js")

MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-3.6 -3.6h7.2v7.2h-7.2z",
    "M0 -4.6L4.6 3.6H-4.6z",
    "M0 -5L5 0L0 5L-5 0z",
    "M0 4.6L4.6 -3.6H-4.6z",
)
"""Shapes, about 8 pixels wide, that tell runs apart beside their colours."""

COLOURS = 6
"""Colours of runs in the style sheet; with more runs they come again, with other shapes."""

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<link rel="icon" href="data:,">
<style>$style</style>
</head>
<body>
<svg class="defs" aria-hidden="true"><defs>$marks</defs></svg>
<header>
<h1>$title</h1>
$header
<nav aria-label="Sections"><ul>$links</ul></nav>
</header>
<main>
$main
</main>
<script>$script</script>
</body>
</html>
""")


@dataclass(frozen=True)
class Section:
    """A heading and the HTML under it; the page's list of contents names the heading."""

    heading: str
    content: Sequence[str]

    @property
    def id(self) -> str:
        """Of the section, for links to it."""
        return re.sub(r"\W+", "-", self.heading.lower())


def page(title: str, header: Iterable[str], sections: Sequence[Section]) -> str:
    """The whole page; ``header`` is HTML made by the functions below, ``title`` is plain text."""
    marks = "".join(f'<path id="mark-{number}" d="{shape}"/>' for number, shape in enumerate(MARKS, start=1))
    main = (
        f'<section id="{each.id}" aria-labelledby="{each.id}-heading">\n<h2 id="{each.id}-heading">'
        f"{escape(each.heading)}</h2>\n{''.join(each.content)}\n</section>"
        for each in sections
    )
    return _PAGE.substitute(
        title=escape(title),
        style=STYLE.read_text(encoding="utf-8"),
        script=SCRIPT.read_text(encoding="utf-8"),
        marks=marks,
        header="\n".join(header),
        links="".join(f'<li><a href="#{each.id}">{escape(each.heading)}</a></li>' for each in sections),
        main="\n".join(main),
    )


def heading(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; ``kind`` is ``lead``, ``quiet``, ``warning`` or nothing."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def details(summary: str, *content: str) -> str:
    """HTML that is folded away until the reader opens it."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{''.join(content)}\n</details>"


def terms(entries: Iterable[tuple[str, str]]) -> str:
    """A list of terms and what they mean."""
    return "<dl>\n" + "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in entries) + "\n</dl>"


def mark_number(place: int) -> int:
    """Number of the shape of the run at this place, in the page's definitions."""
    return place % len(MARKS) + 1


def run_class(place: int) -> str:
    """The class that gives what is in it the colour of the run at this place."""
    return f"run-{place % COLOURS + 1}"


def run_name(name: str, place: int) -> str:
    """The name of a run behind its mark."""
    return (
        f'<svg class="mark {run_class(place)}" viewBox="-5 -5 10 10" aria-hidden="true"><use '
        f'href="#mark-{mark_number(place)}"/></svg>{escape(name)}'
    )


def runs_legend(names: Sequence[str]) -> str:
    """The runs' names behind their marks, in a row."""
    return (
        '<ul class="runs">' + "".join(f"<li>{run_name(name, place)}</li>" for place, name in enumerate(names)) + "</ul>"
    )


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and a smaller note below it."""

    text: str
    note: str = ""


Row = tuple[Sequence[str], Sequence[str | Cell]]


def table(
    caption: str,
    heads: Sequence[str],
    columns: Sequence[tuple[str, Sequence[str]]],
    rows: Iterable[Row],
    total: Row | None = None,
    kind: str = "",
    *,
    sortable: bool = False,
) -> str:
    """A table of plain text that scrolls by itself where it is wider than the page.

    Args:
        caption: What the table shows.
        heads: Headings of the columns that name a row.
        columns: Heading of each group of columns and of the columns in it; a group of none is one column.
        rows: For each row the texts that name it (one for each of ``heads``) and its cells.
        total: A last row that is set apart.
        kind: ``words`` sets the cells to the left, ``groups`` draws a line between the groups of columns.
        sortable: Whether the page's script lets the rows be sorted by each column.
    """
    deep = 2 if any(inner for _, inner in columns) else 1
    top = [
        f'<th scope="col" rowspan="{deep}" class="first" data-column="{place}">{escape(head)}</th>'
        for place, head in enumerate(heads)
    ]
    low = []
    place = len(heads)
    for name, inner in columns:
        span = f'scope="colgroup" colspan="{len(inner)}"' if inner else f'scope="col" rowspan="{deep}"'
        top.append(f"<th {span}>{escape(name)}</th>")
        low += [f'<th scope="col" data-column="{place + k}">{escape(each)}</th>' for k, each in enumerate(inner)]
        place += max(1, len(inner))
    groups = f'<colgroup span="{len(heads)}"></colgroup>' + "".join(
        f'<colgroup span="{max(1, len(inner))}"></colgroup>' for _, inner in columns
    )
    header = f"<tr>{''.join(top)}</tr>" + (f"\n<tr>{''.join(low)}</tr>" if low else "")
    body = "\n".join(_table_row(*row) for row in rows)
    last = "" if total is None else f'\n<tbody class="total">\n{_table_row(*total)}\n</tbody>'
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}">\n'
        f'<table class="{kind}"{" data-sortable" if sortable else ""}>\n'
        f"<caption>{escape(caption)}</caption>\n{groups}\n<thead>\n{header}\n</thead>\n"
        f"<tbody>\n{body}\n</tbody>{last}\n</table>\n</div>"
    )


def _table_row(names: Sequence[str], cells: Sequence[str | Cell]) -> str:
    head = "".join(f'<th scope="row" class="first">{escape(name)}</th>' for name in names)
    return f"<tr>{head}{''.join(_cell(cell) for cell in cells)}</tr>"


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    note = f" <small>{escape(cell.note)}</small>" if cell.note else ""
    return f"<td>{escape(cell.text)}{note}</td>"

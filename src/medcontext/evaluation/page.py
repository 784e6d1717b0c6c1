"""Pieces of a self-contained HTML page: all in one file, no script, nothing fetched; plain text is escaped here."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Sequence
from html import escape
from string import Template

CSS = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1b1f24; --quiet: #5b6470; --line: #e3e6ea; --tint: #f5f7f9;
  --mark: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --page: #181c21; --text: #e8eaed; --quiet: #9aa3ae; --line: #2e343c;
  --tint: #20262d; --mark: #56b4e9; } }
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--text);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { margin: 0 0 1rem; font-size: 1.9rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .75rem; font-size: 1.3rem; line-height: 1.3; }
header { padding-bottom: 1.5rem; border-bottom: 1px solid var(--line); }
.lead { margin: 0 0 .5rem; font-size: 1.2rem; line-height: 1.5; overflow-wrap: anywhere; }
.warning { padding: .6rem .9rem; border-left: 4px solid #d55e00; background: var(--tint); }
p, dd { max-width: 46rem; }
.quiet, figcaption, caption { color: var(--quiet); font-size: .92rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .5rem; white-space: nowrap; }
th, td { padding: .4rem .8rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
thead th { color: var(--quiet); font-weight: 600; font-size: .92rem; vertical-align: bottom; }
thead th[scope=colgroup] { color: var(--text); text-align: center; }
th.first { text-align: left; padding-left: 0; }
th.first:first-child { position: sticky; left: 0; background: var(--page); }
tbody th { font-weight: 500; }
td, tbody th { max-width: 22rem; overflow-wrap: break-word; }
table.words :is(td, thead th) { text-align: left; }
table.groups colgroup + colgroup { border-left: 1px solid var(--line); }
tbody.total :is(th, td) { border-top: 2px solid var(--line); font-weight: 700; }
summary { cursor: pointer; color: var(--mark); font-weight: 600; padding: .3rem 0; }
figure { margin: 1rem 0; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
figcaption { margin-top: .6rem; max-width: 46rem; }
dt { font-weight: 600; margin-top: .8rem; }
dd { margin: 0; }
@media (max-width: 40rem) { body { padding: 1.25rem 1rem 3rem; } h1 { font-size: 1.5rem; } .lead { font-size: 1.08rem; }
  th, td { padding: .4rem .55rem; font-size: .92rem; } }
@media print { details > * { display: block; } body { max-width: none; } }
"""

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<link rel="icon" href="data:,">
<style>$css</style>
</head>
<body>
<header>
<h1>$title</h1>
$header
</header>
<main>
$main
</main>
</body>
</html>
""")


def page(title: str, header: Iterable[str], main: Iterable[str]) -> str:
    """The whole page; ``header`` and ``main`` are HTML made by the functions below, ``title`` is plain text."""
    return _PAGE.substitute(title=escape(title), css=CSS, header="\n".join(header), main="\n".join(main))


def section(heading: str, *content: str) -> str:
    """A heading and the HTML that belongs under it."""
    return "\n".join(["<section>", f"<h2>{escape(heading)}</h2>", *content, "</section>"])


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; ``kind`` is ``lead``, ``quiet``, ``warning`` or nothing."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def details(summary: str, content: str) -> str:
    """HTML that is folded away until the reader opens it."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{content}\n</details>"


def terms(entries: Iterable[tuple[str, str]]) -> str:
    """A list of terms and what they mean."""
    return "<dl>\n" + "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in entries) + "\n</dl>"


def table(
    caption: str,
    heads: Sequence[str],
    columns: Sequence[tuple[str, Sequence[str]]],
    rows: Iterable[tuple[Sequence[str], Sequence[str]]],
    total: tuple[Sequence[str], Sequence[str]] | None = None,
    kind: str = "",
) -> str:
    """A table of plain text that scrolls by itself where it is wider than the page.

    Args:
        caption: What the table shows.
        heads: Headings of the columns that name a row.
        columns: Heading of each group of columns and of the columns in it; a group of none is one column.
        rows: For each row the texts that name it (one for each of ``heads``) and those of its cells.
        total: A last row that is set apart.
        kind: ``words`` sets the cells to the left, ``groups`` draws a line between the groups of columns.
    """
    deep = 2 if any(inner for _, inner in columns) else 1
    top = [f'<th scope="col" rowspan="{deep}" class="first">{escape(head)}</th>' for head in heads]
    low = []
    for name, inner in columns:
        span = f'scope="colgroup" colspan="{len(inner)}"' if inner else f'scope="col" rowspan="{deep}"'
        top.append(f"<th {span}>{escape(name)}</th>")
        low += [f'<th scope="col">{escape(each)}</th>' for each in inner]
    groups = f'<colgroup span="{len(heads)}"></colgroup>' + "".join(
        f'<colgroup span="{max(1, len(inner))}"></colgroup>' for _, inner in columns
    )
    header = f"<tr>{''.join(top)}</tr>" + (f"\n<tr>{''.join(low)}</tr>" if low else "")
    body = "\n".join(_table_row(*row) for row in rows)
    last = "" if total is None else f'\n<tbody class="total">\n{_table_row(*total)}\n</tbody>'
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}">\n<table class="{kind}">\n'
        f"<caption>{escape(caption)}</caption>\n{groups}\n<thead>\n{header}\n</thead>\n"
        f"<tbody>\n{body}\n</tbody>{last}\n</table>\n</div>"
    )


def _table_row(names: Sequence[str], cells: Sequence[str]) -> str:
    head = "".join(f'<th scope="row" class="first">{escape(name)}</th>' for name in names)
    return f"<tr>{head}{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def picture(png: bytes, alt: str, caption: str, dark: bytes | None = None) -> str:
    """A PNG within the page, with a caption; ``dark`` takes its place where the reader's screen is dark."""
    width, height = struct.unpack(">II", png[16:24])
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{_data(dark)}">' if dark else ""
    size = f'width="{width}" height="{height}" style="min-width: {width * 3 // 5}px"'
    return (
        '<figure>\n<div class="wide" tabindex="0" role="region" aria-label="Picture, scrolls sideways">\n'
        f'<picture>{source}<img src="{_data(png)}" {size} alt="{escape(alt)}"></picture>\n</div>\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>"
    )


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")

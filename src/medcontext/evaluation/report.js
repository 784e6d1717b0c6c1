// A table marked as sortable gets a button in the heading of every column. Without this, the page is whole all the same.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const headings = [...table.querySelectorAll("thead th[data-column]")];
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = (cell.firstChild ? cell.firstChild.textContent : "").trim();
    return { text, number: parseFloat(text) };
  };
  const before = (a, b, sign) => {
    // What is no number (missed, absent) comes last, whichever way the column is sorted.
    if (Number.isNaN(a.number) !== Number.isNaN(b.number)) return Number.isNaN(a.number) ? 1 : -1;
    const order = Number.isNaN(a.number) ? a.text.localeCompare(b.text, undefined, { numeric: true }) : a.number - b.number;
    return sign * order;
  };
  for (const heading of headings) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const column = Number(heading.dataset.column);
      const rows = [...body.rows].map((row) => ({ row, key: value(row, column) }));
      rows.sort((a, b) => before(a.key, b.key, up ? 1 : -1));
      body.append(...rows.map((each) => each.row));
    });
  }
}

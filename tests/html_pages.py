"""A parsed HTML page: that it is one, and what is in it."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "source", "br", "col"}


class Page(HTMLParser):
    """Checks that tags nest; collects text, attributes, tables' texts, and drawings that nothing is said of."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.said: list[bool] = []
        self.unsaid: list[dict[str, str | None]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attrs_of = dict(attrs)
        self.tags.append((tag, attrs_of))
        if tag not in VOID:
            self.open.append(tag)
            # A picture, or what it is in, has a text for those who don't see it, or is passed over by their readers.
            has_text = attrs_of.get("role") == "img" and bool(attrs_of.get("aria-label"))
            self.said.append(has_text or attrs_of.get("aria-hidden") == "true" or any(self.said[-1:]))
            if tag == "svg" and not self.said[-1]:
                self.unsaid.append(attrs_of)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.said.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script"}:
            self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attrs[name] or "" for each, attrs in self.tags if each == tag and name in attrs]

    def labelled(self, tag: str = "svg") -> list[str]:
        """What is said of pictures to those who don't see them."""
        return [attrs["aria-label"] or "" for each, attrs in self.tags if each == tag and attrs.get("role") == "img"]

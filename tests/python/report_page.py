"""Reads a report's HTML as its readers do: tables by caption, texts, links, names of figures."""

from __future__ import annotations

from html.parser import HTMLParser

_VOID = {"meta", "link", "img", "br", "hr", "input"}
# What a start tag closes, where the end tag was left out.
_CLOSES = {
    "td": {"td", "th"},
    "th": {"td", "th"},
    "tr": {"td", "th", "tr"},
    "tbody": {"td", "th", "tr", "thead"},
}
_OPTIONAL_END = {"td", "th", "tr", "thead", "tbody"}


class ReportPage(HTMLParser):
    """The content of a page; raises AssertionError if elements do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}  # rows of cells by caption
        self.ids: list[str] = []
        self.links: list[str] = []  # every src and href
        self.tags: set[str] = set()
        self.drawings: list[str] = []  # text alternatives
        self.headings: list[str] = []
        self.definitions: dict[str, str] = {}
        self._texts: list[str] = []
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = self._term = ""
        self.feed(text)
        self.close()
        assert self._open == []
        self.text = "".join(self._texts)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.tags.add(tag)
        while self._open and self._open[-1] in _CLOSES.get(tag, ()):
            self._open.pop()
        if "id" in found:
            self.ids.append(found["id"] or "")
        self.links += [found[name] or "" for name in ("src", "href", "xlink:href") if name in found]
        if tag == "svg":
            assert found["role"] == "img"
            self.drawings.append(found["aria-label"] or "")
        elif tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            if tag == "th":
                assert found["scope"] in ("col", "row")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append(f"{tag} ")
        elif tag == "dt":
            self._term = ""
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open[-1] != tag:
            assert self._open[-1] in _OPTIONAL_END, (tag, self._open)
            self._open.pop()
        self._open.pop()
        if tag == "table":
            assert self._caption not in self.tables
            self.tables[self._caption] = [[cell.strip() for cell in row] for row in self._rows]

    def handle_data(self, data: str) -> None:
        if "style" in self._open or "svg" in self._open:
            return
        self._texts.append(data)
        if "caption" in self._open:
            self._caption += data
        elif "table" in self._open and self._rows and self._rows[-1]:
            self._rows[-1][-1] += data
        elif self._open and self._open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data
        elif "dt" in self._open:
            self._term += data
        elif "dd" in self._open:
            self.definitions[self._term] = self.definitions.get(self._term, "") + data

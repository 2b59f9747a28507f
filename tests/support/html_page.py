"""A page as a reader and an assistive technology find it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "path", "use", "image", "rect"}


class Page(HTMLParser):
    """What a reader and an assistive technology find in the page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.headings: list[tuple[int, str]] = []
        self.texts: dict[str, list[str]] = {"": []}
        self.cells: list[list[list[str]]] = []
        self.open: list[str] = []
        self.section = ""
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.tags.append((tag, found))
        if tag == "section":
            self.section = found["id"]
            self.texts[self.section] = []
        elif re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        elif tag == "table":
            self.cells.append([])
        elif tag == "tr":
            self.cells[-1].append([])
        elif tag in ("td", "th"):
            self.cells[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.texts[self.section].append(data)
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, section: str | None = None) -> str:
        parts = [part for name, texts in self.texts.items() if section in (None, name) for part in texts]
        return plain(" ".join(" ".join(parts).split()))


def plain(text: str) -> str:
    return text.replace("\u2212", "-").replace("\u00b1", "+-")

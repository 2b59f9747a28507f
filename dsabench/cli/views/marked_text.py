"""Text whose tokens are marked by their part in a query's selection, in colour or by ASCII marks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from rich.cells import cell_len, set_cell_size
from rich.text import Text

WIDTH = 80
"""Cells of a line."""

QUERY, MISSED, LATER = "query", "missed", "later"
FOUND, LOST = "found", "lost"
"""Targets of the query, selected and not."""

_STYLES = {
    QUERY: "bold reverse",
    "1": "#000000 on #bddff3",
    "2": "#000000 on #56b4e9",
    "3": "bold #ffffff on #00497a",
    FOUND: "bold #000000 on #3fc79a",
    LOST: "bold #ffffff on #b3003b",
    MISSED: "underline #000000 on #e69f00",
    LATER: "dim",
    "": "",
}
_MARKS = {
    QUERY: "<<{}>>",
    "1": "[{}|1]",
    "2": "[{}|2]",
    "3": "[{}|3]",
    FOUND: "[*{}*]",
    LOST: "(*{}*)",
    MISSED: "{{{}}}",
    LATER: "{}",
    "": "{}",
}


def wrapped(tokens: list[tuple[str, str]], width: int, marks: bool = False) -> Iterator[Text]:
    """Lines of at most `width` cells of (text, kind) tokens, marked in ASCII or styled; broken between words where
    that is possible, and after a \\n."""
    line, room = Text(), width
    for word in _words(tokens):
        cells = [(_marked(text, kind) if marks or kind == QUERY else text, kind) for text, kind in word]
        if sum(cell_len(text) for text, _ in cells) > room and line:
            yield line
            line, room = Text(), width
            text, kind = cells[0]
            cells[0] = (text.lstrip(" ") or text, kind)
        for text, kind in cells:
            while cell_len(text) > room:  # a word longer than a line
                head = set_cell_size(text, room).rstrip() if room else ""
                head = text[: max(1, len(head))] if not line else text[: len(head)]
                line.append(head, "" if marks else _STYLES[kind])
                yield line
                line, room, text = Text(), width, text[len(head) :]
            line.append(text, "" if marks else _STYLES[kind])
            room -= cell_len(text)
        if word[-1][0].endswith("\\n"):
            yield line
            line, room = Text(), width
    if line:
        yield line


def _words(tokens: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Tokens that belong together: a new word begins with a space and after an end of a line."""
    word: list[tuple[str, str]] = []
    for before, token in pairwise([("", ""), *tokens]):
        if word and (token[0].startswith(" ") or before[0].endswith("\\n")):
            yield word
            word = []
        word.append(token)
    if word:
        yield word


def _marked(text: str, kind: str) -> str:
    if kind in ("", LATER):
        return text
    bare = text.lstrip(" ")
    return text[: len(text) - len(bare)] + _MARKS[kind].format(bare)


def prose(text: str) -> list[tuple[str, str]]:
    """Text as tokens for `wrapped`, a word each."""
    return [(word, "") for word in re.findall(r" *[^ ]+", text)]

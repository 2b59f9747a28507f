"""The consoles that every command prints on. Text from a store, a spec or a corpus cannot command the terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from dsabench.cli.safe_text import spelt_out


class PlainConsole(Console):
    """Prints text as it is: no markup, and what would act on a terminal spelt out. Tables owe that to their cells.

    On a terminal lines are wrapped between words; a longer word (a path, a command) stays whole, so that it can be
    copied.
    """

    def print(self, *objects: Any, **settings: Any) -> None:
        """rich's `print`."""
        shown = [_inert(one) for one in objects]
        soft = settings.get("soft_wrap")
        if len(shown) == 1 and isinstance(shown[0], str | Text) and not (self.soft_wrap if soft is None else soft):
            shown = [Text("\n").join(lines_of_words(shown[0], settings.pop("width", None) or self.width))]
            settings["soft_wrap"] = True
        super().print(*shown, **settings)


def lines_of_words(text: str | Text, width: int, depth: int | None = None) -> list[Text]:
    """Lines of at most `width` cells, broken between words; a word longer than a line stays whole.

    What follows a break begins at the cell `depth`; None: where the line that it belongs to begins.
    """
    lines: list[Text] = []
    for line in (Text(text) if isinstance(text, str) else text).split("\n", allow_blank=True):
        begin = len(line.plain) - len(line.plain.lstrip(" ")) if depth is None else depth
        places, used = [], 0
        for word in re.finditer(r" *[^ ]+", line.plain):
            size = cell_len(word[0])
            if word.start() and used + size > width:
                places.append(word.start())
                size, used = size - len(word[0]) + len(word[0].lstrip(" ")), begin
            used += size
        first, *rest = line.divide(places)
        lines.append(first)
        for part in rest:
            bare = part[len(part.plain) - len(part.plain.lstrip(" ")) :]
            lines.append(Text(" " * begin).append_text(bare))
    return lines


def stdout_console() -> PlainConsole:
    """The console of results; without a terminal nothing is wrapped or coloured."""
    console = PlainConsole(highlight=False, markup=False, no_color=True if os.environ.get("CI") else None)
    if not console.is_terminal:
        console.soft_wrap = True
    return console


def stderr_console() -> PlainConsole:
    """The console of progress and logs; plain in CI and without a terminal, NO_COLOR honoured by rich."""
    forced = False if os.environ.get("CI") else None
    console = PlainConsole(stderr=True, highlight=False, markup=False, force_terminal=forced)
    console.soft_wrap = not console.is_terminal
    return console


def notifier(quiet: bool) -> Callable[[str], None]:
    """A function that prints a line on stderr; with `quiet` one that prints nothing."""
    return (lambda message: None) if quiet else stderr_console().print


def inert_text(text: str, style: str = "") -> Text:
    """`text` for a table's cell."""
    return Text(spelt_out(text), style=style)


def _inert(shown: Any) -> Any:
    if isinstance(shown, str):
        return spelt_out(shown)
    if isinstance(shown, Text) and spelt_out(shown.plain) != shown.plain:
        spans = [span for span in shown.spans if span.start == 0 and span.end == len(shown.plain)]  # others would move
        return Text(spelt_out(shown.plain), style=shown.style, spans=spans)
    return shown

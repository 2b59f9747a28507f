"""The consoles that every command prints on. Text from a store, a spec or a corpus cannot command the terminal."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text

from dsabench.cli.safe_text import spelt_out


class PlainConsole(Console):
    """Prints text as it is: no markup, and what would act on a terminal spelt out. Tables owe that to their cells."""

    def print(self, *objects: Any, **settings: Any) -> None:
        """rich's `print`."""
        super().print(*map(_inert, objects), **settings)


def stdout_console() -> PlainConsole:
    """The console of results; without a terminal nothing is wrapped or coloured."""
    console = PlainConsole(highlight=False, markup=False, no_color=True if os.environ.get("CI") else None)
    if not console.is_terminal:
        console.soft_wrap = True
    return console


def stderr_console() -> PlainConsole:
    """The console of progress and logs; plain in CI and without a terminal, NO_COLOR honoured by rich."""
    forced = False if os.environ.get("CI") else None
    return PlainConsole(stderr=True, highlight=False, markup=False, force_terminal=forced, soft_wrap=True)


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

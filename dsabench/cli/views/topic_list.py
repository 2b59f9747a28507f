"""The list of the guide's topics. Loads no rich: this is a newcomer's first command."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsabench.guide.topics import Page

_TOPIC = 16


def topic_lines(pages: Iterable[Page]) -> Iterator[str]:
    """A line for each topic, and how to read one; on a terminal wrapped to its width."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1_000
    yield "The guide, by topic. Read one: dsabench guide TOPIC"
    yield ""
    for page in pages:
        first, *rest = textwrap.wrap(page.summary, max(20, width - _TOPIC - 2))
        yield f"  {page.topic:{_TOPIC}}{first}"
        yield from (" " * (_TOPIC + 2) + line for line in rest)

"""The list of the guide's topics. Loads no rich: this is a newcomer's first command."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsabench.guide.topics import Page


def topic_lines(pages: Iterable[Page]) -> Iterator[str]:
    """A line for each topic, and how to read one. At most 80 columns."""
    yield "The guide, by topic. Read one: dsabench guide TOPIC"
    yield ""
    for page in pages:
        first, *rest = textwrap.wrap(page.summary, 80 - 18)
        yield f"  {page.topic:16}{first}"
        yield from (" " * 18 + line for line in rest)

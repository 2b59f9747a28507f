"""A table of text, as terminal, Markdown, LaTeX and report take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Grid(NamedTuple):
    """A table of text."""

    title: str
    headings: tuple[str, ...]
    """A line break in a heading says where it may be broken."""
    rows: Sequence[tuple[str, ...]]
    left: tuple[str, ...]
    """Headings of left-aligned columns; numbers are right-aligned."""

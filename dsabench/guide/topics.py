"""The topics of the guide: every page of this folder, with its one-sentence summary."""

from __future__ import annotations

from importlib import resources
from typing import NamedTuple

_ORDER = (
    "start",
    "experiment",
    "convert",
    "verdicts",
    "tuning",
    "methods",
    "attention",
    "tasks",
    "results",
    "parity",
    "speed",
    "scale",
    "store",
    "reliability",
    "security",
    "troubleshooting",
    "fields",
    "metrics",
    "commands",
)
"""The order in which pages are listed; a page that is not named here comes last."""


class Page(NamedTuple):
    """A page of the guide."""

    topic: str
    """Its file's name without `.md`."""
    summary: str
    """Its third line: one sentence of at most 75 characters."""
    text: str
    """All of it, in Markdown."""


def pages() -> dict[str, Page]:
    """Every page by its topic, in the order of reading."""
    found = {}
    for file in resources.files("dsabench.guide").iterdir():
        if file.name.endswith(".md"):
            topic, text = file.name.removesuffix(".md"), file.read_text(encoding="utf-8")
            found[topic] = Page(topic, text.split("\n", 3)[2], text)
    place = {topic: i for i, topic in enumerate(_ORDER)}
    return dict(sorted(found.items(), key=lambda item: (place.get(item[0], len(place)), item[0])))

"""The fields of a config as text: their names on one screen, or each with what it takes and means."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Mapping
from typing import Any

from dsabench.cli.safe_text import printable
from dsabench.guide.fields_page import owned_by
from dsabench.spec.field_list import Field

_MOST_COLUMNS = 100

_SHORT = 60
"""Characters up to which a section's name and fields stand in one line: all names shall fit one screen."""

Sections = Mapping[str, list[Field]]


def document(sections: Sections) -> list[dict[str, Any]]:
    """Every field with its section, for `--json`."""
    return [
        {
            "path": field.path,
            "takes": field.takes,
            "choices": list(field.choices),
            "default": _value(field.default),
            "meaning": field.meaning,
            "only_for": list(field.owners),
            "section": title,
        }
        for title, fields in sections.items()
        for field in fields
    ]


def _value(default: str) -> Any:
    """The default as a value; text where it is no JSON, and null where a field has none of its own."""
    try:
        return json.loads(default or "null")
    except ValueError:
        return default


def print_names(sections: Sections) -> None:
    """The names of each section, and how to read about them."""
    for title, fields in sections.items():
        names = list(dict.fromkeys(field.path for field in fields))
        prefix = f"{names[0].rpartition('.')[0]}." if "." in names[0] else ""
        head = f"{title}{f', {prefix}*' if prefix else ''}"
        listed = ", ".join(name.removeprefix(prefix) for name in names)
        if len(f"{head}: {listed}") <= _SHORT:
            print(f"{head}: {listed}")
            continue
        print(head)
        _print(listed, "  ")
    n = len({field.path for fields in sections.values() for field in fields})
    print(f"{n} fields. To read about some: dsabench fields top_k; dsabench fields 'train.*'")


def print_fields(sections: Sections) -> None:
    """Each field: its path with default, what it takes, and its meaning."""
    for i, (title, fields) in enumerate(sections.items()):
        print(f"{chr(10) if i else ''}{title}")
        for field in fields:
            default = f" = {printable(field.default)}" if field.default else ""
            print(f"\n  {printable(field.path)}{default}{owned_by(field)}")
            _print(f"Takes {field.takes}.", "    ")
            if field.meaning:
                _print(field.meaning, "    ")


def _print(text: str, indent: str) -> None:
    width = min(shutil.get_terminal_size().columns, _MOST_COLUMNS)
    print(
        textwrap.fill(
            printable(text),
            width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )

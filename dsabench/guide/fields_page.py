"""The guide's page of fields: every field of a config with its documentation."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from dsabench.spec.field_list import Field, sections
from dsabench.spec.run import EngineSpec
from dsabench.spec.tune import TuneSpec
from dsabench.spec.verdict import VerdictSpec

WIDTH = 80
"""Characters of a line."""

_HEAD = """\
# Fields

Every field of a config: what it takes, its default, its meaning.

A config file has up to five parts:

- `base`: the fields below, nested (`train: {steps: 2000}`);
- `axes`: field paths with lists of values (`train.steps: [1000, 2000]`), of
  which all combinations are run; any field but `plugins` and those of `engine`
  can be an axis;
- `verdict`: how the runs are judged, see the end of this page;
- `ladder`: named rungs; each changes fields (an axis takes a list of values)
  and keeps what the rungs before it changed;
- `tune`: the search for each variant's best settings, see the end of this page.

A path such as `train.steps` is the name of a field everywhere: in `axes`, with
`--set`, after `--where`, and as a column of the store. How to use them stands
in [experiment](experiment.md).
"""


_INTRODUCTIONS = {
    "The task": "Settings of a source `task:NAME`; in brackets the tasks that have one.",
    "The attention": "In brackets stand the kinds that have a setting; a plugin has its own, which `dsabench fields "
    "--config FILE` shows beside these.",
    "The engine": EngineSpec.__doc__ or "",
    "The verdict": VerdictSpec.__doc__ or "",
    "The search": TuneSpec.__doc__ or "",
}


def fields_page() -> str:
    """The page `fields.md`."""
    lines = [_HEAD]
    for title, fields in sections().items():
        lines.append(f"## {title}\n")
        if title in _INTRODUCTIONS:
            lines.append(_wrapped(" ".join(_INTRODUCTIONS[title].split())) + "\n")
        lines += _items(fields)
        lines.append("")
    return "\n".join(lines)


def _items(fields: list[Field]) -> Iterator[str]:
    for field in fields:
        default = f"`{field.default}`" if field.default else "each at its own"
        yield _wrapped(f"- `{field.path}`{owned_by(field)}: {field.takes}; default {default}. {field.meaning}", "  ")


def owned_by(field: Field) -> str:
    """Behind a path, the attentions or tasks that have the field; nothing when all have."""
    if not field.owners:
        return ""
    return f" (all but {field.lacking[0]})" if len(field.lacking) == 1 else f" ({', '.join(field.owners)})"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

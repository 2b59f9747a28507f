"""The guide's page of fields, made from the settings classes: every field of a config with its documentation."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dsabench.spec.attention import BUILT_IN
from dsabench.spec.data_settings import DataSpec
from dsabench.spec.messages import accepted, models_in
from dsabench.spec.run import EngineSpec, ModelSpec, RunSpec, TrainSpec
from dsabench.spec.tasks import TASKS
from dsabench.spec.verdict import VerdictSpec

WIDTH = 80
"""Characters of a line."""

_HEAD = """\
# Fields

Every field of a config: what it takes, its default, its meaning.

A config file has up to four parts:

- `base`: the fields below, nested (`train: {steps: 2000}`);
- `axes`: field paths with lists of values (`train.steps: [1000, 2000]`), of
  which all combinations are run; any field but `plugins` and those of `engine`
  can be an axis;
- `verdict`: how the runs are judged, see the end of this page;
- `ladder`: named rungs; each changes fields (an axis takes a list of values)
  and keeps what the rungs before it changed.

A path such as `train.steps` is the name of a field everywhere: in `axes`, with
`--set`, after `--where`, and as a column of the store. How to use them stands
in [experiment](experiment.md).
"""


def fields_page() -> str:
    """The page `fields.md`."""
    kinds = ", ".join(f"`{kind}`" for kind in BUILT_IN)
    return "\n".join(
        [
            _HEAD,
            *_section("The run", {"": RunSpec}, ""),
            *_section("The model", {"": ModelSpec}, "model."),
            *_section("The data", {"": DataSpec}, "data."),
            *_section(
                "The task",
                TASKS,
                "data.task.",
                "Settings of a source `task:NAME`; in brackets the tasks that have one.",
            ),
            *_section("The training", {"": TrainSpec}, "train."),
            *_section(
                "The attention",
                BUILT_IN,
                "attention.",
                f"`attention.kind` (default `dsa`) is {kinds}, or the name that a plugin registers. In "
                "brackets stand the kinds that have a setting; a plugin has its own.",
            ),
            *_section("The engine", {"": EngineSpec}, "engine.", _one_line(EngineSpec.__doc__)),
            *_section("The verdict", {"": VerdictSpec}, "verdict.", _one_line(VerdictSpec.__doc__)),
        ]
    )


def _section(title: str, models: Mapping[str, type[BaseModel]], prefix: str, intro: str = "") -> Iterator[str]:
    """A heading, and an item for each field of the models. Those that do not all have a field are named with it."""
    owners: dict[tuple[str, str], list[str]] = {}
    for name, model in models.items():
        for item in _fields(model, prefix):
            owners.setdefault(item, []).append(name)
    yield f"## {title}\n"
    if intro:
        yield _wrapped(intro) + "\n"
    for (path, text), names in owners.items():
        yield _wrapped(f"- `{path}`{_owners(names, list(models))}: {text}", "  ")
    yield ""


def _owners(names: list[str], everybody: list[str]) -> str:
    """Behind a path, the models that have it; nothing when all have."""
    lacking = [name for name in everybody if name not in names]
    if not lacking:
        return ""
    return f" (all but {lacking[0]})" if len(lacking) == 1 else f" ({', '.join(names)})"


def _fields(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    """(path, what it takes, its default and its documentation) of each field, those of mappings inside included."""
    for name, field in model.model_fields.items():
        inner = models_in(field.annotation)
        if field.exclude or name == "kind" or (prefix == "" and inner):  # not to be given; or a section of its own
            continue
        path = f"{prefix}{name}"
        if len(inner) != 1 or type(None) in get_args(field.annotation):
            yield path, f"{_takes(field)}; default {_default(field)}. {_one_line(field.description)}"
        if len(inner) == 1:
            yield from _fields(inner[0], f"{path}.")


def _takes(field: FieldInfo) -> str:
    return "a mapping of its settings, or null" if models_in(field.annotation) else accepted(field)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "each at its own"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

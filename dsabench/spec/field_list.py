"""The fields of a config, each with what it takes, its default and its meaning, made from the settings classes."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dsabench.errors import SpecError
from dsabench.spec.attention import BUILT_IN, AttentionSpec
from dsabench.spec.attention.settings_by_name import HYBRID
from dsabench.spec.data_settings import DataSpec
from dsabench.spec.messages import accepted, choices, models_in
from dsabench.spec.run import EngineSpec, ModelSpec, RunSpec, TrainSpec
from dsabench.spec.tasks import TASKS
from dsabench.spec.tune import TuneSpec
from dsabench.spec.verdict import VerdictSpec


class Field(NamedTuple):
    """A field, as a user meets it."""

    path: str
    """Its name everywhere: in `base`, `axes`, `--set`, `--where` and the store's columns."""

    takes: str
    """The values it takes, in words."""

    default: str
    """Its default as JSON writes it, text without quotes; "" where it has none of its own."""

    meaning: str
    """Its documentation, in one line."""

    choices: tuple[str, ...] = ()
    """Its values, where they are few."""

    owners: tuple[str, ...] = ()
    """The attentions or tasks that have it; () where all have."""

    lacking: tuple[str, ...] = ()
    """The attentions or tasks that have it not."""


def sections(attentions: Mapping[str, type[AttentionSpec]] = BUILT_IN) -> dict[str, list[Field]]:
    """Every field, under the heading of its part of a spec. `attentions`: the settings of each kind."""
    kind = Field(
        "attention.kind",
        f"one of {', '.join(attentions)}, or the name that a plugin registers",
        "dsa",
        "The attention, by name; the other fields of `attention` are its settings.",
        tuple(attentions),
    )
    of_a_layer = {name: model for name, model in attentions.items() if name != HYBRID}  # a hybrid takes their fields
    stacks = [
        field._replace(owners=(HYBRID,), lacking=tuple(of_a_layer))
        for name, model in attentions.items()
        if name == HYBRID
        for field in _fields(model, "attention.")
    ]
    return {
        "The run": _section({"": RunSpec}, ""),
        "The model": _section({"": ModelSpec}, "model."),
        "The data": _section({"": DataSpec}, "data."),
        "The task": _section(TASKS, "data.task."),
        "The training": _section({"": TrainSpec}, "train."),
        "The attention": [kind, *_section(of_a_layer, "attention."), *stacks],
        "The engine": _section({"": EngineSpec}, "engine."),
        "The verdict": _section({"": VerdictSpec}, "verdict."),
        "The search": _section({"": TuneSpec}, "tune."),
    }


def built_in_fields() -> list[Field]:
    """The fields of a run as `--set` and `axes` take them; those of `verdict` and `tune` are none of a run's."""
    return [
        field for title, found in sections().items() if title not in ("The verdict", "The search") for field in found
    ]


def choose(found: Mapping[str, list[Field]], pattern: str) -> dict[str, list[Field]]:
    """The fields whose path holds `pattern`, or is described by it as a whole (`*`, `?`, `[...]`), by section.

    Raises:
        SpecError: there is none; it names the fields that are most like it.
    """
    wanted = pattern.casefold()
    described = any(sign in pattern for sign in "*?[")
    chosen = {
        title: [
            field
            for field in fields
            if (fnmatch.fnmatchcase(field.path, wanted) if described else wanted in field.path.casefold())
        ]
        for title, fields in found.items()
    }
    if any(chosen.values()):
        return {title: fields for title, fields in chosen.items() if fields}
    paths = list(dict.fromkeys(field.path for fields in found.values() for field in fields))
    near = get_close_matches(wanted, paths, n=3)
    if not near:  # a typing error in the last name of a path
        names = get_close_matches(wanted.rpartition(".")[2], {path.rpartition(".")[2] for path in paths}, n=3)
        near = [path for name in names for path in paths if path.rpartition(".")[2] == name]
    hint = f"did you mean {' or '.join(near)}?" if near else "`dsabench fields` lists all"
    raise SpecError(f"no field's path holds {pattern!r}; {hint}")


def _section(models: Mapping[str, type[BaseModel]], prefix: str) -> list[Field]:
    """The fields of all models; those that not all have, with the models that have them."""
    owners: dict[Field, list[str]] = {}
    for name, model in models.items():
        for field in _fields(model, prefix):
            owners.setdefault(field, []).append(name)
    everybody = list(models)
    return [
        field
        if len(names) == len(everybody)
        else field._replace(owners=tuple(names), lacking=tuple(name for name in everybody if name not in names))
        for field, names in owners.items()
    ]


def _fields(model: type[BaseModel], prefix: str) -> Iterator[Field]:
    """Each field of a model, those of mappings inside included."""
    for name, field in model.model_fields.items():
        inner = [] if get_origin(field.annotation) is dict else models_in(field.annotation)
        is_section = prefix == "" and inner and type(None) not in get_args(field.annotation)
        if field.exclude or name == "kind" or is_section:  # not to be given; or listed apart
            continue
        path = f"{prefix}{name}"
        if len(inner) != 1 or type(None) in get_args(field.annotation):
            yield Field(path, _takes(field), _default(field), " ".join((field.description or "").split()), _few(field))
        if len(inner) == 1:
            yield from _fields(inner[0], f"{path}.")


def _takes(field: FieldInfo) -> str:
    if get_origin(field.annotation) is dict:
        return "a mapping"
    return "a mapping of its settings, or null" if models_in(field.annotation) else accepted(field)


def _few(field: FieldInfo) -> tuple[str, ...]:
    return ("true", "false") if field.annotation is bool else tuple(choices(field.annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    return value if isinstance(value, str) else json.dumps(value, default=lambda one: one.model_dump())

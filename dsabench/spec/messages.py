"""Messages for mistakes in a spec: one line that names the field, the value, what is accepted, and the nearest name."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dsabench.spec.yaml_file import with_point

_MISSING = object()


@dataclass(frozen=True)
class InWords:
    """Mark of a field whose annotation does not say what it takes."""

    words: str


def explain(error: ValidationError, model: type[BaseModel], prefix: str, where: Callable[[str], str]) -> list[str]:
    """A line for each mistake. `prefix`: the path of `model` in the spec. `where(path)`: `FILE:LINE: ` or `--flag: ` of
    what set that field."""
    lines = []
    for detail in error.errors():
        names = _field_names(detail, model)
        shown = _without_tags(names, model)
        path = ".".join([prefix, *shown] if prefix else shown)
        message = _line(detail, path, names, model)
        # A rule over several fields is reported at their parent: the origin of a field it speaks of says more.
        children = [f"{path}.{word}" if path else word for word in re.findall(r"[\w.]+", message)]
        origins = [where(child) for child in children if detail["type"] == "value_error" and where(child)]
        flags = [origin for origin in origins if origin.startswith("--")]
        lines.append(next(iter([*flags, *origins]), where(path)) + message)
    return list(dict.fromkeys(lines))


def _field_names(detail: ErrorDetails, model: type[BaseModel]) -> list[str]:
    """The error's location without the branches of a union, which pydantic appends to it."""
    names = [str(part) for part in detail["loc"]]
    if detail["type"] in ("extra_forbidden", "missing"):
        return names
    while len(names) > 1 and field_at(model, names) is None:
        names.pop()
    return names


def _line(detail: ErrorDetails, path: str, names: list[str], model: type[BaseModel]) -> str:
    value = detail.get("input", _MISSING)
    if detail["type"] == "extra_forbidden":
        return f"unknown field {path}" + near_miss(names[-1], _fields_of(model, names[:-1]))
    if detail["type"] == "value_error":
        context = detail.get("ctx", {}).get("error")
        message = str(context) if context is not None else detail["msg"]
        return f"{path}: {message}" if path else message
    field = field_at(model, names)
    if detail["type"] == "missing":
        return f"{path} is missing; accepted: {accepted(field) if field else 'a value'}"
    if field is None:
        return f"{path} = {_shown(value)} is not accepted: {detail['msg'].lower()}"
    hint = near_miss(value, choices(field.annotation)) if isinstance(value, str) else ""
    hint = hint or _as_number(value, _words(field.annotation))
    return f"{path} = {_shown(value)} is not accepted; accepted: {accepted(field)}{hint}"


def _as_number(value: Any, words: str) -> str:
    """A hint for what people write for a number and YAML reads as something else: 0,001 and 50% and 1e3 steps."""
    found = ""
    if isinstance(value, float) and "a whole number" in words and value.is_integer():
        found = f"{value:.0f}"
    elif isinstance(value, str) and "a number" in words and re.fullmatch(r"[+-]?\d+,\d+([eE][+-]?\d+)?", value):
        found = with_point(value)
    elif isinstance(value, str) and "a number" in words and re.fullmatch(r"\d{1,3}(\.\d+)? ?%", value):
        found = f"{float(value.rstrip(' %')) / 100:g}"
    return f"; did you mean {found}?" if found else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like `name`, for a hint; None when none is like it."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def near_miss(name: str, known: list[str]) -> str:
    """'; did you mean X?' for the nearest known name, or a list of all of them when they are few."""
    if near := nearest(name, known):
        return f"; did you mean {near}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 20 else ""


def field_at(model: type[BaseModel], names: list[str]) -> FieldInfo | None:
    """The field that a path leads to from `model`, or None."""
    field = model.model_fields.get(names[0]) if names else None
    if field is None or len(names) == 1:
        return field
    rest = names[1:]
    members = models_in(field.annotation)
    if tagged := [member for member in members if len(members) > 1 and _tag(member) == rest[0]]:
        members, rest = tagged, rest[1:]
        if not rest:
            return field
    return next((found for member in members if (found := field_at(member, rest))), None)


def accepted(field: FieldInfo) -> str:
    """In words, the values that a field takes: 'a number above 0 and at most 1', 'one of cosine, constant'."""
    bounds = []
    for item in _metadata(field):
        if isinstance(item, InWords):
            return item.words
        for name, words in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most")):
            if getattr(item, name, None) is not None:
                bounds.append(f"{words} {getattr(item, name):,}")
        if getattr(item, "multiple_of", None) is not None:
            bounds.append(f"a multiple of {item.multiple_of}")
        if getattr(item, "min_length", None):
            bounds.append("not empty")
        if getattr(item, "pattern", None) is not None:
            bounds.append(f"matching {item.pattern}")
    words, or_null, _ = _words(field.annotation).partition(" or null")
    return (f"{words} {' and '.join(bounds)}" if bounds else words) + or_null


def _words(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(annotation))
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if part is type(None) else _words(part) for part in get_args(annotation))
    if origin is typing.Annotated:
        return _words(get_args(annotation)[0])
    if origin is dict:
        return "a mapping"
    if origin is list:
        return "a list of " + ", ".join(_words(part) for part in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a mapping with the fields " + ", ".join(_fields_of(annotation, []))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _metadata(field: FieldInfo) -> list[Any]:
    found = list(field.metadata)
    for part in get_args(field.annotation):  # Annotated inside a union: Positive | None
        if get_origin(part) is typing.Annotated:
            found += get_args(part)[1:]
    flat = []
    for item in found:
        flat += item.metadata if isinstance(item, FieldInfo) else [item]
    return flat


def choices(annotation: Any) -> list[str]:
    """The values that an annotation spells out (Literal); none where it does not."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in choices(part)]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field's annotation names: one, or those of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def _tag(model: type[BaseModel]) -> Any:
    """The `name` of a union's model, which pydantic puts into error locations to tell the models apart."""
    field = model.model_fields.get("name")
    return None if field is None else field.default


def _without_tags(names: list[str], model: type[BaseModel]) -> list[str]:
    """A location as its user writes it: without the tags of a union's models."""
    return [name for i, name in enumerate(names) if i == 0 or not _is_tag(names[:i], name, model)]


def _is_tag(before: list[str], name: str, model: type[BaseModel]) -> bool:
    field = field_at(model, before)
    members = [] if field is None else models_in(field.annotation)
    return len(members) > 1 and name in map(_tag, members)


def _fields_of(model: type[BaseModel], names: list[str]) -> list[str]:
    if not names:
        return [name for name, field in model.model_fields.items() if not field.exclude]
    field = field_at(model, names)
    members = [] if field is None else models_in(field.annotation)
    if tagged := [member for member in members if len(members) > 1 and _tag(member) == names[-1]]:
        members = tagged
    return list(dict.fromkeys(name for member in members for name in _fields_of(member, [])))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

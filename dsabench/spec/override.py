"""The values of `--set FIELD=VALUE`, text to the letter, anything else as YAML; and those of `--tune-over`."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from ruamel.yaml.scanner import Scanner

from dsabench.errors import SpecError
from dsabench.spec import yaml_file
from dsabench.spec.messages import models_in
from dsabench.spec.run import RunSpec, settings_class
from dsabench.spec.sweep import PARENT
from dsabench.spec.tune import TuneSpec

_SINGLE = re.compile(r"'((?:[^']|'')*)'")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})")


def parse_override(text: str, kinds: Iterable[Any] = ()) -> tuple[str, Any]:
    """The field path and the value of `a.b=value`.

    A field of the attention is that of the first of `kinds` that has one of this name. A field of type text (or one of
    several words) takes what follows `=` to the letter, without the quotes around it if it is wholly quoted; where it
    may also be null, the bare word null is that. A list of texts is a YAML list whose items are all text. Any other
    field takes a YAML value, and so does one that may be text or something else, where YAML finds that.
    """
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not path:
        raise SpecError(f"--set {text}: expected FIELD=VALUE, for example --set train.steps=500")
    return path, _value(value, [part for one in _annotations(path, kinds) for part in _parts(one)], f"--set {path}")


def parse_over(texts: list[str]) -> dict[str, Any]:
    """The fields of `--tune-over`: `train.learning_rate=1e-4..1e-2` is a range, even in the logarithm where it is above
    0; `attention.indexer.warmup_share=0|0.2|0.4` are choices, each a YAML value. Raises SpecError."""
    found: dict[str, Any] = {}
    for text in texts:
        path, equals, value = (part.strip() for part in text.partition("="))
        if not path or not equals or not value:
            raise SpecError(
                f"--tune-over {text}: expected FIELD=LOW..HIGH or FIELD=A|B|C, for example "
                "--tune-over train.learning_rate=1e-4..1e-2"
            )
        if path in found:
            raise SpecError(f"--tune-over {text}: {path} is given twice; keep one")
        if limits := _RANGE.fullmatch(value):
            low, high = float(limits[1]), float(limits[2])
            found[path] = {"low": low, "high": high, "scale": "log" if low > 0 else "linear"}
        else:
            found[path] = [parse_override(f"{path}={one.strip()}")[1] for one in value.split("|")]
    return found


def unquoted(text: str) -> str | None:
    """The text inside quotes that enclose the whole of `text`, as YAML reads it; None for any other text."""
    if single := _SINGLE.fullmatch(text):
        return single[1].replace("''", "'")
    if double := _DOUBLE.fullmatch(text):
        with suppress(KeyError, ValueError):  # an escape that YAML has not, or half a character: no quoted text
            inside = _ESCAPE.sub(_character, double[1])
            return inside.encode("utf-16-le", "surrogatepass").decode("utf-16-le")  # JSON writes some in two halves
    return None


def _character(escape: re.Match[str]) -> str:
    if escape[4]:
        return str(Scanner.ESCAPE_REPLACEMENTS[escape[4]])
    return chr(int(escape[1] or escape[2] or escape[3], 16))


def _value(text: str, parts: list[Any], name: str) -> Any:
    accepted = {kind for part in parts for kind in _types(part)}
    if str not in accepted:
        lists = [[*_parts(get_args(part)[0])] for part in parts if get_origin(part) is list]
        return yaml_file.scalar(text, name, texts=any(_types(item) == {str} for items in lists for item in items))
    if (inside := unquoted(text)) is not None:
        return inside
    if types.NoneType in accepted and text == "null":
        return None
    if others := accepted - {str, types.NoneType}:
        with suppress(SpecError):
            if type(found := yaml_file.scalar(text, name)) in others:
                return found
    return text


def _annotations(path: str, kinds: Iterable[Any]) -> list[Any]:
    """The types of the field at `path`: of several where the path leads through a union; none of an unknown field."""
    names = path.removeprefix(PARENT).split(".")
    if names[0] == "attention" and len(names) > 1:
        if names[1] == "kind":
            return [str]
        for kind in kinds:
            with suppress(SpecError):  # an unknown kind is refused where it is asked for
                if found := _inside([settings_class(kind)], names[1:]):
                    return found
        return []
    return _inside([TuneSpec], names[1:]) if names[0] == "tune" and names[1:] else _inside([RunSpec], names)


def _inside(models: Sequence[type[BaseModel]], names: list[str]) -> list[Any]:
    found = [model.model_fields[names[0]].annotation for model in models if names[0] in model.model_fields]
    if len(names) == 1:
        return found
    return _inside([model for one in found for model in models_in(one)], names[1:])


def _parts(annotation: Any) -> Iterator[Any]:
    """The members of a union, without what is only annotated."""
    if get_origin(annotation) is typing.Annotated:
        yield from _parts(get_args(annotation)[0])
    elif get_origin(annotation) in (types.UnionType, typing.Union):
        for part in get_args(annotation):
            yield from _parts(part)
    else:
        yield annotation


def _types(part: Any) -> set[type]:
    """The types of the YAML values that a part of an annotation takes."""
    if get_origin(part) is Literal:
        return {type(choice) for choice in get_args(part)}
    kind = get_origin(part) or part
    if kind is float:
        return {float, int}
    if not isinstance(kind, type):
        return set()
    return {dict} if issubclass(kind, BaseModel) else {kind}

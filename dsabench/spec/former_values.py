"""Former values of fields whose default changed: what older records mean, and what their identities were made of.

A field that came later, or whose default was corrected, is marked with the value that every earlier run had:

    norm_eps: Annotated[float, Field(gt=0), Formerly(1e-5)] = 1e-6

A record without the field then means the former value, and a run with the former value has the identity that it had
before the field was there. A run with the new default has an identity of its own, and is no pair of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from dsabench.spec.attention import BUILT_IN, AttentionSpec, HybridSpec
from dsabench.spec.run import RunSpec
from dsabench.spec.strict_model import Formerly, Spec
from dsabench.spec.tasks import TASK_PREFIX, TASKS


def with_former_values(
    values: Mapping[str, Any], plugins: Mapping[str, type[AttentionSpec]] = MappingProxyType({})
) -> dict[str, Any]:
    """`values` of a stored RunSpec, the marked fields that they lack filled in.

    plugins: the settings classes of attentions that are not built in; without them such an attention stays as it is,
    as do an unknown task and what is not a mapping: nothing is validated.
    """
    filled = _filled(values, RunSpec)
    attention, data = filled.get("attention"), filled.get("data")
    if isinstance(attention, dict):
        filled["attention"] = _attention(attention, {**plugins, **BUILT_IN})
    if isinstance(data, dict) and isinstance(task := data.get("task"), dict):
        name = str(data.get("source")).removeprefix(TASK_PREFIX)
        if name in TASKS:
            filled["data"] = {**data, "task": _filled(task, TASKS[name])}
    return filled


def _attention(values: Any, kinds: Mapping[str, type[AttentionSpec]]) -> Any:
    """The settings of an attention, and in a hybrid those of its layers."""
    kind = kinds.get(str(values.get("kind"))) if isinstance(values, Mapping) else None
    if kind is None:
        return values
    filled = _filled(values, kind)
    if kind is HybridSpec:
        lists = {name: filled[name] for name in ("first_layers", "layers") if isinstance(filled.get(name), list)}
        filled |= {name: [_attention(layer, kinds) for layer in layers] for name, layers in lists.items()}
    return filled


def former_values(spec: Spec, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(field path, former value) of every marked field of a spec and of the specs in it."""
    for name, field in type(spec).model_fields.items():
        yield from ((f"{prefix}{name}", mark.value) for mark in field.metadata if isinstance(mark, Formerly))
        if isinstance(inner := getattr(spec, name, None), Spec):
            yield from former_values(inner, f"{prefix}{name}.")


def _filled(values: Mapping[str, Any], model: type[Spec]) -> dict[str, Any]:
    filled = dict(values)
    for name, field in model.model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, Formerly):
                filled.setdefault(name, mark.value)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Spec) and name in filled:
            inner = filled[name]
            filled[name] = _filled(inner, field.annotation) if isinstance(inner, Mapping) else inner
    return filled

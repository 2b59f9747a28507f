"""The values that the fields of a record can have, beside their types: counts, shares, times, specs, rungs.

A value that no run can have (a length of 0, an accuracy of 7, a time before 1970) would reach every table and figure of
the whole store as a number like any other. So it is refused where the record is read: that run alone is unreadable.
NaN and infinities stay where training can meet them (`Metric.finite`).
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from dsabench.metrics import METRICS, Metric
from dsabench.plain import EXACT
from dsabench.spec.attention import BUILT_IN
from dsabench.spec.attention.settings_by_name import HYBRID
from dsabench.spec.messages import accepted, models_in
from dsabench.spec.run import RunSpec
from dsabench.spec.tasks import TASK_PREFIX, TASKS

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
"""As those of the specs: see spec.strict_model."""

COUNTS = ("vocab_size", "batch_size", "tokens_per_step", "micro_batch")
"""Entries of a summary that are no metrics, and are whole numbers of 1 or more."""


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_step(value: Any) -> bool:
    """Whether it can be the step of a metrics record."""
    return is_whole(value) and 0 <= value <= EXACT


def check_order(order: Any) -> Any:
    """`order`, which is no bool; ValueError."""
    if isinstance(order, bool):
        raise ValueError(f"{order} is not accepted; accepted: a whole number")
    return order


def check_time(time: Any) -> Any:
    """`time` as text or a datetime, which JSON numbers are not; ValueError."""
    if not isinstance(time, str | datetime):
        raise ValueError(f"{shown(time)} is not accepted; accepted: a date and time as text")
    return time


def check_year(time: datetime) -> datetime:
    """`time`, which is none before 1970; ValueError."""
    if time.year < 1970:
        raise ValueError(f"{time.isoformat()} is not accepted; accepted: a time from 1970 on")
    return time


def check_spec(spec: Mapping[str, Any]) -> None:
    """Every field that this version knows has a value that a run can have; fields of other versions may have any.

    Words pass wherever a field takes words: a later version may have more of them. So do the fields of an attention
    that is not built in, but for numbers that are none or too large.

    Raises:
        ValueError: names the field, its value, and what is accepted.
    """
    _check_fields(spec, RunSpec, "")
    attention, data = spec.get("attention"), spec.get("data")
    if isinstance(attention, Mapping):
        _check_attention(attention, "attention")
        for name in ("first_layers", "layers"):
            layers = attention.get(name) if attention.get("kind") == HYBRID else None
            for i, layer in enumerate(layers if isinstance(layers, list) else []):
                if not isinstance(layer, Mapping):
                    raise ValueError(f"attention.{name}[{i}] = {shown(layer)} is not accepted; accepted: a mapping")
                _check_attention(layer, f"attention.{name}[{i}]")
    if isinstance(data, Mapping) and (task := data.get("task")) is not None:
        name = str(data.get("source")).removeprefix(TASK_PREFIX)
        if not isinstance(task, Mapping):
            raise ValueError(f"data.task = {shown(task)} is not accepted; accepted: a mapping of its fields")
        if name in TASKS:
            _check_fields(task, TASKS[name], "data.task.")
        else:
            _check_numbers(task, "data.task")


def check_summary(summary: Mapping[str, Any]) -> None:
    """Every metric of a summary has a value that it can have; those that are no metrics of this version may have any.

    Raises:
        ValueError: names the entry, its value, and what is accepted.
    """
    for name, value in summary.items():
        if value is None:
            continue
        if name in COUNTS and not (is_whole(value) and 1 <= value <= EXACT):
            raise ValueError(f"{name} = {shown(value)} is not accepted; accepted: a whole number at least 1")
        if (metric := METRICS.get(name)) is None:
            continue
        if metric.dtype == "Int64" and not is_whole(value):
            raise ValueError(f"{name} = {shown(value)} is not a whole number")
        if type(value) not in (int, float):
            raise ValueError(f"{name} = {shown(value)} is not a number")
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            raise ValueError(f"{name} is a number of {value.bit_length()} bits, beyond every float")
        if not fits(metric, value):
            raise ValueError(f"{name} = {shown(value)} is not accepted; accepted: {metric.range}")


def odd_value(records: Iterable[Mapping[str, Any]]) -> str | None:
    """The first metric of metrics records whose number is none that it can have: `step 3: val_loss = -1.0 is ...`."""
    for record in records:
        for name, value in record.items():
            metric = METRICS.get(name)
            if metric is not None and type(value) in (int, float) and not fits(metric, value):
                step = record.get("step")
                return f"step {step}: {name} = {shown(value)} is not accepted; accepted: {metric.range}"
    return None


def fits(metric: Metric, value: float) -> bool:
    """Whether a run can record this number as this metric."""
    if isinstance(value, int):
        return abs(value) <= (EXACT if metric.dtype == "Int64" else sys.float_info.max) and metric.has(float(value))
    return metric.has(value)


def check_run_ids(run_ids: list[str]) -> list[str]:
    """`run_ids` of a sweep, which has a run; ValueError."""
    if not run_ids:
        raise ValueError("the list is empty; accepted: the ids of one or more runs")
    return run_ids


def check_rungs(rungs: dict[str, list[str]], run_ids: Iterable[str] | None) -> dict[str, list[str]]:
    """`rungs` of a sweep, each of which has runs, and they are the sweep's (None: they are not known); ValueError."""
    known = None if run_ids is None else set(run_ids)
    for name, runs in rungs.items():
        if not runs:
            raise ValueError(f"rung {shown(name)} has no runs; accepted: the ids of one or more runs")
        if known is not None and (others := [run for run in runs if run not in known]):
            raise ValueError(f"rung {shown(name)} has {shown(others[0])}, which is none of the sweep's run_ids")
    return rungs


def shown(value: Any) -> str:
    """`value` as Python writes it, cut to a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_attention(attention: Mapping[str, Any], path: str) -> None:
    if kind := BUILT_IN.get(str(attention.get("kind", ""))):
        _check_fields(attention, kind, f"{path}.")
    else:
        _check_numbers(attention, path)


def _check_fields(values: Mapping[str, Any], model: type[BaseModel], prefix: str) -> None:
    """The fields of `values` that `model` has, and of mappings in them those of the one model that they are."""
    for name, value in values.items():
        if (check := _checks(model).get(name)) is None:
            continue
        if check.inner is not None and isinstance(value, Mapping):
            _check_fields(value, check.inner, f"{prefix}{name}.")
        elif not check.passes(value):
            raise ValueError(f"{prefix}{name} = {shown(value)} is not accepted; accepted: {accepted(check.field)}")


class _Check(NamedTuple):
    """What one field of a spec takes."""

    field: FieldInfo
    adapter: TypeAdapter[Any] | None
    """Of a single value; None where the field holds a mapping."""

    inner: type[BaseModel] | None
    """The model of the mapping; None where it is one of several."""

    words: bool
    """Whether words are accepted."""

    def passes(self, value: Any) -> bool:
        if self.adapter is None:
            return isinstance(value, Mapping) or (value is None and type(None) in get_args(self.field.annotation))
        if (isinstance(value, str) and self.words) or (is_whole(value) and abs(value) > EXACT):
            return isinstance(value, str)
        try:
            self.adapter.validate_python(value)
        except ValidationError:
            return False
        return True


@functools.cache
def _checks(model: type[BaseModel]) -> dict[str, _Check]:
    """The checks of a model's fields, by their names."""
    found = {}
    for name, field in model.model_fields.items():
        models = models_in(field.annotation)
        kind: Any = field.annotation
        for mark in field.metadata:
            kind = Annotated[kind, mark]
        adapter: TypeAdapter[Any] | None = None if models else TypeAdapter(kind, config=_STRICT)
        found[name] = _Check(field, adapter, models[0] if len(models) == 1 else None, _takes_words(field.annotation))
    return found


def _takes_words(annotation: Any) -> bool:
    return annotation is str or any(isinstance(part, str) or _takes_words(part) for part in get_args(annotation))


def _check_numbers(value: Any, path: str) -> None:
    """Every number in a field that this version does not know is finite, and exact in every program."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_numbers(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner, path)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path} = {value} is not accepted; accepted: a finite number")
    elif is_whole(value) and abs(value) > EXACT:
        raise ValueError(f"{path} = {shown(value)} is not accepted; accepted: a whole number of at most 2^53")

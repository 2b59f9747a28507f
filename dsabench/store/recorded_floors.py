"""The floors of tasks beside what runs recorded: earlier versions recorded a guess that was lower than the floor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from dsabench.spec.task_floors import Floor
from dsabench.spec.tasks import TASK_PREFIX, TASKS

RECORDED = "recorded."
"""Before the name of a metric: the number that its run recorded, where the table has the floor in its stead."""


def with_floors(summary: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """`summary` of a run with the floor that its spec has; what was recorded otherwise is kept under RECORDED."""
    floor = _floor_of(spec)
    values = dict(summary)
    if floor is None or summary.get("chance_accuracy") is None:
        return values
    for name, value in (("chance_accuracy", floor.accuracy), ("unigram_loss", floor.loss)):
        recorded = summary.get(name)
        if recorded is not None and not math.isclose(recorded, value, rel_tol=1e-9):
            values |= {name: value, RECORDED + name: recorded}
    return values


def _floor_of(spec: Mapping[str, Any]) -> Floor | None:
    """The floor of a stored spec's task; None of a text, and of a task or settings that this version does not have."""
    data = spec.get("data")
    task = data.get("task") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(task, Mapping):
        return None
    name = str(data.get("source")).removeprefix(TASK_PREFIX)
    try:
        return TASKS[name].model_validate(dict(task)).floor if name in TASKS else None
    except ValidationError:
        return None

"""The tasks with known answers: each one's settings, alphabet and floor, a file each."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from dsabench.spec.task_settings import TaskSettings
from dsabench.spec.tasks.arithmetic_settings import Arithmetic
from dsabench.spec.tasks.common_words_settings import CommonWords
from dsabench.spec.tasks.compositional_settings import Compositional
from dsabench.spec.tasks.forgetting_settings import Forgetting
from dsabench.spec.tasks.induction_settings import Induction
from dsabench.spec.tasks.mqar_settings import Mqar
from dsabench.spec.tasks.multi_needle_settings import MultiNeedle
from dsabench.spec.tasks.needle_settings import Needle
from dsabench.spec.tasks.queries import asked
from dsabench.spec.tasks.recall_settings import Recall
from dsabench.spec.tasks.selective_copy_settings import SelectiveCopy
from dsabench.spec.tasks.variable_tracking_settings import VariableTracking

__all__ = [
    "TASKS",
    "TASK_PREFIX",
    "Arithmetic",
    "CommonWords",
    "Compositional",
    "Forgetting",
    "Induction",
    "Mqar",
    "MultiNeedle",
    "Needle",
    "Recall",
    "SelectiveCopy",
    "Task",
    "TaskSettings",
    "VariableTracking",
    "asked",
    "task_name",
]

Task = Annotated[
    Recall
    | Induction
    | Needle
    | SelectiveCopy
    | Arithmetic
    | Forgetting
    | Compositional
    | MultiNeedle
    | VariableTracking
    | CommonWords
    | Mqar,
    Field(discriminator="name"),
]
"""The settings of any task."""

TASKS: dict[str, type[TaskSettings]] = {task.model_fields["name"].default: task for task in get_args(get_args(Task)[0])}
"""Every task's settings by its name."""

TASK_PREFIX = "task:"
"""What `data.source` begins with when it names a task."""


def task_name(source: str) -> str | None:
    """The task that a `data.source` names; None for a text. Raises ValueError naming what there is."""
    if not source.startswith(TASK_PREFIX):
        return None
    name = source.removeprefix(TASK_PREFIX)
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; known: {', '.join(TASKS)}")
    return name

"""Settings of tasks for tests."""

from __future__ import annotations

from typing import Any

from dsabench.spec.task_settings import TaskSettings
from dsabench.spec.tasks import TASKS


def settings_of(name: str, values: dict[str, Any] | None = None) -> TaskSettings:
    """A task's settings by its name, validated."""
    return TASKS[name].model_validate(values or {})

"""The spec of a run's parent, made from the run's own spec."""

from __future__ import annotations

from typing import Any

from dsabench.spec.run import RunSpec, settings_class
from dsabench.spec.sweep import Sweep

_ORIGIN = "start.parent: "


def parent_spec(spec: RunSpec) -> RunSpec | None:
    """The spec with the fields of `start.parent` changed, which starts from drawn weights; None without such a parent.

    As with `--attention`, a changed `attention.kind` keeps the fields that the new kind has too. Raises SpecError.
    """
    if spec.start is None or spec.start.parent is None:
        return None
    changes = spec.start.parent
    values: dict[str, Any] = spec.model_dump(mode="json", exclude={"start"})
    if (kind := changes.get("attention.kind")) is not None:
        stacks = {name: changes.get(f"attention.{name}") for name in ("first_layers", "layers")}
        owners = settings_class(kind, _ORIGIN).field_owners({**values["attention"], **stacks})
        owned = {name for owner in owners for name in owner.model_fields}
        values["attention"] = {name: value for name, value in values["attention"].items() if name in owned}
    parent = Sweep(values, {})
    for path in sorted(changes, key=lambda path: path != "attention.kind"):
        parent.set(path, changes[path], _ORIGIN)
    return parent.first()

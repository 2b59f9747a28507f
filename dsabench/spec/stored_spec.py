"""The spec of a stored run. A record may be somebody else's, so it is validated like any spec.

It may name plugin files, which are code. Opening a run executes them only when its attention is not built in, and so
cannot be built without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsabench.spec.attention import kind_of
from dsabench.spec.former_values import with_former_values
from dsabench.spec.run import RunSpec, validate


def stored_spec(values: Mapping[str, Any], run_id: str) -> RunSpec:
    """The RunSpec of run `run_id`, whose record holds `values`. Executes `needed_plugins`.

    Raises SpecError that names the run; inside `no_plugins` for a run that needs a plugin.
    """
    values = {**with_former_values(values), "plugins": needed_plugins(values)}
    spec = validate(values, lambda path: f"run {run_id}: ")
    if spec.plugins:  # their settings are known now
        values = with_former_values(values, {one.kind: type(one) for one in spec.attention.distinct()})
        spec = validate(values, lambda path: f"run {run_id}: ")
    return spec


def needed_plugins(values: Mapping[str, Any]) -> Any:
    """The plugin files that opening a run executes: those that its record names, or none for a built-in attention."""
    from dsabench.attention.registry import is_built_in

    attention = values.get("attention", {})
    if not isinstance(attention, Mapping):
        return values.get("plugins", [])
    lists = [attention.get(name) for name in ("first_layers", "layers")]
    layers = [one for layers in lists if isinstance(layers, list) for one in layers]
    kinds = [kind_of(attention), *(one.get("kind") if isinstance(one, Mapping) else one for one in layers)]
    return [] if all(is_built_in(kind) for kind in kinds) else values.get("plugins", [])

"""The rotary embedding of a model that others trained, from its config.json: base and llama3 scaling."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsabench.errors import CheckpointError

_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_length",
}


def rope_fields(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """rope_base and rope_scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    new, old = values.get("rope_parameters") or {}, values.get("rope_scaling") or {}
    if not isinstance(new, dict) or not isinstance(old, dict):
        raise CheckpointError(f"{path}: rope_parameters and rope_scaling are mappings or null")
    for name in sorted({"rope_type", *new} & {"rope_type", *old}) if new and old else ():
        one, other = ((_rope_type(given) if name == "rope_type" else given[name]) for given in (new, old))
        if one != other:
            raise CheckpointError(
                f"{path}: {name} = {brief(one)} of rope_parameters and {brief(other)} of rope_scaling contradict"
            )
    parameters = {**old, **new}
    theta = [given["rope_theta"] for given in (parameters, values) if given.get("rope_theta") is not None]
    if len(theta) == 2 and theta[0] != theta[1]:
        inner = "rope_parameters" if "rope_theta" in new else "rope_scaling"
        raise CheckpointError(f"{path}: {inner}.rope_theta = {theta[0]} and rope_theta = {theta[1]} contradict")
    kind = _rope_type(parameters)
    if kind not in ("default", "llama3"):
        raise CheckpointError(f"{path}: rope_type = {brief(kind)} cannot be read; accepted: default, llama3")
    known = {"rope_type", "type", "rope_theta", *_SCALING}
    share = [given.get("partial_rotary_factor") for given in (parameters, values)]
    for name, value in parameters.items():
        if name not in known and value is not None and not (name == "partial_rotary_factor" and value == 1):
            raise CheckpointError(f"{path}: {name} = {brief(value)} of the rotary embedding cannot be read")
    if any(value not in (None, 1) for value in share):
        raise CheckpointError(f"{path}: partial_rotary_factor is not 1; here whole heads are rotated")
    found: dict[str, Any] = {"rope_base": theta[0] if theta else 10_000.0, "rope_scaling": None}
    if kind == "llama3":
        if absent := [name for name in _SCALING if parameters.get(name) is None]:
            raise CheckpointError(f"{path}: the llama3 scaling of the rotary embedding lacks {', '.join(absent)}")
        found["rope_scaling"] = {ours: parameters[theirs] for theirs, ours in _SCALING.items()}
    return found


def _rope_type(parameters: Mapping[str, Any]) -> Any:
    return parameters.get("rope_type", parameters.get("type", "default"))


def brief(value: Any) -> str:
    """A value of config.json as an error shows it: JSON of at most 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."

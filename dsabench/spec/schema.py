"""The JSON Schema of a config file: its parts from base to tune, with each registered attention's own fields."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from dsabench.spec.messages import models_in
from dsabench.spec.run import RunSpec
from dsabench.spec.tune import TuneSpec
from dsabench.spec.verdict import VerdictSpec


def config_schema() -> dict[str, Any]:
    """Draft 2020-12 schema of `{base: RunSpec, axes: {field path: [values]}, verdict: VerdictSpec, ladder: {rung:
    {field path: value}}, tune: TuneSpec}`; nothing is required."""
    from dsabench.attention.registry import kinds, spec_class

    variants = [spec_class(kind) for kind in kinds()]
    models: list[type[BaseModel]] = [RunSpec, VerdictSpec, TuneSpec, *variants]
    named, definitions = models_json_schema([(model, "validation") for model in models])
    defs = definitions["$defs"]
    references = [named[(variant, "validation")] for variant in variants]
    run = defs["RunSpec"]
    described = run["properties"]["attention"]
    run["properties"]["attention"] = {"description": described.get("description", ""), "anyOf": references}
    # A hybrid's entries are names or settings; its other fields are those of its entries.
    hybrid = defs["HybridSpec"]
    entry = {"anyOf": [{"enum": kinds()}, *references]}
    for name in ("first_layers", "layers"):
        hybrid["properties"][name]["items"] = entry
    hybrid["additionalProperties"] = True
    paths = set(_paths(RunSpec, ""))
    for variant in variants:
        paths.update(_paths(variant, "attention."))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dsabench config",
        "description": "A sweep: one RunSpec as `base`, `axes` (field paths and values to combine), its `verdict`, and "
        "perhaps a `ladder` or a search (`tune`).",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "base": {"$ref": "#/$defs/RunSpec"},
            "axes": {
                "type": "object",
                "description": "Field path to a list of values; the runs are all combinations.",
                "propertyNames": {"enum": sorted(paths)},
                "additionalProperties": {"type": "array", "minItems": 1, "uniqueItems": True},
            },
            "verdict": {"$ref": "#/$defs/VerdictSpec"},
            "ladder": {
                "type": "object",
                "description": "Named rungs; each changes fields (an axis takes a list of values) and keeps what the "
                "rungs before it changed.",
                "additionalProperties": {"type": ["object", "null"], "propertyNames": {"enum": sorted(paths)}},
            },
            "tune": {"$ref": "#/$defs/TuneSpec"},
        },
        "$defs": defs,
    }


def _paths(model: type[BaseModel], prefix: str) -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        if field.exclude:  # not to be given
            continue
        models = models_in(field.annotation)
        for inner in models:
            found += _paths(inner, f"{prefix}{name}.")
        if not isinstance(field.annotation, type) or not models:  # a value, or null in a model's place
            found.append(f"{prefix}{name}")
    return found

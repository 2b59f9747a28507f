"""The JSON Schema that `dsabench schema` prints."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from dsabench.attention.registry import kinds, spec_class
from dsabench.spec.run import RunSpec
from dsabench.spec.schema import config_schema


def models(model: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [f.annotation for f in model.model_fields.values()]
    return [model, *(m for i in inner if isinstance(i, type) and issubclass(i, BaseModel) for m in models(i))]


def test_every_field_is_documented() -> None:
    for root in (RunSpec, *map(spec_class, kinds())):
        for model in models(root):
            for name, field in model.model_fields.items():
                assert field.description, f"{model.__name__}.{name}"


def test_the_schema_names_every_path_and_variant() -> None:
    schema: dict[str, Any] = config_schema()
    paths = schema["properties"]["axes"]["propertyNames"]["enum"]
    for path in (
        "length",
        "seed",
        "attention.kind",
        "attention.top_k_ratio",
        "attention.indexer.loss",
        "train.learning_rate",
    ):
        assert path in paths
    assert {"DenseSpec", "DSASpec", "RunSpec", "TrainSpec"} <= schema["$defs"].keys()
    assert schema["$defs"]["TrainSpec"]["properties"]["steps"]["description"]

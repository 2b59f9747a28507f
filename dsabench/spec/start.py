"""StartSpec: the trained model that a run starts from, in place of drawn weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, model_validator

from dsabench.spec.strict_model import Spec

_OF_THE_CHILD = ("start", "seed", "engine", "plugins")
"""Parts of a spec in which a parent is as its child."""


def _flat(value: Any) -> Any:
    """{train: {steps: 5}} and {train.steps: 5} say the same; of two values for one field the later counts."""
    if not isinstance(value, Mapping):
        return value
    found: dict[str, Any] = {}
    for name, inner in value.items():
        for path, one in _below(str(name), inner):
            found.pop(path, None)
            found[path] = one
    return found


def _below(path: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(path, value)]
    return [pair for name, inner in value.items() for pair in _below(f"{path}.{name}", inner)]


class StartSpec(Spec):
    """A trained model: one of `parent`, `run` and `checkpoint`.

    Parameters that both models have are the trained model's to the bit, the others are drawn as always. The optimizer
    starts anew, and step s of the run trains on the batch of step P + s, where P steps are behind the trained model.
    """

    parent: Annotated[dict[str, Any], BeforeValidator(_flat)] | None = None
    """Field paths and values: the parent is the run of this very spec with these fields changed, of the same seed. A
    sweep trains it first, once for all runs that start from it."""

    run: str | None = None
    """A done run of the same store, by its id."""

    checkpoint: str | None = None
    """A run's folder in any store, or a checkpoint's; or a model that others trained, of the architecture of Llama,
    Qwen2 or Qwen3: a folder of `transformers` (config.json and safetensors), or `hf:NAME[@REVISION]` of the Hugging
    Face Hub (extra `hf`). The fields of `model` and `data.tokenizer` are then that model's own."""

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'nothing'} is given; accepted: one of parent, run, checkpoint")
        return self

    @model_validator(mode="after")
    def _changes_what_a_parent_has(self) -> Self:
        if self.parent is not None and not self.parent:
            raise ValueError(
                "parent = {} changes nothing; accepted: field paths with values, such as train.steps: 2000"
            )
        for path in self.parent or {}:
            if path.split(".")[0] in _OF_THE_CHILD:
                raise ValueError(f"parent changes {path}; a parent has the {path.split('.')[0]} of its children")
        return self

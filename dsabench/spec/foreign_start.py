"""The fields of a spec whose `start.checkpoint` is a model that others trained: its config.json and tokenizer decide.

A field that somebody gave and that says something else is an error; one that only a shipped config says gives way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dsabench.errors import SpecError
from dsabench.spec.foreign_config import DECIDED
from dsabench.spec.foreign_folder import foreign_config, is_foreign, pinned
from dsabench.spec.tasks import TASK_PREFIX


def with_foreign_model(
    values: Mapping[str, Any], is_given: Callable[[str], bool], where: Callable[[str], str] = lambda path: ""
) -> dict[str, Any]:
    """The nested plain values of a spec, with the model fields and the tokenizer of the foreign model that it starts
    from; as they are where it starts from none. A model of the hub gets the commit that was found.

    is_given(path): whether the user set the field, and no shipped config. where(path): what to put before a problem
    with it. Raises SpecError for a field that contradicts the model, CheckpointError for a model that cannot be read.
    """
    start, model, data = (values.get(name) or {} for name in ("start", "model", "data"))
    if not all(isinstance(part, Mapping) for part in (start, model, data)):
        return dict(values)  # which validation refuses
    name = start.get("checkpoint")
    if not isinstance(name, str) or not is_foreign(name):
        return dict(values)
    found = foreign_config(name)
    kept = {field: value for field, value in model.items() if field not in DECIDED or is_given(f"model.{field}")}
    filled = {
        **values,
        "start": {**start, "checkpoint": pinned(name, found.folder)},
        "model": found.agreed(kept, where),
    }
    if not str(data.get("source", "")).startswith(TASK_PREFIX):  # a task has ids of its own
        tokenizer = data.get("tokenizer") if is_given("data.tokenizer") else None
        try:
            chosen = found.tokenizer_agreed(None if tokenizer is None else str(tokenizer))
        except SpecError as error:
            raise SpecError(f"{where('data.tokenizer')}{error}") from error
        filled["data"] = {**data, "tokenizer": chosen}
    return filled

"""The command that runs a stored spec again, and which of its fields differ from the defaults. Loads no torch.

The spec is a record's plain mapping: any variant's, and perhaps an older version's.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from dsabench.errors import SpecError
from dsabench.plain import escaped
from dsabench.spec import yaml_file
from dsabench.spec.attention import BUILT_IN
from dsabench.spec.data_settings import DataSpec
from dsabench.spec.identity import flatten
from dsabench.spec.run import EngineSpec, ModelSpec, RunSpec, TrainSpec
from dsabench.spec.start import StartSpec
from dsabench.spec.tasks import task_name

TRAIN_SELECTING = "dsabench train --config quick --attention dsa"
"""The command that is advised where no run selects: minutes on a CPU, on which the default config takes hours."""

_FLAGS = {"attention.kind": "--attention", "length": "--length", "seed": "--seed"}
_STANDS_FOR = {
    "train.tokens_per_step": "train.batch_size",
    "attention.top_k_ratio": "attention.top_k",
    "attention.indexer.warmup_share": "attention.indexer.warmup_steps",
}
"""Field -> the field that may stand in its place; when that one is given, null for the first need not be."""


def non_default(spec: Mapping[str, Any]) -> dict[str, Any]:
    """{field path: value} of the fields that differ from their defaults, and of those without a known default.

    The defaults of a user's own attention are not known: all its fields are there.
    """
    sections = {"model": ModelSpec(), "data": _default_data(spec), "train": TrainSpec(), "engine": EngineSpec()}
    default: dict[str, Any] = {name: section.model_dump(mode="json") for name, section in sections.items()}
    default |= {
        name: RunSpec.model_fields[name].get_default() for name in ("length", "seed", "plugins", "allow_leak", "start")
    }
    default["attention"] = _defaults_of(_kind(spec))
    default["data"]["source"] = DataSpec().source
    defaults = flatten(default) | {f"start.{name}": None for name in StartSpec.model_fields}
    missing = object()
    return {
        path: value
        for path, value in flatten(dict(spec)).items()
        if type(value) is not type(known := defaults.get(path, missing)) or value != known
    }


def _defaults_of(kind: str) -> dict[str, Any]:
    """The defaults of a built-in attention's settings; {} for a user's own, whose defaults are not known."""
    # Not validated: a hybrid has no default of its layers.
    return BUILT_IN[kind].model_construct(kind=kind).model_dump(mode="json", warnings=False) if kind in BUILT_IN else {}


def _default_data(spec: Mapping[str, Any]) -> DataSpec:
    """The defaults of a text, or of the task that the spec names."""
    data = spec.get("data")
    source = str(data.get("source")) if isinstance(data, Mapping) else ""
    try:
        return DataSpec(source=source) if task_name(source) else DataSpec()
    except ValueError:  # a newer version's task
        return DataSpec()


def command_words(spec: Mapping[str, Any]) -> list[str]:
    """The words of the `dsabench train` command for this spec: every field that differs from the default config.

    Paths in it (`path:` sources, plugins) are those of the record, and so is every text: escape the words before a
    terminal shows them.
    """
    different = non_default(spec)
    words = ["dsabench", "train"]
    attention = spec.get("attention", {})
    built_in = isinstance(attention, Mapping) and _kind(spec) in BUILT_IN
    if built_in:
        words += ["--attention", _kind(spec)]
    words += [word for path in ("length", "seed") if path in spec for word in (_FLAGS[path], str(spec[path]))]
    settings = {path: value for path, value in different.items() if path not in _FLAGS}
    if not built_in:  # as a whole: the default config's fields are another variant's
        settings = {path: value for path, value in settings.items() if path.split(".")[0] != "attention"}
        settings["attention"] = attention
    for path, value in settings.items():
        if value is not None or settings.get(_STANDS_FOR.get(path, "")) is None:
            words += ["--set", f"{path}={_yaml(value)}"]
    return words


def spec_as_command(spec: Mapping[str, Any]) -> str:
    """`command_words` as one line for a POSIX shell."""
    return shlex.join(command_words(spec))


def _kind(spec: Mapping[str, Any]) -> str:
    attention = spec.get("attention", {})
    return str(attention.get("kind", "dsa")) if isinstance(attention, Mapping) else ""


def _yaml(value: Any) -> str:
    """`value` as YAML that `--set` reads as the same value, bare where that is enough."""
    if not isinstance(value, str):
        return _flow(value)
    try:
        bare = yaml_file.scalar(value, "") if value.isprintable() else None
    except SpecError:
        bare = None
    return value if bare == value and isinstance(bare, str) else _quoted(value)


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(str(key))}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, int | float) else _quoted(str(value))


def _quoted(text: str) -> str:
    # YAML reads the escapes that Python writes.
    return '"' + escaped(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'

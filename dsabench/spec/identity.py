"""The identity of a run as a short readable name: equal for two runs that are the same run."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from dsabench.spec.attention import AttentionSpec, HybridSpec
from dsabench.spec.data_settings import DataSpec
from dsabench.spec.former_values import former_values
from dsabench.spec.run import RunSpec

FORMAT = 1
"""Raised when a change to the model or the engine alters what a spec computes: old and new runs are then not one."""

_OUTSIDE = ("engine", "plugins", "start")
"""Fields that do not count: how a run is executed, and what names files and models whose content digests count."""


def run_id(spec: RunSpec, fingerprint: dict[str, str]) -> str:
    """<kind>-L<length>-s<seed>-<8 hex>.

    The hash covers the fields that differ from their defaults, so that a new field with a default renames no old run,
    and `fingerprint`, the content digests of corpus, tokenizer, plugin files and the model that it starts from. Engine,
    paths and names stay out.
    """
    values = flatten(spec.model_dump(mode="json"))
    # A plugin's field without a default is missing among the defaults, and so always counts.
    attention = type(spec.attention).model_construct(kind=spec.attention.kind)
    data = DataSpec() if spec.data.task is None else DataSpec.model_construct(task=type(spec.data.task)())
    default = RunSpec.model_construct(attention=attention, data=data)
    defaults = flatten(default.model_dump(mode="json", warnings=False))
    # A default that changed counts: what a run had before the change is what does not.
    defaults.update(former_values(default))
    identity = {
        path: value
        for path, value in _different(values, defaults).items()
        if path.split(".")[0] not in _OUTSIDE and not _is_a_path(path, value)
    }
    identity["attention.kind"] = spec.attention.kind
    if isinstance(spec.attention, HybridSpec):  # the stack that it comes to, however it was written
        identity.pop("attention.first_layers", None)
        layers = [spec.attention.at(layer) for layer in range(spec.model.n_layers)]
        identity["attention.layers"] = [_chosen(layer) for layer in layers]
    text = json.dumps([FORMAT, identity, fingerprint], sort_keys=True, separators=(",", ":"))
    return f"{spec.attention.kind}-L{spec.length}-s{spec.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _chosen(layer: AttentionSpec) -> dict[str, Any]:
    """The settings of one layer's attention that differ from their defaults, and its kind."""
    plain = type(layer).model_construct(kind=layer.kind)
    defaults = flatten(plain.model_dump(mode="json", warnings=False))
    defaults.update(former_values(plain))
    return {**_different(flatten(layer.model_dump(mode="json")), defaults), "kind": layer.kind}


def _different(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The values that are not their defaults, by path."""
    # Null where a mapping is the default is a choice too (no curriculum): the mapping's own fields are then absent.
    groups = {path.rsplit(".", n)[0]: "a mapping" for path in defaults for n in range(1, path.count(".") + 1)}
    return {path: value for path, value in values.items() if value != defaults.get(path, groups.get(path))}


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to {field path: value}; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        flat.update(flatten(value, f"{path}.") if isinstance(value, dict) else {path: value})
    return flat


def _is_a_path(path: str, value: Any) -> bool:
    """`path:` corpora and tokenizer files are known by their content digests, wherever they lie."""
    if path == "data.source":
        return str(value).startswith("path:")
    return path == "data.tokenizer" and value not in ("bpe", "bytes")

"""Specs and models by name: a config's RunSpec, its initial model, and the model of a stored run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsabench import data as data_package
from dsabench.engine import checkpoint
from dsabench.engine.random_state import kept_random_state
from dsabench.errors import StoreError
from dsabench.model.transformer import Transformer, build, outline
from dsabench.spec.config import DEFAULT_CONFIG, load_sweep
from dsabench.spec.run import RunSpec
from dsabench.spec.stored_spec import stored_spec
from dsabench.store import find_checkpoint, read_run


def load_spec(name_or_path: str = DEFAULT_CONFIG, overrides: Mapping[str, Any] | None = None) -> RunSpec:
    """The RunSpec of a config: the first value of each axis, unless `overrides` ({field path: value}) choose.

    Raises SpecError.
    """
    sweep = load_sweep(name_or_path)
    for path, value in sorted((overrides or {}).items(), key=lambda item: item[0] != "plugins"):  # kinds come from them
        sweep.set(path, value, "overrides: ")
    return sweep.first()


@kept_random_state()
def build_model(spec: RunSpec) -> Transformer:
    """The spec's model with its initial weights, on the CPU in fp32; model(tokens_BT).logits_BTV.

    Prepares the spec's data, because the vocabulary is part of the model. Raises DataError.
    """
    return build(spec, data_package.prepare(spec.data).vocab_size)


@kept_random_state()
def load_model(store: str | Path, run_id: str) -> Transformer:
    """The model of a stored run with its last checkpoint's weights, on the CPU in fp32, in eval mode.

    Executes the plugin file that a run with an attention of its own names; inside `no_plugins` such a run is refused.
    Raises StoreError when there is no such run or it has no checkpoint, SpecError when its record holds no valid spec.
    """
    record = read_run(store, run_id)
    folder = find_checkpoint(store, record.run_id)
    if folder is None:
        raise StoreError(f"run {record.run_id} ({record.status}) has no checkpoint in {store}")
    spec = stored_spec(record.spec, record.run_id)
    spec = spec.model_copy(update={"attention": spec.attention.anywhere()})
    vocab_size = checkpoint.vocab_size(folder)
    checkpoint.check_weights(folder, outline(spec, vocab_size))
    model = Transformer(spec, vocab_size)
    checkpoint.load_weights(folder, model)
    return model.eval()

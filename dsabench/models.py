"""Specs and models by name: a config's RunSpec, its initial model, and the model of a stored run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsabench import data as data_package
from dsabench.data.prepare import prepare_text
from dsabench.data.tokenizer import Tokenizer
from dsabench.data.tokenizer_json import write_tokenizer_json
from dsabench.engine import checkpoint
from dsabench.engine.random_state import kept_random_state
from dsabench.errors import CheckpointError, StoreError
from dsabench.model.transformer import Transformer, build, outline
from dsabench.model.transformers_folder import FILES, architecture_of, write_folder
from dsabench.spec.config import DEFAULT_CONFIG, load_sweep
from dsabench.spec.run import RunSpec
from dsabench.spec.stored_spec import stored_spec
from dsabench.store import find_checkpoint, find_run, read_run
from dsabench.store.files import refuse_links
from dsabench.store.records import RunRecord


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


@kept_random_state()
def export_model(store: str | Path, run_id: str, folder: str | Path) -> Path:
    """Write the model of a stored dense run, named by its id or the start of it, as a folder that
    `transformers.AutoModelForCausalLM` loads.

    config.json, model.safetensors in fp32, generation_config.json, and tokenizer.json with its settings (of a task,
    whose tokens are no text, none). An earlier export in `folder` is replaced. Raises CheckpointError for a model that
    no class of `transformers` computes, for a folder with other files, and where the tokenizer cannot be made again;
    StoreError as load_model.
    """
    folder = Path(folder)
    record = find_run(store, run_id)
    spec = stored_spec(record.spec, record.run_id)
    try:
        architecture_of(spec)
    except CheckpointError as error:
        raise CheckpointError(f"run {record.run_id}: {error}") from None
    refuse_links(folder)
    if others := sorted(path.name for path in folder.glob("*") if path.name not in FILES):
        raise CheckpointError(f"{folder} holds {others[0]}, which is no file of an export; name another folder")
    model = load_model(store, record.run_id)
    tokenizer = _tokenizer(spec, record)
    made = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    end = None if tokenizer is None else write_tokenizer_json(tokenizer, made / "tokenizer.json")
    number = None if tokenizer is None else tokenizer.end_of_document
    write_folder(model, made, number, end, {"run": record.run_id})
    if folder.exists():
        shutil.rmtree(folder)
    made.rename(folder)
    return folder


def _tokenizer(spec: RunSpec, record: RunRecord) -> Tokenizer | None:
    """The tokenizer that the run was trained with; None of a task."""
    if spec.data.task is not None:
        return None
    data = prepare_text(spec.data)
    if data.fingerprint["tokenizer"] != record.fingerprint.get("tokenizer"):
        raise CheckpointError(
            f"run {record.run_id}: its tokenizer ({spec.data.tokenizer}, of {spec.data.source}) is another one now, "
            "because its text or its file has changed; put back what it was trained on"
        )
    return data.tokenizer

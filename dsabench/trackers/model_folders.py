"""Models of runs for `transformers`: `<out>/<run id>/`, a folder that AutoModelForCausalLM loads."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from dsabench.data.prepare import prepare_text
from dsabench.data.tokenizer import Tokenizer
from dsabench.data.tokenizer_json import write_tokenizer_json
from dsabench.engine.random_state import kept_random_state
from dsabench.errors import CheckpointError, DsabenchError
from dsabench.model.transformers_folder import FILES, architecture_of, write_folder
from dsabench.models import load_model
from dsabench.spec.run import RunSpec
from dsabench.spec.stored_spec import stored_spec
from dsabench.store import find_run, read_run
from dsabench.store.files import refuse_links
from dsabench.store.records import RunRecord
from dsabench.trackers.content import run_of
from dsabench.trackers.export import Outcome, make_folder
from dsabench.trackers.tracker import Run


def export_models(store: Path, run_ids: Iterable[str], out: Path, told: Callable[[Run], None]) -> Outcome:
    """Write the model of each run, in place of what an earlier export wrote of it. Only reads the store.

    A run whose model has no class in `transformers`, or that has no checkpoint, is in the outcome's `failed` with the
    reason; the others go on. told: called with each run that was written. Raises TrackerError as make_folder.
    """
    make_folder(out, store)
    outcome = Outcome()
    for run_id in run_ids:
        try:
            export_model(store, run_id, out / run_id)
        except (DsabenchError, OSError) as error:
            outcome.failed[run_id] = str(error).removeprefix(f"run {run_id}: ")
        else:
            outcome.written.append(run_id)
            told(run_of(read_run(store, run_id)))
    return outcome


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

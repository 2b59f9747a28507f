"""Models of runs for `transformers`: `<out>/<run id>/`, a folder that AutoModelForCausalLM loads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from dsabench.errors import DsabenchError
from dsabench.models import export_model
from dsabench.store import read_run
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

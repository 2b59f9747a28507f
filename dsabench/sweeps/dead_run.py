"""The record of a run whose process is gone."""

from __future__ import annotations

from pathlib import Path

from dsabench.engine import failures
from dsabench.engine.device import environment, resolve
from dsabench.store import RunBusyError, RunDoneError, RunRecord, RunWriter, read_run
from dsabench.sweeps.launcher import Job
from dsabench.sweeps.origin import identity_of


def record_death(job: Job, store: Path, how: str, log: str) -> RunRecord:
    """Mark the run `failed`, with the end of its process's output. What it had stored stays.

    Where the run had ended, or another process has taken it up since, its record is returned as it is.
    """
    said = failures.death(store / job.run_id)
    what = f", {said.splitlines()[0]}" if said else ""
    try:
        writer = RunWriter.open(
            store,
            job.run_id,
            spec=job.spec.model_dump(mode="json"),
            fingerprint=identity_of(job.spec, store)[1],
            environment=environment(resolve(job.spec.engine)),  # that process's device, perhaps not this one's
            sweep=job.sweep,
        )
    except RunDoneError as done:
        return done.record
    except RunBusyError:
        return read_run(store, job.run_id)
    with writer:
        return writer.finish(
            "failed", error=failures.of_death(how + what), log="\n".join(text for text in (said, log) if text)
        )

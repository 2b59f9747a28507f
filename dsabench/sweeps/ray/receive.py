"""The receiver of one run's reports, which writes them to the store. One thread at a time works on a run.

It does not bring the store's index up to date: many runs may end at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from dsabench.engine import checkpoint, failures
from dsabench.store import RunDoneError, RunRecord, RunWriter, read_run
from dsabench.store.layout import METRICS, run_folder
from dsabench.sweeps.launcher import Job
from dsabench.sweeps.plan import status


class Arrival:
    """The open writer of one run, from when it is sent out until its end is recorded."""

    def __init__(self, writer: RunWriter) -> None:
        self.writer = writer

    @classmethod
    def expect(cls, job: Job, store: Path, fingerprint: dict[str, str]) -> Arrival | RunRecord:
        """Open the run's writer, so that the store shows it as `running`; or the record of a run that needs none.

        Raises RunBusyError, and StoreError.
        """
        if status(store, job.run_id) == "failed" and not job.retry_failed:
            return read_run(store, job.run_id)
        died = "" if job.retry_failed else failures.death(run_folder(store, job.run_id))
        try:
            spec = job.spec.model_dump(mode="json")
            # The environment comes with the record, from the machine that trains.
            writer = RunWriter.open(
                store, job.run_id, spec=spec, fingerprint=fingerprint, environment={}, sweep=job.sweep
            )
        except RunDoneError as done:
            return done.record
        arrival = cls(writer)
        return arrival.died(died.splitlines()[0], died) if died else arrival

    def rewind(self) -> tuple[int, bytes, dict[str, Path]]:
        """Go back to the last checkpoint; returns its step or -1, the metrics up to there, and its files by name."""
        folder = self.writer.checkpoint()
        step = -1 if folder is None else checkpoint.steps_done(folder)
        self.writer.rewind(step)
        path = self.writer.path / METRICS
        files = {} if folder is None else {file.name: file for file in sorted(folder.iterdir())}
        return step, path.read_bytes() if files and path.exists() else b"", files

    def lines(self, text: bytes) -> None:
        """Append lines of metrics."""
        for line in text.splitlines():
            self.writer.metrics(json.loads(line))

    def checkpoint(self, sizes: dict[str, int], pieces: Callable[[], bytes]) -> None:
        """Replace the checkpoint by one of files of these sizes, whose content pieces() gives. If it fails to, the
        checkpoint before stays."""

        def write(folder: Path) -> None:
            for name, size in sizes.items():
                with (folder / name).open("wb") as file:
                    left = size
                    while left > 0:
                        left -= file.write(pieces())

        self.writer.replace_checkpoint(write)

    def end(self, record: RunRecord, log: str | None) -> RunRecord:
        """Record how the run ended, as the node's `record` says."""
        assert record.status in ("done", "failed"), record.status
        with self.writer as writer:
            return writer.finish(record.status, record.summary, record.error, log, record.environment, indexed=False)

    def died(self, how: str, log: str) -> RunRecord:
        """Record the failure of a run whose process died without a word."""
        with self.writer as writer:
            return writer.finish("failed", error=failures.of_death(how), log=log, indexed=False)

    def give_up(self) -> None:
        """Mark a run that was not trained to its end `interrupted`."""
        with self.writer as writer:
            if writer.record.status == "running":
                writer.finish("interrupted", indexed=False)

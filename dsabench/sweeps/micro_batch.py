"""One micro-batch for all runs that are compared with one another, when one of them runs out of memory.

The batch stays as it is, and the gradients of its parts are added up. But the router's balance loss is then computed
for each part, so that the members of a pair would differ in more than attention if only one of them were cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dsabench.spec.run import RunSpec
from dsabench.store import RunRecord, read_run, remove_runs
from dsabench.sweeps.plan import PlannedRun, status


class MicroBatches:
    """The micro-batch of each group of runs that are compared; of an interrupted sweep it is read from its runs."""

    def __init__(self, planned: Sequence[PlannedRun], store: str | Path) -> None:
        self.planned = planned
        self.agreed: dict[str, int] = {}
        for run in planned:
            if run.status != "new" and not run.problem:
                stored = read_run(store, run.run_id).spec.get("engine", {}).get("micro_batch")
                if isinstance(stored, int) and stored < (run.spec.engine.micro_batch or run.spec.batch_size):
                    key = company(run.spec)
                    self.agreed[key] = min(stored, self.agreed.get(key, stored))

    def agree(self, run: PlannedRun, store: str | Path) -> RunSpec:
        """The spec to train the run with. What the store has of the run with another micro-batch is removed.

        Raises RunBusyError when another process is training it.
        """
        size = self.agreed.get(company(run.spec))
        if size is None or size >= (run.spec.engine.micro_batch or run.spec.batch_size):
            return run.spec
        if status(store, run.run_id) != "new" and not _fits(read_run(store, run.run_id), size):
            remove_runs(store, [run.run_id])
        return run.spec.model_copy(update={"engine": run.spec.engine.model_copy(update={"micro_batch": size})})

    def lower(self, run: PlannedRun, size: int, store: str | Path) -> list[PlannedRun]:
        """Set `size` windows at a time for `run` and all that it is compared with; returns those done with more."""
        key = company(run.spec)
        self.agreed[key] = size
        others = [other for other in self.planned if other.run_id != run.run_id and company(other.spec) == key]
        others = [other for other in others if not other.problem]
        stored = [(run, read_run(store, run.run_id)) for run in others if status(store, run.run_id) != "new"]
        return [other for other, record in stored if record.status == "done" and not _fits(record, size)]


def _fits(record: RunRecord, size: int) -> bool:
    """Whether a stored run may stay or go on: a done one had at most `size` windows at a time, any other has `size`."""
    if record.status != "done":
        return bool(record.spec.get("engine", {}).get("micro_batch") == size)
    used = record.summary.get("micro_batch")
    return isinstance(used, int) and used <= size


def company(spec: RunSpec) -> str:
    """The fields that runs compared with one another share, as JSON: all but attention, seed and how they are run."""
    return spec.model_dump_json(exclude={"seed", "attention", "plugins", "allow_leak", "engine"})

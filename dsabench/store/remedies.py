"""Remedies for what is damaged in a store: what to do about a run, and the commands that do it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from dsabench.spec.rerun_command import command_words
from dsabench.store.records import RunRecord, SweepRecord
from dsabench.store.verification import has_its_id

OF_A_SWEEP = (
    "its runs are as they were, and only their list and margin are lost; remove the file, and the command of the sweep "
    "writes it anew"
)
"""What to do about a damaged record of a sweep."""


class Remedies:
    """The remedies for the runs of one store."""

    def __init__(self, store: Path, sweeps: Sequence[SweepRecord] = ()) -> None:
        self._store = [] if store == Path("runs") else ["--store", str(store)]
        self._sweeps = sweeps

    def of(
        self, run_id: str, record: RunRecord | None, is_whole: bool, status: str, error: str
    ) -> tuple[str, list[str]]:
        """What to do about a damaged run, and the commands that do it.

        record: the run's, if it can be read. is_whole: whether it is what was written. error: what is wrong with its
        results; empty where only a checkpoint is damaged.
        """
        results_stand = not error
        if error and not can_be_removed(status, error):
            return "it may be whole: see what is said of it", []
        if results_stand and record is not None and record.status != "done":
            return "train it again: it resumes from the checkpoint before, or begins anew", self._again(record, run_id)
        again = self._again(record, run_id) if record and (is_whole or has_its_id(record)) else self._by_sweep(run_id)
        advice = "remove it, and train it again"
        if results_stand:
            advice = "its results stand, its weights are lost; where they are needed, " + advice
        if not again:
            advice += " with the command that trained it"
        return advice, [self.removal(run_id), *again]

    def removal(self, run_id: str) -> str:
        """The command that removes a run."""
        return shlex.join(["dsabench", "runs", "rm", run_id, *self._store])

    def _again(self, record: RunRecord, run_id: str) -> list[str]:
        return self._by_sweep(run_id) or [shlex.join([*command_words(record.spec), *self._store])]

    def _by_sweep(self, run_id: str) -> list[str]:
        """The command of a sweep that names the run, which trains nothing else that is done."""
        for sweep in self._sweeps:
            if run_id in (*sweep.run_ids, *sweep.trials) and sweep.command and "sweep" in sweep.command:
                words = iter(sweep.command[sweep.command.index("sweep") :])
                kept = [word for word in words if not (word == "--store" and next(words, None))]  # it may have moved
                return [shlex.join(["dsabench", *kept, *self._store])]
        return []


def can_be_removed(status: str, error: str) -> bool:
    """Whether a run that cannot be believed is lost: not one of a newer version, or that may not be read."""
    return status == "damaged" or ": damaged, " in error


def way_out(store: str | Path, run_id: str, status: str, error: str) -> str:
    """What is said where a damaged run stands in the way of training it."""
    if not can_be_removed(status, error):
        return f"run {run_id} cannot be read, and is not trained: {error}"
    wrong = error.removeprefix(f"run {run_id}: ").replace(f"{Path(store) / run_id}/", "")
    removal = Remedies(Path(store)).removal(run_id)
    return (
        f"run {run_id}: damaged ({wrong}); it is not taken for done, and not trained over: "
        f"`{removal}` removes it, and the same command then trains it"
    )

"""The end of training: how long it took, and the commands that show what came of it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dsabench.cli.console import stderr_console
from dsabench.progress.durations import duration

if TYPE_CHECKING:
    from dsabench.cli.views.sweep_plan import SweepPlan
    from dsabench.spec.run import RunSpec
    from dsabench.store import RunRecord


def after_sweep(plan: SweepPlan, store: Path, out: Path, seconds: float) -> None:
    """Print the end of a sweep that took so many seconds."""
    trained = sum(run.is_left for run in plan.runs)
    nothing = "No run was left to train" if any(run.problem for run in plan.runs) else "All runs were done before"
    took = f"{trained} run{'s' * (trained != 1)} in {duration(seconds)}" if trained else nothing
    there = _flag("--store", store, os.environ.get("DSABENCH_STORE", "runs"))
    where = f"{there}{_flag('--out', out, 'results')}"
    commands = [
        *((f"dsabench compare{baseline}{there}", "the verdicts, with their intervals") for baseline in _baseline(plan)),
        (f"dsabench plot{where}", "the figures"),
        (f"dsabench report{where}", "one page of it all"),
    ]
    if any(_chooses(run.spec) for run in plan.runs):
        commands.append((f"dsabench visualize-selection{where}", "the tokens that a model looks at"))
    _print(took, commands)


def after_run(record: RunRecord, spec: RunSpec, store: Path, seconds: float) -> None:
    """Print the end of one run."""
    there = _flag("--store", store, os.environ.get("DSABENCH_STORE", "runs"))
    commands = [(f"dsabench runs show {record.run_id}{there}", "all that is recorded of it")]
    if _chooses(spec) and record.status == "done":
        commands.append((f"dsabench visualize-selection {record.run_id}{there}", "the tokens that it looks at"))
    _print(f"Trained in {duration(seconds)}" if seconds else "The run was done before", commands)


def _baseline(plan: SweepPlan) -> list[str]:
    """The option of `compare`: none where dense was trained; empty where nothing can be compared by a kind alone."""
    variants = {
        run.spec.attention.model_dump_json(): run.spec.attention.kind for run in plan.runs if not run.for_children
    }
    kinds = list(variants.values())
    if "dense" in kinds:
        return [""]
    alone = [kind for kind in kinds if kinds.count(kind) == 1]
    return [f" --baseline {alone[0]}"] if alone and len(kinds) > 1 else []


def _print(took: str, commands: Sequence[tuple[str, str]]) -> None:
    console = stderr_console()
    console.print(f"{took}. Next:")
    widest = max(len(command) for command, _ in commands)
    fits = all(len(f"  {command:{widest}}  {what}") <= console.width for command, what in commands)
    for command, what in commands:
        console.print(f"  {command:{widest}}  {what}" if fits else f"  {command}", soft_wrap=True)  # to be copied


def _flag(flag: str, folder: Path, default: str) -> str:
    return "" if folder == Path(default) else f" {flag} {shlex.quote(str(folder))}"


def _chooses(spec: RunSpec) -> bool:
    """Whether the run's queries keep fewer than all keys."""
    keeps = spec.attention.n_selected(spec.length)
    return keeps is not None and keeps < spec.length

"""The scope of a command: the runs of a store that it looks at, and those left out with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pydantic import ValidationError

from dsabench.analysis.damaged_runs import with_damaged
from dsabench.analysis.floor_notes import floor_notes
from dsabench.analysis.rungs import on_rungs
from dsabench.analysis.tuned_fields import with_tuned_fields
from dsabench.analysis.where import matching
from dsabench.errors import ScopeError as ScopeError
from dsabench.errors import StoreError
from dsabench.plain import count, is_or_are
from dsabench.spec.verdict import VerdictSpec
from dsabench.store import SweepRecord, load_runs, readable_sweeps


@dataclass(frozen=True)
class Scope:
    """The runs that a command looks at."""

    store: Path
    """The store they are in."""

    runs: pd.DataFrame
    """One row a run, as the store loads them; of a ladder, one for each rung that a run stands on (see rungs.py)."""

    title: str
    """Which runs these are, in words: `sweep seed-e0e10f3b`."""

    sweep: SweepRecord | None = None
    """The sweep they belong to, when they are those of one."""

    verdict: VerdictSpec = field(default_factory=VerdictSpec)
    """What the sweep is judged by; the default where there is no sweep."""

    verdict_source: str = "the default"
    """Who fixed the verdict's margin."""

    notes: list[str] = field(default_factory=list)
    """What is missing or was left out, a line each."""

    unfinished: str = ""
    """`9 of 12 runs`: those of the sweep that have ended, where not all have; a failed run has ended."""

    def with_damaged(self, found: Mapping[str, str]) -> Scope:
        """The scope in which the runs of `found`, {run_id: what is wrong}, are damaged ones, too."""
        return replace(self, runs=with_damaged(self.runs, found))


def look_at(
    store: str | Path, *, sweep: str | None = None, everything: bool = False, where: str | None = None
) -> Scope:
    """The runs of the newest sweep; of the one whose id is or starts with `sweep`; or of the whole store.

    `where` keeps the runs for which a condition holds (`length == 256 and attention == "dsa"`; spec fields by
    their paths; see analysis/where.py). A store without a sweep is looked at as a whole.

    Raises:
        ScopeError: no such sweep, both a sweep and everything, or a condition that cannot be read or keeps nothing.
        StoreError: there is no such store, or it has no runs.
    """
    if sweep is not None and everything:
        raise ScopeError("--sweep and --all exclude each other; keep one")
    runs = load_runs(store)
    records, problems = readable_sweeps(store)
    notes = [f"sweep record left out: {problem}" for problem in problems]
    source = "the default"
    if runs.empty:
        raise StoreError(f"{store}: a store without runs; make some first (dsabench sweep), or name another (--store)")
    record, n_gone = None, 0
    if sweep is not None:
        record = _named(sweep, records, store)
    elif records and not everything:
        record = records[0]
    if record is None:
        title = f"all {len(runs)} runs of {store}"
        if not everything:
            notes.append("the store has no sweep: all its runs are looked at")
        elif len(records) > 1:
            notes.append("runs of several sweeps: verdicts use the default margin unless --margin is given")
        verdict = VerdictSpec()
        if len(records) == 1:
            verdict, problem = _verdict(records[0])
            source = "the default" if problem else f"fixed in sweep {records[0].id}"
            notes += problem
    else:
        title = f"sweep {record.id}"
        runs, gone = _of_sweep(runs, record)
        notes += gone
        n_gone = len(set(record.run_ids)) - len(runs)
        verdict, problem = _verdict(record)
        source = "the default" if problem else "fixed in the sweep"
        notes += problem
        if runs.empty:
            raise ScopeError(
                f"{title}: none of its {count(len(record.run_ids), 'run')} is in {store}; run it again, or use --all"
            )
    if where is not None:
        kept = matching(runs, where)
        if kept.empty:
            raise ScopeError(f"--where {where!r} keeps none of the {count(len(runs), 'run')}")
        notes.append(f"--where keeps {len(kept):,} of {count(len(runs), 'run')}")
        runs = kept
        title += f" where {where}"
    notes += floor_notes(runs)
    unfinished = "" if record is None else _unfinished(runs, n_gone)
    runs = with_tuned_fields(on_rungs(runs.reset_index(drop=True), record), record)
    return Scope(Path(store), runs, title, record, verdict, source, notes, unfinished)


def _unfinished(runs: pd.DataFrame, n_gone: int) -> str:
    """How many runs have ended, of these and of those that are not in the store; empty when all have."""
    ended, total = int((~runs["status"].isin(["running", "interrupted"])).sum()), len(runs) + n_gone
    return "" if ended == total else f"{ended:,} of {count(total, 'run')}"


class Choice(NamedTuple):
    """Runs that a user chose."""

    runs: pd.DataFrame
    """One row a run, as the store loads them; there may be none."""

    title: str
    """Which runs were chosen from, in words."""

    total: int
    """How many there were before `where`."""

    notes: list[str]
    """Notes on what is missing or could not be read, a line each."""


def choose(
    store: str | Path, *, sweep: str | None = None, everything: bool = False, where: str | None = None
) -> Choice:
    """The runs of the store, or of the sweep whose id is or starts with `sweep`; of them those that `where` keeps.

    For lists: unlike `look_at` it accepts that there are none.

    Raises:
        ScopeError: no such sweep, both a sweep and everything, or a condition that cannot be read.
        StoreError: there is no such store.
    """
    if sweep is not None and everything:
        raise ScopeError("--sweep and --all exclude each other; keep one")
    notes: list[str] = []
    runs, title = load_runs(store), f"all runs of {store}"
    if sweep is not None:
        records, problems = readable_sweeps(store)
        record = _named(sweep, records, store)
        title = f"sweep {record.id}"
        runs, notes = _of_sweep(runs, record)
        notes = [*(f"sweep record left out: {problem}" for problem in problems), *notes]
    kept = runs if where is None else matching(runs, where)
    return Choice(kept.reset_index(drop=True), title, len(runs), notes)


def _of_sweep(runs: pd.DataFrame, record: SweepRecord) -> tuple[pd.DataFrame, list[str]]:
    """The runs of a sweep, and a note about those that are gone."""
    names = set(record.run_ids)
    gone = sorted(names - set(runs["run_id"]))
    are = is_or_are(len(gone))
    notes = [f"{len(gone):,} of its {count(len(names), 'run')} {are} not in the store: {_some(gone)}"] if gone else []
    return runs[runs["run_id"].isin(names)], notes


def _named(wanted: str, records: list[SweepRecord], store: str | Path) -> SweepRecord:
    exact = [record for record in records if record.id == wanted]
    found = exact or [record for record in records if wanted and record.id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ScopeError(f"--sweep {wanted}: {len(found)} sweeps start with that: {_some(r.id for r in found)}")
    there = _some(record.id for record in records) or "none at all"
    raise ScopeError(f"--sweep {wanted}: no such sweep in {store}; there are: {there}")


def _verdict(record: SweepRecord) -> tuple[VerdictSpec, list[str]]:
    if "verdict" not in record.spec:
        return VerdictSpec(), [f"sweep {record.id} says nothing of a margin: the default is used"]
    try:
        return VerdictSpec.model_validate(record.spec["verdict"]), []
    except ValidationError:
        return VerdictSpec(), [f"the verdict of sweep {record.id} is damaged: the default margin is used"]


def _some(names: Iterable[Any], most: int = 8) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")

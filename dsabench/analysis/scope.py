"""Which runs of a store a command looks at, and what it left out and why."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from dsabench.errors import DsabenchError, StoreError
from dsabench.spec.explain import near_miss
from dsabench.spec.verdict import VerdictSpec
from dsabench.store import SweepRecord, load_runs, readable_sweeps

_QUOTED = r"'[^']*'|\"[^\"]*\"|`[^`]*`"
_WORD = r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*"


class ScopeError(DsabenchError):
    """No such sweep, or a --where that selects nothing or cannot be read."""


@dataclass(frozen=True)
class Scope:
    """The runs that a command looks at."""

    store: Path
    """The store they are in."""

    runs: pd.DataFrame
    """One row a run, as the store loads them."""

    title: str
    """Which runs these are, in words: `sweep seed-e0e10f3b`."""

    sweep: SweepRecord | None = None
    """The sweep they belong to, when they are those of one."""

    verdict: VerdictSpec = field(default_factory=VerdictSpec)
    """What the sweep is judged by; the default where there is no sweep."""

    notes: list[str] = field(default_factory=list)
    """What is missing or was left out, a line each."""


def look_at(
    store: str | Path, *, sweep: str | None = None, everything: bool = False, where: str | None = None
) -> Scope:
    """The runs of the newest sweep; of the one whose id is or starts with `sweep`; or of the whole store.

    `where` keeps the rows for which a pandas query holds (`length == 256 and attention == "dsa"`; spec fields by
    their paths). A store without a sweep is looked at as a whole.

    Raises:
        ScopeError: no such sweep, both a sweep and everything, or a query that cannot be read or keeps nothing.
        StoreError: there is no such store.
    """
    if sweep is not None and everything:
        raise ScopeError("--sweep and --all exclude each other; keep one")
    runs = load_runs(store)
    records, problems = readable_sweeps(store)
    notes = [f"sweep record left out: {problem}" for problem in problems]
    if runs.empty:
        raise StoreError(f"{store}: a store without runs; make some first (dsabench sweep), or name another (--store)")
    record = None
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
            notes += problem
    else:
        title = f"sweep {record.id}"
        gone = sorted(set(record.run_ids) - set(runs["run_id"]))
        runs = runs[runs["run_id"].isin(record.run_ids)]
        if gone:
            notes.append(f"{len(gone)} of its {len(set(record.run_ids))} runs are not in the store: {_some(gone)}")
        verdict, problem = _verdict(record)
        notes += problem
        if runs.empty:
            raise ScopeError(
                f"{title}: none of its {len(record.run_ids)} runs is in {store}; run it again, or use --all"
            )
    if where is not None:
        kept = _where(runs, where)
        notes.append(f"--where keeps {len(kept)} of {len(runs)} runs")
        runs = kept
        title += f" where {where}"
    return Scope(Path(store), runs.reset_index(drop=True), title, record, verdict, notes)


def _named(wanted: str, records: list[SweepRecord], store: str | Path) -> SweepRecord:
    exact = [record for record in records if record.id == wanted]
    found = exact or [record for record in records if record.id.startswith(wanted)]
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


def _where(runs: pd.DataFrame, query: str) -> pd.DataFrame:
    if "@" in query or "__" in query:  # names of this program's own variables and methods
        raise ScopeError(f"--where {query!r}: only columns, values and comparisons are accepted")
    columns = [str(column) for column in runs.columns]

    def quoted(match: re.Match[str]) -> str:
        text = match.group(0)
        if text[0] in "'\"`" or "." not in text or text not in columns:
            return text
        return f"`{text}`"  # a spec field's path is one name

    try:
        plain = runs.convert_dtypes(dtype_backend="numpy_nullable")
        mask = plain.eval(re.sub(f"{_QUOTED}|{_WORD}", quoted, query), engine="python")
    except Exception as error:
        words = [word for word in re.findall(_WORD, re.sub(_QUOTED, " ", query)) if word not in columns]
        words = [word for word in words if word not in ("and", "or", "not", "in", "True", "False")]
        hint = near_miss(words[0], columns) if words else ""
        unknown = f"no column {words[0]}{hint}" if words else f"{error}"
        raise ScopeError(
            f"--where {query!r} cannot be used: {unknown} (expected a comparison such as length == 256)"
        ) from error
    if not isinstance(mask, pd.Series) or not pd.api.types.is_bool_dtype(mask.dtype):
        raise ScopeError(f"--where {query!r} is not true or false of a run; expected one such as length == 256")
    kept = runs[mask.fillna(False).astype(bool)]
    if kept.empty:
        raise ScopeError(f"--where {query!r} keeps none of the {len(runs)} runs")
    return kept


def _some(names: Iterable[Any], most: int = 8) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")

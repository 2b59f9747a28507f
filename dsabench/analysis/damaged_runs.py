"""Damaged runs among those of a command: left out, named with what differs, and never judged.

Damaged is what is not what was written, what contradicts itself, and what cannot be read at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from dsabench.plain import count

STATUSES = ("damaged", "unreadable")
"""Of a row of the store's table."""

_NAMED = 3
"""Runs that are named in a line before the rest are only counted."""

_ERROR = 160
"""Characters of what is wrong with a run; `dsabench runs verify` prints all of it."""


def damaged_ids(runs: pd.DataFrame) -> list[str]:
    """The ids of the damaged runs, each once."""
    return list(dict.fromkeys(str(name) for name in runs.loc[runs["status"].isin(STATUSES), "run_id"]))


def with_damaged(runs: pd.DataFrame, damaged: Mapping[str, str]) -> pd.DataFrame:
    """`runs` in which those of `damaged`, {run_id: what is wrong}, have the status and its reason."""
    marked = runs.copy()
    for run_id, why in damaged.items():
        marked.loc[marked["run_id"] == run_id, ["status", "error"]] = ["damaged", why]
    return marked


def damage_sentence(runs: pd.DataFrame, named: bool = True) -> str:
    """How many of the runs are damaged, which, and what is wrong; empty when none is."""
    found = runs[runs["status"].isin(STATUSES)].drop_duplicates("run_id")
    if found.empty:
        return ""
    n = len(found)
    text = f"{count(n, 'run')} {'is' if n == 1 else 'are'} damaged and {'was' if n == 1 else 'were'} left out"
    if named:
        shown = zip(found["run_id"], found["error"].astype(object), strict=True)
        listed = [f"{run_id} ({_brief(str(run_id), str(why))})" for run_id, why in list(shown)[:_NAMED]]
        text += ": " + ", ".join(listed) + (f" and {n - _NAMED} more" if n > _NAMED else "")
    return f"{text}; `dsabench runs verify` says more"


def _brief(run_id: str, why: str) -> str:
    """The first thing that is wrong, by the name of the file alone."""
    first = why.removeprefix(f"run {run_id}: ").split("; ")[0].split("\n")[0]
    path, colon, rest = first.partition(": ")
    if colon and "/" in path:
        first = f"{Path(path).name}: {rest}"
    return first if len(first) <= _ERROR else first[: _ERROR - 4] + " ..."

"""The rungs of a sweep's ladder: which runs stand on each, and what variants and settings are called there."""

from __future__ import annotations

import pandas as pd

from dsabench.plain import visible
from dsabench.store import SweepRecord

RUNG = "rung"
"""The column that says which rung a row of runs stands on, as `2 causal mask mended`."""


def on_rungs(runs: pd.DataFrame, sweep: SweepRecord | None) -> pd.DataFrame:
    """`runs` with the column RUNG, in the ladder's order and a row for each rung that a run stands on; `runs` as they
    are when the sweep has no ladder."""
    if sweep is None or not sweep.rungs:
        return runs
    place = {run_id: i for i, run_id in enumerate(runs["run_id"])}
    steps = enumerate(sweep.rungs.items(), 1)
    found = [(f"{i} {visible(name)}", place[run]) for i, (name, ids) in steps for run in ids if run in place]
    rows = runs.iloc[[row for _, row in found]].reset_index(drop=True)
    rows[RUNG] = [rung for rung, _ in found]
    return rows


def rungs_of(runs: pd.DataFrame) -> list[str]:
    """The rungs of `runs`, first to last; none when they are not those of a ladder."""
    return list(runs[RUNG].dropna().drop_duplicates()) if RUNG in runs else []

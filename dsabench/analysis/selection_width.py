"""The check that a selection leaves something out: one that keeps as many keys as the window has tokens is dense."""

from __future__ import annotations

import pandas as pd

from dsabench.analysis.check_wording import count, listed
from dsabench.analysis.comparison import Check
from dsabench.analysis.variants import RATIO, TOP_K, display_name, keys, variant_order

_NEEDED = ("run_id", "variant", "length", TOP_K, RATIO)

NAME = "Selections leave something out"


def selects_everything(runs: pd.DataFrame) -> pd.Series[bool]:
    """Which runs keep k >= L keys by their spec: every query then sees all that dense attention sees."""
    found: pd.Series[bool] = keys(runs) >= pd.to_numeric(runs["length"], errors="coerce")
    return found


def leaves_something_out(pairs: pd.DataFrame) -> Check:
    """Pairs of which a run selects everything: they compare dense attention with itself."""
    said, run_ids, n = [], [], 0
    if pairs.empty:
        return Check(name=NAME, outcome="not recorded", text="There is no pair to compare.")
    for side in "ab":
        there = [name for name in _NEEDED if f"{side}.{name}" in pairs]
        mine = pairs[[f"{side}.{name}" for name in there]].set_axis(there, axis=1)
        full = mine[selects_everything(mine)]
        n += len(full)
        run_ids += list(full["run_id"])
        for variant in sorted(full["variant"].unique(), key=variant_order):
            lengths = sorted({int(length) for length in full.loc[full["variant"] == variant, "length"]})
            said.append(f"{display_name(variant)} at {listed([str(length) for length in lengths])} tokens")
    if not said:
        return Check(name=NAME, outcome="ok", text="Every selection keeps fewer keys than its window has tokens.")
    text = (
        f"{listed(list(dict.fromkeys(said)))} selects everything (k is not below the length) and so is dense "
        f"attention: {count(n, 'pair')} compare it with itself and get no verdict."
    )
    return Check(name=NAME, outcome="fail", text=text, run_ids=tuple(dict.fromkeys(run_ids)), withholds=True)

"""The fields that a sweep's search chose for each variant: they tell no variants apart."""

from __future__ import annotations

import pandas as pd

from dsabench.errors import ScopeError
from dsabench.plain import count
from dsabench.store import SweepRecord

TUNED = "tuned"
"""The column that names them, separated by spaces; the same in all rows."""


def with_tuned_fields(runs: pd.DataFrame, sweep: SweepRecord | None) -> pd.DataFrame:
    """`runs` with the column TUNED, the fields that the sweep's search chose, by which no variants are told apart;
    `runs` as they are where the sweep has none. Raises ScopeError while the search goes on."""
    if sweep is None or sweep.tuning is None:
        return runs
    if not sweep.tuning.is_over:
        ended = sum(len(study.trials) for study in sweep.tuning.studies)
        total = sweep.tuning.trials * len(sweep.tuning.studies)
        raise ScopeError(
            f"sweep {sweep.id}: its search goes on ({ended} of {count(total, 'trial')} have ended), and its runs come "
            "after it; the same command goes on with it. --all looks at the trials"
        )
    fields = sorted({path for study in sweep.tuning.studies for path in study.over})
    return runs.assign(**{TUNED: " ".join(fields)})


def tuned_fields(runs: pd.DataFrame) -> list[str]:
    """The fields that a search chose; none where the runs are not those of a tuned sweep."""
    return str(runs[TUNED].iloc[0]).split() if TUNED in runs and len(runs) else []

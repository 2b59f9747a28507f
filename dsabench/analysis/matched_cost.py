"""Losses at the same cost: where on its curve a run was when it had spent as much as another one in all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

Cost = Literal["flops", "seconds", "tokens"]


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, by rising cost."""

    cost: np.ndarray
    """FLOPs or seconds of training so far."""

    loss: np.ndarray
    """Validation loss in nats per token."""

    total: float
    """What the whole run cost."""

    def at(self, budget: float) -> float:
        """Loss when `budget` was spent, on the straight line between evaluations; NaN outside of them."""
        if not len(self.cost) or not self.cost[0] <= budget <= self.cost[-1]:
            return float("nan")
        return float(np.interp(budget, self.cost, self.loss))


def curves_by_run(evaluations: pd.DataFrame, cost: Cost, totals: Mapping[str, float]) -> dict[str, Curve]:
    """The curve of every run that recorded its cost; `evaluations` has run_id, step, val_loss and the cost, in order.

    totals: what each run cost in all by its summary; a run that is not in it, or is NaN, cost what its last evaluation
    says. Of several evaluations of one step (a run that was resumed, say) the last counts.
    """
    known = evaluations[np.isfinite(evaluations[cost]) & np.isfinite(evaluations["val_loss"])]
    known = known[~known.duplicated(["run_id", "step"], keep="last")]
    if known.empty:
        return {}
    runs = known["run_id"].to_numpy()
    begins = np.flatnonzero(runs[1:] != runs[:-1]) + 1
    columns = (np.split(known[name].to_numpy(dtype=float), begins) for name in (cost, "val_loss"))
    found = {}
    for run, x, y in zip(runs[np.r_[0, begins]], *columns, strict=True):
        total = totals.get(run, math.nan)
        if len(x) > 1 and (np.diff(x) > 0).all():
            found[str(run)] = Curve(x, y, total if math.isfinite(total) else float(x[-1]))
    return found


def at_equal_cost(ours: Curve | None, theirs: Curve | None) -> tuple[float, float]:
    """(our loss - their loss, our share): at the cost of the cheaper run; what share of our own run that is.

    The dearer run is read in mid-schedule, its learning rate not yet down: at equal cost it looks worse than a run
    planned for that cost would. (NaN, NaN) where a curve is missing or does not reach that cost (a torn last line).
    """
    if ours is None or theirs is None:
        return math.nan, math.nan
    budget = min(ours.total, theirs.total)
    difference = ours.at(budget) - theirs.at(budget)
    return difference, budget / ours.total if math.isfinite(difference) and ours.total > 0 else math.nan

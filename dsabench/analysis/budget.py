"""Losses at the same cost: where on its curve a run was when it had spent as much as another one in all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

Cost = Literal["flops", "seconds"]


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, by rising cost."""

    cost: np.ndarray
    """FLOPs or seconds of training so far."""

    loss: np.ndarray
    """Validation loss in nats per token."""

    def at(self, budget: float) -> float:
        """Loss when `budget` was spent, on the straight line between evaluations; NaN outside of them."""
        if not len(self.cost) or not self.cost[0] <= budget <= self.cost[-1]:
            return float("nan")
        return float(np.interp(budget, self.cost, self.loss))


def curves_by_run(evaluations: pd.DataFrame, cost: Cost) -> dict[str, Curve]:
    """The curve of every run that recorded its cost; `evaluations` has run_id, val_loss and the cost, in order."""
    known = evaluations[np.isfinite(evaluations[cost]) & np.isfinite(evaluations["val_loss"])]
    found = {}
    for run_id, rows in known.groupby("run_id", sort=False):
        values = rows[cost].to_numpy(dtype=float)
        if len(values) > 1 and (np.diff(values) > 0).all():
            found[str(run_id)] = Curve(values, rows["val_loss"].to_numpy(dtype=float))
    return found


def at_equal_cost(ours: Curve | None, theirs: Curve | None) -> tuple[float, float]:
    """(our loss - their loss, our share): at the cost of the cheaper run; what share of our own run that is.

    The dearer run is read in mid-schedule, its learning rate not yet down: at equal cost it looks worse than a run
    planned for that cost would. (NaN, NaN) where a curve is missing.
    """
    if ours is None or theirs is None:
        return float("nan"), float("nan")
    budget = min(ours.cost[-1], theirs.cost[-1])
    return ours.at(budget) - theirs.at(budget), float(budget / ours.cost[-1])

"""The rise of the validation loss of runs that memorise their training text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd


def rises(curves: pd.DataFrame) -> dict[str, float]:
    """{run_id: nats} by which the validation loss ends above its lowest value, while the training loss fell.

    Over the evaluations of a run that have both losses, t = 0 .. n, with m the last one of the lowest validation loss:

        rise = val_n - val_m   if train_n < train_m,   else 0

    A loss that rises on both sides is an instability, and one that falls on both is learning: neither is overfitting.
    Runs on a task, whose windows are never met twice, have no rise: their losses differ by chance alone.

    curves: of `load_curves`, in the order of steps, with val_loss, train_loss and task_accuracy.
    """
    found = {}
    known = curves[np.isfinite(curves["val_loss"]) & np.isfinite(curves["train_loss"])]
    known = known[~np.isfinite(known["task_accuracy"])]
    for run_id, mine in known.groupby("run_id", sort=False):
        val, train = mine["val_loss"].to_numpy(float), mine["train_loss"].to_numpy(float)
        lowest = len(val) - 1 - int(np.argmin(val[::-1]))
        found[str(run_id)] = float(val[-1] - val[lowest]) if train[-1] < train[lowest] else 0.0
    return found


def mean_rise(run_ids: Iterable[str], by_run: dict[str, float]) -> float:
    """The mean rise of the runs of one side of some pairs: how much of their mean loss is memorising, at most. NaN
    where no run has one."""
    known = [by_run[run_id] for run_id in run_ids if run_id in by_run]
    return float(np.mean(known)) if known else float("nan")

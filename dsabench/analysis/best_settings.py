"""Best settings against best settings: a fair comparison where an attention prefers others than its baseline.

Either a search chose them before the seeds were trained (`sweep --tune`), and the tables compare nothing else; or all
seeds were trained at several learning rates, and the best one of each side is looked up here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from dsabench.analysis import statistics
from dsabench.analysis.comparison import BestSettings, SearchCost
from dsabench.analysis.comparison_row import Estimate
from dsabench.analysis.pairing import is_baseline
from dsabench.analysis.scope import Scope
from dsabench.analysis.variants import label_variants, variant_order
from dsabench.store import StudyRecord, TuningRecord

RATE = "train.learning_rate"
"""The field of the peak learning rate."""


def best_settings(scope: Scope, pairs: pd.DataFrame, baseline: str, metric: str) -> Iterator[BestSettings]:
    """For every length and variant each side's best settings: those that a search chose, or else of several learning
    rates the best; none where there was no choice."""
    if scope.sweep is not None and scope.sweep.tuning is not None:
        yield from _of_searches(scope.sweep.tuning, pairs, metric)
    else:
        yield from _of_rates(scope.runs, baseline, metric)


def _of_searches(tuning: TuningRecord, pairs: pd.DataFrame, metric: str) -> Iterator[BestSettings]:
    """What the searches of a variant and of its baseline chose, and what they cost, for each row of the tables."""
    study_of = {run_id: study for study in tuning.studies for run_id in study.run_ids}
    for key, group in pairs.groupby(["setting", "length", "variant"]):
        setting, length, variant = str(key[0]), int(group["length"].iloc[0]), str(key[2])
        ours, theirs = study_of.get(group["a.run_id"].iloc[0]), study_of.get(group["b.run_id"].iloc[0])
        if ours is None or theirs is None:
            continue
        d = (group[f"a.{metric}"] - group[f"b.{metric}"]).to_numpy(float)
        yield BestSettings(
            setting=setting,
            length=length,
            variant=variant,
            variant_rate=_number(_chosen(ours).get(RATE)),
            variant_rates=_rates_tried(ours),
            baseline_rate=_number(_chosen(theirs).get(RATE)),
            baseline_rates=_rates_tried(theirs),
            difference=Estimate.of(d),
            p=statistics.p_different(d),
            variant_settings=_chosen(ours),
            baseline_settings=_chosen(theirs),
            variant_search=_cost(ours),
            baseline_search=_cost(theirs),
        )


def _of_rates(runs: pd.DataFrame, baseline: str, metric: str) -> Iterator[BestSettings]:
    """For every length and variant of which either side has several rates: each side's best, by mean validation loss.

    The loss that chooses is the loss that is compared, on both sides; with as many rates tried for each this favours
    neither, but both best losses are optimistic.
    """
    if RATE not in runs or runs[RATE].nunique() < 2:
        return
    labelled = label_variants(runs, ignoring=[RATE])
    labelled[RATE] = pd.to_numeric(labelled[RATE], errors="coerce")  # a record may hold anything
    done = labelled[labelled["finished"] & ~labelled["leak"] & labelled[RATE].notna()]
    if done.empty or done[RATE].nunique() < 2:
        return
    columns = dict.fromkeys(["setting", "variant", "length", "seed", RATE, "val_loss", metric])
    done = done.loc[np.isfinite(done[metric].astype(float)), list(columns)]
    base = is_baseline(labelled, baseline)
    for key, group in done.groupby(["setting", "length"]):
        setting, length = str(key[0]), int(group["length"].iloc[0])
        theirs = group[base.loc[group.index]]
        variants = {str(variant): ours for variant, ours in group[~base.loc[group.index]].groupby("variant")}
        for variant in sorted(variants, key=variant_order):
            ours = variants[variant]
            if theirs.empty or max(ours[RATE].nunique(), theirs[RATE].nunique()) < 2:
                continue
            our_rate, their_rate = _best(ours), _best(theirs)
            both = ours[ours[RATE] == our_rate].merge(theirs[theirs[RATE] == their_rate], on="seed")
            d = (both[f"{metric}_x"] - both[f"{metric}_y"]).to_numpy(float)
            yield BestSettings(
                setting=setting,
                length=length,
                variant=variant,
                variant_rate=our_rate,
                variant_rates=_rates(ours),
                baseline_rate=their_rate,
                baseline_rates=_rates(theirs),
                difference=Estimate.of(d),
                p=statistics.p_different(d),
            )


def _rates(runs: pd.DataFrame) -> list[float]:
    return sorted(float(rate) for rate in runs[RATE].unique())


def _best(runs: pd.DataFrame) -> float:
    means = {rate: float(runs.loc[runs[RATE] == rate, "val_loss"].mean()) for rate in _rates(runs)}
    return min(means, key=lambda rate: means[rate])


def _chosen(study: StudyRecord) -> dict[str, Any]:
    assert study.best is not None
    return study.trials[study.best].settings


def _rates_tried(study: StudyRecord) -> list[float]:
    return sorted({float(trial.settings[RATE]) for trial in study.trials if RATE in trial.settings})


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _cost(study: StudyRecord) -> SearchCost:
    once = {trial.run_id: trial for trial in study.trials}.values()  # the same settings twice are one run
    return SearchCost(
        trials=len(study.trials),
        failed=sum(trial.val_loss is None for trial in study.trials),
        tokens=sum(trial.tokens for trial in once),
        flops=sum(trial.flops for trial in once),
        seconds=sum(trial.seconds for trial in once),
    )

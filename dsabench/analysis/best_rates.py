"""Best learning rate against best learning rate: a fair comparison where an attention prefers another one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from dsabench.analysis import statistics
from dsabench.analysis.comparison import BestRate
from dsabench.analysis.comparison_row import Estimate
from dsabench.analysis.pairing import is_baseline
from dsabench.analysis.variants import label_variants, variant_order

RATE = "train.learning_rate"


def best_rates(runs: pd.DataFrame, baseline: str, metric: str) -> Iterator[BestRate]:
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
            yield BestRate(
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

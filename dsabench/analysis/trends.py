"""The trends of a comparison: how a variant's difference changes when the length doubles."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from dsabench.analysis import statistics
from dsabench.analysis.comparison import Trend
from dsabench.analysis.comparison_row import Estimate
from dsabench.analysis.variants import variant_order


def trends_of(pairs: pd.DataFrame, metric: str) -> list[Trend]:
    """The trend of each variant that has at least two lengths; `pairs` are those that are judged."""
    trends = []
    for variant, group in sorted(pairs.groupby("variant"), key=lambda item: variant_order(str(item[0]))):
        d = group[f"a.{metric}"] - group[f"b.{metric}"]
        by_seed = d.groupby([group["seed"], group["length"]]).mean().unstack("length").dropna()
        if by_seed.shape[1] < 2 or by_seed.empty:
            continue
        lengths = [int(length) for length in by_seed.columns]
        slopes = statistics.slopes(np.log2(lengths), by_seed.to_numpy(float))
        trends.append(
            Trend(
                variant=str(variant),
                lengths=lengths,
                slope=Estimate.of(slopes),
                p=statistics.p_different(slopes) if len(slopes) >= statistics.MIN_PAIRS else math.nan,
                confounded=_confounded(group),
            )
        )
    return trends


def _confounded(group: pd.DataFrame) -> str:
    """Training data that differ with length, beyond the rounding of a batch to whole windows (5 %)."""
    parts = []
    for column, words in (("a.tokens_per_step", "tokens per step"), ("a.tokens", "training tokens")):
        if column in group:
            values = pd.to_numeric(group[column], errors="coerce").dropna().astype(float)
            if len(values) and values.max() > 1.05 * values.min():
                parts.append(f"{words} differ between lengths ({values.min():,.0f} to {values.max():,.0f})")
    return "; ".join(parts)

"""The rows of a comparison, from pairs: differences, tests, verdicts or why there is none, and costs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dsabench.analysis import statistics
from dsabench.analysis.comparison_row import Estimate, Judgement, Row, Withheld, mean_fields
from dsabench.analysis.learning_checks import learnt_nothing
from dsabench.analysis.matched_cost import Cost, Curve, at_equal_cost
from dsabench.analysis.overfitting import mean_rise
from dsabench.analysis.peak_memory import MOST_SPREAD
from dsabench.analysis.step_times_check import Times
from dsabench.analysis.variants import variant_order
from dsabench.metrics import GAP, Metric

Group = tuple[str, int, pd.DataFrame]
"""A variant at a length, and its pairs."""


class Judging(NamedTuple):
    """What the pairs of all tables are judged by, and what is known of the runs."""

    metric: str
    about: Metric
    margin: float | None
    costs: dict[Cost, dict[str, Curve]]
    memory: pd.Series[float]
    """`memory_spread` of the finished runs."""
    times: Times
    rises: dict[str, float]
    """Of each run's validation loss: `overfitting.rises`."""
    most_rise: float
    """The margin in nats per token, above which a mean rise withholds a verdict."""


def rows_of(pairs: pd.DataFrame, by: Judging) -> list[Row]:
    """A row for each length and variant, verdicts with Holm's correction over the lengths of a variant."""
    groups: list[Group] = [
        (str(group["variant"].iloc[0]), int(group["length"].iloc[0]), group)
        for _, group in pairs.groupby(["variant", "length"])
    ]
    tests: dict[tuple[str, int], float] = {}
    for variant, length, group in groups:
        judged = len(group) >= statistics.MIN_PAIRS and not leaks(group) and not _withheld(group, by)
        d = group[f"a.{by.metric}"] - group[f"b.{by.metric}"]
        tests[variant, length] = statistics.p_different(d) if judged else math.nan
    adjusted: dict[tuple[str, int], float] = {}
    for variant in {variant for variant, _ in tests}:
        mine = [key for key in tests if key[0] == variant]
        adjusted |= dict(zip(mine, statistics.holm([tests[key] for key in mine]), strict=True))
    rows = []
    for variant, length, group in groups:
        n_tests = sum(key[0] == variant and not math.isnan(p) for key, p in tests.items())
        rows.append(_row(group, by, adjusted[variant, length], max(1, n_tests)))
    return sorted(rows, key=lambda row: (row.length, variant_order(row.variant)))


def _row(group: pd.DataFrame, by: Judging, p_adjusted: float, n_tests: int) -> Row:
    metric, about, margin = by.metric, by.about, by.margin
    ours, theirs = group[f"a.{metric}"].to_numpy(float), group[f"b.{metric}"].to_numpy(float)
    d = ours - theirs
    worsening = d if about.lower_is_better else -d
    if margin is not None and metric == "val_bits_per_byte":  # nats per token to bits per byte of these windows
        margin = margin * float(theirs.mean() / group["b.val_loss"].mean())
    withheld = None if leaks(group) else _withheld(group, by)
    verdict = _verdict(group, withheld, worsening, margin, p_adjusted)
    if withheld is None and verdict == "no verdict":
        withheld = "learnt nothing"
    first = group.iloc[0]
    flops, flops_share = _equal(group, by.costs["flops"])
    timed = group[group["timed"]]
    seconds, seconds_share = _equal(timed, by.costs["seconds"])
    return Row(
        length=int(first["length"]),
        variant=str(first["variant"]),
        attention=str(first["a.attention"]),
        k=None if pd.isna(first["a.k"]) else int(first["a.k"]),
        seeds=sorted(int(seed) for seed in group["seed"]),
        baseline_mean=float(theirs.mean()),
        variant_mean=float(ours.mean()),
        difference=Estimate.of(d),
        p=statistics.p_different(d),
        p_adjusted=p_adjusted,
        p_not_worse=math.nan if margin is None else statistics.p_below(worsening, margin),
        p_equivalent=math.nan if margin is None else statistics.p_equivalent(worsening, margin),
        verdict=verdict,
        withheld=withheld,
        learnt_nothing=int(_idle(group, "a").sum() + _idle(group, "b").sum()),
        rise=_rise(group, "a", by),
        baseline_rise=_rise(group, "b", by),
        overfitted=sum(by.rises.get(run_id, 0.0) > by.most_rise for run_id in [*group["a.run_id"], *group["b.run_id"]]),
        seeds_needed=statistics.seeds_needed(worsening, margin, n_tests) if verdict == "inconclusive" else None,
        time_ratio=_ratio(timed, "step_ms"),
        time_spread=by.times.of(_shapes(group)),
        time_doubt=by.times.doubt(_shapes(group)),
        flops_ratio=_ratio(group, "flops"),
        memory_ratio=_ratio(timed, "peak_memory_mb"),
        memory_spread=float(by.memory.reindex(_shapes(group)).max()),
        equal_flops=flops,
        equal_flops_share=flops_share,
        equal_seconds=seconds,
        equal_seconds_share=seconds_share,
        gap=Estimate.of((group[f"a.{GAP}"] - group[f"b.{GAP}"]).to_numpy(float)),
        **_means(group),
    )


def _withheld(group: pd.DataFrame, by: Judging) -> Withheld | None:
    """Why the pairs prove nothing whatever their numbers say; a variant that alone has learnt nothing can be worse.

    Overfitted: on either side the mean rise of the validation loss is above the margin. The difference of the last
    evaluations may then be memory by more than the margin, in favour of the side that memorises less: a variant that
    disturbs memorising looks better, one that learns faster looks worse. No verdict is given, not even of worse:
    fewer steps or more text would decide. It concerns what is evaluated on held-out text; the gap says how much is
    memorised, and so has its verdict.
    """
    if bool((group["a.k"] >= group["length"]).any() or (group["b.k"] >= group["length"]).any()):
        return "selects everything"
    if by.about.needs_one_machine:
        if by.metric == "peak_memory_mb":
            return "unlike memory" if float(by.memory.reindex(_shapes(group)).max()) > MOST_SPREAD else None
        return "noisy times" if by.times.doubt(_shapes(group)) else None
    if _idle(group, "b").any():
        return "learnt nothing"
    overfitted = any(_rise(group, side, by) > by.most_rise for side in "ab")
    return "overfitted" if overfitted and by.about.source == "evaluation" else None


def _verdict(
    group: pd.DataFrame, withheld: Withheld | None, worsening: np.ndarray, margin: float | None, p_adjusted: float
) -> Judgement:
    if leaks(group):
        return "LEAK"
    if withheld:
        return "no verdict"
    found = statistics.verdict(worsening, margin, p_adjusted)
    if found == "worse" or len(group) < statistics.MIN_PAIRS:
        return found
    return "no verdict" if _idle(group, "a").any() else found


def _idle(group: pd.DataFrame, side: str) -> pd.Series[bool]:
    return learnt_nothing(group, f"{side}.")


def _rise(group: pd.DataFrame, side: str, by: Judging) -> float:
    return mean_rise(group[f"{side}.run_id"], by.rises)


def _shapes(group: pd.DataFrame) -> list[tuple[int, str]]:
    """(length, variant) of the variant and of the baseline."""
    first = group.iloc[0]
    return [(int(first["length"]), str(first[f"{side}.variant"])) for side in "ab"]


def _means(group: pd.DataFrame) -> dict[str, Any]:
    fields = mean_fields().items()
    return {name: float(group[f"{field.side}.{field.metric.name}"].mean()) for name, field in fields}


def leaks(group: pd.DataFrame) -> bool:
    """Whether a run of these pairs is marked LEAK."""
    return bool(group["a.leak"].any() or group["b.leak"].any())


def _ratio(group: pd.DataFrame, column: str) -> float:
    """Geometric mean of variant over baseline: the ratio and its inverse then agree."""
    if f"a.{column}" not in group:
        return math.nan
    ratios = (group[f"a.{column}"].astype(float) / group[f"b.{column}"].astype(float)).to_numpy()
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    return float(np.exp(np.log(ratios).mean())) if len(ratios) else math.nan


def _equal(group: pd.DataFrame, curves: dict[str, Curve]) -> tuple[Estimate, float]:
    ids = zip(group["a.run_id"], group["b.run_id"], strict=True)
    found = np.array([at_equal_cost(curves.get(ours), curves.get(theirs)) for ours, theirs in ids]).reshape(-1, 2)
    known = found[np.isfinite(found).all(axis=1)]
    return Estimate.of(known[:, 0]), float(known[:, 1].mean()) if len(known) else math.nan

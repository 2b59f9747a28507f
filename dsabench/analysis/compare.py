"""Comparing the runs of a scope: pairs, tests, verdicts, costs and trends, as one `Comparison`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from dsabench.analysis import statistics
from dsabench.analysis.best_rates import best_rates
from dsabench.analysis.comparison import Comparison, LeftOut, Table, Trend
from dsabench.analysis.comparison_row import Estimate, Row, mean_fields
from dsabench.analysis.matched_cost import Cost, Curve, at_equal_cost, curves_by_run
from dsabench.analysis.pairing import DIFFERENT_MACHINES, find_pairs
from dsabench.analysis.peak_memory import memory_spread
from dsabench.analysis.provenance import warnings
from dsabench.analysis.record_checks import large_wins
from dsabench.analysis.rungs import rungs_of
from dsabench.analysis.scope import Scope, ScopeError
from dsabench.analysis.variants import keys, label_variants, scored_unit, variant_order
from dsabench.analysis.wording import sentences
from dsabench.metrics import GAP, METRICS, Metric, compared
from dsabench.store import load_curves

Group = tuple[str, int, pd.DataFrame]
"""A variant at a length, and its pairs."""


def compare(
    scope: Scope, *, baseline: str = "dense", metric: str = "val_loss", margin: float | None = None
) -> Comparison:
    """Compare every variant of the scope with the baseline.

    Pairs agree in length, seed and everything outside attention; d = variant - baseline of a pair. `margin`, in the
    metric's unit (nats per token for losses), replaces the sweep's.

    Raises:
        ScopeError: no such metric or baseline, or no run has the metric.
    """
    if metric not in compared():
        raise ScopeError(f"--metric {metric}: not a metric that can be compared; accepted: {', '.join(compared())}")
    labelled = label_variants(scope.runs)
    scored = scored_unit(labelled.loc[labelled["finished"], "task_accuracy"])
    about = METRICS[metric].per(scored)
    if metric not in labelled or not labelled.loc[labelled["finished"], metric].notna().any():
        if labelled["finished"].any():
            raise ScopeError(f"--metric {metric}: no finished run of {scope.title} has it")
        labelled[metric] = np.nan
    labelled["k"] = keys(labelled)
    found = find_pairs(labelled, baseline)
    pairs, left_out = found.frame, list(found.left_out)
    notes, unbelievable = list(scope.notes), too_good(pairs)
    usable = np.isfinite(pairs[f"a.{metric}"].astype(float)) & np.isfinite(pairs[f"b.{metric}"].astype(float))
    reason = f"the run or its partner has no {metric}"
    if about.needs_one_machine:
        usable &= pairs["timed"]
        reason += ", or they ran on different machines"
    elif not pairs["timed"].all():
        notes.append(
            f"{int((~pairs['timed']).sum())} of {len(pairs)} pairs ran on {DIFFERENT_MACHINES}: "
            "their losses are compared, their times and memory are not"
        )
    used = {*pairs.loc[usable, "a.run_id"], *pairs.loc[usable, "b.run_id"]}
    lost = [*pairs.loc[~usable, "a.run_id"], *pairs.loc[~usable, "b.run_id"]]
    left_out += [(run_id, reason) for run_id in dict.fromkeys(lost) if run_id not in used]
    pairs = pairs[usable]
    bound, unit, source = _margin(scope, about, METRICS["val_loss"].per(scored).unit, margin)
    costs, damaged = _costs(scope, pairs)
    spread = memory_spread(labelled[labelled["finished"]])
    notes += [f"evaluations of {run_id} cannot be read: {why}" for run_id, why in damaged.items()]
    tables = []
    for setting, of_setting in sorted(pairs.groupby("setting"), key=lambda item: variant_order(f" {item[0]!s}")):
        rows = _rows(of_setting, metric, about, bound, costs, spread)
        trends = _trends(of_setting, metric)
        text = sentences(
            rows, str(setting), baseline=baseline, margin=bound, margin_unit=unit, unit=about.unit, metric=metric
        )
        tables.append(Table(setting=str(setting), rows=rows, trends=trends, sentences=text))
    if labelled["leak"].any():
        notes.append("LEAK: an attention that sees later tokens; its numbers are shown and never judged")
    notes += warnings(scope.runs)
    rungs = rungs_of(scope.runs)
    if not tables:
        notes.append(_no_pairs(labelled, baseline))
    errors = dict(zip(labelled["run_id"], labelled["error"].fillna(""), strict=True))
    return Comparison(
        scope=scope.title,
        sweep=scope.sweep.id if scope.sweep else None,
        metric=metric,
        unit=about.unit,
        lower_is_better=about.lower_is_better,
        baseline=baseline,
        margin=bound,
        margin_unit=unit,
        margin_source=source,
        alpha=statistics.ALPHA,
        tables=tables,
        rungs=rungs,
        best_rates=[] if about.needs_one_machine or rungs else list(best_rates(scope.runs, baseline, metric)),
        left_out=[LeftOut(run_id=run_id, reason=why, error=errors[run_id]) for run_id, why in left_out],
        warnings=unbelievable,
        notes=notes,
    )


def too_good(pairs: pd.DataFrame) -> list[str]:
    """A warning to stand before the tables when a variant wins by more than can be believed; else nothing."""
    found = large_wins(pairs)
    return [found.text.removesuffix(".")] if found.outcome in ("fail", "warn") else []


def _margin(scope: Scope, about: Metric, nats: str, given: float | None) -> tuple[float | None, str, str]:
    unit = about.unit if not about.margin_in_nats else nats
    if given is not None:
        return given, unit, "given to compare, after the runs: exploratory"
    if not about.margin_in_nats:
        return None, unit, f"none is set for {about.unit}"
    return scope.verdict.margin, unit, scope.verdict_source


def _no_pairs(labelled: pd.DataFrame, baseline: str) -> str:
    kinds = sorted(labelled.loc[labelled["finished"], "attention"].unique())
    if len(kinds) <= 1:
        have = f"only {kinds[0]} runs" if kinds else "no runs"
        return f"nothing to compare: {have} have finished, and a comparison needs {baseline} and another attention"
    return "nothing to compare: no run has a partner of the same length, setting and seed"


def _costs(scope: Scope, pairs: pd.DataFrame) -> tuple[dict[Cost, dict[str, Curve]], dict[str, str]]:
    ids = sorted({*pairs["a.run_id"], *pairs["b.run_id"]})
    curves = load_curves(scope.store, ids, columns=["val_loss", "flops", "seconds"])
    totals: dict[Cost, str] = {"flops": "flops", "seconds": "train_seconds"}
    found = {cost: curves_by_run(curves.frame, cost, _totals(pairs, column)) for cost, column in totals.items()}
    return found, curves.damaged


def _totals(pairs: pd.DataFrame, column: str) -> dict[str, float]:
    """The cost of each whole run by its summary."""
    sides = [(pairs[f"{side}.run_id"], pairs[f"{side}.{column}"]) for side in "ab" if f"{side}.{column}" in pairs]
    return {run: total for ids, totals in sides for run, total in zip(ids, totals.astype(float), strict=True)}


def _rows(
    pairs: pd.DataFrame,
    metric: str,
    about: Metric,
    margin: float | None,
    costs: dict[Cost, dict[str, Curve]],
    spread: pd.Series[float],
) -> list[Row]:
    """A row for each length and variant, verdicts with Holm's correction over the lengths of a variant."""
    groups: list[Group] = [
        (str(group["variant"].iloc[0]), int(group["length"].iloc[0]), group)
        for _, group in pairs.groupby(["variant", "length"])
    ]
    tests: dict[tuple[str, int], float] = {}
    for variant, length, group in groups:
        judged = len(group) >= statistics.MIN_PAIRS and not _leaks(group)
        d = group[f"a.{metric}"] - group[f"b.{metric}"]
        tests[variant, length] = statistics.p_different(d) if judged else math.nan
    adjusted: dict[tuple[str, int], float] = {}
    for variant in {variant for variant, _ in tests}:
        mine = [key for key in tests if key[0] == variant]
        adjusted |= dict(zip(mine, statistics.holm([tests[key] for key in mine]), strict=True))
    rows = []
    for variant, length, group in groups:
        n_tests = sum(key[0] == variant and not math.isnan(p) for key, p in tests.items())
        rows.append(_row(group, metric, about, margin, adjusted[variant, length], max(1, n_tests), costs, spread))
    return sorted(rows, key=lambda row: (row.length, variant_order(row.variant)))


def _row(
    group: pd.DataFrame,
    metric: str,
    about: Metric,
    margin: float | None,
    p_adjusted: float,
    n_tests: int,
    costs: dict[Cost, dict[str, Curve]],
    spread: pd.Series[float],
) -> Row:
    ours, theirs = group[f"a.{metric}"].to_numpy(float), group[f"b.{metric}"].to_numpy(float)
    d = ours - theirs
    worsening = d if about.lower_is_better else -d
    if margin is not None and metric == "val_bits_per_byte":  # nats per token to bits per byte of these windows
        margin = margin * float(theirs.mean() / group["b.val_loss"].mean())
    leaks = _leaks(group)
    verdict = "LEAK" if leaks else statistics.verdict(worsening, margin, p_adjusted)
    first = group.iloc[0]
    flops, flops_share = _equal(group, costs["flops"])
    seconds, seconds_share = _equal(group[group["timed"]], costs["seconds"])
    timed = group[group["timed"]]
    length = int(first["length"])
    return Row(
        length=length,
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
        seeds_needed=statistics.seeds_needed(worsening, margin, n_tests) if verdict == "inconclusive" else None,
        time_ratio=_ratio(timed, "step_ms"),
        flops_ratio=_ratio(group, "flops"),
        memory_ratio=_ratio(timed, "peak_memory_mb"),
        memory_spread=float(spread.reindex([(length, first[f"{side}.variant"]) for side in "ab"]).max()),
        equal_flops=flops,
        equal_flops_share=flops_share,
        equal_seconds=seconds,
        equal_seconds_share=seconds_share,
        gap=Estimate.of((group[f"a.{GAP}"] - group[f"b.{GAP}"]).to_numpy(float)),
        **_means(group),
    )


def _means(group: pd.DataFrame) -> dict[str, Any]:
    fields = mean_fields().items()
    return {name: float(group[f"{field.side}.{field.metric.name}"].mean()) for name, field in fields}


def _leaks(group: pd.DataFrame) -> bool:
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


def _trends(pairs: pd.DataFrame, metric: str) -> list[Trend]:
    trends = []
    for variant, group in sorted(pairs.groupby("variant"), key=lambda item: variant_order(str(item[0]))):
        if _leaks(group):
            continue
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

"""Comparing the runs of a scope: pairs, tests, verdicts, costs and trends, as one `Comparison`."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dsabench.analysis import statistics
from dsabench.analysis.answer import answer
from dsabench.analysis.best_settings import best_settings
from dsabench.analysis.children import CONVERSION, child_notes, worse_than_parents
from dsabench.analysis.compared_rows import Judging, rows_of
from dsabench.analysis.comparison import Comparison, LeftOut, Table
from dsabench.analysis.comparison_row import Row
from dsabench.analysis.damaged_runs import damage_sentence
from dsabench.analysis.matched_cost import Cost, Curve, curves_by_run
from dsabench.analysis.overfitting import rises
from dsabench.analysis.pairing import DIFFERENT_MACHINES, find_pairs
from dsabench.analysis.peak_memory import memory_spread
from dsabench.analysis.provenance import warnings
from dsabench.analysis.record_checks import LOOKED_AT, audit_scope, said_first
from dsabench.analysis.rungs import rungs_of
from dsabench.analysis.scope import Scope, ScopeError
from dsabench.analysis.search_checks import search_notes
from dsabench.analysis.size_ladder import ACTIVE, active_parameters, size_ladders
from dsabench.analysis.step_times_check import step_times
from dsabench.analysis.trends import trends_of
from dsabench.analysis.variants import keys, label_variants, scored_unit, variant_order
from dsabench.analysis.wording import sentences
from dsabench.metrics import METRICS, Metric, compared
from dsabench.store import Curves, load_curves


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
    labelled[ACTIVE] = active_parameters(labelled)
    damaged = damage_sentence(scope.runs)
    try:
        paired = find_pairs(labelled, baseline)
    except ScopeError as error:
        if not damaged:
            raise
        raise ScopeError(f"{error}. {damaged}") from error
    pairs, left_out = paired.frame, list(paired.left_out)
    done = labelled[labelled["finished"]]
    curves = load_curves(scope.store, list(done["run_id"]), columns=["flops", "seconds", *LOOKED_AT, *CONVERSION])
    if curves.damaged:  # they went bad since the store was read
        return compare(scope.with_damaged(curves.damaged), baseline=baseline, metric=metric, margin=margin)
    checks = audit_scope(scope, labelled, pairs, curves)
    notes = list(scope.notes)
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
    whole = pairs[usable]
    pairs = whole[[name for name in pairs if str(name).count(".") < 2]]  # digests and machines: done with
    bound, unit, source = _margin(scope, about, METRICS["val_loss"].per(scored).unit, margin)
    most_rise = margin if margin is not None and about.margin_in_nats else scope.verdict.margin
    by = Judging(
        metric,
        about,
        bound,
        _costs(curves, pairs),
        memory_spread(done),
        step_times(done),
        rises(curves.frame),
        most_rise,
    )
    tables, judged = [], [pairs[:0]]
    for setting, of_setting in sorted(pairs.groupby("setting"), key=lambda item: variant_order(f" {item[0]!s}")):
        rows = rows_of(of_setting, by)
        judged.append(_judged(of_setting, rows))
        trends = trends_of(judged[-1], metric)
        text = sentences(
            rows, str(setting), baseline=baseline, margin=bound, margin_unit=unit, unit=about.unit, metric=metric
        )
        tables.append(Table(setting=str(setting), rows=rows, trends=trends, sentences=text))
    notes += child_notes(whole, curves.frame, [row for table in tables for row in table.rows])
    notes += search_notes(scope)
    if labelled["leak"].any():
        notes.append("LEAK: an attention that sees later tokens; its numbers are shown and never judged")
    rungs = rungs_of(scope.runs)
    nothing = "" if tables else _no_pairs(labelled, baseline)
    notes += [nothing] if nothing else []
    errors = dict(zip(labelled["run_id"], labelled["error"].fillna(""), strict=True))
    found = Comparison(
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
        sizes=list(size_ladders(pd.concat(judged), metric)),
        best_rates=[] if about.needs_one_machine or rungs else list(best_settings(scope, pairs, baseline, metric)),
        left_out=[LeftOut(run_id=run_id, reason=why, error=errors[run_id]) for run_id, why in left_out],
        checks=checks,
        warnings=[*_unfinished(scope), *worse_than_parents(whole), *said_first(checks), *warnings(scope.runs)],
        notes=notes,
    )
    return found.model_copy(
        update={"answer": answer(found, nothing, scope.unfinished, damage_sentence(scope.runs, named=False))}
    )


def _judged(pairs: pd.DataFrame, rows: list[Row]) -> pd.DataFrame:
    """The pairs without those of which nothing is said, and without all of a variant that leaks."""
    leaking = {row.variant for row in rows if row.verdict == "LEAK"}
    withheld = {(row.length, row.variant) for row in rows if row.withheld}
    keep = [
        variant not in leaking and (length, variant) not in withheld
        for length, variant in zip(pairs["length"], pairs["variant"], strict=True)
    ]
    return pairs[keep]


def _margin(scope: Scope, about: Metric, nats: str, given: float | None) -> tuple[float | None, str, str]:
    unit = about.unit if not about.margin_in_nats else nats
    if given is not None:
        return given, unit, "given to compare, after the runs: exploratory"
    if not about.margin_in_nats:
        return None, unit, f"none is set for {about.unit}"
    return scope.verdict.margin, unit, scope.verdict_source


def _unfinished(scope: Scope) -> list[str]:
    text = f"The sweep is unfinished: {scope.unfinished} have ended. Those that are left may change every verdict"
    return [text] if scope.unfinished else []


def _no_pairs(labelled: pd.DataFrame, baseline: str) -> str:
    kinds = sorted(labelled.loc[labelled["finished"], "attention"].unique())
    if len(kinds) <= 1:
        have = f"only {kinds[0]} runs" if kinds else "no runs"
        return f"nothing to compare: {have} have finished, and a comparison needs {baseline} and another attention"
    return "nothing to compare: no run has a partner of the same length, setting and seed"


def _costs(curves: Curves, pairs: pd.DataFrame) -> dict[Cost, dict[str, Curve]]:
    evaluations = curves.frame[curves.frame["run_id"].isin({*pairs["a.run_id"], *pairs["b.run_id"]})]
    totals: dict[Cost, str] = {"flops": "flops", "seconds": "train_seconds"}
    return {cost: curves_by_run(evaluations, cost, _totals(pairs, column)) for cost, column in totals.items()}


def _totals(pairs: pd.DataFrame, column: str) -> dict[str, float]:
    """The cost of each whole run by its summary."""
    sides = [(pairs[f"{side}.run_id"], pairs[f"{side}.{column}"]) for side in "ab" if f"{side}.{column}" in pairs]
    return {run: total for ids, totals in sides for run, total in zip(ids, totals.astype(float), strict=True)}

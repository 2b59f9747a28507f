"""Runs that start from trained models, in a comparison: the parents' own losses, what the selection alone costs, and
tokens that trained the backbone.

Steps of a warm-up with a frozen backbone train an indexer alone: at equal steps such a run has trained its backbone on
fewer tokens than its partner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pandas as pd

from dsabench.analysis import statistics
from dsabench.analysis.comparison_row import Row
from dsabench.analysis.matched_cost import at_equal_cost, curves_by_run
from dsabench.analysis.variants import display_name
from dsabench.analysis.wording import doubted, half_width
from dsabench.metrics import METRICS
from dsabench.plain import count

PARENT, WEIGHTS, LOSS = "environment.start.run", "environment.start.weights", "environment.start.val_loss"
STEPS = "environment.start.steps"
"""Columns of what a run's record says of its origin."""

CHECKPOINT = "environment.start.checkpoint"
"""The column of what a model was called that others trained."""

BACKBONE = "backbone_tokens"
"""The column of the tokens that trained the backbone, recorded where these are not all."""


CONVERSION = ("conversion_loss", "mass_recall", "mass_recall_chance")
"""Metrics of the evaluation before a trained model's first sparse step."""


def child_notes(pairs: pd.DataFrame, evaluations: pd.DataFrame, rows: Iterable[Row] = ()) -> list[str]:
    """The notes of a comparison whose runs start from trained models, or have frozen steps; none for others.

    rows: of the same pairs, for what was learnt in equal seconds.
    """
    if pairs.empty:
        return []
    by_variant = {(row.length, row.variant): row for row in rows}
    return [*_parents(pairs), *_conversions(pairs, evaluations), *_backbones(pairs, evaluations, by_variant)]


def worse_than_parents(pairs: pd.DataFrame) -> Iterator[str]:
    """A warning where the baseline, trained on, ended above its parents' own loss: no child can be judged by it."""
    for (setting, length), group in _children(pairs).groupby(["setting", "length"], sort=False):
        mine = group.drop_duplicates("b.run_id")
        rise = _numbers(mine, "b.val_loss") - _numbers(mine, f"b.{LOSS}")
        rise = rise[np.isfinite(rise)]
        if len(rise) and rise.mean() > 0:
            yield (
                f"{_of(setting, length)}the baseline, trained on, ended {rise.mean():.4f} nats above its parent's own "
                f"loss ({(rise > 0).sum()} of {count(len(rise), 'seed')} did): more training made it worse, so that a "
                "child that learns less looks better; take a longer text (such as data.source=packages), fewer steps "
                "or a lower learning rate"
            )


def _children(pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs of which both runs start from the same weights."""
    if f"a.{WEIGHTS}" not in pairs:
        return pairs.iloc[:0]
    return pairs[pairs[f"a.{WEIGHTS}"].notna() & (pairs[f"a.{WEIGHTS}"] == pairs[f"b.{WEIGHTS}"])]


def _parents(pairs: pd.DataFrame) -> Iterator[str]:
    for (setting, length), group in _children(pairs).groupby(["setting", "length"], sort=False):
        own = group.drop_duplicates(f"a.{WEIGHTS}")
        names = [own[f"a.{column}"].iloc[0] for column in (PARENT, CHECKPOINT) if f"a.{column}" in own]
        name = next((name for name in names if isinstance(name, str)), None)
        named = f" ({name}{' and others' if len(own) > 1 else ''})" if name is not None else ""
        line = f"{_of(setting, length)}pairs are children of one parent each: {count(len(own), 'parent')}{named}"
        losses = _numbers(own, f"a.{LOSS}")
        if np.isfinite(losses).any():
            line += f", whose own val_loss is {np.nanmean(losses):.4f}"
            gains = _numbers(group, "b.val_loss") - _numbers(group, f"b.{LOSS}")
            of = [f"the baseline {np.nanmean(gains):+.4f}"]
            for variant, mine in group.groupby("variant", sort=False):
                gain = _numbers(mine, "a.val_loss") - _numbers(mine, f"a.{LOSS}")
                of.append(f"{display_name(str(variant), str(setting))} {np.nanmean(gain):+.4f}")
            line += f" (mean of seeds); since then {', '.join(of)}"
        yield line


def _conversions(pairs: pd.DataFrame, evaluations: pd.DataFrame) -> Iterator[str]:
    """What the selection alone costs each variant, and how much attention it holds then; both, because the one should
    make the other plausible."""
    if CONVERSION[0] not in evaluations:
        return
    at_change = evaluations[np.isfinite(evaluations[CONVERSION[0]])].drop_duplicates("run_id", keep="last")
    known = pairs[["setting", "length", "variant", "a.run_id"]].merge(
        at_change, left_on="a.run_id", right_on="run_id", suffixes=("", "_of_evaluation")
    )
    for (setting, length), group in known.groupby(["setting", "length"], sort=False):
        costs = []
        for variant, mine in group.groupby("variant", sort=False):
            cost, recall, chance = (_numbers(mine, name) for name in CONVERSION)
            text = f"{display_name(str(variant), str(setting))} {cost.mean():+.4f}"
            if np.isfinite(recall).any():
                text += f" (mass recall {np.nanmean(recall):.2f}, chance {np.nanmean(chance):.2f})"
            costs.append(text)
        meaning = METRICS[CONVERSION[0]].meaning
        yield f"{_of(setting, length)}{meaning}: {', '.join(costs)}"


def _backbones(pairs: pd.DataFrame, evaluations: pd.DataFrame, rows: Mapping[tuple[int, str], Row]) -> Iterator[str]:
    """A line for each variant whose backbone was trained on fewer tokens than the baseline's, or more."""
    ours, theirs = backbone_tokens(pairs, "a."), backbone_tokens(pairs, "b.")
    differ = pairs[(ours != theirs) & ours.notna() & theirs.notna()]
    sides = {
        side: dict(zip(pairs[f"{side}run_id"], backbone_tokens(pairs, side), strict=True)) for side in ("a.", "b.")
    }
    totals = {**sides["a."], **sides["b."]}
    curves = curves_by_run(_spent(pairs, evaluations, totals), "tokens", totals)
    for (setting, length, variant), group in differ.groupby(["setting", "length", "variant"], sort=False):
        a, b = (backbone_tokens(group, side).mean() for side in ("a.", "b."))
        line = (
            f"{_of(setting, length)}tokens that trained the backbone: {display_name(str(variant), str(setting))} "
            f"{a:,.0f}, the baseline {b:,.0f}; difference of val_loss "
            f"{_estimate(_numbers(group, 'a.val_loss') - _numbers(group, 'b.val_loss'))} at equal steps"
        )
        equal = np.array(
            [
                at_equal_cost(curves.get(one), curves.get(other))[0]
                for one, other in zip(group["a.run_id"], group["b.run_id"], strict=True)
            ]
        )
        if np.isfinite(equal).any():
            line += f", {_estimate(equal)} at the fewer tokens of the two"
        row = rows.get((int(group["length"].iloc[0]), str(variant)))
        if row is not None and row.equal_seconds.n:
            line += f", {doubted(half_width(row.equal_seconds), row.time_doubt)} in equal seconds"
        yield line


def _estimate(values: np.ndarray) -> str:
    """The mean of the finite ones, with half of its interval where it has one."""
    found = statistics.paired(list(values[np.isfinite(values)]))
    half = (found.high - found.low) / 2
    return f"{found.mean:+.4f}" + (f" +-{half:.4f}" if np.isfinite(half) else "")


def backbone_tokens(runs: pd.DataFrame, side: str = "") -> pd.Series[float]:
    """Tokens that trained the backbone of each run; all of them where no step was frozen."""
    total = pd.Series(_numbers(runs, f"{side}tokens"), index=runs.index)
    if f"{side}{BACKBONE}" not in runs:
        return total
    return pd.Series(_numbers(runs, f"{side}{BACKBONE}"), index=runs.index).fillna(total)


def _spent(pairs: pd.DataFrame, evaluations: pd.DataFrame, totals: dict[str, float]) -> pd.DataFrame:
    """The evaluations with the tokens that had trained the backbone by then; of frozen steps, the last one."""
    a_step: dict[str, float] = {}
    frozen: dict[str, float] = {}
    for side in ("a.", "b."):
        for run, tokens, steps in zip(
            pairs[f"{side}run_id"], _numbers(pairs, f"{side}tokens"), _numbers(pairs, f"{side}steps"), strict=True
        ):
            a_step[run] = tokens / steps if steps else float("nan")
            frozen[run] = tokens - totals[run]
    found = evaluations[evaluations["run_id"].isin(list(totals))].copy()
    runs = found["run_id"]
    spent = found["step"].astype(float) * runs.map(a_step).astype(float) - runs.map(frozen).astype(float)
    found["tokens"] = spent.clip(lower=0)
    return found[~found.duplicated(["run_id", "tokens"], keep="last")]


def _of(setting: object, length: object) -> str:
    return f"{setting}, {length} tokens: " if setting else f"{length} tokens: "


def _numbers(runs: pd.DataFrame, column: str) -> np.ndarray:
    values = runs[column] if column in runs else pd.Series(np.nan, index=runs.index)
    return pd.to_numeric(values, errors="coerce").astype("Float64").astype("float64").to_numpy(float, na_value=np.nan)

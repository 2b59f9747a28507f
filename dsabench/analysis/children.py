"""Runs that start from trained models, in a comparison: the parents' own losses, and tokens that trained the backbone.

Steps of a warm-up with a frozen backbone train an indexer alone: at equal steps such a run has trained its backbone on
fewer tokens than its partner.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from dsabench.analysis import statistics
from dsabench.analysis.matched_cost import at_equal_cost, curves_by_run
from dsabench.analysis.variants import display_name
from dsabench.plain import count

PARENT, WEIGHTS, LOSS = "environment.start.run", "environment.start.weights", "environment.start.val_loss"
"""Columns of what a run's record says of its origin."""

CHECKPOINT = "environment.start.checkpoint"
"""The column of what a model was called that others trained."""

BACKBONE = "backbone_tokens"
"""The column of the tokens that trained the backbone, recorded where these are not all."""


def child_notes(pairs: pd.DataFrame, evaluations: pd.DataFrame) -> list[str]:
    """The notes of a comparison whose runs start from trained models, or have frozen steps; none for others."""
    return [] if pairs.empty else [*_parents(pairs), *_backbones(pairs, evaluations)]


def _parents(pairs: pd.DataFrame) -> Iterator[str]:
    if f"a.{WEIGHTS}" not in pairs:
        return
    known = pairs[pairs[f"a.{WEIGHTS}"].notna() & (pairs[f"a.{WEIGHTS}"] == pairs[f"b.{WEIGHTS}"])]
    for (setting, length), group in known.groupby(["setting", "length"], sort=False):
        own = group.drop_duplicates(f"a.{WEIGHTS}")
        names = [own[f"a.{column}"].iloc[0] for column in (PARENT, CHECKPOINT) if f"a.{column}" in own]
        name = next((name for name in names if isinstance(name, str)), None)
        named = f" ({name}{' and others' if len(own) > 1 else ''})" if name is not None else ""
        line = f"{_of(setting, length)}pairs are children of one parent each: {count(len(own), 'parent')}{named}"
        losses = _numbers(own, f"a.{LOSS}")
        if np.isfinite(losses).any():
            line += f", whose own val_loss is {np.nanmean(losses):.4f}"
            gains = {"": _numbers(group, "b.val_loss") - _numbers(group, f"b.{LOSS}")}
            of = [f"the baseline {np.nanmean(gains['']):+.4f}"]
            for variant, mine in group.groupby("variant", sort=False):
                gain = _numbers(mine, "a.val_loss") - _numbers(mine, f"a.{LOSS}")
                of.append(f"{display_name(str(variant), str(setting))} {np.nanmean(gain):+.4f}")
            line += f" (mean of seeds); since then {', '.join(of)}"
        yield line


def _backbones(pairs: pd.DataFrame, evaluations: pd.DataFrame) -> Iterator[str]:
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
            f"{a:,.0f}, the baseline {b:,.0f}"
        )
        equal = [
            at_equal_cost(curves.get(one), curves.get(other))[0]
            for one, other in zip(group["a.run_id"], group["b.run_id"], strict=True)
        ]
        if finite := [value for value in equal if np.isfinite(value)]:
            found = statistics.paired(finite)
            half = f" +-{(found.high - found.low) / 2:.4f}" if np.isfinite(found.high - found.low) else ""
            line += f"; at the fewer tokens of the two the difference of val_loss is {found.mean:+.4f}{half}"
        yield line


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

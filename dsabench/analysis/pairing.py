"""Pairs of runs: one length, setting and seed, a variant beside its baseline; and the runs that are in no pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dsabench.analysis.scope import ScopeError
from dsabench.analysis.variants import RATIO, TOP_K, within
from dsabench.spec.messages import near_miss

MACHINE = (
    "environment.device_name",
    "environment.precision",
    "environment.cuda_graph",
    "environment.deterministic",
    "environment.threads",
    "environment.data_parallel",
    "environment.torch",
)
"""Columns in which two runs must agree for their times to be comparable; one that the store lacks is no hindrance."""

DIFFERENT_MACHINES = "two kinds of machine (devices, threads, PyTorch or its settings differ)"
"""MACHINE in words."""

UNSAID = {"environment.data_parallel": "1"}
"""Values in records that were written before the column was recorded."""


@dataclass(frozen=True)
class Pairs:
    """Every pair of a variant's run with the baseline's run of the same length, setting and seed."""

    frame: pd.DataFrame
    """One row a pair: setting, length, seed, variant, the columns of the variant's run as `a.COLUMN` and those of the
    baseline's as `b.COLUMN`, without the fields of spec and environment but for k, MACHINE and the origin, and
    `timed`: whether both were timed on the same kind of machine."""

    left_out: list[tuple[str, str]]
    """(run id, why it is in no pair), in the runs' order."""


def is_baseline(labelled: pd.DataFrame, baseline: str) -> pd.Series[bool]:
    """Which runs `--baseline NAME` means: those of the attention, or else of the variant, of that name.

    Raises ScopeError, naming what there is, when it means none or, in one setting, several variants.
    """
    short = pd.Series(
        [within(v, s) for v, s in zip(labelled["variant"], labelled["setting"], strict=True)], index=labelled.index
    )
    chosen = labelled["attention"] == baseline
    for names in (short, labelled["variant"]):
        if not chosen.any():
            chosen = names == baseline
    if not chosen.any():
        known = sorted({*labelled["attention"].dropna(), *short[labelled["attention"].notna()]})
        hint = near_miss(baseline, known)
        if baseline == "dense" and known:
            hint = (
                f"; train dense runs too (dsabench sweep --attentions dense {known[0]} ...), or --baseline {known[0]}"
            )
        raise ScopeError(f"--baseline {baseline}: no run has that attention{hint}")
    for setting, variants in short[chosen].groupby(labelled.loc[chosen, "setting"]):
        if variants.nunique() > 1:
            of = f" of {setting!s}" if setting else ""
            listed = "; ".join(sorted(variants.unique())[:8])
            raise ScopeError(
                f"--baseline {baseline} means {variants.nunique()} variants{of}; name one of them: {listed}"
            )
    return chosen


def find_pairs(labelled: pd.DataFrame, baseline: str) -> Pairs:
    """Pair the finished runs of `label_variants` with the baseline's; raises ScopeError as `is_baseline`."""
    base = is_baseline(labelled, baseline)
    finished = labelled["finished"]
    keys = ["length", "setting", "seed"]
    columns = [
        *keys,
        "variant",
        *sorted(name for name in map(str, labelled) if name not in {*keys, "variant"} and _is_kept(name)),
    ]
    ours, theirs = labelled.loc[finished & ~base, columns], labelled.loc[finished & base, columns]
    frame = ours.add_prefix("a.").merge(
        theirs.add_prefix("b."), left_on=[f"a.{k}" for k in keys], right_on=[f"b.{k}" for k in keys]
    )
    head = pd.DataFrame({key: frame[f"a.{key}"] for key in (*keys, "variant")})
    frame = pd.concat([head.astype({"length": int, "seed": int}), frame], axis=1)
    frame["timed"] = _same_machine(frame)
    paired = {*frame["a.run_id"], *frame["b.run_id"]}
    kind = labelled.loc[base, "attention"].iloc[0]
    left_out = []
    for run in labelled.loc[~labelled["run_id"].isin(paired)].drop_duplicates("run_id").to_dict("records"):
        left_out.append((str(run["run_id"]), run["reason"] or _lonely(run, kind)))
    return Pairs(frame.sort_values(["setting", "length", "variant", "seed"], ignore_index=True), left_out)


def machines(runs: pd.DataFrame) -> pd.Series[str]:
    """Where each run was timed, in words: device and precision, and what else tells the runs' machines apart."""
    names = pd.Series("unknown machine", index=runs.index, dtype=object)
    for column in MACHINE:
        if column not in runs:
            continue
        texts = runs[column].astype("string").fillna(UNSAID.get(column, "unknown")).astype(object)
        if column == "environment.device_name":
            names = texts.where(texts != "unknown", names)
        elif column == "environment.precision":
            names = names + ", " + texts
        elif texts.nunique() > 1:
            names = names + f", {column.rpartition('.')[2]} " + texts
    return names


def _is_kept(column: str) -> bool:
    """Whether pairs have a column of the runs: the fields of spec and environment are most of a table, and every
    selection of rows would copy them."""
    return (
        "." not in column
        or column.startswith(("fingerprint.", "environment.start."))
        or column in (*MACHINE, TOP_K, RATIO)
    )


def _lonely(run: dict[Any, Any], kind: str) -> str:
    """Why a finished run has no partner; `kind` is the baseline's."""
    of = f"length {int(run['length'])} and seed {int(run['seed'])}"
    if run["attention"] == kind:
        return f"no finished run of another attention of {of}"
    return f"no finished {kind} run of {of}" + (f" and {run['setting']}" if run["setting"] else "")


def _same_machine(frame: pd.DataFrame) -> np.ndarray:
    same = np.ones(len(frame), dtype=bool)
    for column in MACHINE:
        if f"a.{column}" in frame:
            ours, theirs = (frame[f"{side}.{column}"].astype("string").fillna(UNSAID.get(column, "")) for side in "ab")
            same &= (ours == theirs).to_numpy(dtype=bool)
    return same

"""The data of figures: the runs of a scope, their evaluations, and the variants' looks, the same in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dsabench.analysis.compare import compare
from dsabench.analysis.comparison import Comparison
from dsabench.analysis.damaged_runs import damage_sentence
from dsabench.analysis.pairing import find_pairs, is_baseline, machines
from dsabench.analysis.scope import Scope, ScopeError
from dsabench.analysis.variants import RATIO, TOP_K, keys, label_variants, variant_order
from dsabench.figures.style import COLOURS, Look, looks
from dsabench.metrics import columns, compared, drawn
from dsabench.plain import count, is_or_are
from dsabench.store import Curves, load_curves
from dsabench.store.curves import LISTS

PER_PAGE = len(COLOURS)
"""Variants on one page: more could not be told apart."""

_OF_PAIRS = ["setting", "length", "seed", "variant", "a.run_id", "b.run_id"]
"""Columns that say which runs are pairs."""


@dataclass(frozen=True)
class Drawn:
    """A figure, on one page or on several."""

    pages: list[Figure]
    notes: list[str] = field(default_factory=list)
    """What of the store is not in it, a line each."""


@dataclass(frozen=True)
class FigureData:
    """The runs that figures show; made by `figure_data`.

    `done` and `pairs` have few columns: fields of spec and environment are most of a table, and every selection of
    rows would copy them.
    """

    scope: Scope
    runs: pd.DataFrame
    """`label_variants` of the scope's runs; `machine`: what its times may be compared on; k (NaN: does not select)."""

    baseline: str | None
    """The attention or variant that differences are taken to; None when the scope has none."""

    pairs: pd.DataFrame
    """`find_pairs`: each finished run with the baseline's of its length, setting and seed."""

    curves: Curves
    """The evaluations of the finished runs: their cost, the metrics that figures draw, and the loss by position."""

    notes: list[str]
    """What holds for every figure, a line each."""

    compared: Comparison | None = None
    """The statistics of the scope, where they have been made."""

    @cached_property
    def done(self) -> pd.DataFrame:
        """The runs that count, in a fixed order, without the fields of spec and environment."""
        few = [name for name in self.runs if "." not in str(name)]
        done: pd.DataFrame = self.runs.loc[self.runs["finished"], few].astype({"length": int, "seed": int})
        return done.sort_values(["length", "variant", "seed"], kind="stable")

    @cached_property
    def pages(self) -> list[dict[str, Look]]:
        """The variants of each page with their looks, the same in every figure."""
        known = self.runs[self.runs["attention"].notna()]
        base = [] if self.baseline is None else list(known.loc[is_baseline(known, self.baseline), "variant"])
        return paginate(known, base)

    @cached_property
    def comparison(self) -> Comparison:
        """The statistics of the scope."""
        if self.compared is not None:
            return self.compared
        assert self.baseline is not None
        return compare(self.scope, baseline=self.baseline)

    def evaluations(self, *needed: str) -> pd.DataFrame:
        """The evaluations that recorded a finite number of all that is `needed`."""
        frame: pd.DataFrame = self.curves.frame
        for name in needed:
            frame = frame[np.isfinite(frame[name])]
        return frame


def figure_data(scope: Scope, baseline: str = "dense") -> FigureData:
    """Read what the figures need of `scope`, of which one without dense runs has no default baseline.

    Raises:
        ScopeError: another `baseline` than dense that no run has, or one that means several variants of one setting.
    """
    runs = label_variants(scope.runs)
    for column in ("tokens_per_step", *(name for name in compared() if name in columns())):
        values = runs[column] if column in runs else pd.Series(np.nan, index=runs.index)
        runs[column] = pd.to_numeric(values, errors="coerce").astype("Float64").astype("float64")
    runs["machine"] = machines(runs)
    runs["k"] = keys(runs)
    notes = [*scope.notes, *_not_shown(runs)]
    notes += [damaged] if (damaged := damage_sentence(scope.runs)) else []
    there: str | None = baseline
    try:
        pairs = find_pairs(runs, baseline).frame[[*_OF_PAIRS, "a.val_loss", "b.val_loss"]]
    except ScopeError:
        if baseline != "dense" or (runs["attention"] == "dense").any():
            raise
        there, pairs = None, pd.DataFrame(columns=_OF_PAIRS)
        notes.append("no dense run among these: no differences are shown (--baseline names another attention)")
    curves = load_curves(
        scope.store, list(runs.loc[runs["finished"], "run_id"]), columns=["seconds", "flops", *drawn(), *LISTS]
    )
    if curves.damaged:  # they went bad since the store was read
        return figure_data(scope.with_damaged(curves.damaged), baseline)
    gaps = int((~np.isfinite(curves.frame["val_loss"])).sum())
    if gaps:
        notes.append(f"{gaps} of {len(curves.frame)} evaluations have no finite validation loss: curves leave them out")
    return FigureData(scope, runs, there, pairs, curves, notes)


def paginate(labelled: pd.DataFrame, baselines: Collection[str]) -> list[dict[str, Look]]:
    """Spread variants over pages of at most PER_PAGE, those of one setting together, its baseline on each of them."""
    variants = labelled[["setting", "variant"]].drop_duplicates()
    if variants["variant"].nunique() <= PER_PAGE:
        return [looks(list(variants["variant"]))]
    found: list[list[str]] = [[]]
    for _, of_setting in sorted(variants.groupby("setting"), key=lambda item: variant_order(f" {item[0]!s}")):
        names = sorted(of_setting["variant"], key=variant_order)
        always = [name for name in names if name in baselines][: PER_PAGE // 2]
        others = [name for name in names if name not in always]
        room = PER_PAGE - len(always)
        for i in range(0, max(1, len(others)), room):
            chunk = [*always, *others[i : i + room]]
            if len(found[-1]) + len(chunk) > PER_PAGE:
                found.append([])
            found[-1] += chunk
    return [looks(page) for page in found]


def families(runs: pd.DataFrame) -> pd.Series[str]:
    """The name of each run's variant apart from how many keys it keeps."""
    return label_variants(runs, ignoring=(TOP_K, RATIO))["variant"]


def _not_shown(runs: pd.DataFrame) -> list[str]:
    left_out = runs.loc[~runs["finished"], "reason"]
    if left_out.empty:
        return []
    reasons = Counter("superseded" if reason.startswith("superseded") else reason for reason in left_out)
    why = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    n = len(left_out)
    return [f"{n:,} of {count(len(runs), 'run')} {is_or_are(n)} not shown: {why}"]

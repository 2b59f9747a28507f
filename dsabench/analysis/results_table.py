"""The experiment's own output: the table of length x variant over seeds, and the files under results/."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from dsabench.analysis.pairing import find_pairs
from dsabench.analysis.rungs import rungs_of
from dsabench.analysis.selection_width import selects_everything
from dsabench.analysis.variants import label_variants, scored_unit, variant_order
from dsabench.errors import ScopeError
from dsabench.metrics import METRICS, Metric, beside, means, partners, spreads
from dsabench.plain import json_values
from dsabench.store.files import write_file

PUBLISHED = {"dense": "classic", "dsa": "sparse"}
"""Names of the two attentions in the files; every other kind has its own."""

_KEYS = {"val_loss": "final_val_loss", "val_accuracy": "final_val_accuracy", "step_ms": "avg_time_per_step"}
"""Keys of metrics in the files, where they are not their names; `avg_time_per_step` is in seconds."""


def experiment_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each length and variant, dense first; `runs` has one row a run, as the store loads it.

    Columns: length (tokens), variant (kind and differing fields), attention (kind), setting (the differing
    fields outside attention), n (finished seeds), n_runs, leak, selects_everything (k >= length); `_mean`,
    `_sd` (n - 1; NaN for one seed),
    `_min` and `_max` of the metrics of `spreads`; the means of those of `means` by their own names; diff_n,
    diff_mean, diff_sd of val_loss minus val_loss of dense with the same length, setting and seed.
    A variant of which no run finished has n = 0 and NaN.
    """
    labelled = label_variants(runs)
    differences = _differences_to_dense(labelled)
    rows = []
    for _, group in labelled[labelled["attention"].notna()].groupby(["length", "variant"]):
        done = group[group["finished"]]
        row: dict[str, Any] = {name: group[name].iloc[0] for name in ("variant", "attention", "setting")}
        row |= {"length": int(group["length"].iloc[0]), "n": len(done), "n_runs": len(group)}
        row["leak"] = bool(group["leak"].any())
        row["selects_everything"] = bool(selects_everything(group).any())
        row |= {f"{m}_{name}": value for m in spreads() for name, value in _spread(done[m]).items()}
        row |= {name: float(done[name].mean()) for name in means()}
        difference = differences.get((row["length"], row["variant"]), pd.Series(dtype="float64"))
        row |= {"diff_n": len(difference), "diff_mean": difference.mean(), "diff_sd": difference.std()}
        rows.append(row)
    rungs = rungs_of(runs)  # on a ladder dense stands beside sparse of the same rung
    rows.sort(
        key=lambda row: (row["length"], variant_order(row["setting"]) if rungs else (), variant_order(row["variant"]))
    )
    columns = ["length", "variant", "attention", "setting", "n", "n_runs", "leak", "selects_everything"]
    columns += [f"{m}_{name}" for m in spreads() for name in ("mean", "sd", "min", "max")]
    return pd.DataFrame(rows, columns=[*columns, *means(), "diff_n", "diff_mean", "diff_sd"])


def not_averaged(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that no mean includes: run_id, attention, variant, length, seed, reason and error."""
    labelled = label_variants(runs)
    columns = ["run_id", "attention", "variant", "length", "seed", "reason", "error"]
    left_out = labelled.loc[~labelled["finished"], columns].reset_index(drop=True)
    return left_out.astype({"length": "Int64", "seed": "Int64"})


def write_results(
    runs: pd.DataFrame,
    metrics: pd.DataFrame,
    out: Path,
    sweep: str | None = None,
    answer: str = "",
    warnings: Sequence[str] = (),
) -> list[Path]:
    """Write summary.json and seq_<L>/<variant>_results.json under `out`; returns the paths, summary first.

    `runs` and `metrics` are what the store loads, `sweep` the id of the sweep that they belong to, `answer` and
    `warnings` those of their comparison. A missing or non-finite number is null. Each file is replaced as a whole, the
    summary last. Raises ResultsError.
    """
    labelled = label_variants(runs)
    table = experiment_table(runs)
    results: dict[str, dict[str, Any]] = {}
    files: dict[str, dict[str, str]] = {}
    baseline: dict[str, Any] = {}
    stems: dict[str, set[str]] = {}
    curves = dict(iter(metrics.groupby("run_id"))) if len(metrics) else {}
    written = []
    for row in table[table["n"] > 0].to_dict("records"):
        length, name = str(row["length"]), published(str(row["variant"]))
        mine = labelled["finished"] & (labelled["length"] == row["length"]) & (labelled["variant"] == row["variant"])
        done = labelled[mine].sort_values("seed").to_dict("records")
        results.setdefault(length, {})[name] = _entry({str(k): v for k, v in row.items()}, done)
        baseline.setdefault(length, {})[name] = row["unigram_loss"]
        stem = _file_stem(name, stems.setdefault(length, set()))
        file = files.setdefault(length, {})[name] = f"seq_{length}/{stem}_results.json"
        seeds = {str(int(run["seed"])): _curves(run["run_id"], curves.get(run["run_id"])) for run in done}
        content = {"length": row["length"], "attention": row["attention"], "variant": name, "seeds": seeds}
        written.append(write_file(out / file, _json(content, indent=None)))
    summary = {
        "answer": answer,
        "warnings": list(warnings),
        "results": results,
        "sweep": sweep,
        "unigram_loss": baseline,
        "files": files,
        "not_averaged": not_averaged(runs).to_dict("records"),
        "meaning": _meaning(table),
    }
    return [write_file(out / "summary.json", _json(summary)), *written]


def published(variant: str) -> str:
    """The name of a variant in the files: dense is `classic`, dsa is `sparse`."""
    kind, space, fields = variant.partition(" ")
    if kind in PUBLISHED.values():  # a plugin of that name is not the built-in one
        kind = f"kind={kind}"
    return PUBLISHED.get(kind, kind) + space + fields


def _spread(values: pd.Series[float]) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "sd": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
    }


def _differences_to_dense(labelled: pd.DataFrame) -> dict[tuple[int, str], pd.Series[float]]:
    """(length, variant) -> val_loss minus dense's, pair by pair; none in a setting with several variants of dense."""
    found: dict[tuple[int, str], pd.Series[float]] = {}
    for _, of_setting in labelled.groupby("setting"):
        with suppress(ScopeError):
            for _, pairs in find_pairs(of_setting, "dense").frame.groupby(["length", "variant"]):
                length, variant = int(pairs["length"].iloc[0]), str(pairs["variant"].iloc[0])
                found[length, variant] = pairs["a.val_loss"] - pairs["b.val_loss"]
    return found


def _entry(row: dict[str, Any], done: list[dict[Any, Any]]) -> dict[str, Any]:
    def seconds(name: str, value: Any) -> Any:
        return value / 1000 if name == "step_ms" else value

    results = {name: _KEYS.get(name, name) for name in spreads()}
    entry: dict[str, Any] = {key: seconds(name, row[f"{name}_mean"]) for name, key in results.items()}
    entry["seeds"] = {
        str(int(run["seed"])): {key: seconds(name, run[name]) for name, key in results.items()}
        | {"run_id": run["run_id"]}
        for run in done
    }
    entry["n_seeds"] = row["n"]
    entry["spread"] = {
        key: {s: seconds(name, row[f"{name}_{s}"]) for s in ("sd", "min", "max")} for name, key in results.items()
    }
    entry["difference_to_classic"] = (
        {"n": row["diff_n"], "mean": row["diff_mean"], "sd": row["diff_sd"]} if row["diff_n"] else None
    )
    known = {name: row[name] for name in means() if METRICS[name].runs != "task" or math.isfinite(row[name])}
    return entry | known | {"leak": row["leak"]}


def _meaning(table: pd.DataFrame) -> dict[str, str]:
    """What the keys of the summary mean."""
    scored = scored_unit(table.loc[table["n"] > 0, "task_accuracy"])
    listed = {name: metric.per(scored) for name, metric in METRICS.items()}
    shown = {metric.name for metric in beside()} - partners() | {listed[name].chance for name in spreads()}
    there = [name for name in means() if name in shown and (listed[name].runs != "task" or table[name].notna().any())]
    return {
        "answer": "the comparison with dense in plain words, a line a variant and setting",
        "warnings": "what must be known before any number",
        "results": "length -> variant -> means over seeds; `seeds` has each seed's own values",
        **{_KEYS.get(name, name): _quantity(listed[name]) for name in spreads()},
        "spread": "over seeds: sd (of the sample, n - 1; null for one seed), min and max",
        "difference_to_classic": "final_val_loss minus classic's of the same seed: n pairs, mean and sd",
        **{name: _quantity(listed[name]) for name in there},
        "files": "length -> variant -> file with the curves, relative to this one",
        "not_averaged": "runs that are in no mean, and why",
    }


def _quantity(metric: Metric) -> str:
    """A metric as the files have it, and its chance."""
    known = replace(metric, unit="seconds") if metric.name == "step_ms" else metric
    chance = METRICS.get(metric.chance)
    beside = f"; {chance.name}: {chance.quantity}" if chance is not None and metric.name not in spreads() else ""
    return known.quantity + beside


def _curves(run_id: str, records: pd.DataFrame | None) -> dict[str, Any]:
    """The evaluations of a run as parallel lists, and under `training` the training records."""
    curves: dict[str, Any] = {"run_id": run_id, "steps": [], "training": {"steps": []}}
    if records is None:
        return curves
    for kind, into in (("eval", curves), ("train", curves["training"])):
        mine = records[records["kind"] == kind].sort_values("step", kind="stable")
        into["steps"] = mine["step"].tolist()
        measured = mine.drop(columns=["run_id", "kind", "step"]).dropna(axis="columns", how="all")
        into |= {str(name): measured[name].tolist() for name in measured.columns}
    return curves


def _file_stem(name: str, taken: set[str]) -> str:
    """`name` as a file name on any system, added to `taken`; a digest keeps apart what would become one."""
    stem = re.sub(r"[^A-Za-z0-9._=-]+", "_", name)
    if stem != name.replace(" ", "_") or len(stem) > 100 or stem.casefold() in taken:
        stem = f"{stem[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    taken.add(stem.casefold())
    return stem


def _json(content: Any, indent: int | None = 2) -> bytes:
    return (json.dumps(json_values(content), indent=indent, allow_nan=False) + "\n").encode()

"""Comparing a tuned sweep: best against best, with what each search chose and cost, and equal budgets."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import experiment, finished

from dsabench.analysis import formats
from dsabench.analysis.compare import compare
from dsabench.analysis.scope import ScopeError, look_at
from dsabench.spec.run import validate
from dsabench.store import StudyRecord, SweepRecord, TrialRecord, TuningRecord, write_sweep

RATE, INDEXER = "train.learning_rate", "attention.indexer.learning_rate"
RANGE = {"low": 1e-4, "high": 1e-2, "scale": "log"}
BEST: dict[str, dict[str, float]] = {"dense": {RATE: 1e-3}, "dsa": {RATE: 9.9e-3, INDEXER: 2e-3}}


def study(kind: str, run_ids: list[str], n_trials: int, is_over: bool) -> StudyRecord:
    trials = [
        TrialRecord(
            run_id=f"{kind}-trial-{i}",
            settings={path: value * (1 if i == 1 else 0.5) for path, value in BEST[kind].items()},
            val_loss=None if i == 0 else 4.4 + i / 10,
            tokens=1000,
            flops=6e6,
            seconds=2.0,
        )
        for i in range(n_trials)
    ]
    lacks = [path for path in (RATE, INDEXER) if path not in BEST[kind]]
    return StudyRecord(
        name=f"{kind} at 64", length=64, attention=kind, over=list(BEST[kind]), lacks=lacks, trials=trials,
        best=1 if is_over else None, run_ids=run_ids if is_over else [],
    )  # fmt: skip


def tuned_store(store: Path, *, short: bool = False, over: bool = True) -> Path:
    """Dense and DSA at their own best rates, five seeds, DSA 0.1 nats better; short: DSA's search lacks a trial."""
    runs: dict[str, list[str]] = {"dense": [], "dsa": []}
    for seed in (1, 2, 3, 4, 5):
        for kind, values in (("dense", {"kind": "dense"}), ("dsa", {"kind": "dsa", "top_k": 16})):
            attention = {**values, **({"indexer": {"learning_rate": BEST[kind][INDEXER]}} if kind == "dsa" else {})}
            spec = validate(
                {"length": 64, "seed": seed, "attention": attention, "train": {"learning_rate": BEST[kind][RATE]}}
            )
            loss = 4.4 + 0.01 * (seed % 3) - (0.1 + 0.002 * seed if kind == "dsa" else 0.0)
            runs[kind].append(finished(store, spec, loss))
    studies = [study(kind, ids, 3 - (short and kind == "dsa"), over) for kind, ids in runs.items()]
    tuning = TuningRecord(trials=3, steps=50, seed=1000, sampler="tpe", studies=studies)
    spec_ = {"base": {}, "axes": {}, "verdict": {"margin": 0.02}, "tune": {"over": {RATE: RANGE, INDEXER: RANGE}}}
    write_sweep(
        store, SweepRecord(id="tuned-00000000", spec=spec_, run_ids=[*runs["dense"], *runs["dsa"]], tuning=tuning)
    )
    return store


def test_best_is_compared_with_best_in_one_table(tmp_path: Path) -> None:
    """Runs whose rates the search chose are pairs; without the search's record they are not."""
    found = compare(look_at(tuned_store(tmp_path)))
    (table,) = found.tables
    (row,) = table.rows
    assert (row.variant, row.difference.n, row.verdict) == ("dsa", 5, "better")
    assert row.difference.mean == pytest.approx(-0.106)
    assert compare(look_at(tmp_path, everything=True)).tables == []


def test_what_was_chosen_and_what_it_cost_is_said(tmp_path: Path) -> None:
    found = compare(look_at(tuned_store(tmp_path)))
    (best,) = found.best_rates
    assert (best.variant_settings, best.baseline_settings) == (BEST["dsa"], BEST["dense"])
    assert best.difference == found.rows[0].difference
    cost = best.variant_search
    assert cost is not None
    assert (cost.trials, cost.failed, cost.tokens, cost.flops, cost.seconds) == (3, 1, 3000, 18e6, 6.0)
    text = formats.as_markdown(found).replace("\\", "")
    assert "learning_rate=0.0099 indexer.learning_rate=0.002" in text
    assert "| 64 | dense | 3 | 1 | 3,000 | 1.8e+07 | 6 |" in text
    notes = " / ".join(found.notes)
    assert "validation loss chose" in notes and "best of 3 trials of 50 steps (tpe), all of seed 1000" in notes
    assert f"{INDEXER} was not tuned for dense" in notes
    assert f"the best {RATE} of dsa at 64 lies at an end of its range" in notes


def test_unequal_budgets_are_found(tmp_path: Path) -> None:
    checks = {check.name: check for check in compare(look_at(tuned_store(tmp_path / "fair"))).checks}
    assert checks["Equal search budgets"].outcome == "ok"
    assert "1 of dense at 64, 1 of dsa at 64" in checks["Equal search budgets"].text
    found = compare(look_at(tuned_store(tmp_path / "unfair", short=True)))
    assert any("search of dsa at 64 had 2 trials, not 3" in warning for warning in found.warnings)


def test_a_search_that_goes_on_has_no_answer(tmp_path: Path) -> None:
    with pytest.raises(ScopeError, match=r"its search goes on \(6 of 6 trials have ended\)"):
        look_at(tuned_store(tmp_path, over=False))


def test_a_sweep_without_a_search_says_nothing_of_one(tmp_path: Path) -> None:
    experiment(tmp_path, lengths=[64], seeds=[1, 2, 3])
    found = compare(look_at(tmp_path))
    assert found.best_rates == []
    assert "Equal search budgets" not in {check.name for check in found.checks}
    assert "search" not in formats.as_markdown(found)

"""Comparisons of whole stores: planted differences are found, nothing is pooled or dropped without a word."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import resealed
import synthetic
from cases import others_slow
from compared import DENSE, DSA, on, rows
from rich.console import Console
from scipy import stats
from statsmodels.stats.multitest import multipletests

from dsabench.analysis import formats
from dsabench.analysis.compare import compare
from dsabench.analysis.scope import look_at
from dsabench.cli.views.compare_tables import comparison_lines
from dsabench.cli.views.sweep_result import report_sweep
from dsabench.spec.run import validate
from dsabench.store import load_metrics, load_runs


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_the_generalisation_gap_is_compared_as_a_loss_is(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,))
    for path in store.glob("dsa-*/run.json"):  # 0.3 more than the 0.1 of every run
        record = json.loads(path.read_text())
        record["summary"]["train_loss"] -= 0.3
        resealed.rewrite(path, record)
    (row,) = compare(look_at(store), metric="generalisation_gap").rows
    assert (row.baseline_mean, row.variant_mean) == (pytest.approx(0.1), pytest.approx(0.4))
    assert row.difference.mean == pytest.approx(row.gap.mean) == pytest.approx(0.3)
    assert row.verdict == "worse"


def test_a_planted_difference_is_found_and_its_absence_is_not_worse(store: Path) -> None:
    synthetic.experiment(store, effect=on("dsa", 0.1, only=128))
    found = compare(look_at(store))
    assert {length: row.verdict for length, row in rows(found).items()} == {
        64: "not worse",
        128: "worse",
        256: "not worse",
    }
    assert rows(found)[128].difference.mean == pytest.approx(0.1, abs=0.02)
    low, high = sorted(rows(found)[length].difference.mean for length in (64, 256))
    worse = rows(found)[128].difference.mean
    assert found.tables[0].sentences == [
        "DSA against dense (val_loss, 5 seeds a length): not worse by 0.02 nats per token or more at 64 and 256 tokens "
        f"(difference {low:+.3f} to {high:+.3f}); worse at 128 tokens (difference {worse:+.3f} nats per token)."
    ]


def test_numbers_equal_scipy_on_the_stores_own_table(store: Path) -> None:
    synthetic.experiment(store, noise=0.02)
    found, runs = compare(look_at(store)), load_runs(store)
    raw = []
    for length in (64, 128, 256):
        a, b = (
            runs[(runs["attention"] == kind) & (runs["length"] == length)].set_index("seed")["val_loss"]
            for kind in ("dsa", "dense")
        )
        test = stats.ttest_rel(a.loc[b.index], b)
        row, interval = rows(found)[length], test.confidence_interval(0.95)
        assert (row.p, row.difference.low, row.difference.high) == pytest.approx(
            (test.pvalue, interval.low, interval.high)
        )
        assert (row.variant_mean, row.baseline_mean) == pytest.approx((a.mean(), b.mean()))
        raw.append(test.pvalue)
    adjusted = [rows(found)[length].p_adjusted for length in (64, 128, 256)]
    assert adjusted == pytest.approx(list(multipletests(raw, method="holm")[1]))


def test_the_order_of_runs_does_not_matter(store: Path) -> None:
    synthetic.experiment(store)
    scope = look_at(store)
    shuffled = type(scope)(**{**scope.__dict__, "runs": scope.runs.sample(frac=1, random_state=0)})
    assert compare(scope).model_dump_json() == compare(shuffled).model_dump_json()


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_pairs_get_no_verdict(store: Path, n: int) -> None:
    synthetic.experiment(store, seeds=range(n), effect=on("dsa", 5.0))
    found = compare(look_at(store))
    assert {row.verdict for row in found.rows} == {"inconclusive"}
    assert all(math.isnan(row.p_adjusted) for row in found.rows)
    assert "a verdict needs at least 3 seeds" in found.tables[0].sentences[0]
    assert all(row.seeds_needed is None if n == 1 else row.seeds_needed >= 3 for row in found.rows)


def test_a_leak_is_shown_and_never_judged(store: Path) -> None:
    synthetic.experiment(store, effect=on("dsa", -2.0), leak=False)
    for path in store.glob("dsa-L128-s43*/run.json"):
        record = json.loads(path.read_text())
        record["summary"]["leak"] = True
        resealed.rewrite(path, record)
    found = compare(look_at(store))
    assert {length: row.verdict for length, row in rows(found).items()} == {64: "better", 128: "LEAK", 256: "better"}
    assert rows(found)[128].difference.mean < -1
    assert math.isnan(rows(found)[128].p_adjusted)
    assert not found.tables[0].trends
    assert any("LEAK" in note for note in found.notes)


@pytest.mark.parametrize(("size", "said"), others_slow([(-2.0, True), (-0.3, False), (2.0, False)], 0, 1))
def test_a_win_too_large_to_believe_is_said_first(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: float, said: bool
) -> None:
    """By compare, whatever the metric, and at the end of a sweep."""
    synthetic.experiment(store, effect=on("dsa", size))
    text = "15 of 15 pairs end more than 0.5 nats per token below the baseline (largest -2."
    for metric in ("val_loss", "step_ms"):
        found = compare(look_at(store), metric=metric)
        assert (bool(found.warnings) and found.warnings[0].startswith(text)) == said
        for written in (formats.as_markdown(found), formats.as_latex(found)):
            assert ("WARNING: 15 of 15 pairs" in written) == said
    comparison_lines(found, Console(width=100))
    assert capsys.readouterr().out.splitlines()[1].startswith(f"WARNING: {text}") == said
    runs = [SimpleNamespace(run_id=run_id, for_children=False) for run_id in load_runs(store)["run_id"]]
    report_sweep("synthetic-00000000", cast(Any, runs), store, tmp_path / "out", as_json=False)
    assert (f"WARNING: {text}" in capsys.readouterr().out) == said


def test_every_run_is_in_a_pair_or_left_out_with_a_reason(store: Path) -> None:
    ids = synthetic.experiment(store, lengths=(64,), seeds=(1, 2, 3))
    more: dict[str, dict[str, Any]] = {
        "no finished dense run of length 64 and seed 9": {"attention": DSA | {"top_k_ratio": 0.5}, "seed": 9},
        "no finished run of another attention of length 64 and seed 8": {"attention": DENSE, "seed": 8},
    }
    expected = {}
    for reason, values in more.items():
        expected[synthetic.finished(store, validate({"length": 64, **values}), 4.4)] = reason
    for status in ("failed", "interrupted"):
        spec = validate({"length": 64, "seed": 50 + len(status), "attention": DENSE})
        expected[synthetic.finished(store, spec, 4.4, status=status)] = status
    nan = validate({"length": 64, "seed": 70, "attention": DENSE})
    expected[synthetic.finished(store, nan, math.nan)] = "no finite validation loss"
    broken = synthetic.finished(store, validate({"length": 64, "seed": 71, "attention": DENSE}), 4.4)
    (store / broken / "run.json").write_text("{")
    expected[broken] = "unreadable"
    newer = synthetic.finished(store, validate({"length": 64, "seed": 72, "attention": DENSE}), 4.4)
    text = (store / newer / "run.json").read_text().replace('"schema_version": 1', '"schema_version": 9')
    (store / newer / "run.json").write_text(text)
    expected[newer] = "unreadable"
    found = compare(look_at(store, everything=True))
    assert {run.run_id: run.reason for run in found.left_out} == expected
    assert len(ids) + len(expected) == len(load_runs(store))
    assert rows(found)[64].seeds == [1, 2, 3]


def test_runs_of_other_settings_are_not_pooled(store: Path) -> None:
    for i, (steps, effect) in enumerate(((1000, 0.0), (2000, 0.3))):
        synthetic.experiment(
            store, lengths=(64,), train={"steps": steps}, effect=on("dsa", effect), sweep=f"s{i}", minutes=i
        )
    everything = compare(look_at(store, everything=True))
    assert [table.setting for table in everything.tables] == ["steps=1000", "steps=2000"]
    assert [[row.verdict for row in table.rows] for table in everything.tables] == [["not worse"], ["worse"]]
    assert all(len(row.seeds) == 5 for row in everything.rows)
    newest = compare(look_at(store))
    assert newest.sweep == "s1"
    assert [row.verdict for row in newest.rows] == ["worse"]


def test_times_of_two_machines_are_not_compared(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,))
    for path in store.glob("dense-*-s42-*/run.json"):
        resealed.replace(path, "H100 80GB HBM3", "A100")
    found = compare(look_at(store))
    (row,) = found.rows
    assert (row.difference.n, row.equal_flops.n, row.equal_seconds.n) == (5, 5, 4)
    assert any("two kinds of machine" in note for note in found.notes)
    times = compare(look_at(store), metric="step_ms")
    assert times.rows[0].seeds == [43, 44, 45, 46]
    lost = [["dsa", "L64", "s42"], ["dense", "L64", "s42"]]
    assert [run.run_id.split("-")[:3] for run in times.left_out] == lost


def test_ratios_are_of_paired_runs(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,))
    (row,) = compare(look_at(store)).rows
    assert (row.flops_ratio, row.memory_ratio) == pytest.approx((1.25, 1.5))
    assert row.time_ratio == pytest.approx(4.64 / 4.0)


def test_equal_cost_reads_the_dearer_run_where_the_cheaper_one_ended(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,), noise=0)
    (row,) = compare(look_at(store)).rows
    metrics = load_metrics(store)
    evals = metrics[(metrics["kind"] == "eval") & metrics["run_id"].str.startswith("dsa-L64-s42")]
    dense = metrics[(metrics["kind"] == "eval") & metrics["run_id"].str.startswith("dense-L64-s42")]
    for cost, estimate, share in (
        ("flops", row.equal_flops, row.equal_flops_share),
        ("seconds", row.equal_seconds, row.equal_seconds_share),
    ):
        budget = dense[cost].iloc[-1]
        expected = np.interp(budget, evals[cost].astype(float), evals["val_loss"]) - dense["val_loss"].iloc[-1]
        assert estimate.mean == pytest.approx(expected)
        assert share == pytest.approx(budget / evals[cost].iloc[-1])
        assert 0 < share < 1


def test_runs_without_recorded_costs_have_no_equal_cost(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,))
    for path in store.glob("dsa-*/metrics.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "flops"}) + "\n" for r in records))
    (row,) = compare(look_at(store)).rows
    assert (row.equal_flops.n, row.equal_seconds.n) == (0, 5)


def test_runs_whose_metrics_are_damaged_or_torn_are_named_and_left_out(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,))
    (path,) = store.glob("dsa-L64-s42-*/metrics.jsonl")
    path.write_bytes(b"garbage\n" + path.read_bytes())
    (torn,) = store.glob("dsa-L64-s43-*/metrics.jsonl")
    torn.write_bytes(torn.read_bytes()[:-20])
    found = compare(look_at(store))
    (row,) = found.rows
    assert row.difference.n == row.equal_flops.n == 3
    (check,) = [check for check in found.checks if check.name == "No run damaged"]
    assert set(check.run_ids) == {path.parent.name, torn.parent.name}


def test_the_margin_is_the_sweeps_or_exploratory(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,), margin=0.5, effect=on("dsa", 0.1))
    fixed = compare(look_at(store))
    assert (fixed.margin, fixed.margin_source, fixed.rows[0].verdict) == (0.5, "fixed in the sweep", "not worse")
    given = compare(look_at(store), margin=0.01)
    assert (given.margin, given.rows[0].verdict) == (0.01, "worse")
    assert "exploratory" in given.margin_source
    everything = compare(look_at(store, everything=True))
    assert (everything.margin, everything.margin_source) == (0.5, "fixed in sweep synthetic-00000000")


def test_bits_per_byte_use_the_same_margin_in_their_unit(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,), effect=on("dsa", 0.012), noise=0.002)
    nats, bits = (compare(look_at(store), metric=m).rows[0] for m in ("val_loss", "val_bits_per_byte"))
    assert bits.p_not_worse == pytest.approx(nats.p_not_worse, rel=0.05)
    assert nats.verdict == bits.verdict == "not worse"


def test_more_is_better_for_accuracy(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,))
    for i, path in enumerate(sorted(store.glob("dsa-*/run.json"))):
        record = json.loads(path.read_text())
        record["summary"]["val_accuracy"] = 0.3 + i / 1000
        resealed.rewrite(path, record)
    found = compare(look_at(store), metric="val_accuracy")
    assert found.margin is None
    assert found.rows[0].verdict == "better"
    assert found.rows[0].difference.mean > 0
    assert math.isnan(found.rows[0].p_not_worse)


def test_the_trend_is_the_mean_slope_and_says_what_confounds_it(store: Path) -> None:
    synthetic.experiment(store, noise=0, effect=lambda s: 0.01 * math.log2(s.length) * (s.attention.kind == "dsa"))
    (trend,) = compare(look_at(store)).tables[0].trends
    assert trend.slope.mean == pytest.approx(0.01)
    assert (trend.slope.n, trend.confounded) == (5, "")
    other = store.parent / "other"
    synthetic.experiment(other, train={"batch_size": 16, "tokens_per_step": None})
    (trend,) = compare(look_at(other)).tables[0].trends
    assert "tokens per step differ between lengths (1,024 to 4,096)" in trend.confounded

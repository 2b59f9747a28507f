"""Comparisons of whole stores: planted differences are found, nothing is pooled or dropped without a word."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import synthetic
from cases import others_slow
from rich.console import Console
from scipy import stats
from statsmodels.stats.multitest import multipletests

from dsabench.analysis import formats
from dsabench.analysis.compare import compare
from dsabench.analysis.comparison import Comparison
from dsabench.analysis.comparison_row import Row
from dsabench.analysis.scope import ScopeError, look_at
from dsabench.analysis.wording import trend_lines
from dsabench.cli.views.compare_tables import comparison_lines
from dsabench.cli.views.sweep_result import report_sweep
from dsabench.figures.catalogue import draw
from dsabench.figures.data import figure_data
from dsabench.metrics import compared
from dsabench.spec.run import RunSpec, validate
from dsabench.store import load_metrics, load_runs

DENSE, DSA = {"kind": "dense"}, {"kind": "dsa", "top_k_ratio": 0.25}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def on(kind: str, size: float, only: int | None = None) -> Any:
    """An effect of `size` nats on runs of one kind (at one length)."""

    def effect(spec: RunSpec) -> float:
        return size if spec.attention.kind == kind and only in (None, spec.length) else 0.0

    return effect


def rows(found: Comparison) -> dict[int, Row]:
    assert len(found.tables) == 1
    return {row.length: row for row in found.tables[0].rows}


def test_the_generalisation_gap_is_compared_as_a_loss_is(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,))
    for path in store.glob("dsa-*/run.json"):  # 0.3 more than the 0.1 of every run
        record = json.loads(path.read_text())
        record["summary"]["train_loss"] -= 0.3
        path.write_text(json.dumps(record))
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
        path.write_text(json.dumps(record))
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
        assert [line.startswith(text) for line in found.warnings] == [True] * said
        for written in (formats.as_markdown(found), formats.as_latex(found)):
            assert ("WARNING: 15 of 15 pairs" in written) == said
    comparison_lines(found, Console(width=100))
    assert capsys.readouterr().out.splitlines()[1].startswith(f"WARNING: {text}") == said
    runs = [SimpleNamespace(run_id=run_id) for run_id in load_runs(store)["run_id"]]
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
        path.write_text(path.read_text().replace("H100 80GB HBM3", "A100"))
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


def test_damaged_curves_are_named_and_cost_only_the_equal_cost(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,))
    (path,) = store.glob("dsa-L64-s42-*/metrics.jsonl")
    path.write_bytes(b"garbage\n" + path.read_bytes())
    (torn,) = store.glob("dsa-L64-s43-*/metrics.jsonl")
    torn.write_bytes(torn.read_bytes()[:-20])
    found = compare(look_at(store))
    (row,) = found.rows
    assert row.difference.n == 5
    assert row.equal_flops.n == 4
    assert any("line 1: damaged" in note for note in found.notes)


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
        path.write_text(json.dumps(record))
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


def test_best_learning_rates_are_compared_with_each_other(store: Path) -> None:
    def effect(spec: RunSpec) -> float:
        best = 3e-3 if spec.attention.kind == "dsa" else 1e-3
        return 0.0 if spec.train.learning_rate == best else 0.2

    ids = []
    for rate in (1e-3, 3e-3):
        ids += synthetic.experiment(store, lengths=(64,), train={"learning_rate": rate}, effect=effect, sweep=None)
    found = compare(look_at(store, everything=True))
    (best,) = found.best_rates
    assert (best.variant_rate, best.baseline_rate) == (3e-3, 1e-3)
    assert best.variant_rates == best.baseline_rates == [1e-3, 3e-3]
    assert best.difference.mean == pytest.approx(0, abs=0.02)
    assert {table.setting: table.rows[0].verdict for table in found.tables} == {
        "learning_rate=0.001": "worse",
        "learning_rate=0.003": "better",
    }


def test_a_baseline_is_named_without_the_setting_of_its_table(store: Path) -> None:
    for rate in (1e-3, 3e-3):
        attentions = (DSA, DSA | {"top_k_ratio": 0.5})
        synthetic.experiment(store, lengths=(64,), train={"learning_rate": rate}, attentions=attentions, sweep=None)
    found = compare(look_at(store, everything=True), baseline="dsa top_k_ratio=0.5")
    assert [table.setting for table in found.tables] == ["learning_rate=0.001", "learning_rate=0.003"]
    with pytest.raises(ScopeError, match=r"name one of them: dsa top_k_ratio=0\.25; dsa top_k_ratio=0\.5$"):
        compare(look_at(store, everything=True), baseline="dsa")


def test_any_variant_can_be_the_baseline(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,), attentions=(DENSE, DSA, DSA | {"top_k_ratio": 0.5}))
    found = compare(look_at(store), baseline="dsa top_k_ratio=0.25")
    assert {row.variant for row in found.rows} == {"dense", "dsa top_k_ratio=0.5"}
    with pytest.raises(ScopeError, match=r"--baseline dsa means 2 variants; name one of them: dsa top_k_ratio=0\.25; "):
        compare(look_at(store), baseline="dsa")
    with pytest.raises(ScopeError, match="--baseline dens: no run has that attention; did you mean dense"):
        compare(look_at(store), baseline="dens")
    with pytest.raises(ScopeError, match=f"accepted: {', '.join(compared())}"):
        compare(look_at(store), metric="loss")
    with pytest.raises(ScopeError, match=r"no finished run of .* has it"):
        compare(look_at(store), metric="task_accuracy")


def test_one_attention_is_nothing_to_compare(store: Path) -> None:
    synthetic.experiment(store, attentions=(DENSE,))
    found = compare(look_at(store))
    assert not found.tables
    assert "nothing to compare: only dense runs have finished" in found.notes[-1]


def test_of_two_runs_of_one_seed_the_newer_counts_and_the_other_is_named(store: Path) -> None:
    (first,) = synthetic.experiment(store, lengths=(64,), attentions=(DSA,), seeds=(1,))
    synthetic.experiment(store, lengths=(64,), attentions=(DENSE, DSA), seeds=(1, 2, 3))
    twin = store / (first[:-8] + "ffffffff")
    twin.mkdir()
    record = json.loads((store / first / "run.json").read_text())
    record |= {"run_id": twin.name, "updated": "2027-01-01T00:00:00+00:00"}
    (twin / "run.json").write_text(json.dumps(record))
    found = compare(look_at(store, everything=True))
    assert [(run.run_id, run.reason) for run in found.left_out] == [(first, f"superseded by {twin.name}")]
    assert rows(found)[64].difference.n == 3


def test_the_documents_agree(store: Path) -> None:
    synthetic.experiment(store, attentions=(DENSE, DSA, {"kind": "dsa", "top_k": 16}))
    found = compare(look_at(store))
    assert Comparison.model_validate_json(found.model_dump_json()).model_dump_json() == found.model_dump_json()
    document = json.loads(found.model_dump_json())
    table = pd.read_csv(pd.io.common.StringIO(formats.as_csv(found)))
    flat = [row for t in document["tables"] for row in t["rows"]]
    assert list(table["difference_mean"]) == pytest.approx([row["difference"]["mean"] for row in flat])
    assert list(table["verdict"]) == [row["verdict"] for row in flat]
    markdown, latex = formats.as_markdown(found), formats.as_latex(found)
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 * (2 + len(flat))
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 2
    assert latex.count(r"\\") == 2 * (1 + len(flat))
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
    assert all(line.replace("_", "\\_") in markdown for line in found.tables[0].sentences)


def test_hostile_names_break_no_table(store: Path) -> None:
    nasty = "a|b`<script>$x_1&%{}\\"
    synthetic.experiment(store, lengths=(64,), sweep=None)
    for path in store.glob("*/run.json"):
        record = json.loads(path.read_text())
        record["spec"]["data"]["source"] = nasty if record["spec"]["seed"] == 42 else "sotu"
        path.write_text(json.dumps(record))
    found = compare(look_at(store))
    assert len(found.tables) == 2
    assert "<script>" not in formats.as_markdown(found)
    for line in formats.as_latex(found).splitlines():
        assert line.startswith("%") or "$" not in line.replace("\\$", "")


def edited(path: Path, **summary: Any) -> None:
    record = json.loads(path.read_text())
    record["summary"] |= summary
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("kind", ["dense", "dsa"])
def test_memory_that_differs_between_seeds_is_doubted_as_in_the_figure(store: Path, kind: str) -> None:
    synthetic.experiment(store, lengths=(64, 128))
    found = compare(look_at(store))
    assert [row.memory_spread for row in found.rows] == [1.0, 1.0]
    assert not any("memory:" in line for line in formats.notes(found))
    (path,) = store.glob(f"{kind}-L64-s42-*/run.json")
    edited(path, peak_memory_mb=1.25 * {"dense": 1000.0, "dsa": 1500.0}[kind])
    found = compare(look_at(store))
    assert [row.memory_spread for row in found.rows] == [1.25, 1.0]
    (line,) = [line for line in formats.notes(found) if line.startswith("memory:")]
    drawn = draw("cost", figure_data(look_at(store)))
    assert not isinstance(drawn, str)
    (note,) = drawn.notes
    for text in (line, note):
        assert "up to 1.25-fold between seeds" in text
        assert "do not compare it" in text
    assert json.loads(found.model_dump_json())["tables"][0]["rows"][0]["memory_spread"] == 1.25


def changed(path: Path, change: Any) -> None:
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize("lost", others_slow([1, 2, 4], 1))
def test_a_torn_curve_shifts_no_budget_and_its_pair_is_counted_out(store: Path, lost: int) -> None:
    """The cheaper run's last records are gone: its summary still says what it cost, but not what its loss was."""
    synthetic.experiment(store, lengths=(64,))
    whole = {seed: compare(look_at(store, where=f"seed == {seed}")).rows[0] for seed in range(42, 47)}
    (path,) = store.glob("dense-L64-s43-*/metrics.jsonl")
    changed(path, lambda lines: lines[:-lost])
    found = compare(look_at(store))
    (row,) = found.rows
    for estimate, name in ((row.equal_flops, "equal_flops"), (row.equal_seconds, "equal_seconds")):
        assert (estimate.n, row.difference.n) == (4, 5)
        others = [getattr(one, name).mean for seed, one in whole.items() if seed != 43]
        assert estimate.mean == pytest.approx(np.mean(others))
    (line,) = [line for line in formats.notes(found) if "4 of 5 pairs" in line]
    assert line.startswith("at equal FLOPs: 4 of 5 pairs of DSA at 64 tokens (and fewer than all in 1 more of these")


@pytest.mark.parametrize("at", range(-3, 0))
def test_records_that_were_written_twice_change_nothing(store: Path, at: int) -> None:
    synthetic.experiment(store, lengths=(64,))
    before = compare(look_at(store)).rows
    for path in store.glob("*-s43-*/metrics.jsonl"):
        changed(path, lambda lines: [*lines[:at], lines[at], *lines[at:]])
    assert compare(look_at(store)).rows == before
    assert before[0].equal_flops.n == before[0].equal_seconds.n == 5


def test_without_a_summary_the_budget_is_the_last_evaluations(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,))
    before = compare(look_at(store)).rows[0]
    for path in store.glob("*/run.json"):
        edited(path, train_seconds=None)
    after = compare(look_at(store)).rows[0]
    assert (after.equal_seconds, after.equal_seconds_share) == (before.equal_seconds, before.equal_seconds_share)


@pytest.mark.parametrize(("top_k", "length", "k"), [(16, 64, 16), (64, 64, 64), (500, 64, 64), (500, 1024, 500)])
def test_k_is_at_most_the_length_in_comparison_and_figures(store: Path, top_k: int, length: int, k: int) -> None:
    synthetic.experiment(store, lengths=(length,), seeds=(1,), attentions=(DENSE, {"kind": "dsa", "top_k": top_k}))
    (row,) = compare(look_at(store)).rows
    drawn = figure_data(look_at(store)).runs.set_index("attention")["k"]
    assert row.k == drawn["dsa"] == k
    assert math.isnan(drawn["dense"])


def test_a_failed_runs_error_is_beside_its_reason(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,))
    spec = validate({"length": 64, "seed": 9, "attention": DENSE})
    synthetic.finished(store, spec, 4.4, status="failed", error="loss is NaN\nat step 7")
    (left_out,) = compare(look_at(store, everything=True)).left_out
    assert (left_out.reason, left_out.error) == ("failed", "loss is NaN\nat step 7")


def test_a_table_of_one_setting_does_not_repeat_it_in_names(store: Path) -> None:
    attentions = (DENSE, DSA, DSA | {"top_k_ratio": 0.5})
    for rate in (1e-3, 3e-3):
        synthetic.experiment(store, train={"learning_rate": rate}, attentions=attentions, sweep=None)
    found = compare(look_at(store, everything=True))
    names = {"DSA k=0.25L", "DSA k=0.5L"}
    for table in found.tables:
        assert table.setting in table.rows[0].variant, "the document says all of it"
        for grid in (formats.verdict_grid(table, found), formats.cost_grid(table)):
            assert {row[1] for row in grid.rows} == names
        for lines in (table.sentences, list(trend_lines(table))):
            assert len(lines) == 2
            assert not any("learning_rate" in line for line in lines)
    assert {row[1] for row in formats.best_rate_grid(found).rows} == names
    assert all(best.setting == "" for best in found.best_rates)


def test_best_rates_name_another_setting_once(store: Path) -> None:
    for steps in (1000, 2000):
        for rate in (1e-3, 3e-3):
            train = {"steps": steps, "learning_rate": rate}
            synthetic.experiment(store, lengths=(64,), train=train, sweep=None)
    found = compare(look_at(store, everything=True))
    assert [row[1] for row in formats.best_rate_grid(found).rows] == ["DSA steps=1000", "DSA steps=2000"]


def test_what_plus_minus_means_is_said(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,))
    found = compare(look_at(store))
    assert any("+-" in cell for row in formats.cost_grid(found.tables[0]).rows for cell in row)
    assert sum(line.startswith("+-: half of the 95 % interval") for line in formats.notes(found)) == 1
    one = compare(look_at(store, where="seed == 42"))
    assert not any("+-" in line for line in formats.notes(one)), "one pair has none"

"""Comparisons as documents and tables, and the runs and settings that they name."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import resealed
import synthetic
from cases import others_slow
from compared import DENSE, DSA, rows

from dsabench.analysis import formats
from dsabench.analysis.compare import compare
from dsabench.analysis.comparison import Comparison
from dsabench.analysis.scope import ScopeError, look_at
from dsabench.analysis.wording import trend_lines
from dsabench.figures.catalogue import draw
from dsabench.figures.data import figure_data
from dsabench.metrics import compared
from dsabench.spec.run import RunSpec, validate


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "runs"


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
    resealed.write(twin / "run.json", record)
    shutil.copy(store / first / "metrics.jsonl", twin)
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
        record["fingerprint"]["corpus"] = record["spec"]["data"]["source"]
        resealed.rewrite(path, record)
    found = compare(look_at(store))
    assert len(found.tables) == 2
    assert "<script>" not in formats.as_markdown(found)
    for line in formats.as_latex(found).splitlines():
        assert line.startswith("%") or "$" not in line.replace("\\$", "")


def edited(path: Path, **summary: Any) -> None:
    record = json.loads(path.read_text())
    record["summary"] |= summary
    resealed.rewrite(path, record)


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


@pytest.mark.parametrize(("ms", "doubted"), [(4.64, False), (5.9, True)])
def test_step_times_that_differ_between_seeds_are_doubted_in_every_form(store: Path, ms: float, doubted: bool) -> None:
    """1.25 times 4.64 ms is 5.8 ms."""
    synthetic.experiment(store, lengths=(64, 128))
    (path,) = store.glob("dsa-L64-s42-*/run.json")
    edited(path, step_ms=ms)
    found = compare(look_at(store))
    ratio = f"{found.rows[0].time_ratio:.2f}"
    cells = [row[2] for row in formats.cost_grid(found.tables[0]).rows]
    assert cells == [f"({ratio})" if doubted else ratio, "1.32"]
    assert [row.time_doubt != "" for row in found.rows] == [doubted, False]
    assert (f"| ({ratio}) |" in formats.as_markdown(found)) == doubted
    assert ("1.27-fold between seeds" in formats.as_csv(found)) == doubted
    drawn = draw("cost", figure_data(look_at(store)))
    assert not isinstance(drawn, str)
    assert any("what a step costs is not known" in note for note in drawn.notes) == doubted


def changed(path: Path, change: Any) -> None:
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize("lost", others_slow([1, 2, 4], 1))
def test_a_run_without_its_last_records_shifts_no_budget_and_its_pair_is_counted_out(store: Path, lost: int) -> None:
    """The cheaper run's last records are gone: it is damaged, whatever its summary says."""
    synthetic.experiment(store, lengths=(64,))
    whole = {seed: compare(look_at(store, where=f"seed == {seed}")).rows[0] for seed in range(42, 47)}
    (path,) = store.glob("dense-L64-s43-*/metrics.jsonl")
    changed(path, lambda lines: lines[:-lost])
    found = compare(look_at(store))
    (row,) = found.rows
    for estimate, name in ((row.equal_flops, "equal_flops"), (row.equal_seconds, "equal_seconds")):
        assert (estimate.n, row.difference.n) == (4, 4)
        others = [getattr(one, name).mean for seed, one in whole.items() if seed != 43]
        assert estimate.mean == pytest.approx(np.mean(others))


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
    assert {row[1] for row in formats.best_settings_grid(found).rows} == names
    assert all(best.setting == "" for best in found.best_rates)


def test_best_rates_name_another_setting_once(store: Path) -> None:
    for steps in (1000, 2000):
        for rate in (1e-3, 3e-3):
            train = {"steps": steps, "learning_rate": rate}
            synthetic.experiment(store, lengths=(64,), train=train, sweep=None)
    found = compare(look_at(store, everything=True))
    assert [row[1] for row in formats.best_settings_grid(found).rows] == ["DSA steps=1000", "DSA steps=2000"]


def test_what_plus_minus_means_is_said(store: Path) -> None:
    synthetic.experiment(store, lengths=(64,))
    found = compare(look_at(store))
    assert any("+-" in cell for row in formats.cost_grid(found.tables[0]).rows for cell in row)
    assert sum(line.startswith("+-: half of the 95 % interval") for line in formats.notes(found)) == 1
    one = compare(look_at(store, where="seed == 42"))
    assert not any("+-" in line for line in formats.notes(one)), "one pair has none"

"""Comparisons and checks of runs on a task: answers are counted, and what is not asked is no loss."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import TASK, experiment

from dsabench.analysis.compare import compare
from dsabench.analysis.comparison import Check
from dsabench.analysis.formats import as_markdown, cost_grid
from dsabench.analysis.pairing import find_pairs
from dsabench.analysis.record_checks import audit
from dsabench.analysis.scope import ScopeError, look_at
from dsabench.analysis.variants import label_variants, scored_unit
from dsabench.metrics import plural
from dsabench.store import load_curves, load_runs


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    experiment(folder, lengths=(64, 128), seeds=(1, 2, 3), effect=lambda spec: 0.0, noise=0.0, **TASK)
    return folder


def test_what_is_counted_follows_from_the_runs() -> None:
    assert [scored_unit(values) for values in ([], [math.nan], [0.5], [0.5, math.nan])] == [
        "token", "token", "answer", "token or answer",
    ]  # fmt: skip
    assert plural("token or answer") == "tokens or answers"


def test_a_comparison_of_tasks_says_answers_accuracy_and_target_recall(store: Path) -> None:
    found = compare(look_at(store))
    assert (found.metric, found.unit, found.margin_unit) == ("val_loss", "nats per answer", "nats per answer")
    for row in found.rows:
        assert (row.mean("task_accuracy"), row.mean("baseline_task_accuracy")) == pytest.approx((0.9, 0.9))
        assert (row.mean("target_recall_best"), row.mean("target_recall_chance")) == pytest.approx((0.8, 0.3))
    text = as_markdown(found)
    assert [row[-1] for row in cost_grid(found.tables[0]).rows] == [".80 (.30)"] * 2
    assert "Task accuracy at 64 tokens: dense 90.0%, DSA 90.0% (floor 5.0%)." in text
    assert "in the best layer's selection" in text
    assert "per token" not in text and "full attention" not in text
    assert compare(look_at(store), metric="val_accuracy").unit == "share of answers"
    accuracy = compare(look_at(store), metric="task_accuracy")
    assert (accuracy.unit, accuracy.lower_is_better, accuracy.margin) == ("share of answers", False, None)
    assert compare(look_at(store), metric="tokens_per_second").unit == "tokens/s"


def test_a_comparison_of_texts_says_nothing_of_tasks(tmp_path: Path) -> None:
    experiment(tmp_path, lengths=(64,), seeds=(1, 2, 3))
    text = as_markdown(compare(look_at(tmp_path)))
    assert "nats per token" in text and ".90 (.60)" in text
    assert "answer" not in text and "target" not in text
    with pytest.raises(ScopeError, match=r"no finished run of .* has it"):
        compare(look_at(tmp_path), metric="task_accuracy")


def checks(store: Path, change: float = 0.0, bins: slice = slice(None)) -> dict[str, Check]:
    """The checks of the store, the selecting runs' losses changed in some bins and at the end."""
    labelled = label_variants(load_runs(store))
    curves = load_curves(store, list(labelled["run_id"])).frame
    selects = set(labelled.loc[labelled["attention"] != "dense", "run_id"])
    labelled.loc[labelled["run_id"].isin(selects), "val_loss"] += change
    for i in curves.index[curves["run_id"].isin(selects) & curves["loss_by_position"].notna()]:
        losses = np.asarray(curves.at[i, "loss_by_position"], float).copy()
        losses[bins] += change
        curves.at[i, "loss_by_position"] = losses
    return {check.name: check for check in audit(labelled, find_pairs(labelled, "dense").frame, curves, len(labelled))}


def test_where_nothing_is_asked_the_audit_looks_at_nothing(store: Path) -> None:
    found = checks(store)
    assert found["Loss by position"].outcome == "ok"
    assert "nan" not in " ".join(check.text for check in found.values())
    planted = checks(store, -0.7, slice(32, 40))["Loss by position"]
    assert planted.outcome == "warn"
    assert "part 5 of 8 of the window: -0.700 nats" in planted.text and "has learnt it" in planted.text


def test_a_large_win_on_a_task_is_doubted_but_may_be_learning(store: Path) -> None:
    found = checks(store, -0.7)["No win too large to believe"]
    assert found.outcome == "warn"
    assert "nats per answer" in found.text and "look-ahead leak" in found.text and "has learnt it" in found.text


def test_a_guess_is_what_a_task_must_beat(store: Path) -> None:
    good = checks(store)["Better than guessing"]
    assert good.outcome == "ok" and "below the floor of its task (6.750" in good.text
    bad = checks(store, 9.0)["Better than guessing"]
    assert bad.outcome == "fail" and len(bad.run_ids) == 6
    assert isinstance(load_runs(store), pd.DataFrame)

"""Comparisons and checks of runs on a task: answers are counted, and what is not asked is no loss."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import resealed
from synthetic import TASK, experiment, finished

from dsabench.analysis.compare import compare
from dsabench.analysis.comparison import Check
from dsabench.analysis.formats import as_markdown, cost_grid
from dsabench.analysis.pairing import find_pairs
from dsabench.analysis.record_checks import audit
from dsabench.analysis.scope import ScopeError, look_at
from dsabench.analysis.variants import label_variants, scored_unit
from dsabench.metrics import plural
from dsabench.spec.run import validate
from dsabench.spec.tasks import TASKS
from dsabench.store import load_curves, load_runs, read_run
from dsabench.store.recorded_floors import with_floors


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


def earlier(store: Path, task: dict[str, object], guess: float, nats: float) -> str:
    """A finished run as an earlier version recorded it: without the field `answers`, with a lower guess; its id."""
    values = {"length": 64, "data": {"source": "task:recall", "task": task | {"answers": "shown"}}}
    spec = validate(values)
    run_id = finished(store, spec, 2.0, **TASK)
    path = store / run_id / "run.json"
    record = json.loads(path.read_text())
    del record["spec"]["data"]["task"]["answers"]
    record["summary"] |= {"chance_accuracy": guess, "unigram_loss": nats}
    resealed.rewrite(path, record)
    return run_id


def test_an_earlier_run_is_shown_with_its_floor_and_keeps_what_it_recorded(tmp_path: Path) -> None:
    """Its loss, 2.0, is below the guess among all 32 values, ln 32 = 3.47, and above the floor: it learnt nothing."""
    task = {"n_pairs": 8, "n_keys": 32, "n_values": 32}
    run_id = earlier(tmp_path, task, 1 / 32, math.log(32))
    (run,) = load_runs(tmp_path).to_dict("records")
    floor = TASKS["recall"].model_validate(task | {"answers": "shown"}).floor
    assert (run["chance_accuracy"], run["unigram_loss"]) == pytest.approx(tuple(floor))
    assert (run["recorded.chance_accuracy"], run["recorded.unigram_loss"]) == (1 / 32, math.log(32))
    assert read_run(tmp_path, run_id).summary["chance_accuracy"] == 1 / 32
    (note,) = [note for note in look_at(tmp_path).notes if "guessing" in note]
    assert note.startswith("1 run of an earlier version recorded 3.1% as the accuracy of guessing; ")
    assert "reaches 38.7%, and that is shown" in note
    assert run["unigram_loss"] < run["val_loss"] < math.log(32)  # what the checks say next: it learnt nothing


@pytest.mark.parametrize("task", [{"n_pairs": 0}, {"name_of_later": 1}, 3])
def test_a_task_that_this_version_does_not_have_keeps_its_number(task: object) -> None:
    summary = {"chance_accuracy": 0.1, "unigram_loss": 2.0}
    assert with_floors(summary, {"data": {"source": "task:recall", "task": task}}) == summary
    assert with_floors(summary, {"data": {"source": "task:of_later", "task": {}}}) == summary

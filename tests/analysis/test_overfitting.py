"""Runs whose validation loss rises while their training loss falls: the rule, and what is said of their pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from synthetic import TASK, experiment

from dsabench.analysis.compare import compare
from dsabench.analysis.comparison import Comparison
from dsabench.analysis.formats import as_csv, as_markdown
from dsabench.analysis.overfitting import rises
from dsabench.analysis.scope import look_at
from dsabench.store import read_run

LOSSES = st.lists(st.floats(1, 9), min_size=1, max_size=9)


def curves(val: Sequence[float], train: Sequence[float], accuracy: float = np.nan) -> pd.DataFrame:
    return pd.DataFrame({"run_id": "x", "val_loss": val, "train_loss": train, "task_accuracy": accuracy})


@given(LOSSES, LOSSES)
def test_a_rise_is_that_of_the_validation_loss_over_its_lowest(val: list[float], train: list[float]) -> None:
    n = min(len(val), len(train))
    val, train = val[:n], train[:n]
    rise = rises(curves(val, train))["x"]
    at = max(i for i in range(n) if val[i] == min(val))
    assert rise == (val[-1] - min(val) if train[-1] < train[at] else 0.0)
    assert rise >= 0


@given(LOSSES, st.floats(0.01, 3), LOSSES)
def test_falling_losses_and_rising_losses_are_no_overfitting(
    falls: list[float], size: float, noise: list[float]
) -> None:
    falling = np.cumsum([-value for value in falls])
    assert rises(curves(falling, falling - size))["x"] == 0, "learning"
    assert rises(curves(-falling, -falling))["x"] == 0, "an instability"
    assume(len(falls) > 1)
    assert rises(curves(-falling, falling))["x"] == pytest.approx(-falling[-1] + falling[0]), "memorising"


@given(LOSSES, LOSSES)
def test_gaps_in_the_records_and_tasks_do_not_count(val: list[float], train: list[float]) -> None:
    n = min(len(val), len(train))
    plain = rises(curves(val[:n], train[:n]))
    assert rises(curves([np.nan, *val[:n], np.nan], [0.0, *train[:n], 0.0])) == plain
    assert rises(curves([np.nan], [1.0])) == {} == rises(curves(val[:n], train[:n], accuracy=0.5))


def overfit(store: Path, ids: Sequence[str], rise: float, kinds: Sequence[str]) -> None:
    """Lower the validation loss of the evaluation before the last, and raise the training loss of it."""
    for run_id in ids:
        if read_run(store, run_id).spec["attention"]["kind"] not in kinds:
            continue
        path = store / run_id / "metrics.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        last, before = [record for record in records if record["kind"] == "eval"][:-3:-1]
        before.update(val_loss=last["val_loss"] - rise, train_loss=last["train_loss"] + 0.1)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))


def compared(store: Path, **given: float | str) -> Comparison:
    return compare(look_at(store), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("effect", [-0.1, 0.0, 0.1])
@pytest.mark.parametrize("kinds", [("dense",), ("dsa",), ("dense", "dsa")])
def test_a_side_that_overfitted_gets_no_verdict(tmp_path: Path, kinds: tuple[str, ...], effect: float) -> None:
    """Whichever the side, and however large the difference."""
    ids = experiment(
        tmp_path, lengths=[64, 128], effect=lambda spec: effect * (spec.attention.kind == "dsa"), noise=0.004
    )
    assert all(row.withheld is None and row.overfitted == 0 for row in compared(tmp_path).rows)
    overfit(tmp_path, ids[:10], 0.14, kinds)
    found = compared(tmp_path)
    at_64, at_128 = found.rows
    assert (at_64.verdict, at_64.withheld, at_64.overfitted) == ("no verdict", "overfitted", 5 * len(kinds))
    assert at_64.seeds_needed is None
    sides = {"dsa": at_64.rise, "dense": at_64.baseline_rise}
    assert sides == {kind: pytest.approx(0.14 if kind in kinds else 0.0) for kind in sides}
    assert (at_128.verdict, at_128.withheld) == ({-0.1: "better", 0.0: "not worse", 0.1: "worse"}[effect], None)
    models = "all ten models" if len(kinds) == 2 else "five of ten models"
    words = f"{models} overfitted (validation loss up to 0.140 nats above its lowest, while training loss fell)"
    assert f"No verdict at 64 tokens: {words}, so the losses say who memorises less." in found.answer
    assert f"no verdict at 64 tokens: {words}" in found.tables[0].sentences[0]
    assert "no verdict: overfitted" in as_markdown(found)
    assert ",overfitted," in as_csv(found)
    assert json.loads(found.model_dump_json())["tables"][0]["rows"][0]["withheld"] == "overfitted"


@pytest.mark.parametrize(("rise", "margin", "is_judged"), [(0.019, None, True), (0.021, None, False), (0.1, 0.2, True)])
def test_the_margin_bounds_the_mean_rise(tmp_path: Path, rise: float, margin: float | None, is_judged: bool) -> None:
    ids = experiment(tmp_path, lengths=[64])
    overfit(tmp_path, ids, rise, ("dense", "dsa"))
    (row,) = compare(look_at(tmp_path), margin=margin).rows
    assert (row.withheld is None) == is_judged


def test_one_seed_that_rose_a_little_is_counted_and_does_not_withhold(tmp_path: Path) -> None:
    ids = experiment(tmp_path, lengths=[64])
    overfit(tmp_path, ids[:2], 0.06, ("dense", "dsa"))  # 0.012 in the mean of five
    (row,) = compared(tmp_path).rows
    assert (row.withheld, row.overfitted, row.baseline_rise) == (None, 2, pytest.approx(0.012))


@pytest.mark.parametrize("metric", ["val_bits_per_byte", "val_accuracy", "generalisation_gap", "step_ms"])
def test_it_concerns_what_is_evaluated_on_held_out_text(tmp_path: Path, metric: str) -> None:
    ids = experiment(tmp_path, lengths=[64])
    overfit(tmp_path, ids, 0.1, ("dense", "dsa"))
    (row,) = compared(tmp_path, metric=metric).rows
    assert (row.withheld == "overfitted") == metric.startswith("val_")


def test_of_a_task_nothing_is_memorised(tmp_path: Path) -> None:
    ids = experiment(tmp_path, lengths=[64], **TASK)  # type: ignore[arg-type]
    overfit(tmp_path, ids, 0.1, ("dense", "dsa"))
    (row,) = compared(tmp_path).rows
    assert (row.withheld, row.overfitted) == (None, 0) and np.isnan(row.rise)

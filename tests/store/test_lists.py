"""What was recorded as a list: no cell of the tables of metrics, and every item a row of a table of its own."""

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dsabench
from dsabench.errors import StoreError
from dsabench.store import load_lists, load_metrics

NUMBERS = st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False)
VALUES = NUMBERS | st.text(max_size=3) | st.booleans() | st.lists(NUMBERS, max_size=4)
NAMES = st.sampled_from(["val_loss", "loss_by_position", "target_recall_by_layer", "note", "z\u00e9"])
RECORDS = st.lists(
    st.tuples(st.sampled_from(["train", "eval"]), st.integers(0, 9), st.dictionaries(NAMES, VALUES, max_size=4)),
    max_size=4,
)


def same(found, recorded) -> bool:
    if recorded is None or found is None or found is pd.NA or (isinstance(found, float) and math.isnan(found)):
        return recorded is None and pd.isna(found)
    if isinstance(found, str) and not isinstance(recorded, str):
        return found == json.dumps(recorded)  # a column of several kinds is text
    return found == recorded


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recorded=st.lists(RECORDS, max_size=3))
def test_each_value_is_in_one_of_the_two_tables(runs, recorded):
    for name in "abc":
        shutil.rmtree(runs.path / name, ignore_errors=True)
    items, cells = [], {}
    for name, records in zip("abc", recorded, strict=False):
        with runs.open(name) as writer:
            for kind, step, values in records:
                writer.metrics({"kind": kind, "step": step, **values})
        for row, (kind, step, values) in enumerate(records):
            for metric, value in values.items():
                if isinstance(value, list):
                    items += [((name, kind, step, metric, place), item) for place, item in enumerate(value)]
                else:
                    cells[name, row, metric] = value
    if not recorded:
        runs.open("a").finish("done", summary={})
    metrics, lists = load_metrics(runs.path), load_lists(runs.path)
    assert list(lists.columns) == ["run_id", "kind", "step", "metric", "place", "value"]
    assert [tuple(row) for row in lists.drop(columns="value").itertuples(index=False)] == [key for key, _ in items]
    assert all(same(found, item) for found, (_, item) in zip(lists["value"].tolist(), items, strict=True))
    for name in "abc":
        table = metrics[metrics["run_id"] == name].reset_index(drop=True)
        assert not any(isinstance(cell, list) for column in table for cell in table[column])
        for (run, row, metric), value in cells.items():
            assert run != name or same(table[metric][row], value)
    text = metrics.select_dtypes("string").drop(columns=["run_id", "kind"])
    assert not any(str(cell).startswith("[") for column in text for cell in text[column].dropna() if len(cell) > 3)


def test_a_run_that_is_not_there_is_said(runs):
    runs.add("a")
    with pytest.raises(StoreError, match="no such run"):
        load_lists(runs.path, ["b"])


def test_positions_of_a_recorded_store_can_be_grouped():
    """One value a position and evaluation; their mean over the window is the loss."""
    store = Path(__file__).parent.parent / "recorded_store/store"
    run = "dsa-L32-s3-ec807d56"
    lists = dsabench.load_lists(store, [run]).query("metric == 'loss_by_position'")
    means = lists.groupby("step")["value"].mean()
    assert lists.groupby("step")["place"].agg(["min", "max", "size"]).to_numpy().tolist() == [[0, 31, 32]] * len(means)
    evaluations = dsabench.load_metrics(store, [run]).query("kind == 'eval'").set_index("step")
    assert means.tolist() == pytest.approx(evaluations["val_loss"][means.index].tolist(), rel=1e-6)


def test_the_stage_of_a_dense_run_is_dense():
    """In stores of dsabench 0.1 too, whose records say `sparse`; of selecting runs it is as recorded."""
    metrics = dsabench.load_metrics(Path(__file__).parent.parent / "recorded_store/store")
    dense = metrics["run_id"].str.startswith("dense")
    assert set(metrics["stage"][dense]) == {"dense"}
    assert set(metrics["stage"][~dense]) == {"dense", "sparse"}

"""Rows and columns: what the tables of runs and metrics hold, and with which types."""

import math
import os
import shutil

import pandas as pd
import pytest

from dsabench.errors import StoreError
from dsabench.store import load_metrics, load_runs, read_run

DESIGN = [
    *("run_id", "status", "attention", "length", "seed", "steps", "params", "indexer_params"),
    *("tokens", "flops", "train_loss", "val_loss", "val_bits_per_byte", "val_accuracy", "unigram_loss"),
    *("mass_recall", "mass_recall_chance", "step_ms", "tokens_per_second", "peak_memory_mb"),
    *("task_accuracy", "chance_accuracy", "target_recall", "target_recall_best", "target_recall_chance"),
    *("epochs", "leak", "sweep", "error", "created", "updated"),
]


def test_the_columns_of_the_design_are_always_there_with_the_same_types(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    empty = load_runs(tmp_path / "empty")
    assert len(empty) == 0
    assert list(empty.columns[: len(DESIGN)]) == DESIGN
    assert list((tmp_path / "empty").iterdir()) == []  # not a store: nothing is written there
    runs.add()
    full = load_runs(runs.path)
    assert list(full.columns[: len(DESIGN)]) == DESIGN
    assert full.dtypes[empty.columns].equals(empty.dtypes)


def test_a_row_has_every_spec_field_by_its_path_and_every_metric(runs):
    runs.add(sweep="s", summary={**runs.SUMMARY, "val_loss": math.inf, "train_loss": math.nan})
    row = load_runs(runs.path).iloc[0]
    record = read_run(runs.path, "a")
    expected = {
        "run_id": "a",
        "status": "done",
        "attention": "dsa",
        "attention.kind": "dsa",
        "length": 64,
        "seed": 42,
        "steps": 10,
        "val_loss": math.inf,
        "leak": False,
        "sweep": "s",
        "created": record.created,
        "updated": record.updated,
        "train.steps": 10,
        "train.learning_rate": 1e-3,
        "attention.indexer.n_heads": 4,
        "attention.top_k_ratio": 0.5,
        "engine.deterministic": "auto",
        "plugins": "[]",
        "router_entropy": 1.25,
        "fingerprint.corpus": "00",
        "environment.device": "cpu",
    }
    assert {name: row[name] for name in expected} == expected
    for missing in ("attention.top_k", "error", "train_loss", "mass_recall", "tokens"):
        assert pd.isna(row[missing])


def test_columns_take_the_narrowest_type_and_mixed_ones_are_text(runs):
    for name, value in (("a", 1), ("b", True), ("c", "true"), ("d", [1, "x"]), ("e", None), ("f", 0.5)):
        runs.add(
            name, spec={"mixed": value, "flag": True, "whole": 3, "number": 1 if name == "a" else 0.5, "huge": 10**400}
        )
    frame = load_runs(runs.path)
    assert frame.mixed.tolist()[:4] == ["1", "true", "true", '[1, "x"]']
    assert frame.mixed.isna().tolist() == [False] * 4 + [True, False]
    assert frame.huge[0] == str(10**400)
    types = frame.dtypes.astype(str)
    assert (types["mixed"], types["flag"], types["whole"], types["number"]) == (
        "string",
        "boolean",
        "Int64",
        "float64",
    )


def test_names_that_are_no_text_are_listed_too(runs):
    runs.add("a")
    odd = os.fsdecode(bytes(runs.path) + b"/odd\xff")
    try:
        shutil.copytree(runs.path / "a", odd)
    except OSError as error:
        pytest.skip(f"this file system refuses such names: {error}")
    for _ in range(2):
        assert load_runs(runs.path).status.tolist() == ["done", "unreadable"]


def test_metrics_of_many_runs_are_one_tidy_table(runs):
    assert load_metrics(runs.add("empty", status="failed").parent, []).columns.tolist() == [
        "run_id",
        "kind",
        "step",
    ]
    with runs.open("b") as writer:
        writer.metrics({"kind": "train", "step": 1, "loss": math.nan, "text": "\u00e9"})
        writer.metrics({"kind": "eval", "step": 2, "val_loss": -math.inf, "by_position": [1.5, None, 2]})
    frame = load_metrics(runs.path, ["b"])
    assert list(frame.columns) == ["run_id", "kind", "step", "loss", "text", "val_loss"]
    assert frame.step.tolist() == [1, 2]
    assert frame.val_loss[1] == -math.inf
    assert math.isnan(frame.loss[0])
    assert load_metrics(runs.path).run_id.tolist() == ["b", "b", "empty", "empty", "empty"]
    with pytest.raises(StoreError, match="no such run"):
        load_metrics(runs.path, ["c"])

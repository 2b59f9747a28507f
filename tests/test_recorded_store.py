"""A store of an earlier version: read, compared, drawn, reported and resumed to the numbers that it recorded."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from shell import Shell

import dsabench
from dsabench.store import read_run

RECORDED = Path(__file__).parent / "recorded_store"
CAME_LATER = {"attention.indexer.norm_eps": 1e-5}
"""Fields that the records lack, and what their runs had: the default of then, not that of now."""

TASK_RUN = "dense-L32-s1-d5662ac7"
FLOOR = {
    "chance_accuracy": sum(1 / m for m in range(1, 8)) / 7,
    "unigram_loss": sum(math.log(m) for m in range(1, 8)) / 7,
}
"""What the table has of the run on a task, induction of 8 symbols, in place of the guess that it recorded."""

RECALLS = {"mass_recall", "mass_recall_chance"}
"""Summed in fp64 since version 0.5, and in fp32 when the store was recorded."""
NEWER = {*("near_copy_loss", "far_copy_loss", "far_copy_share"), "loss_by_copy_distance", "tokens_by_copy_distance"}
"""What evaluations record since then."""

TIMES = ("seconds", "eval_seconds", "tokens_per_second")
"""What training the same run again measures anew."""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def store(shell: Shell) -> Path:
    """A copy of the recorded store; the current folder holds the corpus that its runs name."""
    for name in ("store", "corpus"):
        shutil.copytree(RECORDED / name, shell.folder / name)
    shutil.copy(RECORDED / "sweep.yaml", shell.folder)
    return shell.folder / "store"


def test_the_table_of_runs_has_the_recorded_values(store: Path) -> None:
    runs = dsabench.load_runs(store).sort_values("run_id")
    recorded = lines(RECORDED / "index.jsonl")
    assert len(runs) == len(recorded) == 14
    for (_, row), expected in zip(runs.iterrows(), recorded, strict=True):
        for name in ("created", "updated"):
            assert row[name] == pd.Timestamp(expected.pop(name))
        assert row["order"] == row["updated"].timestamp() * 1e6, "without a number a record is placed by its time"
        corrected = {}
        if expected["run_id"] == TASK_RUN:
            assert {name: row[name] for name in FLOOR} == pytest.approx(FLOOR, rel=1e-12)
            corrected = {f"recorded.{name}": expected.pop(name) for name in FLOOR}
        assert all(close(row[name], value) for name, value in expected.items())
        missing = set(runs.columns) - set(expected) - {"created", "updated", "order", *(FLOOR if corrected else ())}
        later = {name: row[name] for name in missing if not pd.isna(row[name])}
        assert close(later, (CAME_LATER if row["attention"] == "dsa" else {}) | corrected | {"seal": "unsealed"})


def test_the_table_of_metrics_has_every_record(store: Path) -> None:
    metrics = dsabench.load_metrics(store)
    for run_id, table in metrics.groupby("run_id"):
        records = lines(RECORDED / "store" / str(run_id) / "metrics.jsonl")
        assert len(table) == len(records)
        for (_, row), record in zip(table.iterrows(), records, strict=True):
            values = {name: value for name, value in record.items() if isinstance(value, int | float)}
            assert len(values) > 4
            assert {name: row[name] for name in values} == values
    assert metrics.run_id.nunique() == 14


def test_compare_says_the_same(store: Path, shell: Shell) -> None:
    code, out, err = shell("compare", "--store", "store", "--json")
    assert code == 0, err
    recorded, now = json.loads((RECORDED / "compare.json").read_text()), json.loads(out)
    told = {name: now.pop(name) for name in ("answer", "checks")}  # what that version did not tell
    assert told["answer"].startswith("Not settled at 16 and 32 tokens: between 0.069 nats better and 0.126 nats worse")
    failed = {check["name"]: check["outcome"] for check in told["checks"] if check["outcome"] in ("warn", "fail")}
    assert failed == {"The indexer learnt": "warn", "Step times": "warn"}
    assert [line.split(":")[0] for line in now.pop("warnings")] == [
        "1 of 6 runs is no better than a random selection. Mass recall, over all lengths and seeds (tables",
        "Step times of one shape differ up to 1.32-fold between seeds",
    ]
    assert recorded.pop("warnings") == []
    assert now.pop("sizes") == []
    for row in (row for table in now["tables"] for row in table["rows"]):
        assert {row.pop(name) for name in ("withheld", "learnt_nothing")} == {None, 0}
        assert {row.pop(name) for name in ("epochs", "baseline_epochs")} == {None}, "it recorded no size of its text"
        assert {row.pop(name) for name in ("k_effective", "baseline_k_effective")} == {None}, "nor what is read"
        assert row.pop("overfitted") == 0 and row.pop("rise") < 0.02 and row.pop("baseline_rise") < 0.02
        assert row.pop("time_spread") > 1.25 and row.pop("time_doubt").startswith("step times of one shape differ")
    assert close(now, recorded)


def close(value: Any, recorded: Any) -> bool:
    """Equal, but for the last bits of numbers that libraries of another version compute."""
    if isinstance(recorded, dict):
        return value.keys() == recorded.keys() and all(close(value[name], recorded[name]) for name in recorded)
    if isinstance(recorded, list):
        return len(value) == len(recorded) and all(map(close, value, recorded))
    return bool(value == (pytest.approx(recorded, rel=1e-9) if isinstance(recorded, float) else recorded))


def test_it_is_drawn_and_reported(store: Path, shell: Shell) -> None:
    code, out, err = shell("plot", "positions", "forest", "--store", "store")
    assert code == 0, err
    assert sorted(path.stem for path in Path("results").glob("*.png")) == ["forest", "positions"]
    code, out, err = shell("report", "--store", "store", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["sentences"] == json.loads((RECORDED / "compare.json").read_text())["tables"][0]["sentences"]
    assert report["selection"].startswith("dsa-L32-s3")  # from its checkpoint and the corpus
    assert "The causality audit of 12 of 12 runs is recorded" in Path("results/report.html").read_text()


def test_a_model_answers_the_same(store: Path) -> None:
    recorded = json.loads((RECORDED / "logits.json").read_text())
    with torch.no_grad():
        logits_BTV = dsabench.load_model(store, recorded["run_id"])(torch.arange(64).reshape(2, 32) + 97).logits_BTV
    torch.testing.assert_close(logits_BTV[:, -1, 97:109], torch.tensor(recorded["last"]), rtol=1e-4, atol=1e-5)


def test_the_interrupted_run_ends_as_if_it_had_not_been_interrupted(
    store: Path,
) -> None:
    """The same bits where PyTorch and processor are those of the recording; otherwise sums have other last bits."""
    run_id = next(path.name for path in store.glob("dsa-L16-s9-*"))
    before = read_run(store, run_id)
    assert before.status == "interrupted"
    spec = dsabench.load_spec("sweep.yaml", overrides={"seed": 9, "attention.kind": "dsa"})
    after = dsabench.train(spec, store=store)
    assert (after.run_id, after.status) == (run_id, "done")  # the same identity: it was found, and went on
    records, recorded = lines(store / run_id / "metrics.jsonl"), lines(RECORDED / "undisturbed.jsonl")
    stored = lines(RECORDED / "store" / run_id / "metrics.jsonl")
    assert 0 < len(stored) < len(records) and records[: len(stored)] == stored  # those were not trained again
    same_machine = all(
        after.environment[name] == before.environment[name] for name in ("torch", "cpu", "cpu_capability", "threads")
    )
    assert len(records) == len(recorded)
    for record, expected in zip(records, recorded, strict=True):
        for both in (record, expected):
            for name in TIMES:
                both.pop(name, None)
        assert record.keys() - NEWER == expected.keys()
        for name in NEWER & record.keys():
            del record[name]
        for name in RECALLS & record.keys():  # of an evaluation
            assert record.pop(name) == pytest.approx(expected.pop(name), rel=1e-6)
        assert record == expected if same_machine else close_enough(record, expected)


def close_enough(record: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Equal, but for numbers within what another version of PyTorch or another processor may round."""
    measured = {name for name, value in expected.items() if isinstance(value, float | list)}
    return all(
        record[name] == (pytest.approx(value, rel=1e-5) if name in measured else value)
        for name, value in expected.items()
    )


def test_the_sweep_is_found_done(store: Path, shell: Shell) -> None:
    """Its 12 runs have their identities of before: nothing would be trained again."""
    code, out, err = shell("sweep", "--config", "sweep.yaml", "--store", "store", "--dry-run")
    assert code == 0, err
    assert "12 of 12 runs done already; nothing is left to train" in out

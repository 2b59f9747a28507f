"""A table as a file: all of it or nothing, and never over the store's own files."""

import math

import pandas as pd
import pytest

from dsabench.errors import ResultsError, StoreError
from dsabench.store import check_table_path, load_metrics, load_runs, metrics_in_parts, table, write_table


@pytest.fixture
def frame(runs):
    runs.add("a", summary={**runs.SUMMARY, "val_loss": 1 / 3})
    runs.add("b", status="failed", spec={"note": 'a "quoted", line\nand \u00e9'}, summary={"val_loss": math.inf})
    return load_runs(runs.path)


def test_parquet_is_the_same_table(frame, tmp_path):
    write_table([frame], tmp_path / "t.PARQUET")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.PARQUET"), frame)


def test_csv_keeps_every_digit_and_every_text(frame, tmp_path):
    path = tmp_path / "t.csv"
    write_table([frame], path)
    again = pd.read_csv(path, keep_default_na=False, na_values=[""])
    assert list(again) == list(frame)
    assert again.val_loss.tolist() == [1 / 3, math.inf]
    assert again.note[1] == 'a "quoted", line\nand \u00e9'
    assert pd.isna(again.note[0])
    assert again.created[0].startswith(str(frame.created[0])[:19])


def test_a_write_that_fails_leaves_the_file_before(frame, tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("before")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ResultsError, match=r"^cannot write .*t\.csv: No space left on device; .* another folder$"):
        write_table([frame], path)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir() if p.name != "runs"] == ["t.csv"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("t.txt", r"must end in \.parquet or \.csv"),
        ("t", r"must end in \.parquet or \.csv"),
        (".csv", r"must end in"),
        ("folder.csv", "a folder; name a file"),
        ("nowhere/t.csv", "there is no folder .*nowhere; make it first"),
        ("runs/index.parquet", "inside the store"),
        ("runs/a/t.csv", "inside the store"),
        ("link/t.csv", "inside the store"),
    ],
)
def test_a_file_that_is_not_to_be_written_is_refused(runs, tmp_path, name, message):
    runs.add("a")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "link").symlink_to(runs.path)
    with pytest.raises(StoreError, match=message):
        check_table_path(tmp_path / name, runs.path)
    check_table_path(tmp_path / "t.csv", runs.path)
    check_table_path(tmp_path / "t.csv", tmp_path / "nowhere")


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_metrics_in_parts_make_the_file_of_the_whole_table(runs, tmp_path, monkeypatch, suffix):
    """A column's dtype depends on all runs: here each part alone would have another."""
    records = [{"a": 1}, {"a": 2.5, "b": [1, 2]}, {}, {"b": "text", "c": True}, {"c": None, "d": 2**70}, {"e": 10**400}]
    for name, record in zip("abcdef", records, strict=True):
        with runs.open(name) as writer:
            writer.metrics({"kind": "train", "step": 1, **record})
    whole = load_metrics(runs.path)
    write_table([whole], tmp_path / f"whole.{suffix}")
    for n in (1, 2, 4):
        monkeypatch.setattr(table, "_PART", n)
        parts = list(metrics_in_parts(runs.path, list("abcdef")))
        assert max(part.run_id.nunique() for part in parts) == n, "no more runs than that are in memory"
        pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole)
        assert write_table(parts, tmp_path / f"parts.{suffix}") == len(whole) == 6
        if suffix == "csv":
            assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
        else:
            pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "parts.parquet"), whole)


def test_a_run_that_writes_something_new_meanwhile_is_no_wrong_table(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_PART", 1)
    for name in "ab":
        runs.add(name)
    parts = metrics_in_parts(runs.path, ["a", "b"])
    next(parts)
    with (runs.path / "b/metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 3, "loss": "none"}\n')
    with pytest.raises(StoreError, match="wrote other metrics while they were read; try again"):
        next(parts)

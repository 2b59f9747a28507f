"""`dsabench reproduce` and `runs diff`: the same bits are found the same, and a difference is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import Shell, loaded

import dsabench
from dsabench.audit import gate
from dsabench.reproduction import train_again
from dsabench.spec.run import validate
from dsabench.store import RunWriter
from dsabench.sweeps import single_run

PLUGIN = """
from typing import Literal
from dsabench.attention.dense import Dense, DenseSpec
from dsabench.attention.registry import register

class MineSpec(DenseSpec):
    kind: Literal["mine"] = "mine"

@register
class Mine(Dense):
    spec_class = MineSpec
"""


def values(corpus: Path, **fields: Any) -> dict[str, Any]:
    return {
        "length": 16,
        "seed": 1,
        "attention": {"kind": "dense"},
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16, "n_experts": 2, "experts_per_token": 1},
        "data": {"source": f"path:{corpus}", "tokenizer": "bytes", "val_share": 0.25},
        "train": {
            "steps": 12, "tokens_per_step": 64, "learning_rate": 1e-2, "warmup_steps": 2, "eval_every": 6,
            "eval_tokens": 256, "log_every": 3,
        },
        "engine": {"device": "cpu"},
        **fields,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with a dense and a DSA run of 12 steps: records at 0, 3, 6, 9 and 12."""
    store = tmp_path_factory.mktemp("trained") / "runs"
    dsa = {"kind": "dsa", "top_k_ratio": 0.25, "indexer": {"n_heads": 2, "head_dim": 8, "warmup_share": 0.5}}
    for attention in ({"kind": "dense"}, dsa):
        assert single_run.train(validate(values(corpus, attention=attention)), store).status == "done"
    yield store
    gate.forget()


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def folder(store: Path, start: str) -> Path:
    (found,) = store.glob(f"{start}-*")
    return found


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change run.json, or every record of metrics.jsonl."""
    lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
    documents = [json.loads(line) for line in lines]
    for document in documents:
        change(document)
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))


def contents(store: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def add_to(kind: str, step: int, metric: str, size: float) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        if (record["kind"], record["step"]) == (kind, step):
            record[metric] += size

    return change


@pytest.mark.parametrize("run", ["dense", "dsa"])
def test_a_run_gives_the_same_bits_again_and_is_only_read(shell: Shell, store: Path, run: str) -> None:
    before = contents(store)
    code, out, err = shell("reproduce", run)
    assert code == 0, out + err
    assert out.startswith(f"{folder(store, run).name}: same bits\n")
    assert "7 of 7 the same bit for bit (4 train and 3 eval, to step 12)" in out
    assert "tensors the same bit for bit" in out and "difference" not in out and "explain" not in out
    assert max(map(len, out.splitlines())) <= 80
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
    assert (code, document["verdict"], document["same"], document["records"]) == (1, "differs", 6, 7)
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
    code, out, _ = shell("reproduce", "dense", "-q")
    assert code == 1 and ": differs\n" in out
    assert f"{len(weights) - 1} of {len(weights)} tensors the same" in out and name in out
    assert "7 of 7 the same" in out


def test_records_that_are_missing_or_too_many_differ(shell: Shell, store: Path) -> None:
    path = folder(store, "dense") / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:-1], lines[-1].replace('"step": 12', '"step": 13')]))
    code, out, _ = shell("reproduce", "dense", "-q", "--tolerance", "1")
    assert code == 1 and "6 of 7" in out
    assert "missing: the eval record of step 13" in out and "only in the second: the eval record of step 12" in out


def test_an_interrupted_run_is_compared_as_far_as_it_came(shell: Shell, store: Path) -> None:
    run = folder(store, "dense")
    edit(run / "run.json", lambda record: record.update(status="interrupted"))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:4]))
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
    summary = " ".join(out.splitlines()[i].strip() for i in range(2))
    assert f"same spec, other environment: threads 7 -> 1, torch 2.0.1 -> {torch.__version__}" in summary
    assert "val_loss is the same" in summary
    assert "7 of 7 the same bit for bit" in out and "by digest   corpus, tokenizer, source" in out
    assert max(map(len, out.splitlines())) <= 80
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
    assert max(map(len, out.splitlines())) <= 80
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


def test_what_is_not_the_same_file_is_said(shell: Shell, store: Path) -> None:
    shutil.copytree(store, "other")
    edit(folder(Path("other"), "dense") / "run.json", lambda record: record["fingerprint"].update(corpus="0" * 64))
    code, out, _ = shell("runs", "diff", "dense", "--other-store", "other")
    assert code == 0 and out.startswith("same spec, other corpus, same environment; val_loss is the same")
    assert out.endswith("other by digest\n  corpus\n")
    code, out, err = shell("reproduce", "dense", "--store", "other")
    assert (code, out) == (2, "") and "error: the corpus is not what run dense-L16-s1-" in err


def test_a_plugin_must_be_there_as_it_was(shell: Shell, corpus: Path) -> None:
    first, moved = Path("mine.py"), Path("elsewhere", "mine.py")
    first.write_text(PLUGIN)
    spec = validate(values(corpus, attention={"kind": "mine"}, plugins=[str(first)]))
    assert single_run.train(spec, "runs").status == "done"
    assert shell("reproduce", "mine", "-q")[0] == 0
    moved.parent.mkdir()
    first.rename(moved)
    code, out, err = shell("reproduce", "mine", "-q")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"was trained with the plugin {first.resolve()}, which is not there; --plugin FILE says where" in err
    dsabench_forgets(first)
    code, out, err = shell("reproduce", "mine", "-q", "--plugin", str(moved))
    assert code == 0 and "same bits" in out, err
    code, out, err = shell("reproduce", "mine", "-q", "--plugin", "other.py")
    assert (code, out) == (2, "") and "other.py: run mine-L16-s1-" in err and "its plugins: mine.py" in err
    moved.write_text(PLUGIN + "# edited\n")
    code, out, err = shell("reproduce", "mine", "-q", "--plugin", str(moved))
    assert (code, out) == (2, "") and "error: the plugin is not what run mine-L16-s1-" in err


def test_a_built_in_attentions_record_executes_no_plugin(shell: Shell, corpus: Path, tmp_path: Path) -> None:
    """A run of a ladder's dense rung names the plugin of the others; another machine need not have it."""
    mine = tmp_path / "mine.py"
    mine.write_text(PLUGIN)
    run = single_run.train(validate(values(corpus, plugins=[str(mine)])), "runs")
    dsabench_forgets(mine)
    mine.write_text("open('executed', 'w').close()")
    for word in ((), ("--no-plugins",)):
        code, out, err = shell("reproduce", run.run_id, "-q", *word)
        assert (code, Path("executed").exists()) == (0, False), out + err
        assert "same bits" in out


def dsabench_forgets(plugin: Path) -> None:
    """As in a new process: a variant that a file registered is not known."""
    from dsabench.attention import plugins, registry

    registry._variants.pop("mine")
    plugins._files.pop("mine")
    plugins._digests.pop(plugin.resolve())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reproduce", "nothing"], "run 'nothing' in runs: no run starts with that; there are: dense-"),
        (["reproduce", "d"], "2 runs start with that"),
        (["reproduce", "dense", "--store", "nowhere"], "no run store there"),
        (["runs", "diff", "nothing", "dsa"], "run 'nothing' in runs: no run starts with that"),
        (["runs", "diff", "dense", "d"], "2 runs start with that"),
        (["runs", "diff", "dense"], "name a second run, or the store of another run of this id"),
        (["runs", "diff", "dense", "dense"], "name two runs, or another store"),
        (["runs", "diff", "dense", "--other-store", "nowhere"], "nowhere: no run store there"),
    ],
)
def test_mistakes_are_one_message(shell: Shell, store: Path, words: list[str], message: str) -> None:
    code, out, err = shell(*words)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_device_that_is_not_here_is_one_message(shell: Shell, store: Path) -> None:
    def on_gpu(record: dict[str, Any]) -> None:
        record["environment"] |= {"device": "cuda:3", "device_name": "NVIDIA H100"}
        record["spec"]["engine"]["device"] = "auto"

    edit(folder(store, "dense") / "run.json", on_gpu)
    code, out, err = shell("reproduce", "dense")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "was trained on NVIDIA H100; --device takes another" in err


def test_a_run_that_recorded_nothing_is_one_message(shell: Shell, store: Path) -> None:
    (folder(store, "dense") / "metrics.jsonl").unlink()
    code, out, err = shell("reproduce", "dense")
    assert (code, out) == (2, "") and "recorded nothing to compare with" in err and err.count("\n") == 1


def test_a_run_that_is_being_trained_is_not_compared(shell: Shell, store: Path) -> None:
    with RunWriter.open(store, "dsa-busy", spec={}, fingerprint={}, environment={}):
        code, out, err = shell("reproduce", "dsa-busy")
    assert (code, out) == (2, "") and "dsa-busy is still being trained" in err and err.count("\n") == 1


@pytest.mark.slow
def test_runs_diff_needs_no_torch(store: Path) -> None:
    assert not {"torch", "matplotlib", "scipy"} & set(loaded(["runs", "diff", "dense", "dsa"], store.parent))
    for words in (["runs", "diff", "--help"], ["reproduce", "--help"]):
        assert loaded(words, store.parent) == []


# Records that somebody edited, or that are damaged


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"engine": 5}, "engine = 5 is not accepted"),
        ({"plugins": 5, "attention": {"kind": "mine"}}, "cannot be trained by this one"),
        ({"train": 5}, "train = 5 is not accepted"),
    ],
)
def test_a_record_that_is_no_spec_is_one_message(
    shell: Shell, store: Path, damage: dict[str, Any], message: str
) -> None:
    edit(folder(store, "dense") / "run.json", lambda record: record["spec"].update(damage))
    code, _, err = shell("reproduce", "dense")
    assert code == 2 and message in err


def test_a_record_need_not_name_what_is_a_default(shell: Shell, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    edit(folder(store, "dense") / "run.json", lambda record: record["spec"]["train"].pop("steps"))
    monkeypatch.setattr(train_again, "train_by_turns", interrupted)
    assert shell("reproduce", "dense")[0] == 130


@pytest.mark.parametrize("name", ["state.json", "model.safetensors"])
def test_a_damaged_checkpoint_is_found_before_hours_of_training(
    shell: Shell, store: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder(store, "dense") / "checkpoint" / name).write_text("{")
    monkeypatch.setattr(train_again, "train_by_turns", lambda *args, **more: pytest.fail("it was trained"))
    code, _, err = shell("reproduce", "dense")
    assert code == 2 and f"{name} cannot be read" in err


def test_numbers_beyond_every_float_are_compared(shell: Shell, store: Path) -> None:
    shutil.copytree(store, "other")
    edit(folder(store, "dense") / "run.json", lambda record: record["summary"].update(odd=10**400))
    edit(folder(Path("other"), "dense") / "run.json", lambda record: record["summary"].update(odd=1.5))
    edit(folder(store, "dense") / "metrics.jsonl", lambda record: record.update(train_loss=10**400))
    code, out, err = shell("runs", "diff", "dense", "--other-store", "other", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [(one["field"], one["difference"]) for one in document["outcome"]] == [("odd", None)]
    assert document["records"]["first_difference"]["size"] is None

"""`dsabench reproduce` and `runs diff`: what cannot be compared is said before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from resealed import reseal
from shell import Shell, loaded
from stored_pair import PLUGIN, edit, folder, values

from dsabench.reproduction import train_again
from dsabench.spec.run import validate
from dsabench.store import RunWriter
from dsabench.sweeps import single_run


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
    assert (code, out) == (2, "") and "metrics.jsonl: it was removed since the run ended" in err
    reseal(folder(store, "dense"))  # as if none had been written
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
        ({"plugins": 5, "attention": {"kind": "mine"}}, "plugins = 5 is not accepted"),
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

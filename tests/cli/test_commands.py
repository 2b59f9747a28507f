"""The commands as a user meets them: output, exit codes, one clear message for each mistake, nothing half-made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from shell import Shell

from dsabench.cli import app
from dsabench.engine.step import TrainStep

SMALL = [
    "--config", "quick", "--set", "model.d_model=32", "--set", "model.n_heads=2", "--set", "model.d_ff=16",
    "--set", "train.steps=12", "--set", "train.warmup_steps=2", "--set", "train.eval_every=6", "--set",
    "train.tokens_per_step=128", "--set", "train.eval_tokens=512", "--set", "data.vocab_size=300", "--set",
    "data.val_share=0.25", "--set", "attention.indexer.head_dim=8", "--device", "cpu",
]  # fmt: skip


def source(corpus: Path) -> list[str]:
    return ["--set", f"data.source=path:{corpus}"]


def test_a_sweep_from_plan_to_picture(shell: Shell, corpus: Path) -> None:
    code, out, err = shell("sweep", *SMALL, *source(corpus), "--lengths", "16", "32", "--seeds", "1,2")
    assert code == 0, err
    assert "8 runs of 12 steps on cpu" in err
    assert "[8/8] dsa-L32-s2" in err
    assert "minus dense" in out
    assert "No verdict" in out or "Not settled" in out, "two seeds"
    summary = json.loads((shell.folder / "results/summary.json").read_text())
    assert set(summary["results"]) == {"16", "32"}
    for length in ("16", "32"):
        for name in ("classic", "sparse"):
            result = summary["results"][length][name]
            assert {"final_val_loss", "final_val_accuracy", "avg_time_per_step", "seeds"} <= result.keys()
            assert set(result["seeds"]) == {"1", "2"}
            losses = [seed["final_val_loss"] for seed in result["seeds"].values()]
            assert result["final_val_loss"] == pytest.approx(np.mean(losses))
            assert (shell.folder / f"results/seq_{length}/{name}_results.json").is_file()
    assert (shell.folder / "results/experiment.png").read_bytes().startswith(b"\x89PNG")
    assert len(pd.read_parquet(shell.folder / "runs/index.parquet")) == 8
    assert len(list((shell.folder / "runs/sweeps").iterdir())) == 1
    code, again, err = shell("sweep", *SMALL, *source(corpus), "--lengths", "16", "32", "--seeds", "1,2")
    assert code == 0
    assert "8 of 8 runs done already; nothing is left to train" in err
    assert again.splitlines()[:5] == out.splitlines()[:5]


def test_train_prints_a_result_or_json_and_resumes(shell: Shell, corpus: Path) -> None:
    words = ["train", *SMALL, *source(corpus), "--length", "16", "--attention", "dsa", "--seed", "3"]
    code, out, err = shell(*words)
    assert code == 0, err
    assert "validation loss" in out
    assert "chance" in out
    code, out, err = shell(*words, "--json", "--quiet")
    assert code == 0
    assert err == ""
    record = json.loads(out)
    assert (record["status"], record["spec"]["seed"], record["spec"]["length"]) == ("done", 3, 16)


def test_the_dry_run_plans_and_leaves_nothing(shell: Shell, corpus: Path) -> None:
    code, out, _ = shell("sweep", *SMALL, *source(corpus), "--dry-run")
    assert code == 0
    assert "18 runs of 12 steps" in out
    assert out.count(" new ") == 18
    assert "estimated time" in out
    code, out, _ = shell("sweep", *SMALL, *source(corpus), "--dry-run", "--json")
    assert code == 0
    assert [run["status"] for run in json.loads(out)["runs"]] == ["new"] * 18
    assert list(shell.folder.iterdir()) == []


MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown field": (["--set", "train.stepz=3"], "unknown field train.stepz; did you mean steps?"),
    "wrong type": (["--set", "train.steps=many"], "train.steps = 'many' is not accepted; accepted: a whole number"),
    "ratio 0": (["--set", "attention.top_k_ratio=0"], "top_k_ratio = 0 is not accepted"),
    "ratio 1.5": (["--top-k-ratios", "0.5", "1.5"], "top_k_ratio = 1.5 is not accepted"),
    "length 0": (["--lengths", "0"], "--lengths: length = 0 is not accepted; accepted: a whole number at least 2"),
    "length beyond every document": (
        ["--lengths", "16", "9000", "--set", "train.tokens_per_step=9000"],
        "length 9000 needs a document of 9001 tokens",
    ),
    "missing file": (["--set", "data.source=path:nowhere.txt"], "nowhere.txt"),
    "empty file": (["--set", "data.source=path:empty.txt"], "empty"),
    "binary as text": (["--set", "data.source=path:binary.txt"], "binary.txt"),
    "parquet without the column": (["--set", "data.source=path:table.parquet"], "words"),
    "heads": (["--set", "model.n_heads=5"], "n_heads = 5 does not divide d_model = 32"),
    "no such device": (["--device", "cuda"], "engine.device = cuda: there is no CUDA GPU here"),
    "unwritable store": (["--store", "file/runs"], "a file is in the way"),
    "newer store": (["--store", "newer"], "newer dsabench"),
    "unwritable results": (["--out", "file"], "--out file"),
    "unknown config": (["--config", "quik"], "did you mean quick?"),
    "unknown attention": (["--attentions", "dense", "dsaa"], "did you mean 'dsa'?"),
    "not a number": (["--lengths", "64", "--seeds", "x"], "'x' is not an integer"),
    "twice the same": (["--seeds", "1", "1"], "has 1 twice"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message_exit_2_and_no_run(
    name: str, shell: Shell, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (shell.folder / "empty.txt").write_text("")
    (shell.folder / "file").write_text("")
    (shell.folder / "binary.txt").write_bytes(bytes(range(256)) * 40)
    pd.DataFrame({"words": ["a b c"] * 30}).to_parquet(shell.folder / "table.parquet")
    (shell.folder / "newer").mkdir()
    (shell.folder / "newer/store.json").write_text('{"schema_version": 99}')
    before = sorted(shell.folder.rglob("*"))
    words, message = MISTAKES[name]
    code, out, err = shell("sweep", *SMALL, *source(corpus), *words)
    assert code == 2, err
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert sorted(shell.folder.rglob("*")) == before, "something was left behind"


def test_debug_shows_the_traceback(shell: Shell) -> None:
    with pytest.raises(app.DsabenchError):
        shell("--debug", "train", "--set", "train.stepz=1")
    os.environ.pop("DSABENCH_DEBUG")


@pytest.mark.slow
def test_a_failed_run_makes_the_sweep_exit_1(shell: Shell, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = TrainStep._compute

    def poisoned(self: TrainStep, stage: Any) -> None:
        if self.spec.attention.kind == "dense":
            with torch.no_grad():
                self.model.embedding.weight[:] = float("inf")
        honest(self, stage)

    monkeypatch.setattr(TrainStep, "_compute", poisoned)
    words = ["sweep", *SMALL, *source(corpus), "--lengths", "16", "--seeds", "1"]
    code, out, err = shell(*words)
    assert code == 1
    assert "at step 1" in err
    assert "1 of 2 runs failed; --retry-failed runs them again" in err
    assert "DSA" in out
    monkeypatch.setattr(TrainStep, "_compute", honest)
    assert shell(*words)[0] == 1, "a stored failure is not silently run again"
    assert shell(*words, "--retry-failed")[0] == 0


def test_an_interrupt_exits_130_and_the_same_command_goes_on(
    shell: Shell, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = TrainStep.run

    def interrupted(self: TrainStep, first: int, *rest: Any) -> torch.Tensor:
        if first >= 6 and self.spec.attention.kind == "dsa":
            raise KeyboardInterrupt
        return honest(self, first, *rest)

    monkeypatch.setattr(TrainStep, "run", interrupted)
    words = ["sweep", *SMALL, *source(corpus), "--lengths", "16", "--seeds", "1"]
    code, _, err = shell(*words)
    assert code == 130
    assert "interrupted after 1 of 2 runs" in err
    monkeypatch.setattr(TrainStep, "run", honest)
    code, _, err = shell(*words)
    assert code == 0
    assert "1 of 2 runs done already; estimated time" in err


def test_schema_is_json_and_names_the_fields(shell: Shell) -> None:
    code, out, _ = shell("schema")
    assert code == 0
    assert "learning_rate" in out
    assert json.loads(out)["properties"]["axes"]

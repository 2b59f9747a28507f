"""How much text is trained on and held out: in every plan in bytes, in every record in tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shell import Shell

from dsabench.metrics import epochs
from dsabench.store import load_runs

SMALL = [
    "--config", "quick", "--device", "cpu", "--length", "16", "--seed", "1",
    *(one for field in (
        "model.d_model=16", "model.n_heads=2", "model.d_ff=16", "model.n_layers=1", "train.tokens_per_step=32",
        "train.steps=2", "train.eval_tokens=64", "data.tokenizer=bytes",
    ) for one in ("--set", field)),
]  # fmt: skip


@pytest.fixture
def uneven(shell: Shell) -> Path:
    """A text of 31,000 bytes beside one of 400."""
    folder = shell.folder / "texts"
    folder.mkdir()
    (folder / "input.txt").write_text("".join(f"{i:05} a line of thirty bytes..\n" for i in range(1000)))
    (folder / "readme.md").write_text("".join(f"{i:09}\n" for i in range(40)))
    return folder


@pytest.mark.parametrize("command", [["sweep", "--lengths"], ["train", "--length"]])
def test_a_dry_run_refuses_a_text_that_is_too_small_as_the_training_does(
    shell: Shell, uneven: Path, command: list[str]
) -> None:
    name, flag = command
    small = [word for word in SMALL if word not in ("--length", "--seed", "16", "1")]
    small += ["--set", "train.tokens_per_step=20000"]
    words = [name, *small, "--set", f"data.source=path:{uneven}", flag, "20000"]
    planned, trained = shell(*words, "--dry-run"), shell(*words)
    assert planned[:2] == trained[:2] == (2, "")
    assert "error: length 20000 needs a document of 20001 tokens" in planned[2]
    assert planned[2].splitlines()[-1] == trained[2].splitlines()[-1]
    code, out, err = shell(name, *small, "--set", f"data.source=path:{uneven}", flag, "16", "--dry-run")
    assert code == 0 and "when training starts" not in out, err


def test_plan_and_record_say_how_much_text_is_on_either_side(shell: Shell, uneven: Path) -> None:
    source = ["--set", f"data.source=path:{uneven}"]
    code, out, err = shell("train", *SMALL, *source, "--dry-run")
    assert code == 0, err
    line = next(line for line in out.splitlines() if line.startswith("  text: "))
    assert len(line) <= 80
    assert re.fullmatch(r"  text: [\d.]+ kB in \d+ documents to train on, [\d.]+ kB in \d held out \([\d.]+ %\)", line)
    code, out, err = shell("train", *SMALL, *source, "--dry-run", "--json")
    assert code == 0, err
    size = sum(file.stat().st_size for file in uneven.iterdir())
    (text,) = json.loads(out)["texts"]
    assert text["train_bytes"] + text["val_bytes"] == size
    assert text["train_documents"] + text["val_documents"] == 21
    assert text["held_out_share"] == pytest.approx(text["val_bytes"] / size)
    assert 0.05 <= text["held_out_share"] <= 0.2

    code, out, err = shell("train", *SMALL, *source, "--json")
    assert code == 0, err
    (path,) = (shell.folder / "runs").glob("*/run.json")
    record = json.loads(path.read_text())
    summary = record["summary"]
    # Of bytes, a token each, and an end for each document.
    assert summary["text_tokens"] == text["train_bytes"] + text["train_documents"]
    assert summary["held_out_tokens"] == text["val_bytes"] + text["val_documents"]
    told = record["environment"]["data_notes"][0]
    assert told.startswith(
        f"text: {summary['text_tokens']:,} tokens in {text['train_documents']} documents to train on"
    )
    assert f"{summary['held_out_tokens']:,} in {text['val_documents']} held out" in told
    assert "readme.md" in err


def test_plan_and_record_say_how_often_the_text_is_seen(
    shell: Shell, uneven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 tokens of 2 steps, or 64,000 of 2000, of a text of some 28,000; exactly so when it was encoded once."""
    monkeypatch.setenv("DSABENCH_CACHE", str(shell.folder / "cache"))
    source = ["--set", f"data.source=path:{uneven}"]
    (planned,) = json.loads(shell("train", *SMALL, *source, "--dry-run", "--json")[1])["runs"]
    assert planned["epochs_are_rough"] and planned["epochs"] == pytest.approx(64 / 28_000, rel=0.1)
    assert (
        "  epochs: about 0.002 (times that the training text is seen)\n"
        in shell("train", *SMALL, *source, "--dry-run")[1]
    )
    code, out, err = shell("train", *SMALL, *source)
    assert code == 0 and "  epochs                      0.002  times that the training text is seen\n" in out, err
    (path,) = (shell.folder / "runs").glob("*/run.json")
    tokens = json.loads(path.read_text())["summary"]["text_tokens"]
    (planned,) = json.loads(shell("train", *SMALL, *source, "--dry-run", "--json")[1])["runs"]
    assert not planned["epochs_are_rough"] and planned["epochs"] == 64 / tokens
    assert json.loads(shell("runs", "show", "dense", "--json")[1])["epochs"] == 64 / tokens
    assert load_runs("runs")["epochs"].to_list() == [64 / tokens]
    often = shell("train", *SMALL, *source, "--set", "train.steps=2000", "--dry-run")[1]
    assert (
        f"  epochs: {64_000 / tokens:.3f} (" in often
        and "  note: that is more than 1.5 times: models memorise" in often
    )


@given(
    st.one_of(st.none(), st.booleans(), st.text(), st.floats(), st.integers()), st.one_of(st.floats(), st.integers())
)
def test_epochs_of_whatever_a_record_holds(tokens: Any, text_tokens: Any) -> None:
    found = epochs(tokens, text_tokens)
    numbers = isinstance(tokens, int | float) and not isinstance(tokens, bool)
    if numbers and 0 < tokens < 2**1000 and 0 < text_tokens < 2**1000:
        assert found == tokens / text_tokens
    elif not numbers or not tokens > 0 or not text_tokens > 0:
        assert found is None


def test_a_task_has_no_text(shell: Shell) -> None:
    task = ["--set", "data.source=task:induction", "--set", "data.tokenizer=bpe", "--set", "data.task.n_copied=8"]
    code, out, err = shell("train", *SMALL, *task, "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["texts"] == []
    assert [run["epochs"] for run in json.loads(out)["runs"]] == [None]
    assert "epochs" not in shell("train", *SMALL, *task, "--dry-run")[1]

"""The end of training on stderr: how long it took, and commands that run as they are printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from shell import Shell

SMALL = {
    "data.vocab_size": 300, "data.val_share": 0.25, "model.d_model": 32, "model.n_heads": 2, "model.d_ff": 16,
    "train.steps": 12, "train.warmup_steps": 2, "train.tokens_per_step": 128, "train.eval_tokens": 512,
}  # fmt: skip


def flags(corpus: Path, **more: object) -> list[str]:
    fields = {**SMALL, "data.source": f"path:{corpus}", **{name.replace("__", "."): more[name] for name in more}}
    sets = [word for path, value in fields.items() for word in ("--set", f"{path}={value}")]
    return ["--config", "quick", *sets, "--device", "cpu"]


def commands(err: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in re.findall(r"^  (dsabench .*?)(?:  .*)?$", err, re.MULTILINE)]


@pytest.mark.usefixtures("blank_maps")
@pytest.mark.parametrize("folders", [[], ["--store", "my runs", "--out", "my results"]])
def test_what_a_sweep_says_to_do_next_can_be_done(folders: list[str], shell: Shell, corpus: Path) -> None:
    words = ["sweep", *flags(corpus), "--lengths", "16", "--seeds", "1", *folders]
    code, _, err = shell(*words)
    assert code == 0, err
    assert re.search(r"^2 runs in \d+ (s|min)\. Next:$", err, re.MULTILINE)
    found = commands(err)
    assert [command[0] for command in found] == ["compare", "plot", "report", "visualize-selection"]
    for command in found:
        code, _, err = shell(*command)
        assert code == 0, (command, err)
    code, _, err = shell(*words)
    assert "All runs were done before. Next:" in err and commands(err) == found
    code, _, err = shell(*words, "--quiet")
    assert (code, err) == (0, "")


@pytest.mark.usefixtures("blank_maps")
@pytest.mark.parametrize("attention", ["dense", "dsa"])
def test_what_train_says_to_do_next_can_be_done(attention: str, shell: Shell, corpus: Path) -> None:
    words = ["train", *flags(corpus), "--length", "16", "--attention", attention]
    if attention == "dense":
        words = [word for word in words if "indexer" not in word]
        words = [
            word for i, word in enumerate(words) if not (word == "--set" and words[i + 1] in ("--set", "--device"))
        ]
    code, _, err = shell(*words)
    assert code == 0, err
    assert re.search(r"^Trained in \d+ (s|min)\. Next:$", err, re.MULTILINE)
    found = commands(err)
    assert [command[0] for command in found] == ["runs", *["visualize-selection"] * (attention == "dsa")]
    for command in found:
        code, _, err = shell(*command)
        assert code == 0, (command, err)
    code, _, err = shell(*words)
    assert code == 0 and "The run was done before. Next:" in err


@pytest.mark.parametrize(("warmup", "noted"), [(2, False), (11, False), (12, True), (40, True)])
def test_train_notes_a_warm_up_that_does_not_end_as_sweep_does(
    warmup: int, noted: bool, shell: Shell, corpus: Path
) -> None:
    note = f"train.warmup_steps = {warmup} is not below train.steps = 12; the learning rate never reaches its peak"
    code, _, err = shell("train", *flags(corpus, train__warmup_steps=warmup), "--length", "16", "--attention", "dsa")
    assert code == 0 and (note in err) == noted
    axes = ["--lengths", "16", "--seeds", "1", "--attentions", "dsa"]
    code, out, _ = shell("sweep", *flags(corpus, train__warmup_steps=warmup), *axes, "--dry-run")
    assert code == 0 and (note in out) == noted

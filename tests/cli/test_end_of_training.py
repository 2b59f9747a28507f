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
    axes = ["--lengths", "16", "--seeds", "1", "2", "3", "--attentions", "dsa", "dense"]
    code, out, _ = shell("sweep", *flags(corpus, train__warmup_steps=warmup), *axes, "--dry-run")
    assert code == 0 and (note in out) == noted


@pytest.mark.parametrize(
    ("attentions", "seeds", "notes"),
    [
        (["dsa"], ["1", "2", "3"], ["no dense runs"]),
        (["dense"], ["1", "2", "3"], ["dense runs alone"]),
        (["dense", "dsa"], ["1", "2"], ["2 seeds, and a verdict needs 3 or more"]),
        (["dense", "dsa"], ["1", "2", "3"], []),
        (["dsa"], ["1"], ["no dense runs", "1 seed, and a verdict needs 3 or more"]),
    ],
)
def test_a_plan_says_what_it_cannot_answer(
    attentions: list[str], seeds: list[str], notes: list[str], shell: Shell, corpus: Path
) -> None:
    axes = ["--lengths", "16", "--seeds", *seeds, "--attentions", *attentions]
    code, out, err = shell("sweep", *flags(corpus), *axes, "--dry-run")
    assert code == 0, err
    said = re.findall(r"^ *note: (.*)$", out, re.MULTILINE)
    assert len(said) == len(notes) and all(line.startswith(note) for line, note in zip(said, notes, strict=True)), said


@pytest.mark.parametrize(
    ("attentions", "compare"),
    [
        (["dsa"], []),
        (["dense", "dsa"], ["dsabench compare"]),
        (["dsa", "sliding_window"], ["dsabench compare --baseline dsa"]),
    ],
)
def test_a_sweep_advises_a_comparison_that_works(
    attentions: list[str], compare: list[str], shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from dsabench.cli.views import next_steps
    from dsabench.spec.run import validate

    specs = [validate({"attention": {"kind": kind}}) for kind in attentions]
    plan = SimpleNamespace(
        runs=[
            SimpleNamespace(spec=spec, status="done", is_left=False, problem="", for_children=False) for spec in specs
        ]
    )
    next_steps.after_sweep(plan, Path("runs"), Path("results"), 1.0)  # type: ignore[arg-type]
    found = [line.split("  ")[1] for line in shell.capsys.readouterr().err.splitlines() if "dsabench compare" in line]
    assert found == compare

"""Plugins that a spec or a stored run names: executed only when that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import rewrite, tiny
from shell import Shell

import dsabench
from dsabench import load_spec, train
from dsabench.attention.plugins import no_plugins
from dsabench.errors import SpecError


@pytest.mark.parametrize("command", ["train", "sweep", "audit", "profile"])
@pytest.mark.parametrize("named_by", ["config", "flag"])
def test_no_plugins_refuses_a_spec_that_names_one(shell: Shell, canary: Path, command: str, named_by: str) -> None:
    (shell.folder / "c.yaml").write_text("base:\n  length: 16\n  plugins: [mine.py]\n")
    words = ["--config", "c.yaml"] if named_by == "config" else ["--set", "plugins=[mine.py]"]
    code, out, err = shell(command, *words, "--no-plugins")
    assert (code, out) == (2, "")
    who = "c.yaml:3: " if named_by == "config" else "--set plugins: "
    assert err == (
        f"error: {who}plugins: mine.py is a Python file that would be executed, and --no-plugins refuses that; leave "
        "--no-plugins out if you trust the file\n"
    )
    assert not canary.exists()


def test_no_plugins_refuses_before_the_file_is_looked_at_and_ends_with_the_command(shell: Shell, canary: Path) -> None:
    assert "--no-plugins refuses" in shell("train", "--set", "plugins=[nowhere.py]", "--no-plugins")[2]
    assert "is not a file" in shell("train", "--set", "plugins=[nowhere.py]")[2]
    with no_plugins(), pytest.raises(SpecError, match=r"overrides: plugins: mine\.py .* refuses"):
        load_spec("quick", {"plugins": ["mine.py"]})
    load_spec("quick", {"plugins": ["mine.py"]})
    assert canary.exists()


def stored_plugin_run(corpus: Path, canary: Path) -> str:
    record = train(load_spec("quick", tiny(corpus, **{"plugins": ["mine.py"], "attention.kind": "mine"})), "runs")
    canary.unlink()
    dsabench.attention.plugins._digests.clear()  # as in a new process
    return record.run_id


def test_a_stored_run_executes_its_plugin_only_when_it_is_named(
    shell: Shell, corpus: Path, canary: Path, one_figure: None
) -> None:
    run_id = stored_plugin_run(corpus, canary)
    unnamed = (
        ["visualize-selection"],
        ["report"],
        ["compare", "--all"],
        ["plot", "learning"],
        ["runs", "show", run_id],
    )
    for words in unnamed:
        shell(*words)
        assert not canary.exists(), words
    unopened = shell("visualize-selection")[2]
    assert "1 run of a plugin was passed over: a plugin file is executed only for a run that is named" in unopened
    assert unopened.endswith("train one with: dsabench train --config quick --attention dsa\n")
    for words in (["visualize-selection", run_id], ["audit", run_id], ["bench", "--run", run_id, "--device", "cpu"]):
        code, out, err = shell(*words, "--no-plugins")
        assert (code, out) == (2, ""), err
        assert f"error: run {run_id}: plugins: {shell.folder / 'mine.py'} is a Python file that would be" in err
        assert not canary.exists(), words
    code, _, err = shell("report", "--run", run_id, "--no-plugins")
    assert code == 0 and "refuses" in err and not canary.exists()
    assert shell("audit", run_id)[0] in (0, 1)
    assert canary.exists()


def test_a_stored_run_of_a_built_in_attention_executes_nothing(shell: Shell, corpus: Path, canary: Path) -> None:
    """Every run of a sweep names the sweep's plugins; only those of a plugin's attention need them."""
    record = train(load_spec("quick", tiny(corpus, **{"attention.kind": "dsa", "attention.top_k": 4})), "runs")
    path = Path("runs") / record.run_id / "run.json"
    rewrite(path, spec=record.spec | {"plugins": [str(shell.folder / "mine.py")]})
    dsabench.load_model("runs", record.run_id)
    code, _, err = shell("visualize-selection")
    assert code == 0, err
    assert not canary.exists()

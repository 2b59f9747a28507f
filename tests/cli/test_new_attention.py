"""`dsabench new-attention`: the worked example under a name of one's own, its test green and its sweep trained."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shell import Shell

import dsabench
from dsabench.cli import plugin_files
from dsabench.cli.plugin_files import new_files
from dsabench.errors import SpecError
from dsabench.spec.config import shipped_configs

EXAMPLE = shipped_configs()["seed"].parent / "custom_attention"
TINY = {
    "model.d_model": 32, "model.n_heads": 2, "model.d_ff": 16, "model.n_layers": 1, "train.tokens_per_step": 64,
    "train.steps": 4, "train.eval_tokens": 256, "data.vocab_size": 300, "data.val_share": 0.25,
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("no_audit_remembered")


def test_the_files_are_the_worked_example_under_another_name(shell: Shell) -> None:
    code, out, err = shell("new-attention", "my_gate")
    assert (code, err) == (0, "")
    for ours, theirs in (("my_gate.py", "my_attention.py"), ("test_my_gate.py", "test_my_attention.py"),
                         ("my_gate.yaml", "sweep.yaml")):  # fmt: skip
        text = (EXAMPLE / theirs).read_text(encoding="utf-8")
        assert Path(ours).read_text() == text.replace("my_attention", "my_gate").replace("MyAttention", "MyGate")
        assert ours in out
    assert "pytest test_my_gate.py" in out and max(map(len, out.splitlines())) <= 80


def test_the_generated_test_passes(shell: Shell) -> None:
    """In a process of its own, as its user runs it, from another folder than the files'."""
    assert shell("new-attention", "my_gate", "--out", "gates")[0] == 0
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "gates/test_my_gate.py"]
    package = str(Path(dsabench.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_the_generated_config_sweeps(shell: Shell, corpus: Path) -> None:
    assert shell("new-attention", "my_gate")[0] == 0
    sets = [word for path, value in TINY.items() for word in ("--set", f"{path}={value}")]
    words = ["--set", f"data.source=path:{corpus}", *sets, "--device", "cpu", "--lengths", "16", "--seeds", "1", "2"]
    code, out, err = shell("sweep", "--config", "my_gate.yaml", *words)
    assert code == 0, err
    assert "my_gate" in out
    runs = dsabench.load_runs("runs")
    assert set(runs["attention"]) == {"dense", "my_gate"} and set(runs["status"]) == {"done"}


def test_the_next_steps_are_commands_that_exist(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    document = json.loads(shell("new-attention", "my_gate", "--out", "two words", "--json")[1])
    assert document["files"] == [f"two words/{name}" for name in ("my_gate.py", "test_my_gate.py", "my_gate.yaml")]
    assert all(Path(file).is_file() for file in document["files"])
    pytest_, audit, sweep, compare = document["next"]
    assert shlex.split(pytest_) == ["pytest", "two words/test_my_gate.py"]
    assert shell(*shlex.split(sweep)[1:], "--dry-run", "--device", "cpu")[0] == 0
    assert shlex.split(audit)[1:4] == ["audit", "--config", "two words/my_gate.yaml"] and compare == "dsabench compare"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert json.loads(shell("new-attention", "other", "--json")[1])["next"][0] == "pip install pytest"


BAD = ["MyGate", "my gate", "my-gate", "9a", "_a", "", "a" * 41, "dense", "dsa", "random", "lambda", "match", "test_a",
       "inspect", "torch", "attention", "tensor", "f", "run_spec", "../a", "a.b", "caf\u00e9"]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_cannot_be_is_refused_and_nothing_written(shell: Shell, name: str) -> None:
    code, out, err = shell("new-attention", name)
    assert (code, out) == (2, "") and err.startswith("error: NAME ")
    assert not list(Path().iterdir())


@pytest.mark.parametrize("there", ["my_gate.py", "test_my_gate.py", "my_gate.yaml"])
def test_a_file_that_is_there_is_never_touched(shell: Shell, there: str) -> None:
    Path(there).write_text("mine")
    code, _, err = shell("new-attention", "my_gate")
    assert code == 2 and there in err
    assert [path.name for path in Path().iterdir()] == [there] and Path(there).read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_one_message(shell: Shell) -> None:
    Path("file").write_text("")
    code, _, err = shell("new-attention", "my_gate", "--out", "file/inside")
    assert code == 2 and err.startswith("error: file/inside/my_gate.py cannot be written: ") and err.count("\n") == 1


def test_what_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    files = {tmp_path / "a.py": "a", tmp_path / "b.py" / "c.py": "c", tmp_path / "b.py": "b"}
    with pytest.raises(SpecError, match=r"b\.py cannot be written"):
        plugin_files.write_new(files)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@given(st.from_regex(r"[a-z][a-z0-9_]{0,39}", fullmatch=True))
def test_every_name_that_is_taken_gives_python(name: str) -> None:
    try:
        files = new_files(name, Path("nowhere"))
    except SpecError as error:
        assert repr(name) in str(error)
        return
    plugin, test, _ = files.values()
    names: dict[str, object] = {}
    compile(test, "test", "exec")
    assert f'kind: Literal["{name}"]' in plugin and "my_attention" not in plugin.replace(name, "")
    exec(compile("".join(line for line in plugin.splitlines(True) if line.startswith("class ")).replace(":", ": pass"),
                 "plugin", "exec"), {"AttentionSpec": object, "Attention": object}, names)  # fmt: skip
    assert len(names) == 2

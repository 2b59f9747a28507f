"""Completion of values: what bash, zsh and fish ask for and get, by the protocol of Typer's own scripts."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from shell import Shell, loaded

from dsabench.cli import completion
from dsabench.figures.catalogue import FIGURES
from dsabench.guide.topics import pages
from dsabench.metrics import compared
from dsabench.spec.attention import BUILT_IN
from dsabench.spec.config import shipped_configs
from dsabench.spec.field_list import built_in_fields

RUNS = ["dense-L64-s42-0123abcd", "dsa-L64-s42-4567cdef", "dsa-L64-s43-89abcdef"]
FIELDS = list(dict.fromkeys(field.path for field in built_in_fields()))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Folders as those of runs, and others that are none."""
    folder = tmp_path / "runs"
    for name in RUNS:
        (folder / name).mkdir(parents=True)
        (folder / name / "run.json").write_text("{}")
    (folder / "dsa-no-run").mkdir()
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "quick-be470e85.json").write_text("{}")
    return folder


Ask = Callable[[str], list[str]]


@pytest.fixture(params=["bash", "zsh", "fish"])
def ask(shell: Shell, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Ask:
    """What a shell is told at the end of a command line (without `dsabench`; a space at its end begins a word)."""

    def told(line: str) -> list[str]:
        words = ["dsabench", *shlex.split(line)]
        if request.param == "bash":  # which takes `=` for a word of its own
            words = [part for word in words for part in re.split(r"(?<=[^-])(=)", word) if part]
            n = len(words) - (not line.endswith((" ", "=")) and bool(line))
            monkeypatch.setenv("COMP_WORDS", "\n".join(words))
            monkeypatch.setenv("COMP_CWORD", str(n))
        else:
            monkeypatch.setenv("_TYPER_COMPLETE_ARGS", f"dsabench {line}")
            monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        monkeypatch.setenv("_DSABENCH_COMPLETE", f"complete_{request.param}")
        code, out, err = shell()
        assert (code, err) == (0, "")
        if request.param == "zsh":
            return [
                value.replace("\\\\:", ":")
                for value in re.findall(r'^(?:_arguments .*\(\()?"([^"]+)"', out, re.MULTILINE)
            ]
        return [value.partition("\t")[0] for value in out.splitlines() if value]

    return told


CASES = {
    "runs show ": RUNS,
    "runs show dsa": RUNS[1:],
    f"runs diff {RUNS[0]} dsa-L64-s43": RUNS[2:],
    f"runs rm {RUNS[0]} {RUNS[1]} dsa-L64-s43": RUNS[2:],
    "reproduce dense": RUNS[:1],
    "audit dsa": RUNS[1:],
    "visualize-selection dsa-L64-s43": RUNS[2:],
    "report --run dense": RUNS[:1],
    "compare --sweep ": ["quick-be470e85"],
    "sweep --config s": [name for name in shipped_configs() if name.startswith("s")],
    "configs ": list(shipped_configs()),
    "train --attention ": list(BUILT_IN),
    "sweep --attentions d": ["dense", "dsa"],
    "sweep --attentions dense d": ["dsa"],
    "sweep --attentions dense,d": ["dense,dense", "dense,dsa"],
    "compare --metric val": [name for name in compared() if name.startswith("val")],
    "plot ": list(FIGURES),
    "plot learning f": [name for name in FIGURES if name.startswith("f")],
    "guide t": [topic for topic in pages() if topic.startswith("t")],
    "fields train.": [path for path in FIELDS if path.startswith("train.")],
    "sweep --set model.n_": [f"{path}=" for path in FIELDS if path.startswith("model.n_")],
    "runs list --columns run_id mass": ["mass_recall", "mass_recall_chance"],
    "export --to m": ["mlflow"],
    "plot --formats s": ["svg"],
    "train --device c": ["cpu", "cuda"],
    "runs show --store nowhere dsa": [],
    "guide nothing-like-it": [],
}


@pytest.mark.parametrize("line", CASES)
def test_a_value_is_completed(ask: Ask, store: Path, line: str) -> None:
    assert ask(line) == CASES[line]


@pytest.mark.parametrize("begun", ["", "c"])
def test_values_of_a_field_with_few_are_completed(ask: Ask, begun: str, request: pytest.FixtureRequest) -> None:
    """bash replaces what follows `=` alone."""
    wanted = ["cosine", "constant"]
    if "bash" not in request.node.name:
        wanted = [f"train.schedule={value}" for value in wanted]
    assert ask(f"sweep --set train.schedule={begun}") == wanted


def test_the_store_is_the_one_that_is_named(ask: Ask, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.rename("elsewhere")
    assert ask("runs show dense") == []
    assert ask("runs show --store elsewhere dense") == RUNS[:1]
    monkeypatch.setenv("DSABENCH_STORE", "elsewhere")
    assert ask("runs show dense") == RUNS[:1]


@pytest.mark.parametrize(
    "name", ["dsa; touch pwned", "dsa$(touch pwned)", "dsa`x`", "dsa 'x", "-dsa", "dsa)x", "dsa\n"]
)
def test_a_name_that_a_shell_would_execute_is_not_proposed(ask: Ask, store: Path, name: str) -> None:
    (store / name).mkdir()
    (store / name / "run.json").write_text("{}")
    (store / "sweeps" / f"{name}.json").write_text("{}")
    assert ask("runs show ") == RUNS
    assert ask("compare --sweep ") == ["quick-be470e85"]


@pytest.mark.parametrize(
    "fault",
    [OSError("gone"), ValueError("bad"), RuntimeError("no home"), UnicodeDecodeError("utf-8", b"", 0, 1, "bad")],
)
def test_an_error_is_silence(ask: Ask, store: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def fail(*words: object) -> None:
        raise fault

    for name in ("spec.config.shipped_configs", "guide.topics.pages", "spec.field_list.built_in_fields",
                 "cli.completion._store"):  # fmt: skip
        monkeypatch.setattr(f"dsabench.{name}", fail)
    for line in ("sweep --config ", "guide ", "sweep --set ", "runs show ", "compare --sweep ", "fields t"):
        assert ask(line) == []


@pytest.mark.parametrize("place", ["file", "file/inside", "nowhere"])
def test_a_store_that_is_none_is_silence(ask: Ask, place: str) -> None:
    Path("file").write_text("")
    assert ask(f"runs show --store {place} d") == []
    assert ask(f"compare --store {place} --sweep ") == []


@pytest.mark.parametrize(
    "line", ["runs show ", "sweep --set model.n_", "sweep --config s", "plot ", "runs list --columns run_id mass"]
)
def test_nothing_heavy_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: Path, line: str) -> None:
    monkeypatch.setenv("_DSABENCH_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", f"dsabench {line}")
    assert loaded([], tmp_path) == []


def test_ten_thousand_runs_take_a_moment(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for i in range(10_000):
        (folder / f"dsa-L64-s{i}-01234567").mkdir(parents=True)
    (folder / "dsa-L64-s77-01234567" / "run.json").write_text("{}")
    context = type("Context", (), {"params": {"store": folder}})()
    start = time.process_time()
    assert completion.runs(context, "dsa-L64-s7") == ["dsa-L64-s77-01234567"]
    assert time.process_time() - start < 1.0


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_itself_completes(tmp_path: Path, store: Path) -> None:
    """The script that `--install-completion` installs, in a bash of its own."""
    program = tmp_path / "bin" / "dsabench"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom dsabench.cli.app import main\nmain()\n")
    program.chmod(0o755)
    ask = """
        source <(_DSABENCH_COMPLETE=source_bash dsabench)
        COMP_WORDS=(dsabench runs show dsa); COMP_CWORD=3
        $(complete -p dsabench | sed 's/.*-F \\([^ ]*\\).*/\\1/') dsabench
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    package = str(Path(completion.__file__).parents[2])
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": package}
    done = subprocess.run(["bash", "--norc", "-c", ask], capture_output=True, text=True, timeout=120, check=False,
                          cwd=tmp_path, env=environment)  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (RUNS[1:], "")

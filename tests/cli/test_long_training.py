"""Training that takes a CPU long: asked at a terminal, where Enter trains nothing; elsewhere it goes on."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from shell import Shell

from dsabench.cli import long_training
from dsabench.progress.durations import HOUR

MAIN = "import sys; from dsabench.cli.app import main; sys.argv = ['dsabench', *sys.argv[1:]]; main()"


def at_a_terminal(answer: bytes, folder: Path, *words: str, code: str = MAIN) -> tuple[int, str]:
    """A command, or other code, with a terminal of its own, on which `answer` is typed when it asks. Returns the exit
    code and all that was printed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "COLUMNS", "NO_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env={**environment, "TERM": "xterm"},
    ) as process:  # fmt: skip
        os.close(theirs)
        said = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:
                break
            if not data:
                break
            said += data
            if b"/N] " in said and answer:
                os.write(ours, answer)
                answer = b""
    os.close(ours)
    return process.returncode, said.decode().replace("\r\n", "\n")


def test_the_first_command_of_the_readme_asks_on_a_cpu_and_enter_is_safe(tmp_path: Path) -> None:
    code, said = at_a_terminal(b"\n", tmp_path, "sweep", "--lengths", "64", "128", "256", "--device", "cpu")
    assert code == 130, said
    assert " on this CPU. Train it?" in said and "the quick config instead" in said and "--yes" in said
    assert "Nothing was trained." in said
    assert list(tmp_path.iterdir()) == []


class Asked:
    """Answers in place of a terminal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
        self.answers, self.offered = list(answers), list[bool]()
        monkeypatch.setattr(long_training, "is_to_be_asked", lambda device, seconds: True)
        monkeypatch.setattr(long_training, "ask", self)

    def __call__(self, seconds: float, *, offers_quick: bool) -> Any:
        self.offered.append(offers_quick)
        return self.answers.pop(0)


def small(corpus: Path, config: str) -> list[str]:
    fields = {
        "data.source": f"path:{corpus}", "data.vocab_size": 300, "data.val_share": 0.25, "model.d_model": 32,
        "model.n_heads": 2, "model.d_ff": 16, "train.steps": 12, "train.warmup_steps": 2,
        "train.tokens_per_step": 128, "train.eval_tokens": 512,
    }  # fmt: skip
    sets = [word for path, value in fields.items() for word in ("--set", f"{path}={value}")]
    axes = ["--lengths", "16", "--seeds", "1", "--attentions", "dense"]
    return ["sweep", "--config", config, *sets, *axes, "--device", "cpu"]


@pytest.mark.parametrize(
    ("answers", "offered", "code", "steps"),
    [(["yes"], [True], 0, 12), (["no"], [True], 130, None), (["quick", "yes"], [True, False], 0, 12)],
)
def test_the_answer_is_what_is_done(
    answers: list[str],
    offered: list[bool],
    code: int,
    steps: int | None,
    shell: Shell,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The quick config takes the same flags, and is asked about in turn."""
    asked = Asked(monkeypatch, *answers)
    ended, _, err = shell(*small(corpus, "seed"))
    assert (ended, asked.offered) == (code, offered), err
    trained = [path.name for path in Path("runs").glob("dense-*")] if Path("runs").exists() else []
    assert len(trained) == (steps is not None)
    names = [path.name for path in Path("runs/sweeps").glob("*")] if trained else []
    chosen = "quick" if "quick" in answers else "seed"
    assert all(name.startswith(chosen) for name in names)
    for name in names:
        command = json.loads(Path("runs/sweeps", name).read_text())["command"]
        assert command == ["dsabench", *small(corpus, chosen)], "the one that trains these runs"


@given(
    before=st.lists(st.sampled_from(["--yes", "--lengths", "64", "--set", "a=b"])),
    named=st.sampled_from([[], ["--config", "seed"], ["--config=mine.yaml"]]),
    after=st.lists(st.sampled_from(["--yes", "--seeds", "1", "2"])),
)
def test_the_command_of_the_quick_config_has_the_same_flags(
    before: list[str], named: list[str], after: list[str]
) -> None:
    made = long_training.with_quick(["dsabench", "sweep", *before, *named, *after])
    words = [word for one in made for word in ([one] if one != "--config=quick" else ["--config", "quick"])]
    at = words.index("--config")
    assert words[at + 1] == "quick" and words.count("quick") == 1
    assert words[:at] + words[at + 2 :] == ["dsabench", "sweep", *before, *after]


def test_yes_asks_nothing(shell: Shell, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    code, _, err = shell(*small(corpus, "seed"), "--yes")
    assert code == 0, err
    assert asked.offered == []


@pytest.mark.parametrize(
    ("device", "seconds", "stdin", "stderr", "asked"),
    [
        ("cpu", 1.1 * HOUR, True, True, True),
        ("cpu", 0.9 * HOUR, True, True, False),
        ("cuda", 99 * HOUR, True, True, False),
        ("cpu", 99 * HOUR, False, True, False),
        ("cpu", 99 * HOUR, True, False, False),
    ],
)
def test_who_is_asked(
    device: str, seconds: float, stdin: bool, stderr: bool, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return stdin

    monkeypatch.setattr(sys, "stdin", Stream())
    monkeypatch.setattr(long_training, "stderr_console", lambda: Console(file=io.StringIO(), force_terminal=stderr))
    assert long_training.is_to_be_asked(device, seconds) == asked


@pytest.mark.parametrize(
    ("typed", "offers_quick", "answer"),
    [
        ("\n", True, "no"),
        ("", True, "no"),
        ("y\n", True, "yes"),
        ("YES\n", False, "yes"),
        ("q\n", True, "quick"),
        ("q\n\n", False, "no"),
        ("perhaps\n q \n", True, "quick"),
        ("n\n", True, "no"),
    ],
)
def test_answers(typed: str, offers_quick: bool, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=80)
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    monkeypatch.setattr(long_training, "stderr_console", lambda: console)
    assert long_training.ask(85.1 * HOUR, offers_quick=offers_quick) == answer
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "about 3.5 days on this CPU" in said and ("quick config" in said) == offers_quick
    assert ("is none of these answers" in said) == (typed.count("\n") > 1)
    assert all(len(line) <= 80 for line in said.splitlines())


def test_a_terminal_shows_a_bar_for_a_notebooks_call_and_none_when_told(corpus: Path, tmp_path: Path) -> None:
    code = f"""
import dsabench
spec = dsabench.load_spec("quick", overrides={{
    "data.source": "path:{corpus}", "data.vocab_size": 300, "data.val_share": 0.25, "length": 16,
    "attention.kind": "dense", "model.d_model": 32, "model.n_heads": 2, "model.d_ff": 16, "train.steps": 12,
    "train.warmup_steps": 2, "train.tokens_per_step": 128, "train.eval_tokens": 512, "engine.device": "cpu"}})
print(dsabench.train(spec, store="STORE", MORE).status)
"""
    ended, shown = at_a_terminal(b"", tmp_path, code=code.replace("STORE", "a").replace("MORE", ""))
    assert ended == 0 and "12/12" in shown and "dense L=16 seed=42" in shown and "done" in shown, shown
    ended, silent = at_a_terminal(b"", tmp_path, code=code.replace("STORE", "b").replace("MORE", "progress=False"))
    assert (ended, silent) == (0, "done\n")
    piped = subprocess.run(
        [sys.executable, "-c", code.replace("STORE", "c").replace("MORE", "")],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert (piped.stdout.strip(), piped.stderr) == ("done", "")

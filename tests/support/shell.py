"""The command line in this process: what a user types, and what comes back."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dsabench.cli import app


class Shell:
    """Runs a command line in this process, in a folder of its own; returns (exit code, stdout, stderr)."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.folder, self.capsys, self.patch = folder, capsys, patch
        patch.chdir(folder)
        for variable in ("DSABENCH_DEBUG", "DSABENCH_STORE"):
            patch.delenv(variable, raising=False)

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self.patch.setattr("sys.argv", ["dsabench", *words])
        with pytest.raises(SystemExit) as caught:
            app.main()
        out = self.capsys.readouterr()
        return int(caught.value.code or 0), out.out, out.err

    def on_terminal(self, columns: int, *words: str) -> tuple[int, str, str]:
        """The same on a terminal so wide, its colours left out."""
        with self.patch.context() as patch:
            patch.setenv("FORCE_COLOR", "1")
            patch.setenv("COLUMNS", str(columns))
            code, out, err = self(*words)
        return code, re.sub(r"\x1b\[[0-9;]*m", "", out), err


def loaded(words: list[str], folder: Path) -> list[str]:
    """Which heavy packages a command imports, run by itself in `folder`."""
    probe = (
        "import atexit, sys\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'scipy', 'pyarrow', 'numpy'}\n"
        "atexit.register(lambda: print(*(heavy & set(sys.modules)), file=sys.stderr))\n"
        f"sys.argv = ['dsabench', *{words!r}]\n"
        "from dsabench.cli.app import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.split()


def small_run(corpus: Path) -> list[str]:
    """Options of a command that make its model small and its training short, on the texts of `corpus`."""
    fields = [
        "model.d_model=32", "model.n_heads=2", "model.d_ff=16", "model.n_layers=1", "train.tokens_per_step=64",
        "train.steps=4", "train.eval_tokens=256", "data.vocab_size=300", "data.val_share=0.25",
        f"data.source=path:{corpus}",
    ]  # fmt: skip
    return [word for field in fields for word in ("--set", field)] + ["--device", "cpu"]

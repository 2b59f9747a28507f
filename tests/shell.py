"""The command line in this process: what a user types, and what comes back."""

from __future__ import annotations

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

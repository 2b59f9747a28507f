"""Fixtures of the tests of what comes from somebody else."""

from __future__ import annotations

from pathlib import Path

import pytest
from figure_tools import report_with
from hostile import PLUGIN


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """What exists when `mine.py` beside it, an attention, was executed."""
    path = tmp_path / "canary"
    (tmp_path / "mine.py").write_text(PLUGIN.replace("CANARY", repr(str(path))))
    return path


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report with the figure that says most; the others take seconds and have tests of their own."""
    report_with(monkeypatch, "forest")

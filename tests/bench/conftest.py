"""A command line in an empty folder, and a layer small enough for a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from shell import Shell

from dsabench.bench import measure
from dsabench.engine.device import Execution, resolve
from dsabench.spec.run import EngineSpec


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # as a user's shell is
    return Shell(tmp_path, capsys, monkeypatch)


@pytest.fixture
def execution() -> Execution:
    return resolve(EngineSpec(device="cpu"))


@pytest.fixture(autouse=True)
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The roof takes seconds to measure and is no test's subject."""
    monkeypatch.setattr(measure, "matmul_rate", lambda device, precision: 1e11)
    monkeypatch.setattr(measure, "copy_rate", lambda device: 1e10)

"""What every test shares: a cache of its own, and a small corpus that a small model can learn."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

# Tiny tensors gain nothing from a second thread, and two threads that spin on a busy machine lose many times over.
# Set before torch is imported anywhere, and inherited by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
# Without a GPU, Triton kernels are tested in its interpreter; it reads this when a kernel is declared.
if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"

from shell import Shell
from skips_in_ci import pytest_make_collect_report as pytest_make_collect_report
from skips_in_ci import pytest_runtest_makereport as pytest_runtest_makereport

from dsabench.attention import plugins, registry


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests neither read nor fill the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSABENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 documents of about 3000 characters, each a walk over 30 words with few successors a word."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdefghijkl"), 4)) for _ in range(30)]
    successors = generator.integers(0, 30, (30, 3))
    for i in range(12):
        word, text = 0, []
        for _ in range(600):
            word = int(successors[word, generator.integers(3)])
            text.append(words[word])
        (folder / f"document{i}.txt").write_text(" ".join(text), encoding="utf-8")
    return folder


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A command line in an empty folder."""
    return Shell(tmp_path, capsys, monkeypatch)


@pytest.fixture
def no_audit_remembered() -> Iterator[None]:
    """Each test audits its models itself, whatever this process has audited before."""
    from dsabench.audit import gate

    gate.forget()
    yield
    gate.forget()


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that a test loads is gone after it."""
    registry.kinds()
    for module, name in ((registry, "_variants"), (plugins, "_digests"), (plugins, "_files")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background job: what the tests start would inherit it, and no test of stopping could pass.
    signal.signal(signal.SIGINT, signal.default_int_handler)

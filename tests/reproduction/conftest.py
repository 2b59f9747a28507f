"""Fixtures of the tests of reproduction."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from stored_pair import values

from dsabench.audit import gate
from dsabench.spec.run import validate
from dsabench.sweeps import single_run


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with a dense and a DSA run of 12 steps: records at 0, 3, 6, 9 and 12."""
    store = tmp_path_factory.mktemp("trained") / "runs"
    dsa = {"kind": "dsa", "top_k_ratio": 0.25, "indexer": {"n_heads": 2, "head_dim": 8, "warmup_share": 0.5}}
    for attention in ({"kind": "dense"}, dsa):
        assert single_run.train(validate(values(corpus, attention=attention)), store).status == "done"
    yield store
    gate.forget()


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"

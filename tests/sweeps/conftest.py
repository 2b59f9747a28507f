"""A store with one run of each attention, for the tests of runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from single_runs import dense, spec_of

from dsabench.sweeps import single_run


@pytest.fixture(scope="session")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a dense and a DSA run of 40 steps."""
    store = tmp_path_factory.mktemp("trained") / "runs"
    for spec in (dense(spec_of(corpus)), spec_of(corpus)):
        assert single_run.train(spec, store).status == "done"
    return store

"""A store that the tests of figures look at."""

from __future__ import annotations

from pathlib import Path

import pytest
import size_store
import synthetic
from figure_tools import DENSE, SPARSE, at

from dsabench.figures.data import FigureData


@pytest.fixture(scope="session")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two lengths, dense and three k/L, three seeds."""
    store = tmp_path_factory.mktemp("usual")
    synthetic.experiment(store, lengths=(64, 128), attentions=[DENSE, *SPARSE], seeds=(1, 2, 3), evaluations=10)
    return store


@pytest.fixture(scope="session")
def shown(usual: Path) -> FigureData:
    return at(usual)


@pytest.fixture(scope="session")
def of_tasks(tmp_path_factory: pytest.TempPathFactory) -> FigureData:
    """The same of runs on a task."""
    store = tmp_path_factory.mktemp("tasks")
    synthetic.experiment(
        store, lengths=(64, 128), attentions=[DENSE, *SPARSE], seeds=(1, 2, 3), evaluations=10, **synthetic.TASK
    )
    return at(store)


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> FigureData:
    """Parents, their children, and runs from scratch; of three seeds."""
    store = tmp_path_factory.mktemp("children")
    attentions = [DENSE, {"kind": "dsa", "top_k": 16}, {"kind": "random", "top_k": 16}]
    synthetic.family(store, attentions, gain=lambda spec: -0.2 if spec.attention.kind == "dense" else -0.1)
    return at(store)


@pytest.fixture(scope="session")
def of_sizes(tmp_path_factory: pytest.TempPathFactory) -> FigureData:
    """A ladder of five sizes, dense and DSA, three seeds."""
    store = tmp_path_factory.mktemp("sizes") / "runs"
    size_store.sizes(store, gap=lambda x: 0.01 * (x - 6))
    return at(store)

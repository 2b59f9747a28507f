"""A store with runs that ended and one that goes on, and trackers to write them to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tracker_tools import Live

from dsabench.trackers.export import open_tracker
from dsabench.trackers.names import TRACKERS
from dsabench.trackers.tracker import Tracker


@pytest.fixture
def live(tmp_path: Path) -> Live:
    return Live(tmp_path / "runs")


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Puts MLflow's empty database into a folder: making one takes it seconds."""
    made = tmp_path_factory.mktemp("mlflow")

    def put(out: Path) -> None:
        if not (made / "mlflow.db").exists():
            open_tracker("mlflow", made, made / "store").close()
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "mlflow.db").exists():
            shutil.copy(made / "mlflow.db", out)

    return put


@pytest.fixture(params=TRACKERS)
def kind(request: pytest.FixtureRequest) -> str:
    """A tracker that is installed."""
    for package in TRACKERS[request.param].packages:
        pytest.importorskip(package, reason=f"needs {package}: pip install '.[trackers]'", exc_type=ImportError)
    return str(request.param)


@pytest.fixture
def out(tmp_path: Path, kind: str, database: Callable[[Path], None]) -> Path:
    folder = tmp_path / "somewhere" / "out"
    if kind == "mlflow":
        database(folder)
    return folder


@pytest.fixture
def tracker(kind: str, out: Path, live: Live) -> Callable[[], Tracker]:
    return lambda: open_tracker(kind, out, live.path)

"""A store to write in, with the few calls that tests repeat."""

from pathlib import Path
from typing import Any

import pytest
from resealed import unseal

from dsabench.store import RunWriter


class Runs:
    SPEC: dict[str, Any] = {  # noqa: RUF012
        "length": 64,
        "seed": 42,
        "attention": {"kind": "dsa", "top_k": None, "top_k_ratio": 0.5, "indexer": {"n_heads": 4, "norm_eps": 1e-6}},
        "train": {"steps": 10, "learning_rate": 1e-3},
        "engine": {"deterministic": "auto"},
        "plugins": [],
    }
    SUMMARY: dict[str, Any] = {  # noqa: RUF012
        "steps": 10,
        "params": 1000,
        "flops": 1e9,
        "train_loss": 2.5,
        "val_loss": 3.0,
        "leak": False,
        "router_entropy": 1.25,
    }

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, run_id: str = "a", **changes: Any) -> RunWriter:
        arguments = {"spec": self.SPEC, "fingerprint": {"corpus": "00"}, "environment": {"device": "cpu"}}
        return RunWriter.open(self.path, run_id, **{**arguments, **changes})

    def add(self, run_id: str = "a", status: Any = "done", summary: Any = None, **changes: Any) -> Path:
        """A run that ended with `status`, with three metrics records; its folder."""
        with self.open(run_id, **changes) as writer:
            for step in range(3):
                writer.metrics({"kind": "train", "step": step, "loss": 3.0 - step})
            writer.finish(status, self.SUMMARY if summary is None else summary)
        return writer.path

    def older(self, *arguments: Any, **changes: Any) -> Path:
        """`add` of a version that sealed nothing: files edited afterwards are read as they stand."""
        folder = self.add(*arguments, **changes)
        unseal(folder)
        return folder


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")

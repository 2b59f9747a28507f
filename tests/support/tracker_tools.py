"""Runs in the making, for trackers to follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsabench.store import RunWriter

SPEC: dict[str, Any] = {
    "length": 64,
    "seed": 42,
    "attention": {"kind": "dsa", "top_k": None, "top_k_ratio": 0.5},
    "train": {"steps": 3, "learning_rate": 1e-3},
    "engine": {"deterministic": "auto"},
    "plugins": [],
}
SUMMARY: dict[str, Any] = {"steps": 3, "val_loss": 3.25, "flops": 1e18, "compile": "off", "leak": False}


class Live:
    """Runs in the making."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, run_id: str = "a", **changes: Any) -> RunWriter:
        arguments = {"spec": SPEC, "fingerprint": {"corpus": "00"}, "environment": {"device": "cpu"}}
        return RunWriter.open(self.path, run_id, **{**arguments, **changes})

    def add(self, run_id: str = "a", status: Any = "done", steps: int = 3, **changes: Any) -> None:
        summary = changes.pop("summary", SUMMARY)
        with self.open(run_id, **changes) as writer:
            for step in range(1, steps + 1):
                writer.metrics(train(step))
            writer.finish(status, summary, error="it broke" if status == "failed" else None)


def train(step: int, loss: float | None = None) -> dict[str, Any]:
    return {"kind": "train", "step": step, "seconds": step / 2, "loss": 4.0 - step / 8 if loss is None else loss}

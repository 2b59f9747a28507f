"""What only two GPUs can show of sweeps: a worker for each, and runs on the one that is not the first.

On a machine with two: pytest -m gpu tests/gpu/test_devices.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsabench.engine.device import resolve
from dsabench.spec.run import validate
from dsabench.spec.sweep import Sweep
from dsabench.store import load_runs
from dsabench.sweeps import plan, single_run
from dsabench.sweeps.schedule import run_sweep
from dsabench.sweeps.workers.pool import Workers, devices_of

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")


def base(corpus: Path, **engine: Any) -> dict[str, Any]:
    return {
        "length": 64,
        "attention": {"kind": "dsa", "top_k_ratio": 0.25, "indexer": {"n_heads": 2, "head_dim": 16}},
        "model": {"d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 96},
        "data": {"source": f"path:{corpus}", "tokenizer": "bytes"},
        "train": {"steps": 60, "batch_size": 16, "warmup_steps": 10, "eval_every": 30},
        "engine": engine,
    }


def test_a_run_on_another_gpu_than_the_first(corpus: Path, tmp_path: Path) -> None:
    record = single_run.train(validate(base(corpus, device="cuda:1")), tmp_path)
    assert record.status == "done", record.error


@pytest.mark.parametrize("concurrency", [1, 2])
def test_both_gpus_train(concurrency: int, corpus: Path, tmp_path: Path) -> None:
    sweep = Sweep(base(corpus, device="cuda:0"), {"attention.kind": ["dense", "dsa"], "seed": [1, 2, 3, 4]})
    planned = plan.plan(sweep.runs(), tmp_path)
    told: list[str] = []
    workers = Workers(tmp_path, planned[0].spec.engine, devices_of(["0", "1"]), concurrency, told.append)
    records = list(
        run_sweep(sweep, planned, tmp_path, resolve(planned[0].spec.engine), launcher=workers, notify=told.append)
    )
    assert [record.status for record in records] == ["done"] * 8, told
    assert {record.spec["engine"]["device"] for record in records} == {"cuda:0", "cuda:1"}
    runs = load_runs(tmp_path)
    assert (runs.groupby("seed")["val_loss"].count() == 2).all()

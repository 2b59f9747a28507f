"""What scheduling costs: a sweep of many runs that take no time, through the real plan, scheduler, launcher and store.

    python tests/support/launch_speed.py --runs 10000  # on a Ray cluster of this machine (pip install ray)
    python tests/support/launch_speed.py --runs 10000 --no-index  # without the table of each run
    python tests/support/launch_speed.py --runs 2000 --profile 30  # the driver's functions that take longest

Each run has a checkpoint of a small model's size, 40 metrics records and a record, which the driver writes as it does
any other. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsabench.engine.device import resolve
from dsabench.spec.sweep import Sweep
from dsabench.store import RunRecord, index, load_runs
from dsabench.sweeps import plan
from dsabench.sweeps.launcher import Ended
from dsabench.sweeps.ray import node
from dsabench.sweeps.ray.cluster import Cluster
from dsabench.sweeps.ray.payload import Order
from dsabench.sweeps.schedule import run_sweep

BASE = {
    "length": 64,
    "attention": {"kind": "dense"},
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16, "n_experts": 2, "experts_per_token": 1},
    "data": {"source": "sotu", "tokenizer": "bytes"},
    "train": {"steps": 40, "tokens_per_step": 64, "warmup_steps": 5, "eval_every": 20},
    "engine": {"device": "cpu"},
}


def nothing(order: Order, plugins: Any, checkpoint: Mapping[str, Any]) -> Iterator[node.Report]:
    """In place of `node.train`: what a run of 40 steps sends home, without the run."""
    yield node.Began("node")
    lines = [json.dumps({"kind": "train", "step": step, "loss": 1.0, "lr": 1e-3}) + "\n" for step in range(40)]
    yield node.Lines("".join(lines).encode())
    yield node.Checkpoint({"model.safetensors": 20_000, "state.json": 100})
    yield bytes(20_000)
    yield json.dumps({"vocab_size": 8, "step": 40}).ljust(100).encode()
    summary = {"val_loss": 1.0, "step_ms": 1.0, "params": 1, "tokens": 1, "flops": 1.0}
    yield node.Result(
        Ended(
            RunRecord(
                run_id=order.run_id,
                status="done",
                spec=order.spec,
                fingerprint=order.fingerprint,
                environment={"device": "cpu", "torch": "0"},
                summary=summary,
            )
        )
    )


def main() -> None:
    """See the docstring of the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--no-index", action="store_true")
    parser.add_argument("--profile", type=int, default=0, metavar="N")
    parser.add_argument("--address")
    given = parser.parse_args()
    found: dict[str, Any] = {"runs": given.runs}

    def timed(name: str, began: float) -> None:
        found[name] = round(time.monotonic() - began, 2)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["DSABENCH_CACHE"] = f"{folder}/cache"
        store = Path(folder) / "runs"
        if given.no_index:
            index.update = lambda store: None
        profile = cProfile.Profile()
        if given.profile:
            profile.enable()
        began = time.monotonic()
        sweep = Sweep(BASE, {"seed": list(range(given.runs))}, "speed")
        specs = sweep.runs()
        timed("specs_seconds", began)
        began = time.monotonic()
        planned = plan.plan(specs, store)
        timed("plan_seconds", began)
        began = time.monotonic()
        execution = resolve(specs[0].engine)
        plan.fit(planned, execution)
        timed("fit_seconds", began)
        began = time.monotonic()
        plan.timetable(planned, execution)
        timed("timetable", began)
        began = time.monotonic()
        plan.check_data(planned)
        timed("check_data_seconds", began)
        began = time.monotonic()
        cluster = Cluster(store, specs, 1, lambda line: None, given.address, nothing)
        timed("ray_starts_seconds", began)
        began = last = time.monotonic()
        tenths = []
        for number, _ in enumerate(run_sweep(sweep, planned, store, execution, launcher=cluster), 1):
            if number % max(1, given.runs // 10) == 0:
                tenths.append(round((time.monotonic() - last) / max(1, given.runs // 10) * 1e3, 2))
                last = time.monotonic()
        timed("sweep_seconds", began)
        found["ms_a_run"] = round(found["sweep_seconds"] / given.runs * 1e3, 2)
        found["ms_a_run_by_tenth"] = tenths
        profile.disable()
        frame = load_runs(store)
        found["stored"] = [len(frame), int((frame["status"] == "done").sum())]
        if given.profile:
            pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(given.profile)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

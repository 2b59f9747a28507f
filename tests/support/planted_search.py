"""A launcher that trains nothing: each run ends at a loss that is a quadratic of its settings, with a known optimum."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsabench.engine.device import resolve
from dsabench.engine.sink import Update
from dsabench.spec.run import RunSpec
from dsabench.spec.sweep import Sweep
from dsabench.store import RunWriter, read_run
from dsabench.sweeps.launcher import Ended, Job, Outcome
from dsabench.sweeps.schedule import run_sweep
from dsabench.sweeps.search import Search, search_of

BEST_RATE = {"dense": 2e-3, "dsa": 6e-4}
"""The learning rate at which each attention's loss is least."""

BEST_INDEXER_RATE = 5e-3
OVER = {
    "train.learning_rate": {"low": 1e-4, "high": 1e-1},
    "attention.indexer.learning_rate": {"low": 1e-4, "high": 1e-1},
}


def planted_loss(spec: RunSpec) -> float:
    """2 + log10(rate / best)^2, and of DSA the same of its indexer's rate."""
    loss = 2.0 + math.log10(spec.train.learning_rate / BEST_RATE[spec.attention.kind]) ** 2
    own = spec.attention.own_learning_rate()
    return loss + (0.0 if spec.attention.kind == "dense" else math.log10(own / BEST_INDEXER_RATE) ** 2)


class Planted:
    """A launcher (`Launcher`) with room for two runs, of which the last begun ends first."""

    def __init__(
        self, store: Path, loss: Callable[[RunSpec], float | None] = planted_loss, most: float = math.inf
    ) -> None:
        """loss: of a run, None for one that fails. most: runs after which Ctrl-C is pressed."""
        self.store, self.loss, self.most = store, loss, most
        self.active: deque[Job] = deque()
        self.trained: list[str] = []

    def has_room(self) -> bool:
        return len(self.active) < 2

    def begin(self, job: Job, observe: Callable[[Update], None]) -> None:
        self.active.append(job)

    def turn(self) -> tuple[Job, Outcome] | None:
        job = self.active.pop()
        if (self.store / job.run_id / "run.json").exists():
            return job, Ended(read_run(self.store, job.run_id))
        if len(self.trained) == self.most:
            raise KeyboardInterrupt
        self.trained.append(job.run_id)
        spec, loss = job.spec, self.loss(job.spec)
        tokens = spec.train.steps * spec.tokens_per_step
        with RunWriter.open(
            self.store, job.run_id, spec=spec.model_dump(mode="json"), fingerprint={}, environment={}, sweep=job.sweep
        ) as writer:
            if loss is None:
                return job, Ended(writer.finish("failed", summary={}, error="the loss became nan at step 3"))
            summary: dict[str, Any] = {"val_loss": loss, "tokens": tokens, "flops": 6.0 * tokens, "train_seconds": 2.0}
            return job, Ended(writer.finish("done", summary={**summary, "leak": False}))

    def one_at_a_time(self) -> None: ...

    def close(self) -> None: ...


def sweep_of(corpus: Path, **tune: Any) -> Sweep:
    """Dense and DSA, three seeds, and a search."""
    sweep = Sweep(
        {
            "length": 32,
            "attention": {"kind": "dsa", "top_k": 8, "indexer": {"n_heads": 2, "head_dim": 8}},
            "model": {
                "d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16, "n_experts": 2, "experts_per_token": 1
            },
            "data": {"source": f"path:{corpus}", "tokenizer": "bytes", "val_share": 0.25},
            "train": {"steps": 20, "tokens_per_step": 64, "warmup_steps": 2, "eval_every": 10, "eval_tokens": 256},
            "engine": {"device": "cpu"},
        },
        {"attention.kind": ["dense", "dsa"], "seed": [1, 2, 3]},
    )  # fmt: skip
    sweep.set_tune({"over": OVER, **tune}, lambda path: "")
    return sweep


def searched(sweep: Sweep, store: Path, launcher: Planted) -> Search:
    """Search, and train the seeds at the best settings."""
    search = search_of(sweep, store, retry_failed=False, on_oom="fail")
    assert search is not None
    execution = resolve(sweep.runs()[0].engine)
    for _ in run_sweep(sweep, search.round, store, execution, launcher=launcher, search=search):
        pass
    return search

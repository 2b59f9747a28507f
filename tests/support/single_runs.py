"""Small runs of dense attention and DSA on a corpus of few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import dsabench
from dsabench.engine.loop import TrainingRun
from dsabench.spec.run import RunSpec, validate
from dsabench.sweeps import single_run

MODEL = {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 32, "n_experts": 2, "experts_per_token": 1}


DSA = {"kind": "dsa", "top_k_ratio": 0.25, "indexer": {"n_heads": 2, "head_dim": 8, "warmup_share": 0.25}}


def base(corpus: Path, **train: Any) -> dict[str, Any]:
    return {
        "length": 32,
        "seed": 1,
        "attention": DSA,
        "model": MODEL,
        "data": {"source": f"path:{corpus}", "vocab_size": 300, "val_share": 0.25},
        "train": {
            "steps": 40, "tokens_per_step": 256, "learning_rate": 1e-2, "warmup_steps": 5, "eval_every": 20,
            "eval_tokens": 1024, "log_every": 10, **train,
        },
        "engine": {"device": "cpu"},
    }  # fmt: skip


def spec_of(corpus: Path, **train: Any) -> RunSpec:
    return validate(base(corpus, **train))


def dense(spec: RunSpec) -> RunSpec:
    return RunSpec.model_validate({**spec.model_dump(exclude={"attention"}), "attention": {"kind": "dense"}})


def evals(store: Path, identity: str) -> pd.DataFrame:
    metrics = dsabench.load_metrics(store, run_ids=[identity])
    return metrics[metrics["kind"] == "eval"][["step", "val_loss", "val_accuracy", "train_loss"]].reset_index(drop=True)


def stopped_at_a_checkpoint(spec: RunSpec, store: Path) -> None:
    """Train until the first checkpoint is written, and stop there as Ctrl-C does."""
    honest = TrainingRun._checkpoint

    def stop(self: TrainingRun) -> None:
        honest(self)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            single_run.train(spec, store)

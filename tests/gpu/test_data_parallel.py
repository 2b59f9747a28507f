"""What only two GPUs can show: NCCL in the training step and in its CUDA graph, one run on both.

On a machine with two: pytest -m gpu tests/gpu/test_data_parallel.py
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from dsabench import shutdown
from dsabench.engine.data_parallel.leader import spread
from dsabench.engine.device import Execution
from dsabench.errors import DeviceError
from dsabench.spec.run import RunSpec, validate
from dsabench.store import RunRecord, read_metrics
from dsabench.sweeps import single_run

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")

DSA = {"kind": "dsa", "top_k_ratio": 0.25, "indexer": {"n_heads": 2, "head_dim": 16, "warmup_share": 0.3}}
ATTENTIONS: dict[str, dict[str, Any]] = {"dense": {"kind": "dense"}, "dsa": DSA}


def spec_of(attention: str, corpus: Path, **engine: Any) -> RunSpec:
    return validate(
        {
            "length": 64,
            "attention": ATTENTIONS[attention],
            "model": {"d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 96},
            "data": {"source": f"path:{corpus}", "tokenizer": "bytes"},
            "train": {"steps": 100, "batch_size": 16, "warmup_steps": 10, "eval_every": 50, "log_every": 5},
            "engine": {"device": "cuda", **engine},
        }
    )


def losses(store: Path, record: RunRecord) -> list[float]:
    """Of every record, training and evaluation alike."""
    records = read_metrics(store, record.run_id)
    return [one[name] for one in records for name in ("loss", "val_loss", "train_loss") if one.get(name) is not None]


@pytest.mark.parametrize("engine", [{}, {"compile": "off"}, {"micro_batch": 4, "recompute": True}])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_two_gpus_train_as_one_does(attention: str, engine: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    spec = spec_of(attention, corpus, precision="fp32", **engine)
    # The balance loss is of the windows that are computed at a time: 4 on each of two GPUs, or 8 on one.
    alone = {**engine, "micro_batch": 8} if "micro_batch" in engine else engine
    of_one = spec_of(attention, corpus, precision="fp32", **alone)
    one = single_run.train(of_one, tmp_path / "one")
    two = single_run.train(spec, tmp_path / "two", data_parallel=2)
    assert (one.status, two.status) == ("done", "done"), (one.error, two.error)
    assert one.run_id == two.run_id
    assert two.environment["data_parallel"] == 2
    assert two.summary["compile"] == one.summary["compile"], "a graph that could not be captured warns and runs eagerly"
    tolerance = 5e-3 if "micro_batch" in engine else 1e-3  # other windows are computed together
    assert losses(tmp_path / "two", two) == pytest.approx(losses(tmp_path / "one", one), abs=tolerance)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_bf16_learns(attention: str, corpus: Path, tmp_path: Path) -> None:
    record = single_run.train(spec_of(attention, corpus, precision="bf16"), tmp_path, data_parallel=2)
    assert record.status == "done", record.error
    first, *_, last = (one["val_loss"] for one in read_metrics(tmp_path, record.run_id) if one["kind"] == "eval")
    assert last < first - 1
    assert record.summary["tokens_per_second"] > 0 and record.summary["peak_memory_mb"] > 0


def test_a_stopped_run_goes_on_with_one_gpu_and_with_two(corpus: Path, tmp_path: Path) -> None:
    spec = spec_of("dsa", corpus, precision="fp32")
    whole = single_run.train(spec, tmp_path / "calm")
    for size, step in ((2, 20), (1, 60)):
        sent: list[int] = []

        def stop(update: Any, at: int = step, sent: list[int] = sent) -> None:
            if update.step >= at and not sent:  # a second one would end this process at once
                sent.append(update.step)
                os.kill(os.getpid(), signal.SIGTERM)

        with shutdown.on_signals(), pytest.raises(KeyboardInterrupt):
            single_run.train(spec, tmp_path / "wild", data_parallel=size, observe=stop)
    done = single_run.train(spec, tmp_path / "wild", data_parallel=2)
    assert done.status == "done", done.error
    assert losses(tmp_path / "wild", done) == pytest.approx(losses(tmp_path / "calm", whole), abs=1e-3)


def test_more_gpus_than_there_are_are_refused(corpus: Path) -> None:
    count = torch.cuda.device_count()
    spec = spec_of("dense", corpus)
    spec = spec.model_copy(update={"train": spec.train.model_copy(update={"batch_size": 2 * count})})
    with pytest.raises(DeviceError, match=f"there are {count}; at most {count} will do"):
        spread(spec, Execution(torch.device("cuda", 0), "bf16", True, False), 2 * count)

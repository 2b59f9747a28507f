"""A run that was killed or stopped goes on from its checkpoint, and ends as an undisturbed one."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cases import others_slow
from single_runs import base, evals, spec_of

import dsabench
from dsabench.engine import loop
from dsabench.engine.run_records import RunRecords
from dsabench.engine.step import TrainStep
from dsabench.errors import StoreError
from dsabench.spec.run import EngineSpec, validate
from dsabench.store import RunWriter, read_run
from dsabench.sweeps import single_run

KILLED = """
import os, signal, sys
from pathlib import Path
from dsabench.sweeps import plan, single_run
from dsabench.spec.run import validate
import json
spec = validate(json.loads(sys.argv[1]))
def observe(update):
    print(update.step, flush=True)
    if update.step >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
single_run.train(spec, sys.argv[2], observe=observe)
"""


@pytest.mark.parametrize("kind", others_slow(["dense", "dsa"], 1))
def test_a_killed_run_resumes_to_the_same_bits(kind: str, corpus: Path, trained: Path, tmp_path: Path) -> None:
    """SIGKILL half-way; started again it ends with the loss, the weights and the records of the undisturbed run."""
    values = {**base(corpus), **({"attention": {"kind": "dense"}} if kind == "dense" else {})}
    values["engine"] = {"device": "cpu", "checkpoint_every": 15}
    store = tmp_path / "runs"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(values), str(store), "30"], capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    (identity,) = [path.name for path in store.iterdir() if path.name.startswith(kind)]
    assert read_run(store, identity).status == "interrupted"
    assert (store / identity / "checkpoint").is_dir()
    steps = []
    record = single_run.train(validate(values), store, observe=lambda update: steps.append(update.step))
    assert min(steps) >= 15, "the run began anew instead of resuming"
    whole = read_run(trained, identity)
    for name in ("val_loss", "train_loss", "val_accuracy", "val_bits_per_byte", "mass_recall", "flops"):
        assert record.summary.get(name) == whole.summary.get(name), name
    resumed, undisturbed = dsabench.load_model(store, identity), dsabench.load_model(trained, identity)
    for a, b in zip(resumed.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(a, b)
    ours, theirs = (evals(folder, identity) for folder in (store, trained))
    pd.testing.assert_frame_equal(ours, theirs)


def test_a_kill_between_the_last_checkpoint_and_the_record_loses_nothing(
    corpus: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Any, *rest: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunRecords, "summary", killed)
        with pytest.raises(KeyboardInterrupt):
            single_run.train(spec_of(corpus), tmp_path / "runs")
    monkeypatch.setattr(TrainStep, "run", lambda *rest: pytest.fail("a step was repeated"))
    record = single_run.train(spec_of(corpus), tmp_path / "runs")
    whole = read_run(trained, record.run_id)
    assert record.status == "done"
    for name in ("val_loss", "train_loss", "mass_recall", "flops"):
        assert record.summary[name] == whole.summary[name]
    pd.testing.assert_frame_equal(evals(tmp_path / "runs", record.run_id), evals(trained, record.run_id))


def test_times_of_two_machines_are_not_mixed(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on elsewhere reports the step time of the machine that it ended on, and no sum of both."""
    from dsabench.engine.device import Execution

    def stop(update: Any) -> None:
        if update.step >= 30:
            raise KeyboardInterrupt

    spec = spec_of(corpus).model_copy(update={"engine": EngineSpec(device="cpu", checkpoint_every=20)})
    with monkeypatch.context() as patch:
        patch.setattr(Execution, "describe", lambda self: "a slower machine")
        with pytest.raises(KeyboardInterrupt):
            single_run.train(spec, tmp_path / "runs", observe=stop)
    record = single_run.train(spec, tmp_path / "runs")
    assert record.status == "done"
    assert record.summary["train_seconds"] is None
    assert record.summary["step_ms"] is not None


def test_checkpoints_are_not_written_every_few_seconds(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    honest = loop.TrainingRun._checkpoint
    monkeypatch.setattr(
        loop.TrainingRun, "_checkpoint", lambda self: (saved.append(self.progress.step), honest(self))[1]
    )
    single_run.train(spec_of(corpus), tmp_path / "a")
    assert saved == []
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    single_run.train(spec_of(corpus), tmp_path / "b")
    assert saved == [20]


@pytest.mark.parametrize(("share", "wanted"), [(0.02, [5]), (math.inf, [5, 10, 15])])
def test_checkpoints_that_take_long_are_written_seldom(
    share: float, wanted: list[int], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, whose time nobody knows yet; after it none for 50 times as long as it took."""
    saved: list[int] = []
    honest, write = loop.TrainingRun._checkpoint, RunWriter.replace_checkpoint

    def replaced(self: RunWriter, *given: Any) -> None:
        time.sleep(0.5)
        write(self, *given)

    monkeypatch.setattr(RunWriter, "replace_checkpoint", replaced)
    monkeypatch.setattr(
        loop.TrainingRun, "_checkpoint", lambda self: (saved.append(self.progress.step), honest(self))[1]
    )
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", share)
    single_run.train(validate(base(corpus, steps=20, eval_every=5)), tmp_path)
    assert saved == wanted


@pytest.mark.slow
def test_two_processes_do_not_write_one_run(corpus: Path, tmp_path: Path) -> None:
    spec = spec_of(corpus)
    code = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "import time; time.sleep(60)")
    holder = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(base(corpus)), str(tmp_path / "runs"), "1"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        holder.stdout.readline()  # it trains
        start = time.monotonic()
        with pytest.raises(StoreError, match="another process"):
            single_run.train(spec, tmp_path / "runs")
        assert time.monotonic() - start < 30
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    assert os.path.isdir(tmp_path / "runs")  # noqa: PTH112
    assert single_run.train(spec, tmp_path / "runs").status == "done"

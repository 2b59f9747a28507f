"""One run from spec to record: what it learns, what it records, and how it fails."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from single_runs import DSA, base, dense, spec_of

import dsabench
from dsabench.data import Windows, prepare
from dsabench.engine import device, loop
from dsabench.engine.device import resolve
from dsabench.engine.evaluation import Evaluator
from dsabench.engine.prepared_run import PreparedRun
from dsabench.engine.sink import Nowhere
from dsabench.engine.slot import Slots
from dsabench.engine.step import TrainStep
from dsabench.errors import DataError, DeviceError, StoreError
from dsabench.spec.data_settings import DataSpec
from dsabench.spec.run import validate
from dsabench.spec.sweep import Sweep
from dsabench.store import read_run
from dsabench.sweeps import plan, single_run
from dsabench.sweeps.schedule import run_sweep


@pytest.mark.slow
def test_training_on_a_cpu_does_without_pytorchs_compiler(corpus: Path, tmp_path: Path) -> None:
    """Which takes seconds to import: who needs it imports it then."""
    code = (
        "import sys; from pathlib import Path; from dsabench.sweeps import single_run\n"
        "from dsabench.spec.run import RunSpec\n"
        "assert single_run.train(RunSpec.model_validate_json(sys.argv[1]), Path(sys.argv[2])).status == 'done'\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    words = [sys.executable, "-c", code, spec_of(corpus, steps=2).model_dump_json(), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_a_run_learns_and_records_what_it_saw(trained: Path) -> None:
    runs = dsabench.load_runs(trained)
    assert sorted(runs["attention"]) == ["dense", "dsa"]
    assert (runs["status"] == "done").all()
    assert (runs["val_loss"] < runs["unigram_loss"]).all()
    assert runs["val_accuracy"].between(0.01, 1).all()
    for _, run in runs.iterrows():
        assert run["val_bits_per_byte"] == pytest.approx(run["val_loss"] / np.log(2) / bytes_per_token(run))
        assert run["tokens"] == 40 * 256
        assert run["step_ms"] > 0
        assert run["flops"] > 0
    by_kind = runs.set_index("attention")
    assert by_kind.loc["dsa", "params"] - by_kind.loc["dsa", "indexer_params"] == by_kind.loc["dense", "params"]
    assert by_kind.loc["dense", "indexer_params"] == 0
    assert pd.isna(by_kind.loc["dense", "mass_recall"])
    assert by_kind.loc["dsa", "mass_recall_chance"] == pytest.approx(np.mean([8 / (t + 1) for t in range(8, 32)]))
    index = pd.read_parquet(trained / "index.parquet")
    assert set(index["run_id"]) == set(runs["run_id"])


def bytes_per_token(run: pd.Series) -> float:
    """Of the validation windows' targets, from their text."""
    data = prepare(DataSpec(source=run["data.source"], vocab_size=300, val_share=0.25))
    tokens_NT = Windows(data, 32).evaluation("val", 1024).tokens
    text = "".join(data.tokenizer.decode(row) for row in tokens_NT[:, 1:].tolist())
    assert text.isascii() and len(text) > tokens_NT[:, 1:].size
    return len(text.encode()) / tokens_NT[:, 1:].size


def test_the_curves_start_at_ln_v_and_hold_every_metric(trained: Path) -> None:
    metrics = dsabench.load_metrics(trained)
    evals = metrics[metrics["kind"] == "eval"]
    assert sorted(evals["step"].unique()) == [0, 20, 40]
    first = evals[evals["step"] == 0]
    assert first["val_loss"].to_numpy() == pytest.approx([np.log(300)] * 2, rel=0.03)
    train = metrics[metrics["kind"] == "train"]
    assert sorted(train["step"].unique()) == [10, 20, 30, 40]
    for column in ("loss", "grad_norm", "balance_loss", "router_entropy", "expert_load_max", "tokens_per_second", "kl"):
        assert train[column].notna().any(), column


def test_weights_at_step_0_and_batches_are_paired(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For dense and DSA of one seed: every shared parameter and every batch, to the bit."""
    seen: dict[str, Any] = {}
    honest = TrainStep.run

    def spy(self: TrainStep, first: int, stage: Any, batches: torch.Tensor, *rest: Any) -> torch.Tensor:
        kind = self.spec.attention.kind
        seen.setdefault(
            kind, {"weights": {n: p.detach().clone() for n, p in self.model.named_parameters()}, "batches": []}
        )
        seen[kind]["batches"].append(batches.clone())
        return honest(self, first, stage, batches, *rest)

    monkeypatch.setattr(TrainStep, "run", spy)
    data = prepare(spec_of(corpus).data)
    for spec in (spec_of(corpus, steps=12), dense(spec_of(corpus, steps=12))):
        loop.to_the_end(loop.train_steps(PreparedRun(spec, data, resolve(spec.engine), Nowhere())))
    one, other = seen["dsa"], seen["dense"]
    assert torch.equal(torch.cat(one["batches"]), torch.cat(other["batches"]))
    shared = one["weights"].keys() & other["weights"].keys()
    assert shared == other["weights"].keys()
    for name in shared:
        assert torch.equal(one["weights"][name], other["weights"][name]), name


def test_another_seed_has_other_batches_and_the_same_evaluation(corpus: Path) -> None:
    windows = Windows(prepare(spec_of(corpus).data), 32)
    assert not np.array_equal(windows.batch_starts(1, 0, 8), windows.batch_starts(2, 0, 8))
    assert not np.array_equal(windows.batch_starts(1, 0, 8), windows.batch_starts(1, 1, 8))


def test_a_done_run_is_not_repeated(corpus: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "train_steps", lambda *a, **k: pytest.fail("trained again"))
    assert single_run.train(spec_of(corpus), trained).status == "done"
    planned = plan.plan([spec_of(corpus), spec_of(corpus, steps=7)], trained)
    assert [run.status for run in planned] == ["done", "new"]


def test_the_same_spec_gives_the_same_bits(corpus: Path, trained: Path, tmp_path: Path) -> None:
    again = single_run.train(spec_of(corpus), tmp_path / "again")
    first = read_run(trained, again.run_id)
    for name in ("val_loss", "train_loss", "val_accuracy", "mass_recall"):
        assert again.summary[name] == first.summary[name]


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = TrainStep._compute
    calls = []

    def poisoned(self: TrainStep, stage: Any) -> None:
        calls.append(stage)
        if len(calls) == 17:
            with torch.no_grad():
                self.model.embedding.weight[0] = float("nan")
        honest(self, stage)

    monkeypatch.setattr(TrainStep, "_compute", poisoned)
    record = single_run.train(spec_of(corpus), tmp_path / "runs")
    assert record.status == "failed"
    assert record.error is not None
    assert "the loss became nan at step 17" in record.error
    monkeypatch.setattr(TrainStep, "_compute", honest)
    assert single_run.train(spec_of(corpus), tmp_path / "runs").status == "failed", "a stored failure is kept"
    assert single_run.train(spec_of(corpus), tmp_path / "runs", retry_failed=True).status == "done"


def test_an_update_that_explodes_in_the_last_step_is_no_finished_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = TrainStep.run

    def exploding(self: TrainStep, first: int, stage: Any, batches: torch.Tensor, *rest: Any) -> torch.Tensor:
        history = honest(self, first, stage, batches, *rest)
        if first + len(batches) == 40:
            with torch.no_grad():
                self.model.norm.weight.fill_(float("nan"))
        return history

    monkeypatch.setattr(TrainStep, "run", exploding)
    record = single_run.train(spec_of(corpus), tmp_path / "runs")
    assert record.status == "failed"
    assert "val_loss is nan after step 40" in str(record.error)


def test_the_time_of_a_run_does_not_hold_the_start_of_its_process(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, awake = TrainStep.run, []

    def slow_start(self: TrainStep, first: int, stage: Any, batches: torch.Tensor, *rest: Any) -> torch.Tensor:
        if first == 0:
            time.sleep(0.3)
            awake.append(time.perf_counter())
        return honest(self, first, stage, batches, *rest)

    monkeypatch.setattr(TrainStep, "run", slow_start)
    record = single_run.train(spec_of(corpus), tmp_path / "runs")
    spent = record.summary["train_seconds"]
    assert isinstance(spent, float)
    assert 0 < spent < time.perf_counter() - awake[0], "a busy machine may well take longer than it slept"
    metrics = dsabench.load_metrics(tmp_path / "runs")
    assert (metrics["seconds"].diff().dropna() >= 0).all()
    assert metrics["seconds"].iloc[-1] == spent


def test_a_sweep_goes_on_after_a_failed_run(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = loop.train_steps

    def failing(run: PreparedRun, *rest: Any) -> Any:
        if run.spec.attention.kind == "dense":
            raise RuntimeError("a bug in a plugin")
        return (yield from honest(run, *rest))

    monkeypatch.setattr(loop, "train_steps", failing)
    sweep = Sweep(base(corpus, steps=10), {"attention.kind": ["dense", "dsa"]})
    sweep.base["attention"] = {**DSA}
    planned = plan.plan(sweep.runs(), tmp_path / "runs")
    execution = resolve(planned[0].spec.engine)
    monkeypatch.setattr(device, "_device", lambda name: pytest.fail("the engine was resolved again"))
    records = list(run_sweep(sweep, planned, tmp_path / "runs", execution))
    assert [record.status for record in records] == ["failed", "done"]
    assert records[0].error == "RuntimeError: a bug in a plugin (log.txt in the run's folder)"
    trace = (tmp_path / "runs" / records[0].run_id / "log.txt").read_text(encoding="utf-8")
    assert "in failing" in trace


def test_the_python_api(corpus: Path, trained: Path) -> None:
    spec = dsabench.load_spec(
        "quick", overrides={"length": 32, "data.source": f"path:{corpus}", "attention.kind": "dsa", "model.n_layers": 1}
    )
    model = dsabench.build_model(spec)
    tokens = torch.randint(model.vocab_size, (2, 32))
    assert model(tokens).logits_BTV.shape == (2, 32, model.vocab_size)
    (identity,) = [r for r in dsabench.load_runs(trained)["run_id"] if r.startswith("dsa")]
    loaded = dsabench.load_model(trained, identity)
    assert not loaded.training
    data = prepare(spec_of(corpus).data)
    windows = Windows(data, 32).evaluation("val", 1024)
    result = Evaluator(loaded, resolve(spec_of(corpus).engine)).evaluate(windows)
    assert result["loss"] == read_run(trained, identity).summary["val_loss"]


def test_bad_input_leaves_no_half_made_run(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "runs"
    with pytest.raises(DataError, match="length 5000 needs a document of 5001 tokens"):
        single_run.train(validate({**base(corpus), "length": 5000, "train": {"batch_size": 1}}), store)
    with pytest.raises(DataError, match="nowhere"):
        single_run.train(validate({**base(corpus), "data": {"source": "path:nowhere.txt"}}), store)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"engine\.device = cuda: there is no CUDA GPU here"):
        single_run.train(validate({**base(corpus), "engine": {"device": "cuda"}}), store)
    assert not store.exists()
    store.write_text("in the way")
    with pytest.raises(StoreError, match="in the way"):
        single_run.train(spec_of(corpus), store)


def test_freezing_the_backbone_trains_the_indexer_alone_in_the_warm_up(corpus: Path, tmp_path: Path) -> None:
    values = base(corpus, steps=10, log_every=1)
    values["attention"] = {**DSA, "indexer": {**DSA["indexer"], "freeze_backbone": True, "warmup_share": 0.5}}
    spec = validate(values)
    data = prepare(spec.data)
    slot = Slots().take(spec, data.vocab_size, resolve(spec.engine))
    run = loop.TrainingRun(PreparedRun(spec, data, slot.execution, Nowhere()), slot)
    run._start()
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    for first, end, stage in list(loop.segments(spec, 0, 20)):
        if stage == "sparse":
            break
        run._land(run._launch(first, end, stage))
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("indexer" not in name), name

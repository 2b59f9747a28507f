"""Runs that follow each other in a slot, or take turns: what each learns is what it learns alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import single_runs
import torch
from cases import others_slow
from single_runs import DSA, MODEL
from torch import Tensor

import dsabench
from dsabench.data import prepare
from dsabench.engine import loop
from dsabench.engine.device import Execution, resolve
from dsabench.engine.memory_plan import MemoryPlan
from dsabench.engine.prepared_run import PreparedRun
from dsabench.engine.sink import Nowhere
from dsabench.engine.slot import Slot, Slots
from dsabench.engine.step import TrainStep
from dsabench.errors import DsabenchError
from dsabench.model.transformer import build
from dsabench.spec.run import validate
from dsabench.spec.sweep import Sweep
from dsabench.store import read_run
from dsabench.sweeps import plan, single_run
from dsabench.sweeps.schedule import run_sweep

CPU = Execution(torch.device("cpu"), "fp32", graph=False, deterministic=True)

SHARED = {**DSA, "indexer": {**DSA["indexer"], "share_layers": 2}}  # type: ignore[dict-item]


def base(corpus: Path, **train: Any) -> dict[str, Any]:
    return single_runs.base(corpus, **{"steps": 24, "eval_every": 12, "log_every": 6, **train})


def sweep_of(corpus: Path, **train: Any) -> Sweep:
    return Sweep(base(corpus, **train), {"attention.kind": ["dense", "dsa"], "seed": [1, 2, 3]})


def swept(corpus: Path, store: Path, concurrency: int, **train: Any) -> list[str]:
    sweep = sweep_of(corpus, **train)
    planned = plan.plan(sweep.runs(), store)
    return [record.status for record in run_sweep(sweep, planned, store, CPU, concurrency=concurrency)]


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of six runs, each trained in a slot of its own."""
    store = tmp_path_factory.mktemp("alone") / "runs"
    for spec in sweep_of(corpus).runs():
        assert single_run.train(spec, store).status == "done"
    return store


def learnt(store: Path) -> Any:
    metrics = dsabench.load_metrics(store).sort_values(["run_id", "kind", "step"], ignore_index=True)
    return metrics[["run_id", "kind", "step", "loss", "kl", "grad_norm", "val_loss", "train_loss", "mass_recall"]]


@pytest.mark.parametrize("concurrency", others_slow([1, 2, 4], 1))
def test_runs_of_a_sweep_learn_what_they_learn_alone(
    corpus: Path, tmp_path: Path, alone: Path, concurrency: int
) -> None:
    assert swept(corpus, tmp_path / "runs", concurrency) == ["done"] * 6
    expected, found = learnt(alone), learnt(tmp_path / "runs")
    assert len(found["run_id"].unique()) == 6
    assert found.equals(expected)
    runs = dsabench.load_runs(tmp_path / "runs")
    assert (runs["environment.concurrency"] == concurrency).all()
    assert (runs["step_ms"] > 0).all()
    assert (dsabench.load_metrics(tmp_path / "runs").query("kind == 'train'")["shared"] == (concurrency > 1)).all()


@pytest.mark.parametrize("attention", [{"kind": "dense"}, DSA], ids=["dense", "dsa"])
def test_a_used_slot_begins_as_a_new_one(corpus: Path, attention: dict[str, Any]) -> None:
    first, second = (validate({**base(corpus), "attention": attention, "seed": seed}) for seed in (1, 2))
    slots = Slots()
    slot = slots.take(first, 300, CPU)
    slot.begin(first)
    batches = torch.randint(300, (3, first.batch_size, first.length + 1))
    slot.step.run(0, "sparse", batches)
    slots.give(slot)
    again = slots.take(second, 300, CPU)
    assert again is slot, "one shape"
    again.begin(second)
    fresh = Slot(second, 300, CPU, MemoryPlan(second.batch_size, False, {}))
    for name, parameter in fresh.model.named_parameters():
        assert torch.equal(parameter, dict(again.model.named_parameters())[name]), name
    for one, other in zip(again.step.run(0, "sparse", batches), fresh.step.run(0, "sparse", batches), strict=True):
        assert torch.equal(one, other)


def test_a_slot_serves_its_shape_alone(corpus: Path) -> None:
    spec = validate(base(corpus))
    slots = Slots(2)
    slot = slots.take(spec, 300, CPU)
    slots.give(slot)
    for other in (
        validate({**base(corpus), "length": 16}),
        validate({**base(corpus), "attention": {**DSA, "top_k_ratio": 0.5}}),
        validate({**base(corpus), "model": {**MODEL, "n_layers": 1}}),
        validate(base(corpus, learning_rate=2e-2)),
    ):
        taken = slots.take(other, 300, CPU)
        assert taken is not slot
        slots.drop(taken)
    assert slots.take(spec, 301, CPU) is not slot


@pytest.mark.slow
def test_times_of_shared_segments_are_those_of_the_ones_alone(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments that share the device are three times slower here, and no time of the run may show it."""
    slow = Slot.wait

    def waiting(self: Slot) -> None:
        import time

        time.sleep(0.03)
        slow(self)

    monkeypatch.setattr(Slot, "wait", waiting)
    from dsabench.engine.step_times import StepTimes

    honest = StepTimes.count
    seen: list[tuple[bool, float]] = []

    def count(self: StepTimes, seconds: float, steps: int, stage: Any, *, steady: bool, alone: bool) -> float:
        seconds = seconds if alone else 10 * seconds
        charged = honest(self, seconds, steps, stage, steady=steady, alone=alone)
        if steady:
            seen.append((alone, charged / steps))
        return charged

    monkeypatch.setattr(StepTimes, "count", count)
    assert set(swept(corpus, tmp_path / "runs", 3)) == {"done"}
    timed = [each for alone, each in seen if alone]
    shared = [each for alone, each in seen if not alone]
    assert len(timed) >= 12
    assert shared
    assert max(shared) <= max(timed)


def test_a_sweep_that_is_closed_leaves_its_runs_interrupted(corpus: Path, tmp_path: Path) -> None:
    sweep, store = sweep_of(corpus), tmp_path / "runs"
    planned = plan.plan(sweep.runs(), store)
    running = run_sweep(sweep, planned, store, CPU, concurrency=4)
    next(running)
    running.close()  # type: ignore[attr-defined]
    states = [read_run(store, run.run_id).status for run in planned if (store / run.run_id).exists()]
    assert states.count("done") == 1
    assert set(states) == {"done", "interrupted"}
    assert swept(corpus, store, 2) == ["done"] * 6


def test_a_run_that_finds_no_memory_beside_others_is_trained_alone(
    corpus: Path, tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = TrainStep.run
    working: set[int] = set()

    def crowded(self: TrainStep, first: int, stage: Any, batches: torch.Tensor, *rest: Any) -> torch.Tensor:
        working.add(self.spec.seed)
        if self.spec.attention.kind == "dense" and self.spec.seed == 2 and len(working) > 1 and first < 24:
            working.clear()
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return honest(self, first, stage, batches, *rest)

    monkeypatch.setattr(TrainStep, "run", crowded)
    notes: list[str] = []
    sweep, store = sweep_of(corpus), tmp_path / "runs"
    planned = plan.plan(sweep.runs(), store)
    records = []
    for record in run_sweep(sweep, planned, store, CPU, concurrency=3, notify=notes.append):
        records.append(record)
        monkeypatch.setattr(TrainStep, "run", honest)
    assert [record.status for record in records] == ["done"] * 6
    assert [note for note in notes if "found no memory beside other runs" in note]
    assert learnt(store).equals(learnt(alone))


@pytest.mark.slow
def test_a_bug_in_one_run_leaves_the_others_running(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = TrainStep.run

    def failing(self: TrainStep, first: int, stage: Any, batches: torch.Tensor, *rest: Any) -> torch.Tensor:
        if self.spec.seed == 2 and first > 6:
            raise ZeroDivisionError("a bug")
        return honest(self, first, stage, batches, *rest)

    monkeypatch.setattr(TrainStep, "run", failing)
    assert sorted(swept(corpus, tmp_path / "runs", 3)) == ["done"] * 4 + ["failed"] * 2


@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("attention", [{"kind": "dense"}, DSA, SHARED], ids=["dense", "dsa", "dsa shared"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_cutting_a_step_changes_no_gradient(
    corpus: Path, attention: dict[str, Any], micro: int, recompute: bool, dropout: float
) -> None:
    """Micro-batches add up to the batch (with one expert, where the balance loss is the same), and blocks that are
    computed again give the same bits, with dropout too."""
    model = {**MODEL, "n_experts": 1, "dropout": dropout}
    spec = validate({**base(corpus, grad_clip=None), "attention": attention, "model": model})
    batches = torch.randint(300, (1, spec.batch_size, spec.length + 1), generator=torch.Generator().manual_seed(1))
    grads = []
    for micro_batch, again in ((None, False), (None if dropout else micro, recompute)):
        slot = Slot(spec, 300, CPU, MemoryPlan(micro_batch or spec.batch_size, again, {}))
        slot.step.run(0, "sparse", batches)
        grads.append({name: p.grad for name, p in slot.model.named_parameters()})
    for name, expected in grads[0].items():
        found = grads[1][name]
        if expected is None:
            assert found is None, name
            continue
        assert found is not None, name
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-7), name


def test_recomputing_keeps_less(corpus: Path) -> None:
    """Bytes saved for the backward pass, as autograd counts them."""
    spec = validate(base(corpus, tokens_per_step=512))
    model = build(spec, 300)
    kept = []
    for recompute in (False, True):
        step = TrainStep(model, Slot(spec, 300, CPU, MemoryPlan(16, False, {})).optimizer, spec, CPU, None, recompute)
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        tokens = torch.randint(300, (16, spec.length + 1))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.training_losses(tokens[:, :-1], tokens[:, 1:], call=step._call_block)
        kept.append(sum(sizes.values()))
    assert kept[1] < kept[0] / 2


def test_a_micro_batch_that_does_not_divide_the_batch_is_refused(corpus: Path, tmp_path: Path) -> None:
    spec = validate({**base(corpus), "engine": {"device": "cpu", "micro_batch": 3}})
    with pytest.raises(DsabenchError, match=r"engine\.micro_batch = 3 does not divide the batch of 8 windows; 1, 2, 4"):
        single_run.train(spec, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_train_record_of_a_cut_run_says_so(corpus: Path, tmp_path: Path) -> None:
    spec = validate({**base(corpus), "engine": {"device": "cpu", "micro_batch": 2, "recompute": True}})
    record = single_run.train(spec, tmp_path / "runs")
    assert (record.summary["micro_batch"], record.summary["recompute"], record.summary["compile"]) == (2, True, "off")
    data = prepare(spec.data)
    assert loop.to_the_end(loop.train_steps(PreparedRun(spec, data, resolve(spec.engine), Nowhere())))["steps"] == 24

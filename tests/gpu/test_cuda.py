"""What only a GPU can show: captured steps equal eager ones, no host sync in a step, kernels agree, resuming.

Run on a machine with one: pytest -m gpu
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adamw import train_beside_adamw

from dsabench import ops
from dsabench.data import TokenData, prepare
from dsabench.engine import loop
from dsabench.engine.device import Execution, determinism, matmul_rate, resolve
from dsabench.engine.master_weights import Weights
from dsabench.engine.memory_plan import MemoryPlan
from dsabench.engine.optimizer import Optimizer
from dsabench.engine.prepared_run import PreparedRun
from dsabench.engine.slot import Memory, Slot, Slots
from dsabench.engine.step import EAGER_STEPS, METRICS, TrainStep
from dsabench.model.moe import MixtureOfExperts
from dsabench.model.transformer import Transformer, build
from dsabench.spec.run import EngineSpec, ModelSpec, RunSpec, validate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

CUDA = torch.device("cuda", 0)
MODEL = {"d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 96}
DSA = {"kind": "dsa", "top_k_ratio": 0.25, "indexer": {"n_heads": 2, "head_dim": 16, "warmup_share": 0.3}}


def spec_of(attention: dict[str, Any], **fields: Any) -> RunSpec:
    train = {
        "steps": 60,
        "tokens_per_step": 1024,
        "warmup_steps": 5,
        "eval_every": 30,
        "eval_tokens": 2048,
        "log_every": 5,
    }
    return validate({"length": 64, "attention": attention, "model": MODEL, "train": train, **fields})


def spec_of_engine(spec: RunSpec, **engine: Any) -> RunSpec:
    return spec.model_copy(update={"engine": EngineSpec(**engine)})


def losses(spec: RunSpec, execution: Execution, steps: int = 60) -> torch.Tensor:
    """The metrics of the first steps, captured after EAGER_STEPS of each stage when asked; 20 of 500 tokens occur."""
    with determinism(execution):
        model = build(spec, 500).to(CUDA)
        cut = (spec.engine.micro_batch, spec.engine.recompute is True)
        step = TrainStep(model, Optimizer(model, spec, CUDA), spec, execution, *cut)
        generator = torch.Generator().manual_seed(0)
        batches = torch.randint(20, (steps, spec.batch_size, spec.length + 1), generator=generator)
        history = []
        for first, end, stage in loop.segments(spec, 0, 30):
            if first >= steps:
                break
            history.append(step.run(first, stage, batches[first:end]).cpu())
            if execution.graph and stage not in step.graphs:
                step.capture(stage)
    return torch.cat(history)


@pytest.mark.parametrize("attention", [{"kind": "dense"}, DSA], ids=["dense", "dsa"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 3e-2)])
def test_captured_steps_learn_what_eager_ones_do(attention: dict[str, Any], precision: str, tolerance: float) -> None:
    spec = spec_of(attention)
    eager, graph = (losses(spec, Execution(CUDA, precision, graph, False)) for graph in (False, True))
    torch.testing.assert_close(graph[:, 0], eager[:, 0], rtol=0, atol=tolerance)
    assert float(graph[-1, 0]) < float(graph[0, 0]) - 1


@pytest.mark.parametrize("attention", [{"kind": "dense"}, DSA], ids=["dense", "dsa"])
def test_deterministic_steps_have_the_same_bits(attention: dict[str, Any]) -> None:
    spec = spec_of(attention)
    eager, graph, again = (losses(spec, Execution(CUDA, "bf16", graph, True)) for graph in (False, True, True))
    assert torch.equal(graph, again)
    assert torch.equal(graph, eager)


def test_dropout_differs_between_replayed_steps() -> None:
    spec = spec_of({"kind": "dense"}, model={**MODEL, "dropout": 0.3})
    eager, graph = (losses(spec, Execution(CUDA, "fp32", graph, True)) for graph in (False, True))
    torch.testing.assert_close(graph[:, 0], eager[:, 0], rtol=0, atol=2e-2)


@pytest.mark.parametrize("attention", [{"kind": "dense"}, DSA], ids=["dense", "dsa"])
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_no_step_waits_for_the_host(attention: dict[str, Any], graph: bool) -> None:
    spec, execution = spec_of(attention), Execution(CUDA, "bf16", graph, False)
    model = build(spec, 500).to(CUDA)
    step = TrainStep(model, Optimizer(model, spec, CUDA), spec, execution)
    batches = torch.randint(500, (EAGER_STEPS, spec.batch_size, spec.length + 1)).pin_memory()
    for stage in ("dense", "sparse"):
        step.run(0, stage, batches)
        if graph:
            step.capture(stage)
        torch.cuda.synchronize()
        try:
            with warnings.catch_warnings(action="ignore"):  # that the mode is a prototype
                torch.cuda.set_sync_debug_mode("error")
            step.run(EAGER_STEPS, stage, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


def test_grouped_experts_agree_with_all_experts_in_bf16() -> None:
    moe = MixtureOfExperts(ModelSpec(d_model=64, n_heads=2, d_ff=96, n_experts=4, experts_per_token=2)).to(CUDA)
    torch.manual_seed(0)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x_ND = torch.randn(999, 64, device=CUDA)
    logits = torch.nn.functional.linear(x_ND, moe.router.weight)
    top, expert = logits.topk(2, dim=-1)
    weight = top.softmax(-1)
    exact = moe.double()._all_experts(x_ND.double(), expert, weight.double())
    moe.float()
    with torch.autocast("cuda", torch.bfloat16):
        for route in (moe._grouped, moe._all_experts):
            error = (route(x_ND.bfloat16(), expert, weight).double() - exact).norm() / exact.norm()
            assert float(error.detach()) < 1e-2, route.__name__


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenData:
    monkeypatch.setenv("DSABENCH_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    words = [f"w{i}" for i in range(200)]
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(" ".join(generator.choice(words, 2000)), encoding="utf-8")
    return prepare(spec_of(DSA, data={"source": f"path:{tmp_path}/*.txt", "vocab_size": 400}).data)


class Kept:
    """A sink in memory that can stop the run after a checkpoint, as a kill would."""

    def __init__(self, folder: Path, stop_after: int | None = None) -> None:
        self.folder, self.stop_after, self.records, self.saved = folder, stop_after, [], 0

    def metrics(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def rewind(self, step: int) -> None:
        self.records = [record for record in self.records if record["step"] <= step]

    def checkpoint(self) -> Path | None:
        return self.folder / str(self.saved) if self.saved else None

    def replace_checkpoint(self, write: Any) -> None:
        folder = self.folder / str(self.saved + 1)
        folder.mkdir(parents=True)
        write(folder)
        self.saved += 1
        if self.saved == self.stop_after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("attention", [{"kind": "dense"}, DSA], ids=["dense", "dsa"])
def test_a_deterministic_run_resumes_to_the_same_bits(
    attention: dict[str, Any], data: TokenData, tmp_path: Path
) -> None:
    spec = spec_of(attention, engine={"deterministic": True, "checkpoint_every": 20})
    execution = resolve(spec.engine)
    whole = Kept(tmp_path / "whole")
    expected = loop.to_the_end(loop.train_steps(PreparedRun(spec, data, execution, whole)))
    broken = Kept(tmp_path / "broken", stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        loop.to_the_end(loop.train_steps(PreparedRun(spec, data, execution, broken)))
    assert broken.saved == 1
    found = loop.to_the_end(loop.train_steps(PreparedRun(spec, data, execution, broken)))
    for name in ("val_loss", "train_loss", "val_accuracy", "mass_recall"):
        assert found.get(name) == expected.get(name), name
    for a, b in zip(whole.records, broken.records, strict=True):
        assert [a.get(name) for name in ("step", *METRICS)] == [b.get(name) for name in ("step", *METRICS)]


def test_auto_is_bf16_and_a_graph_on_this_gpu() -> None:
    execution = resolve(EngineSpec())
    assert execution.graph
    assert execution.precision == ("bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp32")


def test_the_peak_memory_of_a_run_does_not_depend_on_the_runs_before_it() -> None:
    execution = resolve(EngineSpec(device="cuda:0", compile="graph"))
    peaks = []
    for _ in range(4):
        execution.reset_peak_memory()
        losses(spec_of(DSA), execution, steps=40)
        peaks.append(torch.cuda.max_memory_allocated(CUDA))
    assert peaks[1] == peaks[2] == peaks[3], peaks


@pytest.mark.parametrize("attention", [{"kind": "dense"}, DSA], ids=["dense", "dsa"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 2e-2)])
def test_fused_kernels_learn_what_plain_pytorch_does(
    attention: dict[str, Any], precision: str, tolerance: float
) -> None:
    spec = spec_of(attention)
    plain = resolve(EngineSpec(device="cuda:0", precision=precision, kernels="off"))
    fused = resolve(EngineSpec(device="cuda:0", precision=precision))
    assert (plain.fused, fused.fused) == (False, True)
    with ops.unfused():
        expected = losses(spec, plain)[:, 0]
    assert torch.allclose(losses(spec, fused)[:, 0], expected, atol=tolerance)


@pytest.mark.parametrize("frozen", [False, True])
def test_bf16_copies_give_the_masters_the_gradients_of_autocast(frozen: bool) -> None:
    spec = spec_of({**DSA, "indexer": {"freeze_backbone": frozen}})
    execution = resolve(EngineSpec(device="cuda:0", precision="bf16"))
    tokens = torch.randint(500, (2, spec.length + 1), device=CUDA)
    grads = []
    for copies in (False, True):
        model = build(spec, 500).to(CUDA)
        weights = Weights(model, execution)
        if not copies:
            weights.masters, weights.narrow = {}, {}

        def backward(model: Transformer = model) -> torch.Tensor:
            with execution.autocast():
                loss, rest = model.training_losses(tokens[:, :-1], tokens[:, 1:])
            total = rest.attention_loss if frozen else loss + rest.attention_loss
            assert total is not None
            total.backward()
            return total

        weights.cast()
        for _ in range(2):  # the second one adds to the first
            weights.within(backward)
            weights.collect()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert (grad is None) == (grads[1][name] is None), name
        if grad is not None:
            assert torch.allclose(grad, grads[1][name], rtol=2e-2, atol=2e-2 * float(grad.abs().max())), name


@pytest.mark.parametrize("attention", [{"kind": "dense"}, DSA], ids=["dense", "dsa"])
@pytest.mark.parametrize(("micro", "recompute"), [(4, False), (16, True), (4, True)])
def test_cut_steps_learn_what_whole_ones_do(attention: dict[str, Any], micro: int, recompute: bool) -> None:
    """In a graph; with one expert, where the balance loss of parts is that of the whole."""
    spec = spec_of(attention, model={**MODEL, "n_experts": 1, "experts_per_token": 1})
    whole, cut = (
        losses(spec_of_engine(spec, **fields), Execution(CUDA, "fp32", True, False))
        for fields in ({}, {"micro_batch": micro, "recompute": recompute})
    )
    torch.testing.assert_close(cut[:, 0], whole[:, 0], rtol=0, atol=1e-3)


def test_recomputing_takes_less_memory() -> None:
    spec = spec_of({"kind": "dense"}, length=256, model={**MODEL, "n_layers": 8}, train={"tokens_per_step": 32768})
    execution, peaks = resolve(EngineSpec(device="cuda:0")), []
    for recompute in (False, True):
        slot = Slot(spec, 500, execution, MemoryPlan(spec.batch_size, recompute, {}))
        memory = Memory(slot)
        with slot.active():
            slot.step.run(0, "sparse", torch.randint(500, (2, spec.batch_size, spec.length + 1)))
        slot.wait()
        peaks.append(memory.peak_mb())
        del slot, memory
    assert peaks[0] and peaks[1] and peaks[1] < 0.6 * peaks[0], peaks


@pytest.mark.parametrize("attention", [{"kind": "dense"}, DSA], ids=["dense", "dsa"])
def test_a_run_in_a_used_slot_and_beside_others_learns_the_same(
    attention: dict[str, Any], data: TokenData, tmp_path: Path
) -> None:
    """Deterministic: to the bit. The second seed replays the first one's graphs; three at a time take turns."""
    specs = [spec_of(attention, seed=seed, engine={"deterministic": True}) for seed in (1, 2, 3, 4, 5)]
    execution = resolve(specs[0].engine)
    alone = [
        loop.to_the_end(loop.train_steps(PreparedRun(spec, data, execution, Kept(tmp_path / f"a{spec.seed}"))))
        for spec in specs
    ]
    one = Slots()
    reused = [
        loop.to_the_end(loop.train_steps(PreparedRun(spec, data, execution, Kept(tmp_path / f"r{spec.seed}")), one))
        for spec in specs
    ]
    three, together = Slots(3), {}
    waiting = [
        (spec, loop.train_steps(PreparedRun(spec, data, execution, Kept(tmp_path / f"t{spec.seed}")), three))
        for spec in specs
    ]
    active = [waiting.pop(0) for _ in range(3)]
    while active:
        spec, training = active.pop(0)
        try:
            next(training)
            active.append((spec, training))
        except StopIteration as end:
            together[spec.seed] = end.value
            active += [waiting.pop(0)] if waiting else []
    for spec, first, second in zip(specs, alone, reused, strict=True):
        third = together[spec.seed]
        for name in ("val_loss", "train_loss", "val_accuracy", "mass_recall"):
            assert first.get(name) == second.get(name) == third.get(name), (spec.seed, name)
        assert second["peak_memory_mb"] == pytest.approx(first["peak_memory_mb"], rel=0.01)
        assert third["peak_memory_mb"] == pytest.approx(first["peak_memory_mb"], rel=0.01)


def test_a_capture_that_fails_is_told_and_the_run_goes_on(
    data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = TrainStep._total

    def waiting(self: TrainStep, *rest: Any) -> torch.Tensor:
        total = honest(self, *rest)
        float(total.detach())  # a host sync, which a capture cannot have
        return total

    monkeypatch.setattr(TrainStep, "_total", waiting)
    matmul_rate.cache_clear()  # measuring it draws on the device
    spec = spec_of({"kind": "dense"})
    with pytest.warns(UserWarning, match="cannot be captured in a CUDA graph"):
        summary = loop.to_the_end(loop.train_steps(PreparedRun(spec, data, resolve(spec.engine), Kept(tmp_path))))
    assert summary["compile"] == "off"
    assert torch.rand(8, device=CUDA).sum() > 0, "a failed capture leaves the random generator in order"
    assert summary["val_loss"] < np.log(400) - 1
    assert summary["step_ms"] > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch's compiler about itself
@pytest.mark.parametrize("attention", [{"kind": "dense"}, DSA], ids=["dense", "dsa"])
def test_compiled_blocks_learn_what_eager_ones_do(attention: dict[str, Any]) -> None:
    spec = spec_of(attention, train={"steps": 30, "tokens_per_step": 1024, "warmup_steps": 5, "log_every": 5})
    eager = losses(spec, Execution(CUDA, "fp32", False, False), 30)
    full = losses(spec, Execution(CUDA, "fp32", True, False, fused=True, compiled=True), 30)
    torch.testing.assert_close(full[:, 0], eager[:, 0], rtol=0, atol=1e-3)


def test_steps_have_the_bits_of_pytorchs_adamw() -> None:
    train_beside_adamw(spec_of(DSA, train={"grad_clip": None, "beta2": 0.97, "weight_decay": 0.3}), CUDA)

"""Selections without an indexer by index lists, on a GPU: the sets of their scores, learning, memory, repeated bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="needs triton")

from sparse_reference import ascending
from step_history import VOCAB, history

from dsabench.attention.ablations import oracle
from dsabench.attention.ablations.selecting import SelectingAttention, first_keys
from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa import reference
from dsabench.attention.registry import variant
from dsabench.audit import gate
from dsabench.data import Batch
from dsabench.engine.device import Execution, resolve
from dsabench.engine.evaluation import Evaluator
from dsabench.engine.optimizer import Optimizer
from dsabench.engine.selection_recall import selection_recall
from dsabench.engine.step import TrainStep
from dsabench.model.transformer import build
from dsabench.spec.run import EngineSpec, RunSpec, validate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

CUDA = torch.device("cuda", 0)
MODEL = {"d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 1, "d_ff": 96}
KINDS = ("sliding_window", "sink_window", "strided", "random", "oracle", "moba")


def spec_of(kind: str, backend: str, length: int = 256, top_k: int = 48, **fields: Any) -> RunSpec:
    attention = {"kind": kind, "top_k": top_k, "selection_backend": backend, "warmup_share": 0.3}
    train = {"steps": 40, "batch_size": 4, "warmup_steps": 5, "eval_every": 20, "log_every": 5}
    return validate({"length": length, "attention": attention, "model": MODEL, "train": train, **fields})


def losses(spec: RunSpec, execution: Execution, steps: int) -> torch.Tensor:
    """Losses of the first steps, 12 of them of the dense stage."""
    return history(spec, execution, steps)[:, 0]


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("length", [37, 1000, 4096, 4113])
@pytest.mark.parametrize("kind", ["sliding_window", "sink_window", "strided", "random"])
def test_lists_are_the_selection_of_the_scores(kind: str, length: int, documents: bool) -> None:
    """In many steps and layers: of random hashes some rows have ties at their last key."""
    begins = torch.rand(2, length, generator=torch.Generator().manual_seed(length)) < 0.005
    ids = begins.cumsum(1).to(CUDA) if documents else None
    for layer, k in enumerate((1, 33, length // 3, length)):
        spec = spec_of(kind, "triton", length, k, train={"batch_size": 1})
        module = variant(kind)(spec, layer).to(CUDA)
        assert isinstance(module, SelectingAttention)
        step = torch.tensor([1000 + layer], device=CUDA)
        context = AttentionContext(torch.arange(length, device=CUDA), document_ids_BT=ids, step=step)
        found = module.select(torch.empty(0), torch.empty(0), k, context)
        scores = module.scores(torch.empty(0), torch.empty(0), context)
        assert found.shape == (*first_keys(context).shape, k)
        for row, list_TK in enumerate(found):
            allowed = context.allowed if ids is None else context.allowed[row]
            assert torch.equal(list_TK, ascending(reference.select_top_k(scores, allowed, k)))


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_by_lists_learn_what_masks_do(kind: str, documents: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses in fp32, at an odd length; the oracle by slabs of 60 queries."""
    monkeypatch.setattr(oracle, "SLAB_NUMBERS", 4 * 4 * 333 * 60)
    more = {"data": {"packing": "documents"}} if documents else {}
    execution = Execution(CUDA, "fp32", graph=False, deterministic=False)
    lists, masks = (losses(spec_of(kind, name, 333, **more), execution, 20) for name in ("triton", "masked"))
    torch.testing.assert_close(lists, masks, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_captured_steps_learn_what_eager_ones_do(kind: str) -> None:
    """In bf16, where neighbours form groups; of random selections every replay draws its step's own."""
    eager, graph = (
        losses(spec_of(kind, "triton"), Execution(CUDA, "bf16", graph, False), 40) for graph in (False, True)
    )
    torch.testing.assert_close(graph, eager, rtol=0, atol=3e-2)
    assert float(graph[-1]) < float(graph[0]) - 1


@pytest.mark.parametrize("kind", ["sliding_window", "random"])
def test_deterministic_steps_have_the_same_bits(kind: str) -> None:
    runs = [losses(spec_of(kind, "triton"), Execution(CUDA, "bf16", graph, True), 20) for graph in (False, True, True)]
    assert torch.equal(runs[1], runs[2])
    assert torch.equal(runs[1], runs[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_gate_audits_the_lists(kind: str) -> None:
    found = gate.audit(spec_of(kind, "triton", top_k=24), VOCAB, resolve(EngineSpec(device="cuda:0")))
    assert found.crash is None
    assert found.first is None
    assert len(found.copies) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch's compiler about itself
@pytest.mark.parametrize("kind", ["sliding_window", "random"])
def test_compiled_blocks_learn_what_eager_ones_do(kind: str) -> None:
    eager = losses(spec_of(kind, "triton"), Execution(CUDA, "fp32", False, False), 20)
    full = losses(spec_of(kind, "triton"), Execution(CUDA, "fp32", True, False, fused=True, compiled=True), 20)
    torch.testing.assert_close(full, eager, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_no_room_for_l_by_l(kind: str) -> None:
    """With the allocator capped, beside what is there, at a mask of one byte a pair and 256 MiB for the rest of the
    model; the scores of every head would take eight times as much."""
    length, execution = 32_768, Execution(CUDA, "bf16", graph=False, deterministic=False)
    train = {"steps": 40, "batch_size": 1, "eval_every": 20}

    def use(backend: str, length: int) -> None:
        spec = spec_of(kind, backend, length, 64, train=train)
        model = build(spec, VOCAB).to(CUDA)
        step = TrainStep(model, Optimizer(model, spec, CUDA), spec, execution)
        tokens = torch.randint(VOCAB, (1, length + 1), generator=torch.Generator().manual_seed(1))
        for stage in ("dense", "sparse"):
            step.run(0, stage, tokens[None])  # type: ignore[arg-type]
        batch = Batch(tokens.numpy().astype(np.int32))
        Evaluator(model, execution).evaluate(batch, "sparse")
        assert selection_recall(model, batch, execution, "sparse") is not None

    use("triton", 1024)  # libraries and their workspaces
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    room = torch.cuda.memory_reserved(CUDA) + length**2 + (256 << 20)
    torch.cuda.set_per_process_memory_fraction(room / total, CUDA)
    try:
        use("triton", length)
        torch.cuda.empty_cache()
        with pytest.raises(torch.OutOfMemoryError):
            use("masked", length)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CUDA)
        torch.cuda.empty_cache()

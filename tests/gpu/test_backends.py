"""DSA's triton backend in the model on a GPU: in CUDA graphs, beside the masked one, and without L x L memory.

Run on a machine with one: pytest -m gpu tests/gpu/test_backends.py
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sparse_reference import Sizes, allowed_by, draw, error
from step_history import VOCAB, history
from torch.nn.attention import varlen

from dsabench.attention import scaled_dot_product
from dsabench.audit import gate
from dsabench.data import Batch
from dsabench.engine.device import Execution, resolve
from dsabench.engine.evaluation import Evaluator
from dsabench.engine.optimizer import Optimizer
from dsabench.engine.selection_recall import selection_recall
from dsabench.engine.step import TrainStep
from dsabench.model.transformer import ForwardPass, build
from dsabench.spec.run import EngineSpec, RunSpec, validate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

CUDA = torch.device("cuda", 0)
MODEL = {"d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 1, "d_ff": 96}


def spec_of(backend: str, length: int = 256, top_k: int = 48, **fields: Any) -> RunSpec:
    indexer = {"n_heads": 2, "head_dim": 16, "warmup_share": 0.3}
    attention = {"kind": "dsa", "top_k": top_k, "backend": backend, "indexer": indexer}
    train = {"steps": 40, "batch_size": 4, "warmup_steps": 5, "eval_every": 20, "log_every": 5}
    return validate({"length": length, "attention": attention, "model": MODEL, "train": train, **fields})


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 3e-2)])
def test_captured_steps_learn_what_eager_ones_do(precision: str, tolerance: float) -> None:
    eager, graph = (history(spec_of("triton"), Execution(CUDA, precision, graph, False)) for graph in (False, True))
    torch.testing.assert_close(graph[:, :2], eager[:, :2], rtol=0, atol=tolerance)
    assert float(graph[-1, 0]) < float(graph[0, 0]) - 1


def packed_spec(kind: str) -> RunSpec:
    packed = {"data": {"packing": "documents"}}
    spec = spec_of("auto" if kind == "dense" else kind, **packed)
    if kind == "dense":
        spec = validate({**spec.model_dump(exclude={"attention"}), "attention": {"kind": "dense"}})
    return spec


@pytest.mark.parametrize("kind", ["dense", "masked", "triton"])
def test_packed_documents_are_learnt_alike_in_a_graph(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With slabs of 60 queries, recomputed in the backward pass."""
    monkeypatch.setattr(scaled_dot_product, "SLAB_PAIRS", 4 * 256 * 60)
    eager, graph = (history(packed_spec(kind), Execution(CUDA, "fp32", graph, False)) for graph in (False, True))
    torch.testing.assert_close(graph[:, :2], eager[:, :2], rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["dense", "triton"])
def test_documents_as_sequences_are_learnt_as_by_masks(kind: str) -> None:
    """In bf16, eager and in a graph; 20 steps, of which 12 are DSA's dense stage."""
    spec, eager = packed_spec(kind), Execution(CUDA, "bf16", False, False)
    masks = history(spec, eager, 20)
    for execution in (eager, Execution(CUDA, "bf16", True, False)):
        found = history(spec, execution, 20, most=60)
        torch.testing.assert_close(found[:, :2], masks[:, :2], rtol=0, atol=3e-2)


@pytest.mark.parametrize("steps", [1, 12, 13, 20])
def test_packed_documents_are_learnt_as_by_masks(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 steps are of the dense stage: how many pass says which stage differs."""
    monkeypatch.setattr(scaled_dot_product, "SLAB_PAIRS", 4 * 256 * 60)
    execution = Execution(CUDA, "fp32", False, False)
    triton, masked = (history(packed_spec(kind), execution, 20)[:steps] for kind in ("triton", "masked"))
    torch.testing.assert_close(triton[:, :2], masked[:, :2], rtol=0, atol=1e-3)


@contextlib.contextmanager
def by_masks_only() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "varlen_attn", lambda *given, **more: pytest.fail("not by masks"))
        yield


@pytest.mark.parametrize("most", [None, 40])
@pytest.mark.parametrize("slab", [60, 256])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_dense_attention_within_documents(
    dtype: torch.dtype, tolerance: float, slab: int, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients beside fp64, by masks and, in bf16 with a bound of their number, as sequences."""
    monkeypatch.setattr(scaled_dot_product, "SLAB_PAIRS", 2 * 256 * slab)
    x = draw(Sizes(batch=2, length=256, heads=4, groups=1, width=16, documents=0.02), 9, "cuda")
    assert x.ids is not None and int(x.ids.max()) < 40
    mine = x.to(dtype)
    with by_masks_only() if most is None or dtype == torch.float32 else contextlib.nullcontext():
        out = scaled_dot_product.attention(mine.q, mine.k, mine.v, mine.ids, most)
    (out * mine.d_out).sum().backward()
    logits = torch.einsum("bthd,bshd->bhts", x.q, x.k.expand_as(x.q)) * x.q.shape[-1] ** -0.5
    p = logits.masked_fill(~allowed_by(x)[:, None], -torch.inf).softmax(-1)
    expected = torch.einsum("bhts,bshd->bthd", p, x.v.expand_as(x.q))
    (expected * x.d_out).sum().backward()
    assert error(out.detach(), expected.detach()) < tolerance
    for a, b in zip(mine[:3], x[:3], strict=True):
        assert error(a.grad, b.grad) < tolerance


@pytest.mark.parametrize("length", [256, 333])
def test_twenty_steps_are_the_masked_backends(length: int) -> None:
    """Losses of both kinds in fp32; 12 steps of the dense stage, 8 of the sparse one."""
    execution = Execution(CUDA, "fp32", graph=False, deterministic=False)
    triton, masked = (history(spec_of(name, length), execution, 20) for name in ("triton", "masked"))
    torch.testing.assert_close(triton[:, :2], masked[:, :2], rtol=0, atol=1e-3)


def test_deterministic_steps_have_the_same_bits() -> None:
    spec = spec_of("triton")
    eager, graph, again = (history(spec, Execution(CUDA, "bf16", graph, True)) for graph in (False, True, True))
    assert torch.equal(graph, again)
    assert torch.equal(graph, eager)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch's compiler about itself
def test_compiled_blocks_learn_what_eager_ones_do() -> None:
    eager = history(spec_of("triton"), Execution(CUDA, "fp32", False, False), 20)
    full = history(spec_of("triton"), Execution(CUDA, "fp32", True, False, fused=True, compiled=True), 20)
    torch.testing.assert_close(full[:, 0], eager[:, 0], rtol=0, atol=1e-3)


def test_the_gate_audits_the_kernels() -> None:
    """At full size, and in small copies with its share of keys and its number of them, by the backend that trains."""
    found = gate.audit(spec_of("triton", top_k=24), VOCAB, resolve(EngineSpec(device="cuda:0")))
    assert found.crash is None
    assert found.first is None
    assert len(found.copies) == 2


def use(spec: RunSpec, execution: Execution) -> None:
    """Training steps of both stages with and without documents, an evaluation and its recall."""
    model = build(spec, VOCAB).to(CUDA)
    step = TrainStep(model, Optimizer(model, spec, CUDA), spec, execution)
    tokens = torch.randint(VOCAB, (1, spec.length + 1), generator=torch.Generator().manual_seed(1))
    batch = Batch(tokens.numpy().astype(np.int32))
    ids = (torch.arange(spec.length, device=CUDA) // 3000)[None]
    stages: tuple[Any, ...] = ("dense", "sparse")
    for stage in stages:
        step.run(0, stage, tokens[None])
        packed = ForwardPass(stage=stage, document_ids_BT=ids)
        with execution.autocast():
            loss, rest = model.training_losses(tokens[:, :-1].to(CUDA), tokens[:, 1:].to(CUDA), packed)
        assert rest.attention_loss is not None
        (loss + rest.attention_loss).backward()
        del loss, rest
        Evaluator(model, execution).evaluate(batch, stage)
        assert selection_recall(model, batch, execution, stage) is not None


@pytest.mark.parametrize(("length", "bytes_a_pair"), [(16_384, 4), (65_536, 0.5)])
def test_no_room_for_l_by_l(length: int, bytes_a_pair: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the allocator capped, beside what is there, at one matrix of fp32 scores, or at half of a mask.

    top-k's scratch does not grow with L, but is not small: k=512 takes 264 blocks of 64 lists of 4096 entries, 528 MiB
    on 132 multiprocessors. At 32,768 tokens that is half of a mask, so the mask is asked for at twice the length.
    """
    monkeypatch.setattr(scaled_dot_product, "SLAB_PAIRS", 2**24)
    execution = Execution(CUDA, "bf16", graph=False, deterministic=False)
    train = {"steps": 40, "batch_size": 1, "eval_every": 20}
    use(spec_of("triton", 1024, 64, train=train), execution)  # libraries and their workspaces
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    room = torch.cuda.memory_reserved(CUDA) + int(bytes_a_pair * length**2)
    torch.cuda.set_per_process_memory_fraction(room / total, CUDA)
    try:
        use(spec_of("triton", length, 512, train=train), execution)
        torch.cuda.empty_cache()
        with pytest.raises(torch.OutOfMemoryError):
            use(spec_of("masked", length, 512, train=train), execution)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CUDA)
        torch.cuda.empty_cache()

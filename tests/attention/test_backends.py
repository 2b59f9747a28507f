"""DSA's backends against each other, and the choice between them; `triton` through Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import others_slow
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, which CPU builds of PyTorch do not bring")
if torch.cuda.is_available():
    pytest.skip("the interpreter is off where there is a GPU; tests/gpu compares there", allow_module_level=True)

from watch import Watch

from dsabench.attention import base, scaled_dot_product, with_backends
from dsabench.attention.dsa import reference
from dsabench.attention.dsa.triton import top_k
from dsabench.data import Batch
from dsabench.engine.device import Execution
from dsabench.engine.evaluation import Evaluator
from dsabench.engine.optimizer import Optimizer
from dsabench.engine.selection_recall import selection_recall
from dsabench.engine.step import TrainStep
from dsabench.model.transformer import ForwardPass, Transformer, build
from dsabench.spec.run import RunSpec, validate
from dsabench.testing import (
    check_calls,
    check_capture,
    check_dense_at_full_k,
    check_documents_are_separate,
    check_gradients,
    check_loss_is_no_output,
)

CPU = Execution(torch.device("cpu"), "fp32", graph=False, deterministic=True)
GPU = Execution(torch.device("cuda", 0), "bf16", graph=True, deterministic=False, fused=True)
VOCAB = 31


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse kernels run on the CPU, with lists that suit these lengths; the other fused ones stay out of it."""
    monkeypatch.setattr(with_backends, "runs_on", lambda device: True)
    tiling = top_k.Tiling(queries=16, keys=16, programs=1, stride=4)
    monkeypatch.setattr(top_k, "Tiling", lambda **sizes: tiling)


RANKS = {"q_lora_rank": 20, "kv_lora_rank": 14, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 8}
LATENT = {"attention_layout": "latent", "latent": RANKS}


def spec_of(backend: str, length: int = 12, model: dict[str, Any] | None = None, **attention: Any) -> RunSpec:
    indexer = {"n_heads": 2, "head_dim": 8, **attention.pop("indexer", {})}
    return validate(
        {
            "length": length,
            "attention": {"kind": "dsa", "top_k": 4, "backend": backend, "indexer": indexer, **attention},
            "model": {
                "d_model": 32,
                "n_layers": 1,
                "n_heads": 4,
                "d_ff": 16,
                "n_experts": 2,
                "experts_per_token": 1,
                **(model or {}),
            },
            "train": {"steps": 20, "batch_size": 1, "eval_every": 10},
        }
    )


def model_of(spec: RunSpec) -> Transformer:
    """Weights large enough that outputs, and so differences, are of order 1."""
    model = build(spec, VOCAB)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
    return model


def tokens_of(length: int, rows: int = 1) -> Tensor:
    return torch.randint(VOCAB, (rows, length + 1), generator=torch.Generator().manual_seed(3))


def learnt(spec: RunSpec, stage: Any, ids: Tensor | None) -> dict[str, Tensor]:
    """Both losses, and every gradient of their sum."""
    model, tokens = model_of(spec), tokens_of(spec.length, 2)
    loss, rest = model.training_losses(tokens[:, :-1], tokens[:, 1:], ForwardPass(stage=stage, document_ids_BT=ids))
    assert rest.attention_loss is not None
    (loss + rest.attention_loss).backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"the loss": loss.detach(), "the KL loss": rest.attention_loss.detach(), **grads}


@pytest.mark.parametrize(
    ("model", "documents"),
    others_slow([({}, True), ({"n_kv_heads": 2}, False), ({"n_kv_heads": 1}, True), (LATENT, True)], 2, 3),
    ids=["mha documents", "gqa", "mqa documents", "latent documents"],
)
@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_losses_and_gradients_are_the_references(
    interpreted: None, monkeypatch: pytest.MonkeyPatch, stage: str, model: dict[str, Any], documents: bool
) -> None:
    monkeypatch.setattr(
        scaled_dot_product, "SLAB_PAIRS", 2 * 12 * 5
    )  # documents: slabs of 5 queries, the last one of 2
    ids = torch.tensor([[0] * 4 + [1] * 8, [0] * 1 + [1] * 2 + [2] * 9]) if documents else None
    expected = learnt(spec_of("reference", model=model), stage, ids)
    for other in ("triton", "masked"):
        found = learnt(spec_of(other, model=model), stage, ids)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            error = float((found[name] - value).norm() / value.norm().clamp(min=1e-3))
            assert error < 1e-5, (other, name, error)


@pytest.mark.parametrize(
    "check",
    [
        check_calls,
        check_documents_are_separate,
        check_dense_at_full_k,
        check_gradients,
        check_capture,
        check_loss_is_no_output,
    ],
    ids=lambda check: check.__name__,
)
def test_contract(interpreted: None, check: Callable[[RunSpec], None]) -> None:
    check(spec_of("triton", length=6, top_k=3))


@pytest.mark.parametrize("check", others_slow([check_dense_at_full_k, check_gradients, check_capture], 0))
def test_contract_of_the_latent_layout(interpreted: None, check: Callable[[RunSpec], None]) -> None:
    check(spec_of("triton", length=6, model=LATENT, top_k=3))


@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_nothing_looks_ahead(interpreted: None, stage: Any) -> None:
    """Everything after t = 1..4 is changed, where k = 3."""
    model = model_of(spec_of("triton", 7, top_k=3, indexer={"loss": "none"}))
    tokens_T = tokens_of(6)[0]
    tokens_NT = tokens_T.repeat(5, 1)
    for row, t in enumerate(range(1, 5)):
        tokens_NT[row, t + 1 :] = (tokens_T[t + 1 :] + 7) % VOCAB
    with torch.no_grad():
        logits_NTV = model(tokens_NT, ForwardPass(stage=stage)).logits_BTV
    for row, t in enumerate(range(1, 5)):
        torch.testing.assert_close(logits_NTV[row, : t + 1], logits_NTV[4, : t + 1], rtol=0, atol=1e-5)
        assert float((logits_NTV[row, t + 1 :] - logits_NTV[4, t + 1 :]).abs().amax(-1).min()) > 1e-3


def test_an_untrained_indexer_needs_no_loss(interpreted: None) -> None:
    model = model_of(spec_of("triton", indexer={"loss": "none"}))
    stages: tuple[Any, ...] = ("dense", "sparse")
    for stage in stages:
        assert model(tokens_of(5)[:, :-1], ForwardPass(stage=stage)).attention_loss is None


# No tensor of L x L elements.


def watched(spec: RunSpec, limit: int, documents: bool) -> None:
    """A training step in each stage, an evaluation, and its recall."""
    model = model_of(spec)
    step = TrainStep(model, Optimizer(model, spec, CPU.device), spec, CPU)
    tokens = tokens_of(spec.length)
    batch = Batch(tokens.numpy().astype("int32"))
    ids = (torch.arange(spec.length) // 30)[None] if documents else None
    stages: tuple[Any, ...] = ("dense", "sparse")
    with Watch(limit):
        for stage in stages:
            if documents:
                packed = ForwardPass(stage=stage, document_ids_BT=ids)
                loss, rest = model.training_losses(tokens[:, :-1], tokens[:, 1:], packed)
                assert rest.attention_loss is not None
                (loss + rest.attention_loss).backward()
            else:
                step.run(0, stage, tokens[None])
        if not documents:
            # Recall is the same question in the dense stage, and quicker to interpret.
            Evaluator(model, CPU).evaluate(batch, "dense")
            assert selection_recall(model, batch, CPU, "dense") is not None


@pytest.mark.slow
@pytest.mark.parametrize("documents", others_slow([False, True], 0), ids=["one document", "documents"])
def test_no_tensor_of_l_by_l_elements(interpreted: None, monkeypatch: pytest.MonkeyPatch, documents: bool) -> None:
    length = 64
    monkeypatch.setattr(scaled_dot_product, "SLAB_PAIRS", length * 16)
    monkeypatch.setattr(base, "RECALL_PAIRS", length * 16)
    watched(spec_of("triton", length, {"n_kv_heads": 1}), length**2, documents)
    with pytest.raises(AssertionError, match="gives"):
        watched(spec_of("masked", length, {"n_kv_heads": 1}), length**2, documents)


def test_slabs_keep_no_masks_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    length = 64
    kept: dict[int, int] = {}
    monkeypatch.setattr(scaled_dot_product, "SLAB_PAIRS", length * 8)
    q, k, v = (torch.randn(1, length, 1, 4, requires_grad=True) for _ in range(3))

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = scaled_dot_product.attention(q, k, v, (torch.arange(length) // 20)[None])
    out.sum().backward()
    assert sum(kept.values()) < length**2


def test_recall_by_slabs_and_samples_is_that_of_the_whole_mass(
    interpreted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"loss": "none"}  # and in the dense stage, which selects too when it is asked
    model = model_of(spec_of("triton", 24, indexer=quick))
    batch = Batch(tokens_of(24, 2).numpy().astype("int32"))
    whole = selection_recall(model_of(spec_of("masked", 24, indexer=quick)), batch, CPU, "dense")
    monkeypatch.setattr(base, "RECALL_PAIRS", 2 * 24 * 7)
    by_slabs = selection_recall(model, batch, CPU, "dense")
    assert whole is not None and by_slabs is not None
    assert by_slabs == pytest.approx(whole, abs=1e-6)
    captured: dict[int, base.Selection] = {}
    with torch.no_grad():
        tokens = torch.from_numpy(batch.tokens[:, :-1]).long()
        model.eval()(tokens, ForwardPass(stage="dense", capture=captured))
    monkeypatch.setattr(base, "RECALL_QUERIES", 6)
    query_Q = base.recall_queries(24)
    assert query_Q.tolist() == [2, 6, 10, 14, 18, 22]
    sampled = selection_recall(model, batch, CPU, "dense")
    assert sampled is not None
    mass, selected = captured[0].mass_BTS, captured[0].selected_BTK
    assert mass is not None
    rows = [(b, int(t)) for b in range(2) for t in query_Q if t >= 4]
    expected = [float(mass[b, t, selected[b, t].long()].sum()) for b, t in rows]
    assert sampled["mass_recall"] == pytest.approx(sum(expected) / len(expected), abs=1e-6)
    assert sampled["mass_recall_chance"] == pytest.approx(sum(4 / (t + 1) for _, t in rows) / len(rows))


def test_rows_of_the_allowed_keys() -> None:
    ids = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, 1, 1]])
    query = torch.tensor([1, 3, 4])
    for given in (None, ids):
        whole = reference.allowed_keys(5, given, torch.device("cpu"))
        assert torch.equal(reference.allowed_at(query, 5, given), whole[..., query, :])

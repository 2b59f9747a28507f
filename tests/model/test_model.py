"""The model: independent references for its parts, a sane start, paired initial weights, routing by a plain loop."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import others_slow
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.attention.base import Attention, AttentionContext
from dsabench.model.moe import MixtureOfExperts
from dsabench.model.transformer import ForwardPass, build, flops_per_window
from dsabench.spec.run import ModelSpec, RunSpec, validate

TINY = {"d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 24}


def spec_of(kind: str = "dsa", **fields: Any) -> RunSpec:
    attention = {"kind": kind, **({"indexer": {"n_heads": 2, "head_dim": 8}} if kind == "dsa" else {})}
    return validate({"length": 32, "model": TINY, "attention": attention, **fields})


def first_loss(spec: RunSpec, vocab_size: int) -> float:
    tokens = torch.randint(vocab_size, (6, spec.length + 1), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = build(spec, vocab_size)(tokens[:, :-1]).logits_BTV
    return float(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))


@pytest.mark.parametrize("vocab_size", [257, 2048, 49_152])
@pytest.mark.parametrize(("d_model", "n_layers"), others_slow([(32, 2), (256, 4), (512, 12)], 0, 1))
@pytest.mark.parametrize("kind", ["dense", "dsa"])
def test_the_first_loss_is_near_ln_v(kind: str, d_model: int, n_layers: int, vocab_size: int) -> None:
    model = {"d_model": d_model, "n_layers": n_layers, "n_heads": 4, "d_ff": 64}
    assert first_loss(spec_of(kind, model=model), vocab_size) == pytest.approx(math.log(vocab_size), rel=0.03)


def test_shared_parameters_start_bit_identical() -> None:
    dense, dsa = (dict(build(spec_of(kind), 300).named_parameters()) for kind in ("dense", "dsa"))
    assert dense.keys() < dsa.keys()
    assert all("indexer" in name for name in dsa.keys() - dense.keys())
    for name, parameter in dense.items():
        assert torch.equal(parameter, dsa[name]), name


def test_another_seed_starts_elsewhere() -> None:
    one, other = (dict(build(spec_of(seed=seed), 300).named_parameters()) for seed in (1, 2))
    for name, parameter in one.items():
        assert parameter.ndim < 2 or not torch.equal(parameter, other[name]), name


def test_no_two_parameters_start_alike() -> None:
    matrices = [p.flatten()[:200] for p in build(spec_of(), 300).parameters() if p.ndim > 1]
    for i, one in enumerate(matrices):
        assert all(not torch.equal(one, other) for other in matrices[:i])


def test_rms_norm_by_the_formula() -> None:
    model = build(spec_of("dense"), 300)
    x = torch.randn(3, 32)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * model.norm.weight
    torch.testing.assert_close(model.norm(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dense", "dsa"])
def test_the_residual_stream_by_the_formula(kind: str) -> None:
    """x + attention(norm(x)), x + experts(norm(x)), layer by layer; then norm(x) E^T. Additions may be postponed."""
    model = build(spec_of(kind), 60).double()
    tokens = torch.randint(60, (2, 32), generator=torch.Generator().manual_seed(0))
    context = AttentionContext(torch.arange(32))
    x_BTD = model.embedding(tokens) * 32
    for block in model.layers():
        x_BTD = x_BTD + block.attention(block.attention_norm(x_BTD), context).out_BTD
        x_BTD = x_BTD + block.experts(block.experts_norm(x_BTD))[0]
    expected = model.norm(x_BTD) @ model.embedding.weight.T
    assert torch.allclose(model(tokens).logits_BTV, expected, atol=1e-9)
    loss = model.training_losses(tokens[:, :-1], tokens[:, 1:])[0]
    assert float(loss) == pytest.approx(float(F.cross_entropy(expected[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())))


def test_a_pass_gives_the_layers_all_that_its_caller_decides() -> None:
    ids, step = torch.zeros(1, 8, dtype=torch.int32), torch.tensor([3])
    given = ForwardPass(
        stage="dense", step=step, document_ids_BT=ids, most_documents=2, capture={}, whole_mass=False, losses=False
    )
    context = given.context(torch.arange(8), training=True)
    names = {field.name for field in fields(AttentionContext) if field.init} - {"positions_T"}
    assert {field.name for field in fields(ForwardPass)} - {"scored_BT", "mean_load"} == names
    for name in names:
        assert getattr(context, name) is getattr(given, name), name
    assert given.context(torch.arange(8), training=False).step is None, "evaluation has no step"


@torch.no_grad()
def test_a_pass_leaves_nothing_behind() -> None:
    """Its stage, documents, capture and step are of that pass alone."""
    model, fresh = (build(spec_of(), 60) for _ in range(2))
    tokens = torch.randint(60, (2, 32), generator=torch.Generator().manual_seed(0))
    captured: dict[int, Any] = {}
    ids = (torch.arange(32) >= 11).int().expand(2, -1)
    dense = model(tokens, ForwardPass(stage="dense", document_ids_BT=ids, capture=captured, step=torch.tensor([3])))
    assert set(captured) == {0, 1}
    captured.clear()
    assert torch.equal(model(tokens).logits_BTV, fresh(tokens).logits_BTV)
    assert not torch.equal(model(tokens).logits_BTV, dense.logits_BTV)
    assert not captured


@pytest.mark.parametrize("kind", ["dense", "dsa", "random"])
def test_every_layer_prepares_before_the_first_one_runs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What layers share is then computed outside of blocks, which may be compiled."""
    model, order = build(spec_of(kind), 60), list[tuple[str, int]]()
    cls = type(model.layers()[0].attention)

    def told(name: str, honest: Any) -> Any:
        def method(self: Attention, *given: Any) -> Any:
            order.append((name, self.layer))
            return honest(self, *given)

        return method

    for name in ("prepare", "forward"):
        monkeypatch.setattr(cls, name, told(name, getattr(cls, name)))
    model(torch.zeros(1, 32, dtype=torch.long))
    assert order == [("prepare", 0), ("prepare", 1), ("forward", 0), ("forward", 1)]


@pytest.mark.parametrize("kind", ["dense", "dsa", "random", "moba"])
def test_what_forward_asks_of_the_context_is_prepared(kind: str) -> None:
    """In the sparse stage and in training, where `prepare` is to be enough."""
    attention = build(spec_of(kind), 60).layers()[1].attention
    context = AttentionContext(torch.arange(32), step=torch.tensor([1]))
    attention.prepare(context)
    made, allowed = set(context._once), context._allowed
    attention(torch.randn(1, 32, 32), context)
    assert set(context._once) == made
    assert context._allowed is allowed


def by_a_plain_loop(moe: MixtureOfExperts, x_ND: torch.Tensor) -> torch.Tensor:
    rows = []
    for x in x_ND:
        logits = moe.router.weight @ x
        chosen = logits.argsort(descending=True)[: moe.per_token]
        weights = logits[chosen].softmax(0) if moe.per_token > 1 else logits.softmax(0)[chosen]
        rows.append(
            sum(
                w * ((F.silu(x @ moe.gate_EDF[e]) * (x @ moe.up_EDF[e])) @ moe.down_EFD[e])
                for w, e in zip(weights, chosen, strict=True)
            )
        )
    return torch.stack(rows)


def random_moe(n_experts: int, per_token: int, seed: int = 0) -> MixtureOfExperts:
    moe = MixtureOfExperts(ModelSpec(d_model=16, n_heads=2, d_ff=8, n_experts=n_experts, experts_per_token=per_token))
    generator = torch.Generator().manual_seed(seed)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return moe


@settings(max_examples=25, deadline=None)
@given(
    n_experts=st.integers(1, 7),
    per_token=st.integers(1, 7),
    n_tokens=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_experts_by_a_plain_loop(n_experts: int, per_token: int, n_tokens: int, seed: int) -> None:
    """Both ways of computing the experts, outputs and all gradients; no token is dropped however uneven the load."""
    moe = random_moe(n_experts, min(per_token, n_experts), seed)
    x_ND = torch.randn(n_tokens, 16, generator=torch.Generator().manual_seed(seed))
    probe = torch.randn(n_tokens, 16, generator=torch.Generator().manual_seed(seed + 1))
    results = []
    for compute in (
        lambda x: by_a_plain_loop(moe, x),
        lambda x: moe(x[None])[0][0],
        lambda x: moe._all_experts(x, *routing(moe, x)),
    ):
        moe.zero_grad()
        x = x_ND.clone().requires_grad_()
        y = compute(x)
        (y * probe).sum().backward()
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in moe.parameters()]
        results.append([y, x.grad, *grads])
    for found in results[1:]:
        for a, b in zip(results[0], found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_a_layout_for_products_changes_no_value_and_saves_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wide matrix is a view, copies and gradients come out alike, and so do outputs."""
    monkeypatch.setattr(MixtureOfExperts, "_grouping_saves", lambda self, device: False)
    x_BTD = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    results = []
    for laid_out in (False, True):
        moe = random_moe(3, 2)
        if laid_out:
            before = {name: parameter.clone() for name, parameter in moe.named_parameters()}
            moe.lay_out_for_products()
            for name, parameter in moe.named_parameters():
                assert torch.equal(parameter, before[name]), name
            for parameter in (moe.gate_EDF, moe.up_EDF):
                assert parameter.transpose(0, 1).flatten(1).data_ptr() == parameter.data_ptr()
                assert torch.empty_like(parameter, dtype=torch.bfloat16).stride() == parameter.stride()
        y_BTD = moe(x_BTD)[0]
        y_BTD.square().sum().backward()
        for parameter in moe.parameters():
            assert parameter.grad is not None
            assert parameter.grad.stride() == parameter.stride()
        results.append([y_BTD, *(parameter.grad for parameter in moe.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def test_grouping_saves_where_it_was_measured_to() -> None:
    def saves(d_model: int, d_ff: int, n_experts: int, per_token: int, device: str = "cuda") -> bool:
        spec = ModelSpec(d_model=d_model, n_heads=2, d_ff=d_ff, n_experts=n_experts, experts_per_token=per_token)
        with torch.device("meta"):
            return MixtureOfExperts(spec)._grouping_saves(torch.device(device))

    assert saves(1024, 2048, 4, 2)
    assert saves(64, 64, 8, 2)
    assert saves(256, 512, 4, 2, "cpu")
    assert not saves(256, 512, 4, 2)
    assert not saves(1024, 2048, 3, 2), "three of two: little is idle"


def routing(moe: MixtureOfExperts, x_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = F.linear(x_ND, moe.router.weight)
    top, expert = logits.topk(moe.per_token, dim=-1)
    return expert, top.softmax(-1) if moe.per_token > 1 else logits.softmax(-1).gather(-1, expert)


@pytest.mark.parametrize(("d_model", "d_ff"), [(6, 8), (16, 7), (16, 30), (34, 33)])
def test_odd_widths_work(d_model: int, d_ff: int) -> None:
    """Grouped products want rows of 16 bytes; other widths take the other way instead of failing."""
    moe = MixtureOfExperts(ModelSpec(d_model=d_model, n_heads=1, d_ff=d_ff))
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x_ND = torch.randn(9, d_model)
    torch.testing.assert_close(moe(x_ND[None])[0][0], by_a_plain_loop(moe, x_ND), rtol=1e-4, atol=1e-5)


def test_one_expert_a_token_still_teaches_the_router() -> None:
    moe = random_moe(4, 1)
    moe(torch.randn(1, 20, 16))[0].square().sum().backward()
    assert moe.router.weight.grad is not None
    assert float(moe.router.weight.grad.abs().max()) > 1e-4


def test_router_statistics() -> None:
    moe = random_moe(4, 2)
    with torch.no_grad():
        moe.router.weight.zero_()
    _, even = moe(torch.randn(1, 50, 16))
    assert float(even.entropy) == pytest.approx(math.log(4), rel=1e-5)
    assert float(even.balance_loss.detach()) == pytest.approx(1.0, rel=1e-5)
    assert float(even.load_E.sum()) == pytest.approx(1.0)
    with torch.no_grad():
        moe.router.weight[1] = 100.0
    _, skewed = moe(torch.rand(1, 50, 16))
    assert float(skewed.load_E[1]) == pytest.approx(0.5)
    assert float(skewed.balance_loss.detach()) > 1.9


def test_flops_against_the_counter_of_torch() -> None:
    """On the eager math path: the products of the dense model, counted by torch, are those of the formula."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    spec = spec_of("dense", model={**TINY, "n_experts": 1, "experts_per_token": 1})
    model = build(spec, 300)
    tokens = torch.randint(300, (1, spec.length))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens).logits_BTV.sum().backward()
    items = flops_per_window(model, "dense")
    # The math path computes the whole L x L square; the formula counts the causal pairs L (L + 1) / 2 of it.
    items["attention"] *= spec.length**2 / (spec.length * (spec.length + 1) / 2)
    counted = counter.get_total_flops()
    if not any("grouped" in str(op) for ops in counter.get_flop_counts().values() for op in ops):
        items.pop("experts")  # a counter that does not know grouped products
    assert sum(items.values()) == pytest.approx(counted, rel=0.02)


def test_flops_of_dsa_fall_with_k_and_are_dense_in_the_warm_up() -> None:
    def attention(k: int, stage: Any) -> float:
        spec = validate({"length": 64, "model": TINY, "attention": {"kind": "dsa", "top_k": k}})
        return flops_per_window(build(spec, 300), stage)["attention"]

    dense = flops_per_window(
        build(validate({"length": 64, "model": TINY, "attention": {"kind": "dense"}}), 300), "sparse"
    )
    assert attention(64, "sparse") == attention(8, "dense") == dense["attention"]
    n = 8 * (1 - 8 / 128)  # DSA.md's k (1 - k / 2L), to the order of 1 / L
    assert attention(8, "sparse") == pytest.approx(12 * 64 * n * 32 * 2, rel=0.02)

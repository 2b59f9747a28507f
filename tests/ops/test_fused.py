"""Fused kernels agree with plain PyTorch, in outputs and in every gradient; here in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import others_slow
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsabench import ops
from dsabench.attention.dsa.reference import document_starts
from dsabench.model.transformer import build
from dsabench.spec.run import validate

pytest.importorskip("triton", reason="needs triton, which CPU builds of PyTorch do not bring")
if torch.cuda.is_available():
    pytest.skip("the interpreter is off where there is a GPU; tests/gpu compares there", allow_module_level=True)

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
"""Largest error over the largest value; bf16 has 8 bits, and gradients pass through two roundings."""

dtypes = st.sampled_from([torch.float32, torch.bfloat16])
sizes = st.integers(1, 9)


def agrees(function: Callable[..., Any], *inputs: Tensor, least: float = 0.0, floor: float = 1e-6) -> None:
    """The fused function against the plain one in fp64: outputs, and the gradients of a random sum of them.

    `least` tolerance, and `floor` of what an error is relative to: for gradients that are differences of like numbers.
    """
    results = []
    for exact in (True, False):
        given_ = [
            (x.double() if exact and x.is_floating_point() else x).clone().requires_grad_(x.is_floating_point())
            for x in inputs
        ]
        if exact:
            outputs = function(*given_)
        else:
            with ops.interpreted():
                assert ops.fused(*(x for x in given_ if x.is_floating_point()))
                outputs = function(*given_)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outputs]
        loss = sum(((o.double() * w).sum() for o, w in zip(outputs, weights, strict=True)), torch.zeros(()))
        loss.backward()
        results.append([*outputs, *(x.grad for x in given_ if x.is_floating_point())])
    tolerance = TOLERANCE[inputs[0].dtype if len(inputs) < 2 else min((x.dtype for x in inputs[:2]), key=str)]
    tolerance = max(tolerance, least)
    for exact_, found in zip(*results, strict=True):
        assert found is not None
        error = (found.double() - exact_).abs().max() / exact_.abs().max().clamp(min=floor)
        assert error <= tolerance, f"error {error:.2g}"


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def add_norm(x: Tensor, d: Tensor | None, w: Tensor) -> Any:
    class Norm(SimpleNamespace):
        def __call__(self, x: Tensor) -> Tensor:
            return F.rms_norm(x, w.shape, self.weight, self.eps)

    return ops.add_norm(x, d, Norm(weight=w, eps=1e-6))  # type: ignore[arg-type]


@settings(deadline=None, max_examples=6)
@given(sizes, sizes, st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(0, 5), dtypes, st.booleans())
def test_split_heads(
    batch: int, length: int, groups: int, repeats: int, half: int, rest: int, dtype: torch.dtype, head_major: bool
) -> None:
    angle, heads = randn(length, half), groups * repeats
    cos, sin = angle.cos(), angle.sin()
    x = randn(batch, length, (heads + 2 * groups) * (2 * half + rest), dtype=dtype)
    agrees(lambda x: ops.split_heads(x, heads, groups, cos, sin, head_major), x)
    with ops.interpreted():
        for part in ops.split_heads(x, heads, groups, cos, sin, head_major):
            assert (part.transpose(1, 2) if head_major else part).is_contiguous()


def test_heads_take_gradients_in_any_memory_order() -> None:
    """Products hand back gradients that are transposed, and sums hand back expanded ones."""
    angle, weight = randn(3, 2), randn(2, 4, 6, 3)
    x = randn(2, 3, 4 * 6)

    def turned(x: Tensor) -> Tensor:
        q, k, v = ops.split_heads(x, 2, 1, angle.cos(), angle.sin())
        mixed = q.permute(0, 2, 3, 1) * weight[:, :2].to(x) + k.permute(0, 2, 3, 1) * 2
        return mixed.sum((1, 2, 3)) + v.sum((1, 2, 3))

    agrees(turned, x)


@example(40, 33, 4, 2, torch.float32, True, False)
@example(40, 70, 5, 3, torch.float32, False, False)
@example(33, 33, 17, 1, torch.float32, True, False)
@settings(deadline=None, max_examples=5)
@given(
    st.integers(1, 80), st.integers(1, 70), st.integers(1, 20), st.integers(1, 4), dtypes, st.booleans(), st.booleans()
)
def test_route(
    tokens: int, width: int, experts: int, k: int, dtype: torch.dtype, side_by_side: bool, balance_alone: bool
) -> None:
    k = min(k, experts)

    def routed(x: Tensor, w: Tensor) -> Any:
        routes = ops.route(x, w, k, side_by_side)
        outputs = (routes.balance_loss, routes.load_E.detach().to(x.dtype), routes.entropy.detach().to(x.dtype))
        return outputs if balance_alone else (routes.weight, *outputs)

    x, w = randn(tokens, width, dtype=dtype), randn(experts, width).flip(0) * width**-0.5
    with ops.unfused():
        exact = ops.route(x.double(), w.double(), k, side_by_side)
    with ops.interpreted():
        found = ops.route(x, w, k, side_by_side)
    assert torch.equal(exact.expert_NK, found.expert_NK)
    assert found.expert_NK.dtype == torch.int64
    agrees(routed, x, w, least=2e-5, floor=1e-2)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("side_by_side", [False, True])
def test_parts_that_know_the_mean_load_have_the_balance_loss_of_the_whole(fused: bool, side_by_side: bool) -> None:
    """Of two halves of a batch on two devices; the gradients too."""
    x, w = randn(40, 12), randn(5, 12)
    results: list[tuple[Tensor, ...]] = []
    for parts in (1, 2):
        given_ = [one.clone().requires_grad_() for one in (x, w)]
        with ops.interpreted() if fused else ops.unfused():
            loads = [ops.route(one, w, 2, side_by_side).load_E for one in x.chunk(parts)]
            load_E = torch.stack(loads).mean(0)
            mean_load = None if parts == 1 else lambda own_E, of_all_E=load_E: of_all_E
            found = [ops.route(one, given_[1], 2, side_by_side, mean_load) for one in given_[0].chunk(parts)]
        balance = torch.stack([one.balance_loss for one in found]).mean()
        results.append((balance, found[0].load_E, *torch.autograd.grad(balance, given_)))
    for whole, halves in zip(*results, strict=True):
        torch.testing.assert_close(halves, whole, atol=1e-6, rtol=1e-5)


def test_equal_logits_go_to_the_lowest_expert_and_nan_shows() -> None:
    x, w = torch.ones(3, 4), torch.zeros(6, 4)
    w[4] = 1.0
    x[2, 0] = torch.nan
    with ops.interpreted():
        routes = ops.route(x, w, 3, side_by_side=True)
    assert routes.expert_NK[:2].tolist() == [[4, 0, 1]] * 2
    assert routes.expert_NK[2].tolist() == [0, 1, 2]
    assert routes.weight[:2, [2, 3, 5]].abs().sum() == 0
    assert routes.weight[2, :3].isnan().all()


def test_many_experts_take_the_plain_way() -> None:
    x, w = randn(5, 4), randn(65, 4)
    with ops.interpreted():
        found = ops.route(x, w, 2, side_by_side=False)
    expected = ops.route(x, w, 2, side_by_side=False)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@settings(deadline=None, max_examples=4)
@given(sizes, st.integers(1, 4), st.integers(1, 20), dtypes)
def test_tokens_to_routes_and_back(tokens: int, k: int, width: int, dtype: torch.dtype) -> None:
    order = torch.randperm(tokens * k, generator=torch.Generator().manual_seed(width))
    inverse = order.argsort().view(tokens, k)
    agrees(lambda x: ops.to_routes(x, order // k, inverse), randn(tokens, width, dtype=dtype))
    agrees(lambda y: ops.from_routes(y, order // k, inverse), randn(tokens * k, width, dtype=dtype))


@settings(deadline=None, max_examples=4)
@given(sizes, sizes, st.integers(1, 20), dtypes)
def test_embed(batch: int, length: int, width: int, dtype: torch.dtype) -> None:
    tokens = torch.arange(batch * length).view(batch, length) * 7 % 11
    agrees(lambda weight: ops.embed(tokens, weight, 3.0), randn(11, width, dtype=dtype))


def test_embed_is_plain_where_order_must_be_fixed() -> None:
    weight = randn(5, 3).requires_grad_()
    with ops.interpreted():
        assert "Embed" in type(ops.embed(torch.zeros(2, dtype=torch.int64), weight, 2.0).grad_fn).__name__
        torch.use_deterministic_algorithms(True)
        try:
            assert "Mul" in type(ops.embed(torch.zeros(2, dtype=torch.int64), weight, 2.0).grad_fn).__name__
        finally:
            torch.use_deterministic_algorithms(False)


@settings(deadline=None, max_examples=3)
@given(sizes, sizes, st.integers(1, 40), dtypes)
def test_add_norm(batch: int, length: int, width: int, dtype: torch.dtype) -> None:
    inputs = randn(batch, length, width), randn(batch, length, width, dtype=dtype), randn(width)
    agrees(add_norm, *inputs, least=4e-6)  # 2.8e-6 was met: a gradient of a norm is a difference of like numbers
    agrees(lambda x, w: add_norm(x, None, w), randn(batch, length, width), randn(width), least=4e-6)


@settings(deadline=None, max_examples=6)
@given(st.integers(1, 3), st.integers(1, 80), st.integers(1, 200), st.integers(2, 5), dtypes, st.booleans())
@example(2, 70, 9, 4, torch.float32, True)
@example(1, 4000, 3, 3, torch.float32, False)
def test_short_convolution(batch: int, length: int, width: int, taps: int, dtype: torch.dtype, packed: bool) -> None:
    """Tiles and strips of any length, and documents that begin anywhere in them."""
    begin = None
    if packed:
        ids = (torch.rand(batch, length, generator=torch.Generator().manual_seed(length)) < 0.2).cumsum(1)
        begin = document_starts(ids)
    x, weight = randn(batch, length, width, dtype=dtype), randn(width, taps)
    agrees(lambda x, w: ops.short_convolution(x, w, begin), x, weight)


@settings(deadline=None, max_examples=3)
@given(sizes, sizes, st.integers(1, 40), dtypes)
def test_swiglu(tokens: int, experts: int, width: int, dtype: torch.dtype) -> None:
    gate, up = randn(tokens, experts, width, dtype=dtype), randn(tokens, experts, width, dtype=dtype).flip(0)
    agrees(ops.swiglu, gate, up, randn(tokens, experts).abs())


def test_swiglu_reads_nothing_where_the_weight_is_zero() -> None:
    """Zeros come out, forward and backward, though the inputs are NaN there; the rest is as ever."""
    chosen = torch.tensor([[True, False], [False, True], [True, True]])
    weight = randn(3, 2) * chosen
    values = [randn(3, 2, 5), randn(3, 2, 5).flip(0)]

    def picked(gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        return ops.swiglu(gate, up, weight)[chosen]

    agrees(lambda gate, up: picked(gate, up, weight.to(gate)), *values)
    given_ = [x.masked_fill(~chosen[..., None], torch.nan).requires_grad_() for x in values]
    weight.requires_grad_()
    with ops.interpreted():
        hidden = ops.swiglu(*given_, weight)
        hidden.backward(hidden.detach().masked_fill(~chosen[..., None], torch.nan))
    for tensor in (hidden, given_[0].grad, given_[1].grad, weight.grad):
        assert tensor is not None
        assert tensor[~chosen].abs().sum() == 0
        assert tensor[chosen].isfinite().all()


@settings(deadline=None, max_examples=5)
@given(sizes, st.integers(1, 20), st.integers(1, 70), st.sampled_from([1, 100, 2**29]), dtypes, st.booleans())
def test_linear_cross_entropy(
    tokens: int, width: int, vocabulary: int, slab: int, dtype: torch.dtype, every: bool
) -> None:
    from dsabench.ops import cross_entropy

    targets = torch.arange(tokens) * 7 % vocabulary
    scored = None if every else torch.arange(tokens) % 3 > 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "CPU_SLAB", slab)
        agrees(
            lambda x, e: ops.linear_cross_entropy(x, e, targets, scored),
            randn(tokens, width, dtype=dtype),
            randn(vocabulary, width, dtype=dtype).flip(0),
        )


def test_a_large_row_is_summed_over_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vocabularies and widths beyond one block, and logits so large that only a running maximum keeps them finite."""
    from dsabench.ops.triton import cross_entropy_rows, norm, swiglu

    monkeypatch.setattr(cross_entropy_rows, "_WIDE", 16)
    monkeypatch.setattr(swiglu, "_WIDE", 8)
    monkeypatch.setattr(norm, "_PROGRAMS", 2)  # each goes over several rows
    targets = torch.tensor([0, 99, 50])
    agrees(lambda x, e: ops.linear_cross_entropy(x, e, targets), 30 * randn(3, 5), randn(100, 5))
    agrees(ops.swiglu, randn(3, 2, 21), randn(3, 2, 21).flip(0), randn(3, 2))
    agrees(add_norm, randn(5, 1500), randn(5, 1500).flip(0), randn(1500))


def test_gradients_scale_with_the_loss() -> None:
    x, e, targets = randn(4, 3).requires_grad_(), randn(7, 3), torch.tensor([1, 2, 3, 4])
    with ops.interpreted():
        once = torch.autograd.grad(ops.linear_cross_entropy(x, e, targets), x)[0]
        thrice = torch.autograd.grad(3 * ops.linear_cross_entropy(x, e, targets), x)[0]
    assert torch.allclose(thrice, 3 * once)


def test_unfused_is_plain_and_ends_where_it_began() -> None:
    x = torch.ones(2)
    with ops.interpreted():
        assert ops.fused(x)
        with ops.unfused():
            assert not ops.fused(x)
            with ops.unfused(False):
                assert not ops.fused(x), "an outer unfused stays"
        with ops.unfused(False):
            assert ops.fused(x)
        assert not ops.fused(x.double()), "fp64 is the reference"
    assert not ops.fused(x), "never on a CPU outside of tests"


BIASES = {"qkv_bias": True, "tied_head": False, "head_width": 12, "rope_scaling": {"factor": 8.0}}
HALF = {"kind": "dsa", "top_k_ratio": 0.5}


@pytest.mark.parametrize(
    ("attention", "changed"),
    others_slow(
        [
            ({"kind": "dense"}, {"d_ff": 12}),
            (HALF, {"d_ff": 13}),
            ({"kind": "dense"}, {"d_ff": 12, **BIASES}),
            (HALF, {"d_ff": 12, **BIASES, "qk_norm": True}),
        ],
        1,
        2,
        3,
    ),
    ids=["dense, experts grouped", "dsa, experts side by side", "biases", "biases, normed heads"],
)
def test_a_whole_training_step_is_the_same(attention: dict[str, Any], changed: dict[str, Any]) -> None:
    model = {"d_model": 16, "n_layers": 2, "n_heads": 2, "n_experts": 3, "n_kv_heads": 1, **changed}
    spec = validate({"length": 7, "attention": attention, "model": model, "train": {"tokens_per_step": 14}})
    tokens = torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(0))
    grads = []
    for fuse in (False, True):
        network = build(spec, 50)
        with ops.unfused(not fuse), ops.interpreted():
            loss, rest = network.training_losses(tokens[:, :-1], tokens[:, 1:])
            own = torch.zeros(()) if rest.attention_loss is None else rest.attention_loss
            (loss + own + 0.01 * rest.balance_loss).backward()
        grads.append({name: p.grad for name, p in network.named_parameters()})
        plain = F.cross_entropy(network(tokens[:, :-1]).logits_BTV.flatten(0, 1), tokens[:, 1:].flatten())
        assert torch.allclose(loss, plain, atol=1e-6)
    for name, grad in grads[0].items():
        assert torch.allclose(grad, grads[1][name], atol=1e-5), name

"""The row-wise kernels of masked DSA agree with plain PyTorch: sets exactly, values and gradients within rounding."""

from __future__ import annotations

import pytest
import torch
from cases import others_slow
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench import ops
from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa import masked, reference
from dsabench.attention.dsa.indexer import LightningIndexer
from dsabench.spec.run import validate

pytest.importorskip("triton", reason="needs triton, which CPU builds of PyTorch do not bring")
if torch.cuda.is_available():
    pytest.skip("the interpreter is off where there is a GPU; tests/gpu compares there", allow_module_level=True)

sizes = st.integers(1, 21)
seeds = st.integers(0, 2**31)


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def mask(seed: int, batch: int, length: int, packed: bool) -> torch.Tensor:
    ids = torch.randint(2, (batch, length), generator=torch.Generator().manual_seed(seed)).cumsum(1) if packed else None
    return reference.allowed_keys(length, ids, torch.device("cpu"))


@settings(deadline=None, max_examples=15)
@given(seeds, st.integers(1, 3), sizes, st.integers(1, 22), st.booleans(), st.booleans())
def test_selected_sets_are_the_references_with_ties(
    seed: int, batch: int, length: int, k: int, packed: bool, ties: bool
) -> None:
    scores = randn(seed, batch, length, length)
    if ties:  # relu's plateau of zeros of both signs, and values that differ in their last bit
        scores = scores.relu() * torch.sign(randn(seed + 1, batch, length, length))
        scores[..., ::3] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
        scores[..., 1::5] = 1.0
    allowed = mask(seed, batch, length, packed)
    with ops.interpreted():
        found = masked.selection_mask(scores, allowed, k)
    selected = reference.select_top_k(scores, allowed, k)
    expected = torch.zeros(batch, length, length + 1, dtype=torch.bool)
    expected.scatter_(-1, selected.masked_fill(selected < 0, length), True)
    assert torch.equal(found, expected[..., :length])


def test_zeros_of_both_signs_are_one_value() -> None:
    scores = torch.tensor([0.0, -0.0]).repeat(1, 9, 5)[..., :9]
    with ops.interpreted():
        found = masked.selection_mask(scores, mask(0, 1, 9, False), 4)
    assert torch.equal(found[0].sum(-1), torch.tensor([1, 2, 3, 4, 4, 4, 4, 4, 4]))
    assert found[0, :, 4:].sum() == 0, "ties go to the lowest index"


@settings(deadline=None, max_examples=15)
@given(seeds, st.integers(1, 2), sizes, st.integers(1, 3), st.booleans())
def test_values_and_gradients(seed: int, batch: int, length: int, heads: int, packed: bool) -> None:
    keep = mask(seed, batch, length, packed)
    shapes = [(batch, length, heads, 4), (batch, length, 4), (batch, length, heads), (batch, length, heads, 6)]
    results = []
    for fused in (False, True):
        dtype = torch.float32 if fused else torch.float64
        q_i, k_i, w, q = (randn(seed + i, *shape).to(dtype).requires_grad_() for i, shape in enumerate(shapes))
        with ops.interpreted(), ops.unfused(not fused):
            scores = masked.index_scores(q_i, k_i, w)
            out, p = masked.attention(q, q.flip(1), q.flip(2), keep)
            loss = masked.indexer_kl(scores, p, keep)
            assert not p.requires_grad
            (3 * loss + (out * randn(9, *out.shape).to(dtype)).sum()).backward()
        results.append([scores, out, p, loss, q_i.grad, k_i.grad, w.grad, q.grad])
    for exact, found in zip(*results, strict=True):
        assert exact is not None
        assert found is not None
        assert (found - exact).abs().max() <= 2e-5 * exact.abs().max().clamp(min=1.0)


@settings(deadline=None, max_examples=6)
@given(seeds, st.integers(1, 2), sizes, st.integers(1, 2), st.integers(1, 3), st.booleans())
def test_groups_of_heads(seed: int, batch: int, length: int, groups: int, repeats: int, head_major: bool) -> None:
    """Queries, keys and values of their own, keys and values shared by a group, any order of memory."""
    keep, n_heads = mask(seed, batch, length, True), groups * repeats
    results = []
    for fused in (False, True):
        tensors = []
        for i, heads in enumerate((n_heads, groups, groups)):
            shape = (batch, heads, length, 5) if head_major else (batch, length, heads, 5)
            x = randn(seed + i, batch, length, heads, 5).to(torch.float32 if fused else torch.float64)
            x = torch.empty(shape, dtype=x.dtype).transpose(1, 2).copy_(x) if head_major else x
            tensors.append(x.requires_grad_())
        with ops.interpreted(), ops.unfused(not fused):
            out, p = masked.attention(*tensors, keep)
            (out * randn(9, *out.shape).to(out)).sum().backward()
        results.append([out, p, *(x.grad for x in tensors)])
    for exact, found in zip(*results, strict=True):
        assert exact is not None
        assert found is not None
        assert (found - exact).abs().max() <= 2e-5 * exact.abs().max().clamp(min=1.0)


@pytest.mark.parametrize(
    ("n_heads", "head_dim", "length"), others_slow([(1, 4, 5), (3, 12, 19), (4, 64, 33), (8, 4, 3)], 0, 1)
)
def test_the_indexer(n_heads: int, head_dim: int, length: int) -> None:
    """Scores and the gradient of every parameter; columns are padded to a multiple of 8 where they are not one."""
    indexer_fields = {"n_heads": n_heads, "head_dim": head_dim}
    spec = validate({"model": {"d_model": 16, "n_heads": 2}, "attention": {"indexer": indexer_fields}})
    x, probe = randn(0, 2, length, 16), randn(1, 2, length, length)
    results = []
    for fused in (False, True):
        indexer = LightningIndexer(spec, spec.attention)  # type: ignore[arg-type]
        for i, parameter in enumerate(indexer.parameters()):
            parameter.data = randn(i + 2, *parameter.shape)
        wide = torch.float32 if fused else torch.float64
        with ops.interpreted(), ops.unfused(not fused):
            scores = indexer.to(wide)(x.to(wide), AttentionContext(torch.arange(length)))
            (scores * probe).sum().backward()
        results.append([scores, *(parameter.grad for parameter in indexer.parameters())])
    for exact, found in zip(*results, strict=True):
        assert exact is not None
        assert found is not None
        assert (found - exact).abs().max() <= 2e-5 * exact.abs().max().clamp(min=1.0)


def test_bf16_stays_bf16_where_products_follow() -> None:
    q, keep = randn(0, 2, 8, 2, 4, dtype=torch.bfloat16), mask(0, 2, 8, False)
    with ops.interpreted():
        out, p = masked.attention(q, q, q, keep)
        scores = masked.index_scores(q, q[:, :, 0], q[..., 0])
    exact, exact_p = masked.attention(q.double(), q.double(), q.double(), keep)
    assert (out.dtype, p.dtype, scores.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert (out.double() - exact).abs().max() < 0.05
    assert (p.double() - exact_p).abs().max() < 0.01


def test_rows_too_long_for_a_program_take_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "WIDEST_ROW", 7)
    with ops.interpreted():
        assert masked._fused(7, torch.ones(2))
        assert not masked._fused(8, torch.ones(2))

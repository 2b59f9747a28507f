"""The reference kernels against plain loops in fp64; the masked against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa import masked, reference
from dsabench.attention.dsa.indexer import LightningIndexer
from dsabench.attention.rotary import rotation
from dsabench.ops import rotate
from dsabench.spec.run import validate


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_index_scores_by_a_plain_loop() -> None:
    q, k, w = random(2, 7, 3, 4), random(2, 7, 4, seed=1), random(2, 7, 3, seed=2)
    expected = torch.zeros(2, 7, 7, dtype=torch.float64)
    for b in range(2):
        for t in range(7):
            for s in range(7):
                for j in range(3):
                    expected[b, t, s] += w[b, t, j] * max(0.0, float(q[b, t, j] @ k[b, s]))
    torch.testing.assert_close(reference.index_scores(q, k, w), expected)
    torch.testing.assert_close(masked.index_scores(q, k, w), expected)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 24),
    k=st.integers(1, 30),
    levels=st.integers(1, 6),
    documents=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_selection_is_the_first_k_of_a_stable_sort(
    length: int, k: int, levels: int, documents: bool, seed: int
) -> None:
    """Scores on few levels, so ties are everywhere, signed zeros among them; the mask holds the same set."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-levels, levels + 1, (2, length, length), generator=generator).double() * 0.5
    scores = torch.where(torch.rand(scores.shape, generator=generator) < 0.3, scores * -0.0, scores)
    ids = (torch.rand(2, length, generator=generator) < 0.2).cumsum(1) if documents else None
    allowed = reference.allowed_keys(length, ids, scores.device)
    selected = reference.select_top_k(scores, allowed, k)
    mask = masked.selection_mask(scores, allowed, k)
    may_see = allowed.expand_as(scores)
    for b in range(2):
        for t in range(length):
            keys = [s for s in range(length) if may_see[b, t, s]]
            best = sorted(keys, key=lambda s: (-float(scores[b, t, s]), s))[:k]
            padding = [reference.EMPTY] * (min(k, length) - len(best))
            assert selected[b, t].tolist() == best + padding
            assert mask[b, t].nonzero().flatten().tolist() == sorted(best)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_reference_attention_by_a_plain_loop(n_kv_heads: int) -> None:
    q, k, v = random(1, 6, 4, 8), random(1, 6, n_kv_heads, 8, seed=1), random(1, 6, n_kv_heads, 8, seed=2)
    selected = torch.tensor([[[0, -1, -1], [1, 0, 5], [0, 2, -1], [3, 4, 1], [4, 0, 2], [5, 4, 3]]])
    out, p = reference.attention(q, k, v, selected)
    for t in range(6):
        keys = [int(s) for s in selected[0, t] if 0 <= s <= t]  # 5 and 4 above the diagonal must be dropped
        for h in range(4):
            group = h * n_kv_heads // 4
            logits = [float(q[0, t, h] @ k[0, s, group]) / math.sqrt(8) for s in keys]
            weights = [math.exp(x) / sum(map(math.exp, logits)) for x in logits]
            expected = sum(w * v[0, s, group] for w, s in zip(weights, keys, strict=True))
            torch.testing.assert_close(out[0, t, h], expected)
    assert p.sum(-1).flatten().tolist() == pytest.approx([1.0] * 6)


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 17),
    k=st.integers(1, 20),
    n_kv_heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 10**6),
)
def test_masked_attention_and_kl_agree_with_the_reference(length: int, k: int, n_kv_heads: int, seed: int) -> None:
    """Outputs, the target, the KL loss, and every gradient, in fp64."""
    tensors = [
        random(2, length, 4, 6, seed=seed),
        random(2, length, n_kv_heads, 6, seed=seed + 1),
        random(2, length, n_kv_heads, 6, seed=seed + 2),
        random(2, length, length, seed=seed + 3),
    ]
    allowed = reference.allowed_keys(length, None, torch.device("cpu"))
    results = []
    for way in ("reference", "masked"):
        q, key, v, scores = (tensor.clone().requires_grad_() for tensor in tensors)
        if way == "reference":
            selected = reference.select_top_k(scores.detach(), allowed, k)
            out, p = reference.attention(q, key, v, selected)
            slots = scores.gather(-1, selected.clamp(min=0))
            kl = reference.indexer_kl(slots, p, selected != reference.EMPTY)
        else:
            keep = masked.selection_mask(scores.detach(), allowed, k)
            out, p = masked.attention(q, key, v, keep)
            kl = reference.indexer_kl(scores, p, keep)
        ((out * random(*out.shape, seed=9)).sum() + kl).backward()
        results.append([out, kl, q.grad, key.grad, v.grad, scores.grad])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_kl_and_its_gradient_by_the_formula() -> None:
    """KL >= 0, 0 at equality, gradient (softmax(I) - p) / (B T), and nothing to the target."""
    scores = random(2, 5, 5).requires_grad_()
    allowed = reference.allowed_keys(5, None, torch.device("cpu"))
    target = random(2, 5, 5, seed=1).masked_fill(~allowed, -math.inf).softmax(-1).requires_grad_()
    loss = reference.indexer_kl(scores, target, allowed)
    loss.backward()
    q = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    p, q = target.detach(), q.detach()
    expected = sum(
        float(p[b, t, s]) * math.log(float(p[b, t, s]) / float(q[b, t, s]))
        for b in range(2)
        for t in range(5)
        for s in range(t + 1)
    )
    assert float(loss.detach()) == pytest.approx(expected / 10)
    torch.testing.assert_close(scores.grad, (q - p) / 10)
    assert target.grad is None
    same = reference.indexer_kl(target.detach().log().masked_fill(~allowed, -9.0), target, allowed)
    assert float(same) == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(width=st.sampled_from([2, 8, 32]), shift=st.integers(0, 500))
def test_rotary_depends_on_distance_alone_and_keeps_norms(width: int, shift: int) -> None:
    q, k = random(1, 6, 2, width), random(1, 6, 2, width, seed=1)

    def dots(offset: int) -> torch.Tensor:
        cos, sin = rotation(torch.arange(6) + offset, width, 10_000.0)
        return torch.einsum("bthd,bshd->bhts", rotate(q, cos, sin), rotate(k, cos, sin))

    torch.testing.assert_close(dots(0), dots(shift), rtol=2e-3, atol=2e-3)
    cos, sin = rotation(torch.arange(6) + shift, width, 10_000.0)
    torch.testing.assert_close(rotate(q, cos, sin).norm(dim=-1), q.norm(dim=-1), rtol=1e-5, atol=1e-6)


def test_rotary_is_multiplication_by_unit_complex_numbers() -> None:
    x = random(1, 4, 1, 8)
    cos, sin = rotation(torch.arange(4), 8, 100.0)
    turned = rotate(x, cos, sin)
    pairs = torch.complex(x[..., :4], x[..., 4:])
    for t in range(4):
        for i in range(4):
            z = pairs[0, t, 0, i] * complex(math.cos(t * 100.0 ** (-i / 4)), math.sin(t * 100.0 ** (-i / 4)))
            assert turned[0, t, 0, i].item() == pytest.approx(z.real.item(), abs=1e-5)
            assert turned[0, t, 0, i + 4].item() == pytest.approx(z.imag.item(), abs=1e-5)


@torch.no_grad()
def test_the_indexer_follows_the_published_recipe() -> None:
    """LayerNorm on the key, rotary on the first half of each head only, weights scaled by J^-1/2 I^-1/2."""
    spec = validate(
        {
            "length": 6,
            "model": {"d_model": 16, "n_heads": 2},
            "attention": {"indexer": {"n_heads": 2, "head_dim": 8}},
        }
    )
    indexer = LightningIndexer(spec, spec.attention)  # type: ignore[arg-type]
    x = random(1, 6, 16).float()
    scores = indexer(x, AttentionContext(torch.arange(6)))
    key = indexer.key(x)
    key = (key - key.mean(-1, keepdim=True)) / (key.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()  # DeepSeek's
    query = indexer.query(x).view(1, 6, 2, 8)
    weight = indexer.weight(x) * 2**-0.5 * 8**-0.5
    for t in range(6):
        for s in range(6):
            total = 0.0
            for j in range(2):
                q, k = query[0, t, j].clone(), key[0, s].clone()
                for vector, position in ((q, t), (k, s)):
                    first, second = vector[:2].clone(), vector[2:4].clone()
                    angle = position * 10_000.0 ** (-torch.arange(2) / 2)
                    vector[:2] = first * angle.cos() - second * angle.sin()
                    vector[2:4] = second * angle.cos() + first * angle.sin()
                total += float(weight[0, t, j]) * max(0.0, float(q @ k))
            assert float(scores[0, t, s]) == pytest.approx(total, abs=1e-5)

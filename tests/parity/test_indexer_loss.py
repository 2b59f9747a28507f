"""The indexer's KL loss and its gradients, in both stages, against what other trainers compute, from their formulas.

Megatron-LM (megatron/core/transformer/experimental_attention_variant/dsa.py, compute_dsa_indexer_loss) and the sparse
indexer backward of cuDNN's front end (docs.nvidia.com/cudnn, "DeepSeek Sparse Attention") agree on it, as does Ascend's
operator SparseLightningIndexerGradKLLoss:

    p[t] = (sum over heads of the attention's probabilities) / their sum            over all keys, or over S[t]
    loss = sum_t sum_s p log(p / softmax(I)) / number of queries
    dI = softmax(I) - p      dw[j] = sum_s dI relu(q[j] . k)      dq[j] = sum_s dI w[j] 1[q[j] . k > 0] k
    dk[s] = sum_t sum_j dI w[j] 1[q[j] . k > 0] q[j]

They are written out here in NumPy, query by query, in fp64.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from parity import Parity
from torch import Tensor

from dsabench.attention.dsa import masked, reference

LOSS = Parity("indexer's KL loss, both stages", "Megatron-LM's and cuDNN front end's formula", 1e-10)
GRADIENTS = Parity(
    "gradients of the KL loss of index q, k and w, both stages",
    "cuDNN front end's and Ascend's formula",
    1e-10,
)

Array = NDArray[np.float64]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def theirs(q: Array, k: Array, w: Array, main_q: Array, main_k: Array, kept: list[list[int]]) -> tuple[Array, ...]:
    """Loss, and gradients of q (T, J, I), k (T, I) and w (T, J), of one row. kept: the keys of each query."""
    dq, dk, dw, total = np.zeros_like(q), np.zeros_like(k), np.zeros_like(w), 0.0
    for t, keys in enumerate(kept):
        heads = softmax(np.einsum("hd,shd->hs", main_q[t], main_k[keys]) * main_q.shape[-1] ** -0.5)
        p = heads.sum(0)
        p /= p.sum()
        dots = q[t] @ k[keys].T  # (J, S)
        share = softmax(w[t] @ np.maximum(dots, 0))
        total += float((p * np.log(p / share)).sum())
        d_score, open_ = share - p, dots > 0
        dw[t] = (d_score * np.maximum(dots, 0)).sum(1)
        dq[t] = (d_score * open_ * w[t][:, None]) @ k[keys]
        dk[keys] += (d_score * open_ * w[t][:, None]).T @ q[t]
    n = len(kept)
    return np.asarray(total / n), dq / n, dk / n, dw / n


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("stage", ["dense", "sparse"])
@pytest.mark.parametrize(("length", "k", "n_index", "n_heads"), [(17, 4, 3, 2), (9, 9, 1, 4), (24, 1, 2, 1)])
def test_loss_and_gradients(stage: str, length: int, k: int, n_index: int, n_heads: int) -> None:
    q, keys, w = (
        drawn(i, 1, length, *rest).requires_grad_() for i, rest in enumerate([(n_index, 6), (6,), (n_index,)])
    )
    main_q, main_k, main_v = (drawn(i + 3, 1, length, n_heads, 8) for i in range(3))
    allowed = reference.allowed_keys(length, None, q.device)
    scores = reference.index_scores(q, keys, w)
    keep = allowed.expand(1, -1, -1) if stage == "dense" else masked.selection_mask(scores.detach(), allowed, k)
    _, p = masked.attention(main_q, main_k, main_v, keep)
    loss = reference.indexer_kl(scores, p, keep)
    found = (loss, *torch.autograd.grad(loss, (q, keys, w)))
    kept = [torch.nonzero(row).flatten().tolist() for row in keep[0]]
    assert [len(row) for row in kept] == [t + 1 if stage == "dense" else min(k, t + 1) for t in range(length)]
    expected = theirs(*(x[0].detach().numpy() for x in (q, keys, w, main_q, main_k)), kept)
    LOSS.check(found[0], expected[0])
    for ours, other in zip(found[1:], expected[1:], strict=True):
        GRADIENTS.check(ours[0], other)
    if stage == "sparse":  # by slots, as kernels and the reference backend compute it
        selected = reference.select_top_k(scores.detach(), allowed, k)
        filled = selected >= 0
        _, p_slots = reference.attention(main_q, main_k, main_v, selected)
        slots = scores.gather(-1, selected.clamp(min=0))
        LOSS.check(reference.indexer_kl(slots, p_slots, filled), expected[0])


def test_a_target_that_is_not_normalised_is_seen() -> None:
    """The sum over heads in place of their mean: the commonest way to get it wrong."""
    q, keys, w = drawn(0, 1, 9, 2, 6), drawn(1, 1, 9, 6), drawn(2, 1, 9, 2)
    main_q, main_k = drawn(3, 1, 9, 3, 8), drawn(4, 1, 9, 3, 8)
    allowed = reference.allowed_keys(9, None, q.device)
    _, p = masked.attention(main_q, main_k, main_k, allowed)
    kept = [list(range(t + 1)) for t in range(9)]
    expected = theirs(*(x[0].numpy() for x in (q, keys, w, main_q, main_k)), kept)[0]
    scores = reference.index_scores(q, keys, w)
    assert LOSS.difference(reference.indexer_kl(scores, p, allowed), expected) < 1e-10
    assert LOSS.difference(reference.indexer_kl(scores, 3 * p, allowed), expected) > 0.1

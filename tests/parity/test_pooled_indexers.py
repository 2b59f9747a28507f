"""DSA's pools against the released indexers of `transformers`: Qwen3.8-Flash-Next's (QSA) and GLM-5.3-Flash's.

Both have an indexer of their own, so that scores are theirs; how they are pooled (QSA), which pool a query may see,
what is selected of it, and the tail are compared.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from parity import Parity
from torch import Tensor

from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa.reference import index_scores
from dsabench.attention.pooled_dsa import reference
from dsabench.attention.pooled_dsa.pools import Pools, pooled, pools_of
from dsabench.ops import rotate

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded: classes alone are used

WIDTH, LENGTH, HEADS, HEAD = 24, 41, 6, 16

QSA = Parity("tokens that pooled_dsa selects", "`transformers` Qwen4ExpTextQSAIndexer (Qwen3.8-Flash-Next)", 0)
GLM = Parity("tokens of pooled_dsa's pools and tail", "`transformers` Glm5NextTextIndexer (GLM-5.3-Flash)", 0)


def mask_of(scores_BTC: Tensor, pools: Pools, n_pools: int) -> Tensor:
    """(B, T, S) True at the selected tokens."""
    selected_BTK = reference.tokens_of(reference.select_pools(scores_BTC, pools, n_pools), pools)
    mask_BTS = torch.zeros(*selected_BTK.shape[:2], LENGTH + 1, dtype=torch.bool)
    return mask_BTS.scatter(-1, torch.where(selected_BTK < 0, LENGTH, selected_BTK), True)[..., :LENGTH]


def untied(found: Tensor, expected: Tensor, scores_BTC: Tensor, pools: Pools, n_pools: int) -> tuple[Tensor, Tensor]:
    """Both in every row but those whose worst kept score is as good as the best one left: relu makes such ties, and
    the library leaves open which of them it keeps."""
    best = scores_BTC.masked_fill(~pools.seen(), -torch.inf).sort(-1, descending=True).values
    tied = best[..., n_pools - 1] - best[..., n_pools] < 1e-5  # less of -inf - -inf is False
    assert int(tied.sum()) < tied.numel() / 5
    return found[~tied], expected[~tied]


@torch.no_grad()
@pytest.mark.parametrize(("n", "budget"), [(4, 16), (2, 6), (1, 5), (8, 8)])
def test_qsa_selects_the_same_tokens(n: int, budget: int) -> None:
    from transformers.models.qwen4_exp.modeling_qwen4_exp import Qwen4ExpTextQSAIndexer

    class Config:
        indexer_n_heads, indexer_kv_heads, indexer_head_dim = HEADS, 1, HEAD
        indexer_budget, indexer_compress_ratio, hidden_size, rms_norm_eps = budget, n, WIDTH, 1e-6

    torch.manual_seed(n)
    theirs: Any = Qwen4ExpTextQSAIndexer(Config(), 0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, LENGTH, WIDTH)
    context = AttentionContext(torch.arange(LENGTH))
    cos, sin = context.rotation(HEAD // 2, 1e4)
    angles = tuple(torch.cat([part, part], -1).expand(2, -1, -1) for part in (cos, sin))
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    expected = theirs(x, angles, causal, None)[:, 0]

    pools = pools_of(context, n)
    q, k = theirs.index_qk_proj(x).split([HEADS * HEAD, HEAD], dim=-1)
    q = rotate(theirs.q_layernorm(q.unflatten(-1, (HEADS, HEAD))), cos, sin)
    k = theirs.k_layernorm(pooled(k, pools).mean(2))
    first = pools.begin_BC[0]
    k = rotate(k[:, :, None], cos[first], sin[first])[:, :, 0]
    scores = index_scores(q, k, torch.full((2, LENGTH, HEADS), HEAD**-0.5))
    found = mask_of(scores, pools, budget // n)
    QSA.check(*untied(found, expected, scores, pools, budget // n))


@torch.no_grad()
@pytest.mark.parametrize(("n", "budget"), [(4, 16), (2, 6), (8, 8)])
def test_glm_selects_the_same_tokens(n: int, budget: int) -> None:
    """Its pools are learned sums; whatever they are, they hold and are seen as ours."""
    from transformers.models.glm5_next import modeling_glm5_next as glm

    class Config:
        index_n_heads, index_head_dim, index_topk, hidden_size, q_lora_rank = HEADS, HEAD, budget, WIDTH, WIDTH
        index_kpool, index_kpool_always_select_tail, qk_rope_head_dim = n, True, 0

    torch.manual_seed(n)
    theirs: Any = glm.Glm5NextTextIndexer(Config(), 0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, LENGTH, WIDTH)
    listed = theirs(x, x, torch.ones(2, LENGTH, dtype=torch.bool), None).long()
    expected = torch.zeros(2, LENGTH, LENGTH + 1, dtype=torch.bool).scatter(
        -1, torch.where(listed < 0, LENGTH, listed), True
    )[..., :LENGTH]

    pools = pools_of(AttentionContext(torch.arange(LENGTH)), n)
    keys, gates = theirs.k_norm(theirs.wk(x)), x @ theirs.index_kpool_compress_gate.T
    shares = (pooled(gates, pools) + theirs.index_kpool_compress_ape).softmax(2)
    q = theirs.wq_b(x).unflatten(-1, (HEADS, HEAD))
    w = theirs.weights_proj(x) * (HEADS * HEAD) ** -0.5
    scores = index_scores(q, (shares * pooled(keys, pools)).sum(2), w)
    found = mask_of(scores, pools, budget // n)
    GLM.check(*untied(found, expected, scores, pools, budget // n))

"""CSA against attention-gym's reference test case, rebuilt from its formula, and the sources' other facts.

The test case: github.com/meta-pytorch/attention-gym, test/test_selected_attention_matches_csa_reference.py (2026-08).
Its one head of keys is its values, its gate and bias are one number a token, and RMSNorm is over queries' keys and
values alike; entries of 2 tokens, a window of 2, and one or no entry kept. Where this model has weights of its own for
keys and values the same weights stand for both here, and rotations are left out on both sides: base and YaRN differ.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from parity import Parity
from torch import Tensor

from dsabench.attention.base import AttentionContext
from dsabench.attention.csa import reference
from dsabench.attention.csa.compressed_entries import Entries, entries_of
from dsabench.attention.csa.compressor import Compressor
from dsabench.attention.dsa import masked

RATIO, WINDOW, WIDTH, HEADS = 2, 2, 4, 2

ENTRIES = Parity("compressed entries of CSA", "attention-gym's test of CSA, from its formula", 1e-4)
CSA = Parity("CSA: window, chosen entries, sink", "attention-gym's test of CSA, from its formula", 1e-4)


def expected_entries(c: Tensor, z: Tensor, b: Tensor, previous: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """(E, D): of block i sum of softmax(z + b) c over its tokens with (c, z, b), and the block before it with
    `previous`; the last block may be short."""
    found = []
    for begin in range(0, len(c), RATIO):
        own = range(begin, min(begin + RATIO, len(c)))
        before = range(begin - RATIO, begin) if begin else range(0)
        c_p, z_p, b_p = previous
        logits = torch.stack([*(z[s] + b[s - begin] for s in own), *(z_p[s] + b_p[s - begin + RATIO] for s in before)])
        values = torch.stack([*(c[s] for s in own), *(c_p[s] for s in before)])
        found.append((logits.softmax(0) * values).sum(0))
    return torch.stack(found)


def expected_attention(
    q_HTD: Tensor, kv_TD: Tensor, entries_ED: Tensor, scores_TE: Tensor, kept: int, sink_H: Tensor
) -> Tensor:
    """(H, T, D), query by query: a window, the best complete entries, a sink in the denominator."""
    out = torch.zeros_like(q_HTD)
    for t in range(q_HTD.shape[1]):
        complete = (t + 1) // RATIO
        order = scores_TE[t, :complete].argsort(descending=True, stable=True)[:kept]
        rows = torch.cat([entries_ED[order], kv_TD[max(0, t - WINDOW + 1) : t + 1]])
        for h in range(q_HTD.shape[0]):
            weight = (rows @ q_HTD[h, t] / WIDTH**0.5).exp()
            out[h, t] = (weight[:, None] * rows).sum(0) / (weight.sum() + sink_H[h].exp())
    return out


@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("length", [5, 6, 11])
@pytest.mark.parametrize("seed", range(3))
def test_csa_is_the_reference_of_attention_gym(kept: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    d_model = 8
    compressor = Compressor(d_model, 1, WIDTH, RATIO, True, 1e-6)
    for parameter in compressor.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    with torch.no_grad():
        assert compressor.value is not None and compressor.value_norm is not None
        compressor.value.weight.copy_(compressor.key.weight)
        compressor.value_norm.weight.copy_(compressor.key_norm.weight)
        compressor.gate.weight.copy_(_one_for_all_channels(compressor.gate.weight))
        compressor.position_bias.copy_(_one_for_all_channels(compressor.position_bias.T).T)
    x = torch.randn(1, length, d_model, generator=generator)
    q, kv = (torch.randn(1, length, n, WIDTH, generator=generator) for n in (HEADS, 1))
    q_index, w_index = (torch.randn(*s, generator=generator) for s in ((1, length, 1, WIDTH), (1, length, 1)))
    k_index = torch.randn(1, length // RATIO, WIDTH, generator=generator)
    sink = torch.randn(HEADS, generator=generator)
    kv = F.rms_norm(kv, (WIDTH,), eps=1e-6)

    entries = entries_of(AttentionContext(torch.arange(length)), RATIO)
    unturned = (torch.ones(length, WIDTH // 2), torch.zeros(length, WIDTH // 2))
    with torch.no_grad():
        key, value = compressor(x, entries, unturned)
        assert value is not None and torch.equal(key, value)
        scores = reference.index_scores(q_index, k_index, w_index * WIDTH**-0.5)
        keep = masked.selection_mask(scores, entries.visible(), kept) if kept else torch.zeros_like(entries.visible())
        window = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - WINDOW)
        found, _ = reference.attention(q, (kv, key), (kv, value), (window, keep), sink)

        previous, own = (
            (w(x)[0, :, a:b], z(x)[0, :, a : a + 1], compressor.position_bias[:, a : a + 1])
            for a, b in ((0, WIDTH), (WIDTH, 2 * WIDTH))
            for w, z in [(compressor.key, compressor.gate)]
        )
        rows = F.rms_norm(expected_entries(*own, previous), (WIDTH,), compressor.key_norm.weight, 1e-6)
        complete = length // RATIO
        ENTRIES.check(key[0, :, 0], rows[:complete])
        expected = expected_attention(q[0].transpose(0, 1), kv[0, :, 0], rows[:complete], scores[0], kept, sink)
    CSA.check(found[0].transpose(0, 1), expected)


def _one_for_all_channels(weight_CD: Tensor) -> Tensor:
    """Each copy's first row for all of its channels: a gate that is one number a token."""
    return torch.cat([part[:1].expand(WIDTH, -1) for part in weight_CD.split(WIDTH)])


def test_the_completed_blocks_are_those_of_attention_gym() -> None:
    """(t + 1) // m of them: a query that ends a block reads that block's entry."""
    entries: Entries = entries_of(AttentionContext(torch.arange(11)), 4)
    assert entries.visible()[0].sum(-1).tolist() == [(t + 1) // 4 for t in range(11)]

"""Dense attention of packed documents as sequences: where they begin, and that it is what masks give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import varlen

from dsabench.attention import scaled_dot_product


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=6), min_size=1, max_size=4), st.integers(0, 3))
def test_sequences_are_the_documents(rows: list[list[int]], spare: int) -> None:
    """Every row's documents in order, and all others empty."""
    length = max(map(sum, rows))
    rows = [[*row, length - sum(row)] if sum(row) < length else row for row in rows]
    most = max(map(len, rows)) + spare
    ids_BT = torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in rows])
    ends = scaled_dot_product.sequence_ends(ids_BT.int(), most)
    assert ends.dtype == torch.int32
    assert ends[0] == 0 and ends[-1] == ids_BT.numel()
    sizes = [size.tolist() for size in ends.diff().split(most)]
    assert sizes == [row + [0] * (most - len(row)) for row in rows]


def attend_one_by_one(
    q_NHD: Tensor, k_NHD: Tensor, v_NHD: Tensor, ends: Tensor, ends_k: Tensor, longest: int, longest_k: int, **how: Any
) -> Tensor:
    """What torch.nn.attention.varlen.varlen_attn computes."""
    assert how in ({"window_size": (-1, 0)}, {"is_causal": True})
    assert torch.equal(ends, ends_k) and longest == longest_k and longest >= int(ends.diff().max())
    parts = []
    for q, k, v in zip(*(x.tensor_split(ends[1:-1].long()) for x in (q_NHD, k_NHD, v_NHD)), strict=True):
        scores = torch.einsum("thd,shd->hts", q, k) * q.shape[-1] ** -0.5
        later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        parts.append(torch.einsum("hts,shd->thd", scores.masked_fill(later, -torch.inf).softmax(-1), v))
    return torch.cat(parts)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_sequences_attend_as_masks_do(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", attend_one_by_one)
    generator = torch.Generator().manual_seed(0)
    ids_BT = (torch.rand(3, 40, generator=generator) < 0.1).cumsum(1)
    ids_BT -= ids_BT[:, :1]
    q, k, v = (torch.randn(3, 40, heads, 8, generator=generator, dtype=torch.float64) for heads in (4, groups, groups))
    masks = scaled_dot_product.attention(q, k, v, ids_BT, 40)
    monkeypatch.setattr(scaled_dot_product, "_is_for_flash", lambda q_BTHD: True)
    torch.testing.assert_close(scaled_dot_product.attention(q, k, v, ids_BT, 40), masks)
    torch.testing.assert_close(scaled_dot_product.attention(q, k, v, ids_BT), masks)

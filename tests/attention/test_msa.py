"""MSA: the blocks that each KV head keeps, its loss, and the leaks that blocks could open."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsabench.attention.base import AttentionContext
from dsabench.attention.msa import block_lists, reference
from dsabench.attention.msa.layer import MSA
from dsabench.errors import SpecError
from dsabench.spec.run import RunSpec, validate
from dsabench.testing import check_capture, check_causal, check_documents_are_separate, check_gradients

SMALL: dict[str, Any] = {"kind": "msa", "block_size": 4, "top_k_blocks": 2, "index_branch": {"head_dim": 8}}


def spec_of(length: int = 20, groups: int = 2, **fields: Any) -> RunSpec:
    model = {"d_model": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": groups, "d_ff": 24}
    return validate({"length": length, "attention": {**SMALL, **fields}, "model": model})


def layer_of(spec: RunSpec) -> MSA:
    module = MSA(spec, 0)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return module


def ids_of(length: int, seed: int) -> Tensor:
    return (torch.rand(2, length, generator=torch.Generator().manual_seed(seed)) < 0.15).long().cumsum(1)


sizes = st.tuples(st.integers(1, 30), st.integers(1, 7), st.integers(1, 4), st.integers(0, 2), st.integers(0, 99))


@given(size=sizes, packed=st.booleans(), slab=st.sampled_from([1, 60, 2**26]))
@settings(max_examples=60, deadline=None)
def test_kept_blocks_are_the_best_and_the_nearest(
    size: tuple[int, int, int, int, int], packed: bool, slab: int
) -> None:
    """Block by block, by counting; the lists of the streaming path hold the same keys."""
    length, block, kept, local, seed = size
    local = min(local, kept)
    spec = spec_of(max(length, 2), block_size=block, top_k_blocks=kept, local_blocks=local)
    module, generator = layer_of(spec), torch.Generator().manual_seed(seed)
    q, k = (torch.randn(4, length, 8, generator=generator) for _ in range(2))
    k = k[::2].repeat_interleave(2, 0)
    ids = ids_of(length, seed) if packed else None
    context = AttentionContext(torch.arange(length), document_ids_BT=ids)
    allowed = context.allowed if ids is None else context.allowed.repeat_interleave(2, 0)
    scores = reference.token_scores(q, k)
    found = module.selected(scores, allowed)
    for row in range(4):
        may = allowed if allowed.dim() == 2 else allowed[row]
        for t in range(length):
            blocks = sorted({s // block for s in range(t + 1) if may[t, s]})
            best = {
                b: max(float(scores[row, t, s]) for s in range(t + 1) if s // block == b and may[t, s]) for b in blocks
            }
            ranked = sorted(blocks, key=lambda b, best=best, t=t: (b <= t // block - local, -best[b], b))  # type: ignore[misc]
            chosen = set(ranked[:kept])
            expected = [s for s in range(t + 1) if s // block in chosen and may[t, s]]
            assert found[row, t].nonzero().flatten().tolist() == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_lists, "SLAB_PAIRS", slab)
        lists = block_lists.lists(q, k, module.config, context)
    members = torch.zeros(4, length, length + 1).scatter(-1, torch.where(lists < 0, length, lists).long(), 1.0)
    assert torch.equal(members[..., :-1] > 0, found)
    if not packed:
        assert all(row == sorted(row, key=lambda s: (s < 0, s)) for row in lists.flatten(0, 1).tolist())


@pytest.mark.parametrize("length", [1, 3, 4, 9, 20])
@pytest.mark.parametrize("kept", [1, 2, 9])
def test_keys_read_and_flops_count_one_kv_heads_keys(length: int, kept: int) -> None:
    spec = spec_of(max(2, length), top_k_blocks=kept)
    module = layer_of(spec)
    scores = torch.randn(1, length, length, generator=torch.Generator().manual_seed(0))
    found = module.selected(scores, torch.ones(length, length, dtype=torch.bool).tril()).sum(-1)[0]
    assert [module.config.keys_read(t + 1) for t in range(length)] == found.tolist()


def test_the_loss_is_the_kl_of_each_kv_head() -> None:
    """By the formula of the released training code: softmax of scores / sqrt(I), mean over a group's heads, over groups
    and over queries."""
    module, x = layer_of(spec_of()), torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(2))
    context = AttentionContext(torch.arange(20))
    loss = module(x, context).aux_loss
    assert loss is not None
    with torch.no_grad():
        q, k, _ = module.projections.heads(x, context)
        scores = reference.token_scores(*module.indexer.heads(x, context))
        kept = module.selected(scores, context.allowed)
        total = 0.0
        for group in range(2):
            for t in range(20):
                s = kept[group, t].nonzero().flatten()
                heads = q[0, t, 2 * group : 2 * group + 2] @ k[0, s, group].T / q.shape[-1] ** 0.5
                p = heads.softmax(-1).mean(0)
                student = (scores[group, t, s] / 8**0.5).log_softmax(-1)
                total += float((p * (p.log() - student)).sum())
    assert float(loss.detach()) == pytest.approx(total / 40, rel=1e-4)


def test_kv_heads_select_apart() -> None:
    module, x = layer_of(spec_of(top_k_blocks=2, local_blocks=0)), torch.randn(1, 20, 32)
    context = AttentionContext(torch.arange(20))
    scores = reference.token_scores(*module.indexer.heads(x, context)).detach()
    kept = module.selected(scores, context.allowed)
    assert not torch.equal(kept[0], kept[1])


def test_more_local_blocks_than_are_kept_are_refused() -> None:
    with pytest.raises(SpecError, match="local_blocks = 3 is more than top_k_blocks = 2"):
        spec_of(local_blocks=3)


# Planted defects.


def test_a_block_score_that_sees_the_future_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest score of the whole block: its tokens after the query decide whether the query keeps it."""
    honest = reference.block_scores

    def whole(scores: Tensor, allowed: Tensor, size: int) -> tuple[Tensor, Tensor]:
        return honest(scores, torch.ones_like(allowed), size)[0], honest(scores, allowed, size)[1]

    monkeypatch.setattr(reference, "block_scores", whole)
    with pytest.raises(AssertionError, match="looks ahead"):
        check_causal(spec_of(local_blocks=0, top_k_blocks=1))


def test_the_rest_of_the_own_block_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept block read whole, past the query."""
    monkeypatch.setattr(
        reference,
        "keys_of",
        lambda blocks, allowed, size: blocks.repeat_interleave(size, -1)[..., : allowed.shape[-1]],
    )
    with pytest.raises(AssertionError, match="looks ahead"):
        check_causal(spec_of())
    with pytest.raises(AssertionError, match=r"selects a later key|query 0 selects"):
        check_capture(spec_of())


def test_a_block_of_two_documents_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block chosen by the score of another document's token in it."""
    honest = reference.block_scores

    def shared(scores: Tensor, allowed: Tensor, size: int) -> tuple[Tensor, Tensor]:
        causal = torch.ones(allowed.shape[-2:], dtype=torch.bool).tril()
        return honest(scores, causal, size)[0], honest(scores, allowed, size)[1]

    monkeypatch.setattr(reference, "block_scores", shared)
    with pytest.raises(AssertionError, match="across documents"):
        check_documents_are_separate(spec_of(block_size=4, length=20, top_k_blocks=1, local_blocks=0))


def test_an_attached_index_branch_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "detach", lambda self: self)
    with pytest.raises(AssertionError, match="the own loss reaches"):
        check_gradients(spec_of())

"""Native sparse attention: its entries, scores and blocks against loops, and planted defects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nsa_layers import layer_of, spec_of
from pooled_layers import ids_of, x_of
from torch import Tensor

from dsabench.attention.base import AttentionContext
from dsabench.attention.nsa import layer, reference
from dsabench.attention.nsa.compression import Compression
from dsabench.attention.nsa.layer import NSA
from dsabench.attention.pooled_dsa.pools import Pools, pools_of
from dsabench.attention.registry import variant
from dsabench.audit import gate
from dsabench.engine.device import resolve
from dsabench.errors import LeakError, SpecError
from dsabench.testing import check_capture, check_causal, check_documents_are_separate

sizes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)).map(
    lambda drawn: (drawn[0], drawn[0] * drawn[1], drawn[0] * drawn[1] * drawn[2])
)
"""d, l and l'."""


@given(size=sizes, length=st.integers(12, 40), packed=st.booleans(), seed=st.integers(0, 99), count=st.integers(3, 6))
@settings(max_examples=50, deadline=None)
def test_scores_and_blocks_are_those_of_the_papers_sums(
    size: tuple[int, int, int], length: int, packed: bool, seed: int, count: int
) -> None:
    """score[j] = sum over m < l'/d and n < l/d of p[(l'/d) j - m - n], indices from 1 (arXiv 2502.11089, equation 9),
    in each document by itself; then the blocks by a sort."""
    d, l, large = size  # noqa: E741
    ids = ids_of(length, seed, rows=1, chance=0.05) if packed else None
    context = AttentionContext(torch.arange(length), document_ids_BT=ids)
    entries, blocks = pools_of(context, l, d), pools_of(context, large)
    p = torch.rand(1, length, 2, entries.begin_BC.shape[1], generator=torch.Generator().manual_seed(seed)).double()
    p = p * entries.seen()[:, :, None]
    scores = reference.block_scores(p, entries, blocks)
    chosen = reference.select_blocks(scores, blocks, slice(0, length), count, 1, 2)
    kept = reference.selected_tokens(chosen, blocks, blocks.pool_BT())
    ids_T = [0] * length if ids is None else ids[0].tolist()
    for t in range(length):
        start = ids_T.index(ids_T[t])
        own, complete = (t - start) // large, (t - start + 1) // large
        before, first = int(entries.before_BT[0, t]), int(blocks.before_BT[0, t])
        visible = int(entries.visible_BT[0, t])
        for group in range(2):
            mine = []
            for j in range(1, complete + 1):
                at = [large // d * j - m - n for m in range(large // d) for n in range(l // d)]
                mine.append(sum(float(p[0, t, group, before + i - 1]) for i in at if 1 <= i <= visible))
            assert scores[0, t, group, first : first + complete].tolist() == pytest.approx(mine)
            forced = {0, own, own - 1} & set(range(own + 1))
            rest = sorted(set(range(own + 1)) - forced, key=lambda j: -mine[j])
            expected = forced | set(rest[: count - len(forced)])
            tokens = {start + j * large + i for j in expected for i in range(large)}
            assert set(kept[0, group, t].nonzero().flatten().tolist()) == {s for s in tokens if s <= t}


def test_the_compressed_branch_sees_whole_blocks_of_the_past() -> None:
    """Each query by itself, over the entries whose last token is no later."""
    context = AttentionContext(torch.arange(13))
    entries = pools_of(context, 4, 2)
    generator = torch.Generator().manual_seed(0)
    q, (k, v) = (
        torch.randn(1, 13, 4, 8, generator=generator),
        torch.randn(2, 1, 6, 2, 8, generator=generator),
    )
    out, p = reference.compressed(q, k, v, entries.seen())
    for t in range(13):
        count = max(0, (t + 1 - 4) // 2 + 1)
        for head in range(4):
            weights = (q[0, t, head] @ k[0, :count, head // 2].T / 8**0.5).softmax(-1)
            torch.testing.assert_close(out[0, t, head], weights @ v[0, :count, head // 2])
        total = float(p[0, t, 0].sum())
        assert total == pytest.approx(2.0 if count else 0.0) and bool((p[0, t, :, count:] == 0).all())


def test_a_packed_document_is_what_it_is_by_itself() -> None:
    module, x = layer_of(spec_of(24)).eval(), x_of(24, rows=1)
    ids = torch.tensor([[0] * 5 + [1] * 2 + [2] * 17])
    with torch.no_grad():
        packed = module(x, AttentionContext(torch.arange(24), document_ids_BT=ids)).out_BTD[:, 7:]
        alone = module(x[:, 7:], AttentionContext(torch.arange(7, 24))).out_BTD
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)


def test_kv_heads_select_by_themselves_and_their_union_is_captured() -> None:
    spec = spec_of(40)
    module, x = layer_of(spec).eval(), x_of(40, rows=1)
    kept: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        honest = reference.selected_tokens
        patch.setattr(reference, "selected_tokens", lambda *args: kept.append(honest(*args)) or kept[-1])
        context = AttentionContext(torch.arange(40), capture={})
        module(x, context)
    assert context.capture is not None
    (keep_BGTS,) = kept
    assert not torch.equal(keep_BGTS[:, 0], keep_BGTS[:, 1])
    for t, row in enumerate(context.capture[0].selected_BTK[0].tolist()):
        keys = [s for s in row if s >= 0]
        assert keys == keep_BGTS[0, :, t].any(0).nonzero().flatten().tolist()
        assert all({b, b + 1, b + 2, b + 3} <= {*keys} or b not in keys for b in range(0, (t + 1) // 4 * 4, 4))
    for group in range(2):  # as many as the settings say
        for t in range(40):
            assert int(keep_BGTS[0, group, t].sum()) == spec.attention.selected_between(t, 40)[0]


def test_keys_read_are_those_of_all_branches() -> None:
    spec = spec_of(41).attention
    context = AttentionContext(torch.arange(41))
    entries = int(pools_of(context, 4, 2).visible_BT[0, -1])
    assert spec.keys_read(41) == entries + (3 * 4 + 1) + 3 == 19 + 16


@given(length=st.integers(12, 60), size=sizes, count=st.integers(3, 6), window=st.integers(2, 70))
@settings(max_examples=40, deadline=None)
def test_flops_count_every_pair(length: int, size: tuple[int, int, int], count: int, window: int) -> None:
    d, l, large = size  # noqa: E741
    fields = {"compression_block": l, "compression_stride": d, "selection_block": large, "selected_blocks": count}
    found = variant("nsa")(spec_of(length, window=window, **fields), 0).flops("sparse")
    context = AttentionContext(torch.arange(length))
    entries, blocks = pools_of(context, l, d), pools_of(context, large)
    assert found["compressed branch"] == 12 * 32 * int(entries.visible_BT.sum())
    assert found.get("top-k", 0) == 2 * int(blocks.visible_BT.sum())
    assert found["window branch"] == 12 * 32 * sum(min(t + 1, window) for t in range(length))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compression_stride": 3}, "compression_stride = 3 must divide compression_block = 4"),
        ({"compression_block": 8}, "compression_block must not be larger than selection_block"),
        ({"local_blocks": 4}, "selected_blocks = 4 holds neither initial_blocks = 1 nor local_blocks = 4"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec_of(**fields)


def test_a_block_longer_than_the_window_is_refused() -> None:
    with pytest.raises(SpecError, match=r"compression_block = 4 is longer than the window, length = 3"):
        variant("nsa")(spec_of(3), 0)


# Planted defects.


def later(cut: Pools) -> Pools:
    """A query sees the block that it is inside of."""
    more_BT = (cut.tail_BT <= torch.arange(cut.tail_BT.shape[1])) & (
        cut.before_BT + cut.visible_BT < cut.begin_BC.shape[1]
    )
    return cut._replace(visible_BT=cut.visible_BT + more_BT)


def of_one_document(cut: Pools) -> Pools:
    """A query sees the blocks of documents before its own."""
    return cut._replace(visible_BT=cut.visible_BT + cut.before_BT, before_BT=torch.zeros_like(cut.before_BT))


@pytest.mark.parametrize("which", ["_entries", "_blocks"])
def test_a_block_with_a_future_token_is_caught(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    honest = getattr(NSA, which)
    monkeypatch.setattr(NSA, which, lambda self, context: later(honest(self, context)))
    with pytest.raises(AssertionError, match="looks ahead"):
        check_causal(spec_of())
    gate.forget()
    with pytest.raises(LeakError, match="nsa looks ahead"):
        gate.refuse_leaks(spec_of(), 101, resolve(spec_of().engine))
    gate.forget()


def test_an_entry_of_unfinished_blocks_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compression over tokens that begin one later."""
    honest = Compression.forward
    monkeypatch.setattr(Compression, "forward", lambda self, x, cut: honest(self, torch.roll(x, -1, 1), cut))
    with pytest.raises(AssertionError, match="looks ahead"):
        check_causal(spec_of())


def test_a_gate_that_sees_a_future_token_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = reference.gated
    monkeypatch.setattr(reference, "gated", lambda gates, *branches: honest(torch.roll(gates, -1, 1), *branches))
    with pytest.raises(AssertionError, match="looks ahead"):
        check_causal(spec_of())


@pytest.mark.parametrize("which", ["_entries", "_blocks"])
def test_blocks_of_another_document_are_caught(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    honest = getattr(NSA, which)
    monkeypatch.setattr(NSA, which, lambda self, context: of_one_document(honest(self, context)))
    with pytest.raises(AssertionError, match="across documents"):
        check_documents_are_separate(spec_of())


def test_a_block_across_two_documents_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are cut from the window's first token, whatever the documents."""
    honest = layer.pools_of
    monkeypatch.setattr(layer, "pools_of", lambda context, *n: honest(AttentionContext(context.positions_T), *n))
    with pytest.raises(AssertionError, match="across documents"):
        check_documents_are_separate(spec_of())


def test_a_selection_that_is_not_reported_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest: Any = NSA._capture
    monkeypatch.setattr(
        NSA, "_capture", lambda self, chosen, *rest: honest(self, chosen.masked_fill(chosen < 4, -1), *rest)
    )
    with pytest.raises(AssertionError, match=r"query 0 selects .* with k = 16"):
        check_capture(spec_of())


def test_the_audit_finds_nothing() -> None:
    spec = spec_of(33)
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"packing": "documents"})})
    gate.forget()
    gate.refuse_leaks(spec, 101, resolve(spec.engine))

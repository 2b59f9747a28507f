"""CSA and HCA: where entries lie, what a query reads, and the leaks that compression could open."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsabench.attention.base import Attention, AttentionContext
from dsabench.attention.csa import compressed, compressor, covered, layer
from dsabench.attention.csa import compressed_entries as entries
from dsabench.attention.csa.compressed_entries import Entries, entries_of, from_lanes, to_lanes
from dsabench.attention.registry import variant
from dsabench.spec.run import RunSpec, validate
from dsabench.testing import check_capture, check_causal, check_documents_are_separate, check_gradients

INDEXER = {"n_heads": 2, "head_dim": 8}
CSA: dict[str, Any] = {"kind": "csa", "top_k": 2, "compress_ratio": 3, "sliding_window": 2, "indexer": INDEXER}
HCA: dict[str, Any] = {"kind": "hca", "compress_ratio": 4, "sliding_window": 2}
BOTH = pytest.mark.parametrize("attention", [CSA, HCA], ids=["csa", "hca"])


def spec_of(attention: dict[str, Any], length: int = 20, groups: int = 2) -> RunSpec:
    model = {"d_model": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": groups, "d_ff": 24}
    return validate({"length": length, "attention": attention, "model": model})


def layer_of(spec: RunSpec, seed: int = 0) -> Attention:
    module = variant(spec.attention.kind)(spec, 0)
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return module


def context_of(length: int, ids: Tensor | None = None, **fields: Any) -> AttentionContext:
    return AttentionContext(torch.arange(length), document_ids_BT=ids, **fields)


def ids_of(length: int, seed: int, share: float = 0.15) -> Tensor:
    """Documents of two rows, by chance."""
    return (torch.rand(2, length, generator=torch.Generator().manual_seed(seed)) < share).long().cumsum(1)


def blocks_of(ids_T: list[int], ratio: int) -> list[tuple[list[int], list[int]]]:
    """Tokens of each entry in order, (previous, own), by counting."""
    found, begin = [], 0
    for t in range(len(ids_T)):
        if t and ids_T[t] != ids_T[t - 1]:
            begin = t
        if (t - begin + 1) % ratio == 0:
            own = list(range(t + 1 - ratio, t + 1))
            found.append(([s - ratio for s in own if s - ratio >= begin], own))
    return found


lengths, ratios, seeds = st.integers(1, 40), st.integers(2, 9), st.integers(0, 99)


@given(length=lengths, ratio=ratios, seed=seeds, share=st.sampled_from([0.05, 0.3, 0.9]), packed=st.booleans())
@settings(max_examples=60, deadline=None)
def test_entries_are_whole_blocks_of_one_document(
    length: int, ratio: int, seed: int, share: float, packed: bool
) -> None:
    ids = ids_of(length, seed, share) if packed else None
    found = entries_of(context_of(length, ids), ratio)
    visible, tokens = found.visible(), found.tokens(overlap=True)
    for row in range(2 if packed else 1):
        ids_T = [0] * length if ids is None else ids[row].tolist()
        blocks = blocks_of(ids_T, ratio)
        for entry in range(found.count):
            listed = [s for s in tokens[row, entry].tolist() if s >= 0]
            previous, own = blocks[entry] if entry < len(blocks) else ([], [])
            assert listed == [*previous, *own]
            for t in range(length):
                whole = bool(own) and own[-1] <= t and ids_T[own[-1]] == ids_T[t]
                assert bool(visible[row, t, entry]) == whole, (row, t, entry)


@given(length=lengths, ratio=ratios, seed=seeds, packed=st.booleans())
@settings(max_examples=60, deadline=None)
def test_in_lanes_an_attention_to_entries_is_causal(length: int, ratio: int, seed: int, packed: bool) -> None:
    ids = ids_of(length, seed, 0.2) if packed else None
    found = entries_of(context_of(length, ids), ratio)
    token = torch.arange(1, length + 1).expand(2, -1)[..., None].contiguous()
    lanes = to_lanes(token, found, empty=0)
    assert lanes.shape == (2 * ratio, found.count, 1)
    sees = (found.seen_BT > found.first_BT).expand(2, -1)
    assert torch.equal(from_lanes(lanes, found, empty=0)[..., 0], torch.where(sees, token[..., 0], 0))
    for row, lane, entry in (lanes[..., 0].unflatten(0, (2, ratio)) > 0).nonzero().tolist():
        t = int(lanes.unflatten(0, (2, ratio))[row, lane, entry, 0]) - 1
        mine = row if packed else 0
        assert found.visible()[mine, t].nonzero().max() == entry  # the last that it sees


@given(length=lengths, ratio=ratios, seed=seeds, k=st.integers(1, 5), window=st.integers(1, 9), packed=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_selected_entry_is_drawn_as_all_that_it_is_made_of(
    length: int, ratio: int, seed: int, k: int, window: int, packed: bool
) -> None:
    ids = ids_of(length, seed, 0.2) if packed else None
    found = entries_of(context_of(length, ids), ratio)
    scores = torch.rand(2, length, found.count, generator=torch.Generator().manual_seed(seed))
    selected = layer.dsa_reference.select_top_k(scores, found.visible().expand(2, -1, -1), k)
    covers = covered.covered_tokens(selected, found, window)
    for row in range(2):
        ids_T = [0] * length if ids is None else ids[row].tolist()
        blocks = blocks_of(ids_T, ratio)
        for t in range(length):
            expected = {s for s in range(max(0, t - window + 1), t + 1) if ids_T[s] == ids_T[t]}
            expected |= {s for e in selected[row, t].tolist() if e >= 0 for part in blocks[e] for s in part}
            listed = [s for s in covers[row, t].tolist() if s >= 0]
            assert sorted(listed) == sorted(expected)


@BOTH
@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_a_packed_document_is_what_it_is_alone(attention: dict[str, Any], stage: Any) -> None:
    length, begin, end = 25, 7, 20
    module = layer_of(spec_of(attention, length)).double().eval()
    x = torch.randn(1, length, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ids = ((torch.arange(length) >= begin).long() + (torch.arange(length) >= end).long())[None]
    with torch.no_grad():
        packed = module(x, context_of(length, ids, stage=stage)).out_BTD[:, begin:end]
        alone = module(x[:, begin:end], context_of(end - begin, stage=stage)).out_BTD
    assert torch.allclose(packed, alone, atol=1e-4)  # of outputs up to 13: rotations are fp32, at other positions


@BOTH
@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_window_shorter_than_an_entry_is_read_as_tokens(attention: dict[str, Any], length: int) -> None:
    module = layer_of(spec_of({**attention, "compress_ratio": 4, "sliding_window": 8}, 16)).eval()
    output = module(torch.randn(2, length, 32), context_of(length))
    assert output.out_BTD.isfinite().all()
    assert output.aux_loss is None or float(output.aux_loss.detach()) == 0.0


@BOTH
@pytest.mark.parametrize("length", [16, 17, 19, 3])
def test_flops_and_keys_read_count_what_a_query_reads(attention: dict[str, Any], length: int) -> None:
    spec = spec_of(attention, length)
    module = layer_of(spec)
    assert isinstance(module, compressed.CompressedAttention)
    visible = entries_of(context_of(length), module.compressed.compress_ratio).visible()
    seen = visible.sum(-1)
    kept = seen.clamp(max=2) if attention["kind"] == "csa" else seen
    assert module.entry_pairs() == int(seen.sum())
    assert module.entry_pairs(2) == int(seen.clamp(max=2).sum())
    window = min(length, attention["sliding_window"])
    assert getattr(spec.attention, "keys_read")(length) == int(kept[0, -1]) + window  # noqa: B009
    read = int(kept.sum()) + sum(min(t + 1, window) for t in range(length))
    assert module.flops("sparse")["attention"] == 12.0 * read * 32


def test_a_sink_takes_mass_and_learns() -> None:
    module = layer_of(spec_of(HCA))
    x = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(4))
    outs = []
    for sink in (-1e4, 1e4):
        with torch.no_grad():
            module.attn_sink_bias.fill_(sink)
            outs.append(module(x, context_of(20)).out_BTD.abs().max())
    assert outs[0] > 0.1 and outs[1] < 1e-6
    with torch.no_grad():
        module.attn_sink_bias.fill_(0.0)
    module(x, context_of(20)).out_BTD.square().sum().backward()
    assert (module.attn_sink_bias.grad != 0).all()


# Planted defects: leaks that only compression can have. Each patches one thing, and the contract must refuse it.


def changed(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    """Entries as `make` changes them, for whoever asks."""
    honest = entries._entries
    monkeypatch.setattr(entries, "_entries", lambda context, ratio: make(honest(context, ratio), context))


@BOTH
def test_an_entry_that_is_not_complete_yet_is_caught(
    monkeypatch: pytest.MonkeyPatch, attention: dict[str, Any]
) -> None:
    """A query may read its own block's entry, which has tokens after it: floor(t / m) + 1 entries."""

    def early(found: Entries, context: AttentionContext) -> Entries:
        more = (found.seen_BT + 1).clamp(max=found.count)
        return dataclasses.replace(found, seen_BT=more)

    changed(monkeypatch, early)
    with pytest.raises(AssertionError, match="looks ahead"):
        check_causal(spec_of(attention))


def test_an_overlap_with_the_next_block_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that overlap to the right, not to the left: an entry has tokens of the block after its own."""
    honest = compressor.windows

    def ahead(x: Tensor, found: Entries, previous: bool = False) -> Tensor:
        return torch.roll(honest(x, found), -1, 1) if previous else honest(x, found)

    monkeypatch.setattr(compressor, "windows", ahead)
    with pytest.raises(AssertionError, match="looks ahead"):
        check_causal(spec_of(CSA))


@BOTH
def test_a_compression_weight_that_sees_the_future_is_caught(
    monkeypatch: pytest.MonkeyPatch, attention: dict[str, Any]
) -> None:
    """The softmax over all tokens of the window, not over those of the entry."""

    def everywhere(self: Any, x: Tensor, found: Entries) -> Tensor:
        honest_weights: Tensor = honest(self, x, found)
        return honest_weights * self.gate(x).logsumexp(1).sigmoid()[:, None, None, : self.channels]

    honest = compressor.Compressor.weights
    monkeypatch.setattr(compressor.Compressor, "weights", everywhere)
    with pytest.raises(AssertionError, match="looks ahead"):
        check_causal(spec_of(attention))


@BOTH
def test_an_entry_of_two_documents_is_caught(monkeypatch: pytest.MonkeyPatch, attention: dict[str, Any]) -> None:
    """Blocks that begin with the window, whatever its documents, and are seen by the last one's."""

    def shared(found: Entries, context: AttentionContext) -> Entries:
        if context.document_ids_BT is None:
            return found
        alone = entries._entries_alone(context, found.ratio)
        return dataclasses.replace(alone, packed=False)

    honest = entries._entries
    monkeypatch.setattr(
        entries, "_entries_alone", lambda c, ratio: honest(AttentionContext(c.positions_T), ratio), raising=False
    )
    changed(monkeypatch, shared)
    with pytest.raises(AssertionError, match="across documents"):
        check_documents_are_separate(spec_of(attention))


def test_an_overlap_with_another_document_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first entry of a document takes in the last tokens of the one before it."""
    monkeypatch.setattr(
        Entries,
        "tokens",
        lambda self, overlap: (
            (self.end_BE[..., None] + torch.arange(1 - (2 if overlap else 1) * self.ratio, 1))
            .clamp(min=-1)
            .masked_fill((self.end_BE >= self.length)[..., None], -1)
        ),
    )
    with pytest.raises(AssertionError, match="across documents"):
        check_documents_are_separate(spec_of({**CSA, "top_k": 5}))


def test_scores_of_entries_to_come_in_the_top_k_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Top-k over all entries, the mask only afterwards: entries to come push out those of the past."""

    def unmasked(scores: Tensor, allowed: Tensor, k: int) -> Tensor:
        chosen = scores.topk(k, dim=-1).indices
        return torch.zeros_like(allowed).scatter(-1, chosen, True) & allowed

    monkeypatch.setattr(layer.masked, "selection_mask", unmasked)
    with pytest.raises(AssertionError, match="looks ahead"):
        check_causal(spec_of(CSA))


def test_a_captured_entry_to_come_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        layer, "covered_tokens", lambda selected, found, w: covered.covered_tokens(selected + 1, found, w)
    )
    with pytest.raises(AssertionError, match="query 0 selects"):
        check_capture(spec_of(CSA))


def test_a_target_that_is_not_detached_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "detach", lambda self: self)
    with pytest.raises(AssertionError, match="the own loss reaches"):
        check_gradients(spec_of(CSA))


def test_the_target_is_what_the_joint_softmax_gives_entries() -> None:
    """A head that looks at the window alone has no say in what the indexer learns."""
    p = torch.tensor([[[[0.4, 0.1], [1e-6, 3e-6]]]])  # two heads, two entries; the rest is in the window
    found = layer.reference.normalised(p.mean(2))
    assert torch.allclose(found, torch.tensor([[[0.8, 0.2]]]), atol=1e-4)

"""Compressed Sparse Attention (CSA) of DeepSeek-V4: a sliding window, and the k entries that an indexer scores highest.

    entry[i] = RMSNorm(sum over 2 m tokens of softmax(x W^Z + bias) * x W^C)        own m tokens, and the m before them
    I[t,e] = sum_j w[t,j] relu(q[t,j] . k[e])        S[t] = top-k of I over the entries that are complete at t
    out[t] = attention over the nearest w tokens and the entries S[t], with a learned sink

In the dense warm-up stage a query reads every complete entry in place of S[t]: the compressor learns from the start.
The indexer has DSA's loss, KL(p[t] || softmax(I[t])), over S[t] (in the warm-up over all complete entries): p[t] is
what the layer's own softmax, window and sink below its fraction line, gives these entries, averaged over heads and then
normalised to 1. The mean is over all queries; one that sees no entry adds nothing. The released code of DeepSeek is for
inference and shows no loss. Implementations for training differed: a softmax over the entries alone (MaxText's first,
Megatron-LM's until 2026-07) loses how much of each head goes to entries at all; p as here is what Megatron-LM took up
then (its pull request 5960), and what DeepSeek-V3.2 says of DSA.

The capture holds tokens: those of the window, and of a selected entry all that it is made of, whole. What CSA is on the
heads of this model, and what is left out: compressed.py. Parity: attention-gym's reference of CSA, in tests/parity.

Source: DeepSeek-V4 (arXiv 2606.19348), section 2.3.1.

Legend: B batch, T query, E entry, M tokens of an entry, D model or head width, H heads, K selected entries, W tokens of
a window, N lanes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dsabench.attention import base
from dsabench.attention.base import AttentionContext, Stage
from dsabench.attention.csa import reference
from dsabench.attention.csa.compressed import CompressedAttention, Heads
from dsabench.attention.csa.compressed_entries import Entries
from dsabench.attention.csa.covered import covered_tokens
from dsabench.attention.csa.indexer import CompressedIndexer
from dsabench.attention.dsa import backends, masked
from dsabench.attention.dsa import reference as dsa_reference
from dsabench.attention.registry import register
from dsabench.ops.profile_labels import part
from dsabench.spec.attention import CompressedSpec, CSASpec
from dsabench.spec.run import RunSpec


@register
class CSA(CompressedAttention):
    """Attention over the window and the indexer's top k entries, with the indexer's KL loss."""

    spec_class = CSASpec
    overlap: ClassVar[bool] = True

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__(spec, layer)
        assert isinstance(spec.attention, CSASpec)
        self.config = spec.attention
        self.indexer = CompressedIndexer(spec, self.config)

    @classmethod
    def reads(cls, attention: CompressedSpec, length: int) -> int:
        """Kept entries and the window."""
        assert isinstance(attention, CSASpec)
        return attention.keys_read(length)

    @classmethod
    def limit(cls, spec: RunSpec) -> str | None:
        """As for DSA's sizes."""
        attention = spec.attention
        assert isinstance(attention, CSASpec)
        kept, indexer = min(attention.n_kept(spec.length), attention.n_entries(spec.length)), attention.indexer
        return backends.limit_of(kept, spec.model.head_dim, indexer.n_heads, indexer.head_dim)

    def prepare(self, context: AttentionContext) -> None:
        """As CompressedAttention.prepare; also the indexer's rotation."""
        super().prepare(context)
        self.indexer.rotation(context)

    def reads_all(self, context: AttentionContext) -> bool:
        """In the warm-up stage."""
        return context.stage == "dense"

    def _masked(
        self, x_BTD: Tensor, heads: Heads, entries: Entries, context: AttentionContext
    ) -> tuple[Tensor, Tensor | None]:
        keep_BTE = entries.visible().expand(len(x_BTD), -1, -1)
        scores_BTE, k = None, self.config.n_kept(x_BTD.shape[1])
        if self._scores_wanted(context):
            with part("indexer"):
                scores_BTE = reference.index_scores(*self.indexer.heads(x_BTD, entries, context))
        if scores_BTE is not None and context.capture is not None:
            selected_BTK = dsa_reference.select_top_k(scores_BTE.detach(), keep_BTE, k)
            self._capture(selected_BTK, heads, entries, context)
        if scores_BTE is not None and context.stage == "sparse":
            with part("top-k"):
                keep_BTE = masked.selection_mask(scores_BTE.detach(), keep_BTE, k)
        out_BTHD, p_BTE = reference.attention(*heads, (self.window(context), keep_BTE), self.attn_sink_bias)
        if scores_BTE is None or not self._learns(context):
            return out_BTHD, None
        with part("indexer loss"):
            return out_BTHD, dsa_reference.indexer_kl(scores_BTE, reference.normalised(p_BTE), keep_BTE)

    def _streamed(
        self, x_BTD: Tensor, heads: Heads, entries: Entries, context: AttentionContext
    ) -> tuple[Tensor, Tensor | None]:
        from dsabench.attention.csa.streamed import attend, best_entries, every_entry, indexer_kl, window_lists

        window = window_lists(context, self.compressed.sliding_window, self.spec.model)
        index = lists = None
        if self._scores_wanted(context):
            with part("indexer"):
                index = self.indexer.heads(x_BTD, entries, context)
        if index is not None and (context.stage == "sparse" or context.capture is not None):
            with part("top-k"):
                lists = best_entries(*index, self.config.n_kept(x_BTD.shape[1]), heads, entries)
            if context.capture is not None:
                self._capture(lists.of_queries(entries), heads, entries, context)
        if lists is None or context.stage == "dense":
            lists = every_entry(context, entries, self.spec.model)
        attended = attend(*heads, window, lists, entries, self.attn_sink_bias)
        if index is None or not self._learns(context):
            return attended.out_BTHD, None
        with part("indexer loss"):
            return attended.out_BTHD, indexer_kl(heads, index, attended, lists, entries)

    def _learns(self, context: AttentionContext) -> bool:
        return self.indexer.learns and context.losses

    def _scores_wanted(self, context: AttentionContext) -> bool:
        return context.stage == "sparse" or self._learns(context) or context.capture is not None

    def _capture(self, selected_BTK: Tensor, heads: Heads, entries: Entries, context: AttentionContext) -> None:
        assert context.capture is not None
        q_BTHD, (k_BTGD, _), _ = heads
        with torch.no_grad():
            tokens_BTK = covered_tokens(selected_BTK, entries, self.config.sliding_window)
            context.capture[self.layer] = base.capture(tokens_BTK, None, q_BTHD, k_BTGD, context)

    def kept_per_pair(self, width: int) -> float:
        """As CompressedAttention.kept_per_pair, and dot products of every indexer head; of lists 7 bytes for each of a
        query's k entries, their unions among them."""
        length, m = self.spec.length, self.config.compress_ratio
        if self.config.backend == "triton":
            return 7.0 * min(self.config.n_kept(length), self.config.n_entries(length)) / length
        return super().kept_per_pair(width) + self.indexer.n_heads * width / m

    def own_parameters(self) -> set[str]:
        """The indexer's, which the KL loss alone trains."""
        return {f"indexer.{name}" for name, _ in self.indexer.named_parameters()}

    def flops(self, stage: Stage) -> dict[str, float]:
        """As CompressedAttention.flops, over the kept entries; the indexer; the top-k, one comparison for each entry
        that a query sees; the KL loss, 4 J I backward for each entry that it keeps."""
        seen = self.entry_pairs()
        chosen = seen if stage == "dense" else self.entry_pairs(self.config.n_kept(self.spec.length))
        items = self._flops(chosen)
        learns = self.config.indexer.loss == "kl"
        if stage == "sparse" or learns:
            items["indexer"] = self.indexer.flops(self.spec, seen)
        if stage == "sparse" and seen:
            items["top-k"] = seen
        if learns and chosen:
            items["indexer loss"] = 4.0 * chosen * self.indexer.n_heads * self.indexer.head_dim
        return items

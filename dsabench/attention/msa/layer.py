"""MiniMax Sparse Attention (MSA) of MiniMax-M3: whole blocks, chosen by an index branch for each KV head apart.

    s[t,g,j] = qI[t,g] . kI[j]        B[t,g] = the k blocks whose largest s is highest, the query's own among them
    out[t,h] = softmax(Q[t,h] K[j]^T / sqrt(D)) V[j]        over j <= t of the blocks B[t,g], g the KV head of h

Top-k passes no gradient, so the index branch has a loss of its own: KL(p[t,g] || softmax(s[t,g] / sqrt(I))) over the
tokens of the kept blocks, p the attention's probabilities averaged over the query heads of g; the mean over queries and
groups. In the dense warm-up stage attention is full and the KL runs over all causal keys. Input and target of the
branch are detached: the language-model loss never reaches it, its own loss reaches nothing else.

The capture has what any KV head selected: its mass recall is that of the union, beside the chance of as many keys.

Sources: MiniMax Sparse Attention (arXiv 2606.13392); MiniMaxM3VLIndexer of `transformers` for RMSNorm, rotary part and
the local blocks; training/msa_v1/kl of github.com/MiniMax-AI/MSA for the loss: its scale, its mean over heads of a
group, and its division by groups and queries. Left out: MiniMax-M3's QK-norm is model.qk_norm here, its partial rotary
embedding of queries and keys and its dense first layers are the model's to say.

Backends: `masked` is DSA's, with masks of L x L for each KV head; `triton` holds no such tensor (`streamed`). They
differ by rounding alone.

Legend: B batch, T query, S key, D model or head width, H heads, G KV heads, I index width, K selected slots, N = B G.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsabench.attention import base, scaled_dot_product
from dsabench.attention.base import AttentionContext, AttentionOutput, Stage, pairs
from dsabench.attention.dsa import backends, masked
from dsabench.attention.dsa import reference as dsa_reference
from dsabench.attention.msa import block_lists, reference
from dsabench.attention.msa.groups import Heads, by_group, from_groups
from dsabench.attention.msa.indexer import IndexBranch
from dsabench.attention.registry import register
from dsabench.attention.with_backends import AttentionWithBackends
from dsabench.ops.profile_labels import part
from dsabench.spec.attention import MSASpec
from dsabench.spec.run import RunSpec


@register
class MSA(AttentionWithBackends):
    """Attention over the index branch's top-k blocks, with its KL loss; dense attention in the warm-up stage."""

    spec_class = MSASpec

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__(spec, layer)
        assert isinstance(spec.attention, MSASpec)
        self.config = spec.attention
        self.indexer = IndexBranch(spec, self.config)

    @classmethod
    def backend(cls, spec: RunSpec, no_kernels: str | None) -> backends.Backend:
        """As AttentionWithBackends.backend."""
        attention, model = spec.attention, spec.model
        assert isinstance(attention, MSASpec)
        k, limit = (
            attention.n_selected(spec.length),
            backends.limit_of(1, model.head_dim, 1, attention.index_branch.head_dim),
        )
        return backends.choose(attention.backend, spec.length, k, model.n_heads // model.kv_heads, limit, no_kernels)

    def prepare(self, context: AttentionContext) -> None:
        """As Attention.prepare; also the index branch's rotation and, for masks, the causal one."""
        super().prepare(context)
        self.indexer.rotation(context)
        if not self.streams(context.positions_T.device):
            _ = context.allowed

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        """(B, T, D) -> (B, T, D), and the KL loss of this layer's index branch where context.losses asks."""
        streams = self.streams(x_BTD.device)
        heads = self.projections.heads(x_BTD, context, head_major=not streams)
        index = None
        if context.stage == "sparse" or context.losses or context.capture is not None:
            with part("indexer"):
                index = self.indexer.heads(x_BTD, context)
        compute = self._streamed if streams else self._masked
        out_BTHD, loss = compute(heads, index, context)
        return AttentionOutput(self.projections.merge(out_BTHD), loss)

    def _masked(
        self, heads: Heads, index: tuple[Tensor, Tensor] | None, context: AttentionContext
    ) -> tuple[Tensor, Tensor | None]:
        q_NTHD, k_NT1D, v_NT1D = by_group(*heads)
        groups = heads[1].shape[2]
        allowed = context.allowed if context.allowed.dim() == 2 else context.allowed.repeat_interleave(groups, 0)
        keep, scores_NTS = allowed, None
        if index is not None:
            with part("indexer"):
                scores_NTS = reference.token_scores(*index)
        if scores_NTS is not None and (context.stage == "sparse" or context.capture is not None):
            with part("top-k"):
                kept_NTS = self.selected(scores_NTS.detach(), allowed)
            if context.capture is not None:
                self._capture(kept_NTS.unflatten(0, (-1, groups)).any(1), heads, context)
            keep = kept_NTS if context.stage == "sparse" else keep
        out_NTHD, p_NTS = masked.attention(q_NTHD, k_NT1D, v_NT1D, keep)
        if scores_NTS is None or not context.losses:
            return from_groups(out_NTHD, groups), None
        with part("indexer loss"):
            loss = masked.indexer_kl(scores_NTS * self.indexer.head_dim**-0.5, p_NTS, keep)
        return from_groups(out_NTHD, groups), loss

    def selected(self, scores_NTS: Tensor, allowed: Tensor, first_query: int = 0) -> Tensor:
        """(N, T, S) the keys of the kept blocks, of queries from first_query on."""
        size = self.config.block_size
        best_NTC, seen_NTC = reference.block_scores(scores_NTS, allowed, size)
        kept, local = self.config.top_k_blocks, self.config.local_blocks
        blocks_NTC = reference.kept_blocks(best_NTC, seen_NTC, first_query, size, kept, local)
        return reference.keys_of(blocks_NTC, allowed, size)

    def _streamed(
        self, heads: Heads, index: tuple[Tensor, Tensor] | None, context: AttentionContext
    ) -> tuple[Tensor, Tensor | None]:
        """No tensor of L x L elements, in either stage, forward or backward."""
        from dsabench.attention.msa import streamed

        lists, loss, groups = None, None, heads[1].shape[2]
        if index is not None and (context.stage == "sparse" or context.capture is not None):
            with torch.no_grad(), part("top-k"):
                lists = block_lists.lists(*index, self.config, context)
            if context.capture is not None:
                self._capture_lists(lists.unflatten(0, (-1, groups)), heads, context)
        if lists is not None and context.stage == "sparse":
            return streamed.attend(by_group(*heads), index if context.losses else None, lists, groups)
        ids_BT = context.document_ids_BT
        out_BTHD = scaled_dot_product.attention(*heads, ids_BT, context.most_documents)
        if index is not None and context.losses:
            with part("indexer loss"):
                loss = streamed.dense_loss(by_group(*heads), index, ids_BT, groups)
        return out_BTHD, loss

    def _capture(self, kept_BTS: Tensor, heads: Heads, context: AttentionContext) -> None:
        """Of a mask: the lists of its keys, ascending."""
        assert context.capture is not None
        most = int(kept_BTS.sum(-1).max())
        order_BTK = kept_BTS.int().sort(dim=-1, descending=True, stable=True).indices[..., :most]
        selected_BTK = order_BTK.masked_fill(~kept_BTS.gather(-1, order_BTK), dsa_reference.EMPTY)
        context.capture[self.layer] = base.capture(selected_BTK, None, heads[0], heads[1], context)

    def _capture_lists(self, lists_BGTK: Tensor, heads: Heads, context: AttentionContext) -> None:
        """Of lists of each KV head: their keys, each once, in slots of any order."""
        assert context.capture is not None
        all_BTX = lists_BGTK.transpose(1, 2).flatten(2).long().sort(dim=-1).values
        again_BTX = torch.zeros_like(all_BTX, dtype=torch.bool)
        again_BTX[..., 1:] = all_BTX[..., 1:] == all_BTX[..., :-1]
        selected_BTX = all_BTX.masked_fill(again_BTX, dsa_reference.EMPTY)
        context.capture[self.layer] = base.capture(selected_BTX, None, heads[0], heads[1], context)

    def kept_per_pair(self, width: int) -> float:
        """Probabilities of every head, scores and mask of every KV head; of lists 7 bytes for each of a query's keys
        and KV heads, their unions among them."""
        model = self.spec.model
        if self.config.backend == "triton":
            return 7.0 * model.kv_heads * self.config.n_selected(self.spec.length) / self.spec.length
        return (model.n_heads + model.kv_heads) * width + 2.0 * model.kv_heads

    def own_parameters(self) -> set[str]:
        """The index branch's, which the KL loss alone trains."""
        return {f"indexer.{name}" for name, _ in self.indexer.named_parameters()}

    def flops(self, stage: Stage) -> dict[str, float]:
        """Projections; attention over the stage's pairs; the index branch; the top-k, one comparison for each causal
        pair and KV head; the KL loss, 4 I backward for each of the stage's pairs and KV heads."""
        model, spec = self.spec.model, self.spec
        chosen = float(sum(self.config.keys_read(t + 1) for t in range(spec.length)))
        chosen = pairs(spec) if stage == "dense" else chosen
        items = {
            "attention projections": self.projections.flops(spec),
            "attention": 12.0 * chosen * model.heads_width,
            "indexer": self.indexer.flops(spec, pairs(spec)),
            "indexer loss": 4.0 * chosen * model.kv_heads * self.indexer.head_dim,
        }
        if stage == "sparse":
            items["top-k"] = pairs(spec) * model.kv_heads
        return items

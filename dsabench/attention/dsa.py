"""DeepSeek Sparse Attention: a lightning indexer scores the past, the top k tokens are kept, attention runs on those.

    I[t,s] = sum_j w[t,j] relu(q[t,j] . k[s])      S[t] = top-k of I[t, 0..t]
    out[t] = softmax(Q[t] K[S[t]]^T / sqrt(D)) V[S[t]]

Top-k passes no gradient, so the indexer has a loss of its own: KL(p[t] || softmax(I[t])), p the main attention's
probabilities averaged over heads. In the dense warm-up stage attention is dense and the KL runs over all causal keys;
in the sparse stage both run over S[t]. The indexer's input and target are detached: the language-model loss never
reaches the indexer, the KL loss never reaches anything else. Source: DeepSeek-V3.2 (arXiv 2512.02556), section 2, and
the released inference/model.py for LayerNorm, partial rotary embedding and scale.

Backends: `reference` and `masked` hold L x L scores and masks; `triton` streams them, so that memory and, but for the
scores, time follow the selection (kernels/sparse). They differ by rounding alone; `auto` chooses (kernels/dispatch).

Legend: B batch, T query, S key, D model width, H heads, J indexer heads, I indexer width, K selected slots.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from dsabench.attention.base import (
    Attention,
    AttentionContext,
    AttentionOutput,
    Stage,
    capture,
    pairs,
)
from dsabench.attention.indexer import IndexerSpec, LightningIndexer
from dsabench.attention.kernels import dense, dispatch, masked, reference
from dsabench.attention.registry import register
from dsabench.kernels import runs_on
from dsabench.parts import part
from dsabench.spec.fields import AttentionSpec, RunSpec, keys_kept, warmup_steps


class DSASpec(AttentionSpec):
    """Settings of DeepSeek Sparse Attention."""

    alternatives: ClassVar[tuple[tuple[str, str], ...]] = (("top_k_ratio", "top_k"),)

    kind: Literal["dsa"] = "dsa"
    """The variant's name."""

    top_k_ratio: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    """Keys kept for each query, as a share of the length L, rounded half up."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    """Keys kept for each query, in place of top_k_ratio; L or more keeps everything."""

    backend: Literal["auto", "reference", "masked", "triton"] = "auto"
    """How it is computed; results differ by rounding alone. `reference` gathers, slowly and plainly; `masked` masks a
    dense product; `triton` (a CUDA GPU) streams scores and gathers the selection, without any L x L tensor. `auto`
    takes `triton` on a GPU where it was measured to be faster: from 2048 tokens on and k <= L/4 where at least 8 query
    heads share a KV head (model.n_kv_heads), else from 8192 tokens on and k <= L/8; `masked` elsewhere."""

    indexer: IndexerSpec = IndexerSpec()
    """The lightning indexer."""

    def anywhere(self) -> DSASpec:
        """`triton` needs a GPU; `auto` does not."""
        return self.model_copy(update={"backend": "auto"}) if self.backend == "triton" else self

    def n_selected(self, length: int) -> int:
        """k by top_k or top_k_ratio."""
        return keys_kept(length, self.top_k, self.top_k_ratio)

    def warmup_steps(self, steps: int) -> int:
        """indexer.warmup_share of the steps."""
        return warmup_steps(self.indexer.warmup_share, steps)

    def own_learning_rate(self) -> float:
        """indexer.learning_rate."""
        return self.indexer.learning_rate

    def own_loss_weight(self) -> float:
        """indexer.loss_weight."""
        return self.indexer.loss_weight

    def warmup_freezes_backbone(self) -> bool:
        """indexer.freeze_backbone."""
        return self.indexer.freeze_backbone


@register
class DSA(Attention):
    """Attention over the indexer's top k, with the indexer's KL loss; dense attention in the warm-up stage."""

    spec_class = DSASpec
    equals_dense_at_full_k = True

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__(spec, layer)
        assert isinstance(spec.attention, DSASpec)
        self.config = spec.attention
        self.indexer = LightningIndexer(spec, self.config)
        self.size = _size(spec)
        dispatch.choose(*self.size, None)  # sizes that the kernels do not take are refused everywhere

    @classmethod
    def resolve(cls, spec: RunSpec, no_kernels: str | None) -> AttentionSpec:
        """With `auto` decided."""
        return spec.attention.model_copy(update={"backend": dispatch.choose(*_size(spec), no_kernels)})

    def backend_on(self, device: torch.device) -> dispatch.Backend:
        """What computes on this device; of the run's own length, so that a shorter window goes the same way. Raises
        SpecError where `triton` is asked for and does not run."""
        reason = None if runs_on(device) else "it needs a CUDA GPU with Triton, and its tensors are elsewhere"
        return dispatch.choose(*self.size, reason)

    def prepare(self, context: AttentionContext) -> None:
        """Also the indexer's rotation and, where one is used, the mask."""
        super().prepare(context)
        context.rotation(self.indexer.head_dim // 2, self.indexer.rope_base)
        if self.backend_on(context.positions_T.device) != "triton":
            _ = context.allowed

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        """(B, T, D) -> (B, T, D), and the KL loss of this layer's indexer where it has one and context.losses asks."""
        backend = self.backend_on(x_BTD.device)
        q_BTHD, k_BTGD, v_BTGD = self.projections.heads(x_BTD, context, head_major=backend != "triton")
        k = self.config.n_selected(x_BTD.shape[1])
        learns = self._learns(context)
        heads = None
        if context.stage == "sparse" or learns or context.capture is not None:
            with part("indexer"):
                heads = self.indexer.heads(x_BTD, context)
        if backend == "triton":
            return self._streamed(q_BTHD, k_BTGD, v_BTGD, heads, k, context)
        scores_BTS = None
        if heads is not None:
            with part("indexer"):
                scores_BTS = self.indexer.scores(*heads)
        if context.capture is not None and scores_BTS is not None:
            selected_BTK = reference.select_top_k(scores_BTS.detach(), context.allowed, k)
            context.capture[self.layer] = capture(selected_BTK, scores_BTS.detach(), q_BTHD, k_BTGD, context)
        if context.stage == "dense" or scores_BTS is None:
            keep = context.allowed
            out_BTHD, p_BTS = masked.attention(q_BTHD, k_BTGD, v_BTGD, keep)
        elif backend == "reference":
            return self._reference(q_BTHD, k_BTGD, v_BTGD, scores_BTS, k, context)
        else:
            with part("top-k"):
                keep = masked.selection_mask(scores_BTS.detach(), context.allowed, k)
            out_BTHD, p_BTS = masked.attention(q_BTHD, k_BTGD, v_BTGD, keep)
        with part("indexer loss"):
            loss = masked.indexer_kl(scores_BTS, p_BTS, keep) if learns and scores_BTS is not None else None
        return AttentionOutput(self.projections.merge(out_BTHD), loss)

    def _streamed(
        self,
        q_BTHD: Tensor,
        k_BTGD: Tensor,
        v_BTGD: Tensor,
        heads: tuple[Tensor, Tensor, Tensor] | None,
        k: int,
        context: AttentionContext,
    ) -> AttentionOutput:
        """No tensor of L x L elements, in either stage, forward or backward."""
        from dsabench.attention.kernels.sparse.attend import attend
        from dsabench.attention.kernels.sparse.kl import sparse_kl
        from dsabench.attention.kernels.sparse.kl_dense import dense_kl
        from dsabench.attention.kernels.sparse.top_k import top_k

        ids_BT, sparse, loss = context.document_ids_BT, context.stage == "sparse", None
        learns = self._learns(context)
        if heads is not None and (sparse or context.capture is not None):
            with part("top-k"):
                selected_BTK, index_lse_BT = top_k(*heads, min(k, q_BTHD.shape[1]), ids_BT)
            if context.capture is not None:
                scores_BTS = self.indexer.scores(*heads).detach() if context.whole_mass else None
                context.capture[self.layer] = capture(selected_BTK, scores_BTS, q_BTHD, k_BTGD, context)
        if heads is not None and sparse:
            out_BTHD, lse_BTH = attend(q_BTHD, k_BTGD, v_BTGD, selected_BTK, ascending=True)
            if learns:
                with part("indexer loss"):
                    loss = sparse_kl(q_BTHD, k_BTGD, lse_BTH, *heads, selected_BTK, index_lse_BT)
        else:
            out_BTHD = dense.attention(q_BTHD, k_BTGD, v_BTGD, ids_BT, context.most_documents)
            if learns and heads is not None:
                with part("indexer loss"):
                    loss = dense_kl(q_BTHD, k_BTGD, *heads, ids_BT)
        return AttentionOutput(self.projections.merge(out_BTHD), loss)

    def _reference(
        self,
        q_BTHD: Tensor,
        k_BTGD: Tensor,
        v_BTGD: Tensor,
        scores_BTS: Tensor,
        k: int,
        context: AttentionContext,
    ) -> AttentionOutput:
        with part("top-k"):
            selected_BTK = reference.select_top_k(scores_BTS.detach(), context.allowed, k)
        out_BTHD, p_BTK = reference.attention(q_BTHD, k_BTGD, v_BTGD, selected_BTK)
        loss = None
        if self._learns(context):
            with part("indexer loss"):
                slots_BTK = scores_BTS.gather(-1, selected_BTK.clamp(min=0))
                loss = reference.indexer_kl(slots_BTK, p_BTK, selected_BTK != reference.EMPTY)
        return AttentionOutput(self.projections.merge(out_BTHD), loss)

    def _learns(self, context: AttentionContext) -> bool:
        return self.config.indexer.loss == "kl" and context.losses

    def kept_per_pair(self, width: int) -> float:
        """Probabilities of every head, the mask, and the dots of every indexer head; of a backend that streams them
        nothing but the selection, 4 bytes for each of a query's k keys."""
        if self.config.backend == "triton":
            return 4.0 * min(self.config.n_selected(self.spec.length), self.spec.length) / self.spec.length
        return (self.spec.model.n_heads + self.indexer.n_heads) * width + 1.0

    def own_parameters(self) -> set[str]:
        """The indexer's: the KL loss alone trains them."""
        return {f"indexer.{name}" for name, _ in self.indexer.named_parameters()}

    def flops(self, stage: Stage) -> dict[str, float]:
        """Projections; attention over the stage's pairs; the indexer; the top-k, a comparison for each causal pair, the
        least that any selection needs; the KL loss, 4 J I backward for each of the stage's pairs."""
        chosen = pairs(self.spec, None if stage == "dense" else self.config.n_selected(self.spec.length))
        items = {
            "attention projections": self.projections.flops(self.spec),
            "attention": 12.0 * chosen * self.spec.model.d_model,
        }
        if stage == "sparse" or self.config.indexer.loss == "kl":
            items["indexer"] = self.indexer.flops(self.spec)
        if stage == "sparse":
            items["top-k"] = pairs(self.spec)
        if self.config.indexer.loss == "kl":
            items["indexer loss"] = 4.0 * chosen * self.indexer.n_heads * self.indexer.head_dim
        return items


def _size(spec: RunSpec) -> tuple[str, int, int, int, str | None]:
    """What `dispatch.choose` decides by, but for the machine."""
    attention = spec.attention
    assert isinstance(attention, DSASpec)
    k, indexer = min(attention.n_selected(spec.length), spec.length), attention.indexer
    limit = dispatch.limit_of(k, spec.model.head_dim, indexer.n_heads, indexer.head_dim)
    sharing = spec.model.n_heads // (spec.model.n_kv_heads or spec.model.n_heads)
    return attention.backend, spec.length, k, sharing, limit

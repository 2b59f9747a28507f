"""DeepSeek Sparse Attention: a lightning indexer scores the past, the top k tokens are kept, attention runs on those.

    I[t,s] = sum_j w[t,j] relu(q[t,j] . k[s])      S[t] = top-k of I[t, 0..t]
    out[t] = softmax(Q[t] K[S[t]]^T / sqrt(D)) V[S[t]]

Top-k passes no gradient, so the indexer has a loss of its own: KL(p[t] || softmax(I[t])), p the main attention's
probabilities averaged over heads. In the dense warm-up stage attention is dense and the KL runs over all causal keys;
in the sparse stage both run over S[t]. The indexer's input and target are detached: the language-model loss never
reaches the indexer, the KL loss never reaches anything else. Source: DeepSeek-V3.2 (arXiv 2512.02556), section 2, and
the released inference/model.py for LayerNorm, partial rotary embedding and scale.

Legend: B batch, T query, S key, D model width, H heads, J indexer heads, I indexer width, K selected slots.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from dsabench.attention.base import (
    Attention,
    AttentionContext,
    AttentionOutput,
    Selection,
    Stage,
    capture_mass,
    pairs,
)
from dsabench.attention.kernels import masked, reference
from dsabench.attention.registry import register
from dsabench.kernels import fused, rotate
from dsabench.parts import part
from dsabench.spec.base import Spec
from dsabench.spec.fields import AttentionSpec, RunSpec, keys_kept, warmup_steps


class IndexerSpec(Spec):
    """The lightning indexer and how it is trained."""

    n_heads: Annotated[int, Field(ge=1, le=1024)] = 4
    """Indexer heads J."""

    head_dim: Annotated[int, Field(ge=4, le=1024, multiple_of=4)] = 64
    """Width of an indexer head; the first half is rotated by position, so a multiple of 4."""

    loss: Literal["kl", "none"] = "kl"
    """`kl` trains the indexer to predict the attention's own probabilities; `none` leaves it as it was drawn."""

    loss_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the KL loss. Under Adam it hardly matters; learning_rate does."""

    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    """The indexer's own peak learning rate, on the same schedule as the model's."""

    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the steps in the dense warm-up stage."""

    freeze_backbone: bool = False
    """True trains only the indexer during warm-up (for a backbone that is already trained)."""

    @model_validator(mode="after")
    def _frozen_backbone_needs_a_learner(self) -> Self:
        if self.freeze_backbone and self.loss == "none":
            raise ValueError("freeze_backbone = true with loss = none would train nothing in the warm-up stage")
        return self


class DSASpec(AttentionSpec):
    """Settings of DeepSeek Sparse Attention."""

    alternatives: ClassVar[tuple[tuple[str, str], ...]] = (("top_k_ratio", "top_k"),)

    kind: Literal["dsa"] = "dsa"
    """The variant's name."""

    top_k_ratio: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    """Keys kept for each query, as a share of the length L, rounded half up."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    """Keys kept for each query, in place of top_k_ratio; L or more keeps everything."""

    backend: Literal["auto", "reference", "masked"] = "auto"
    """`reference` gathers, slowly and plainly; `masked` masks a dense product; `auto` is masked."""

    indexer: IndexerSpec = IndexerSpec()
    """The lightning indexer."""

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


class LightningIndexer(nn.Module):
    """Index scores I[t,s]; one key a token, shared by the indexer's heads; signed weights from the token itself."""

    def __init__(self, spec: RunSpec, attention: DSASpec) -> None:
        super().__init__()
        indexer, self.backend = attention.indexer, attention.backend
        self.learns = indexer.loss == "kl"
        self.n_heads, self.head_dim, self.rope_base = indexer.n_heads, indexer.head_dim, spec.model.rope_base
        self.query = nn.Linear(spec.model.d_model, self.n_heads * self.head_dim, bias=False)
        self.key = nn.Linear(spec.model.d_model, self.head_dim, bias=False)
        self.key_norm = nn.LayerNorm(self.head_dim)
        self.weight = nn.Linear(spec.model.d_model, self.n_heads, bias=False)
        # J^-1/2 I^-1/2 is the temperature of the KL loss's softmax(I), not a mere detail.
        self.scale = (self.n_heads * self.head_dim) ** -0.5

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        """Scores (B, T, S), unmasked; the input is detached here, so nothing upstream can feel the indexer's loss."""
        x_BTD = x_BTD.detach()
        cos_TD, sin_TD = context.rotation(self.head_dim // 2, self.rope_base)
        if self.backend != "reference" and fused(x_BTD, self.query.weight, self.key_norm.weight):
            return masked.index_scores(*self._fused_heads(x_BTD, cos_TD, sin_TD))
        q_BTJI = rotate(self.query(x_BTD).unflatten(-1, (-1, self.head_dim)), cos_TD, sin_TD)  # the first half only
        k_BTI = rotate(self.key_norm(self.key(x_BTD))[:, :, None], cos_TD, sin_TD)[:, :, 0]
        w_BTJ = self.weight(x_BTD) * self.scale
        scores = reference.index_scores if self.backend == "reference" else masked.index_scores
        return scores(q_BTJI, k_BTI.to(q_BTJI.dtype), w_BTJ.to(q_BTJI.dtype)).float()

    def _fused_heads(self, x_BTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, T, J, I), k (B, T, I) and w (B, T, J), by one product and one kernel."""
        from dsabench.attention.kernels.indexer import indexer_heads

        weights = [self.query.weight, self.key.weight, self.weight.weight]
        # Tensor cores want rows of a multiple of 16 bytes.
        padding = self.query.weight.new_zeros(-sum(map(len, weights)) % 8, x_BTD.shape[-1])
        y_BTC = F.linear(x_BTD, torch.cat([*weights, padding]))
        return indexer_heads(y_BTC, self.key_norm, cos_TD, sin_TD, self.n_heads, self.scale)

    def flops(self, spec: RunSpec) -> float:
        """Projections (no gradient to their input, so 4 of 6; 2 when untrained), and 2 J I for every causal pair."""
        columns = self.n_heads * self.head_dim + self.head_dim + self.n_heads
        scores = 2.0 * pairs(spec) * self.n_heads * self.head_dim
        return (4.0 if self.learns else 2.0) * spec.length * spec.model.d_model * columns + scores


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

    def prepare(self, context: AttentionContext) -> None:
        """Also the indexer's rotation and the mask."""
        super().prepare(context)
        context.rotation(self.indexer.head_dim // 2, self.indexer.rope_base)
        _ = context.allowed

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        """(B, T, D) -> (B, T, D), and the KL loss of this layer's indexer when it is trained and gradients are on."""
        q_BTHD, k_BTGD, v_BTGD = self.projections.heads(x_BTD, context, head_major=True)
        k = self.config.n_selected(x_BTD.shape[1])
        learns = self.config.indexer.loss == "kl"
        scores_BTS = None
        if context.stage == "sparse" or learns or context.capture is not None:
            with part("indexer"):
                scores_BTS = self.indexer(x_BTD, context)
        if context.capture is not None and scores_BTS is not None:
            context.capture[self.layer] = Selection(
                selected_BTK=reference.select_top_k(scores_BTS.detach(), context.allowed, k),
                mass_BTS=capture_mass(q_BTHD, k_BTGD, context),
                scores_BTS=scores_BTS.detach(),
            )
        if context.stage == "dense" or scores_BTS is None:
            keep = context.allowed
            out_BTHD, p_BTS = masked.attention(q_BTHD, k_BTGD, v_BTGD, keep)
        elif self.config.backend == "reference":
            return self._reference(q_BTHD, k_BTGD, v_BTGD, scores_BTS, k, context)
        else:
            with part("top-k"):
                keep = masked.selection_mask(scores_BTS.detach(), context.allowed, k)
            out_BTHD, p_BTS = masked.attention(q_BTHD, k_BTGD, v_BTGD, keep)
        with part("indexer loss"):
            loss = masked.indexer_kl(scores_BTS, p_BTS, keep) if learns and scores_BTS is not None else None
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
        if self.config.indexer.loss == "kl":
            with part("indexer loss"):
                slots_BTK = scores_BTS.gather(-1, selected_BTK.clamp(min=0))
                loss = reference.indexer_kl(slots_BTK, p_BTK, selected_BTK != reference.EMPTY)
        return AttentionOutput(self.projections.merge(out_BTHD), loss)

    def kept_per_pair(self, width: int) -> float:
        """Probabilities of every head, the mask, and the dots of every indexer head."""
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

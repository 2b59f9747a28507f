"""Dense causal attention: every query attends to its whole past. The baseline of every comparison.

Legend: B batch, T query, D model width, H heads.
"""

from __future__ import annotations

from torch import Tensor

from dsabench.attention import scaled_dot_product
from dsabench.attention.base import Attention, AttentionContext, AttentionOutput, Stage, pairs
from dsabench.attention.registry import register
from dsabench.spec.attention import DenseSpec


@register
class Dense(Attention):
    """out[t] = softmax(Q[t] K[0..t]^T / sqrt(D)) V[0..t], by torch.nn.functional.scaled_dot_product_attention."""

    spec_class = DenseSpec
    equals_dense_at_full_k = True

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        """(B, T, D) -> (B, T, D); the stage changes nothing, there is no loss of its own."""
        q_BTHD, k_BTGD, v_BTGD = self.projections.heads(x_BTD, context)
        out_BTHD = scaled_dot_product.attention(q_BTHD, k_BTGD, v_BTGD, context.document_ids_BT, context.most_documents)
        return AttentionOutput(self.projections.merge(out_BTHD))

    def flops(self, stage: Stage) -> dict[str, float]:
        """Projections, and 12 H head_dim for each query-key pair: QK^T and PV, 2 + 2 forward and 4 + 4 backward. Of the
        latent layout 6 H (N + P + V), as LatentProjections has it."""
        return {
            "attention projections": self.projections.flops(self.spec),
            "attention": pairs(self.spec) * self.projections.pair_flops("dense"),
        }

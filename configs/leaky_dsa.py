"""WRONG ON PURPOSE: sparse attention as published small-scale code has it, which lets tokens see their future.

    keep[t] = top-k of (I[t,s] where s <= t, else -1e9)      out[t] = softmax(Q[t] K[keep[t]]^T / sqrt(D)) V[keep[t]]

The causal mask goes onto the scores, but the mask of the attention is built from the indices of the top-k alone. A row
with t + 1 < k has fewer than k causal keys, so its k indices include future ones, and nothing drops them: the causal
mask is not applied again. dsabench's causality gate refuses to train this without `allow_leak: true`, and marks every
run LEAK. The indexer is never trained, as in that code. For seed_replica.yaml and seed_ladder.yaml.

Legend: B batch, T query, S key, D model width, H heads, G key/value heads, K selected slots.
"""

from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from dsabench.attention import DSA, AttentionContext, AttentionOutput, DSASpec, IndexerSpec, register
from dsabench.attention.dsa import masked


class LeakyDSASpec(DSASpec):
    """DSA's fields; an indexer that is neither trained nor warmed up."""

    kind: Literal["leaky_dsa"] = "leaky_dsa"  # type: ignore[assignment]
    indexer: IndexerSpec = IndexerSpec(loss="none", warmup_share=0.0)

    @model_validator(mode="after")
    def _as_published(self) -> Self:
        if self.indexer.loss != "none" or self.indexer.warmup_share:
            raise ValueError("leaky_dsa has no indexer loss and no warm-up: loss must be none, warmup_share 0")
        return self


@register
class LeakyDSA(DSA):
    """DSA without the second causal mask: rows t < k - 1 attend to positions up to k - 1."""

    spec_class = LeakyDSASpec  # type: ignore[assignment]

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        """(B, T, D) -> (B, T, D), not causal; ties, the future among them, go to the lowest index."""
        q_BTHD, k_BTGD, v_BTGD = self.projections.heads(x_BTD, context, head_major=True)
        scores_BTS = self.indexer(x_BTD, context).detach().masked_fill(~context.allowed, -1e9)
        order_BTS = scores_BTS.sort(dim=-1, descending=True, stable=True).indices
        chosen_BTK = order_BTS[..., : self.config.n_selected(x_BTD.shape[1])]
        keep_BTS = torch.zeros_like(scores_BTS, dtype=torch.bool).scatter(-1, chosen_BTK, True)
        # Here `keep_BTS = keep_BTS & context.allowed` is missing.
        return AttentionOutput(self.projections.merge(masked.attention(q_BTHD, k_BTGD, v_BTGD, keep_BTS)[0]))

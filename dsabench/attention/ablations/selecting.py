"""The base of selections without an indexer: a dense warm-up, then attention over the k highest of their scores.

    S[t] = top-k of score[t, 0..t]      out[t] = softmax(Q[t] K[S[t]]^T / sqrt(D)) V[S[t]]

They are ablations: the same model, stage schedule and k as DSA, with another choice of the k keys. Nothing in a
selection is trained. All are computed as a masked dense product, whatever kernels of their own would cost.

Legend: B batch, T query, S key, D model or head width, H heads, G key/value heads.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from dsabench.attention.base import Attention, AttentionContext, AttentionOutput, Stage, capture, pairs
from dsabench.attention.dsa import masked, reference
from dsabench.ops.profile_labels import part
from dsabench.spec.attention import AblationSpec
from dsabench.spec.run import RunSpec


class SelectingAttention(Attention):
    """Attention over the top k of `scores`; dense attention in the warm-up stage."""

    equals_dense_at_full_k = True

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__(spec, layer)
        assert isinstance(spec.attention, AblationSpec)
        self.selecting = spec.attention

    @abc.abstractmethod
    def scores(self, q_BTHD: Tensor, k_BSGD: Tensor, context: AttentionContext) -> Tensor:
        """(T, S) or (B, T, S): the keys with the highest scores are selected. Values beyond the causal mask mean
        nothing. Called without gradients."""

    def selection_flops(self) -> float:
        """Model FLOPs of one window's scores; 0 for a rule that depends on positions alone."""
        return 0.0

    def kept_per_pair(self, width: int) -> float:
        """Probabilities of every head, and the mask."""
        return self.spec.model.n_heads * width + 1.0

    def prepare(self, context: AttentionContext) -> None:
        """As Attention.prepare; also the mask."""
        super().prepare(context)
        _ = context.allowed

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        """(B, T, D) -> (B, T, D); no loss of its own."""
        q_BTHD, k_BTGD, v_BTGD = self.projections.heads(x_BTD, context, head_major=True)
        k = context.keys_kept(self.selecting, x_BTD.shape[1])
        keep = context.allowed
        if context.stage == "sparse" or context.capture is not None:
            with torch.no_grad(), part("indexer"):
                scores_BTS = self.scores(q_BTHD.detach(), k_BTGD.detach(), context)
                scores_BTS = scores_BTS if scores_BTS.dim() == 3 else scores_BTS[None]
            if context.capture is not None:
                every_BTS = scores_BTS.expand(len(x_BTD), -1, -1)
                selected_BTK = reference.select_top_k(every_BTS, context.allowed, k)
                context.capture[self.layer] = capture(selected_BTK, every_BTS, q_BTHD, k_BTGD, context)
            if context.stage == "sparse":
                with torch.no_grad(), part("top-k"):
                    if keep.dim() == 3:  # packed documents: each row has a mask of its own
                        scores_BTS = scores_BTS.expand_as(keep).contiguous()
                    keep = masked.selection_mask(scores_BTS, context.allowed, k)
                    keep = keep[0] if len(keep) == 1 else keep
        out_BTHD, _ = masked.attention(q_BTHD, k_BTGD, v_BTGD, keep)
        return AttentionOutput(self.projections.merge(out_BTHD))

    def flops(self, stage: Stage) -> dict[str, float]:
        """Projections; attention over the stage's pairs; what the selection costs."""
        chosen = pairs(self.spec, None if stage == "dense" else self.selecting.n_selected(self.spec.length))
        items = {
            "attention projections": self.projections.flops(self.spec),
            "attention": 12.0 * chosen * self.spec.model.heads_width,
        }
        if stage == "sparse" and self.selection_flops():
            items["selection"] = self.selection_flops()
        return items


def distance(context: AttentionContext) -> Tensor:
    """t - s of every pair, (T, S), int64; negative beyond the causal mask."""
    return context.positions_T[:, None] - context.positions_T[None, :]

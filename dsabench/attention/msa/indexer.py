"""MSA's index branch: one query head for each KV head, and one key that all share.

    qI[t,g] = RMSNorm(x[t] W_q)[g]        kI[s] = RMSNorm(x[s] W_k)        first halves rotated by position

Legend: B batch, T query, D model width, G KV heads, I index width, N = B G.
"""

from __future__ import annotations

from torch import Tensor, nn

from dsabench.attention.base import AttentionContext
from dsabench.ops import head_norm, rotate
from dsabench.spec.attention import MSASpec
from dsabench.spec.run import RunSpec


class IndexBranch(nn.Module):
    """Index queries and keys; no value."""

    def __init__(self, spec: RunSpec, attention: MSASpec) -> None:
        super().__init__()
        self.n_heads, self.head_dim = spec.model.kv_heads, attention.index_branch.head_dim
        self.rope_base, self.rope_scaling = spec.model.rope_base, spec.model.rope_scaling
        self.query = nn.Linear(spec.model.d_model, self.n_heads * self.head_dim, bias=False)
        self.key = nn.Linear(spec.model.d_model, self.head_dim, bias=False)
        self.query_norm = nn.RMSNorm(self.head_dim, eps=attention.index_branch.norm_eps)
        self.key_norm = nn.RMSNorm(self.head_dim, eps=attention.index_branch.norm_eps)

    def rotation(self, context: AttentionContext) -> tuple[Tensor, Tensor]:
        """cos and sin that turn the first half of a head, at the frequencies of the attention around it."""
        return context.rotation(self.head_dim // 2, self.rope_base, self.rope_scaling)

    def heads(self, x_BTD: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor]:
        """q and k, (N, T, I), the key the same in all groups. The input is detached here: no gradient of the branch's
        loss reaches it."""
        x_BTD = x_BTD.detach()
        rotation = self.rotation(context)
        q_BTGI = head_norm(self.query(x_BTD).unflatten(-1, (-1, self.head_dim)), self.query_norm)
        k_BT1I = head_norm(self.key(x_BTD)[:, :, None], self.key_norm)
        q_BTGI, k_BT1I = rotate(q_BTGI, *rotation), rotate(k_BT1I, *rotation)
        return q_BTGI.transpose(1, 2).flatten(0, 1), k_BT1I[:, :, 0].repeat_interleave(self.n_heads, 0)

    def flops(self, spec: RunSpec, pairs: float) -> float:
        """Projections (no gradient to their input: 4 of 6), and 2 G I for every causal pair."""
        columns = (self.n_heads + 1) * self.head_dim
        return 4.0 * spec.length * spec.model.d_model * columns + 2.0 * pairs * self.n_heads * self.head_dim

"""Multi-head latent attention (MLA), the layout `latent`: all heads' keys and values are made of one latent a token.

    c[s] = RMSNorm(W_c x[s])      k_r[s] = rotated W_r x[s]                        what a token keeps
    k[s,h] = (W_k[h] c[s], k_r[s])      v[s,h] = W_v[h] c[s]      q[t,h] = (q_n[t,h], rotated q_r[t,h])
    scores q . k (nope + rope)^-1/2, over keys and values of each head: as `heads` gives them

The same, absorbed into the query and the output, as `sparse_heads` gives it:

    q . k = (W_k[h]^T q_n[t,h]) . c[s] + q_r[t,h] . k_r[s]      out[t,h] = W_v[h] (sum_s p[t,s,h] c[s])

One key (c, k_r) for all heads, whose first part is its value. A pair then costs 2 rank + rope multiply-adds a head in
place of nope + rope + v, and a key rank + rope numbers in place of H times as many: the form for queries that gather
few keys, as DeepSeek-V3.2's sparse attention has it. Dense training takes the other. Projections cost the same.

The rotation turns halves, where DeepSeek's turns neighbours (see `rotary`): the columns of W_r and of the queries'
rotated part are in another order. Sources: DeepSeek-V2 and V3 (arXiv 2405.04434, section 2.1 and appendix C;
2412.19437), without YaRN.

Legend: B batch, T query, S key, D model width, H heads, N not rotated, P rotated, V value width, R rank of the latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dsabench.attention.projections import Projections, Rotations
from dsabench.ops import autocast, head_norm, rotate

if TYPE_CHECKING:
    from dsabench.spec.model_settings import ModelSpec
    from dsabench.spec.run import RunSpec


class LatentProjections(Projections):
    """The projections of MLA; q_lora_rank = null makes queries by one matrix. Their names do not depend on the
    attention, so that a sparse model starts from a dense one."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        model, latent = spec.model, spec.model.latent
        assert latent is not None
        self.n_heads, self.head_dim, self.rotated = model.n_heads, latent.qk_head_dim, latent.qk_rope_head_dim
        self.plain, self.value_width, self.value_dim = latent.qk_nope_head_dim, latent.kv_lora_rank, latent.v_head_dim
        self.rope_base, self.rope_scaling = model.rope_base, model.rope_scaling
        self.scale = latent.qk_head_dim**-0.5
        self.pair_numbers = model.heads_width + model.values_width
        self.sparse_pair_numbers = model.n_heads * (2 * latent.kv_lora_rank + latent.qk_rope_head_dim)
        rank = latent.q_lora_rank
        self.query_down = None if rank is None else nn.Linear(model.d_model, rank, bias=False)
        self.query_norm = None if rank is None else nn.RMSNorm(rank, eps=model.norm_eps)
        self.query = nn.Linear(query_source_width(model), model.heads_width, bias=False)
        self.latent_down = nn.Linear(model.d_model, latent.gathered_width, bias=False)
        self.latent_norm = nn.RMSNorm(latent.kv_lora_rank, eps=model.norm_eps)
        up = model.n_heads * (latent.qk_nope_head_dim + latent.v_head_dim)
        self.latent_up = nn.Linear(latent.kv_lora_rank, up, bias=False)
        self.out = nn.Linear(model.values_width, model.d_model, bias=False)

    def query_source(self, x_BTD: Tensor) -> Tensor:
        """RMSNorm of the low-rank projection, or x where there is none."""
        if self.query_down is None or self.query_norm is None:
            return x_BTD
        return head_norm(self.query_down(x_BTD), self.query_norm)

    def heads(
        self, x_BTD: Tensor, context: Rotations, head_major: bool = False, source_BTD: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q and k (B, T, H, N + P), v (B, T, H, V)."""
        q_BTHN, q_BTHP = self._queries(x_BTD, context, source_BTD)
        c_BTR, k_BT1P = self._keys(x_BTD, context)
        up_BTHC = self.latent_up(c_BTR).unflatten(-1, (self.n_heads, -1))
        k_BTHN, v_BTHV = up_BTHC.split([self.plain, self.value_dim], dim=-1)
        k_BTHP = k_BT1P.expand(-1, -1, self.n_heads, -1)
        return torch.cat([q_BTHN, q_BTHP], dim=-1), torch.cat([k_BTHN, k_BTHP], dim=-1), v_BTHV

    def sparse_heads(
        self, x_BTD: Tensor, context: Rotations, head_major: bool = False, source_BTD: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, T, H, R + P), k (B, T, 1, R + P), and v (B, T, 1, R), a view of k's first part."""
        q_BTHN, q_BTHP = self._queries(x_BTD, context, source_BTD)
        c_BTR, k_BT1P = self._keys(x_BTD, context)
        q_BTHR = torch.einsum("bthn,hnr->bthr", q_BTHN, self._up()[0])
        k_BT1C = torch.cat([c_BTR[:, :, None], k_BT1P], dim=-1)
        return torch.cat([q_BTHR, q_BTHP], dim=-1), k_BT1C, k_BT1C[..., : self.value_width]

    def sparse_merge(self, out_BTHD: Tensor) -> Tensor:
        """The heads' values of sums of latents (B, T, H, R), then `merge`."""
        return self.merge(torch.einsum("bthr,hvr->bthv", out_BTHD, self._up()[1]))

    def _queries(self, x_BTD: Tensor, context: Rotations, source_BTD: Tensor | None) -> tuple[Tensor, Tensor]:
        source_BTD = self.query_source(x_BTD) if source_BTD is None else source_BTD
        q_BTHD = self.query(source_BTD).unflatten(-1, (self.n_heads, -1))
        q_BTHN, q_BTHP = q_BTHD.split([self.plain, self.rotated], dim=-1)
        return q_BTHN, rotate(q_BTHP, *self.rotation(context))

    def _keys(self, x_BTD: Tensor, context: Rotations) -> tuple[Tensor, Tensor]:
        """The latent (B, T, R) and the rotated key (B, T, 1, P)."""
        c_BTR, k_BTP = self.latent_down(x_BTD).split([self.latent_norm.normalized_shape[0], self.rotated], dim=-1)
        return head_norm(c_BTR, self.latent_norm), rotate(k_BTP[:, :, None], *self.rotation(context))

    def _up(self) -> tuple[Tensor, Tensor]:
        """W_k (H, N, R) and W_v (H, V, R), in the dtype of products: on a CPU autocast does not see into einsum."""
        w_k_HNR, w_v_HVR = (
            autocast(self.latent_up.weight).unflatten(0, (self.n_heads, -1)).split([self.plain, self.value_dim], dim=1)
        )
        return w_k_HNR, w_v_HVR

    @staticmethod
    def flops(spec: RunSpec) -> float:
        """6 L (D rank_q + rank_q H (N + P) + D (R + P) + R H (N + V) + H V D); without rank_q D H (N + P) first."""
        model, latent = spec.model, spec.model.latent
        assert latent is not None
        source = query_source_width(model)
        numbers = (
            (0 if latent.q_lora_rank is None else model.d_model * source)
            + source * model.heads_width
            + model.d_model * latent.gathered_width
            + latent.kv_lora_rank * (model.n_heads * latent.qk_nope_head_dim + model.values_width)
            + model.values_width * model.d_model
        )
        return 6.0 * spec.length * numbers


def query_source_width(model: ModelSpec) -> int:
    """Width of Projections.query_source."""
    rank = None if model.latent is None else model.latent.q_lora_rank
    return model.d_model if rank is None else rank

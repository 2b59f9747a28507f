"""DSA over pools: the indexer scores pools of n neighbouring tokens, and attention runs on the tokens of the best.

    I[t,c] = sum_j w[t,j] relu(q[t,j] . k[c])      C[t] = the k // n best of the complete pools up to t
    S[t] = the tokens of C[t], and those after t's last complete pool
    out[t] = softmax(Q[t] K[S[t]]^T / sqrt(D)) V[S[t]]

Scores are n times fewer than DSA's, and so is the time of the indexer and of the top-k. `reference` is the
specification: formulas, sources, and where they disagree. Stages, loss and its routing are DSA's.

Backends, as DSA's: `reference` gathers, `masked` masks a dense product, `triton` streams (`streamed`), without any
L x L tensor. They differ by rounding alone. Packed documents: each is cut into pools from its own first token, so that
it is computed as it is by itself.

Legend: B batch, T query, S key, D model width, H heads, G key/value heads, C pools, P selected pools, K selected slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsabench.attention import scaled_dot_product
from dsabench.attention.base import AttentionContext, AttentionOutput, Stage, capture
from dsabench.attention.dsa import backends, masked
from dsabench.attention.dsa import reference as tokenwise
from dsabench.attention.pooled_dsa import reference
from dsabench.attention.pooled_dsa.indexer import PooledIndexer
from dsabench.attention.pooled_dsa.pools import Pools, pools_of
from dsabench.attention.registry import register
from dsabench.attention.with_backends import AttentionWithBackends
from dsabench.ops.profile_labels import part
from dsabench.spec.attention import PooledDSASpec
from dsabench.spec.run import RunSpec

Heads = tuple[Tensor, Tensor, Tensor]


@register
class PooledDSA(AttentionWithBackends):
    """Attention over the tokens of the indexer's best pools, with the indexer's loss; dense in the warm-up stage."""

    spec_class = PooledDSASpec
    equals_dense_at_full_k = True

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__(spec, layer)
        assert isinstance(spec.attention, PooledDSASpec)
        self.config = spec.attention
        self.indexer = PooledIndexer(spec, self.config)
        self.scale = self.projections.scale

    @classmethod
    def backend(cls, spec: RunSpec, no_kernels: str | None) -> backends.Backend:
        """As AttentionWithBackends.backend."""
        return backends.choose(*_size(spec), no_kernels)

    def prepare(self, context: AttentionContext) -> None:
        """As Attention.prepare; also the pools, the indexer's rotation and, for a backend that uses one, the mask."""
        super().prepare(context)
        self.indexer.rotation(context)
        pools_of(context, self.config.pool_size)
        if self.backend_on(context.positions_T.device) != "triton":
            _ = context.allowed

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        """(B, T, D) -> (B, T, D), and this layer's loss where the indexer learns and context.losses asks."""
        backend = self.backend_on(x_BTD.device)
        source_BTD = self.projections.query_source(x_BTD)
        q_BTHD, k_BTGD, v_BTGD = self.projections.stage_heads(x_BTD, context, backend != "triton", source_BTD)
        pools = pools_of(context, self.config.pool_size)
        heads = None
        if context.stage == "sparse" or self._learns(context) or context.capture is not None:
            with part("indexer"):
                heads = self.indexer.pooled_heads(x_BTD, pools, context, source_BTD)
        compute = self._streamed if backend == "triton" else self._gathered if backend == "reference" else self._masked
        out_BTHD, loss = compute(q_BTHD, k_BTGD, v_BTGD, heads, pools, context)
        return AttentionOutput(self.projections.stage_merge(out_BTHD, context), loss)

    def _masked(
        self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, heads: Heads | None, pools: Pools,
        context: AttentionContext,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        keep, loss = context.allowed, None
        if heads is None:
            return masked.attention(q_BTHD, k_BTGD, v_BTGD, keep, self.scale)[0], None
        with part("indexer"):
            scores_BTC = self.indexer.scores(*heads)
        self._capture(scores_BTC.detach(), q_BTHD, k_BTGD, pools, context)
        pool_BT, kept_BTC = pools.pool_BT(), pools.seen().expand_as(scores_BTC)
        if context.stage == "sparse":
            with part("top-k"):
                kept_BTC = masked.selection_mask(scores_BTC.detach(), kept_BTC, self._n_pools(context))
                keep = reference.pool_tokens(kept_BTC, pool_BT) | reference.tail_tokens(pools)
        out_BTHD, p_BTS = masked.attention(q_BTHD, k_BTGD, v_BTGD, keep, self.scale)
        if self._learns(context):
            with part("indexer loss"):
                scores_BTS = reference.token_scores(scores_BTC, pool_BT)
                loss = reference.pooled_kl(scores_BTS, p_BTS, reference.pool_tokens(kept_BTC, pool_BT))
        return out_BTHD, loss

    def _gathered(
        self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, heads: Heads | None, pools: Pools,
        context: AttentionContext,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        if heads is None or context.stage == "dense":
            return self._masked(q_BTHD, k_BTGD, v_BTGD, heads, pools, context)
        scores_BTC, loss = self.indexer.scores(*heads), None
        self._capture(scores_BTC.detach(), q_BTHD, k_BTGD, pools, context)
        selected_BTP = reference.select_pools(scores_BTC.detach(), pools, self._n_pools(context))
        selected_BTK = reference.tokens_of(selected_BTP, pools)
        out_BTHD, p_BTK = tokenwise.attention(q_BTHD, k_BTGD, v_BTGD, selected_BTK, self.scale)
        if self._learns(context):
            slots = selected_BTP.shape[2] * pools.size
            scores_BTP = scores_BTC.gather(-1, selected_BTP.clamp(min=0))
            inside_BTK = selected_BTK[..., :slots] != tokenwise.EMPTY
            loss = reference.pooled_kl(scores_BTP.repeat_interleave(pools.size, -1), p_BTK[..., :slots], inside_BTK)
        return out_BTHD, loss

    def _streamed(
        self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, heads: Heads | None, pools: Pools,
        context: AttentionContext,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """No tensor of L x L elements, in either stage, forward or backward."""
        from dsabench.attention.dsa.triton.attend import attend
        from dsabench.attention.dsa.triton.unions import share
        from dsabench.attention.pooled_dsa import streamed

        ids_BT, sparse, loss = context.document_ids_BT, context.stage == "sparse", None
        learns = self._learns(context)
        if heads is not None and (sparse or context.capture is not None):
            n_pools = min(self._n_pools(context), heads[1].shape[1])
            with part("top-k"):
                selected_BTP, index_lse_BT = streamed.select(*heads, pools, n_pools)
                selected_BTK = streamed.tokens_of(selected_BTP, pools)
            if context.capture is not None:
                scores_BTS = None
                if context.whole_mass:
                    scores_BTS = self._captured_scores(self.indexer.scores(*heads).detach(), pools)
                context.capture[self.layer] = capture(selected_BTK, scores_BTS, q_BTHD, k_BTGD, context, self.scale)
        if heads is not None and sparse:
            unions = share(q_BTHD, k_BTGD, selected_BTK)
            width = self.projections.value_width
            values_BTGD = v_BTGD if width is None else None
            out_BTHD, lse_BTH = attend(
                q_BTHD, k_BTGD, values_BTGD, selected_BTK, None, True, unions, scale=self.scale, value_width=width
            )  # fmt: skip
            if learns:
                with part("indexer loss"):
                    sizes = self.scale, width
                    loss = streamed.sparse_loss(
                        q_BTHD, k_BTGD, lse_BTH, heads, selected_BTP, index_lse_BT, pools, *sizes
                    )
        else:
            out_BTHD = scaled_dot_product.attention(q_BTHD, k_BTGD, v_BTGD, ids_BT, context.most_documents)
            if learns and heads is not None:
                with part("indexer loss"):
                    loss = streamed.dense_loss(q_BTHD, k_BTGD, heads, pools, context)
        return out_BTHD, loss

    def _capture(
        self, scores_BTC: Tensor, q_BTHD: Tensor, k_BTGD: Tensor, pools: Pools, context: AttentionContext
    ) -> None:
        if context.capture is not None:
            selected_BTP = reference.select_pools(scores_BTC, pools, self._n_pools(context))
            selected_BTK = reference.tokens_of(selected_BTP, pools)
            scores_BTS = self._captured_scores(scores_BTC, pools)
            context.capture[self.layer] = capture(selected_BTK, scores_BTS, q_BTHD, k_BTGD, context, self.scale)

    @staticmethod
    def _captured_scores(scores_BTC: Tensor, pools: Pools) -> Tensor:
        """(B, T, S): a token's is its pool's; the tail, which is selected without a score, has the row's lowest."""
        scores_BTS = reference.token_scores(scores_BTC, pools.pool_BT())
        return torch.where(reference.tail_tokens(pools), scores_BTC.amin(-1, keepdim=True), scores_BTS)

    def _n_pools(self, context: AttentionContext) -> int:
        return self.config.pools_of_keys(context.keys_kept(self.config, len(context.positions_T)))

    def _learns(self, context: AttentionContext) -> bool:
        return self.config.indexer.loss == "kl" and context.losses

    def kept_per_pair(self, width: int) -> float:
        """As DSA's, but of an indexer head one dot product for each pool."""
        length, size = self.spec.length, self.config.pool_size
        if self.config.backend == "triton":
            return 7.0 * self.config.keys_read(length) / length
        return (self.spec.model.n_heads + self.indexer.n_heads / size) * width + 1.0

    def own_parameters(self) -> set[str]:
        """The indexer's, which its loss alone trains."""
        return {f"indexer.{name}" for name, _ in self.indexer.named_parameters()}

    def flops(self, stage: Stage) -> dict[str, float]:
        """As DSA's, with pools in place of tokens in indexer, top-k and loss."""
        length, n = self.spec.length, self.config.pool_size
        complete, left = divmod(length, n)
        most = complete if stage == "dense" else min(self.config.n_pools(length), complete)
        seen, chosen = _pool_pairs(length, n, complete), _pool_pairs(length, n, most)
        tails = complete * n * (n - 1) / 2 + left * (left + 1) / 2
        items = {
            "attention projections": self.projections.flops(self.spec),
            "attention": (chosen * n + tails) * self.projections.pair_flops(stage),
        }
        learns = self.config.indexer.loss == "kl"
        if stage == "sparse" or learns:
            items["indexer"] = self.indexer.pooled_flops(self.spec, seen)
        if stage == "sparse" and seen:
            items["top-k"] = seen
        if learns and chosen:
            items["indexer loss"] = 4.0 * chosen * self.indexer.n_heads * self.indexer.head_dim
        return items


def _pool_pairs(length: int, n: int, most: int) -> float:
    """Pairs of a query and one of its at most `most` pools: sum over t of min((t + 1) // n, most)."""
    rising = min(length, (most + 1) * n - 1)  # queries that keep every pool they see
    complete, left = divmod(rising, n)
    return n * complete * (complete - 1) / 2 + complete * (left + 1) + (length - rising) * most


def _size(spec: RunSpec) -> tuple[str, int, int, int, str | None]:
    """The arguments of backends.choose that do not depend on the machine."""
    attention = spec.attention
    assert isinstance(attention, PooledDSASpec)
    most, indexer = attention.at_most_keys(spec.length), attention.indexer
    n_pools = min(most.n_pools(spec.length), max(1, spec.length // attention.pool_size))
    limit = backends.limit_of(n_pools, spec.model.head_dim, indexer.n_heads, indexer.head_dim)
    limit = limit or backends.limit_of_latent(spec.model.latent)
    sharing = spec.model.n_heads // spec.model.gathered_heads
    return attention.backend, spec.length, most.keys_read(spec.length), sharing, limit

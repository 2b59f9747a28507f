"""DeepSeek Sparse Attention: a lightning indexer scores the past, and attention runs on the k tokens it scores highest.

    I[t,s] = sum_j w[t,j] relu(q[t,j] . k[s])      S[t] = top-k of I[t, 0..t]
    out[t] = softmax(Q[t] K[S[t]]^T / sqrt(D)) V[S[t]]

Top-k passes no gradient, so the indexer has a loss of its own: KL(p[t] || softmax(I[t])), p the main attention's
probabilities averaged over heads. In the dense warm-up stage attention is dense and the KL runs over all causal keys;
in the sparse stage both run over S[t]. The indexer's input and target are detached: the language-model loss never
reaches the indexer, the KL loss never reaches anything else. A layer's KL is the mean over its queries, and the model's
the mean over layers; where other trainers add the layers, their weight is this one divided by the number of layers.
Source: DeepSeek-V3.2 (arXiv 2512.02556), section 2, and the released inference/model.py for LayerNorm, partial rotary
embedding and scale.

indexer.share_layers: n layers share the first one's indexer and selection, see index_groups.py.

Backends: `reference` and `masked` hold L x L scores and masks. `triton` streams them (triton/): memory grows with the
selection, and so does time but for the scores. They differ by rounding alone; `auto` chooses (backends.py).

Legend: B batch, T query, S key, D model width, H heads, J indexer heads, I indexer width, K selected slots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from dsabench.attention import scaled_dot_product
from dsabench.attention.base import AttentionContext, AttentionOutput, Stage, capture, pairs
from dsabench.attention.dsa import backends, masked, reference
from dsabench.attention.dsa.index_groups import leader_of
from dsabench.attention.dsa.indexer import LightningIndexer
from dsabench.attention.registry import register
from dsabench.attention.with_backends import AttentionWithBackends
from dsabench.ops.profile_labels import part
from dsabench.spec.attention import DSASpec
from dsabench.spec.run import RunSpec

Made = TypeVar("Made")


@register
class DSA(AttentionWithBackends):
    """Attention over the indexer's top k, with the indexer's KL loss; dense attention in the warm-up stage."""

    spec_class = DSASpec
    equals_dense_at_full_k = True

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__(spec, layer)
        assert isinstance(spec.attention, DSASpec)
        self.config = spec.attention
        leader = leader_of(spec, layer)
        self.indexer = LightningIndexer(spec, self.config) if leader == layer else None
        self.leader, self.follows = leader, None if leader == layer else leader

    @classmethod
    def backend(cls, spec: RunSpec, no_kernels: str | None) -> backends.Backend:
        """As AttentionWithBackends.backend."""
        return backends.choose(*_size(spec), no_kernels)

    def prepare(self, context: AttentionContext) -> None:
        """As Attention.prepare; also the indexer's rotation and, for a backend that uses one, the mask."""
        super().prepare(context)
        if self.indexer is not None:
            self.indexer.rotation(context)
        if self.backend_on(context.positions_T.device) != "triton":
            _ = context.allowed

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        """(B, T, D) -> (B, T, D), and the KL loss of this layer's indexer where it has one and context.losses asks."""
        backend = self.backend_on(x_BTD.device)
        source_BTD = self.projections.query_source(x_BTD)
        q_BTHD, k_BTGD, v_BTGD = self.projections.stage_heads(x_BTD, context, backend != "triton", source_BTD)
        k, scale = context.keys_kept(self.config, x_BTD.shape[1]), self.projections.scale
        learns = self._learns(context)
        heads = None
        if context.stage == "sparse" or learns or context.capture is not None:
            with part("indexer"):
                heads = self._of_group(context, "heads", lambda one: one.heads(x_BTD, context, source_BTD))
        if backend == "triton":
            return self._streamed(q_BTHD, k_BTGD, v_BTGD, heads, k, context)
        scores_BTS = None
        if heads is not None:
            with part("indexer"):
                scores_BTS = self._of_group(context, "scores", lambda one: one.scores(*heads))
        if context.capture is not None and scores_BTS is not None:
            selected_BTK = reference.select_top_k(scores_BTS.detach(), context.allowed, k)
            found_BTS = scores_BTS.detach()
            context.capture[self.layer] = capture(selected_BTK, found_BTS, q_BTHD, k_BTGD, context, scale)
        if context.stage == "dense" or scores_BTS is None:
            keep = context.allowed
            out_BTHD, p_BTS = masked.attention(q_BTHD, k_BTGD, v_BTGD, keep, scale)
        elif backend == "reference":
            return self._reference(q_BTHD, k_BTGD, v_BTGD, scores_BTS, k, context)
        else:
            with part("top-k"):
                index_BTS = scores_BTS.detach()
                keep = self._of_group(context, "mask", lambda _: masked.selection_mask(index_BTS, context.allowed, k))
            out_BTHD, p_BTS = masked.attention(q_BTHD, k_BTGD, v_BTGD, keep, scale)
        with part("indexer loss"):
            loss = masked.indexer_kl(scores_BTS, p_BTS, keep) if learns and scores_BTS is not None else None
        return AttentionOutput(self.projections.stage_merge(out_BTHD, context), loss)

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
        from dsabench.attention.dsa.triton.attend import attend
        from dsabench.attention.dsa.triton.kl import sparse_kl
        from dsabench.attention.dsa.triton.kl_dense import dense_kl
        from dsabench.attention.dsa.triton.top_k import top_k
        from dsabench.attention.dsa.triton.unions import share

        ids_BT, sparse, loss = context.document_ids_BT, context.stage == "sparse", None
        learns, scale, value_width = self._learns(context), self.projections.scale, self.projections.value_width
        if heads is not None and (sparse or context.capture is not None):
            with part("top-k"):
                selected_BTK, index_lse_BT = self._of_group(
                    context, "selection", lambda _: top_k(*heads, min(k, q_BTHD.shape[1]), ids_BT)
                )
            if context.capture is not None:
                scores_BTS = None
                if context.whole_mass:
                    scores_BTS = self._of_group(context, "scores", lambda one: one.scores(*heads)).detach()
                context.capture[self.layer] = capture(selected_BTK, scores_BTS, q_BTHD, k_BTGD, context, scale)
        if heads is not None and sparse:
            unions = self._of_group(context, "unions", lambda _: share(q_BTHD, k_BTGD, selected_BTK))
            values_BTGD = v_BTGD if value_width is None else None
            out_BTHD, lse_BTH = attend(
                q_BTHD, k_BTGD, values_BTGD, selected_BTK, None, True, unions, scale=scale, value_width=value_width
            )  # fmt: skip
            if learns:
                with part("indexer loss"):
                    loss = sparse_kl(
                        q_BTHD, k_BTGD, lse_BTH, *heads, selected_BTK, index_lse_BT, None, unions, scale, value_width
                    )  # fmt: skip
        else:
            out_BTHD = scaled_dot_product.attention(q_BTHD, k_BTGD, v_BTGD, ids_BT, context.most_documents)
            if learns and heads is not None:
                with part("indexer loss"):
                    loss = dense_kl(q_BTHD, k_BTGD, *heads, ids_BT)
        return AttentionOutput(self.projections.stage_merge(out_BTHD, context), loss)

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
            index_BTS = scores_BTS.detach()
            selected_BTK = self._of_group(
                context, "selection", lambda _: reference.select_top_k(index_BTS, context.allowed, k)
            )
        out_BTHD, p_BTK = reference.attention(q_BTHD, k_BTGD, v_BTGD, selected_BTK, self.projections.scale)
        loss = None
        if self._learns(context):
            with part("indexer loss"):
                slots_BTK = scores_BTS.gather(-1, selected_BTK.clamp(min=0))
                loss = reference.indexer_kl(slots_BTK, p_BTK, selected_BTK != reference.EMPTY)
        return AttentionOutput(self.projections.stage_merge(out_BTHD, context), loss)

    def _of_group(self, context: AttentionContext, name: str, make: Callable[[LightningIndexer], Made]) -> Made:
        """What `make` gives, in the layers that use another one's indexer what it gave there."""
        key = ("index of layer", self.leader, name)
        if self.indexer is None:
            found: Made = context.take(key)
            return found
        made = make(self.indexer)
        return made if self.config.indexer.share_layers == 1 else context.leave(key, made)

    def _learns(self, context: AttentionContext) -> bool:
        return self.config.indexer.loss == "kl" and context.losses

    def kept_per_pair(self, width: int) -> float:
        """Probabilities of every head, the mask, and dot products of every indexer head. A backend that streams them
        keeps the selection and its unions alone, 7 bytes for each of a query's k keys. What another layer's indexer
        made is that layer's."""
        if self.indexer is None:
            return 0.0 if self.config.backend == "triton" else float(self.spec.model.n_heads * width)
        if self.config.backend == "triton":
            return 7.0 * min(self.config.n_selected(self.spec.length), self.spec.length) / self.spec.length
        return (self.spec.model.n_heads + self.indexer.n_heads) * width + 1.0

    def own_parameters(self) -> set[str]:
        """The indexer's, which the KL loss alone trains."""
        if self.indexer is None:
            return set()
        return {f"indexer.{name}" for name, _ in self.indexer.named_parameters()}

    def flops(self, stage: Stage) -> dict[str, float]:
        """Projections; attention over the stage's pairs; the indexer; the top-k, one comparison for each causal pair,
        the least that any selection needs; the KL loss, 4 J I backward for each of the stage's pairs. A layer that
        uses another's indexer has the first two alone: the mean of a group's targets needs one gradient."""
        chosen = pairs(self.spec, None if stage == "dense" else self.config.n_selected(self.spec.length))
        items = {
            "attention projections": self.projections.flops(self.spec),
            "attention": chosen * self.projections.pair_flops(stage),
        }
        if self.indexer is None:
            return items
        if stage == "sparse" or self.config.indexer.loss == "kl":
            items["indexer"] = self.indexer.flops(self.spec)
        if stage == "sparse":
            items["top-k"] = pairs(self.spec)
        if self.config.indexer.loss == "kl":
            items["indexer loss"] = 4.0 * chosen * self.indexer.n_heads * self.indexer.head_dim
        return items


def _size(spec: RunSpec) -> tuple[str, int, int, int, str | None]:
    """The arguments of backends.choose that do not depend on the machine."""
    attention = spec.attention
    assert isinstance(attention, DSASpec)
    k, indexer = min(attention.at_most_keys(spec.length).n_selected(spec.length), spec.length), attention.indexer
    limit = backends.limit_of(k, spec.model.head_dim, indexer.n_heads, indexer.head_dim)
    limit = limit or backends.limit_of_latent(spec.model.latent)
    sharing = spec.model.n_heads // spec.model.gathered_heads
    return attention.backend, spec.length, k, sharing, limit

"""The base of selections without an indexer: a dense warm-up, then attention over the k highest of their scores.

    S[t] = top-k of score[t, 0..t]      out[t] = softmax(Q[t] K[S[t]]^T / sqrt(D)) V[S[t]]

They are ablations: the same model, stage schedule and k as DSA, with another choice of the k keys. Nothing in a
selection is trained.

Backends: `masked` masks a dense product by the k highest scores, all L x L. `triton` gives index lists to DSA's sparse
kernels: no tensor of L x L elements, in either stage. They differ by rounding alone. A variant that has scores and no
`select` has masks alone.

A step of 6 layers at L = 4096, k = 256, 8 windows, 8 heads on one KV head, bf16, on the H200; milliseconds, in brackets
predicted, by masks 56 to 63: sliding_window 17.0 (18), strided 21.8 (22 to 24), random 23.3 (25.5), moba 29.9 (22),
oracle 45.1 (45); dense 22.0. A window's list is the same for all rows and layers: unions of 8 neighbours have 263 keys,
0.55 GB of atomics and 0.28 GB of gathers a layer, 0.36 ms where dense attention takes 1.27. FlexAttention was not
taken: about the same bytes and products, a block mask evaluated over all pairs, and compilation.

Legend: B batch, T query, S key, D model or head width, H heads, G key/value heads, K selected slots.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dsabench.attention import scaled_dot_product
from dsabench.attention.base import AttentionContext, AttentionOutput, Stage, capture, pairs
from dsabench.attention.dsa import backends, masked, reference
from dsabench.attention.dsa.reference import document_starts
from dsabench.attention.with_backends import AttentionWithBackends
from dsabench.ops.profile_labels import part
from dsabench.spec.attention import AblationSpec
from dsabench.spec.run import RunSpec

if TYPE_CHECKING:
    from dsabench.attention.dsa.triton.unions import Unions


class SelectingAttention(AttentionWithBackends):
    """Attention over the top k of `scores`; dense attention in the warm-up stage."""

    equals_dense_at_full_k = True

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__(spec, layer)
        assert isinstance(spec.attention, AblationSpec)
        self.selecting, self.scale = spec.attention, self.projections.scale

    @abc.abstractmethod
    def scores(self, q_BTHD: Tensor, k_BSGD: Tensor, context: AttentionContext) -> Tensor:
        """(T, S) or (B, T, S): the keys with the highest scores are selected. Values beyond the causal mask mean
        nothing. Called without gradients. Attention multiplies Q K^T by self.scale; in the latent layout G = 1 and D is
        that of the latent and the rotated key, but of each head's in the dense stage."""

    def select(self, q_BTHD: Tensor, k_BSGD: Tensor, k: int, context: AttentionContext) -> Tensor:
        """(B, T, K = k) int32, or (1, T, K) where all rows have the same: the selection of `scores`, ascending, -1 in
        the last slots. For k up to T. Without gradients, and without L x L elements."""
        raise NotImplementedError

    @classmethod
    def has_lists(cls) -> bool:
        """Whether `select` is the selection of `scores`: it was written with them or after them. A class that extends
        another one and changes its scores alone has masks alone."""
        scores, lists = (_written(cls, name) for name in ("scores", cls.lists_by))
        return lists <= scores

    lists_by: ClassVar[str] = "select"
    """The method that says the lists."""

    @classmethod
    def backend(cls, spec: RunSpec, no_kernels: str | None) -> backends.Backend:
        """As AttentionWithBackends.backend."""
        assert isinstance(spec.attention, AblationSpec)
        sharing = spec.model.n_heads // spec.model.gathered_heads
        limit = backends.limit_of_head(spec.model.head_dim) or backends.limit_of_latent(spec.model.latent)
        if not cls.has_lists():
            limit = f"{spec.attention.kind} has scores and no index lists"
        return backends.choose_lists(spec.attention.selection_backend, spec.length, sharing, limit, no_kernels)

    def selection_flops(self) -> float:
        """Model FLOPs of one window's scores; 0 for a rule that depends on positions alone."""
        return 0.0

    def kept_per_pair(self, width: int) -> float:
        """Probabilities of every head, and the mask; of lists 7 bytes for each of a query's k keys, their unions among
        them."""
        if self.selecting.selection_backend == "triton":
            return 7.0 * min(self.selecting.n_selected(self.spec.length), self.spec.length) / self.spec.length
        return self.spec.model.n_heads * width + 1.0

    def prepare(self, context: AttentionContext) -> None:
        """As Attention.prepare; also the mask, for a backend that uses one."""
        super().prepare(context)
        if self.backend_on(context.positions_T.device) != "triton":
            _ = context.allowed

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        """(B, T, D) -> (B, T, D); no loss of its own."""
        by_lists = self.backend_on(x_BTD.device) == "triton"
        q_BTHD, k_BTGD, v_BTGD = self.projections.stage_heads(x_BTD, context, not by_lists)
        attend = self._listed if by_lists else self._masked
        return AttentionOutput(self.projections.stage_merge(attend(q_BTHD, k_BTGD, v_BTGD, context), context))

    def _masked(self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, context: AttentionContext) -> Tensor:
        n_batch, k = len(q_BTHD), self._keys_kept(context)
        keep = context.allowed
        if context.stage == "sparse" or context.capture is not None:
            with torch.no_grad(), part("indexer"):
                scores_BTS = self._scores(q_BTHD, k_BTGD, context)
            if context.capture is not None:
                every_BTS = scores_BTS.expand(n_batch, -1, -1)
                selected_BTK = reference.select_top_k(every_BTS, context.allowed, k)
                context.capture[self.layer] = capture(selected_BTK, every_BTS, q_BTHD, k_BTGD, context, self.scale)
            if context.stage == "sparse":
                with torch.no_grad(), part("top-k"):
                    if keep.dim() == 3:  # packed documents: each row has a mask of its own
                        scores_BTS = scores_BTS.expand_as(keep).contiguous()
                    keep = masked.selection_mask(scores_BTS, context.allowed, k)
                    keep = keep[0] if len(keep) == 1 else keep
        return masked.attention(q_BTHD, k_BTGD, v_BTGD, keep, self.scale)[0]

    def _listed(self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, context: AttentionContext) -> Tensor:
        """No tensor of L x L elements, in either stage, forward or backward."""
        from dsabench.attention.dsa.triton.attend import attend
        from dsabench.attention.dsa.triton.unions import neighbours

        n_batch, length = q_BTHD.shape[:2]
        k = min(self._keys_kept(context), length)
        if context.stage == "sparse" or context.capture is not None:
            with torch.no_grad(), part("top-k"):
                selected_BTK, unions = self._selected(q_BTHD.detach(), k_BTGD.detach(), k, context)
            if context.capture is not None:
                scores_BTS = None
                if context.whole_mass:
                    with torch.no_grad():
                        scores_BTS = self._scores(q_BTHD, k_BTGD, context).expand(n_batch, -1, -1)
                every_BTK = selected_BTK.expand(n_batch, -1, -1)
                context.capture[self.layer] = capture(every_BTK, scores_BTS, q_BTHD, k_BTGD, context, self.scale)
            if context.stage == "sparse":
                unions = unions if neighbours(q_BTHD, k_BTGD) else None
                value_width = self.projections.value_width
                values_BTGD = v_BTGD if value_width is None else None
                return attend(
                    q_BTHD, k_BTGD, values_BTGD, selected_BTK, None, True, unions, self.scale, value_width
                )[0]  # fmt: skip
        return scaled_dot_product.attention(q_BTHD, k_BTGD, v_BTGD, context.document_ids_BT, context.most_documents)

    def _keys_kept(self, context: AttentionContext) -> int:
        return context.keys_kept(self.selecting, len(context.positions_T))

    def _scores(self, q_BTHD: Tensor, k_BTGD: Tensor, context: AttentionContext) -> Tensor:
        """`scores` with a dimension for rows, (1 or B, T, S)."""
        scores_BTS = self.scores(q_BTHD.detach(), k_BTGD.detach(), context)
        return scores_BTS if scores_BTS.dim() == 3 else scores_BTS[None]

    def _selected(
        self, q_BTHD: Tensor, k_BTGD: Tensor, k: int, context: AttentionContext
    ) -> tuple[Tensor, Unions | None]:
        """What `select` gives, and the unions of neighbouring queries."""
        from dsabench.attention.dsa.triton.unions import share

        selected_BTK = self.select(q_BTHD, k_BTGD, k, context)
        return selected_BTK, share(q_BTHD, k_BTGD, selected_BTK)

    def flops(self, stage: Stage) -> dict[str, float]:
        """Projections; attention over the stage's pairs; what the selection costs."""
        chosen = pairs(self.spec, None if stage == "dense" else self.selecting.n_selected(self.spec.length))
        items = {
            "attention projections": self.projections.flops(self.spec),
            "attention": chosen * self.projections.pair_flops(stage),
        }
        if stage == "sparse" and self.selection_flops():
            items["selection"] = self.selection_flops()
        return items


class PositionalAttention(SelectingAttention):
    """A selection by positions alone, the same in all layers: its lists are made once a forward pass."""

    lists_by = "keys"

    @abc.abstractmethod
    def keys(self, first_BT: Tensor, k: int) -> Tensor:
        """(B, T, K = k) int32: min(k, t - first + 1) keys from first[t] to t, ascending, -1 in the last slots."""

    def kept_per_pair(self, width: int) -> float:
        """As SelectingAttention.kept_per_pair, but one list serves all layers."""
        kept = super().kept_per_pair(width)
        return kept / self.spec.model.n_layers if self.selecting.selection_backend == "triton" else kept

    def prepare(self, context: AttentionContext) -> None:
        """As SelectingAttention.prepare; also the lists."""
        super().prepare(context)
        wanted = context.stage == "sparse" or context.capture is not None
        if wanted and self.backend_on(context.positions_T.device) == "triton":
            self._once(context)

    def select(self, q_BTHD: Tensor, k_BSGD: Tensor, k: int, context: AttentionContext) -> Tensor:
        """As SelectingAttention.select; one row where no documents are packed."""
        return self._once(context)[0]

    def _selected(
        self, q_BTHD: Tensor, k_BTGD: Tensor, k: int, context: AttentionContext
    ) -> tuple[Tensor, Unions | None]:
        return self._once(context)

    def _once(self, context: AttentionContext) -> tuple[Tensor, Unions | None]:
        return context.once(("lists", type(self)), lambda: self._make(context))

    def _make(self, context: AttentionContext) -> tuple[Tensor, Unions | None]:
        from dsabench.attention.dsa.triton.unions import queries_of, unions_of

        length, model = len(context.positions_T), self.spec.model
        with torch.no_grad(), part("top-k"):
            first_BT = first_keys(context)
            selected_BTK = self.keys(first_BT, min(self._keys_kept(context), length))
            queries = queries_of(length, model.n_heads, model.gathered_heads, model.gathered_width)
            return selected_BTK, unions_of(selected_BTK, queries) if queries else None


def _written(cls: type, name: str) -> int:
    """How many classes above `cls` the method was written; 0 in `cls` itself."""
    return next(i for i, owner in enumerate(cls.__mro__) if name in vars(owner))


def first_keys(context: AttentionContext) -> Tensor:
    """(B, T) int32, or (1, T) for all rows: the first key that each query may see."""
    ids_BT = context.document_ids_BT
    return torch.zeros_like(context.positions_T[None], dtype=torch.int32) if ids_BT is None else document_starts(ids_BT)


def ascending_keys(first_BT: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The slot, the query's position and the number of its keys, min(k, t - first + 1), for lists: (K,), (T, 1) and
    (B, T, 1), int32."""
    t_T1 = torch.arange(first_BT.shape[1], device=first_BT.device, dtype=torch.int32)[:, None]
    slot_K = torch.arange(k, device=first_BT.device, dtype=torch.int32)
    return slot_K, t_T1, (t_T1 + 1 - first_BT[..., None]).clamp(max=k)


def distance(context: AttentionContext) -> Tensor:
    """t - s of every pair, (T, S), int64; negative beyond the causal mask."""
    return context.positions_T[:, None] - context.positions_T[None, :]

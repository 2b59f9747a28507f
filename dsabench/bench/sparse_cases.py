"""DSA as it is timed: scores, top-k, attention and the KL loss, forward and backward; and its dense warm-up stage.

Legend: B batch, T query, S key, H query heads, G key/value heads, D head width, J indexer heads, I indexer width,
K selected slots.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dsabench import ops
from dsabench.attention.dsa import masked, reference
from dsabench.bench.cases import Case, PartOf, head_major
from dsabench.bench.document import Settings, StageName
from dsabench.bench.inputs import Inputs
from dsabench.bench.roofline import Cost

if TYPE_CHECKING:
    from dsabench.attention.dsa.triton.unions import Unions

LONGEST_INTERPRETED = 64
"""The longest input that Triton's interpreter does in seconds."""


class _DSA(Case):
    """Leaves: q, k, v (B, T, H, D) and the indexer's q, k, w."""

    family = "dsa"

    def __init__(self, settings: Settings, device: torch.device, stage: StageName) -> None:
        super().__init__(settings, device)
        self.stage = stage

    def cost(self, length: int) -> Cost:
        """Cost of the method: attention over the selected pairs, and scores of all causal ones."""
        return self._layer(length).dsa(self.stage)

    def setup(self, x: Inputs) -> None:
        """Make copies; the gradient of the loss is 1."""
        self.leaves = [part.detach().clone().requires_grad_() for part in x[:6]]
        one = torch.ones((), device=self.device)
        self.gradients_in = [x.d_out_BTHD.detach().clone(), one]

    def results(self, outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Output, loss and six gradients."""
        names = ("out", "loss", "d q", "d k", "d v", "d q_index", "d k_index", "d w_index")
        return {name: x.detach() for name, x in zip(names, (*outputs, *gradients), strict=True)}

    def _pairs(self, length: int) -> float:
        return float(self.settings.batch * length**2)


class _WithMask(_DSA):
    """An implementation that needs the causal mask, which all layers of a model share."""

    def setup(self, x: Inputs) -> None:
        """Also make the mask."""
        super().setup(x)
        self.allowed = reference.allowed_keys(x.q_BTHD.shape[1], None, self.device)

    def release(self) -> None:
        """Also let go of the mask."""
        super().release()
        self.allowed = torch.empty(0)


class Reference(_WithMask):
    """attention.dsa.reference, which gathers each query's keys. Scores are fp32 from the inputs as they are."""

    name = "dsa-reference"

    def scratch_bytes(self, length: int) -> float:
        """Gathered K and V of all heads with gradients; scores, their sort and the dots of every indexer head."""
        s = self.settings
        gathered = 4.0 * s.batch * length * min(s.top_k, length) * s.heads * s.head_dim * self._number()
        return gathered + self._pairs(length) * (8.0 * s.indexer_heads + 24.0)

    def forward(self) -> tuple[Tensor, ...]:
        """(B, T, H, D) and the loss. Products as the model has them: under autocast."""
        q_BTHD, k_BSGD, v_BSGD, *index = self.leaves
        scores_BTS = reference.index_scores(*(x.float() for x in index))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.dtype == "bf16"):
            if self.stage == "dense":
                out_BTHD, p_BTS = masked.attention(q_BTHD, k_BSGD, v_BSGD, self.allowed)
                return out_BTHD, reference.indexer_kl(scores_BTS, p_BTS, self.allowed)
            selected_BTK = reference.select_top_k(scores_BTS.detach(), self.allowed, self.settings.top_k)
            out_BTHD, p_BTK = reference.attention(q_BTHD, k_BSGD, v_BSGD, selected_BTK)
            slots_BTK = scores_BTS.gather(-1, selected_BTK.clamp(min=0))
            return out_BTHD, reference.indexer_kl(slots_BTK, p_BTK, selected_BTK != reference.EMPTY)


class Masked(_WithMask):
    """attention.dsa.masked: an L x L product with a mask; q, k and v lie in memory as batched products take them."""

    name = "dsa-masked"

    def setup(self, x: Inputs) -> None:
        """(B, H, T, D) in memory."""
        super().setup(x)
        qkv = [head_major(part).transpose(1, 2).requires_grad_() for part in x[:3]]
        self.leaves = [*qkv, *self.leaves[3:]]

    def scratch_bytes(self, length: int) -> float:
        """Scores and probabilities of all heads and their gradients; dots of every indexer head."""
        s = self.settings
        return self._pairs(length) * (s.heads * (3.0 * self._number() + 8.0) + 8.0 * s.indexer_heads + 16.0)

    def forward(self) -> tuple[Tensor, ...]:
        """(B, T, H, D) and the loss."""
        q_BTHD, k_BSGD, v_BSGD, *index = self.leaves
        scores_BTS = masked.index_scores(*index).float()
        keep = self.allowed
        if self.stage == "sparse":
            keep = masked.selection_mask(scores_BTS.detach(), keep, self.settings.top_k)
        out_BTHD, p_BTS = masked.attention(q_BTHD, k_BSGD, v_BSGD, keep)
        return out_BTHD, masked.indexer_kl(scores_BTS, p_BTS, keep)


class Triton(_DSA):
    """attention.dsa.triton. In the dense stage attention is scaled_dot_product_attention by PyTorch's own choice of
    backend, and the KL loss streams over all causal keys."""

    name = "dsa-triton"
    single: ClassVar[bool] = False
    """Whether each query goes by itself, whatever it shares with its neighbours."""

    def why_not(self, length: int) -> str | None:
        """The reason why its kernels do not run here, or do not take these sizes; None when they do."""
        if not ops.HAS_TRITON:
            return "Triton is not installed"
        if self.settings.head_dim > 256:
            return f"the kernels take heads up to 256 wide, and --head-dim is {self.settings.head_dim}"
        if self.stage == "sparse" and min(self.settings.top_k, length) > 4096:
            return f"the top-k kernel keeps at most 4096 keys, and --top-k is {self.settings.top_k}"
        on_cpu = self.device.type == "cpu" and not ops.on_gpu(self.device)
        if on_cpu and os.environ.get("TRITON_INTERPRET") != "1":
            return "Triton kernels need a CUDA GPU (or TRITON_INTERPRET=1, for short inputs)"
        if on_cpu and length > LONGEST_INTERPRETED:
            return f"Triton's interpreter would take minutes beyond {LONGEST_INTERPRETED} tokens"
        return None

    @property
    def comparable(self) -> bool:
        """False in Triton's interpreter, whose times say nothing about a device."""
        return self.device.type != "cpu"

    def scratch_bytes(self, length: int) -> float:
        """No tensor of L x L: inputs, gradients, indices and lists."""
        s = self.settings
        rows = float(s.batch * length)
        return rows * (24.0 * s.heads * s.head_dim + 24.0 * s.indexer_heads * s.indexer_dim + 11.0 * s.top_k)

    def forward(self) -> tuple[Tensor, ...]:
        """(B, T, H, D) and the loss."""
        if self.stage == "dense":
            return self._dense_attention(), self._dense_kl()
        selected_BTK, index_lse_BT = self._select()
        unions = self._unite(selected_BTK)
        out_BTHD, lse_BTH = self._attend(selected_BTK, unions)
        return out_BTHD, self._sparse_kl(lse_BTH, selected_BTK, index_lse_BT, unions)

    def parts(self) -> list[PartOf]:
        """Each part with its own gradients, on the selection of these inputs."""
        length = self.leaves[0].shape[1]
        layer = self._layer(length)
        qkv, index = self.leaves[:3], self.leaves[3:]
        d_out = self.gradients_in[0]
        if self.stage == "dense":
            forward, backward = layer.attention(layer.pairs)
            out_BTHD = self._dense_attention()
            return [
                PartOf("attention forward", self._dense_attention, forward),
                PartOf(
                    "attention backward", lambda: torch.autograd.grad(out_BTHD, qkv, d_out, retain_graph=True), backward
                ),
                PartOf("KL loss, all keys", lambda: torch.autograd.grad(self._dense_kl(), index), layer.kl("dense")),
            ]
        forward, backward = layer.sparse_attention()
        selected_BTK, index_lse_BT = self._select()
        unions = self._unite(selected_BTK)
        out_BTHD, lse_BTH = self._attend(selected_BTK, unions)

        def loss() -> tuple[Tensor, ...]:
            return torch.autograd.grad(self._sparse_kl(lse_BTH, selected_BTK, index_lse_BT, unions), index)

        union = [PartOf("unions of neighbours", lambda: self._unite(selected_BTK), layer.unions())] if unions else []
        return [
            PartOf("scores + top-k", self._select, layer.selection()),
            *union,
            PartOf("attention forward", lambda: self._attend(selected_BTK, unions), forward),
            PartOf(
                "attention backward", lambda: torch.autograd.grad(out_BTHD, qkv, d_out, retain_graph=True), backward
            ),
            PartOf("KL loss", loss, layer.kl("sparse")),
        ]

    def _select(self) -> tuple[Tensor, Tensor]:
        from dsabench.attention.dsa.triton.top_k import top_k

        q_BTJI, k_BSI, w_BTJ = (x.detach() for x in self.leaves[3:])
        return top_k(q_BTJI, k_BSI, w_BTJ, self.settings.top_k)

    def _unite(self, selected_BTK: Tensor) -> Unions | None:
        from dsabench.attention.dsa.triton.unions import share

        return None if self.single else share(self.leaves[0], self.leaves[1], selected_BTK)

    def _attend(self, selected_BTK: Tensor, unions: Unions | None) -> tuple[Tensor, Tensor]:
        from dsabench.attention.dsa.triton.attend import attend

        q_BTHD, k_BSGD, v_BSGD = self.leaves[:3]
        fixed = self.settings.deterministic
        return attend(q_BTHD, k_BSGD, v_BSGD, selected_BTK, fixed, ascending=True, unions=unions)

    def _sparse_kl(self, lse_BTH: Tensor, selected_BTK: Tensor, index_lse_BT: Tensor, unions: Unions | None) -> Tensor:
        from dsabench.attention.dsa.triton.kl import sparse_kl

        q_BTHD, k_BSGD, _, q_BTJI, k_BSI, w_BTJ = self.leaves
        fixed = self.settings.deterministic
        return sparse_kl(q_BTHD, k_BSGD, lse_BTH, q_BTJI, k_BSI, w_BTJ, selected_BTK, index_lse_BT, fixed, unions)

    def _dense_attention(self) -> Tensor:
        q_BHTD, k_BGSD, v_BGSD = (x.transpose(1, 2) for x in self.leaves[:3])
        shared = self.settings.heads != self.settings.kv_heads
        return F.scaled_dot_product_attention(q_BHTD, k_BGSD, v_BGSD, is_causal=True, enable_gqa=shared).transpose(1, 2)

    def _dense_kl(self) -> Tensor:
        from dsabench.attention.dsa.triton.kl_dense import dense_kl

        q_BTHD, k_BSGD, _, q_BTJI, k_BSI, w_BTJ = self.leaves
        return dense_kl(q_BTHD, k_BSGD, q_BTJI, k_BSI, w_BTJ, deterministic=self.settings.deterministic)


class Single(Triton):
    """attention.dsa.triton with each query by itself: what groups of neighbours are compared with."""

    name = "dsa-triton-single"
    optional = True
    single = True

    def why_not(self, length: int) -> str | None:
        """Also where its stage knows no groups."""
        if self.stage == "dense":
            return "the warm-up stage has no groups"
        return super().why_not(length)

    def parts(self) -> list[PartOf]:
        """None: those of `dsa-triton` are enough."""
        return []


def dsa_cases(settings: Settings, device: torch.device) -> list[Case]:
    """All implementations of DSA, in every stage that is asked for."""
    kinds = (Reference, Masked, Triton, Single)
    return [kind(settings, device, stage) for stage in settings.stages for kind in kinds]

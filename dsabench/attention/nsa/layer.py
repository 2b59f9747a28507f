"""Native sparse attention (NSA): compressed, selected and window branches, each gated by what the query's token says.

    out[t] = g_cmp[t] compressed[t] + g_slc[t] selected[t] + g_win[t] window[t]

`reference` is the specification. The blocks are selected by the compressed branch's own probabilities, so that nothing
needs a loss of its own and there is no warm-up: the stage changes nothing. The selection passes no gradient.

Source: DeepSeek's NSA (arXiv 2502.11089), section 3; no code was released with it. It gives independent keys and values
to the three branches, one query to all, a sigmoid gate of each branch, and sizes l = 32, d = 16, l' = 64, n = 16 with 1
initial and 2 local blocks, w = 512. Where it is silent, with what others do: the gate is one linear map of the token to
a number for each head and branch (fla-core; the paper: "an MLP and sigmoid"); keys are compressed before rotation and
turned by the block's first position (fla-core: mean of rotated keys, and the same keys and values for all branches);
sizes of the compression's MLP are in `compression`.

**The KV heads have selections of their own.** A captured selection holds the union of theirs, of the selected branch
alone: which tokens any head of the layer chose to read. Mass is that of full attention with that branch's keys.

Legend: B batch, T query, S key, D model or head width, H query heads, G key/value heads, C compressed entries, N
selection blocks, K selected slots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsabench.attention.ablations.selecting import ascending_keys, first_keys
from dsabench.attention.base import AttentionContext, AttentionOutput, Stage, capture, pairs
from dsabench.attention.dsa import backends
from dsabench.attention.dsa.reference import EMPTY
from dsabench.attention.nsa import reference
from dsabench.attention.nsa.compression import Compression
from dsabench.attention.pooled_dsa.pools import Pools, pools_of
from dsabench.attention.projections import HeadProjections
from dsabench.attention.registry import register
from dsabench.attention.with_backends import AttentionWithBackends
from dsabench.errors import SpecError
from dsabench.ops import head_norm, rotate
from dsabench.ops.profile_labels import part
from dsabench.spec.attention import NSASpec
from dsabench.spec.run import RunSpec


@register
class NSA(AttentionWithBackends):
    """Three branches and their gates. The selected branch has the keys and values that all variants have."""

    spec_class = NSASpec

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__(spec, layer)
        assert isinstance(spec.attention, NSASpec)
        self.config, model = spec.attention, spec.model
        if self.config.compression_block > spec.length:
            raise SpecError(
                f"attention.compression_block = {self.config.compression_block} is longer than the window, length = "
                f"{spec.length}: no block would ever be compressed; make it at most the length"
            )
        width = model.kv_heads * model.head_dim
        self.compressed_key, self.compressed_value, self.window_key, self.window_value = (
            nn.Linear(model.d_model, width, bias=model.qkv_bias) for _ in range(4)
        )
        self.compress_key, self.compress_value = (
            Compression(self.config.compression_block, model.head_dim) for _ in range(2)
        )
        self.gate = nn.Linear(model.d_model, 3 * model.n_heads, bias=False)

    @classmethod
    def backend(cls, spec: RunSpec, no_kernels: str | None) -> backends.Backend:
        """As AttentionWithBackends.backend."""
        assert isinstance(spec.attention, NSASpec)
        sharing = spec.model.n_heads // spec.model.kv_heads
        limit = backends.limit_of_head(spec.model.head_dim)
        return backends.choose_lists(spec.attention.selection_backend, spec.length, sharing, limit, no_kernels)

    def prepare(self, context: AttentionContext) -> None:
        """As Attention.prepare; also the blocks, and the window's list or the mask."""
        super().prepare(context)
        self._entries(context)
        self._blocks(context)
        if self.backend_on(context.positions_T.device) == "triton":
            self._window_list(context)
        else:
            _ = context.allowed

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        """(B, T, D) -> (B, T, D); the stage changes nothing, there is no loss of its own."""
        q_BTHD, k_BTGD, v_BTGD = self.projections.heads(x_BTD, context)
        compressed = self._compressed_heads(x_BTD, context)
        window = self._window_heads(x_BTD, context)
        gates_BTH3 = self.gate(x_BTD).sigmoid().unflatten(-1, (-1, 3))
        branches = self._streamed if self.backend_on(x_BTD.device) == "triton" else self._masked
        out_BTHD = reference.gated(gates_BTH3, *branches(q_BTHD, (k_BTGD, v_BTGD), compressed, window, context))
        return AttentionOutput(self.projections.merge(out_BTHD.to(q_BTHD.dtype)))

    def _compressed_heads(self, x_BTD: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor]:
        """Keys and values of the compressed entries, (B, C, G, D) each; keys turned by their block's first position."""
        entries, head_dim = self._entries(context), self.projections.head_dim
        k_BCGD, v_BCGD = (
            compress(layer(x_BTD).unflatten(-1, (-1, head_dim)), entries)
            for layer, compress in (
                (self.compressed_key, self.compress_key),
                (self.compressed_value, self.compress_value),
            )
        )
        if (norm := self._key_norm()) is not None:
            k_BCGD = head_norm(k_BCGD, norm)
        cos_TD, sin_TD = self.projections.rotation(context)
        first_BC = entries.begin_BC.clamp(max=x_BTD.shape[1] - 1).expand(len(x_BTD), -1).flatten()
        # Each entry is turned by a position of its own: as a sequence of one token each.
        k_E1GD = rotate(k_BCGD.flatten(0, 1)[:, None], cos_TD[first_BC, None], sin_TD[first_BC, None])
        return k_E1GD.view_as(k_BCGD), v_BCGD

    def _window_heads(self, x_BTD: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor]:
        k_BTGD, v_BTGD = (
            layer(x_BTD).unflatten(-1, (-1, self.projections.head_dim))
            for layer in (self.window_key, self.window_value)
        )
        if (norm := self._key_norm()) is not None:
            k_BTGD = head_norm(k_BTGD, norm)
        return rotate(k_BTGD, *self.projections.rotation(context)), v_BTGD

    def _key_norm(self) -> nn.RMSNorm | None:
        assert isinstance(self.projections, HeadProjections)  # the latent layout is refused by the settings
        return self.projections.key_norm

    def _masked(
        self, q_BTHD: Tensor, chosen: tuple[Tensor, Tensor], compressed: tuple[Tensor, Tensor],
        window: tuple[Tensor, Tensor], context: AttentionContext,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        entries, blocks, length = self._entries(context), self._blocks(context), q_BTHD.shape[1]
        everything = slice(0, length)
        out_BTHD, p_BTGC = reference.compressed(q_BTHD, *compressed, entries.seen())
        with torch.no_grad(), part("top-k"):
            score_BTGN = reference.block_scores(p_BTGC, entries, blocks)
            counts = self.config.selected_blocks, self.config.initial_blocks, self.config.local_blocks
            chosen_BTGN = reference.select_blocks(score_BTGN, blocks, everything, *counts)
            keep_BGTS = reference.selected_tokens(chosen_BTGN, blocks, blocks.pool_BT())
        if context.capture is not None:
            union_BTS = keep_BGTS.any(1)
            token_S = torch.arange(length, device=q_BTHD.device)
            selected_BTS = torch.where(union_BTS, token_S, length).sort(-1).values
            self._capture(selected_BTS.masked_fill(selected_BTS == length, EMPTY), q_BTHD, chosen[0], context)
        distance_TS = context.positions_T[:, None] - context.positions_T
        near = context.allowed & (distance_TS < self.config.window)
        near_B1TS = near[:, None] if near.dim() == 3 else near[None, None]
        return (
            out_BTHD,
            reference.attention(q_BTHD, *chosen, keep_BGTS),
            reference.attention(q_BTHD, *window, near_B1TS),
        )

    def _streamed(
        self, q_BTHD: Tensor, chosen: tuple[Tensor, Tensor], compressed: tuple[Tensor, Tensor],
        window: tuple[Tensor, Tensor], context: AttentionContext,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """No tensor of L x L elements, forward or backward."""
        from dsabench.attention.dsa.triton.attend import attend
        from dsabench.attention.dsa.triton.unions import share
        from dsabench.attention.nsa import streamed

        entries, blocks = self._entries(context), self._blocks(context)
        out_BTHD, tokens_BGTK = streamed.compressed(q_BTHD, *compressed, entries, blocks, self.config)
        if context.capture is not None:
            every_BTK = tokens_BGTK.transpose(1, 2).flatten(2).sort(-1).values
            again_BTK = every_BTK[..., 1:] == every_BTK[..., :-1]
            every_BTK[..., 1:] = every_BTK[..., 1:].masked_fill(again_BTK, EMPTY)
            self._capture(every_BTK, q_BTHD, chosen[0], context)
        list_BTK = self._window_list(context)
        unions = share(q_BTHD, window[0], list_BTK)
        near_BTHD = attend(q_BTHD, *window, list_BTK, ascending=True, unions=unions)[0]
        return out_BTHD, streamed.selected(q_BTHD, *chosen, tokens_BGTK), near_BTHD

    def _capture(self, selected_BTK: Tensor, q_BTHD: Tensor, k_BSGD: Tensor, context: AttentionContext) -> None:
        assert context.capture is not None
        context.capture[self.layer] = capture(selected_BTK, None, q_BTHD, k_BSGD, context)

    def _entries(self, context: AttentionContext) -> Pools:
        return pools_of(context, self.config.compression_block, self.config.compression_stride)

    def _blocks(self, context: AttentionContext) -> Pools:
        return pools_of(context, self.config.selection_block)

    def _window_list(self, context: AttentionContext) -> Tensor:
        """(B or 1, T, K = window) int32: the nearest keys, ascending."""

        def make() -> Tensor:
            slot_K, t_T1, count_BT1 = ascending_keys(first_keys(context), min(self.config.window, len(t_T)))
            return torch.where(slot_K < count_BT1, t_T1 + 1 - count_BT1 + slot_K, EMPTY)

        t_T = context.positions_T
        return context.once(("window", self.config.window), make)

    def kept_per_pair(self, width: int) -> float:
        """Probabilities of every head in three branches, the compressed ones for each entry, and masks; of lists 7
        bytes for each key of a KV head's selection, and of the window's, which serves all layers."""
        length, model = self.spec.length, self.spec.model
        if self.config.selection_backend == "triton":
            window = min(self.config.window, length) / model.n_layers
            return 7.0 * (min(self.config.n_selected(length), length) * model.kv_heads + window) / length
        entries = 1 / self.config.compression_stride
        return model.n_heads * width * (2 + entries) + model.kv_heads + 1.0

    def flops(self, stage: Stage) -> dict[str, float]:
        """Projections, those of the three branches and the gates among them; the compression; each branch's pairs; one
        comparison for each query, KV head and block that it sees. A KV head's selection counts for its query heads."""
        spec, config, model = self.spec, self.config, self.spec.model
        length, width = spec.length, model.heads_width
        entries = _seen_blocks(length, config.compression_block, config.compression_stride)
        chosen = sum(config.selected_between(t, length)[0] for t in range(length))
        count = (length - config.compression_block) // config.compression_stride + 1
        columns = 4 * model.kv_heads * model.head_dim + 3 * model.n_heads
        mlp = (config.compression_block + 1) * model.head_dim**2
        items = {
            "attention projections": self.projections.flops(spec) + 6.0 * length * model.d_model * columns,
            "compression": 2 * 6.0 * count * model.kv_heads * mlp,
            "compressed branch": 12.0 * entries * width,
            "selected branch": 12.0 * chosen * width,
            "window branch": 12.0 * pairs(spec, config.window) * width,
        }
        seen = _seen_blocks(length, config.selection_block, config.selection_block)
        return items | ({"top-k": model.kv_heads * seen} if seen else {})


def _seen_blocks(length: int, size: int, stride: int) -> float:
    """Pairs of a query and a block that ended at or before it: sum over t of (t + 1 - size) // stride + 1."""
    last, left = divmod(max(0, length - size + 1), stride)
    return stride * last * (last + 1) / 2 + left * (last + 1)

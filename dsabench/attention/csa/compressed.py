"""Attention over a sliding window of tokens and over compressed entries: what CSA and HCA share.

    X[t] = {the nearest w tokens} + {entries of t's document that are complete at t, or some of them}
    out[t] = sum over X[t] of P V,   P = exp(Q[t] K / sqrt(D)) / (exp(sink) + sum over X[t] of exp(Q[t] K / sqrt(D)))

One softmax over tokens and entries; `sink` is a learned logit of each query head, without a value, which starts at 0.

Source: DeepSeek-V4 (arXiv 2606.19348), section 2.3, and its released inference/model.py (`attn_sink`). That model has
one key/value head in which keys are the values, a rotary part of 64 of its 512 channels with a base and YaRN of its own
for compressed layers, an inverse rotation of outputs, a query latent, RMSNorm over queries, keys and values, and a
grouped output projection. Here the mechanism stands on the heads that the model has (MHA, GQA or MQA, rotated whole, at
the model's base): the compressor has its own keys and values, and of all this only the RMSNorm over entries is left.

Backends: `masked` is `reference`, by masks of L x (L + E). `triton` holds no such tensor (`streamed`). They differ by
rounding alone.

Legend: B batch, T query, S key, E entry, D model or head width, H heads, G key/value heads, K selected entries.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from dsabench.attention.base import AttentionContext, AttentionOutput, Stage, pairs
from dsabench.attention.csa import reference
from dsabench.attention.csa.compressed_entries import Entries, entries_of
from dsabench.attention.csa.compressor import Compressor
from dsabench.attention.dsa import backends
from dsabench.attention.with_backends import AttentionWithBackends
from dsabench.spec.attention import CompressedSpec
from dsabench.spec.run import RunSpec


class CompressedAttention(AttentionWithBackends):
    """Attention over the window and all complete entries; a subclass may keep some of the entries."""

    overlap: ClassVar[bool]
    """Whether an entry is also made of the tokens before its own."""

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__(spec, layer)
        assert isinstance(spec.attention, CompressedSpec)
        model, self.compressed = spec.model, spec.attention
        self.compressor = Compressor(
            model.d_model, model.kv_heads, model.head_dim, self.compressed.compress_ratio, self.overlap, model.norm_eps
        )
        self.attn_sink_bias = nn.Parameter(torch.zeros(model.n_heads))

    @classmethod
    def backend(cls, spec: RunSpec, no_kernels: str | None) -> backends.Backend:
        """As AttentionWithBackends.backend."""
        attention, model = spec.attention, spec.model
        assert isinstance(attention, CompressedSpec)
        sharing = model.n_heads // model.kv_heads
        return backends.choose(
            attention.backend, spec.length, cls.reads(attention, spec.length), sharing, cls.limit(spec), no_kernels
        )

    @classmethod
    def reads(cls, attention: CompressedSpec, length: int) -> int:
        """Keys and entries that a query reads."""
        return attention.n_entries(length) + attention.sliding_window

    @classmethod
    def limit(cls, spec: RunSpec) -> str | None:
        """Why the kernels do not take this spec's sizes."""
        return backends.limit_of_head(spec.model.head_dim)

    def prepare(self, context: AttentionContext) -> None:
        """As Attention.prepare; also where entries and windows lie."""
        super().prepare(context)
        entries = self.entries(context)
        if self.streams(context.positions_T.device):
            from dsabench.attention.csa.streamed import every_entry, window_lists

            window_lists(context, self.compressed.sliding_window, self.spec.model)
            if self.reads_all(context):
                every_entry(context, entries, self.spec.model)
        else:
            self.window(context)

    def reads_all(self, context: AttentionContext) -> bool:
        """Whether this pass attends to every complete entry."""
        return True

    def entries(self, context: AttentionContext) -> Entries:
        """Where entries lie, the same for all layers."""
        return entries_of(context, self.compressed.compress_ratio)

    def window(self, context: AttentionContext) -> Tensor:
        """(T, S) or (B, T, S): the tokens of each query's window."""
        width = self.compressed.sliding_window
        return context.once(
            ("window", width),
            lambda: context.allowed & torch.ones_like(context.allowed).triu(1 - width),
        )

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        """(B, T, D) -> (B, T, D); a loss of its own where a subclass has one."""
        streams, entries = self.streams(x_BTD.device), self.entries(context)
        q_BTHD, k_BTGD, v_BTGD = self.projections.heads(x_BTD, context, head_major=not streams)
        k_BEGD, v_BEGD = self.compressor(x_BTD, entries, self.projections.rotation(context))
        k_BEGD, v_BEGD = k_BEGD.to(k_BTGD.dtype), v_BEGD.to(v_BTGD.dtype)
        heads = (q_BTHD, (k_BTGD, k_BEGD), (v_BTGD, v_BEGD))
        attend = self._streamed if streams else self._masked
        out_BTHD, loss = attend(x_BTD, heads, entries, context)
        return AttentionOutput(self.projections.merge(out_BTHD.to(q_BTHD.dtype)), loss)

    def _masked(
        self, x_BTD: Tensor, heads: Heads, entries: Entries, context: AttentionContext
    ) -> tuple[Tensor, Tensor | None]:
        keep = (self.window(context), entries.visible())
        return reference.attention(*heads, keep, self.attn_sink_bias)[0], None

    def _streamed(
        self, x_BTD: Tensor, heads: Heads, entries: Entries, context: AttentionContext
    ) -> tuple[Tensor, Tensor | None]:
        from dsabench.attention.csa.streamed import attend, every_entry, window_lists

        window = window_lists(context, self.compressed.sliding_window, self.spec.model)
        lists = every_entry(context, entries, self.spec.model)
        return attend(*heads, window, lists, entries, self.attn_sink_bias).out_BTHD, None

    def kept_per_pair(self, width: int) -> float:
        """Scores and probabilities of every head over tokens and entries, and the mask. Lists are made anew, or once
        for all layers: what is kept of entries grows with L alone."""
        if self.compressed.backend == "triton":
            return 0.0
        more = 1.0 + 1.0 / self.compressed.compress_ratio
        return more * (self.spec.model.n_heads * (4.0 + width) + 1.0)

    def entry_pairs(self, kept: int | None = None) -> float:
        """Sum over the queries t of a window of min(k, floor((t + 1) / m)): entries that they see, or keep."""
        length, m = self.spec.length, self.compressed.compress_ratio
        rest = length - self.compressed.n_entries(length) * m
        return sum(m * min(n, kept or n) for n in range(1, length // m)) + (
            (rest + 1) * min(length // m, kept or length) if length >= m else 0
        )

    def flops(self, stage: Stage) -> dict[str, float]:
        """Projections; the compressor's; attention, 12 H head_dim for each pair of a query and what it reads."""
        return self._flops(self.entry_pairs())

    def _flops(self, chosen: float) -> dict[str, float]:
        window = pairs(self.spec, self.compressed.sliding_window)
        return {
            "attention projections": self.projections.flops(self.spec),
            "compressor": self.compressor.flops(self.spec.length, self.spec.model.d_model, 6.0),
            "attention": 12.0 * (window + chosen) * self.spec.model.heads_width,
        }


Heads = tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Queries, and keys and values of tokens and of entries."""

"""The token-level compressor: a gated sum of neighbouring tokens becomes one entry.

    C = x W^C        Z = x W^Z                        of every token; `own` and `previous` have weights of their own
    S = softmax over the tokens of entry i and each channel apart of (Z + bias[place of the token in its block])
    entry[i] = RMSNorm(sum of S * C)                  keys are then turned by the position of the entry's first own
    token

With keys and values of their own, as the heads of this model have them, both are sums by the same S.

Source: DeepSeek-V4 (arXiv 2606.19348), section 2.3; its released inference/model.py; DeepseekV4CSACompressor and
DeepseekV4HCACompressor of `transformers` for what the report leaves open (RMSNorm after the sum, softmax in fp32, the
rotary position).

Legend: B batch, T token, E entry, M tokens of a block (m), G key/value heads, D head width, C = G D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsabench.attention.csa.compressed_entries import Entries, windows
from dsabench.ops import head_norm, rotate


class Compressor(nn.Module):
    """Entries of keys, and of values where `values` asks for them."""

    def __init__(
        self, d_model: int, n_heads: int, width: int, ratio: int, overlap: bool, norm_eps: float, values: bool = True
    ) -> None:
        super().__init__()
        self.width, self.copies = width, 2 if overlap else 1
        self.channels = n_heads * width
        self.key = nn.Linear(d_model, self.copies * self.channels, bias=False)
        self.value = nn.Linear(d_model, self.copies * self.channels, bias=False) if values else None
        self.gate = nn.Linear(d_model, self.copies * self.channels, bias=False)
        self.position_bias = nn.Parameter(torch.empty(ratio, self.copies * self.channels))
        self.key_norm = nn.RMSNorm(width, eps=norm_eps)
        self.value_norm = nn.RMSNorm(width, eps=norm_eps) if values else None

    def forward(self, x_BTD: Tensor, entries: Entries, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
        """(B, E, G, D) keys and values of the entries. rotation: cos and sin of the window's positions; widths below
        half a head turn its first part alone."""
        weight_BEMC = self.weights(x_BTD, entries)
        key_BEGD = turned(head_norm(self._sum(self.key(x_BTD), weight_BEMC, entries), self.key_norm), entries, rotation)
        if self.value is None or self.value_norm is None:
            return key_BEGD, None
        return key_BEGD, head_norm(self._sum(self.value(x_BTD), weight_BEMC, entries), self.value_norm)

    def weights(self, x_BTD: Tensor, entries: Entries) -> Tensor:
        """S, (B, E, M or 2 M, C), fp32: `previous` before `own`; 0 for tokens that are not there."""
        gate_BEMC = self._blocks(self.gate(x_BTD).float(), entries)
        bias_MC = torch.cat(self._copies(self.position_bias), dim=0)
        missing_BEM1 = (entries.tokens(self.copies == 2) < 0)[..., None]
        # The entries that a row does not have get even weights: nobody sees them, and they must not be NaN.
        missing_BEM1 = missing_BEM1 & ~missing_BEM1.all(2, keepdim=True)
        return (gate_BEMC + bias_MC.float()).masked_fill(missing_BEM1, -torch.inf).softmax(dim=2)

    def flops(self, length: int, d_model: int, passes: float) -> float:
        """Projections of one window; passes: 6 forward and backward, 4 without a gradient to the input, 2 forward."""
        matrices = 2 if self.value is None else 3
        return passes * length * d_model * matrices * self.copies * self.channels

    def _sum(self, x_BTC: Tensor, weight_BEMC: Tensor, entries: Entries) -> Tensor:
        """(B, E, G, D), in the dtype of x."""
        sum_BEC = (self._blocks(x_BTC, entries) * weight_BEMC.to(x_BTC.dtype)).sum(dim=2)
        sum_BEGD: Tensor = sum_BEC.unflatten(-1, (-1, self.width))
        return sum_BEGD

    def _blocks(self, x_BTC: Tensor, entries: Entries) -> Tensor:
        """(B, E, M or 2 M, C): what the tokens of each entry have."""
        *previous, own_BTC = self._copies(x_BTC)
        blocks = [windows(x, entries, previous=True) for x in previous]
        return torch.cat([*blocks, windows(own_BTC, entries)], dim=2)

    def _copies(self, x: Tensor) -> tuple[Tensor, ...]:
        copies: tuple[Tensor, ...] = x.split(self.channels, dim=-1)
        return copies


def turned(key_BEGD: Tensor, entries: Entries, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Keys turned by the positions of their entries."""
    cos_XW, sin_XW = (table_TW[entries.positions().flatten()] for table_TW in rotation)
    if not entries.packed:
        return rotate(key_BEGD, cos_XW, sin_XW)
    return rotate(key_BEGD.flatten(0, 1), cos_XW, sin_XW).view_as(key_BEGD)

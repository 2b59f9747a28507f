"""Heavily Compressed Attention (HCA) of DeepSeek-V4: a sliding window, and every entry of m = 128 tokens.

    entry[i] = RMSNorm(sum over its m tokens of softmax(x W^Z + bias) * x W^C)        entries do not overlap
    out[t] = attention over the nearest w tokens and all entries that are complete at t, with a learned sink

Nothing is selected, so nothing is captured, and there is no loss of its own; both stages are the same. A query reads
floor((t + 1) / m) + min(w, t + 1) keys. What it is on the heads of this model, and what is left out: csa/compressed.py.
Tokens behind the window whose entry is not complete are not read at all: with w < m - 1 there are some (DeepSeek-V4 has
w = m = 128).

Source: DeepSeek-V4 (arXiv 2606.19348), section 2.3.2.
"""

from __future__ import annotations

from typing import ClassVar

from dsabench.attention.csa.compressed import CompressedAttention
from dsabench.attention.registry import register
from dsabench.spec.attention import HCASpec


@register
class HCA(CompressedAttention):
    """Attention over the window and all complete entries."""

    spec_class = HCASpec
    overlap: ClassVar[bool] = False

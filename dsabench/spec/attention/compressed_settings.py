"""Settings that DeepSeek-V4's two attentions over compressed entries share."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsabench.spec.attention.attention_spec import AttentionSpec


class CompressedSpec(AttentionSpec):
    """Settings of an attention over a sliding window of tokens and over compressed entries of all that came before."""

    compress_ratio: Annotated[int, Field(ge=2)]
    """Tokens m of one document that become one compressed entry; DeepSeek-V4 has 4 in CSA and 128 in HCA. A document's
    last tokens that do not fill an entry are seen in the window alone."""

    sliding_window: Annotated[int, Field(ge=1)] = 32
    """The nearest tokens that a query reads as they are, its own included; DeepSeek-V4 has 128."""

    backend_field: ClassVar[str] = "backend"

    backend: Literal["auto", "masked", "triton"] = "auto"
    """How it is computed; results differ by rounding alone. `masked` masks a dense product; `triton` (a CUDA GPU) gives
    index lists to DSA's sparse kernels, without any L x L tensor. `auto` decides as for dsa, by the keys that a query
    reads; of these attentions nothing was measured."""

    def n_entries(self, length: int) -> int:
        """Most compressed entries of a window, floor(L / m)."""
        return length // self.compress_ratio

    def _smaller(self, to: int) -> dict[str, int]:
        """Sizes for a window of `to` tokens that has several entries outside the sliding window."""
        return {
            "compress_ratio": max(2, min(self.compress_ratio, to // 8)),
            "sliding_window": max(1, min(self.sliding_window, to // 8)),
        }

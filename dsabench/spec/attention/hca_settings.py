"""Settings of DeepSeek-V4's Heavily Compressed Attention."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dsabench.spec.attention.attention_spec import AttentionSpec
from dsabench.spec.attention.compressed_settings import CompressedSpec


class HCASpec(CompressedSpec):
    """Settings of Heavily Compressed Attention (DeepSeek-V4). It selects nothing: a query reads every entry."""

    kind: Literal["hca"] = "hca"
    """The variant's name."""

    compress_ratio: Annotated[int, Field(ge=2)] = 128
    """Tokens m of one document that become one compressed entry; DeepSeek-V4 has 128. A document's last tokens that do
    not fill an entry are seen in the window alone."""

    def keys_read(self, length: int) -> int:
        """k_effective: every entry of the window, and the sliding window's tokens. The learned sink has neither key nor
        value."""
        return self.n_entries(length) + min(self.sliding_window, length)

    def shrunk(self, length: int, to: int) -> AttentionSpec:
        """A window of `to` tokens that has several entries."""
        return self.model_copy(update=self._smaller(to))

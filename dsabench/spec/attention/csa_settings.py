"""Settings of DeepSeek-V4's Compressed Sparse Attention."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsabench.spec.attention.attention_spec import AttentionSpec
from dsabench.spec.attention.compressed_settings import CompressedSpec
from dsabench.spec.attention.indexed_settings import IndexedSpec
from dsabench.spec.attention.indexer_settings import IndexerSpec
from dsabench.spec.attention.selecting_settings import keys_kept


class CSASpec(CompressedSpec, IndexedSpec):
    """Settings of Compressed Sparse Attention (DeepSeek-V4)."""

    alternatives: ClassVar[tuple[tuple[str, str], ...]] = (("top_k_ratio", "top_k"),)

    kind: Literal["csa"] = "csa"
    """The variant's name."""

    compress_ratio: Annotated[int, Field(ge=2)] = 4
    """Tokens m of one document that become one compressed entry, together with the m before them; DeepSeek-V4 has 4. A
    document's last tokens that do not fill an entry are seen in the window alone."""

    top_k_ratio: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    """Compressed entries kept for each query, as a share of the L / compress_ratio that a window has, rounded half
    up."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    """Compressed entries kept for each query, in place of top_k_ratio; DeepSeek-V4 has 512 and 1024."""

    indexer: IndexerSpec = IndexerSpec()
    """The lightning indexer over compressed entries; norm_eps is that of its RMSNorm."""

    def n_kept(self, length: int) -> int:
        """Compressed entries that a query keeps: k."""
        return keys_kept(max(1, self.n_entries(length)), self.top_k, self.top_k_ratio)

    def n_selected(self, length: int) -> int:
        """Tokens that the kept entries and the window stand for, where they do not overlap: k m + w, at most L."""
        return min(length, self.n_kept(length) * self.compress_ratio + self.sliding_window)

    def selected_between(self, query: int, length: int) -> tuple[int, int]:
        """The window's tokens, and with them those that kept entries are made of, 2 m each where none overlap."""
        window = min(self.sliding_window, query + 1)
        return window, min(query + 1, window + 2 * self.compress_ratio * self.n_kept(length))

    def selects_everything(self, length: int) -> bool:
        """Whether every entry is kept."""
        return self.n_kept(length) >= self.n_entries(length)

    def keys_read(self, length: int) -> int:
        """k_effective: the kept entries and the window's tokens. The learned sink has neither key nor value."""
        return min(self.n_kept(length), self.n_entries(length)) + min(self.sliding_window, length)

    def shrunk(self, length: int, to: int) -> AttentionSpec:
        """The same share of fewer entries."""
        sizes = self._smaller(to)
        share = self.n_kept(length) / max(1, self.n_entries(length))
        kept = max(2, math.floor(share * (to // sizes["compress_ratio"]) + 0.5))
        return self.model_copy(update={**sizes, "top_k": kept, "top_k_ratio": None})

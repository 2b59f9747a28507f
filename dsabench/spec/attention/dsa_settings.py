"""Settings of DeepSeek Sparse Attention."""

from __future__ import annotations

from typing import ClassVar, Literal

from dsabench.spec.attention.indexed_settings import IndexedSpec
from dsabench.spec.attention.indexer_settings import IndexerSpec
from dsabench.spec.attention.selecting_settings import ScheduledSpec


class DSASpec(ScheduledSpec, IndexedSpec):
    """Settings of DeepSeek Sparse Attention."""

    kind: Literal["dsa"] = "dsa"
    """The variant's name."""

    backend_field: ClassVar[str] = "backend"

    backend: Literal["auto", "reference", "masked", "triton"] = "auto"
    """How it is computed; results differ by rounding alone. `reference` gathers, slowly and plainly; `masked` masks a
    dense product; `triton` (a CUDA GPU) streams scores and gathers the selection, without any L x L tensor. `auto`
    takes `triton` on a GPU where it was measured to be faster: where at least 8 query heads share a KV head
    (model.n_kv_heads) from 1024 tokens on and k <= L/16 and from 2048 on and k <= L/4, else from 8192 on and k <= L/8;
    `masked` elsewhere."""

    indexer: IndexerSpec = IndexerSpec()
    """The lightning indexer."""

    def why_not_latent(self) -> None:
        """It takes either layout."""

    def fewest_layers(self) -> int:
        """Two where layers share an indexer."""
        return min(2, self.indexer.share_layers)

"""Settings of DSA over pools of tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dsabench.spec.attention.dsa_settings import DSASpec


class PooledDSASpec(DSASpec):
    """Settings of DSA whose indexer scores pools of neighbouring tokens: DSA's, and the size of a pool."""

    kind: Literal["pooled_dsa"] = "pooled_dsa"  # type: ignore[assignment]
    """The variant's name."""

    pool_size: Annotated[int, Field(ge=1, le=1024)] = 4
    """Tokens of a pool, which is scored and selected as one. Of the k keys a query keeps, k // pool_size whole pools
    are selected, at least one; the tokens of a pool that is not complete yet come on top. 4 in Qwen3.8-Flash-Next and
    in GLM-5.3-Flash, both with k = 2048. 1 is DSA."""

    def pools_of_keys(self, k: int) -> int:
        """Whole pools of k keys, at least one."""
        return max(1, k // self.pool_size)

    def n_pools(self, length: int) -> int:
        """Pools that a query keeps."""
        return self.pools_of_keys(super().n_selected(length))

    def n_selected(self, length: int) -> int:
        """Keys of the selected pools; the incomplete pool's come on top."""
        return self.n_pools(length) * self.pool_size

    def selects_everything(self, length: int) -> bool:
        """Whether a query keeps every complete pool."""
        return self.n_pools(length) >= length // self.pool_size

    def selected_between(self, query: int, length: int) -> tuple[int, int]:
        """Complete pools up to n_pools, and the rest of its own."""
        complete, rest = divmod(query + 1, self.pool_size)
        count = min(complete, self.n_pools(length)) * self.pool_size + rest
        return count, count

    def keys_read(self, length: int) -> int:
        """The selected pools and the most of an incomplete one."""
        return min(self.n_selected(length) + self.pool_size - 1, length)

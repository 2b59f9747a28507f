"""Settings of MiniMax Sparse Attention and of its index branch."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dsabench.spec.attention.attention_spec import AttentionSpec, warmup_steps
from dsabench.spec.strict_model import Spec


class IndexBranchSpec(Spec):
    """The index branch, one head for each KV head, and how it is trained."""

    alternatives: ClassVar[tuple[tuple[str, str], ...]] = (("warmup_share", "warmup_steps"),)

    head_dim: Annotated[int, Field(ge=4, le=1024, multiple_of=4)] = 64
    """Width of an index head, whose first half is rotated by position; MiniMax-M3 has 128."""

    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-6
    """Epsilon of the RMSNorm on index queries and on the index key."""

    loss_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the KL loss, which is the mean over queries, groups and layers."""

    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    """The index branch's own peak learning rate, on the same schedule as the model's."""

    warmup_share: Annotated[float, Field(ge=0, lt=1)] | None = 0.2
    """Share of the steps in the dense warm-up stage, in which attention is full."""

    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of the dense warm-up stage, in place of warmup_share; 0 is no warm-up. At least the last step is sparse."""


class MSASpec(AttentionSpec):
    """Settings of MiniMax Sparse Attention (MSA)."""

    kind: Literal["msa"] = "msa"
    """The variant's name."""

    block_size: Annotated[int, Field(ge=1)] = 16
    """Tokens of a block; MiniMax-M3 has 128."""

    top_k_blocks: Annotated[int, Field(ge=1)] = 4
    """Blocks kept for each query and KV head, the local ones among them; MiniMax-M3 has 16."""

    local_blocks: Annotated[int, Field(ge=0)] = 1
    """Blocks that are always kept: the query's own, and those just before it; MiniMax-M3 has 1."""

    backend_field: ClassVar[str] = "backend"

    backend: Literal["auto", "masked", "triton"] = "auto"
    """How it is computed; results differ by rounding alone. `masked` masks a dense product; `triton` (a CUDA GPU) gives
    index lists to DSA's sparse kernels, without any L x L tensor. `auto` decides as for dsa, by the keys that a query
    keeps; of this attention nothing was measured."""

    index_branch: IndexBranchSpec = IndexBranchSpec()
    """The index branch."""

    @model_validator(mode="after")
    def _local_blocks_are_kept(self) -> Self:
        if self.local_blocks > self.top_k_blocks:
            raise ValueError(f"local_blocks = {self.local_blocks} is more than top_k_blocks = {self.top_k_blocks}")
        return self

    def n_selected(self, length: int) -> int:
        """Tokens of the kept blocks, at most L."""
        return min(length, self.top_k_blocks * self.block_size)

    def keys_read(self, length: int) -> int:
        """k_effective: tokens of the kept blocks of one KV head, of which the query's own block ends at the query (it
        is among them where local_blocks is 1 or more)."""
        blocks = min(self.top_k_blocks, -(-length // self.block_size))
        return (blocks - 1) * self.block_size + (length - 1) % self.block_size + 1

    def selected_between(self, query: int, length: int) -> tuple[int, int]:
        """Those of one KV head, up to all keys: the capture has what any of the KV heads selected."""
        return (self.keys_read(query + 1) if self.local_blocks else 1), query + 1

    def shrunk(self, length: int, to: int) -> AttentionSpec:
        """The same share of smaller blocks."""
        size = max(1, min(self.block_size, to // 8))
        share = self.top_k_blocks * self.block_size / length
        kept = max(2, self.local_blocks, math.floor(share * to / size + 0.5))
        return self.model_copy(update={"block_size": size, "top_k_blocks": kept})

    def warmup_steps(self, steps: int) -> int:
        """index_branch.warmup_steps, or index_branch.warmup_share of the steps; never the last step."""
        if self.index_branch.warmup_steps is not None:
            return min(steps - 1, self.index_branch.warmup_steps)
        return warmup_steps(self.index_branch.warmup_share or 0.0, steps)

    def own_learning_rate(self) -> float:
        """index_branch.learning_rate."""
        return self.index_branch.learning_rate

    def own_loss_weight(self) -> float:
        """index_branch.loss_weight."""
        return self.index_branch.loss_weight
